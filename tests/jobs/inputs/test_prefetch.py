import threading
import time

import pytest

from maskfleet.jobs.inputs.prefetch import Prefetched


def test_items_come_in_order():
    assert list(Prefetched(lambda: iter(range(5000)))) == list(range(5000))
    assert list(Prefetched(lambda: iter(()))) == []


def test_an_error_is_raised_in_its_place():
    def failing():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(Prefetched(failing))


def test_the_thread_waits_for_its_consumer_and_ends_when_closed():
    made = []

    def counting():
        for number in range(10**7):
            made.append(number)
            yield number

    ahead = Prefetched(counting)
    time.sleep(0.3)
    assert len(made) < 20_000
    ahead.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "prefetch" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
