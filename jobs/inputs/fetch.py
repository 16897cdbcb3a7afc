"""Reads the bytes of records, wherever they are: whole files, or members of containers."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

from maskfleet.jobs.errors import Changed, Denied, NotFound, StorageError
from maskfleet.jobs.images.contract import Failure
from maskfleet.jobs.inputs.containers.contract import Container, MemberReader, Reference
from maskfleet.jobs.inputs.containers.formats import container_of, member_url
from maskfleet.jobs.inputs.pages.names import file_of_key, page_of, stacks_among
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import InputOptions
from maskfleet.jobs.storage.contract import ENVIRONMENT, UNKNOWN, Fault, Options
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import copied

T = TypeVar("T")

_OTHERS = 3
"""Other files that are tried when one cannot be read."""

_ASKING_SECONDS = 30.0
"""Time after which no further file is tried."""

_VERDICT_SECONDS = 10.0
"""Time for which storage is not asked again."""


def options_of(job: Job) -> Options:
    """Return how the buckets of a job's input are asked."""
    return options_with(job.input_options, job.profile)


def options_with(own: InputOptions, profile: str | None) -> Options:
    """Return how the buckets of an input are asked.

    Args:
        own: Section of the job.
        profile: AWS profile, if the section names none.
    """
    return Options(own.profile or profile, own.endpoint, own.anonymous, own.requester_pays)


class Inputs:
    """The inputs of a process. Safe from several threads.

    Args:
        options: How buckets are asked.

    Attributes:
        files: Opens files by URL.
    """

    def __init__(self, options: Options = ENVIRONMENT) -> None:
        self.files = Files(options)
        self._asking = threading.Lock()
        self._verdicts: dict[str, tuple[bool, float]] = {}

    def reader(self, records: Sequence[Record]) -> "Reader":
        """Return a reader of the records. Reading is fastest in this order."""
        return Reader(self.files, records)

    def read(self, record: Record) -> bytes:
        """Return the bytes of one record, of a page those of its file; see `Reader.read`."""
        return self.reader([record]).read(record)

    @contextmanager
    def opened(self, record: Record) -> Iterator[BinaryIO]:
        """Open a record as a local file, for images larger than memory. For a page, open its file.

        Raises:
            StorageError: As `Reader.read`, when opened or when closed.
        """
        record = file_of(record)
        found = _reference(record)
        if found is None:
            storage, path = self.files.found(record.url)
            with storage.opened(path, record.etag) as file:
                yield file
            return
        container, member = found
        with copied(container.reader(self.files, [member]).pieces(member)) as file:
            yield file

    def local_path(self, record: Record) -> str:
        """Return the path of a record that is a file of this machine, or a page of one."""
        storage, path = self.files.found(page_of(record.url).file)
        file = storage.local_path(path)
        assert file is not None
        return file

    def answers(self, record: Record, others: Sequence[Record]) -> bool:
        """Return whether other files of a record's storage can be read, so that its failure is its own.

        Args:
            record: Record that storage failed to read.
            others: Records of the same job. If none lies in another file there, storage is asked for an absent one.
        """
        storage, path = self.files.found(_file(record))
        with self._asking:
            answers, told = self._verdicts.get(storage.root, (None, 0.0))
            if answers is None or time.monotonic() - told > _VERDICT_SECONDS:
                answers = self._another_is_read(record, others)
                if answers is None:
                    answers = storage.answers(path)
                self._verdicts[storage.root] = answers, time.monotonic()
            return answers

    def _another_is_read(self, record: Record, others: Sequence[Record]) -> bool | None:
        """Return whether one of a few other files is read; None if they do not tell."""
        own = _file(record)
        root = self.files.found(own)[0].root
        beside = [other for file, other in {_file(other): other for other in others}.items() if file != own]
        failed = False
        end = time.monotonic() + _ASKING_SECONDS
        for other in beside[:: -(-len(beside) // _OTHERS) or 1]:
            if time.monotonic() > end:
                break
            try:
                storage, path = self.files.found(_file(other))
                if storage.root != root:
                    continue
                storage.read_range(path, 0, 1, other.etag)
            except (NotFound, Changed, Denied, Fault):
                continue
            except StorageError:
                failed = True
                continue
            return True
        return False if failed else None

    def close(self) -> None:
        """End the threads."""
        self.files.close()

    @property
    def retries(self) -> int:
        """Number of requests repeated so far."""
        return self.files.retries


class Reader:
    """Reader of the records of a shard, each once. Safe from several threads.

    Args:
        files: Opens files by URL.
        records: Records, about in the order of reading.
    """

    def __init__(self, files: Files, records: Sequence[Record]) -> None:
        self._files = files
        members: dict[Container[Any], list[Reference]] = {}
        self._copied = stacks_among(record.url for record in records)  # best read from a copy; see `pages.copies`
        for record in (other for other in records if not self._copied or page_of(other.url).file not in self._copied):
            if (found := _readable(record)) is not None:
                members.setdefault(found[0], []).append(found[1])
        self._readers: dict[Container[Any], MemberReader] = {
            container: container.reader(files, references) for container, references in members.items()
        }

    def read(self, record: Record) -> bytes:
        """Return the bytes of a record, in the planned version; of a page those of its file.

        Raises:
            NotFound: The file does not exist.
            Changed: The file has changed since it was planned.
            Fault: The image inside the file cannot be read.
            StorageError: Storage failed.
        """
        record = file_of(record)
        found = _reference(record)
        if found is None:
            storage, path = self._files.found(record.url)
            return storage.read(path, record.etag)
        container, member = found
        return self._reader(container, record, member).read(member)

    def read_alone(self, record: Record) -> bytes:
        """Return the bytes of a record without its neighbours in a container; see `read`."""
        record = file_of(record)
        found = _reference(record)
        if found is None:
            return self.read(record)
        container, member = found
        return b"".join(self._reader(container, record, member).pieces(member))

    def _reader(self, container: Container[Any], record: Record, member: Reference) -> MemberReader:
        copied = bool(self._copied) and record.url in self._copied
        return container.reader(self._files, [member]) if copied else self._readers[container]


def read_or_fail(
    inputs: Inputs, record: Record, others: Sequence[Record], read: Callable[[], T], again: Callable[[], T]
) -> T | Failure:  # fmt: skip
    """Return what `read` returns, or why this one image cannot be read.

    Args:
        inputs: Reader of records.
        record: The image.
        others: Records of the same job, to tell a failure of one image from one of storage.
        read: Reads the image.
        again: Reads it once more, after storage failed for it alone.

    Raises:
        Denied: Credentials are missing or wrong, which affects every image.
        StorageError: Storage fails for other images too.
    """
    for last, attempt in enumerate((read, again)):
        try:
            return attempt()
        except (NotFound, Changed, Fault) as error:
            return _failure(record, error)
        except Denied:
            raise
        except StorageError as error:
            if not inputs.answers(record, others):
                raise
            if last:
                return Failure("fetch", "storage", str(error))
    raise AssertionError("unreachable")


def _failure(record: Record, error: NotFound | Changed | Fault) -> Failure:
    match error:
        case Fault():
            return Failure("fetch", error.error_class, str(error))
        case Changed():
            return Failure("fetch", "changed", str(error))
    why = "" if record.etag == UNKNOWN else "; it was deleted after planning, or the list is out of date"
    return Failure("fetch", "missing", f"{error}{why}")


def file_of(record: Record) -> Record:
    """Return the file of a page; other records as they are."""
    page = page_of(record.url)
    return record._replace(key=file_of_key(record.key), url=page.file) if page.number else record


def _file(record: Record) -> str:
    """Return the URL of a record's file."""
    url = page_of(record.url).file
    try:
        found = member_url(url)
    except Fault:
        found = None
    return url if found is None else found.file


def _reference(record: Record) -> tuple[Container[Any], Reference] | None:
    """Return a record's container and member, or None for a whole file. Raises `Fault` as `member_url`."""
    found = member_url(record.url)
    if found is None:
        return None
    container = container_of(found.file)
    assert container is not None
    return container, Reference(record.key, found.file, record.etag, found.place)


def _readable(record: Record) -> tuple[Container[Any], Reference] | None:
    try:
        return _reference(file_of(record))
    except Fault:
        return None
