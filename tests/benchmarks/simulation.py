"""How far one driver scales: `python tests/benchmarks/simulation.py`.

The real backlog hands real shards to simulated workers on a simulated clock: up to 512 workers and 100 million images.
The driver's cost per shard is measured first, with the same calls and commits on local disk. Everything not measurable
on this machine is one of the named assumptions below.
"""

import argparse
import heapq
import itertools
import random
import tempfile
import time
from dataclasses import dataclass

from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.manifest import PART_SHARDS, shards_of
from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.run.backlog import Backlog
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.storage.local import LocalStorage

RATE = 1250.0  # images/s per worker: 512×512 px on one H200, predicted, not measured
LISTING = 40_000.0  # keys/s: eight concurrent requests of 1,000 keys at 200 ms each
START = 20.0  # s from the command to a worker's first shard
CALL = 0.0005  # s of the driver per Ray call and reply, a measured round trip
FETCH = 0.3  # s per shard not overlapped by any pipeline: the first fetch and the commit
LOST_AFTER = 6 * 3600.0  # s between losses of a worker on spot machines
BACK = 60.0  # s until a lost worker is replaced
SIZE = 512


def report_of(shard):
    commit = Commit(shard.id, "x", {}, SIZE, 0)
    return ShardReport(shard=shard, commit=commit, committed=True, seconds=1.0, busy={"segment": 0.4})


def driver_seconds():
    """Measure the CPU time of the driver per shard, without Ray, in seconds."""
    count = 20_000
    backlog, progress = Backlog(shards_of(0, count * SIZE, SIZE), attempts=3), Progress()
    began = time.process_time()
    while task := backlog.take(idle=True):
        progress.add(report_of(task.shard))
    return (time.process_time() - began) / count


def reading_seconds():
    """Measure the time to read one commit, in seconds; a resumed run reads every commit."""
    with tempfile.TemporaryDirectory() as folder:
        commits = Commits(LocalStorage(folder), "r", "worker")
        for shard in shards_of(0, 500 * SIZE, SIZE):
            commits.commit(Commit(shard.id, "x", {}, SIZE, 0))
        began = time.perf_counter()
        commits.all()
        return (time.perf_counter() - began) / 500


@dataclass(frozen=True)
class Result:
    """A simulated run.

    Attributes:
        seconds: Time from the command to the last commit.
        driver_share: Busy share of the driver.
        repeated: Shards lost with their worker and processed again.
    """

    seconds: float
    driver_share: float
    repeated: int


class Simulation:
    """One run on a simulated clock.

    Args:
        workers: Number of workers.
        images: Number of images.
        per_shard: CPU seconds of the driver per shard.
        losses: Whether workers are lost at random.
    """

    def __init__(self, workers, images, per_shard, *, losses=False):
        self.images, self.per_shard, self.losses = images, per_shard, losses
        self.random = random.Random(0)
        self.clock = START
        self.listed_at = 0.0  # when the part being waited for is listed
        self.backlog = Backlog(self._listed_shards(), attempts=3)
        self.events, self.order = [], itertools.count()
        self.free_at = [START] * workers  # when a worker has finished its shards
        self.held = [[] for _ in range(workers)]
        self.lost_at = [START + self._until_loss() for _ in range(workers)]
        self.driver_free = self.driver_busy = 0.0
        self.wanting = dict.fromkeys(range(workers))
        self.done, self.repeated, self.last = 0, 0, 0.0

    def _until_loss(self):
        return self.random.expovariate(1 / LOST_AFTER) if self.losses else float("inf")

    def _listed_shards(self):
        """Yield the shards of each part once it is listed; None before."""
        part = PART_SHARDS * SIZE
        for number, start in enumerate(range(0, self.images, part)):
            self.listed_at = min(self.images, start + part) / LISTING
            while self.listed_at > self.clock:
                yield None
            yield from shards_of(number * PART_SHARDS, min(part, self.images - start), SIZE)

    def _hand_out(self):
        for _ in range(SHARDS_IN_FLIGHT * len(self.wanting)):
            if self.backlog.waits or not self.wanting:
                break
            worker = next(iter(self.wanting))
            del self.wanting[worker]
            if (task := self.backlog.take(idle=not self.held[worker])) is None:
                self.wanting[worker] = None
                continue
            self.driver_free = max(self.driver_free, self.clock) + CALL + self.per_shard
            self.driver_busy += CALL + self.per_shard
            gap = 0 if self.held[worker] else FETCH
            start = max(self.free_at[worker], self.driver_free)
            self.free_at[worker] = start + gap + len(task.shard) / RATE
            self.held[worker].append(task)
            heapq.heappush(self.events, (self.free_at[worker], next(self.order), worker, task))
            if len(self.held[worker]) < SHARDS_IN_FLIGHT and not task.alone:
                self.wanting[worker] = None  # every worker gets its first shard before any gets its second

    def _end(self, worker, task):
        self.held[worker] = [mine for mine in self.held[worker] if mine is not task]
        self.done += len(task.shard)
        self.last = self.clock

    def _lose(self, worker):
        for mine in self.held[worker]:
            self.backlog.died(mine, alone=False)
        self.repeated += len(self.held[worker])
        self.held[worker] = []
        self.free_at[worker] = self.clock + BACK
        self.lost_at[worker] = self.clock + BACK + self._until_loss()

    def run(self):
        """Run to the last commit."""
        while self.backlog or any(self.held):
            self._hand_out()
            next_event = self.events[0][0] if self.events else float("inf")
            if self.backlog.waits and self.wanting and self.listed_at < next_event:
                self.clock = max(self.clock, self.listed_at)  # workers wait for the listing
                continue
            at, _, worker, task = heapq.heappop(self.events)
            self.clock = max(self.clock, at)
            if not any(mine is task for mine in self.held[worker]):
                continue  # lost with its worker
            if at > self.lost_at[worker]:
                self._lose(worker)
            else:
                self._end(worker, task)
            self.wanting[worker] = None
        assert self.done == self.images, (self.done, self.images)
        return Result(self.last, self.driver_busy / self.last, self.repeated)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    given = parser.parse_args()
    per_shard, reading = driver_seconds(), reading_seconds()
    print(f"driver: {per_shard * 1e6:.0f} µs per shard without Ray; {reading * 1e3:.2f} ms to read a commit\n")
    print("| images | workers | s | of ideal | driver busy | listed after, s | repeated shards | limit |")
    print("|---|---|---|---|---|---|---|---|")
    for images in given.images:
        for workers in given.workers:
            for losses in (False, True) if workers >= 64 else (False,):
                result = Simulation(workers, images, per_shard, losses=losses).run()
                ideal, listed = images / workers / RATE, images / LISTING
                share = ideal / result.seconds
                limit = "listing" if listed > 0.8 * result.seconds else "start and tail"
                print(
                    f"| {images:,} | {workers} | {result.seconds:.0f} | {share:.0%} | {result.driver_share:.1%} "
                    f"| {listed:.0f} | {result.repeated if losses else '–'} | {'work' if share > 0.85 else limit} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
