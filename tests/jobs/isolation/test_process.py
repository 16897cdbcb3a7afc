"""Isolated processes: what they inherit, their limits and deadlines, and how their end is reported."""

import json
import os
import signal
import sys
import time

import psutil
import pytest

from maskfleet.jobs.isolation.block import shared_block
from maskfleet.jobs.isolation.process import DidNotStart, Died, Isolated

SECONDS = 0.3


@pytest.fixture
def started():
    processes = []

    def start(kind, **more):
        settings = {"kind": kind, **more}
        processes.append(
            Isolated("faults.isolated", settings, memory=2**27, seconds=SECONDS, descriptors=list(more.values()))
        )
        return processes[-1]

    yield start
    for process in processes:
        process.stop()


def test_it_has_no_credentials_and_its_own_session(started, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HOME", "ANY_OTHER"):
        monkeypatch.setenv(name, "canary-4711")
    process = started("environment")
    environment, alone = json.loads(process.channel.receive(seconds=20))
    assert "canary-4711" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"]
    assert alone  # a Ctrl-C in the terminal does not reach it


def test_pixels_are_shared_and_not_sent_and_their_memory_cannot_shrink(started):
    block = shared_block(4096)
    process = started("writes", block=block.descriptor)
    assert process.channel.receive(seconds=20) == b"done"
    assert block.map[:5] == b"hello"
    block.close()
    with pytest.raises(OSError):
        os.fstat(block.descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its size")
def test_its_memory_is_limited(started):
    process = started("eats")
    assert process.channel.receive(seconds=20) == str(2**26).encode()
    assert process.channel.receive(seconds=20) == b"refused"


def test_the_kernel_ends_a_process_that_spins(started):
    process = started("spins")
    with pytest.raises(EOFError):
        process.channel.receive(seconds=20)


def test_questions_are_answered(started):
    process = started("answers")
    for request in ({"a": [1, None, "ü"]}, {}, "x" * 10**6):
        assert process.ask(request) == {"echo": request}


def test_an_answer_has_a_deadline(started):
    process = started("answers")
    began = time.monotonic()
    with pytest.raises(Died) as death:
        process.ask({"sleep": 60})
    assert death.value.error_class == "timeout"
    assert SECONDS <= time.monotonic() - began < SECONDS + 5
    assert not psutil.pid_exists(process.pid)


def test_13_a_stopped_process_that_is_sent_more_than_a_socket_holds_has_a_deadline(started):
    process = started("answers")
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Died) as death:
        process.ask("x" * 10**7)
    assert death.value.error_class == "timeout"
    assert SECONDS <= time.monotonic() - began < SECONDS + 5


def test_an_end_or_an_endless_answer_is_a_crash(started):
    for kind, request in (("answers", {"nonsense": 1}), ("floods", {})):
        with pytest.raises(Died) as death:
            started(kind).ask(request)
        assert death.value.error_class == "crash"


def test_the_reason_for_a_failed_start_is_told(started):
    with pytest.raises(DidNotStart, match="it has no library for that") as error:
        started("raises")
    assert error.value.by_itself
    with pytest.raises(DidNotStart, match="no message") as error:
        started("killed")
    assert not error.value.by_itself
    with pytest.raises(DidNotStart, match="no_such_module"):
        Isolated("no_such_module", {}, memory=2**27, seconds=1)


def test_stopping_leaves_nothing_behind_and_can_be_repeated(started):
    process = started("waits")
    assert psutil.pid_exists(process.pid)
    process.stop()
    assert not psutil.pid_exists(process.pid)
    process.stop()
