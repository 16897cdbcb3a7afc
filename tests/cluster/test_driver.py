"""The driver on a real local Ray: the same bytes as one process, whatever dies."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest
import ray
from conftest import draw_images, statistics, tree
from faults import codecs, killers
from PIL import Image
from ray.exceptions import ActorUnavailableError

from maskfleet.cluster import driver, workers
from maskfleet.cluster.connection import ClusterError
from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.errors import JobError, MaskfleetError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def tests_are_importable_in_workers(monkeypatch):
    here = os.path.dirname(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]))


def job_of(images, output, weights_file, *sets):
    table = {"input": str(images), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=4", "inference.precision=fp32", "cluster.threads=1", *sets])


@pytest.fixture
def reference(images, tmp_path, weights_file):
    run(job_of(images, tmp_path / "reference", weights_file))
    return tmp_path / "reference"


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_writes_what_one_process_writes(workers, images, tmp_path, weights_file):
    threads = "cluster.threads=auto"  # as users have it; tiny networks on busy cores are slow with it
    reference = tmp_path / "reference"
    alone = run(job_of(images, reference, weights_file, threads))
    report = run(job_of(images, tmp_path / "out", weights_file, threads, f"cluster.workers={workers}"), Fleet())
    assert (report.exit_code, report.ok) == (0, 24)
    assert list(alone.start_seconds) == ["plan", "worker", "shard"]
    assert list(report.start_seconds) == ["plan", "ray", "worker", "shard"]
    assert min(report.start_seconds.values()) > 0
    assert tree(tmp_path / "out/masks") == tree(reference / "masks")
    assert statistics(tmp_path / "out") == statistics(reference)
    assert verify(str(tmp_path / "out")).problems == []


def mark(images, kind, name="part-0/killer.png"):
    Image.fromarray(codecs.marked(kind)).save(images / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pipeline", "stage", "error_class"),
    [
        (killers.KILL, killers.with_killer_segmenter, "worker", "crash"),
        (killers.RAISE, killers.with_killer_segmenter, "worker", "crash"),
        (codecs.CRASH, killers.with_killer_decoder, "decode", "crash"),
    ],
)
def test_a_killer_image_costs_itself_alone(
    kind, pipeline, stage, error_class, images, tmp_path, weights_file, reference
):
    mark(images, kind)
    job = job_of(
        images, tmp_path / "out", weights_file, "run.attempts=2", "run.max_error_rate=0.1", "cluster.workers=1"
    )
    report = run(job, Fleet(open_pipeline=pipeline))
    assert (report.exit_code, report.ok, report.failed) == (0, 24, 1)
    rows = {row["key"]: row for row in statistics(tmp_path / "out")}
    killer = rows.pop("part-0/killer.png")
    assert (killer["status"], killer["stage"], killer["error_class"]) == ("failed", stage, error_class)
    assert "inspect this file" in killer["error_message"]
    expected = {row["key"]: row for row in statistics(reference)}
    for row in (*rows.values(), *expected.values()):
        row.pop("fingerprint")
    assert rows == expected
    assert tree(tmp_path / "out/masks") == tree(reference / "masks")
    assert verify(str(tmp_path / "out")).problems == []


def workers_of_this_process():
    """Actor processes, which Ray titles with the name of their class, below this process's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_workers_and_decoders_that_are_killed_cost_nothing(tmp_path, weights_file):
    images = draw_images(tmp_path / "images", 60)
    run(job_of(images, tmp_path / "reference", weights_file))
    done, killed = threading.Event(), []

    def kill():
        while not done.wait(0.7) and len(killed) < 4:
            for worker in workers_of_this_process()[:1]:
                with suppress(psutil.Error, ProcessLookupError):  # it was just starting, or just ending
                    children = [
                        child
                        for child in worker.children()
                        if "maskfleet.jobs.images.decoder" in " ".join(child.cmdline())
                    ]
                    victim = children[0] if children and len(killed) % 2 else worker
                    os.kill(victim.pid, signal.SIGKILL)
                    killed.append((victim.pid, "decoder" if victim is not worker else "worker"))

    killer = threading.Thread(target=kill)

    def start_killing(_, progress):
        if progress.shards and not killer.is_alive() and not killed:
            killer.start()

    job = job_of(images, tmp_path / "out", weights_file, "cluster.workers=2", "run.attempts=5")
    report = run(job, Fleet(open_pipeline=killers.slowly), on_progress=start_killing)
    done.set()
    killer.join()
    assert {kind for _, kind in killed} >= {"worker"}, killed
    assert (report.ok, report.failed) == (60, 0)
    assert report.attempts_lost >= 1
    assert tree(tmp_path / "out/masks") == tree(tmp_path / "reference/masks")
    assert statistics(tmp_path / "out") == statistics(tmp_path / "reference")
    assert verify(str(tmp_path / "out")).problems == []


def unavailable(attempts, times, *, heartbeats=False):
    """Replace `ray.get`: the answers to the first shards are lost with the connection.

    With `heartbeats`, the workers of these shards stay unreachable.
    """
    get, lost = ray.get, []

    def get_or_fail(call, *more, **named):
        for worker in (worker for attempt in attempts for worker in attempt._workers):
            if call in worker.tasks and len(lost) < times:
                lost.append(worker)
                raise ActorUnavailableError("the connection is broken", None)
            if heartbeats and worker in lost and worker.heartbeat is not None and call == worker.heartbeat:
                raise ActorUnavailableError("the connection is broken", None)
        return get(call, *more, **named)

    return get_or_fail


def noting_attempts(monkeypatch) -> list:
    """Return a list that receives the attempts of each fleet made from now on."""
    made = []
    init = driver.FleetAttempts.__init__

    def noted(self, *arguments, **named):
        made.append(self)
        init(self, *arguments, **named)

    monkeypatch.setattr(driver.FleetAttempts, "__init__", noted)
    return made


@pytest.mark.slow
def test_finding_20_a_blip_that_hits_eight_shards_early_is_nobodys_guilt(
    images, tmp_path, weights_file, reference, monkeypatch
):
    made = noting_attempts(monkeypatch)
    monkeypatch.setattr(driver.ray, "get", unavailable(made, 8))
    job = job_of(images, tmp_path / "out", weights_file, "run.shard_size=2", "run.attempts=1", "cluster.workers=2")
    report = run(job, Fleet())
    assert (report.exit_code, report.ok, report.attempts_lost) == (0, 24, 0)
    assert not list(tmp_path.glob("out/runs/*/commits/*.[01].json")), "no shard was split"
    assert tree(tmp_path / "out/masks") == tree(reference / "masks")
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.slow
def test_a_worker_that_stays_unreachable_is_replaced(images, tmp_path, weights_file, reference, monkeypatch):
    made = noting_attempts(monkeypatch)
    monkeypatch.setattr(driver.ray, "get", unavailable(made, 1, heartbeats=True))
    monkeypatch.setattr(workers, "_UNREACHABLE_SECONDS", 0.5)
    report = run(job_of(images, tmp_path / "out", weights_file, "cluster.workers=1"), Fleet())
    assert (report.exit_code, report.ok, report.attempts_lost) == (0, 24, 1)
    assert tree(tmp_path / "out/masks") == tree(reference / "masks")


@pytest.mark.slow
def test_a_stopped_run_ends_what_is_in_work_and_goes_on_later(images, tmp_path, weights_file, reference):
    job = job_of(images, tmp_path / "out", weights_file, "cluster.workers=1")
    asked = threading.Event()
    with pytest.raises(Stopped):
        run(
            job,
            Fleet(open_pipeline=killers.slowly),
            on_progress=lambda _, progress: asked.set() if progress.shards else None,
            stopped=asked.is_set,
        )
    done = len(list((tmp_path / "out").glob("runs/*/commits/*.json")))
    assert 0 < done < 6
    report = run(job, Fleet())
    assert report.resumed
    assert tree(tmp_path / "out/masks") == tree(reference / "masks")


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(images, tmp_path, weights_file):
    with pytest.raises(JobError, match="device cuda is not available"):
        run(
            job_of(images, tmp_path / "out", weights_file, "inference.device=cuda", "cluster.gpus_per_worker=0"),
            Fleet(),
        )


@pytest.mark.slow
def test_workers_that_ray_ends_for_want_of_memory_are_lost_workers(images, tmp_path, weights_file, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    with pytest.raises(ClusterError, match="memory"):
        run(job_of(images, tmp_path / "out", weights_file), Fleet())


def test_a_cluster_that_is_not_there_is_named(images, tmp_path, weights_file):
    started = time.monotonic()
    with pytest.raises(MaskfleetError, match="no Ray at 127.0.0.1:9: .* check --address"):
        run(job_of(images, tmp_path / "out", weights_file), Fleet("127.0.0.1:9"))
    assert time.monotonic() - started < 120


def test_nothing_to_do_starts_no_ray(images, tmp_path, weights_file, reference):
    report = run(job_of(images, reference, weights_file), Fleet("127.0.0.1:9"))
    assert report.images == 0
