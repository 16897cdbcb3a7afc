"""The table of containers, and the URLs of their members.

Only the URL of a container may continue with a member's place. In any other URL, `#` is a character of the name. A file
whose own name has this form gets an empty fragment (`whole`), dropped by `jobs.storage.files` when it opens the file. A
member found unusable by the listing has a `fault` in its fragment, and reading it raises that fault.
"""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.images.formats import STACKS
from maskfleet.jobs.inputs.containers.contract import Container, MemberUrl
from maskfleet.jobs.inputs.containers.parquet_files import ParquetFiles
from maskfleet.jobs.inputs.containers.tars import Tars
from maskfleet.jobs.storage.contract import Fault

CONTAINERS: tuple[Container[Any], ...] = (
    Tars(),
    ParquetFiles(),
)
"""All kinds of containers."""

_BAD_NAME = "bad_name"
_PART = "part_of_file"

_DUPLICATE = "duplicate_key"

DUPLICATE = f"fault={_DUPLICATE}"
"""Fragment of the URL of a file whose key belongs to another file. Unlike others, it may follow any name."""

_FAULTS = {
    _BAD_NAME: "the file's name is not UTF-8; rename it",
    _DUPLICATE: "its key belongs to another file of the input; list each once, or put them into separate folders",
    "missing": "the file is gone; it was deleted while it was listed, or the list is out of date",
    _PART: "the list names a part of a file; name the file to process all of it",
    "slow_parquet": "reading the Parquet file takes too long; run again, and if that does not help, write it again",
    "changed": "the file changed while it was listed; run again to plan it as it is now",
    "denied": "the file may not be read; grant the credentials access, or correct its owner and mode",
    "storage": "storage fails for this file alone; check the disk, or write the file again",
    "refused": "storage refuses the file; restore it from its archive, or enable its KMS key",
}
"""Faults of any file; see `Container.faults`."""

_FAULT = r"fault=[a-z_]+(?:&offset=\d+)?"

_PAGE = r"page=\d+(?:&of=\d+)?"
"""Form of a page at the end of a URL; see `jobs.inputs.pages.names`."""

_OF_PAGE = re.compile(rf"(?P<file>.+)[#&]{_PAGE}", re.DOTALL)


def endings() -> tuple[str, ...]:
    """Return the file name endings of all containers, in lower case."""
    return tuple(ending for container in CONTAINERS for ending in container.endings)


def container_of(name: str) -> Container[Any] | None:
    """Return the kind of container with the ending of a file's name or URL, or None."""
    lower = name.lower()
    return next((container for container in CONTAINERS if lower.endswith(container.endings)), None)


def faults() -> dict[str, str]:
    """Return the error classes of members, each with an explanation and the remedy."""
    return _FAULTS | {name: text for container in CONTAINERS for name, text in container.faults.items()}


def final_faults() -> tuple[str, ...]:
    """Return the error classes that the same bytes give again. New runs do not retry them."""
    return (*(name for container in CONTAINERS for name in container.faults), _BAD_NAME, _PART, _DUPLICATE)


def damage() -> tuple[str, ...]:
    """Return the error classes of rows that stand for an unknown number of images; see `Container.damage`."""
    return tuple(name for container in CONTAINERS for name in container.damage)


def is_member(url: str) -> bool:
    """Return whether a URL names a member."""
    return _form(CONTAINERS).fullmatch(url) is not None


def file_of_page(url: str) -> str | None:
    """Return the URL of the file or member that a URL names a page of; None if it names no page."""
    found = _OF_PAGE.fullmatch(url)
    if found is None:
        return None
    file = found["file"]
    return file if is_member(file) or file.lower().endswith(STACKS) else None


def is_part(url: str) -> bool:
    """Return whether a URL names a part of a file: a member, or a page."""
    return is_member(url) or file_of_page(url) is not None


def member_url(url: str) -> MemberUrl | None:
    """Parse the URL of a member. Return None if it is a file's URL.

    Raises:
        Fault: The listing found the member unusable.
    """
    found = _form(CONTAINERS).fullmatch(url)
    if found is None:
        return None
    place = dict(parse_qsl(found["place"], keep_blank_values=True))
    if fault := place.get("fault"):
        where = f", byte {place['offset']}" if "offset" in place else ""
        raise Fault(fault, f"{found['file']}{where}: {faults().get(fault, fault)}")
    return MemberUrl(found["file"], place)


def whole(url: str) -> str:
    """Return the URL of a file with an empty fragment, if it would be taken for that of a member."""
    marked = url.endswith("#") or (container_of(url) is None and is_part(url))
    return f"{url}#" if marked else url


def part_of_file(url: str) -> str:
    """Return the URL of a member as that of an unusable one: only the listing of a file may name its members."""
    return MemberUrl(url.rpartition("#")[0], {"fault": _PART}).url


def files_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the URLs of the files of members. Other URLs stay as they are."""
    places = "|".join(container.place for container in CONTAINERS)
    return pc.replace_substring_regex(urls, rf"#(?:{places})(?:&{_PAGE})?$", "")


@lru_cache(maxsize=8)
def _form(containers: tuple[Container[Any], ...]) -> re.Pattern[str]:
    """Return the form of a member's URL: after each ending and `#`, the places of that container."""
    places = [(ending, f"{container.place}|{_FAULT}") for container in containers for ending in container.endings]
    places += [(ending, _FAULT) for ending in STACKS]
    forms = "|".join([DUPLICATE, *(f"(?<=(?i:{re.escape(ending)})#)(?:{place})" for ending, place in places)])
    return re.compile(f"(?P<file>.+)#(?P<place>{forms})", re.DOTALL)
