"""An isolated process as its parent sees it: it is started, asked, and killed when it dies or is too slow.

Messages are JSON, or bytes with a meaning of their own: nothing is ever unpickled. No call waits without a deadline.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskfleet.jobs.isolation.channel import Channel

_MODULE = "maskfleet.jobs.isolation.child"
_STARTING_SECONDS = 60
_ENDING_SECONDS = 2
_MOST_BYTES = 2**26


class DidNotStart(Exception):
    """A process ended or hung before it was ready. The message is the last line of its stderr.

    Attributes:
        by_itself: Whether it ended without a signal; then another try would end the same way.
    """

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.by_itself = by_itself


class Died(Exception):
    """A process crashed, answered nonsense, or was too slow. It is killed.

    Attributes:
        error_class: `crash` or `timeout`.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Isolated:
    """A running process for foreign bytes, ready for requests. Stop it, whatever happens.

    It has no credentials and its own session. It cannot open files but those of the interpreter, nor write any, open a
    socket, start a program, or reach another process, as far as the kernel has the means (`means`).

    Its work is a module with a function `program(settings)`. `program` runs before the limits apply: it imports and
    opens what it needs, starts no thread, and returns the function that serves::

        def program(settings):                  # in the module "maskfleet.jobs.inputs.containers.footer"
            import pyarrow.parquet
            return answer_each(lambda request: {"rows": ...})     # of jobs.isolation.child

        process = Isolated("maskfleet.jobs.inputs.containers.footer", {}, memory=2**30, seconds=20,
                           descriptors=[file.fileno()])
        try:
            answer = process.ask({"file": file.fileno()})
        except Died as death:                   # killed: the file is to blame; start another process for the next
            ...
        finally:
            process.stop()

    Large answers go through a shared block (`jobs.isolation.block`), whose descriptor is handed over likewise. For
    messages other than JSON use `channel` with its `seconds`; `jobs.images.process` is an example. The `descriptors` of
    a message are received by `Channel.receive_files`. Against loops that outlive the parent, the process calls
    `jobs.isolation.child.limit_time` before each piece of work.

    Args:
        module: The module.
        settings: Argument of its `program`, serialisable as JSON.
        memory: Bytes that the process may allocate beyond its size after `program`; then MemoryError is raised there.
        seconds: Time limit of each `ask`.
        descriptors: File descriptors inherited under the same numbers.

    Attributes:
        channel: Channel to the process.
        means: Those of `jobs.isolation.confinement.MEANS` that hold the process.

    Raises:
        DidNotStart: The process ended or hung before it was ready.
    """

    def __init__(
        self, module: str, settings: dict[str, Any], *, memory: int, seconds: float, descriptors: Sequence[int] = ()
    ) -> None:
        self._seconds = seconds
        start = {"module": module, "settings": settings, "memory": memory}
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, json.dumps({**start, "socket": theirs.fileno()})],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(*descriptors, theirs.fileno()),
                start_new_session=True,  # Ctrl-C in the terminal reaches the run alone, which then ends this process
            )
            theirs.close()
            self.channel = Channel(ours)
            try:
                self.means: list[str] = json.loads(self.channel.receive(seconds=_STARTING_SECONDS))
            except (EOFError, OSError, ValueError) as error:
                with suppress(subprocess.TimeoutExpired):  # its own exit status says more than a kill
                    self._process.wait(_ENDING_SECONDS)
                self.stop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                by_itself = self._process.returncode is not None and self._process.returncode >= 0
                raise DidNotStart(lines[-1] if lines else "no message", by_itself=by_itself) from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, request: Any, *, descriptors: Sequence[int] = ()) -> Any:
        """Send a request and return the answer.

        Args:
            request: JSON value.
            descriptors: Open files to hand over.

        Raises:
            Died: The process crashed, answered nonsense, or took longer than its time limit.
        """
        try:
            self.channel.send(json.dumps(request).encode(), seconds=self._seconds, descriptors=descriptors)
            return json.loads(self.channel.receive(seconds=self._seconds, most=_MOST_BYTES))
        except TimeoutError as error:
            self.stop()
            raise Died("timeout", f"it took more than {self._seconds:g} s") from error
        except (EOFError, OSError, ValueError, RecursionError) as error:
            self.stop()
            raise Died("crash", "it killed its process") from error

    def stop(self) -> None:
        """Kill the process and wait for its end. Further calls do nothing."""
        self.channel.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # storage that hangs keeps even killed processes
            self._process.wait(_ENDING_SECONDS)


def _environment() -> dict[str, str]:
    """Environment variables for an interpreter, without credentials."""
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    # One thread, since Landlock holds those alone that start after it; and one malloc arena, since another one takes
    # 64 MiB of the limited address space for every thread.
    alone = {
        "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }  # fmt: skip
    return kept | alone | {"PYTHONPATH": os.pathsep.join(_search_path())}


def _search_path() -> list[str]:
    """Module search path of this process without the working directory: it may hold a user's `random.py`.

    The folder of this package stays even if it is the working directory, for a checkout without an installation.
    """
    here, package = Path.cwd(), Path(__file__).parents[3]
    folders = [folder for folder in sys.path if folder]
    return [folder for folder in folders if Path(folder) == package or Path(folder).absolute() != here]
