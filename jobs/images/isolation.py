"""Processes for hostile bytes: no credentials, a minimal environment, limits on memory and time.

Messages are JSON on a socket: nothing is ever unpickled. Pixels lie in a block of shared memory and are never sent.
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
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

_STARTING_SECONDS = 60
_ENDING_SECONDS = 2


class Block(NamedTuple):
    """Anonymous memory shared by its file descriptor. Nothing is left behind when all processes are killed."""

    descriptor: int
    map: mmap.mmap

    def close(self) -> None:
        """Close the descriptor. Views of the memory keep the memory alive."""
        os.close(self.descriptor)


def shared_block(size: int) -> Block:
    """Create a block of `size` bytes. Untouched pages take no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("maskfleet-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return Block(descriptor, mmap.mmap(descriptor, size))


class DidNotStart(Exception):
    """A process ended or hung before it was ready. The message is the last line of its stderr.

    Attributes:
        by_itself: Whether it ended without a signal; then another try would end the same way.
    """

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.by_itself = by_itself


class Isolated:
    """A running process of a module, ready for messages.

    Args:
        module: Module to run. It gets the settings as JSON in its first argument, with the number of its socket as
            `socket`, and sends b"ready" first.
        settings: Settings, serialisable as JSON.
        descriptors: File descriptors inherited under the same numbers.

    Attributes:
        connection: Socket to the process.

    Raises:
        DidNotStart: The process ended or hung before it was ready.
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
                start_new_session=True,  # Ctrl-C in the terminal reaches the run alone, which then ends this process
            )
            theirs.close()
            self.connection = Connection(ours.detach())
            try:
                ready = self.connection.poll(_STARTING_SECONDS) and self.connection.recv_bytes() == b"ready"
            except (EOFError, OSError):
                ready = False
            if not ready:
                with suppress(subprocess.TimeoutExpired):  # its own exit status says more than a kill
                    self._process.wait(_ENDING_SECONDS)
                self.stop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise DidNotStart(lines[-1] if lines else "no message", by_itself=self._process.returncode >= 0)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def stop(self) -> None:
        """Kill the process and wait for its end."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Environment variables for an interpreter, without credentials."""
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    # One malloc arena: another one takes 64 MiB of the limited address space for every thread.
    alone = {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "1"}
    return kept | alone | {"PYTHONPATH": os.pathsep.join(_search_path())}


def _search_path() -> list[str]:
    """Module search path of this process without the working directory: it may hold a user's `random.py`.

    The folder of this package stays even if it is the working directory, for a checkout without an installation.
    """
    here, package = Path.cwd(), Path(__file__).parents[3]
    folders = [folder for folder in sys.path if folder]
    return [folder for folder in folders if Path(folder) == package or Path(folder).absolute() != here]


# Called by the process itself --------------------------------------------------------------------


def limit_memory(allowance: int) -> None:
    """Limit the address space to its present size plus `allowance` bytes; larger allocations raise MemoryError."""
    if sys.platform == "linux":  # elsewhere a process needs further libraries to know its size
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + allowance, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float) -> None:
    """Limit further CPU time to about twice `seconds`. The kernel enforces it even if the parent is dead."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + 2 * seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def be_quiet() -> None:
    """Discard warnings and stderr: image libraries report every damaged file there."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
