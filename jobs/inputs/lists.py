"""Single files as inputs: a container, or a list of image URLs in text, CSV or Parquet. All are read as streams.

Keys: a relative line as written, a URL without its scheme (`bucket/a/b.png`), an absolute path without its first slash.

The column of URLs is the one named by the job, else the first of `url`, `uri`, `path`, `key`, `file`, `filename`,
`file_name`, `image`, `image_url` in any case, else the only one. A CSV file with one column and no such name has no
header. Its fields are separated by the one of `,`, `;` and tab whose header has the column.

An entry that cannot be found is a record too: reading it gives the reason.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, groupby, islice
from typing import NamedTuple

import pyarrow as pa

from maskfleet.jobs.errors import Denied, JobError, NotFound, StorageError, unsigned
from maskfleet.jobs.inputs.containers.formats import container_of, faults, is_part, part_of_file
from maskfleet.jobs.inputs.containers.parquet_pool import table_of_file
from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable
from maskfleet.jobs.inputs.outputs import OWN
from maskfleet.jobs.inputs.record import Record, tables
from maskfleet.jobs.inputs.selector import EXCLUDED, Selector, is_container, is_image, record_of
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.urls import plain

REPEATED = "repeated line"

_SEPARATORS = (",", ";", "\t")
_LINES_SNIFFED = 16
_COLUMNS = ("url", "uri", "path", "key", "file", "filename", "file_name", "image", "image_url")
_BUFFER = 2**20
_STATS_IN_FLIGHT = 32
_LINES_PER_CALL = 32
_LINES_REMEMBERED = 1_000_000


class SingleFiles:
    """One list, or one container."""

    searches = False

    def claims(self, location: str, selector: Selector) -> bool:
        name = location.lower()
        return (name.endswith(tuple(LISTS)) or container_of(name) is not None) and not selector.is_folder(location)

    def in_order(self, location: str) -> bool:
        return not location.lower().endswith(tuple(LISTS))

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        selector.outputs.refuse(location, is_folder=False)
        name = location.rsplit("/", 1)[-1]
        try:
            storage, path = selector.files.found(location)
            record = record_of(storage, storage.entry(path))._replace(key=name)
            file = selector.files.ranged(record.url, record.etag, record.size)
            if not _is_list(file, name, selector):
                return iter([record])
        except NotFound as error:
            raise JobError(f"input {location} does not exist; correct 'input'") from error
        except Fault as error:
            raise JobError(f"input {location}: {error}") from error
        except Unreadable as refusal:
            raise JobError(f"input {location}: {faults()[refusal.error_class]}") from refusal
        return _in_any_order(_listed(location, lines(file, location, selector), selector))


def _is_list(file: RangedFile, name: str, selector: Selector) -> bool:
    """Return whether a single file is a list. A Parquet file without images is one."""
    if not name.lower().endswith(".parquet"):
        return name.lower().endswith(tuple(LISTS))
    names, texts, has_images = table_of_file(file, selector.files).ask("columns", selector.column).header
    return selector.column in texts if selector.column in names else not has_images


def _listed(location: str, lines: Iterable[str], selector: Selector) -> Iterator[Record]:
    """Yield the record of each line, in order, asking storage for many at once.

    Raises:
        StorageError: Storage answers none of many lines.
    """
    wanted = _once(location, lines, selector)
    found = False
    with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
        while now := list(islice(wanted, _STATS_IN_FLIGHT * _LINES_PER_CALL)):
            # Several lines per call: handing one to a thread takes longer than a local `stat`.
            each = -(-len(now) // _STATS_IN_FLIGHT)
            shares = (now[start : start + each] for start in range(0, len(now), each))
            answers = [
                answer
                for answers in pool.map(lambda share: [_of_line(line, url, selector) for line, url in share], shares)
                for answer in answers
            ]
            _raise_if_lost(answers, before=found)
            found = found or any(answer.error is None for answer in answers)
            yield from (answer.record for answer in answers if answer.record is not None)


class _Answer(NamedTuple):
    """What storage says of a line.

    Attributes:
        record: The image or container; None if it is left alone.
        error: Refusal or failure of the storage, which may concern this line only, or all.
    """

    record: Record | None
    error: StorageError | None = None


def _raise_if_lost(answers: Sequence[_Answer], *, before: bool) -> None:
    """Raise if storage answered none of the lines.

    Args:
        answers: Answers of many lines.
        before: Whether it answered lines before these. Then it may still refuse all of these, one by one.
    """
    errors = [answer.error for answer in answers if answer.error is not None]
    if len(errors) == len(answers) and not (before and all(isinstance(error, Denied) for error in errors)):
        raise errors[0]


def _of_line(line: str, url: str, selector: Selector) -> _Answer:
    key = re.sub(r"^[a-z0-9]+://|^/+", "", line)
    if selector.exclusions.match(key):
        selector.left_alone.add(EXCLUDED)
        return _Answer(None)
    error: StorageError | None = None
    try:
        if selector.outputs.holds(url):
            selector.left_alone.add(OWN)
            return _Answer(None)
        storage, path = selector.files.found(url)
        return _Answer(record_of(storage, storage.entry(path))._replace(key=key))
    except (NotFound, Fault, ValueError):  # a ValueError is a NUL in a name
        pass
    except StorageError as failure:
        error = failure
    return _Answer(Record(key, part_of_file(url) if is_part(url) else url, None, None), error)


def _url(location: str, line: str) -> str:
    """Return the URL of a line. Relative ones start at the folder of the list."""
    if "://" not in line:
        return line if line.startswith("/") else f"{location.rpartition('/')[0] or '.'}/{line}"
    with suppress(ValueError):  # of another machine; reading it gives the reason
        return plain(line)
    return line


def _once(location: str, lines: Iterable[str], selector: Selector) -> Iterator[tuple[str, str]]:
    """Yield each line with its URL, the first for each URL. In very long lists, a million of them are remembered."""
    seen: set[bytes] = set()
    for line in lines:
        url = _url(location, line)
        digest = hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen:
            selector.left_alone.add(REPEATED)
            continue
        if len(seen) < _LINES_REMEMBERED:
            seen.add(digest)
        yield unsigned(line), unsigned(url)


def _in_any_order(files: Iterator[Record]) -> Iterator[pa.Table | Record]:
    """Yield files in the order of the list."""
    for contains, group in groupby(files, lambda record: is_container(record.key)):
        if contains:
            yield from group
        else:
            yield from tables(group)


# Formats of lists --------------------------------------------------------------------------------


def lines(file: RangedFile, name: str, selector: Selector) -> Iterator[str]:
    """Yield the entries of a list in order, without empty lines and, in text files, comments.

    Args:
        file: The list.
        name: Name of the list. Its ending gives the format.
        selector: Selection of the job, with the column of URLs.

    Raises:
        JobError: The column does not exist, or the file is not in the format of its ending.
    """
    read = next(read for ending, read in LISTS.items() if name.lower().endswith(ending))
    try:
        yield from (line for line in map(str.strip, read(file, name, selector)) if line)
    except UnicodeDecodeError as error:
        raise JobError(f"list {name} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise JobError(f"list {name} is not valid CSV; save it as CSV again") from error
    except Unreadable as refusal:
        raise JobError(f"list {name}: {faults()[refusal.error_class]}") from refusal


def _text(file: RangedFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(file, _BUFFER), "utf-8-sig", newline="")


def _of_text(file: RangedFile, name: str, selector: Selector) -> Iterator[str]:
    return (line for line in _text(file) if not line.lstrip().startswith("#"))


def _of_csv(file: RangedFile, name: str, selector: Selector) -> Iterator[str]:
    column = selector.column
    text = _text(file)
    start = list(islice(text, _LINES_SNIFFED))
    separator = _separator(name, start, column)
    rows = csv.reader(chain(start, text), delimiter=separator)
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


def _separator(name: str, start: Sequence[str], column: str | None) -> str:
    """Return what separates the fields of a CSV file: the one of `_SEPARATORS` whose header names a column of URLs.

    Args:
        name: Name of the list.
        start: First lines.
        column: Column of URLs; None to find it.

    Raises:
        JobError: Another one than the comma makes sense of the lines, but no header says so.
    """
    for separator in _SEPARATORS:
        header = next(csv.reader(start[:1], delimiter=separator), [])
        if _column(header, column) is not None:
            return separator
    for separator in _SEPARATORS[1:]:
        if start and all(_is_row(line, separator) for line in start):
            raise JobError(
                f"list {name} seems to have columns separated by {separator!r}, but no header names one of URLs; "
                "add a header with the column 'url'"
            )
    return _SEPARATORS[0]


def _is_row(line: str, separator: str) -> bool:
    """Return whether a line has several fields, of which one names an image or container and the whole line none."""
    fields = [field.strip(' "') for field in line.strip().split(separator)]
    return len(fields) > 1 and not _is_input(line.strip(' "\r\n')) and any(map(_is_input, fields))


def _is_input(name: str) -> bool:
    return is_image(name) or is_container(name)


def _of_parquet(file: RangedFile, name: str, selector: Selector) -> Iterator[str]:
    table = table_of_file(file, selector.files)
    _, texts, _ = table.ask("columns", None).header
    place = _column(texts, selector.column)
    if place is None and selector.column is None and len(texts) == 1:
        place = 0
    if place is None:
        raise _no_column(name, selector.column, texts)
    yield from (value for (value,) in table.values([texts[place]]) if value)


LISTS: dict[str, Callable[[RangedFile, str, Selector], Iterator[str]]] = {
    ".txt": _of_text,
    ".csv": _of_csv,
    ".parquet": _of_parquet,
}
"""Formats of lists, by file name ending."""


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
