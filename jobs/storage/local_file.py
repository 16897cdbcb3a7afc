"""Reads a local file whole, in the planned version. Imports no library: decoding processes use it too."""

import os

from maskfleet.jobs.errors import Changed


def state(status: os.stat_result) -> str:
    """Return the version of a file, as an ETag: its modification time in ns, and its size."""
    return f"mtime-{status.st_mtime_ns}-{status.st_size}"


def read(file: str, etag: str | None = None) -> bytes:
    """Return a file's bytes.

    Args:
        file: Path of the file.
        etag: `state` that the file must have, or None for any.

    Raises:
        Changed: The file has another state, or was written to during the read.
        OSError: The operating system failed.
    """
    # Without Python's file object: its extra system calls double the cost of a small file. A pipe must not block.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return read_open(descriptor, etag, name=file)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, etag: str | None, *, name: str = "it") -> bytes:
    """Return the bytes of an open file.

    Args:
        descriptor: Descriptor of the file, at its beginning.
        etag: `state` that the file must have, or None for any.
        name: Name of the file, for the error.

    Raises:
        Changed: The file has another state, or was written to during the read.
        OSError: The operating system failed.
    """
    # The state before and after the read: a write in between would give a mixture.
    before = os.fstat(descriptor)
    found = state(before)
    if etag is not None and found != etag:
        raise changed(name)
    data = os.read(descriptor, before.st_size + 1)
    while len(data) < before.st_size and (more := os.read(descriptor, before.st_size + 1 - len(data))):
        data += more
    if len(data) != before.st_size or state(os.fstat(descriptor)) != found:
        raise changed(name)
    return data


def changed(file: str) -> Changed:
    """Return the error for a file in another state."""
    return Changed(f"{file} changed after planning; run the job again to process the new version")
