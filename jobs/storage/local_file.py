"""A local file, read whole and as it was planned. Loads nothing: decoding processes read by it too."""

import os

from maskfleet.jobs.errors import Changed


def state(status: os.stat_result) -> str:
    """What changes when a file does: its modification time in ns, and its size."""
    return f"mtime-{status.st_mtime_ns}-{status.st_size}"


def read(file: str, etag: str | None = None) -> bytes:
    """A file's bytes.

    Args:
        file: Its path.
        etag: The `state` that it must have; None for any.

    Raises:
        Changed: It has another, or was written to meanwhile.
        OSError: As the operating system says.
    """
    # Without the library's file object, which asks for more than is needed and doubles a small file's cost.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The state of the open file, before and after: a writer in between would give a mixture.
        before = os.fstat(descriptor)
        found = state(before)
        if etag is not None and found != etag:
            raise changed(file)
        data = os.read(descriptor, before.st_size + 1)
        while len(data) < before.st_size and (more := os.read(descriptor, before.st_size + 1 - len(data))):
            data += more
        if len(data) != before.st_size or state(os.fstat(descriptor)) != found:
            raise changed(file)
    finally:
        os.close(descriptor)
    return data


def changed(file: str) -> Changed:
    """The error that says so."""
    return Changed(f"{file} changed after the plan; run again to plan it as it is now")
