import itertools

from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.run import progress as module
from maskfleet.jobs.run.attempt import ShardReport
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


def test_isolation_is_that_of_every_worker():
    def report(means):
        commit = Commit("00000", "a", {}, 1, 0)
        return ShardReport(shard=None, commit=commit, committed=True, worker="host:1", isolation=means)

    tally = Progress()
    tally.add(ShardReport(shard=None, commit=Commit("00001", "a", {}, 1, 1), committed=True))  # without a worker
    assert tally.isolation is None
    tally.add(report(["landlock", "seccomp"]))
    assert tally.isolation == ["landlock", "seccomp"]
    tally.add(report(["seccomp"]))
    tally.add(report(["landlock", "seccomp"]))
    assert tally.isolation == ["seccomp"]
