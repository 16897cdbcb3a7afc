"""Isolated processes: what they inherit, their limits, and how their end is reported."""

import json
import os
import sys

import psutil
import pytest

from maskfleet.jobs.images.isolation import DidNotStart, Isolated, shared_block


@pytest.fixture
def started():
    processes = []

    def start(kind, **more):
        descriptors = list(more.values())
        processes.append(Isolated("faults.isolated", {"kind": kind, **more}, descriptors))
        return processes[-1]

    yield start
    for process in processes:
        process.stop()


def test_it_has_no_credentials_and_its_own_session(started, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HOME", "ANY_OTHER"):
        monkeypatch.setenv(name, "canary-4711")
    process = started("environment")
    environment, alone = json.loads(process.connection.recv_bytes())
    assert "canary-4711" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"]
    assert alone  # a Ctrl-C in the terminal does not reach it


def test_pixels_are_shared_and_not_sent(started):
    block = shared_block(4096)
    process = started("writes", block=block.descriptor)
    assert process.connection.recv_bytes() == b"done"
    assert block.map[:5] == b"hello"
    block.close()
    with pytest.raises(OSError):
        os.fstat(block.descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its size")
def test_its_memory_is_limited(started):
    process = started("eats")
    assert process.connection.recv_bytes() == str(2**26).encode()
    assert process.connection.recv_bytes() == b"refused"


def test_the_kernel_ends_a_process_that_spins(started):
    process = started("spins")
    assert process.connection.poll(20)  # the other end is closed
    with pytest.raises(EOFError):
        process.connection.recv_bytes()


def test_the_reason_for_a_failed_start_is_told(started):
    with pytest.raises(DidNotStart, match="it has no library for that") as error:
        started("raises")
    assert error.value.by_itself
    with pytest.raises(DidNotStart, match="no message") as error:
        started("killed")
    assert not error.value.by_itself
    with pytest.raises(DidNotStart, match="no_such_module"):
        Isolated("no_such_module", {}, [])


def test_stopping_leaves_nothing_behind(started):
    process = started("waits")
    assert psutil.pid_exists(process.pid)
    process.stop()
    assert not psutil.pid_exists(process.pid)
