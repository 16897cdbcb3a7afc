"""Calls are made in parallel while storage is slow, and only then."""

import time

from maskfleet.jobs.images.pace import Pace


def test_slow_calls_are_made_in_parallel():
    at_once, most = [], []

    def slow(item):
        at_once.append(item)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.remove(item)
        return -item

    pace, items = Pace(), range(16)
    results, first = pace.map(slow, items)
    assert (results, max(most), pace.slow) == ([-item for item in items], 1, True)
    most.clear()
    results, second = pace.map(slow, items)
    assert results == [-item for item in items]
    assert max(most) > 1
    assert 0 < second < first
    pace.map(abs, items)
    most.clear()
    pace.map(slow, items)
    assert max(most) == 1
    assert pace.map(slow, []) == ([], 0.0)
