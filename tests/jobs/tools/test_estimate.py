import pytest
from conftest import draw_images

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.tools.estimate import estimate


@pytest.mark.parametrize(
    ("size", "shards", "form"), [(64, 2, "png"), (8, 13, "tar"), (4, 25, "png"), (4, 25, "parquet")]
)
def test_estimated_counts_and_bytes_match_the_run(tmp_path, weights_file, size, shards, form):
    images = draw_images(tmp_path / "in", 96)
    (images / "broken.png").write_bytes(b"x")
    table = {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}
    job = Job.of(
        table, [f"run.shard_size={size}", "run.max_error_rate=0.5", "prices.worker_hour=3600", f"masks.format={form}"]
    )
    fingerprint = fingerprint_of(job, load_weights(job))
    told = estimate(job, start_plan(job, fingerprint), fingerprint).to_dict()
    assert not (tmp_path / "out").exists()
    assert (told["images"], told["shards"], told["sample"], told["why"]) == (97, shards, 64, {"new": 97})
    assert (told["requests"]["get"], told["requests"]["list"]) == (97 + 3 * shards, 1)
    report = run(job)
    assert report.images == told["images"]
    written = sum(
        path.stat().st_size
        for pattern in ("masks/**/*.png", "runs/*/shards/**/*", "runs/*/commits/*", "stats/**/*")
        for path in (tmp_path / "out").glob(pattern)
        if path.is_file()
    )
    assert told["output_bytes"] == pytest.approx(written, rel=0.1)
    one, eight, _ = told["workers"]
    assert one["seconds"] >= told["start_seconds"]
    assert one["seconds"] >= eight["seconds"]
    assert one["cost"] == pytest.approx(one["seconds"], rel=0.05, abs=0.06)


@pytest.mark.parametrize("images", [1, 2, 21])
def test_a_small_plan_is_sampled_completely(tmp_path, weights_file, images):
    draw_images(tmp_path / "in", images)
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    fingerprint = fingerprint_of(job, load_weights(job))
    told = estimate(job, start_plan(job, fingerprint), fingerprint).to_dict()
    assert (told["images"], told["sample"], told["expected_failures"]) == (images, images, {})


def test_an_empty_plan_costs_nothing(tmp_path, weights_file):
    draw_images(tmp_path / "in", 4)
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    run(job)
    fingerprint = fingerprint_of(job, load_weights(job))
    told = estimate(job, start_plan(job, fingerprint), fingerprint).to_dict()
    assert (told["images"], told["done"], told["shards"]) == (0, 4, 0)
    assert "workers" not in told


def test_costs_are_numbers_or_unknown(tmp_path, weights_file):
    draw_images(tmp_path / "in", 4)
    job = Job.of({"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file})
    fingerprint = fingerprint_of(job, load_weights(job))
    told = estimate(job, start_plan(job, fingerprint), fingerprint, before=5.0).to_dict()
    assert [each["cost"] for each in told["workers"]] == [None, None, None]
    assert told["requests_cost"] is told["keeping_cost"] is None, "a folder costs nothing"
    assert all(each["seconds"] > 5 for each in told["workers"])
