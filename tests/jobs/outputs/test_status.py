import pytest
from conftest import draw_images, once_committed

from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.runs import log, runs
from maskfleet.jobs.outputs.status import newest_job, status
from maskfleet.jobs.run.execute import run


def test_the_progress_of_a_run_is_read_from_its_output(tmp_path, weights_file):
    out = tmp_path / "out"
    table = {"input": str(draw_images(tmp_path / "in", 6)), "output": str(out), "weights": weights_file, "name": "six"}
    job = Job.of(table, ["run.shard_size=1", "cluster.threads=1"])
    with pytest.raises(Stopped):
        run(job, stopped=once_committed(out, 2))
    found = status(str(out))
    assert (found.state, found.images, found.failed) == ("unfinished", 6, 0)
    assert 2 <= found.done < 6
    assert (found.ok, found.shards_left) == (found.done, 6 - found.done)
    (entry,) = runs(str(out))
    assert (entry.id, entry.name, entry.state, entry.exit_code) == (found.run_id, "six", "unfinished", None)
    run(job)
    found = status(str(out))
    assert (found.state, found.done, found.shards_left) == ("complete", 6, 0)
    assert found.totals == {"ok": 6}
    run(job)
    found = status(str(out))
    assert (found.images, found.totals) == (0, {"ok": 6})
    _, entry = runs(str(out))
    assert (entry.state, entry.exit_code, entry.images, entry.failed) == ("complete", 0, 6, 0)
    assert newest_job(str(out))["name"] == "six"


def test_an_output_without_a_run_has_no_status(tmp_path):
    for question in (status, newest_job):
        with pytest.raises(JobError, match="there is no run in .*; correct the path"):
            question(str(tmp_path))
    assert runs(str(tmp_path)) == []
    with pytest.raises(JobError, match="no run in .* has a log"):
        log(str(tmp_path))
