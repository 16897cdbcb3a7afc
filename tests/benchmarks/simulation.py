"""How far one driver carries: `python tests/benchmarks/simulation.py`.

The real backlog hands real shards to workers that only let a simulated clock pass, up to 512 of them and 100 million
images. What a shard costs the driver is measured here first (the same calls, with commits on local disk); what cannot be
measured on this machine is a named assumption below.
"""

import heapq
import itertools
import random
import tempfile
import time

from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.manifest import PART_SHARDS, shards_of
from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.run.backlog import Backlog
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.storage.local import LocalStorage

RATE = 1250.0  # images/s of a worker: 512² on one H200, predicted, not measured
LISTING = 40_000.0  # keys/s: eight requests of a thousand keys side by side, 200 ms each
START = 20.0  # s from the command to a worker's first shard
CALL = 0.0005  # s of the driver per Ray call and answer, the fact sheet's round trip
FETCH = 0.3  # s of a shard that no pipeline hides: its first fetch and its commit
LOST_AFTER = 6 * 3600.0  # s between losses of a worker, as spot machines have them
BACK = 60.0  # s until its successor is ready
SIZE = 512


def report_of(shard):
    commit = Commit(shard.id, "x", {}, SIZE, 0)
    return ShardReport(shard=shard, commit=commit, committed=True, seconds=1.0, busy={"segment": 0.4})


def driver_seconds():
    """Of the driver per shard, without Ray."""
    count = 20_000
    backlog, tally = Backlog(shards_of(0, count * SIZE, SIZE), attempts=3), Progress()
    began = time.process_time()
    while task := backlog.take(idle=True):
        tally.add(report_of(task.shard))
    return (time.process_time() - began) / count


def reading_seconds():
    """To read one commit back, as a resumed run does for each."""
    with tempfile.TemporaryDirectory() as folder:
        commits = Commits(LocalStorage(folder), "r", "worker")
        for shard in shards_of(0, 500 * SIZE, SIZE):
            commits.commit(Commit(shard.id, "x", {}, SIZE, 0))
        began = time.perf_counter()
        commits.all()
        return (time.perf_counter() - began) / 500


def simulate(workers, images, per_shard, *, losses=False, listing=LISTING):  # noqa: PLR0915  (one loop)
    """Seconds to the last commit, the driver's busy share, what was done twice."""
    chance = random.Random(0)
    clock = START
    part = PART_SHARDS * SIZE

    coming = [0.0]

    def known():  # a part's shards, once it is listed
        for number, start in enumerate(range(0, images, part)):
            coming[0] = min(images, start + part) / listing
            while coming[0] > clock:
                yield None
            yield from shards_of(number * PART_SHARDS, min(part, images - start), SIZE)

    backlog = Backlog(known(), attempts=3)
    events, order = [], itertools.count()
    free_at = [START] * workers  # when a worker's device is through with what it has
    held = [[] for _ in range(workers)]
    lost_at = [START + chance.expovariate(1 / LOST_AFTER) if losses else float("inf") for _ in range(workers)]
    driver_free = driver_busy = 0.0
    wanting = dict.fromkeys(range(workers))
    done, again, last = 0, 0, 0.0

    def handed_out(wanting):
        nonlocal driver_free, driver_busy
        for _ in range(SHARDS_IN_FLIGHT * len(wanting)):
            if backlog.waits or not wanting:
                break
            worker = next(iter(wanting))
            del wanting[worker]
            if (task := backlog.take(idle=not held[worker])) is None:
                wanting[worker] = None
                continue
            driver_free = max(driver_free, clock) + CALL + per_shard
            driver_busy += CALL + per_shard
            gap = 0 if held[worker] else FETCH
            free_at[worker] = max(free_at[worker], driver_free) + gap + len(task.shard) / RATE
            held[worker].append(task)
            heapq.heappush(events, (free_at[worker], next(order), worker, task))
            if len(held[worker]) < SHARDS_IN_FLIGHT and not task.alone:
                wanting[worker] = None  # every worker gets its first shard before any gets its second
        return wanting

    while backlog or any(held):
        wanting = handed_out(wanting)
        if backlog.waits and wanting and (not events or coming[0] < events[0][0]):
            clock = max(clock, coming[0])  # the listing holds them back
            continue
        at, _, worker, task = heapq.heappop(events)
        clock = max(clock, at)
        if not any(mine is task for mine in held[worker]):
            continue  # it died with its worker
        if at > lost_at[worker]:
            for mine in held[worker]:
                backlog.died(mine, alone=False)
            again += len(held[worker])
            held[worker] = []
            free_at[worker] = clock + BACK
            lost_at[worker] = clock + BACK + chance.expovariate(1 / LOST_AFTER)
            wanting[worker] = None
            continue
        held[worker] = [mine for mine in held[worker] if mine is not task]
        done += len(task.shard)
        last = clock
        wanting[worker] = None
    assert done == images, (done, images)
    return last, driver_busy / last, again


def main():
    per_shard, reading = driver_seconds(), reading_seconds()
    print(
        f"the driver takes {per_shard * 1e6:.0f} µs a shard beside Ray's call, and {reading * 1e3:.2f} ms to read a commit\n"
    )
    print("| images | workers | s | of the ideal | driver busy | listing ends at, s | lost shards | limit |")
    print("|---|---|---|---|---|---|---|---|")
    for images in (1_000_000, 10_000_000, 100_000_000):
        for workers in (1, 8, 64, 512):
            for losses in (False, True) if workers >= 64 else (False,):
                seconds, busy, again = simulate(workers, images, per_shard, losses=losses)
                ideal, listed = images / workers / RATE, images / LISTING
                limit = "work" if ideal / seconds > 0.85 else "listing" if listed > 0.8 * seconds else "start and tail"
                print(
                    f"| {images:,} | {workers} | {seconds:.0f} | {ideal / seconds:.0%} | {busy:.1%} | {listed:.0f} "
                    f"| {again if losses else '–'} | {limit} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
