"""Records of the images inside a container: `<container's key>/<member's name>`, and a URL with the member's place."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from maskfleet.jobs.errors import Changed, Denied, NotFound, StorageError
from maskfleet.jobs.inputs.containers.contract import Container, Listing, Member, MemberUrl
from maskfleet.jobs.inputs.containers.parquet_files import NO_IMAGES
from maskfleet.jobs.inputs.indexes import Index, Indexes
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.selector import TABLE, LeftAlone, reason_of
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile


def records_of(
    container: Record, kind: Container[Any], file: RangedFile, *, listing: Listing, left_alone: LeftAlone,
    answers: Callable[[], bool], named: bool = False, indexes: Indexes | None = None,
) -> Iterator[Record]:  # fmt: skip
    """Yield the images of a container in key order.

    An unusable image is a record too, and so is a container that cannot be listed. Reading it raises the reason.

    Args:
        container: The file.
        kind: The file's kind.
        file: The same file, to read from.
        listing: Settings of the job for the listing.
        left_alone: Receives the other members, a file that holds no images, and the files whose members are unknown.
        answers: Returns whether storage answers for other files, after it failed for this one.
        named: Whether the input names the file. Then one without images is a failed row.
        indexes: Indexes of files listed before.

    Raises:
        StorageError: Storage failed, and not for this file alone.
    """
    try:
        entries = _entries(container, kind, file, listing, left_alone, indexes)
        members = _noting_damage(map(kind.member, entries), container, kind, left_alone)
        found = (_record(container, member) for member in members)
        yield from found if kind.in_order else sorted(found, key=lambda record: record.key)
    except NotFound:
        yield _faulty(container, "missing")
    except Changed:
        left_alone.unknown(container.key)
        yield _faulty(container, "changed")
    except Fault as fault:
        if fault.error_class == NO_IMAGES and not named:
            left_alone.add(TABLE)
            return
        if fault.error_class not in kind.faults or fault.error_class in kind.damage:
            left_alone.unknown(container.key)
        yield _faulty(container, fault.error_class)
    except Denied:
        raise
    except StorageError:
        if not answers():
            raise
        left_alone.unknown(container.key)
        yield _faulty(container, "storage")


def _noting_damage(
    members: Iterator[Member], container: Record, kind: Container[Any], left_alone: LeftAlone
) -> Iterator[Member]:
    noted = False
    for member in members:
        if member.fault in kind.damage and not noted:
            left_alone.unknown(container.key)
            noted = True
        yield member


def _entries(
    container: Record, kind: Container[Any], file: RangedFile, listing: Listing, left_alone: LeftAlone,
    indexes: Indexes | None,
) -> Iterator[Any]:  # fmt: skip
    others: Counter[str] = Counter()

    def is_image(name: str) -> bool:
        wanted = listing.is_image(name)
        if not wanted:
            others[reason_of(name)] += 1
        return wanted

    counted = replace(listing, is_image=is_image)
    if indexes is None or kind.index is None:
        yield from kind.entries(file, counted)
    else:
        etag = str(container.etag)
        index = indexes.get(container.url, etag)
        if index is None:
            index = Index(list(kind.entries(file, counted)), others)
            indexes.add(container.url, etag, index)
        others = Counter(index.left_alone)
        yield from index.entries
    for reason, count in others.items():
        left_alone.add(reason, count)


def _record(container: Record, member: Member) -> Record:
    fault = {} if member.fault is None else {"fault": member.fault}
    url = MemberUrl(container.url, {**fault, **member.place}).url
    return container._replace(key=f"{container.key}/{member.name}", url=url, size=member.size)


def _faulty(container: Record, fault: str) -> Record:
    return _record(container, Member(fault, {}, fault=fault))
