"""Records of the images inside a container: `<container's key>/<member's name>`, and a URL with the member's place."""

from collections.abc import Iterator
from typing import Any

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.inputs.containers.contract import Container, Listing, Member, MemberUrl
from maskfleet.jobs.inputs.containers.parquet_files import NO_IMAGES
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.selector import TABLE, LeftAlone
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile


def records_of(
    container: Record, kind: Container[Any], file: RangedFile, *, listing: Listing,
    indexes: Indexes | None = None, left_alone: LeftAlone | None = None,
) -> Iterator[Record]:  # fmt: skip
    """Yield the images of a container in key order.

    An unusable image is a record too, and so is a container that cannot be listed. Reading it raises the reason.

    Args:
        container: The file.
        kind: The file's kind.
        file: The same file, to read from.
        listing: Settings of the job for the listing.
        indexes: Indexes of files listed before.
        left_alone: Receives a file that holds no images; None to make it a failed row, since the input names it.

    Raises:
        StorageError: Storage failed. A missing, changed or damaged file raises nothing.
    """
    try:
        found = (_record(container, kind.member(entry)) for entry in _entries(container, kind, file, listing, indexes))
        yield from found if kind.in_order else sorted(found, key=lambda record: record.key)
    except NotFound:
        yield _faulty(container, "missing")
    except Changed:
        yield _faulty(container, "changed")
    except Fault as fault:
        if fault.error_class == NO_IMAGES and left_alone is not None:
            left_alone.add(TABLE)
            return
        yield _faulty(container, fault.error_class)


def _entries(
    container: Record, kind: Container[Any], file: RangedFile, listing: Listing, indexes: Indexes | None
) -> Iterator[Any]:
    if indexes is None or kind.index is None:
        return kind.entries(file, listing)
    etag = str(container.etag)
    entries = indexes.get(container.url, etag)
    if entries is None:
        entries = list(kind.entries(file, listing))
        indexes.add(container.url, etag, entries)
    return iter(entries)


def _record(container: Record, member: Member) -> Record:
    fault = {} if member.fault is None else {"fault": member.fault}
    url = MemberUrl(container.url, {**fault, **member.place}).url
    return container._replace(key=f"{container.key}/{member.name}", url=url, size=member.size)


def _faulty(container: Record, fault: str) -> Record:
    return _record(container, Member(fault, {}, fault=fault))
