"""Reads the bytes of records, wherever they are: whole files, or members of containers."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from maskfleet.jobs.inputs.containers.contract import Container, MemberReader, Reference
from maskfleet.jobs.inputs.containers.formats import container_of, member_url
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.files import Files


class Inputs:
    """The inputs of a process. Safe from several threads.

    Args:
        profile: AWS profile.

    Attributes:
        files: Opens files by URL.
    """

    def __init__(self, *, profile: str | None = None) -> None:
        self.files = Files(profile=profile)

    def reader(self, records: Sequence[Record]) -> "Reader":
        """Return a reader of the records. Reading is fastest in this order."""
        return Reader(self.files, records)

    def read(self, record: Record) -> bytes:
        """Return the bytes of one record; see `Reader.read`."""
        return self.reader([record]).read(record)

    @contextmanager
    def opened(self, record: Record) -> Iterator[BinaryIO]:
        """Open a record as a local file, for images larger than memory.

        Raises:
            StorageError: As `Reader.read`, when opened or when closed.
        """
        found = _reference(record)
        if found is None:
            storage, path = self.files.found(record.url)
            with storage.opened(path, record.etag) as file:
                yield file
            return
        container, member = found
        with tempfile.TemporaryFile() as file:
            for piece in container.reader(self.files, [member]).pieces(member):
                file.write(piece)
            file.seek(0)
            yield file

    def local_path(self, record: Record) -> str:
        """Return the path of a record that is a file of this machine."""
        storage, path = self.files.found(record.url)
        file = storage.local_path(path)
        assert file is not None
        return file

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
        for record in records:
            if (found := _readable(record)) is not None:
                members.setdefault(found[0], []).append(found[1])
        self._readers: dict[Container[Any], MemberReader] = {
            container: container.reader(files, references) for container, references in members.items()
        }

    def read(self, record: Record) -> bytes:
        """Return the bytes of a record, in the planned version.

        Raises:
            NotFound: The file does not exist.
            Changed: The file has changed since it was planned.
            Fault: The image inside the file cannot be read.
            StorageError: Storage failed.
        """
        found = _reference(record)
        if found is None:
            storage, path = self._files.found(record.url)
            return storage.read(path, record.etag)
        container, member = found
        return self._readers[container].read(member)


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
        return _reference(record)
    except Fault:
        return None
