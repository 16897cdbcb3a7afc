"""Processes for hostile bytes: no environment but the interpreter's, no credentials, limits on memory and time.

They talk over a socket in JSON, so that nothing that comes out of them is unpickled, and put pixels into
a block of shared memory, so that pixels are never sent.
"""

import json
import math
import mmap
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

_STARTING_SECONDS = 60
_ENDING_SECONDS = 2


class Block(NamedTuple):
    """Memory to share by its descriptor. It has no name, so nothing is left behind when all is killed."""

    descriptor: int
    map: mmap.mmap

    def close(self) -> None:
        """Give it back; views of it keep the memory, not the descriptor."""
        os.close(self.descriptor)


def shared_block(size: int) -> Block:
    """So many bytes, of which untouched pages take no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("maskfleet-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return Block(descriptor, mmap.mmap(descriptor, size))


class DidNotStart(Exception):
    """The process ended or hung before it was ready; the message is its last line.

    Attributes:
        by_itself: Whether it ended without a signal, and would again.
    """

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.by_itself = by_itself


class Isolated:
    """A process that runs a module of this package, started and ready.

    Args:
        module: Its name; its `main` gets the settings and a connection, and sends b"ready" first.
        settings: JSON.
        descriptors: Open files that it inherits by number.

    Raises:
        DidNotStart: Says why.
    """

    def __init__(self, module: str, settings: dict[str, Any], descriptors: Sequence[int]) -> None:
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, json.dumps({**settings, "socket": theirs.fileno()})],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(*descriptors, theirs.fileno()),
                start_new_session=True,  # a Ctrl-C in the terminal is for the run, which then ends this process
            )
            theirs.close()
            self.connection = Connection(ours.detach())
            try:
                ready = self.connection.poll(_STARTING_SECONDS) and self.connection.recv_bytes() == b"ready"
            except (EOFError, OSError):
                ready = False
            if not ready:
                with suppress(subprocess.TimeoutExpired):  # an end of its own says more than ours
                    self._process.wait(_ENDING_SECONDS)
                self.stop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise DidNotStart(lines[-1] if lines else "no message", by_itself=self._process.returncode >= 0)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """What an interpreter needs, and no credentials."""
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    # One arena: another takes 64 MiB of the address space that `limit_memory` counts, for every thread.
    alone = {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "1"}
    return kept | alone | {"PYTHONPATH": os.pathsep.join(_search_path())}


def _search_path() -> list[str]:
    """Where this process finds its modules, without the working directory.

    That folder is the user's, and may hold a `random.py`.

    The folder that this very package lies in stays, for a checkout that is not installed.
    """
    here, ours = Path.cwd(), Path(__file__).parents[3]
    folders = [folder for folder in sys.path if folder]
    return [folder for folder in folders if Path(folder) == ours or Path(folder).absolute() != here]


# What runs in the process ------------------------------------------------------------------------


def limit_memory(allowance: int) -> None:
    """End what needs more bytes than now and `allowance`."""
    if sys.platform == "linux":  # elsewhere a process cannot tell its own size without more libraries
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + allowance, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float) -> None:
    """The kernel ends this process if one image takes far longer, even when nobody is left to."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + 2 * seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def be_quiet() -> None:
    """Image libraries are talkative."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
