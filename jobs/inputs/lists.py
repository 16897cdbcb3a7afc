"""Single files as inputs: a container, or a list of image URLs in text, CSV or Parquet. All are read as streams.

Keys: a relative line as written, a URL without its scheme (`bucket/a/b.png`), an absolute path without its first slash.

The column of URLs is the one named by the job, else the first of `url`, `uri`, `path`, `key`, `file`, `filename`,
`file_name`, `image`, `image_url` in any case, else the only one. A CSV file with one column and no such name has no
header.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice

import pyarrow as pa

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.inputs.containers import image_columns
from maskfleet.jobs.inputs.containers.formats import container_of, is_member
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.inputs.selector import Selector, is_container, record_of
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.schemes import split_url

_COLUMNS = ("url", "uri", "path", "key", "file", "filename", "file_name", "image", "image_url")
_BUFFER = 2**20
_STATS_IN_FLIGHT = 32
_LINES_PER_CALL = 32
_LINES_REMEMBERED = 1_000_000


class SingleFiles:
    """One list, or one container."""

    def claims(self, location: str, selector: Selector) -> bool:
        name = location.lower()
        return (name.endswith(tuple(LISTS)) or container_of(name) is not None) and not selector.is_folder(location)

    def in_order(self, location: str) -> bool:
        return not location.lower().endswith(tuple(LISTS))

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        name = location.rsplit("/", 1)[-1]
        storage, path = selector.files.found(location)
        try:
            record = record_of(storage, storage.entry(path))._replace(key=name)
            file = selector.files.ranged(record.url, record.etag, record.size)
            if not _is_list(file, name, selector.column):
                return iter([record])
        except NotFound as error:
            raise JobError(f"input {location} does not exist; correct 'input'") from error
        except Fault as error:
            raise JobError(f"input {location}: {error}") from error
        return _in_any_order(_listed(location, lines(file, location, selector.column), selector))


def _is_list(file: RangedFile, name: str, column: str | None) -> bool:
    """Return whether a single file is a list. A Parquet file without images is one."""
    if not name.lower().endswith(".parquet"):
        return name.lower().endswith(tuple(LISTS))
    schema = image_columns.opened(file).schema_arrow
    if column is not None and column in schema.names:
        return bool(_is_text(schema.field(column).type))
    return image_columns.images_of(schema, None) is None


def _listed(location: str, lines: Iterable[str], selector: Selector) -> Iterator[Record]:
    """Yield the record of each line, in order, asking storage for many at once."""
    wanted = _once(lines)
    with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
        while now := list(islice(wanted, _STATS_IN_FLIGHT * _LINES_PER_CALL)):
            # Several lines per call: handing one to a thread takes longer than a local `stat`.
            each = -(-len(now) // _STATS_IN_FLIGHT)
            shares = (now[start : start + each] for start in range(0, len(now), each))
            for found in pool.map(lambda share: [_of_line(location, line, selector) for line in share], shares):
                yield from found


def _of_line(location: str, line: str, selector: Selector) -> Record:
    url = line if "://" in line or line.startswith("/") else f"{location.rpartition('/')[0] or '.'}/{line}"
    root, path = split_url(url)
    storage = selector.files.storage(root)
    key = re.sub(r"^[a-z0-9]+://|^/+", "", line)
    if is_member(url):
        raise JobError(f"list {location} names a part of a file ({line}); name the file to process all of it")
    try:
        return record_of(storage, storage.entry(path))._replace(key=key)
    except NotFound:
        return Record(key, storage.url(path), None, None)  # becomes a failed row


def _once(lines: Iterable[str]) -> Iterator[str]:
    """Drop repeated lines. In very long lists, only the first million lines are remembered."""
    seen: set[bytes] = set()
    for line in lines:
        digest = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen:
            continue
        if len(seen) < _LINES_REMEMBERED:
            seen.add(digest)
        yield line


def _in_any_order(files: Iterator[Record]) -> Iterator[pa.Table | Record]:
    """Yield files in the order of the list."""
    for contains, group in groupby(files, lambda record: is_container(record.key)):
        if contains:
            yield from group
        else:
            yield from tables(group)


# Formats of lists --------------------------------------------------------------------------------


def lines(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    """Yield the entries of a list in order, without empty lines and, in text files, comments.

    Args:
        file: The list.
        name: Name of the list. Its ending gives the format.
        column: Column of URLs; None to find it.

    Raises:
        JobError: The column does not exist, or the file is not in the format of its ending.
    """
    read = next(read for ending, read in LISTS.items() if name.lower().endswith(ending))
    try:
        yield from (line for line in map(str.strip, read(file, name, column)) if line)
    except UnicodeDecodeError as error:
        raise JobError(f"list {name} is not UTF-8 text; save it as UTF-8") from error
    except (csv.Error, Fault) as error:
        raise JobError(f"list {name} cannot be read: {error}") from error


def _text(file: RangedFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(file, _BUFFER), "utf-8-sig", newline="")


def _of_text(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    return (line for line in _text(file) if not line.lstrip().startswith("#"))


def _of_csv(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    rows = csv.reader(_text(file))
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


def _of_parquet(file: RangedFile, name: str, column: str | None) -> Iterator[str]:
    table = image_columns.opened(file)
    texts = [field.name for field in table.schema_arrow if _is_text(field.type)]
    place = _column(texts, column)
    if place is None and column is None and len(texts) == 1:
        place = 0
    if place is None:
        raise _no_column(name, column, texts)
    for batch in table.iter_batches(columns=[texts[place]], use_threads=False):
        yield from (value for value in batch.column(0).to_pylist() if value)


LISTS: dict[str, Callable[[RangedFile, str, str | None], Iterator[str]]] = {
    ".txt": _of_text,
    ".csv": _of_csv,
    ".parquet": _of_parquet,
}
"""Formats of lists, by file name ending."""


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
    return JobError(f"no column of list {name} is known to hold URLs (there are: {there}); name it with 'column'")
