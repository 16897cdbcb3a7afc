"""The program of an isolated process: it loads a module, gives up all other rights, and serves its channel.

The module has a function `program(settings)`. It imports and opens what it needs, before the limits apply, and returns
the function that serves; see `jobs.isolation.process.Isolated`.
"""

import importlib
import json
import math
import os
import resource
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from maskfleet.jobs.isolation.channel import Channel
from maskfleet.jobs.isolation.confinement import confine

Serve = Callable[[Channel], None]
"""Answers requests until `EOFError`: the other side closed the channel."""


def answer_each(answer: Callable[[Any], Any]) -> Serve:
    """Return a function that serves requests of `Isolated.ask`, each one JSON value with one JSON value as its answer.

    Args:
        answer: Computes the answer. What it raises ends the process.
    """

    def serve(channel: Channel) -> None:
        while True:
            channel.send(json.dumps(answer(json.loads(channel.receive()))).encode())

    return serve


def limit_memory(allowance: int) -> None:
    """Limit the address space to its present size plus `allowance` bytes; larger allocations raise MemoryError."""
    if sys.platform == "linux":  # elsewhere a process needs further libraries to know its size
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, now + allowance)


def limit_time(seconds: float) -> None:
    """Limit further CPU time to about twice `seconds`. The kernel enforces it even if the parent is dead."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + 2 * seconds + 1))


def _limit(what: int, limit: int) -> None:
    _, most = resource.getrlimit(what)  # a batch system may have set one
    resource.setrlimit(what, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def be_quiet() -> None:
    """Discard warnings and stderr: image libraries report every damaged file there."""
    warnings.simplefilter("ignore")
    os.dup2(1, 2)  # stdout is discarded already


def main() -> None:
    """Serve the channel named in the first argument."""
    start = json.loads(sys.argv[1])
    channel = Channel(socket.socket(fileno=start["socket"]))
    serve: Serve = importlib.import_module(start["module"]).program(start["settings"])
    limit_memory(start["memory"])
    channel.send(json.dumps(confine()).encode())
    be_quiet()
    with suppress(EOFError):
        serve(channel)


if __name__ == "__main__":
    main()
