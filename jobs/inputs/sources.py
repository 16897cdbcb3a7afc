"""What a job's input names, as records: files of images, and images within files. Reads no image.

An input is a folder or glob, whose files may be images, tars and Parquet files of images; one such tar or
Parquet file; a list (.txt, .csv, .parquet); or the `manifest.json` of an S3 Inventory.

Keys: below a folder or glob, an image's key is its path relative to the folder (for a glob, to the
last folder before the first wildcard). In a list it is the path as the line has it: a relative line
as written, a URL without its scheme (`bucket/a/b.png`), an absolute path without its first slash. In an
inventory it is the object's key. Within a tar or Parquet file it is that file's key and what `containers` says.
"""

import hashlib
import heapq
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.inputs import containers, lists
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.prefetch import Ahead
from maskfleet.jobs.inputs.record import LISTED, Record, records, rows_up_to, table_of, tables
from maskfleet.jobs.storage.contract import Entry, Fault, Storage
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.schemes import open_storage, split_url
from maskfleet.jobs.storage.subresource import is_part

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".npy")
"""What an image's name ends in, in any case; other files in a folder are left alone."""

METADATA = "metadata.parquet"
"""A table beside the images of a Hugging Face image folder; no input."""

_STATS_IN_FLIGHT = 32
_LINES_OF_A_CALL = 32
_CONTAINERS_AHEAD = 8
_ROWS_AHEAD = 8192
_LINES_REMEMBERED = 1_000_000


class Source:
    """A job's input.

    Args:
        location: Folder, glob, tar, Parquet file, list or inventory.
        output: The job's output, which may lie within.
        column: Of Parquet files and lists: the images, or the URLs. None to find it.
        profile: AWS profile.
        indexes: Of tars that were read before.

    Attributes:
        ignored: After iteration: the files left alone, counted by ending.
        row_bytes: So far: what a row's image takes on average, by the URL of its Parquet file.

    Raises:
        JobError: On iteration: there is no such input, or it cannot be used.
    """

    def __init__(
        self, location: str, *, output: str, column: str | None = None, profile: str | None = None,
        indexes: Indexes | None = None,
    ) -> None:  # fmt: skip
        self.location = location
        self.column = column
        self.profile = profile
        self._indexes = indexes
        self.ignored: Counter[str] = Counter()
        self.row_bytes: dict[str, float] = {}
        self._output = _absolute(output)
        self._stores: dict[str, Storage] = {}

    @property
    def in_order(self) -> bool:
        """Whether records come in order of key, so that the first can be worked on before the last is known."""
        name = self.location.rsplit("/", 1)[-1].lower()
        return name != lists.INVENTORY and not name.endswith((*lists.ENDINGS, ".parquet"))

    def tables(self) -> Iterator[pa.Table]:
        """Each image once, as rows of `LISTED`, always in the same order; of folders and globs that of keys."""
        return self._unpacked(self._files())

    def __iter__(self) -> Iterator[Record]:
        """The same one by one, where there are few."""
        for table in self.tables():
            yield from records(table)

    def _files(self) -> "Iterator[pa.Table | Record]":
        """Tables of images, and between them the files that hold some."""
        if any(mark in self.location for mark in "*?["):
            return self._of_glob()
        name = self.location.rsplit("/", 1)[-1]
        if name == lists.INVENTORY:
            return self._of_inventory()
        if name.lower().endswith((*lists.ENDINGS, *containers.ENDINGS)) and not os.path.isdir(self.location):
            return _in_any_order(self._of_file(name))
        return self._of_folder(self.location, None)

    def _of_folder(self, location: str, pattern: re.Pattern[str] | None) -> "Iterator[pa.Table | Record]":
        storage = open_storage(location, profile=self.profile)
        folder = storage.local_path("")
        if folder is not None:
            if os.path.isfile(folder):
                raise JobError(
                    f"input {location} is a file; name its folder, a glob, a .tar or .parquet file of images, or a "
                    ".txt, .csv or .parquet list"
                )
            if not os.path.isdir(folder):
                raise JobError(f"there is no input folder {location}; correct 'input'")
        return _in_order(self._wanted(storage, objects, pattern) for objects in storage.listed())

    def _record(self, storage: Storage, entry: Entry) -> Record:
        return Record(entry.path, storage.url(entry.path), entry.size, entry.etag, entry.modified)

    def _wanted(self, storage: Storage, objects: pa.Table, pattern: re.Pattern[str] | None) -> pa.Table:
        """The inputs among objects of a listing, as rows of `LISTED`."""
        urls = pc.binary_join_element_wise(storage.url("x")[:-1], objects["path"], "")
        rows = pa.Table.from_arrays([objects["path"], urls, *objects.columns[1:]], schema=LISTED)
        # The output may lie within the input: last night's masks are not tonight's images.
        rows = rows.filter(pc.invert(pc.starts_with(rows["url"], f"{self._output}/")))
        inputs = _are_inputs(rows["key"])
        self._ignore(rows["key"].filter(pc.invert(inputs)))
        rows = rows.filter(inputs)
        if pattern is not None:
            rows = rows.filter(pa.array([bool(pattern.fullmatch(key)) for key in rows["key"].to_pylist()], pa.bool_()))
        return rows

    def _ignore(self, paths: pa.ChunkedArray) -> None:
        for path in paths.to_pylist():
            name = path.rsplit("/", 1)[-1]
            self.ignored[os.path.splitext(name)[1].lower() or name] += 1

    def _of_glob(self) -> "Iterator[pa.Table | Record]":
        fixed = re.split(r"[*?\[]", self.location, maxsplit=1)[0]
        folder, slash, _ = fixed.rpartition("/")
        pattern = self.location[len(folder) + len(slash) :]
        return self._of_folder(folder or (slash or "."), re.compile(glob_translate(pattern)))

    def _of_file(self, name: str) -> Iterator[Record]:
        root, path = split_url(self.location)
        try:
            record = self._record(self._storage(root), self._storage(root).entry(path))._replace(key=name)
            file = self._ranged(record)
            if name.lower().endswith(".tar") or not lists.is_list(file, name, self.column):
                return iter([record])
        except NotFound as error:
            raise JobError(f"there is no input {self.location}; correct 'input'") from error
        except Fault as error:
            raise JobError(f"input {self.location}: {error}") from error
        return self._of_lines(lists.lines(file, self.location, self.column))

    def _of_lines(self, lines: Iterable[str]) -> Iterator[Record]:
        wanted = _once(lines)
        with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
            while now := list(islice(wanted, _STATS_IN_FLIGHT * _LINES_OF_A_CALL)):
                # Several lines a call: to hand one to a thread takes longer than to look for a local file.
                each = -(-len(now) // _STATS_IN_FLIGHT)
                shares = (now[start : start + each] for start in range(0, len(now), each))
                for found in pool.map(lambda share: list(map(self._of_line, share)), shares):
                    yield from found

    def _of_line(self, line: str) -> Record:
        url = line if "://" in line or line.startswith("/") else f"{self.location.rpartition('/')[0] or '.'}/{line}"
        root, path = split_url(url)
        storage = self._storage(root)
        key = re.sub(r"^[a-z0-9]+://|^/+", "", line)
        if is_part(url):
            raise JobError(f"list {self.location} names a part of a file ({line}); name the file, all of it is taken")
        try:
            return self._record(storage, storage.entry(path))._replace(key=key)
        except NotFound:
            return Record(key, storage.url(path), None, None)  # it will have a row that says so

    def _of_inventory(self) -> "Iterator[pa.Table | Record]":
        root, path = split_url(self.location)
        try:
            manifest = self._storage(root).read(path)
        except NotFound as error:
            raise JobError(f"there is no inventory {self.location}; correct 'input'") from error

        def opened(bucket: str, key: str) -> RangedFile:
            storage = self._storage(f"s3://{bucket}")
            entry = storage.entry(key)
            return RangedFile(storage, key, entry.size, entry.etag)

        bucket, found = lists.inventory(manifest, self.location, opened)
        storage = self._storage(f"s3://{bucket}")
        for objects in found:
            rows, start = self._wanted(storage, objects, None), 0
            for place in _containers_in(rows):
                yield rows.slice(start, place - start)
                yield from records(rows.slice(place, 1))
                start = place + 1
            yield rows.slice(start)

    def _unpacked(self, files: "Iterator[pa.Table | Record]") -> Iterator[pa.Table]:
        """With their images in the place of tars and Parquet files, several of which are read ahead."""
        pending: deque[pa.Table | Ahead[pa.Table]] = deque()
        running = rows = 0
        try:
            for item in files:
                if isinstance(item, Record):
                    pending.append(Ahead(partial(self._images, item)))
                    running += 1
                else:
                    pending.append(item)
                    rows += item.num_rows
                while pending and (not running or running >= _CONTAINERS_AHEAD or rows > _ROWS_AHEAD):
                    first = pending.popleft()
                    if isinstance(first, Ahead):
                        running -= 1
                        yield from first
                    else:
                        rows -= first.num_rows
                        yield first
            while pending:
                first = pending.popleft()
                yield from first if isinstance(first, Ahead) else [first]
        finally:
            for item in pending:
                if isinstance(item, Ahead):
                    item.close()

    def _images(self, container: Record) -> Iterator[pa.Table]:
        if container.size is None or container.etag is None:
            # An inventory need not say; and what is read in pieces must be known to be the same all the time.
            root, path = split_url(container.url)
            try:
                entry = self._storage(root).entry(path)
            except NotFound:
                return iter([table_of([container])])  # it is listed and not there; reading it will say so
            container = container._replace(size=entry.size, etag=entry.etag)
        found = containers.records_of(
            container, self._ranged(container), column=self.column, wanted=_is_image, indexes=self._indexes,
            row_bytes=self.row_bytes,
        )  # fmt: skip
        return tables(found)

    def _ranged(self, record: Record) -> RangedFile:
        root, path = split_url(record.url)
        return RangedFile(self._storage(root), path, record.size or 0, record.etag)

    def _storage(self, root: str) -> Storage:
        storage = self._stores.get(root)
        if storage is None:  # a list asks for it with every line
            storage = self._stores.setdefault(root, open_storage(root, profile=self.profile))
        return storage


def _is_image(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def _is_container(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and name.lower().endswith(containers.ENDINGS)


_VISIBLE = r"(?i)(?:^|/)[^./][^/]*(?:{})$"
_IMAGES = _VISIBLE.format("|".join(map(re.escape, ENDINGS)))
_CONTAINERS = _VISIBLE.format("|".join(map(re.escape, containers.ENDINGS)))


def _are_inputs(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which are images or files of images, by their names."""
    with_images = pc.match_substring_regex(paths, _CONTAINERS)
    tables = pc.match_substring_regex(paths, f"(?:^|/){re.escape(METADATA)}$")
    return pc.or_(pc.match_substring_regex(paths, _IMAGES), pc.and_not(with_images, tables))


def _containers_in(table: pa.Table) -> list[int]:
    """The rows that are files of images."""
    places: list[int] = pc.indices_nonzero(pc.match_substring_regex(table["key"], _CONTAINERS)).to_pylist()
    return places


def _in_order(files: Iterator[pa.Table]) -> "Iterator[pa.Table | Record]":
    """In the order of the keys of what is in them: `a.tar/x.png` comes behind `a.tar-2.png`."""
    held: list[tuple[str, Record]] = []
    for table in files:
        start = 0
        for place in _containers_in(table):
            yield from _with_held(held, table.slice(start, place - start))
            (record,) = records(table.slice(place, 1))
            while held and held[0][0] <= record.key:
                yield heapq.heappop(held)[1]
            heapq.heappush(held, (f"{record.key}/", record))
            start = place + 1
        yield from _with_held(held, table.slice(start))
    while held:
        yield heapq.heappop(held)[1]


def _with_held(held: list[tuple[str, Record]], images: pa.Table) -> "Iterator[pa.Table | Record]":
    """Images, and between them those of the held files whose turn has come."""
    while held and images.num_rows and held[0][0] <= images["key"][-1].as_py():
        before = rows_up_to(images, held[0][0])
        yield images.slice(0, before)
        yield heapq.heappop(held)[1]
        images = images.slice(before)
    if images.num_rows:
        yield images


def _in_any_order(files: Iterator[Record]) -> "Iterator[pa.Table | Record]":
    """In the order in which they are listed."""
    for contains, group in groupby(files, lambda record: _is_container(record.key)):
        if contains:
            yield from group
        else:
            yield from tables(group)


def _once(lines: Iterable[str]) -> Iterator[str]:
    """Without lines that came before; of very long lists, among the first million."""
    seen: set[bytes] = set()
    for line in lines:
        digest = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen:
            continue
        if len(seen) < _LINES_REMEMBERED:
            seen.add(digest)
        yield line


def _absolute(url: str) -> str:
    return url.rstrip("/") if "://" in url else os.path.abspath(url)
