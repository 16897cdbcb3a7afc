"""A run without the right to delete: only gc needs it."""

from conftest import draw_images

from maskfleet.jobs.errors import Denied
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


def test_runs_need_no_right_to_delete(tmp_path, weights_file, monkeypatch):
    def refused(self, path):
        raise Denied(f"{path}: access denied")

    monkeypatch.setattr(LocalStorage, "delete", refused)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    for night in range(4):
        draw_images(tmp_path / f"in/{night}", 2, seed=night)
        report = run(Job.of(table))
        assert (report.ok, report.commit_mode) == (2, "worker")
    assert verify(str(tmp_path / "out")).problems == []
