"""A mask that cannot be exported costs itself: the run ends, says so, and later nights try again."""

import json

import pytest
from conftest import draw_images, jpeg, tree

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


def job_of(images, output, weights_file, *sets):
    table = {"input": str(images), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=4", "cluster.threads=1", *sets])


def test_finding_2_an_export_that_cannot_be_written_does_not_end_the_run(tmp_path, weights_file):
    images, out = draw_images(tmp_path / "images", 6), tmp_path / "out"
    obstacle = out / "masks/part-0/image-002.png"
    obstacle.mkdir(parents=True)
    (obstacle / "file").touch()
    summary = run(job_of(images, out, weights_file))
    assert (summary.status, summary.exit_code, summary.ok, summary.exports_failed) == ("incomplete", 1, 6, 1)
    assert summary.export_failure.startswith("masks/part-0/image-002.png: ")
    assert len([name for name in tree(out / "masks") if name.endswith(".png")]) == 5
    record = json.loads(next(out.glob("runs/*/run.json")).read_text())
    assert record["exports_failed"] == 1
    again = run(job_of(images, out, weights_file))
    assert (again.images, again.exit_code, again.exports_failed) == (0, 1, 1)
    (obstacle / "file").unlink()
    obstacle.rmdir()
    last = run(job_of(images, out, weights_file))
    assert (last.images, last.exit_code, last.exports_failed) == (0, 0, 0)
    assert not list(out.glob("unexported/*"))
    assert verify(str(out)).problems == []


def test_a_late_export_never_replaces_a_newer_mask(tmp_path, weights_file):
    images, out = draw_images(tmp_path / "images", 3), tmp_path / "out"
    obstacle = out / "masks/part-0/image-000.png"
    obstacle.mkdir(parents=True)
    (obstacle / "file").touch()
    assert run(job_of(images, out, weights_file)).exports_failed == 1
    (images / "part-0/image-000.jpg").write_bytes(jpeg(77))
    (obstacle / "file").unlink()
    obstacle.rmdir()
    assert run(job_of(images, out, weights_file)).exit_code == 0
    assert verify(str(out)).problems == []


def test_an_output_that_takes_no_export_at_all_ends_the_run_and_the_next_goes_on(tmp_path, weights_file, monkeypatch):
    images, out = draw_images(tmp_path / "images", 3), tmp_path / "out"

    def denied(self, path, data):
        raise StorageError(f"{path}: permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "export", denied)
        with pytest.raises(StorageError, match=r"no mask can be written below masks/ .*; correct this, and run the"):
            run(job_of(images, out, weights_file))
    summary = run(job_of(images, out, weights_file))
    assert (summary.resumed, summary.exit_code, summary.ok) == (True, 0, 3)
    assert verify(str(out)).problems == []
