import threading
from contextlib import suppress
from time import sleep

import pytest

from maskfleet.jobs import stage_timers as module
from maskfleet.jobs.stage_timers import Lane, Lanes, Meters, Wait, busiest


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
    meters = Meters()
    meters.add("fetch", busy=1.0, blocked=0.5)
    meters.add("fetch", busy=2.0)
    with meters.timed("write"):
        clock.now += 3
    with suppress(ValueError), meters.timed("write", "blocked"):
        clock.now += 4
        raise ValueError
    assert dict(meters.busy) == {"fetch": 3.0, "write": 3.0}
    assert {stage: seconds for stage, seconds in meters.blocked.items() if seconds} == {"fetch": 0.5, "write": 4.0}
    assert not any(meters.starved.values())


def test_no_event_is_lost_between_threads():
    meters = Meters()

    def count():
        for _ in range(5000):
            meters.add("decode", busy=1.0)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meters.busy["decode"] == 40_000


def test_a_lane_says_what_it_waited_for(clock):
    lane, wait, meters = Lane("segment"), Wait(), Meters()
    with wait.for_input():
        clock.now += 2
    with wait.for_room():
        clock.now += 1
    clock.now += 0.5  # the feeder's own work: the lane's idle time, and neither
    with lane.work(meters, wait):
        clock.now += 4
    assert (meters.busy["segment"], meters.starved["segment"], meters.blocked["segment"]) == (4, 2, 1)
    with lane.work(meters, wait):  # at once: it did not wait again
        clock.now += 1
    assert (meters.busy["segment"], meters.starved["segment"], meters.blocked["segment"]) == (5, 2, 1)


def test_waiting_while_the_lane_works_for_another_costs_nothing(clock):
    lane, mine, other = Lane("segment"), Wait(), Wait()
    first, second = Meters(), Meters()
    with mine.for_input(), lane.work(second, other):
        clock.now += 5
    with mine.for_input():
        clock.now += 1
    with lane.work(first, mine):
        clock.now += 1
    assert (first.busy["segment"], first.starved["segment"]) == (1, 1)
    assert (second.busy["segment"], second.starved["segment"]) == (5, 0)


def test_nobody_waits_before_there_is_anything_to_do(clock):
    lane = Lane("decode")
    clock.now += 60  # between two shards
    wait, meters = Wait(), Meters()
    with lane.work(meters, wait):
        clock.now += 1
    assert (meters.busy["decode"], meters.starved["decode"], meters.blocked["decode"]) == (1, 0, 0)


def test_real_time_is_measured():
    meters = Meters()
    with meters.timed("fetch"):
        sleep(0.02)
    assert 0.02 <= meters.busy["fetch"] < 1


def test_lanes_are_for_whoever_comes_and_all_of_them_for_one_alone(clock):
    lanes, meters = Lanes("segment", 2), Meters()
    waits = [Wait(), Wait(), Wait()]
    entered = threading.Event()

    def alone():
        with lanes.work(meters, waits[2], alone=True):
            entered.set()
            clock.now += 3

    with lanes.work(meters, waits[0]), lanes.work(meters, waits[1]):
        clock.now += 2
        thread = threading.Thread(target=alone)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()
    assert dict(meters.busy) == {"segment": 2 + 2 + 3 + 3, "device": 2 + 3}


def test_the_busiest_is_a_stage():
    assert busiest({"device": 5.0, "decode": 2.0, "segment": 5.0}) == "segment"
    assert busiest({"device": 5.0}) == busiest({}) == ""


def test_a_device_works_while_any_of_its_lanes_does(clock):
    lanes, first, second = Lanes("segment", 2), Meters(), Meters()
    one, other = lanes.work(first, Wait()), lanes.work(second, Wait())
    one.__enter__()
    clock.now += 2
    other.__enter__()
    clock.now += 1
    one.__exit__(None, None, None)
    clock.now += 4
    other.__exit__(None, None, None)
    clock.now += 8
    with lanes.work(first, Wait()):
        clock.now += 16
    assert (first.busy["segment"], second.busy["segment"]) == (3 + 16, 5)
    assert first.busy["device"] + second.busy["device"] == 7 + 16
    assert second.busy["device"] == 2 + 4, "each second counts when it has passed, for whoever moves then"
