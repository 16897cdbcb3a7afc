"""The whole job in one process, on drawn images and on every kind of bad file."""

import io
import json
import shutil
import tempfile
import threading
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from conftest import draw_images, needs_bf16, once_committed, seeded, statistics, tree, uploaded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import OutOfMemoryError

from maskfleet.jobs.errors import JobError, Locked, Stopped, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.ledger.statistics import SCHEMA
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run import begin as begin_module
from maskfleet.jobs.run import execute as run_module
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.unet import weights


def job_of(images, output, weights_file, *sets):
    return Job.of(
        {"input": str(images), "output": str(output), "weights": weights_file},
        ["run.shard_size=5", "cluster.threads=1", *sets],
    )


def test_every_image_gets_a_mask_and_a_row(images, tmp_path, weights_file):
    report = run(job_of(images, tmp_path / "out", weights_file))
    assert (report.exit_code, report.images, report.ok, report.failed) == (0, 24, 24, 0)
    table = pyarrow.dataset.dataset(tmp_path / "out/stats", format="parquet").to_table()
    assert table.schema.remove_metadata().equals(SCHEMA.remove_metadata())
    for row in table.to_pylist():
        source = Image.open(row["url"])
        mask = np.asarray(Image.open(tmp_path / "out/masks" / row["mask_member"]))
        assert mask.shape == source.size[::-1] == (row["height"], row["width"])
        assert row["class_pixels"] == [(mask == 0).sum(), (mask == 255).sum()]
        assert row["mask_member"] == str(Path(row["key"]).with_suffix(".png"))
        assert (tmp_path / "out" / row["mask_object"]).exists()
        assert row["fetch_seconds"] > 0
        assert row["stage"] is None
    assert verify(str(tmp_path / "out")).problems == []
    counts = duckdb.sql(f"SELECT status, count(*) FROM '{tmp_path}/out/stats/**/*.parquet' GROUP BY status").fetchall()
    assert counts == [("ok", 24)]


def bad_folder(folder: Path) -> Path:
    draw_images(folder, 6)
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:-100])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>403 Forbidden</html>")
    Image.new("L", (16000, 10000)).save(folder / "bomb.png")
    Image.new("RGB", (15, 15)).save(folder / "small.png")
    Image.new("RGB", (30, 30)).save(folder / "deleted.png")
    return folder


def test_bad_files_cost_themselves_and_say_why(tmp_path, weights_file, monkeypatch):
    bad_folder(tmp_path / "in")
    begin = begin_module._new_run

    def delete_then_begin(*arguments, **keywords):
        (tmp_path / "in/deleted.png").unlink()  # between listing and reading
        return begin(*arguments, **keywords)

    monkeypatch.setattr(begin_module, "_new_run", delete_then_begin)
    report = run(job_of(tmp_path / "in", tmp_path / "out", weights_file))
    assert (report.exit_code, report.ok, report.failed) == (1, 6, 6)
    rows = {row["key"]: row for row in statistics(tmp_path / "out") if row["status"] == "failed"}
    assert {key: (row["stage"], row["error_class"]) for key, row in rows.items()} == {
        "truncated.jpg": ("decode", "corrupt"),
        "empty.png": ("decode", "empty"),
        "page.jpg": ("decode", "unidentified"),
        "bomb.png": ("decode", "too_large"),
        "small.png": ("decode", "too_small"),
        "deleted.png": ("fetch", "missing"),
    }
    assert "truncated" in rows["truncated.jpg"]["error_message"].lower()
    assert all(row["mask_member"] is None and row["class_pixels"] is None for row in rows.values())
    assert verify(str(tmp_path / "out")).problems == []
    # The same with leave to fail that often.
    monkeypatch.undo()
    assert run(job_of(tmp_path / "in", tmp_path / "out2", weights_file, "run.max_error_rate=0.5")).exit_code == 0


def test_a_second_run_does_only_what_is_new_changed_or_stale(images, tmp_path, weights_file):
    job = job_of(images, tmp_path / "out", weights_file)
    run(job)
    assert run(job).images == 0
    draw_images(images / "more", 2, seed=5)
    Image.new("RGB", (40, 40)).save(images / "part-1/image-001.png")
    report = run(job)
    assert report.images == 3
    rows = pyarrow.dataset.dataset(tmp_path / "out/stats", format="parquet").to_table().to_pylist()
    assert {row["key"] for row in rows if row["run_id"] == report.run_id} == {
        *("more/part-0/image-000.jpg", "more/part-1/image-001.png", "part-1/image-001.png")
    }
    assert run(job_of(images, tmp_path / "out", weights_file, "masks.values=[1, 2]")).images == 26
    assert verify(str(tmp_path / "out")).problems[:1] == []


def test_failures_that_would_be_the_same_are_not_tried_again(tmp_path, weights_file):
    bad_folder(tmp_path / "in")
    run(job_of(tmp_path / "in", tmp_path / "out", weights_file))
    again = run(job_of(tmp_path / "in", tmp_path / "out", weights_file, "run.max_image_pixels=200"))
    assert again.images == 1  # the bomb alone: its limit belongs to the command, not to the bytes


def test_a_stopped_run_goes_on_where_it_was(images, tmp_path, weights_file):
    whole = run(job_of(images, tmp_path / "whole", weights_file))
    job = job_of(images, tmp_path / "out", weights_file)
    with pytest.raises(Stopped):
        run(job, stopped=once_committed(tmp_path / "out", 2))
    before = tree(tmp_path / "out" / "runs")
    done = sum("commits" in path for path in before)
    assert 2 <= done < 5
    seen = []
    report = run(job, on_progress=lambda _, tally: seen.append(tally.done))
    assert (seen[0], report.images, report.resumed) == (5 * done, whole.images, True)
    after = tree(tmp_path / "out" / "runs")
    assert {path: data for path, data in after.items() if path in before} == before
    assert tree(tmp_path / "out/masks") == tree(tmp_path / "whole/masks")
    assert statistics(tmp_path / "out") == statistics(tmp_path / "whole")


def test_a_run_that_was_killed_while_it_was_planned_keeps_its_work_and_the_rest_follows(
    images, tmp_path, weights_file, monkeypatch
):
    monkeypatch.setattr("maskfleet.jobs.planning.plan.PART_SHARDS", 2)
    monkeypatch.setattr("maskfleet.jobs.ledger.manifest.PART_SHARDS", 2)
    monkeypatch.setattr(
        "maskfleet.jobs.planning.live_plan.LivePlan._store_rest", lambda self: None
    )  # the listing hangs
    job = job_of(images, tmp_path / "out", weights_file)
    with pytest.raises(Stopped):
        run(job, stopped=once_committed(tmp_path / "out", 2))
    monkeypatch.undo()
    monkeypatch.setattr("maskfleet.jobs.planning.plan.PART_SHARDS", 2)
    monkeypatch.setattr("maskfleet.jobs.ledger.manifest.PART_SHARDS", 2)
    before = tree(tmp_path / "out" / "runs")
    assert not [path for path in before if "frozen" in path]
    report = run(job)
    first, second = sorted(path.name for path in (tmp_path / "out/runs").iterdir())
    one, two = (json.loads((tmp_path / f"out/runs/{name}/run.json").read_text()) for name in (first, second))
    assert (one["images"], one["resumed"], one["listed_to_its_end"]) == (10, True, False)
    assert (two["images"], report.run_id, two["listed_to_its_end"]) == (14, second, True)
    after = tree(tmp_path / "out" / "runs")
    assert {path: data for path, data in after.items() if path in before} == before
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 24
    assert verify(str(tmp_path / "out")).problems == []
    assert run(job).images == 0


def test_a_lost_catalog_is_made_again(images, tmp_path, weights_file):
    job = job_of(images, tmp_path / "out", weights_file)
    run(job)
    (images / "part-1/image-001.png").unlink()
    assert run(job).gone == 1
    shutil.rmtree(tmp_path / "out/catalog")
    report = run(job)
    assert (report.images, report.gone) == (0, 0)


def test_a_vanished_image_is_noted_once_and_done_again_when_it_is_back(images, tmp_path, weights_file):
    job = job_of(images, tmp_path / "out", weights_file)
    run(job)
    gone = images / "part-1/image-001.png"
    data = gone.read_bytes()
    gone.unlink()
    assert [run(job).gone for _ in range(3)] == [1, 0, 0]
    assert (tmp_path / "out/masks/part-1/image-001.png").exists()
    gone.write_bytes(data)
    report = run(job)
    assert (report.images, report.planned) == (1, {"new": 1})
    assert verify(str(tmp_path / "out")).problems == []


def test_a_run_of_another_job_is_not_gone_on_with(images, tmp_path, weights_file):
    with pytest.raises(Stopped):
        run(job_of(images, tmp_path / "out", weights_file), stopped=lambda: True)
    report = run(job_of(images, tmp_path / "out", weights_file, "masks.values=[3, 4]"))
    assert (report.images, report.resumed) == (24, False)


@pytest.mark.parametrize("form", ["png", "parquet"])
def test_what_a_run_did_that_nobody_goes_on_with_counts(images, tmp_path, weights_file, form):
    whole = run(job_of(images, tmp_path / "whole", weights_file, f"masks.format={form}"))
    first = job_of(images, tmp_path / "out", weights_file, f"masks.format={form}")
    with pytest.raises(Stopped):
        run(first, stopped=once_committed(tmp_path / "out", 2))
    done = sum("commits" in path for path in tree(tmp_path / "out" / "runs"))
    assert 2 <= done < 5
    other = job_of(images, tmp_path / "out", weights_file, f"masks.format={form}", "name=other")
    report = run(other)
    assert (report.images, report.resumed) == (24 - 5 * done, False)
    assert [run(job).images for job in (other, first)] == [0, 0]
    assert len(statistics(tmp_path / "out")) == whole.images
    if form == "png":
        assert tree(tmp_path / "out/masks") == tree(tmp_path / "whole/masks")
    assert verify(str(tmp_path / "out")).problems == []


def test_a_run_whose_work_was_kept_may_be_gone_on_with_all_the_same(images, tmp_path, weights_file):
    first = job_of(images, tmp_path / "out", weights_file)
    with pytest.raises(Stopped):
        run(first, stopped=once_committed(tmp_path / "out", 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="no images in"):  # it kept the work, and then found nothing to do itself
        run(job_of(tmp_path / "empty", tmp_path / "out", weights_file))
    report = run(first)
    assert (report.images, report.resumed) == (24, True)
    assert (run(first).images, len(statistics(tmp_path / "out"))) == (0, 24)
    assert verify(str(tmp_path / "out")).problems == []


def test_an_unfinished_run_that_replaces_masks_is_no_damage(images, tmp_path, weights_file):
    run(job_of(images, tmp_path / "out", weights_file))
    other = job_of(images, tmp_path / "out", weights_file, "masks.values=[3, 4]")
    with pytest.raises(Stopped):
        run(other, stopped=once_committed(tmp_path / "out", 1))
    assert verify(str(tmp_path / "out")).problems == []


def test_what_is_derived_is_made_again_when_the_end_was_cut_off(images, tmp_path, weights_file):
    run(job_of(images, tmp_path / "out", weights_file))
    expected = tree(tmp_path / "out/masks")
    (run_folder,) = (tmp_path / "out/runs").iterdir()
    for gone in (tmp_path / "out/masks", tmp_path / "out/stats", run_folder / "exports"):
        shutil.rmtree(gone)
    (run_folder / "run.json").unlink()
    report = run(job_of(images, tmp_path / "out", weights_file))
    assert report.resumed
    assert report.images_per_second == 0
    assert list(report.start_seconds) == ["plan"]
    assert tree(tmp_path / "out/masks") == expected
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("form", ["tar", "none"])
def test_other_formats(form, images, tmp_path, weights_file):
    run(job_of(images, tmp_path / "out", weights_file, f"masks.format={form}"))
    assert not (tmp_path / "out/masks").exists()
    assert bool(list((tmp_path / "out").rglob("masks.tar"))) == (form == "tar")
    assert verify(str(tmp_path / "out")).problems == []


def test_masks_do_not_depend_on_shards_or_order(images, tmp_path, weights_file):
    fp32 = "inference.precision=fp32"
    run(job_of(images, tmp_path / "a", weights_file, fp32, "run.shard_size=24"))
    run(job_of(images, tmp_path / "b", weights_file, fp32, "run.shard_size=1"))
    run(
        job_of(
            images,
            tmp_path / "c",
            weights_file,
            fp32,
            "run.shard_size=7",
            "inference.batch_size=2",
            "cluster.decoders=3",
        )
    )
    assert tree(tmp_path / "a/masks") == tree(tmp_path / "b/masks") == tree(tmp_path / "c/masks")


def test_storage_without_conditions_is_committed_by_the_driver_and_says_so(images, tmp_path, weights_file, monkeypatch):
    monkeypatch.setattr(LocalStorage, "create", lambda self, path, data: self.write(path, data) or True)
    report = run(job_of(images, tmp_path / "out", weights_file))
    assert report.commit_mode == "driver"
    monkeypatch.undo()
    assert verify(str(tmp_path / "out")).problems == []
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 24


def write_weights(path, **more):
    path.write_bytes(weights.save(seeded(**more)))
    return str(path)


def test_bad_jobs_leave_nothing_behind(images, tmp_path, weights_file):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 99)
    cases = [
        (job_of(images, out, str(tmp_path / "none.safetensors")), "weights .* do not exist.*built-in model .nuclei"),
        (job_of(images, out, str(tmp_path / "model.pth")), "maskfleet convert"),
        (job_of(images, out, str(tmp_path / "noise.safetensors")), "not a safetensors file"),
        (job_of(images, out, write_weights(tmp_path / "5.safetensors", n_channels=5)), "need 5 channels"),
        (job_of(images, out, weights_file, "masks.values=[0, 1, 2]"), "has 3 values, but the weights have 2 classes"),
        (job_of(tmp_path / "empty", out, weights_file), "no images in"),
        (job_of(tmp_path / "text", out, weights_file), r"no images in .* \(only 1 .txt\)"),
        (job_of(tmp_path / "none", out, weights_file), "input folder .* does not exist"),
    ]
    for job, message in cases:
        with pytest.raises(JobError, match=message) as error:
            run(job)
        assert "\n" not in str(error.value)
        assert not out.exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match="the output is not writable"):
        run(job_of(images, tmp_path / "file/out", weights_file))


def test_a_locked_output_is_refused(images, tmp_path, weights_file):
    storage = LocalStorage(str(tmp_path / "out"))
    for on_overlap, code in (("fail", 4), ("skip", 0)):
        with Lock(storage), pytest.raises(Locked) as error:
            run(job_of(images, tmp_path / "out", weights_file, f"run.on_overlap={on_overlap}"))
        assert error.value.exit_code == code
    lock = Lock(storage)
    threading.Timer(0.5, lock.release).start()
    assert run(job_of(images, tmp_path / "out", weights_file, "run.on_overlap=wait")).ok == 24


def test_a_run_that_is_taken_over_writes_nothing_more(images, tmp_path, weights_file):
    storage = LocalStorage(str(tmp_path / "out"))

    def taken_over(this, tally):
        if tally.shards == 2:
            storage.write("lock/000009.json", b"{}")

    with pytest.raises(Locked, match="wait for that run"):
        run(job_of(images, tmp_path / "out", weights_file), on_progress=taken_over)
    (run_folder,) = (tmp_path / "out/runs").iterdir()
    # Two shards are in progress at once, so a third may have been committed just before.
    assert len(list((run_folder / "commits").iterdir())) in (2, 3)
    assert not (run_folder / "run.json").exists()
    report = run(job_of(images, tmp_path / "out", weights_file))
    assert (report.ok, report.resumed, report.generation) == (24, True, 10)
    assert verify(str(tmp_path / "out")).problems == []


def test_an_error_of_storage_ends_the_run_and_the_next_goes_on(images, tmp_path, weights_file, monkeypatch):
    write, calls = LocalStorage.write, []

    def failing(self, path, data):
        calls.append(path)
        if "masks.tar" in path and len([call for call in calls if "masks.tar" in call]) == 3:
            raise StorageError("the disk is full")
        write(self, path, data)

    monkeypatch.setattr(LocalStorage, "write", failing)
    with pytest.raises(StorageError, match="disk is full"):
        run(job_of(images, tmp_path / "out", weights_file))
    monkeypatch.undo()
    assert run(job_of(images, tmp_path / "out", weights_file)).resumed
    assert verify(str(tmp_path / "out")).problems == []


def test_no_secret_is_left_anywhere(images, tmp_path, weights_file, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "canary-4711")
    run(job_of(images, tmp_path / "out", weights_file))
    assert not [path for path, data in tree(tmp_path / "out").items() if b"canary" in data]


@pytest.mark.slow
@pytest.mark.s3
def test_a_bucket_gets_the_bytes_that_a_folder_gets(images, tmp_path, weights_file, bucket):
    local = run(job_of(images, tmp_path / "out", weights_file))
    storage = uploaded(images, bucket)
    report = run(job_of(f"{bucket}/in", f"{bucket}/out", weights_file))
    assert (report.ok, report.commit_mode) == (local.ok, "worker")
    found = {
        entry.path: storage.read(f"out/masks/{entry.path[len('out/masks/') :]}") for entry in storage.walk("out/masks")
    }
    assert {path.removeprefix("out/masks/"): data for path, data in found.items()} == tree(tmp_path / "out/masks")
    assert verify(f"{bucket}/out").problems == []
    assert run(job_of(f"{bucket}/in", f"{bucket}/out", weights_file)).images == 0


@pytest.mark.s3
def test_a_missing_bucket_is_a_job_error(images, weights_file, s3_server, tmp_path):
    for job in (
        job_of("s3://no-such-bucket-x/in", tmp_path / "o", weights_file),
        job_of(images, "s3://no-such-bucket-x/o", weights_file),
    ):
        with pytest.raises(JobError, match="there is no such bucket; create it"):
            run(job)


def test_run_json_is_last_and_whole(images, tmp_path, weights_file):
    report = run(job_of(images, tmp_path / "out", weights_file))
    record = json.loads((tmp_path / f"out/runs/{report.run_id}/run.json").read_text())
    assert record == report.to_json()
    assert set(record["decoder_isolation"]) <= {"landlock", "seccomp"}
    job = json.loads((tmp_path / f"out/runs/{report.run_id}/job.json").read_text())
    assert job["fingerprint"] == record["fingerprint"]
    assert job["versions"]["torch"]


def test_the_outcome_says_where_the_time_went(images, tmp_path, weights_file):
    record = run(job_of(images, tmp_path / "out", weights_file)).to_json()
    assert set(record["stages"]) == {"fetch", "decode", "segment", "device", "encode", "write"}
    assert all(stage["busy_seconds"] > 0 for stage in record["stages"].values())
    segment = record["stages"]["segment"]
    assert segment["starved_seconds"] > 0  # nothing is decoded when a shard begins
    # One device: what it does and what it waits for is no longer than the run.
    assert (
        segment["busy_seconds"] + segment["starved_seconds"] + segment["blocked_seconds"]
        <= record["worker_seconds"]
        <= record["seconds"]
    )


def test_a_run_says_what_share_of_the_bare_forward_pass_it_reached(tmp_path, weights_file):
    record = run(job_of(draw_images(tmp_path / "in", 102), tmp_path / "out", weights_file)).to_json()
    assert (record["forward"]["height"], record["forward"]["width"]) in {(48, 64), (64, 48), (33, 70)}
    assert record["forward"]["seconds_per_image"] > 0
    # A third of the images each.
    assert record["measured_pixels"] == 34 * (48 * 64 + 64 * 48 + 33 * 70)
    seconds_per_pixel = record["forward"]["seconds_per_image"] / (
        record["forward"]["height"] * record["forward"]["width"]
    )
    assert record["forward_share"] == pytest.approx(
        seconds_per_pixel * record["measured_pixels"] / record["worker_seconds"]
    )
    assert record["limit"].startswith("network ")
    assert record == json.loads((tmp_path / f"out/runs/{record['run_id']}/run.json").read_text())


def test_colours_thresholds_and_views_reach_the_masks(images, tmp_path, weights_file):
    """All choices at once against a plainly written mean of probabilities."""
    import torch

    (tmp_path / "a.safetensors").write_bytes(weights.save(seeded(3)))
    (tmp_path / "b.safetensors").write_bytes(weights.save(seeded(3, seed=1)))
    colours = [[0, 0, 0], [255, 0, 0], [0, 128, 255]]
    sets = ["cluster.threads=1", "inference.threshold=[0.3, 0.5]", "inference.tta=flips", f"masks.values={colours}"]
    table = {"input": str(images), "output": str(tmp_path / "out")}
    job = Job.of({**table, "weights": [str(tmp_path / f"{name}.safetensors") for name in "ab"]}, sets)
    run(job.model_copy(update={"inference": job.inference.model_copy(update={"precision": "fp32"})}))
    for path in sorted(images.rglob("*.png"))[:3]:
        x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].double() / 255
        views = [(), (2,), (3,), (2, 3)]
        with torch.inference_mode():
            found = (
                torch.stack(
                    [
                        model(x.flip(view)).softmax(dim=1).flip(view)
                        for model in (seeded(3).double(), seeded(3, seed=1).double())
                        for view in views
                    ]
                )
                .mean(dim=0)[0]
                .numpy()
            )
        may = found[1:] > np.array([0.3, 0.5])[:, None, None]
        labels = np.where(may.any(axis=0), np.where(may, found[1:], 0).argmax(axis=0) + 1, 0)
        mask = np.asarray(Image.open(tmp_path / "out/masks" / path.relative_to(images)))
        np.testing.assert_array_equal(mask, np.array(colours, np.uint8)[labels])
    assert verify(str(tmp_path / "out")).problems == []


def test_memory_that_runs_out_costs_no_mask_and_is_on_record(tmp_path, weights_file, monkeypatch):
    import torch

    from maskfleet.unet.inference.resident import Resident

    draw_images(tmp_path / "in", 12)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (420, 405, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/large-{number}.png")
    sets = ["inference.precision=fp32", "inference.batch_size=4"]
    run(job_of(tmp_path / "in", tmp_path / "whole", weights_file, *sets))
    forward = Resident.forward

    def short(self, pixels_BHWC, threads, white=255.0):
        batch, height, width, _ = pixels_BHWC.shape
        if batch > 1 or height * width > 300 * 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels_BHWC, threads, white)

    monkeypatch.setattr(Resident, "forward", short)
    report = run(job_of(tmp_path / "in", tmp_path / "out", weights_file, *sets))
    assert (report.ok, report.failed, report.attempts_lost) == (14, 0, 0)
    ladder = ["batches of 4", "batches of 2", "batches of 1"]
    assert report.short_of_memory == {
        "405×420": [*ladder, "batches of 1 tiles of 208 px", "batches of 1 tiles of 96 px"],
        **dict.fromkeys(("64×48", "48×64", "70×33"), ladder),
    }
    assert tree(tmp_path / "out/masks") == tree(tmp_path / "whole/masks")
    assert statistics(tmp_path / "out") == statistics(tmp_path / "whole")


def test_memory_may_run_out_at_every_forward_call_of_a_job(tmp_path, weights_file, monkeypatch):
    import torch

    from maskfleet.unet.inference.resident import Resident

    (tmp_path / "in").mkdir()
    for number in range(7):
        side = 96 if number < 6 else 400
        pixels = np.random.default_rng(number).integers(0, 256, (side, 330, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.png")
    forward = Resident.forward
    calls, fails = [0], set()

    def counted(self, pixels_BHWC, threads, white=255.0):
        if pixels_BHWC.shape[2] > 96:  # not what a Segmenter tries itself out with
            calls[0] += 1
            if calls[0] in fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels_BHWC, threads, white)

    monkeypatch.setattr(Resident, "forward", counted)

    def segmented(name, *failing):
        calls[0] = 0
        fails.clear()
        fails.update(failing)
        sets = ["inference.precision=fp32", "inference.batch_size=4", "run.shard_size=7", "cluster.decoders=1"]
        report = run(job_of(tmp_path / "in", tmp_path / name, weights_file, *sets))
        assert (report.ok, report.failed, report.attempts_lost) == (7, 0, 0)
        return tree(tmp_path / name / "masks"), report.short_of_memory

    whole, tried = segmented("whole")
    assert tried == {}
    assert len(whole) == 7
    total = calls[0]
    assert total == 3  # four, then two and the large one
    for at in range(1, total + 1):
        masks, tried = segmented(f"at-{at}", at)
        assert masks == whole
        assert [len(steps) for steps in tried.values()] == [2]
    masks, tried = segmented("all-the-way", 1, 2)
    assert (masks, tried) == (whole, {"330×96": ["batches of 4", "batches of 2", "batches of 1"]})


def test_what_never_fits_fails_as_out_of_memory_and_is_retried_as_such(tmp_path, weights_file, monkeypatch):
    import torch

    from maskfleet.unet.inference.resident import Resident

    draw_images(tmp_path / "in", 4)
    pixels = np.random.default_rng(0).integers(0, 256, (420, 405, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in/large.png")
    forward = Resident.forward

    def short(self, pixels_BHWC, threads, white=255.0):
        if pixels_BHWC.shape[1:3].numel() > 100 * 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels_BHWC, threads, white)

    with monkeypatch.context() as patched:
        patched.setattr(Resident, "forward", short)
        report = run(job_of(tmp_path / "in", tmp_path / "out", weights_file))
    assert (report.ok, report.errors, report.attempts_lost) == (4, {"out_of_memory": 1}, 0)
    (row,) = (row for row in statistics(tmp_path / "out") if row["status"] == "failed")
    assert (row["key"], row["stage"]) == ("large.png", "segment")
    assert "not even a tile of 96 px and its halo fits into memory" in row["error_message"]
    report = run(job_of(tmp_path / "in", tmp_path / "out", weights_file, "select.only=failed", "select.classes=oom"))
    assert (report.images, report.ok) == (1, 1)


@pytest.mark.parametrize("error", [MemoryError("none left"), OutOfMemoryError("killed by the monitor")])
def test_a_worker_that_dies_for_want_of_memory_says_so(error):
    assert run_module._class_of(error) == "out_of_memory"
    assert run_module._class_of(ValueError("other")) == "crash"


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_what_is_not_finite_is_a_failed_row_never_a_mask(precision, images, tmp_path):
    model = seeded()
    model.up4.conv.double_conv[4].weight[:] = 1e5
    model.outc.conv.weight[:] = 3e38
    (tmp_path / "w.safetensors").write_bytes(weights.save(model))
    job = job_of(images, tmp_path / "out", str(tmp_path / "w.safetensors"), f"inference.precision={precision}")
    report = run(job)
    assert (report.exit_code, report.ok, report.errors) == (1, 0, {"non_finite": 24})
    rows = statistics(tmp_path / "out")
    assert {(row["stage"], row["mask_member"], row["class_pixels"]) for row in rows} == {("segment", None, None)}
    assert "NaN or infinity, even in fp32" in rows[0]["error_message"]
    assert not list((tmp_path / "out").rglob("*.png"))
    assert verify(str(tmp_path / "out")).problems == []


@needs_bf16
def test_what_overflows_in_bf16_gets_the_mask_of_fp32(images, tmp_path):
    model = seeded()
    model.up4.conv.double_conv[4].weight[0] = 1e-36
    model.up4.conv.double_conv[4].bias[0] = 1e-36
    model.outc.conv.weight[0, 0] = 3.4e38  # fp32 holds it, bf16 rounds it to infinity
    (tmp_path / "w.safetensors").write_bytes(weights.save(model))
    for precision in ("fp32", "bf16"):
        sets = [f"inference.precision={precision}"]
        report = run(job_of(images, tmp_path / precision, str(tmp_path / "w.safetensors"), *sets))
        assert report.ok == 24
    assert report.tuning["precision"] == "bf16"
    assert tree(tmp_path / "bf16/masks") == tree(tmp_path / "fp32/masks")


@pytest.fixture(scope="module")
def order_reference(tmp_path_factory, weights_file):
    """Drawn images, their masks, and a folder for more."""
    folder = tmp_path_factory.mktemp("order")
    draw_images(folder / "in", 14)
    pixels = np.random.default_rng(3).integers(0, 256, (300, 290, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "in/large.png")
    listed = sorted(str(path) for path in (folder / "in").rglob("*.*"))
    return folder, listed, masks_of(folder, listed, weights_file)


def masks_of(folder, listed, weights_file, *sets):
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / "list.txt").write_text("\n".join(listed))
        report = run(job_of(f"{scratch}/list.txt", f"{scratch}/out", weights_file, "inference.precision=fp32", *sets))
        assert report.ok == len(listed)
        return tree(Path(scratch) / "out/masks")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mask_depends_on_its_image_alone(order_reference, weights_file, data):
    """Not on the batch, the shard, the tiles, the decoders, or the company and order it comes in."""
    folder, listed, expected = order_reference
    some = data.draw(st.lists(st.sampled_from(listed), min_size=1, unique=True))
    sets = [
        f"run.shard_size={data.draw(st.integers(1, 9))}",
        f"inference.batch_size={data.draw(st.integers(1, 5))}",
        f"inference.tile={data.draw(st.sampled_from([0, 16, 64]))}",
        f"cluster.decoders={data.draw(st.integers(1, 3))}",
    ]
    found = masks_of(folder, data.draw(st.permutations(some)), weights_file, *sets)
    assert len(found) == len(some)
    assert found.items() <= expected.items()
