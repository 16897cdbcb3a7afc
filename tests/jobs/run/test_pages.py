"""The pages of stacks in whole runs: a row and a mask for each, over all nights and inputs."""

import io
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from conftest import jpeg, tar, tree
from PIL import Image

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.explain import explain
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.redo import redo
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.planning import counting
from maskfleet.jobs.run.execute import run

PAGES = np.random.default_rng(3).integers(0, 256, (12, 32, 32, 3), np.uint8)


def job_of(source, output, weights_file, *sets):
    table = {"input": str(source), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=4", "cluster.threads=1", "run.max_error_rate=1", *sets])


def stack(pages, **options):
    sink = io.BytesIO()
    tifffile.imwrite(sink, pages, photometric="rgb", **options)
    return sink.getvalue()


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def outcomes(output):
    return {row["key"]: row["mask_member"] or row["error_class"] for row in open_output(str(output)).rows().to_pylist()}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.tif").write_bytes(stack(PAGES[:3]))
    (source / "a.tif-2.tif").write_bytes(stack(PAGES[3]))
    (source / "b.jpg").write_bytes(jpeg(1))
    return source


SLOW = pytest.mark.slow
SOURCES = ["files", pytest.param("tar", marks=SLOW), pytest.param("parquet", marks=SLOW)]


@pytest.mark.parametrize("kind", SOURCES)
def test_each_page_is_an_image_of_its_own(tmp_path, weights_file, folder, kind):
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    source, prefixes = folder, [""] * 3
    if kind == "tar":
        source, prefixes = tar(tmp_path / "x.tar", files.items()), ["x.tar/"] * 3
    if kind == "parquet":
        source, prefixes = tmp_path / "x.parquet", [f"x.parquet/00000000{row}-" for row in range(3)]
        images = [{"bytes": data, "path": name} for name, data in files.items()]
        pq.write_table(pa.table({"image": images}), source)
    out = tmp_path / "out"
    assert run(job_of(source, out, weights_file, "pages=each")).ok == 5
    assert outcomes(out) == {
        f"{prefixes[1]}a.tif-2.tif": f"{prefixes[1]}a.tif-2.png",
        **{f"{prefixes[0]}a.tif/page={number:04}": f"{prefixes[0]}a.tif/page={number:04}.png" for number in (1, 2, 3)},
        f"{prefixes[2]}b.jpg": f"{prefixes[2]}b.png",
    }
    single = tmp_path / "single"
    single.mkdir()
    for number in range(3):
        (single / f"{number}.png").write_bytes(png(PAGES[number]))
    run(job_of(single, tmp_path / "expected", weights_file))
    for number in range(3):
        mask = (out / "masks" / f"{prefixes[0]}a.tif/page={number + 1:04}.png").read_bytes()
        assert mask == (tmp_path / f"expected/masks/{number}.png").read_bytes()
    assert verify(str(out)).problems == []
    assert run(job_of(source, out, weights_file, "pages=each")).images == 0


def test_by_default_a_stack_is_refused_and_each_or_first_takes_it_up_again(tmp_path, weights_file, folder):
    out = tmp_path / "out"
    run(job_of(folder, out, weights_file))
    assert outcomes(out)["a.tif"] == "several_pages"
    assert run(job_of(folder, out, weights_file)).images == 0
    summary = run(job_of(folder, out, weights_file, "pages=first"))
    assert (summary.images, outcomes(out)["a.tif"]) == (1, "a.png")
    summary = run(job_of(folder, out, weights_file, "pages=each"))
    assert (summary.images, summary.gone) == (3, 1)
    assert run(job_of(folder, out, weights_file, "pages=each")).images == 0
    assert verify(str(out)).problems == []


def test_known_files_are_not_counted_again(tmp_path, weights_file, folder, monkeypatch):
    out, asked = tmp_path / "out", []
    count = counting.Counting.counts
    monkeypatch.setattr(
        counting.Counting, "counts", lambda self, files: asked.extend(file.key for file in files) or count(self, files)
    )
    run(job_of(folder, out, weights_file, "pages=each"))
    assert asked == ["a.tif", "a.tif-2.tif"]
    (folder / "c.gif").write_bytes(b"GIF89a")
    del asked[:]
    run(job_of(folder, out, weights_file, "pages=each"))
    assert asked == ["c.gif"]


@SLOW
def test_a_night_with_more_or_fewer_pages(tmp_path, weights_file, folder):
    out = tmp_path / "out"
    run(job_of(folder, out, weights_file, "pages=each"))
    time.sleep(0.01)
    (folder / "a.tif").write_bytes(stack(PAGES[:2]))
    summary = run(job_of(folder, out, weights_file, "pages=each"))
    assert (summary.planned, summary.gone) == ({"changed": 2}, 1)
    time.sleep(0.01)
    (folder / "a.tif").write_bytes(stack(PAGES[0]))
    summary = run(job_of(folder, out, weights_file, "pages=each"))
    assert (summary.planned, summary.gone) == ({"new": 1}, 2)
    assert verify(str(out)).problems == []


@SLOW
def test_a_page_can_be_explained_and_done_again(tmp_path, weights_file, folder):
    out = tmp_path / "out"
    job = job_of(folder, out, weights_file, "pages=each")
    run(job)
    (wanted,) = redo(str(out), keys=["page=0002"]).jobs
    assert run(Job.of(wanted)).images == 1
    history = explain(str(out), "a.tif/page=0002")
    assert [each.why for each in history.runs] == ["new", "redo"]
    assert run(job).images == 0


@SLOW
def test_a_stack_that_cannot_be_counted_is_one_row_and_its_known_pages_stay(tmp_path, weights_file, folder):
    out = tmp_path / "out"
    run(job_of(folder, out, weights_file, "pages=each"))
    whole = (folder / "a.tif").read_bytes()
    time.sleep(0.01)
    (folder / "a.tif").write_bytes(whole[:8] + b"\xff" * 300 + whole[308:])
    summary = run(job_of(folder, out, weights_file, "pages=each"))
    assert (summary.images, summary.failed, summary.gone) == (1, 1, 0)
    assert outcomes(out)["a.tif"] == "corrupt"
    (folder / "a.tif").write_bytes(whole)
    assert run(job_of(folder, out, weights_file, "pages=each")).planned == {"changed": 3}
    assert verify(str(out)).problems == []


@SLOW
def test_a_damaged_page_costs_itself(tmp_path, weights_file):
    source = tmp_path / "in"
    source.mkdir()
    data = bytearray(stack(PAGES[:3], compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start = file.pages[1].dataoffsets[0]
    data[start : start + 200] = b"\xff" * 200
    (source / "a.tif").write_bytes(data)
    run(job_of(source, tmp_path / "out", weights_file, "pages=each"))
    assert outcomes(tmp_path / "out") == {
        "a.tif/page=0001": "a.tif/page=0001.png", "a.tif/page=0002": "corrupt", "a.tif/page=0003": "a.tif/page=0003.png",
    }  # fmt: skip


@SLOW
def test_a_page_too_large_for_memory_is_read_in_rows(tmp_path, weights_file, monkeypatch):
    monkeypatch.setattr("maskfleet.jobs.run.stages.fetch.STREAM_BYTES", 20_000)
    source = tmp_path / "in"
    source.mkdir()
    pages = np.random.default_rng(0).integers(0, 256, (2, 100, 120, 3), np.uint8)
    (source / "a.tif").write_bytes(stack(pages))
    for number, page in enumerate(pages):
        (source / f"{number}.png").write_bytes(png(page))
    run(job_of(source, tmp_path / "out", weights_file, "pages=each"))
    masks = tree(tmp_path / "out/masks")
    assert [masks[f"a.tif/page=000{number}.png"] for number in (1, 2)] == [masks["0.png"], masks["1.png"]]


def test_frames_of_a_gif(tmp_path, weights_file):
    source = tmp_path / "in"
    source.mkdir()
    first, *others = (Image.fromarray(page[..., 0]) for page in PAGES[:3])
    first.save(source / "a.gif", save_all=True, append_images=others)
    first.save(source / "b.gif")
    run(job_of(source, tmp_path / "out", weights_file, "pages=each"))
    assert list(outcomes(tmp_path / "out")) == ["a.gif/page=0001", "a.gif/page=0002", "a.gif/page=0003", "b.gif"]


@SLOW
def test_a_large_stack_in_a_bucket_is_fetched_once_for_a_shard(tmp_path, weights_file, bucket, monkeypatch):
    from maskfleet.jobs.storage.s3 import S3Storage

    opened = []
    original = S3Storage.opened
    monkeypatch.setattr(S3Storage, "opened", lambda self, *args: opened.append(args) or original(self, *args))
    from maskfleet.jobs.storage.schemes import open_storage

    open_storage(bucket).write("in/a.tif", stack(PAGES))
    job = job_of(f"{bucket}/in", tmp_path / "out", weights_file, "pages=each", "run.shard_size=12")
    assert run(job).ok == 12
    assert len(opened) == 1
    assert verify(str(tmp_path / "out")).problems == []


@SLOW
def test_the_first_page_of_members(tmp_path, weights_file, folder):
    source = tar(tmp_path / "x.tar", [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
    run(job_of(source, tmp_path / "out", weights_file, "pages=first"))
    assert outcomes(tmp_path / "out") == {
        f"x.tar/{name}": f"x.tar/{name[:-4]}.png" for name in sorted(os.listdir(folder))
    }
    run(job_of(folder, tmp_path / "expected", weights_file, "pages=first"))
    masks = tree(tmp_path / "out/masks/x.tar")
    assert masks == tree(tmp_path / "expected/masks")
    assert verify(str(tmp_path / "out")).problems == []
