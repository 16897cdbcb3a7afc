"""What a job's input names: a folder, a glob or a list, as records. Reads no image.

Keys: below a folder or glob, an image's key is its path relative to the folder (for a glob, to the
last folder before the first wildcard). In a list it is the path as the line has it: a relative line
as written, a URL without its scheme (`bucket/a/b.png`), an absolute path without its first slash.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import BinaryIO, NamedTuple

from fsspec.utils import glob_translate

from jobs.errors import JobError, NotFound
from jobs.storage import Entry, Storage, open_storage, split_url

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".npy")
"""What an image's name ends in, in any case; other files in a folder are left alone."""

_STATS_IN_FLIGHT = 32


class Record(NamedTuple):
    """One input image.

    Attributes:
        key: Its name within the job.
        url: Where it is: an absolute path or s3:// URL.
        size: Bytes, or None where it could not be found when the plan was made.
        etag: See `jobs.storage.Entry`; None likewise.
    """

    key: str
    url: str
    size: int | None
    etag: str | None


class Source:
    """A job's input.

    Attributes:
        ignored: After iteration: the files left alone, counted by ending.

    Raises:
        JobError: On iteration: there is no such folder or list, or a list's line cannot be used.
    """

    def __init__(self, location: str, *, output: str, profile: str | None = None) -> None:
        self.location = location
        self.profile = profile
        self.ignored: Counter[str] = Counter()
        self._output = _absolute(output)

    def __iter__(self) -> Iterator[Record]:
        if self.location.lower().endswith(".txt"):
            return self._of_list()
        if any(mark in self.location for mark in "*?["):
            return self._of_glob()
        return self._of_folder(self.location, None)

    def _of_folder(self, location: str, pattern: re.Pattern[str] | None) -> Iterator[Record]:
        storage = open_storage(location, profile=self.profile)
        entries = self._entries(storage, location)
        for entry in entries:
            url = storage.url(entry.path)
            if self._wanted(entry.path, url, pattern):
                yield Record(entry.path, url, entry.size, entry.etag)

    def _entries(self, storage: Storage, location: str) -> Iterator[Entry]:
        if not location.startswith("s3://"):
            if os.path.isfile(storage.root):
                raise JobError(
                    f"input {location} is a file; name its folder, a glob, or a .txt file with a path or URL per line"
                )
            if not os.path.isdir(storage.root):
                raise JobError(f"there is no input folder {location}; correct 'input'")
        return storage.walk()

    def _wanted(self, path: str, url: str, pattern: re.Pattern[str] | None) -> bool:
        # The output may lie within the input: last night's masks are not tonight's images.
        if url == self._output or url.startswith(self._output + "/"):
            return False
        name = path.rsplit("/", 1)[-1]
        ending = os.path.splitext(name)[1].lower()
        if name.startswith(".") or ending not in ENDINGS:
            self.ignored[ending or name] += 1
            return False
        return pattern is None or pattern.fullmatch(path) is not None

    def _of_glob(self) -> Iterator[Record]:
        fixed = re.split(r"[*?\[]", self.location, maxsplit=1)[0]
        folder, slash, _ = fixed.rpartition("/")
        pattern = self.location[len(folder) + len(slash) :]
        return self._of_folder(folder or (slash or "."), re.compile(glob_translate(pattern)))

    def _of_list(self) -> Iterator[Record]:
        root, name = split_url(self.location)
        try:
            text = open_storage(root, profile=self.profile).read(name).decode("utf-8-sig")
        except NotFound as error:
            raise JobError(f"there is no list {self.location}; correct 'input'") from error
        except UnicodeDecodeError as error:
            raise JobError(f"list {self.location} is not UTF-8 text; save it as UTF-8") from error
        lines = (line.strip() for line in text.splitlines())
        wanted = iter(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        stores: dict[str, Storage] = {}
        with ThreadPoolExecutor(_STATS_IN_FLIGHT) as pool:
            while lines_now := list(islice(wanted, 1024)):
                yield from pool.map(lambda line: self._of_line(line, stores), lines_now)

    def _of_line(self, line: str, stores: dict[str, Storage]) -> Record:
        url = line if "://" in line or line.startswith("/") else f"{self.location.rpartition('/')[0] or '.'}/{line}"
        root, path = split_url(url)
        storage = stores.setdefault(root, open_storage(root, profile=self.profile))
        key = re.sub(r"^[a-z0-9]+://|^/+", "", line)
        full = storage.url(path) if root != "/" else f"/{path}"
        try:
            entry = storage.entry(path)
        except NotFound:
            return Record(key, full, None, None)  # it will have a row that says so
        return Record(key, full, entry.size, entry.etag)


def _absolute(url: str) -> str:
    return url.rstrip("/") if "://" in url else os.path.abspath(url)


class Inputs:
    """Reads records' bytes, wherever they are. One per process; safe from several threads."""

    def __init__(self, *, profile: str | None = None) -> None:
        self.profile = profile
        self._stores: dict[str, Storage] = {}

    def read(self, record: Record) -> bytes:
        """The bytes that the plan saw.

        Raises:
            NotFound: It is gone.
            Changed: It is another object now.
            StorageError: Storage failed.
        """
        storage, path = self._found(record)
        return storage.read(path, record.etag)

    def opened(self, record: Record) -> AbstractContextManager[BinaryIO]:
        """The same as a local file, for what does not fit into memory. Raises likewise, on closing too."""
        storage, path = self._found(record)
        return storage.opened(path, record.etag)

    def _found(self, record: Record) -> tuple[Storage, str]:
        root, path = split_url(record.url)
        return self._stores.setdefault(root, open_storage(root, profile=self.profile)), path

    @property
    def retries(self) -> int:
        """Requests repeated so far."""
        return sum(storage.retries for storage in self._stores.values())
