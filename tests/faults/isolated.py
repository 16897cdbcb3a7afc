"""A program for an isolated process, with good and bad behaviour; started by its module name."""

import json
import mmap
import os
import sys
import time
from multiprocessing.connection import Connection

from maskfleet.jobs.images.isolation import limit_memory, limit_time


def main(settings):
    connection = Connection(settings["socket"])
    if settings["kind"] == "raises":
        raise RuntimeError("it has no library for that")
    if settings["kind"] == "killed":
        os.kill(os.getpid(), 9)
    connection.send_bytes(b"ready")
    if settings["kind"] == "environment":
        connection.send_bytes(json.dumps([dict(os.environ), os.getsid(0) == os.getpid()]).encode())
    if settings["kind"] == "writes":
        block = mmap.mmap(settings["block"], 4096)
        block[:5] = b"hello"
        connection.send_bytes(b"done")
    if settings["kind"] == "eats":
        limit_memory(2**27)
        kept = bytearray(2**26)
        connection.send_bytes(str(len(kept)).encode())
        try:
            bytearray(2**27)
        except MemoryError:
            connection.send_bytes(b"refused")
    if settings["kind"] == "spins":
        limit_time(0.1)
        started = time.monotonic()
        while time.monotonic() - started < 60:
            pass
    time.sleep(60)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
