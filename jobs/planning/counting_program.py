"""The program of a process counting pages: it parses headers of foreign files, so that a crash costs a file and no run.

Started by `jobs.isolation.process`. It reads a file through the process that asks, in the ranges that it needs.
"""

import importlib
import io
import mmap
from typing import IO, Any, cast

from maskfleet.jobs.images.formats import FORMATS, recognised
from maskfleet.jobs.inputs.containers.parquet_protocol import AREA, Answer, Server, Unreadable
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.jobs.isolation.child import Serve, limit_time
from maskfleet.jobs.storage.ranged import RangedFile

_SECONDS = 60.0
_BUFFER = 2**16


def count(file: IO[bytes]) -> int:
    """Return the number of pages of an image file: 1 unless its format has pages.

    Raises:
        Exception: The file is damaged, or no image.
    """
    format_ = recognised(file)
    return format_.header(file).frames() if format_.has_pages else 1


def program(settings: dict[str, Any]) -> Serve:
    """Load the readers of all formats; return the function that answers requests."""
    block = mmap.mmap(settings["block"], AREA)
    for format_ in FORMATS:
        importlib.import_module(format_.reader)

    def serve(channel: Channel) -> None:
        server = Server(channel, block)
        while True:
            _, size = server.request()
            limit_time(_SECONDS)
            file = io.BufferedReader(RangedFile(server, "", size, None), _BUFFER)
            try:
                server.answer(Answer(count(cast("IO[bytes]", file)), b""))
            except Exception:  # hostile bytes make image libraries raise nearly anything
                server.refuse(Unreadable("uncounted"))

    return serve
