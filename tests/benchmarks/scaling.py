"""How throughput grows with workers: `python tests/benchmarks/scaling.py --workers 1 2 4 8 16`.

Four logical nodes on this machine, and a network that sleeps, as a GPU would leave the CPU alone. So what is measured
is everything around the network, fetching to commit, and the driver that hands out: whether it keeps so many workers
busy. By the run's own log, in the steady state: of each worker from its first shard to its last.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import psutil
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.jobs.tools.identity import Identity
from maskfleet.unet import weights
from maskfleet.unet.model import UNet

NODES = 4
PER_SHARD = 4


class Sleeping(Identity):
    """So many seconds an image, of which the CPU has next to none."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def batch_size(self, height, width):
        return PER_SHARD

    def segment(self, images, size=None):
        time.sleep(self.seconds * len(images))
        return super().segment(images, size)


def sleeping(seconds: float, this, cpus):
    return pipeline_around(this, Sleeping(seconds), cpus, encoder=Encoder(default_values(2)))


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number:05}.png")
    return folder


@contextmanager
def nodes(count: int, cpus: int) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 128 * 2**20})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=cpus, object_store_memory=128 * 2**20)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def logged(output: Path) -> list[dict]:
    lines = [line for path in sorted(output.glob("runs/*/logs/*.jsonl")) for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    return [{**line, "time": datetime.fromisoformat(line["time"]).timestamp()} for line in found]


def steady_rate(lines: list[dict]) -> tuple[float, float, set[str]]:
    """Images per second in the steady state, how long that was at least, and the nodes that worked.

    The sum of the workers' own rates, each from its first shard to its last. One window for all would begin and end in
    the middle of some workers' shards, and so lose up to one of each: a tenth, where workers keep step.
    """
    times: dict[str, list[tuple[float, int]]] = {}
    for line in lines:
        if line["event"] == "shard done":
            times.setdefault(line["worker"], []).append((line["time"], line["images"]))
    spans = [done[-1][0] - done[0][0] for done in times.values()]
    rate = sum(sum(images for _, images in done[1:]) / span for done, span in zip(times.values(), spans, strict=True))
    return rate, min(spans), {line["node"] for line in lines if line["event"] == "worker ready"}


def memory() -> float:
    """GiB of this process and all its children, PSS."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--shards", type=int, default=12, help="of each worker")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds of each image")
    given = parser.parse_args()
    print("| workers | nodes | steady state | images/s | of linear | of the sleep alone | memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    one = None
    with tempfile.TemporaryDirectory() as scratch, nodes(NODES, -(-max(given.workers) // NODES)) as cluster:
        folder = Path(scratch)
        (folder / "w.safetensors").write_bytes(weights.save(UNet(3, 2, width=2)))  # not used, but a job has some
        for workers in given.workers:
            images = draw(folder / f"in-{workers}", workers * given.shards * PER_SHARD)
            output = folder / f"out-{workers}"
            job = Job.of(
                {"input": str(images), "output": str(output), "weights": str(folder / "w.safetensors")},
                [
                    f"run.shard_size={PER_SHARD}", "inference.precision=fp32", "cluster.threads=1", "masks.format=tar",
                    f"cluster.workers={workers}", "cluster.cpus_per_worker=1", "cluster.decoders=1",
                ],
            )  # fmt: skip
            most = 0.0

            def look(_run, tally):
                nonlocal most
                if tally.shards % 16 == 0:
                    most = max(most, memory())

            report = run(job, Fleet(cluster.address, open_pipeline=partial(sleeping, given.sleep)), on_progress=look)
            assert (report.ok, report.failed) == (len(list(images.iterdir())), 0)
            rate, seconds, places = steady_rate(logged(output))
            one = one or rate / workers
            print(
                f"| {workers} | {len(places)} | {seconds:.0f} s | {rate:.2f} | {rate / (one * workers):.3f} "
                f"| {rate * given.sleep / workers:.3f} | {most:.1f} GiB |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
