"""Lists of images: text, CSV or Parquet with a column of URLs, and S3 Inventory. All of them as streams.

Which column: the one that the job names; else the first of `url`, `uri`, `path`, `key`, `file`, `filename`,
`file_name`, `image`, `image_url`, in any case; else the only one. A CSV of one column without such a name has
no header.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.inputs import tables
from maskfleet.jobs.storage.contract import OBJECTS, Fault
from maskfleet.jobs.storage.ranged import RangedFile

ENDINGS = (".txt", ".csv", ".parquet")
INVENTORY = "manifest.json"
"""What the manifest of an S3 Inventory is called."""

_COLUMNS = ("url", "uri", "path", "key", "file", "filename", "file_name", "image", "image_url")
_BUFFER = 2**20
_OBJECTS = pa.schema([field.with_nullable(True) for field in OBJECTS])


def is_list(file: RangedFile, name: str, column: str | None) -> bool:
    """Whether a file that is an input by itself is a list; a Parquet file without images in it is one."""
    if not name.lower().endswith(".parquet"):
        return True
    schema = tables.opened(file).schema_arrow
    if column is not None and column in schema.names:
        return bool(_is_text(schema.field(column).type))
    return tables.images_of(schema, None) is None


def lines(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    """What a list names, in its order; without comments (in text files) and empty lines.

    Raises:
        JobError: There is no such column, or the file is not what its ending says.
    """
    try:
        if name.lower().endswith(".parquet"):
            found = _of_table(file, name, column)
        else:
            text = io.TextIOWrapper(io.BufferedReader(file, _BUFFER), "utf-8-sig", newline="")
            found = _of_csv(text, name, column) if name.lower().endswith(".csv") else _of_text(text)
        yield from (line for line in map(str.strip, found) if line)
    except UnicodeDecodeError as error:
        raise JobError(f"list {name} is not UTF-8 text; save it as UTF-8") from error
    except (csv.Error, Fault) as error:
        raise JobError(f"list {name} cannot be read: {error}") from error


def _of_text(text: Iterable[str]) -> Iterator[str]:
    return (line for line in text if not line.lstrip().startswith("#"))


def _of_csv(text: Iterable[str], name: str, column: str | None) -> Iterator[str]:
    rows = csv.reader(text)
    first = next(rows, None)
    if first is None:
        return
    place = _column(first, column)
    if place is None:
        if column is not None or len(first) > 1:
            raise _no_column(name, column, first)
        place = 0
        yield first[0]
    for row in rows:
        if len(row) > place:
            yield row[place]


def _of_table(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    table = tables.opened(file)
    texts = [field.name for field in table.schema_arrow if _is_text(field.type)]
    place = _column(texts, column)
    if place is None and column is None and len(texts) == 1:
        place = 0
    if place is None:
        raise _no_column(name, column, texts)
    for batch in table.iter_batches(columns=[texts[place]], use_threads=False):
        yield from (value for value in batch.column(0).to_pylist() if value)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column(names: list[str], wanted: str | None) -> int | None:
    if wanted is not None:
        return names.index(wanted) if wanted in names else None
    lower = [name.strip().lower() for name in names]
    return next((lower.index(name) for name in _COLUMNS if name in lower), None)


def _no_column(name: str, column: str | None, names: list[str]) -> JobError:
    there = ", ".join(names[:10]) or "none"
    if column is not None:
        return JobError(f"list {name} has no column {column!r} (there are: {there}); correct 'column'")
    return JobError(f"which column of list {name} holds the URLs? name it with 'column' (there are: {there})")


# S3 Inventory ------------------------------------------------------------------------------------


def inventory(manifest: bytes, name: str, opened: Callable[[str, str], RangedFile]) -> tuple[str, Iterator[pa.Table]]:
    """What an S3 Inventory lists: its bucket, and the newest version of each object, as tables of `OBJECTS`.

    Sizes and etags are null where the inventory has none.

    Args:
        manifest: The `manifest.json`.
        name: Of it, for errors.
        opened: Opens an object of a bucket, to be read in ranges.

    Raises:
        JobError: It is no such manifest, or of a format that is not read.
    """
    try:
        record = json.loads(manifest)
        bucket, kind = str(record["sourceBucket"]), str(record["fileFormat"])
        there = str(record["destinationBucket"]).rsplit(":", 1)[-1]
        names = [column.strip() for column in str(record["fileSchema"]).split(",")] if kind == "CSV" else []
        files = [str(item["key"]) for item in record["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{name} is no manifest of an S3 Inventory ({error!r}); correct 'input'") from error
    if kind not in ("CSV", "Parquet"):
        raise JobError(f"inventory {name} is in {kind}; configure it to be CSV or Parquet")

    def listed() -> Iterator[pa.Table]:
        for key in files:
            try:
                file = opened(there, key)
                yield from _of_inventory_csv(file, names) if kind == "CSV" else _of_inventory_table(file)
            except NotFound as error:
                raise JobError(f"inventory {name} lacks its file {key}; it is incomplete, use another") from error
            except (Fault, OSError, EOFError, csv.Error, ValueError, LookupError) as error:
                raise JobError(f"inventory {name}: its file {key} cannot be read ({error!r}); use another") from error

    return bucket, listed()


def _of_inventory_csv(file: RangedFile, names: list[str]) -> Iterator[pa.Table]:
    wanted = [name for name in ("Key", "Size", "ETag", "IsLatest", "IsDeleteMarker") if name in names]
    with closing(gzip.GzipFile(fileobj=io.BufferedReader(file, _BUFFER))) as plain:
        if not plain.peek(1):
            return
        reader = arrow_csv.open_csv(
            plain,
            arrow_csv.ReadOptions(column_names=names, use_threads=False),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), null_values=[""],
                strings_can_be_null=True,
            ),
        )  # fmt: skip
        for batch in reader:
            rows = pa.table(batch)
            for name, dropped in (("IsLatest", "false"), ("IsDeleteMarker", "true")):
                if name in wanted:
                    rows = rows.filter(pc.fill_null(pc.not_equal(rows[name], dropped), True))
            nulls = pa.nulls(rows.num_rows, pa.string())
            size, etag = (rows[name] if name in wanted else nulls for name in ("Size", "ETag"))
            columns = [_plain(rows["Key"]), size.cast(pa.int64()), etag, nulls.cast(pa.float64())]
            yield _without_folders(pa.table(columns, _OBJECTS.names).cast(_OBJECTS))


def _plain(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys of a CSV inventory, where alone they are URL-encoded."""
    keys = pc.fill_null(keys, "").combine_chunks()
    encoded = pc.match_substring_regex(keys, "[%+]")
    decoded = [unquote_plus(key) for key in keys.filter(encoded).to_pylist()]
    return pa.chunked_array([pc.replace_with_mask(keys, encoded, pa.array(decoded, pa.string()))])


def _of_inventory_table(file: RangedFile) -> Iterator[pa.Table]:
    table = tables.opened(file)
    there = set(table.schema_arrow.names)
    wanted = ["key", *({"size", "e_tag", "is_latest", "is_delete_marker"} & there)]
    for batch in table.iter_batches(columns=wanted, use_threads=False):
        rows = pa.table(batch)
        if "is_latest" in there:
            rows = rows.filter(pc.fill_null(rows["is_latest"], True))
        if "is_delete_marker" in there:
            rows = rows.filter(pc.invert(pc.fill_null(rows["is_delete_marker"], False)))
        nulls = pa.nulls(rows.num_rows)
        columns = [rows[name] if name in wanted else nulls for name in ("key", "size", "e_tag")]
        yield _without_folders(pa.table([*columns, nulls], _OBJECTS.names).cast(_OBJECTS))


def _without_folders(objects: pa.Table) -> pa.Table:
    """Without the empty objects that stand for folders in some tools."""
    return objects.filter(pc.invert(pc.ends_with(objects["path"], "/")))
