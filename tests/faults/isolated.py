"""The work of an isolated process, with good and bad behaviour."""

import json
import mmap
import os
import time

from maskfleet.jobs.isolation.child import answer_each, limit_time


def program(settings):
    if settings["kind"] == "raises":
        raise RuntimeError("it has no library for that")
    if settings["kind"] == "killed":
        os.kill(os.getpid(), 9)
    return {
        "environment": environment, "writes": writes(settings), "eats": eats, "spins": spins, "waits": waits,
        "answers": answer_each(answer), "floods": floods,
    }[settings["kind"]]  # fmt: skip


def environment(channel):
    channel.send(json.dumps([dict(os.environ), os.getsid(0) == os.getpid()]).encode())


def writes(settings):
    def serve(channel):
        block = mmap.mmap(settings["block"], 4096)
        block[:5] = b"hello"
        try:
            os.ftruncate(settings["block"], 0)
        except OSError:
            channel.send(b"done")

    return serve


def eats(channel):
    kept = bytearray(2**26)
    channel.send(str(len(kept)).encode())
    try:
        bytearray(2**27)
    except MemoryError:
        channel.send(b"refused")


def spins(channel):
    limit_time(0.1)
    started = time.monotonic()
    while time.monotonic() - started < 60:
        pass


def waits(channel):
    time.sleep(60)


def floods(channel):
    channel.receive()
    channel._socket.sendall(b"\xff\xff\xff\xff" + bytes(100))
    time.sleep(60)


def answer(request):
    match request:
        case {"sleep": seconds}:
            time.sleep(seconds)
        case {"nonsense": _}:
            os._exit(0)
    return {"echo": request}
