"""Faults of workers, nodes and the network between them, on a real Ray: F1, F2, F21."""

import json
import os
import signal
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import ray
from conftest import draw_images, seeded, statistics, tree
from faults import killers
from faults.figures.figure import Figure, figure

from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.gc import collect
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights

TESTS = Path(__file__).resolve().parents[2]


@contextmanager
def _job(images: int, *sets: str):
    """Yield a function that makes jobs by the name of their output, and the folder."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), path])
    try:
        with tempfile.TemporaryDirectory(prefix="maskfleet-faults-") as root:
            folder = Path(root)
            draw_images(folder / "in", images)
            (folder / "w.safetensors").write_bytes(weights.save(seeded(width=2)))
            fixed = ["inference.precision=fp32", "cluster.threads=1", "run.attempts=20", *sets]

            def job(output: str) -> Job:
                table = {"input": f"{root}/in", "output": f"{root}/{output}", "weights": f"{root}/w.safetensors"}
                return Job.of(table, fixed)

            yield job, folder
    finally:
        os.environ["PYTHONPATH"] = path


def _judge(result: Figure, folder: Path, report) -> None:
    result.problems += verify(str(folder / "out")).problems
    one, other = statistics(folder / "out"), statistics(folder / "reference")
    keys = [row["key"] for row in one]
    result.lost += len({row["key"] for row in other} - set(keys))
    result.doubled += len(keys) - len(set(keys))
    if one != other:
        result.problems.append(f"{len(one)} rows differ from the {len(other)} of a run without faults")
    if tree(folder / "out/masks") != tree(folder / "reference/masks"):
        result.problems.append("the masks differ from those of a run without faults")
    if report.failed:
        result.problems.append(f"{report.failed} images failed: {report.errors}")


def _events(folder: Path) -> list[dict]:
    text = "".join(path.read_text() for path in sorted(folder.glob("out/runs/*/logs/*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def worker_kills(kills: int = 100, shards: int = 200) -> Figure:
    """F1: workers are killed, one for every two finished shards."""
    size = 2
    with figure("F1", f"worker killed (SIGKILL) amid {shards} shards") as result:
        with _job(size * shards, f"run.shard_size={size}", "cluster.workers=2") as (job, folder):
            run(job("reference"))
            killed: set[str] = set()

            def kill(_, progress):
                alive = {name: last for name, (_, last) in progress.serving.items() if name not in killed}
                if len(killed) < kills and alive and progress.shards >= len(killed) * shards / kills:
                    victim = max(alive, key=alive.get)
                    killed.add(victim)
                    try:
                        os.kill(int(victim.rpartition(":")[2]), signal.SIGKILL)
                    except ProcessLookupError:
                        return
                    result.times += 1

            report = run(job("out"), Fleet(open_pipeline=killers.slowly), on_progress=kill)
            _judge(result, folder, report)
            lost = [line for line in _events(folder) if line["event"] == "worker lost"]
            again = sum(len(line["shards"]) for line in lost)
            result.repeated = f"{again} attempts, {again / max(1, len(lost)):.1f} shards a kill"
            result.recover = _until_ready(_events(folder))
    return result


def _until_ready(events: list[dict]) -> float | None:
    """Return the mean of the seconds from each loss of a worker to the next ready one."""
    waits, lost = [], None
    for line in events:
        now = datetime.fromisoformat(line["time"])
        if line["event"] == "worker lost":
            lost = lost or now
        if line["event"] == "worker ready" and lost:
            waits.append((now - lost).total_seconds())
            lost = None
    return round(sum(waits) / len(waits), 2) if waits else None


def frozen_node(*, quick: bool = False) -> Figure:
    """F2: a node stops answering, is given up and replaced; it wakes up after the run, and its worker finishes."""
    from ray.cluster_utils import Cluster

    checks = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "object_store_memory": 128 * 2**20} | ({"_system_config": checks} if quick else {})
    with figure("F2", "node frozen (SIGSTOP), replaced, woken") as result:
        with _job(24, "run.shard_size=4", "cluster.workers=2") as (job, folder):
            run(job("reference"))
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                for _ in range(2):
                    cluster.add_node(num_cpus=1, object_store_memory=128 * 2**20, wait=False)
                frozen: list[psutil.Process] = []

                def freeze(_, progress):
                    if progress.shards and not frozen:
                        raylet = psutil.Process(int(max(progress.serving).rpartition(":")[2])).parent()
                        frozen.extend([raylet, *raylet.children(recursive=True)])
                        for process in frozen:
                            process.suspend()
                        result.times += 1

                report = run(job("out"), Fleet(cluster.address, open_pipeline=killers.slowly), on_progress=freeze)
                before = _attempts(folder)
                _wake(frozen)
                woke = _wait_for(lambda: _attempts(folder) != before, 30)
                result.notes.append(f"the zombie {'wrote files' if woke else 'wrote nothing'} after it woke up")
                time.sleep(3)
            finally:
                _wake(frozen)
                ray.shutdown()
                cluster.shutdown()
            _judge(result, folder, report)
            events = _events(folder)
            result.recover = _until_ready(events)
            result.repeated = f"{sum(len(line['shards']) for line in events if line['event'] == 'worker lost')} shards"
            garbage = collect(str(folder / "out"), grace=0, delete=True)
            left = collect(str(folder / "out"), grace=0)
            result.notes.append(f"gc removed {len(garbage.paths)} files of it, {len(left.paths)} remain")
            _judge(result, folder, report)
    return result


def _attempts(folder: Path) -> set[str]:
    return {str(path) for path in folder.glob("out/runs/*/shards/*/*")}


def _wake(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.resume()
        except psutil.NoSuchProcess:
            continue


def _wait_for(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


_CALLS = ("CoreWorkerService.grpc_client.PushTask", "CoreWorkerService.grpc_client.KillActor",
          "ray::rpc::ActorInfoGcsService.grpc_client.GetActorInfo", "NodeManagerService.grpc_client.RequestWorkerLease")  # fmt: skip


def ray_calls(failures: int = 20) -> Figure:
    """F21: Ray's own calls fail before, while and after they are served, by Ray's means for tests."""
    chance = {"num_failures": failures, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5}
    with figure("F21", "Ray's own calls fail (RAY_testing_rpc_failure)") as result:
        with _job(60, "run.shard_size=2", "cluster.workers=2") as (job, folder):
            run(job("reference"))
            os.environ["RAY_testing_rpc_failure"] = json.dumps(dict.fromkeys(_CALLS, chance))
            try:
                report = run(job("out"), Fleet(open_pipeline=killers.slowly))
            finally:
                del os.environ["RAY_testing_rpc_failure"]
            _judge(result, folder, report)
            lost = [line for line in _events(folder) if line["event"] == "worker lost"]
            result.times = failures
            result.notes.append(f"at most {failures} failures of each of {len(_CALLS)} calls, {len(lost)} workers lost")
            result.repeated = f"{sum(len(line['shards']) for line in lost)} shards"
    return result
