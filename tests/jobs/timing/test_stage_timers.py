import threading
from contextlib import suppress
from time import sleep

import pytest

from maskfleet.jobs.timing import stage_timers as module
from maskfleet.jobs.timing.stage_timers import Resource, ResourcePool, StageTimers, Wait, busiest


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when it is told to."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_seconds_add_up_by_stage_and_state(clock):
    timers = StageTimers()
    timers.add("fetch", busy=1.0, blocked=0.5)
    timers.add("fetch", busy=2.0)
    with timers.timed("write"):
        clock.now += 3
    with suppress(ValueError), timers.timed("write", "blocked"):
        clock.now += 4
        raise ValueError
    assert dict(timers.busy) == {"fetch": 3.0, "write": 3.0}
    assert {stage: seconds for stage, seconds in timers.blocked.items() if seconds} == {"fetch": 0.5, "write": 4.0}
    assert not any(timers.starved.values())


def test_no_event_is_lost_between_threads():
    timers = StageTimers()

    def count():
        for _ in range(5000):
            timers.add("decode", busy=1.0)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timers.busy["decode"] == 40_000


def test_a_resource_tells_input_from_output_waits(clock):
    resource, wait, timers = Resource("segment"), Wait(), StageTimers()
    with wait.for_input():
        clock.now += 2
    with wait.for_output():
        clock.now += 1
    clock.now += 0.5  # the feeder's own work: the resource's idle time, and neither
    with resource.work(timers, wait):
        clock.now += 4
    assert (timers.busy["segment"], timers.starved["segment"], timers.blocked["segment"]) == (4, 2, 1)
    with resource.work(timers, wait):  # at once: it did not wait again
        clock.now += 1
    assert (timers.busy["segment"], timers.starved["segment"], timers.blocked["segment"]) == (5, 2, 1)


def test_waiting_for_a_busy_resource_is_not_counted(clock):
    resource, mine, other = Resource("segment"), Wait(), Wait()
    first, second = StageTimers(), StageTimers()
    with mine.for_input(), resource.work(second, other):
        clock.now += 5
    with mine.for_input():
        clock.now += 1
    with resource.work(first, mine):
        clock.now += 1
    assert (first.busy["segment"], first.starved["segment"]) == (1, 1)
    assert (second.busy["segment"], second.starved["segment"]) == (5, 0)


def test_idle_time_before_the_feeder_is_not_counted(clock):
    resource = Resource("decode")
    clock.now += 60  # between two shards
    wait, timers = Wait(), StageTimers()
    with resource.work(timers, wait):
        clock.now += 1
    assert (timers.busy["decode"], timers.starved["decode"], timers.blocked["decode"]) == (1, 0, 0)


def test_real_time_is_measured():
    timers = StageTimers()
    with timers.timed("fetch"):
        sleep(0.02)
    assert 0.02 <= timers.busy["fetch"] < 1


def test_a_pool_serves_requests_in_order_and_one_alone_takes_all(clock):
    pool, timers = ResourcePool("segment", 2), StageTimers()
    waits = [Wait(), Wait(), Wait()]
    entered = threading.Event()

    def alone():
        with pool.work(timers, waits[2], alone=True):
            entered.set()
            clock.now += 3

    with pool.work(timers, waits[0]), pool.work(timers, waits[1]):
        clock.now += 2
        thread = threading.Thread(target=alone)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()
    assert dict(timers.busy) == {"segment": 2 + 2 + 3 + 3, "device": 2 + 3}


def test_the_busiest_is_a_stage_and_not_the_device():
    assert busiest({"device": 5.0, "decode": 2.0, "segment": 5.0}) == "segment"
    assert busiest({"device": 5.0}) == busiest({}) == ""


def test_the_device_is_busy_while_any_resource_is(clock):
    pool, first, second = ResourcePool("segment", 2), StageTimers(), StageTimers()
    one, other = pool.work(first, Wait()), pool.work(second, Wait())
    one.__enter__()
    clock.now += 2
    other.__enter__()
    clock.now += 1
    one.__exit__(None, None, None)
    clock.now += 4
    other.__exit__(None, None, None)
    clock.now += 8
    with pool.work(first, Wait()):
        clock.now += 16
    assert (first.busy["segment"], second.busy["segment"]) == (3 + 16, 5)
    assert first.busy["device"] + second.busy["device"] == 7 + 16
    assert second.busy["device"] == 2 + 4, "each second counts when it has passed, for whoever moves then"
