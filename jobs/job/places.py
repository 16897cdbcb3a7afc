"""Paths and URLs in a job, written so that every worker finds the same place, and compared as places.

Two texts may name one place: by a link, `..`, `file://`, another scheme or a slash at the end.
"""

import os
import re
from datetime import UTC, date, datetime

from maskfleet.jobs.errors import unsigned
from maskfleet.jobs.urls import plain


def absolute(place: str, *, names_allowed: bool = False) -> str:
    """Return a local path as an absolute path, and a URL in its usual form: workers may run in another folder.

    `~` at the start is the home folder. A variable at the start is refused: a job has the same meaning everywhere.

    Args:
        place: Path or URL as given.
        names_allowed: Whether a bare word is a name, such as a built-in model's, and not a path.

    Raises:
        ValueError: The place is empty, contains credentials, or starts with a variable or an unknown user's home.
    """
    if not place.strip():
        raise ValueError("must not be empty")
    if re.search(r"://[^/]*:[^/]*@", place):
        raise ValueError("must not contain a user name and password; set 'profile' or use the environment")
    if unsigned(place) != place:
        raise ValueError("must not contain a signature, since a job is stored; set 'profile' or use the environment")
    if place.startswith("$"):
        raise ValueError("starts with a variable, and variables are not filled in; write the path, or ./$… for a name")
    if names_allowed and not re.search(r"[/.~]", place):
        return place
    return plain(place) if "://" in place else os.path.abspath(_expanded(place))


def below(place: str, folder: str) -> str | None:
    """Return the path of a place within a folder, "" for the folder itself; None if it lies elsewhere.

    Args:
        place: Absolute path or URL.
        folder: Absolute path or URL.
    """
    for name in (_plain, canonical):
        here, there = name(place), name(folder)
        if here == there:
            return ""
        if here.startswith(f"{there.rstrip('/')}/"):
            return here[len(there.rstrip("/")) + 1 :]
    return None


def canonical(place: str) -> str:
    """Return the one name of a place: without links, `..` or slashes at its end."""
    name = _plain(place)
    return name if "://" in name else os.path.realpath(name)


def filled(place: str, *, day: date | None, name: str) -> str:
    """Return a place with `{date}` (as 2026-11-24) and `{name}` filled in; other braces stay as they are.

    Args:
        place: Path or URL.
        day: Value of `{date}`; None for today in UTC.
        name: Value of `{name}`.
    """
    return place.replace("{date}", (day or datetime.now(UTC).date()).isoformat()).replace("{name}", name)


def _expanded(path: str) -> str:
    home = os.path.expanduser(path)
    if path.startswith("~") and home == path:
        raise ValueError("starts with the home folder of an unknown user; write the path, or ./~… for a name")
    return home


def _plain(place: str) -> str:
    url = plain(place) if "://" in place else os.path.abspath(place)
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.strip('/')}" if separator else url
