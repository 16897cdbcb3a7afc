"""Throughput by number of workers: `python tests/benchmarks/scaling.py --workers 1 2 4 8 16`.

Four logical nodes on this machine and a network that sleeps, leaving the CPU free as a GPU would. This measures
everything around the network, from fetch to commit, and whether the driver keeps all workers busy. Rates come from the
run's log, in the steady state: for each worker, from its first shard to its last.
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
    """Sleeps for a fixed time per image, almost without CPU."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def batch_size(self, height, width):
        return PER_SHARD

    def segment(self, images, size=None, **more):
        time.sleep(self.seconds * len(images))
        return super().segment(images, size, **more)


def sleeping(seconds: float, run, cpus):
    return pipeline_around(run, Sleeping(seconds), cpus, encoder=Encoder(default_values(2)))


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
    """Return images per second in the steady state, its shortest duration in seconds, and the nodes with workers.

    The rate is the sum over workers, each from its first shard to its last. One common window would start and end in
    the middle of shards and lose up to one shard per worker: a tenth if workers run in step.
    """
    times: dict[str, list[tuple[float, int]]] = {}
    for line in lines:
        if line["event"] == "shard done":
            times.setdefault(line["worker"], []).append((line["time"], line["images"]))
    spans = [done[-1][0] - done[0][0] for done in times.values()]
    rate = sum(sum(images for _, images in done[1:]) / span for done, span in zip(times.values(), spans, strict=True))
    return rate, min(spans), {line["node"] for line in lines if line["event"] == "worker ready"}


def memory() -> float:
    """Return the proportional set size (PSS) of this process and all its children in GiB."""
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
    parser.add_argument("--shards", type=int, default=12, help="shards per worker")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds per image")
    given = parser.parse_args()
    print("| workers | nodes | steady state | images/s | share of linear | share of sleep alone | memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    one = None
    with tempfile.TemporaryDirectory() as scratch, nodes(NODES, -(-max(given.workers) // NODES)) as cluster:
        folder = Path(scratch)
        (folder / "w.safetensors").write_bytes(weights.save(UNet(3, 2, width=2)))  # unused, but a job needs weights
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

            def on_progress(_run, progress):
                nonlocal most
                if progress.shards % 16 == 0:
                    most = max(most, memory())

            summary = run(
                job, Fleet(cluster.address, open_pipeline=partial(sleeping, given.sleep)), on_progress=on_progress
            )
            assert (summary.ok, summary.failed) == (len(list(images.iterdir())), 0)
            rate, seconds, places = steady_rate(logged(output))
            one = one or rate / workers
            print(
                f"| {workers} | {len(places)} | {seconds:.0f} s | {rate:.2f} | {rate / (one * workers):.3f} "
                f"| {rate * given.sleep / workers:.3f} | {most:.1f} GiB |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
