"""Two inputs of one key: the first is an image, the other a failed row, every night the same."""

import pytest
from conftest import jpeg

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run


@pytest.mark.parametrize("turned", [False, True])
def test_lines_of_one_key_and_two_files(tmp_path, weights_file, turned):
    for place in ("in", "lists/x/in", "lists/x"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    inside = str(tmp_path / "in/a.jpg").lstrip("/")
    other = tmp_path / "lists" / inside
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(jpeg(2))
    (tmp_path / "in/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "in/a.jpg.png").write_bytes(jpeg(3))
    lines = [inside, f"/{inside}", f"/{inside}.png", f"/{inside}"]
    (tmp_path / "lists/l.txt").write_text("\n".join(reversed(lines) if turned else lines))
    table = {"input": str(tmp_path / "lists/l.txt"), "output": str(tmp_path / "out"), "weights": weights_file}
    job = Job.of(table, ["cluster.threads=1", "run.max_error_rate=1"])
    summary = run(job)
    assert (summary.ok, summary.failed, summary.left_alone) == (2, 1, {"repeated line": 1})
    rows = {row["key"]: row for row in open_output(str(tmp_path / "out")).rows().to_pylist()}
    assert rows[inside]["url"] == f"/{inside}"
    (failed,) = (row for row in rows.values() if row["status"] == "failed")
    assert failed["key"].startswith(f"{inside}@")
    assert failed["error_class"] == "duplicate_key"
    assert run(job).images == 0
    assert verify(str(tmp_path / "out")).problems == []
