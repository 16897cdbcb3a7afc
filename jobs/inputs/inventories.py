"""Amazon S3 Inventory as an input: its `manifest.json` names CSV or Parquet files of all objects of a bucket.

Keys are those of the objects. See "Amazon S3 Inventory" in the S3 user guide for the format.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.inputs.containers.parquet_pool import table_of_file
from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable
from maskfleet.jobs.inputs.record import CHUNK, Record, records
from maskfleet.jobs.inputs.selector import Selector, containers_in
from maskfleet.jobs.storage.contract import OBJECTS, Fault
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile

_MANIFEST = "manifest.json"
_OBJECTS = pa.schema([field.with_nullable(True) for field in OBJECTS])


class Inventories:
    """The manifest of an S3 Inventory."""

    searches = True

    def claims(self, location: str, selector: Selector) -> bool:
        return location.rsplit("/", 1)[-1] == _MANIFEST

    def in_order(self, location: str) -> bool:
        return False

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        try:
            storage, path = selector.files.found(location)
            manifest = storage.read(path)
        except NotFound as error:
            raise JobError(f"inventory {location} does not exist; correct 'input'") from error
        except Fault as error:
            raise JobError(f"inventory {location}: {error}") from error

        def opened(bucket: str, key: str) -> RangedFile:
            storage = selector.files.storage(f"s3://{bucket}")
            entry = storage.entry(key)
            return RangedFile(storage, key, entry.size, entry.etag)

        bucket, found = listed(manifest, location, opened, selector.files)
        storage = selector.files.storage(f"s3://{bucket}")
        for objects in found:
            rows, start = selector.wanted(storage, objects, in_order=False), 0
            for place in containers_in(rows):
                yield rows.slice(start, place - start)
                yield from records(rows.slice(place, 1))
                start = place + 1
            yield rows.slice(start)


def listed(
    manifest: bytes, name: str, opened: Callable[[str, str], RangedFile], files: Files
) -> tuple[str, Iterator[pa.Table]]:
    """List the newest version of each object in an inventory.

    Args:
        manifest: Content of the `manifest.json`.
        name: URL of the manifest, for errors.
        opened: Opens an object, given bucket and key, to read in ranges.
        files: The open storages of the process.

    Returns:
        The bucket, and tables of `OBJECTS`. Sizes and ETags are null if the inventory has none.

    Raises:
        JobError: The manifest is not one of an S3 Inventory, or of an unsupported format.
    """
    try:
        record = json.loads(manifest)
        bucket, kind = str(record["sourceBucket"]), str(record["fileFormat"])
        there = str(record["destinationBucket"]).rsplit(":", 1)[-1]
        names = [column.strip() for column in str(record["fileSchema"]).split(",")] if kind == "CSV" else []
        parts = [str(item["key"]) for item in record["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{name} is not a manifest of an S3 Inventory; correct 'input'") from error
    if kind not in ("CSV", "Parquet"):
        raise JobError(f"inventory {name} has the format {kind}; configure it as CSV or Parquet")

    def objects() -> Iterator[pa.Table]:
        for key in parts:
            try:
                file = opened(there, key)
                yield from _of_csv(file, names, files) if kind == "CSV" else _of_parquet(file, files)
            except NotFound as error:
                raise JobError(f"inventory {name} lacks its file {key}; use a complete inventory") from error
            except (Unreadable, Fault, OSError, ValueError, LookupError, TypeError) as error:
                raise JobError(f"inventory {name}: file {key} is damaged; use another inventory") from error

    return bucket, objects()


def _of_csv(file: RangedFile, names: list[str], files: Files) -> Iterator[pa.Table]:
    rows = table_of_file(file, files).inventory(names)
    while chunk := list(islice(rows, CHUNK)):
        keys, sizes, etags = zip(*chunk, strict=True)
        columns = [keys, [None if size is None else int(size) for size in sizes], etags, [None] * len(chunk)]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _OBJECTS, strict=True)]
        yield _without_folders(pa.table(arrays, _OBJECTS))


def _of_parquet(file: RangedFile, files: Files) -> Iterator[pa.Table]:
    table = table_of_file(file, files)
    there, _, _ = table.ask("columns", None).header
    wanted = ["key", *({"size", "e_tag", "is_latest", "is_delete_marker"} & set(there))]
    rows = table.values(wanted)
    while chunk := list(islice(rows, CHUNK)):
        columns = dict(zip(wanted, zip(*chunk, strict=True), strict=True))
        nulls = [None] * len(chunk)
        latest = columns.get("is_latest", nulls)
        deleted = columns.get("is_delete_marker", nulls)
        kept = pa.array([one is not False and not other for one, other in zip(latest, deleted, strict=True)])
        found = [columns.get(name, nulls) for name in ("key", "size", "e_tag")]
        arrays = [pa.array(values, field.type) for values, field in zip([*found, nulls], _OBJECTS, strict=True)]
        yield _without_folders(pa.table(arrays, _OBJECTS).filter(kept))


def _without_folders(objects: pa.Table) -> pa.Table:
    """Drop the empty objects that some tools create for folders."""
    return objects.filter(pc.invert(pc.ends_with(objects["path"], "/")))
