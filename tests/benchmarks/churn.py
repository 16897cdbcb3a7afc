"""A run of 200 shards while nodes join, receive a preemption notice, leave and are killed.

    PYTHONPATH=tests python tests/benchmarks/churn.py

Uses logical nodes on this machine and a small network with an added sleep. Events happen after given shards, not at
given times. The output is compared with a run in one process. The time until a lost worker is replaced comes from the
run's log.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import ray
from conftest import draw_images, seeded, statistics, tree
from ray.cluster_utils import Cluster
from scaling import logged

from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.network.inference_config import load_weights
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.unet import weights
from maskfleet.unet.inference.segmenter import Segmenter

IMAGES, PER_SHARD, WORKERS = 400, 2, 3


class Sleepy(Segmenter):
    def segment(self, images, size=None, **more):
        time.sleep(0.3 * len(images))
        return super().segment(images, size, **more)


def sleepily(run, cpus):
    segmenter = Sleepy(load_weights(run.job).model, precision="fp32", plain_threads=1)
    return pipeline_around(run, segmenter, 1, encoder=Encoder(default_values(2)))


def job_of(folder: Path, output: str, *sets: str) -> Job:
    table = {"input": str(folder / "in"), "output": str(folder / output), "weights": str(folder / "w.safetensors")}
    return Job.of(table, [f"run.shard_size={PER_SHARD}", "inference.precision=fp32", "cluster.threads=1", *sets])


class Events:
    """Node events, each at a given number of finished shards."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = [self._node() for _ in range(2)]
        self.happened: list[tuple[float, str]] = []
        # One node more than workers, so that replacing a worker never waits for a new node.
        self._plan = [
            (10, "join", self._join), (25, "join", self._join), (40, "kill", self._kill), (50, "join", self._join),
            (65, "notice", self._notice), (75, "join", self._join), (90, "leave", self._leave),
            (105, "join", self._join), (120, "kill", self._kill), (135, "join", self._join),
            (150, "kill", self._kill), (165, "join", self._join),
        ]  # fmt: skip

    def __call__(self, _run, progress) -> None:
        if self._plan and progress.shards >= self._plan[0][0]:
            _, name, happen = self._plan.pop(0)
            self.happened.append((time.time(), name))
            happen()

    def _node(self):
        return self.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=128 * 2**20, wait=False)

    def _join(self) -> None:
        self.nodes.append(self._node())

    def _kill(self) -> None:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def _leave(self) -> None:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=True)

    def _notice(self) -> None:
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        node = self.nodes.pop(0)
        GcsClient(address=self.cluster.address).drain_node(
            node.node_id, reason, "preempted", int((time.time() + 60) * 1000)
        )


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw_images(folder / "in", IMAGES)
        (folder / "w.safetensors").write_bytes(weights.save(seeded(width=4)))
        run(job_of(folder, "reference"))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 128 * 2**20})
        try:
            events = Events(cluster)
            job = job_of(folder, "out", f"cluster.workers={WORKERS}")
            summary = run(job, Fleet(cluster.address, open_pipeline=sleepily), on_progress=events)
        finally:
            ray.shutdown()
            cluster.shutdown()
        lines = logged(folder / "out")
        lost = [line["time"] for line in lines if line["event"] == "worker lost"]
        ready = [line["time"] for line in lines if line["event"] == "worker ready"]
        shards = [path.stem for path in (folder / "out").glob("runs/*/commits/*.json")]
        same = tree(folder / "out/masks") == tree(folder / "reference/masks")
        rows = statistics(folder / "out") == statistics(folder / "reference")
        problems = verify(str(folder / "out")).problems
        record = json.loads(next((folder / "out").glob("runs/*/run.json")).read_text())
        print(f"events: {', '.join(name for _, name in events.happened)}")
        print(f"{summary.ok} of {IMAGES} images ok; {record['shards']} shards, {len(shards)} commits")
        print(f"equal to one process: masks {same}, statistics {rows}; problems: {problems}")
        print(f"{len(lost)} workers lost with {record['attempts_lost']} attempts; {record['seconds']:.0f} s")
        back = [next((at - gone for at in ready if at > gone), None) for gone in lost]
        print(f"seconds from each logged loss to the next ready worker: {[b and round(b, 1) for b in back]}")
        killed = [at for at, name in events.happened if name == "kill"]
        back = [next((at - gone for at in ready if at > gone), None) for gone in killed]
        print(f"seconds from each kill to the next ready worker: {[b and round(b, 1) for b in back]}")
        return 0 if same and rows and not problems and summary.ok == IMAGES else 1


if __name__ == "__main__":
    sys.exit(main())
