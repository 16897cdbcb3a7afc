"""Files that hold many images, as records: the members of a tar, the rows of a Parquet file.

A member's key is `<tar's key>/<member>`. A row's is `<file's key>/<row, nine digits>-<last part of its name>`,
or the row alone where it has no name: rows come in order of their number, so that neighbours in a run are
neighbours in the file. What cannot be had is a record too, whose reading says why (`jobs.storage.subresource`).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from maskfleet.jobs.errors import Changed, NotFound
from maskfleet.jobs.inputs import tables, tars
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.subresource import Part

if TYPE_CHECKING:
    from maskfleet.jobs.inputs.record import Record

ENDINGS = (".tar", ".parquet")
"""In any case."""


def records_of(
    container: "Record", file: RangedFile, *, column: str | None, wanted: Callable[[str], bool],
    indexes: Indexes | None = None, row_bytes: dict[str, float] | None = None,
) -> "Iterator[Record]":  # fmt: skip
    """The images of a tar or Parquet file, in order of key.

    Args:
        container: The file.
        file: The same, to read from.
        column: Of a Parquet file's images, or None to find it.
        wanted: Whether a member's name is that of an image.
        indexes: Of tars that were read before.
        row_bytes: Receives, by the URL of a Parquet file, what a row's image takes in it on average.

    Raises:
        StorageError: Storage failed; not that the file is gone, changed or damaged.
    """
    try:
        if container.url.lower().endswith(".tar"):
            yield from _of_tar(container, file, wanted, indexes)
        else:
            yield from _of_table(container, file, column, {} if row_bytes is None else row_bytes)
    except NotFound:
        yield _faulty(container, "missing")
    except Changed:
        yield _faulty(container, "changed")
    except Fault as fault:
        yield _faulty(container, fault.error_class)


def _of_tar(
    container: "Record", file: RangedFile, wanted: Callable[[str], bool], indexes: Indexes | None
) -> "Iterator[Record]":
    members = indexes.get(container.url, str(container.etag)) if indexes is not None else None
    if members is None:
        members = list(tars.members(file.at, file.size(), wanted))
        if indexes is not None:
            indexes.add(container.url, str(container.etag), members)
    yield from sorted((_member(container, member) for member in members), key=lambda record: record.key)


def _member(container: "Record", member: tars.Member) -> "Record":
    if member.fault is None:
        place = {"offset": str(member.offset), "size": str(member.size)}
        return _part(container, member.name, place, member.size)
    # Neither is there a name where the archive is damaged, nor is it the only one where there are two.
    name = {"damaged_tar": f"damaged@{member.offset}", "duplicate_name": f"{member.name}@{member.offset}"}
    return _faulty(container, member.fault, name.get(member.fault, member.name), str(member.offset))


def _of_table(
    container: "Record", file: RangedFile, column: str | None, row_bytes: dict[str, float]
) -> "Iterator[Record]":
    table = tables.opened(file)
    images = tables.images_of(table.schema_arrow, column)
    if images is None:
        raise Fault("no_column", "")
    row_bytes[container.url] = tables.bytes_of(table.metadata, images.column) / max(1, table.metadata.num_rows)
    for row, name in enumerate(tables.names(table, images)):
        last = (name or "").rstrip("/").rsplit("/", 1)[-1]
        yield _part(container, f"{row:09}-{last}" if last else f"{row:09}", {"row": str(row), "column": images.column})


def _faulty(container: "Record", fault: str, name: str | None = None, offset: str | None = None) -> "Record":
    place = {"fault": fault} | ({} if offset is None else {"offset": offset})
    return _part(container, name or fault, place)


def _part(container: "Record", name: str, place: dict[str, str], size: int | None = None) -> "Record":
    return container._replace(key=f"{container.key}/{name}", url=Part(container.url, place).url, size=size)
