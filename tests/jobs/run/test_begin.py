"""The beginning of a run beside crashes, other jobs and odd clocks."""

import threading
from datetime import UTC, datetime

import pytest
from conftest import statistics

from maskfleet.jobs.errors import JobError, Locked
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run import begin
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


def job_of(images, output, weights_file, *sets):
    table = {"input": str(images), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=5", "cluster.threads=1", *sets])


def test_a_run_killed_between_its_tombstones_and_its_plan_is_no_run(images, tmp_path, weights_file, monkeypatch):
    """Only the first part of a plan, or its end, proves that a run has begun."""
    run(job_of(images, tmp_path / "out", weights_file))
    for path in list(images.rglob("*.jpg")):
        path.unlink()
    write = LocalStorage.write

    def killed(self, path, data):
        if "/manifest/part-" in path:
            raise KeyboardInterrupt
        write(self, path, data)

    (images / "new.png").write_bytes(next(images.rglob("*.png")).read_bytes())
    monkeypatch.setattr(LocalStorage, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(job_of(images, tmp_path / "out", weights_file))
    monkeypatch.undo()
    assert list(tmp_path.glob("out/runs/*/manifest/gone-*")), "the run left no tombstones; the test shows nothing"
    summary = run(job_of(images, tmp_path / "out", weights_file))
    assert (summary.images, summary.resumed, summary.gone) == (1, False, 6)
    assert verify(str(tmp_path / "out")).problems == []


def test_a_job_that_waits_for_another_plans_again(images, tmp_path, weights_file, monkeypatch):
    """Its plan may have been made while the other run had begun, but had not finished."""
    first = job_of(images, tmp_path / "out", weights_file, "name=first")
    second = job_of(images, tmp_path / "out", weights_file, "name=second", "run.on_overlap=wait")
    planned, start_plan = threading.Event(), begin.start_plan
    found = []

    def watched(job, fingerprint):
        plan = start_plan(job, fingerprint)
        if job.name == "second":
            planned.set()
        return plan

    waiting = threading.Thread(target=lambda: found.append(run(second)))

    def start_second(_, progress):
        if waiting.ident is None:  # before the first commit
            monkeypatch.setattr(begin, "start_plan", watched)
            waiting.start()
            assert planned.wait(60)

    run(first, on_progress=start_second)
    waiting.join()
    assert found[0].images == 0
    assert len(statistics(tmp_path / "out")) == 24
    assert verify(str(tmp_path / "out")).problems == []


def test_run_ids_grow_even_if_the_clock_is_set_back(images, tmp_path, weights_file, monkeypatch):
    class Yesterday(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime(2020, 1, 1, tzinfo=UTC)

    first = run(job_of(images, tmp_path / "out", weights_file))
    (images / "new.png").write_bytes(next(images.rglob("*.png")).read_bytes())
    monkeypatch.setattr(begin, "datetime", Yesterday)
    second = run(job_of(images, tmp_path / "out", weights_file))
    assert second.run_id > first.run_id
    third = run(job_of(images, tmp_path / "out", weights_file))
    assert (second.images, third.images) == (1, 0)
    assert third.run_id > second.run_id


def test_a_superseded_driver_leaves_no_run_behind(images, tmp_path, weights_file, monkeypatch):
    """Stopped between the lock and its description, a driver must not add the newest run of the output afterwards."""
    new_run = begin._new_run

    def taken_over(storage, *arguments, **keywords):
        storage.write("lock/000009.json", b"{}")
        return new_run(storage, *arguments, **keywords)

    monkeypatch.setattr(begin, "_new_run", taken_over)
    with pytest.raises(Locked):
        run(job_of(images, tmp_path / "out", weights_file))
    assert not list(tmp_path.glob("out/runs/*/job.json"))


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "is a file, not a folder; move it"), ("file/x/y", "is a file, not a folder; move it")],
)
def test_an_output_that_is_not_writable_is_found_without_writing(place, message, tmp_path):
    (tmp_path / "file").touch()
    job = Job.of({"input": str(tmp_path), "output": str(tmp_path / place), "weights": "nuclei"})
    with pytest.raises(JobError, match=message):
        begin.check_output(job)
    begin.check_output(job.model_copy(update={"output": str(tmp_path / "new/out")}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
