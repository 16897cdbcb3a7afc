import itertools

from maskfleet.jobs.run import progress as module
from maskfleet.jobs.run.progress import Progress


def test_each_step_of_the_start_is_noted_once(monkeypatch):
    seconds = itertools.count(100)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    tally = Progress(begun=90.0, started=90.0)
    tally.reached("plan")
    tally.reached("worker")
    tally.reached("plan")
    tally.reached("shard")
    assert tally.start == {"plan": 10.0, "worker": 1.0, "shard": 1.0}
