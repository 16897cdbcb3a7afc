"""The driver on several nodes with logical GPUs, which come, go, give notice, and hang."""

import json
import os
import signal
import time
from contextlib import contextmanager
from functools import partial

import psutil
import pytest
import ray
from conftest import draw_images, statistics, tree
from faults import killers

from maskfleet.cluster import driver, workers
from maskfleet.cluster.breaker import JobBreaker, NodeBreaker
from maskfleet.cluster.connection import ClusterError
from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True)
def tests_are_importable_in_workers(monkeypatch):
    here = os.path.dirname(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]))


@contextmanager
def cluster_of(nodes):
    """A cluster whose head takes no work, as the generated ones have it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 128 * 2**20})
    try:
        yield cluster, [add_node(cluster) for _ in range(nodes)]
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster, gpus=1, cpus=1):
    return cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=128 * 2**20, wait=False)


def job_of(images, output, weights_file, *sets):
    table = {"input": str(images), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=2", "inference.precision=fp32", "cluster.threads=1", *sets])


def give_notice(cluster, node):
    """What `ray start` says when its machine is about to be taken away."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node.node_id, reason, "to be taken away", int((time.time() + 60) * 1000)
    )
    assert accepted, why


def logged(output, event):
    """The lines of the run's own log that tell of an event."""
    text = "".join(path.read_text() for path in output.glob("runs/*/logs/*.jsonl"))
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def busy(progress, nodes):
    """The node of the worker that was heard last."""
    worker = max(progress.serving, key=lambda name: progress.serving[name][1])
    raylet = psutil.Process(int(worker.rpartition(":")[2])).ppid()
    (node,) = [node for node in nodes if raylet == node.all_processes["raylet"][0].process.pid]
    return node


def test_nodes_come_and_go_give_notice_and_are_killed(tmp_path, weights_file):
    images = draw_images(tmp_path / "images", 200)
    one_each = "run.shard_size=1"
    run(job_of(images, tmp_path / "reference", weights_file, one_each))
    with cluster_of(1) as (cluster, nodes):
        noticed = nodes[0].node_id

        def join(_, count=1):
            nodes.extend(add_node(cluster) for _ in range(count))

        def notice(_):
            give_notice(cluster, nodes.pop(0))

        def kill(progress, *, gracefully=False):
            node = busy(progress, nodes)
            nodes.remove(node)
            cluster.remove_node(node, allow_graceful=gracefully)

        events = [
            (3, partial(join, count=2)), (25, notice), (60, kill), (80, join), (110, kill), (130, join),
            (160, partial(kill, gracefully=True)),
        ]  # fmt: skip

        def happen(_, progress):
            if events and progress.shards >= events[0][0]:
                events.pop(0)[1](progress)

        job = job_of(images, tmp_path / "out", weights_file, "cluster.workers=3", one_each)
        report = run(job, Fleet(cluster.address, open_pipeline=killers.slowly), on_progress=happen)
        ray.init(cluster.address, log_to_driver=False)
        assert noticed not in {
            actor["Address"]["NodeID"] for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"
        }
    assert not events
    assert (report.ok, report.failed, report.shards) == (200, 0, 200)
    assert len(list((tmp_path / "out").glob("runs/*/commits/*.json"))) == 200
    # One that never got ready had nothing to lose: Ray may send it to a node that is just dying.
    lost = [line for line in logged(tmp_path / "out", "worker lost") if line["node"] and not line["preempted"]]
    assert len(lost) == report.attempts_lost >= 2
    assert noticed not in {line["node"] for line in lost}, "a notice costs no attempt"
    assert tree(tmp_path / "out/masks") == tree(tmp_path / "reference/masks")
    rows = statistics(tmp_path / "out")
    assert rows == statistics(tmp_path / "reference")
    assert verify(str(tmp_path / "out")).problems == []


def test_few_workers_are_spread_over_the_nodes_that_are_trusted(tmp_path, weights_file, monkeypatch):
    images = draw_images(tmp_path / "images", 16)
    with cluster_of(0) as (cluster, _):
        nodes = {add_node(cluster, gpus=4, cpus=4).node_id for _ in range(3)}
        bad = min(nodes)

        def ready(output):
            job = job_of(images, tmp_path / output, weights_file, "cluster.workers=2", "cluster.gpus_per_worker=0.5")
            run(job, Fleet(cluster.address, open_pipeline=killers.in_company))
            return [line["node"] for line in logged(tmp_path / output, "worker ready")]

        first = ready("out")
        assert len(set(first)) == len(first) == 2
        monkeypatch.setattr(NodeBreaker, "avoided", lambda *_: {bad})
        assert set(ready("again")) == nodes - {bad}


def test_a_worker_that_hangs_is_ended_and_its_shards_are_done_elsewhere(tmp_path, weights_file, monkeypatch):
    images = draw_images(tmp_path / "images", 24)
    monkeypatch.setattr(workers, "_HEARTBEAT_SECONDS", 0.5)
    hung = []

    def hang(_, progress):
        found = [process for process in psutil.process_iter(["cmdline"]) if ours(process)]
        if progress.shards and not hung and found:
            hung.append(found[0])
            found[0].send_signal(signal.SIGSTOP)

    def ours(process):
        return (process.info["cmdline"] or [""])[0].startswith("ray::Worker") and here in process.parents()

    here = psutil.Process()
    with cluster_of(1) as (cluster, _):
        job = job_of(images, tmp_path / "out", weights_file, "cluster.stall_seconds=6")
        report = run(job, Fleet(cluster.address, open_pipeline=killers.slowly), on_progress=hang)
    assert hung
    assert (report.ok, report.attempts_lost) == (24, 1)
    assert verify(str(tmp_path / "out")).problems == []


def test_a_job_whose_shards_all_fail_ends_early_and_says_so(tmp_path, weights_file, monkeypatch):
    images = draw_images(tmp_path / "images", 60)
    monkeypatch.setattr(driver, "JobBreaker", lambda: JobBreaker(shards=3))
    with cluster_of(1) as (cluster, _), pytest.raises(ClusterError, match="most shards crash their workers .*no luck"):
        run(job_of(images, tmp_path / "out", weights_file), Fleet(cluster.address, open_pipeline=killers.unlucky))
