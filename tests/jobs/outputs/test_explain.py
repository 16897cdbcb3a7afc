import pytest
from conftest import draw_images, seeded
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.explain import explain
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights


def test_the_history_of_images_over_several_runs(tmp_path, weights_file):
    images = draw_images(tmp_path / "in", 6)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")

    def night(**sets):
        table = {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file, **sets}
        return run(Job.of(table, ["run.shard_size=2", "run.max_error_rate=1"]))

    night()
    Image.new("RGB", (40, 40)).save(images / "part-1/image-001.png")
    (images / "part-0/image-002.tif").unlink()
    Image.new("RGB", (41, 41)).save(images / "part-0/new.png")
    second = night()
    assert (second.images, second.gone, second.planned) == (2, 1, {"changed": 1, "new": 1})
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.save(seeded(seed=1)))
    third = night(weights=str(other), select={"only": ["stale"], "limit": 2})
    assert third.planned == {"stale": 2}

    def told(name):
        story = explain(str(tmp_path / "out"), name).to_json()
        return story["state"].split(",")[0], [run.get("why", "") for run in story["runs"]]

    assert told("image-001.png")[0] == "ok"
    assert told("image-001.png")[1][:2] == ["new", "changed"]
    assert told("image-001.png")[1][2].startswith(("not selected (only = ['stale'], limit = 2)", "stale"))
    state, why = told("image-002.tif")
    assert (state, why[0], why[1]) == ("gone", "new", "no longer in the input, so it is marked as deleted")
    assert told("new.png")[1][:2] == ["not in the input yet", "new"]
    state, why = told("broken.png")
    assert (state, why[0]) == ("failed", "new")
    assert why[1].startswith("done by run ")
    story = explain(str(tmp_path / "out"), "broken.png").to_json()["runs"][0]
    assert story["stage"] == "decode"
    assert story["attempt"]
    assert "mask" not in story
    loose = explain(str(tmp_path / "out"), "new.png").to_json()["runs"][1]["mask"]
    assert (tmp_path / "out" / loose).is_file()
    with pytest.raises(JobError, match="give more of the key"):
        explain(str(tmp_path / "out"), ".png")
    with pytest.raises(JobError, match="no image key ends with 'nothing'"):
        explain(str(tmp_path / "out"), "nothing")
    with pytest.raises(JobError, match="there is no run in .*/nope; correct the path"):
        explain(str(tmp_path / "nope"), "new.png")
