from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.run.backlog import Backlog


def shards(sizes):
    return [Shard(f"{number:05}", 0, size) for number, size in enumerate(sizes)]


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 39)), max_size=3),
    st.integers(1, 4),
    st.randoms(),
)
def test_killers_alone_fail_whatever_else_dies(sizes, killers, attempts, random):
    """Two workers with two shards in flight each; a worker with a killer image dies, and some die for no reason."""
    killers = {(shard, row) for shard, row in killers if shard < len(sizes) and row < sizes[shard]}
    backlog = Backlog(shards(sizes), attempts=attempts)
    workers = [[], []]
    done, failed, accidents = [], [], 8

    def images(shard):
        return {(shard.group, row) for row in range(shard.start, shard.stop)}

    for _ in range(5000):
        worker = random.choice(workers)
        if len(worker) < 2 and not any(task.alone for task in worker) and (task := backlog.take(idle=not worker)):
            worker.append(task)
        if not worker:
            if not backlog and not any(workers):
                break
            continue
        accident = accidents and random.random() < 0.05 and not any(task.alone for task in worker)
        accidents -= bool(accident)
        if accident or any(images(task.shard) & killers for task in worker):
            lost, worker[:] = list(worker), []
            for task in lost:
                # An accident to a single task in work looks like its fault; then it only loses a chance.
                verdict = backlog.died(task, alone=len(lost) == 1 and (task.alone or not accident))
                if verdict == "split":
                    backlog.halves(task)
                elif verdict == "give_up":
                    failed.append(images(task.shard))
        elif random.random() < 0.5:
            done.append(images(worker.pop(0).shard))
    everything = set().union(*(images(shard) for shard in shards(sizes)))
    assert sum(map(len, done)) + len(failed) == len(everything)
    assert set().union(*done, *failed) == everything
    assert set().union(*failed) == killers


def test_a_suspect_waits_for_an_idle_worker():
    backlog = Backlog(shards([2, 2, 2]), attempts=3)
    first, second = backlog.take(idle=True), backlog.take(idle=False)
    assert backlog.died(first, alone=False) == backlog.died(second, alone=False) == "again"
    assert backlog.take(idle=False).shard.id == "00002"
    assert backlog.take(idle=False) is None
    assert backlog.take(idle=True).shard.id == "00000"


def test_budgets():
    backlog = Backlog(shards([4]), attempts=2)
    assert backlog.died(backlog.take(idle=True), alone=True) == "again"
    task = backlog.take(idle=True)
    assert backlog.died(task, alone=True) == "split"
    backlog.halves(task)
    half = backlog.take(idle=True)
    assert (half.shard, backlog.died(half, alone=True)) == (Shard("00000.0", 0, 2), "split")
    other = backlog.take(idle=True)
    assert other.shard == Shard("00000.1", 2, 4)
    backlog.halves(half)
    image = backlog.take(idle=True)
    assert backlog.died(image, alone=True) == "again"


def test_shards_are_taken_one_by_one():
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield Shard(f"{number:05}", 0, 1)
            number += 1

    backlog = Backlog(endless(), attempts=1)
    backlog.take(idle=True)
    assert backlog
    assert len(taken) == 2
