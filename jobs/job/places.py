"""Paths and URLs in a job, written so that every worker finds the same place."""

import os
import re
from datetime import UTC, date, datetime


def absolute(place: str, *, names_allowed: bool = False) -> str:
    """Return a URL as it is and a local path as an absolute path: workers may run in another folder.

    Args:
        place: Path or URL as given.
        names_allowed: Whether a bare word is a name, such as a built-in model's, and not a path.

    Raises:
        ValueError: The place is empty or contains credentials.
    """
    if not place.strip():
        raise ValueError("must not be empty")
    if re.search(r"://[^/]*:[^/]*@", place):
        raise ValueError("must not contain a user name and password; set 'profile' or use the environment")
    is_name = names_allowed and not re.search(r"[/.]", place)
    return place if "://" in place or is_name else os.path.abspath(place)


def filled(place: str, *, day: date | None, name: str) -> str:
    """Return a place with `{date}` (as 2026-11-24) and `{name}` filled in; other braces stay as they are.

    Args:
        place: Path or URL.
        day: Value of `{date}`; None for today in UTC.
        name: Value of `{name}`.
    """
    return place.replace("{date}", (day or datetime.now(UTC).date()).isoformat()).replace("{name}", name)
