"""The public reading API, on outputs of several runs."""

import asyncio
import shutil
import threading

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conftest import draw_images, once_committed, tree, uploaded
from PIL import Image

from maskfleet.jobs.errors import Changed, JobError, NotFound, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.statistics import SCHEMA, TableWriter
from maskfleet.jobs.outputs import output as module
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.runs import RunEntry
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage

NEWEST = """
SELECT * FROM '{output}/stats/**/*.parquet'
QUALIFY row_number() OVER (PARTITION BY key ORDER BY run_id DESC) = 1
"""

NEWEST_WITHOUT_DELETED = """
SELECT * FROM '{output}/stats/**/*.parquet'
WHERE key NOT IN (
  SELECT key FROM '{output}/catalog/rows/*.parquet' GROUP BY key HAVING arg_max(status, run_id) = 'gone'
)
QUALIFY row_number() OVER (PARTITION BY key ORDER BY run_id DESC) = 1
"""


def job_of(folder, weights_file, *sets, output="out"):
    table = {"input": str(folder / "in"), "output": str(folder / output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=3", "run.max_error_rate=1", "cluster.threads=1", *sets])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_file):
    """Input `in` and output `out` of two runs. The second has a changed, a new, a deleted and a broken image."""
    folder = tmp_path_factory.mktemp("output")
    images = draw_images(folder / "in", 8)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    run(job_of(folder, weights_file))
    shutil.copy(images / "part-0/image-000.jpg", images / "new.jpg")
    shutil.copy(images / "part-0/image-000.jpg", images / "part-0/image-004.jpg")
    (images / "part-0/image-006.tif").unlink()
    (images / "part-1/image-001.png").write_bytes(b"broken now")
    run(job_of(folder, weights_file))
    return folder


@pytest.fixture(scope="module")
def output(folder):
    return open_output(str(folder / "out"))


def test_rows_are_the_newest_of_each_image_without_deleted_ones(folder, output):
    frame = output.rows().to_pandas()
    assert frame.key.is_monotonic_increasing
    first, second = sorted(path.name for path in (folder / "out/runs").iterdir())
    assert dict(zip(frame.key, zip(frame.status, frame.run_id, strict=True), strict=True)) == {
        "broken.png": ("failed", first),
        "new.jpg": ("ok", second),
        "part-0/image-000.jpg": ("ok", first),
        "part-0/image-002.tif": ("ok", first),
        "part-0/image-004.jpg": ("ok", second),
        "part-1/image-001.png": ("failed", second),
        "part-1/image-003.PNG": ("ok", first),
        "part-1/image-005.png": ("ok", first),
        "part-1/image-007.PNG": ("ok", first),
    }


def test_rows_are_those_of_the_catalog(folder, output):
    storage = LocalStorage(str(folder / "out"))
    known = pa.concat_tables(catalog.rows(storage, catalog.current(storage))).select(["key", "status", "run_id"])
    expected = [row for row in known.to_pylist() if row["status"] != "gone"]
    assert output.rows(["key", "status", "run_id"]).to_pylist() == expected


def test_rows_have_the_columns_of_the_statistics_with_their_meaning(output):
    assert output.rows().schema.equals(SCHEMA, check_metadata=True)
    assert output.rows(["mask_sha256", "key"]).column_names == ["mask_sha256", "key"]
    with pytest.raises(JobError, match="the statistics have no column 'mask'; choose from key, url"):
        output.rows(["mask"])


def test_all_rows_are_those_of_every_run(output):
    rows = output.all_rows()
    assert rows.schema.equals(SCHEMA, check_metadata=True)
    assert rows.num_rows == 9 + 3
    assert rows["run_id"].to_pylist() == sorted(rows["run_id"].to_pylist())
    assert rows.filter(pa.compute.equal(rows["key"], "part-0/image-004.jpg")).num_rows == 2


def test_failures_state_their_reason(output):
    rows = output.failures().to_pylist()
    assert [row["key"] for row in rows] == ["broken.png", "part-1/image-001.png"]
    assert all(row["stage"] == "decode" and row["error_class"] and row["error_message"] for row in rows)


def test_runs_are_typed_and_the_newest_comes_first(folder, output):
    second, first = output.runs
    assert isinstance(first, RunEntry)
    assert (first.state, first.exit_code, first.images, first.failed) == ("complete", 0, 9, 1)
    assert (second.images, second.failed) == (3, 1)
    assert first.id < second.id


def test_the_newest_row_of_each_image_in_sql(folder, output):
    found = duckdb.sql(NEWEST_WITHOUT_DELETED.format(output=folder / "out")).to_arrow_table().sort_by("key")
    assert found.select(["key", "run_id"]).to_pylist() == output.rows(["key", "run_id"]).to_pylist()
    with_deleted = duckdb.sql(NEWEST.format(output=folder / "out")).to_arrow_table()
    assert set(with_deleted["key"].to_pylist()) - set(found["key"].to_pylist()) == {"part-0/image-006.tif"}


def test_masks_are_the_loose_files(folder, output):
    rows = [row for row in output.rows(["key", "status", "mask_member"]).to_pylist() if row["status"] == "ok"]
    assert len(rows) == 7
    for row in rows:
        mask = output.mask(row["key"])
        assert mask.dtype == np.uint8
        with Image.open(folder / "out/masks" / row["mask_member"]) as file:
            assert (mask == np.asarray(file)).all()


@pytest.mark.parametrize("form", ["tar", "parquet", "rle"])
@pytest.mark.parametrize("values", ["[0, 255]", "[[0, 0, 0], [255, 128, 0]]"])
def test_masks_of_every_format_have_the_pixel_values_of_the_job(folder, output, tmp_path, weights_file, form, values):
    shutil.copytree(folder / "in", tmp_path / "in")
    run(job_of(tmp_path, weights_file, f"masks.format={form}", f"masks.values={values}"))
    expected = output.mask("image-002.tif")
    mask = open_output(str(tmp_path / "out")).mask("image-002.tif")
    if values.startswith("[["):
        assert mask.shape == (*expected.shape, 3)
        assert (mask == np.array([[0, 0, 0], [255, 128, 0]])[expected // 255]).all()
    else:
        assert (mask == expected).all()


def test_a_missing_mask_is_explained(output):
    with pytest.raises(JobError, match="broken.png has no mask: decode failed in run .* .the PNG header is damaged"):
        output.mask("broken.png")
    with pytest.raises(JobError, match="image-006.tif was no longer in the input of run"):
        output.mask("part-0/image-006.tif")
    with pytest.raises(JobError, match="no image key ends with 'image-006.tif'"):
        output.mask("image-006.tif")
    with pytest.raises(JobError, match="give more of the key"):
        output.mask(".jpg")


def test_a_run_without_masks_is_explained(tmp_path, weights_file):
    draw_images(tmp_path / "in", 1)
    run(job_of(tmp_path, weights_file, "masks.format=none"))
    with pytest.raises(JobError, match="stored no masks .*; run the job with another masks.format"):
        open_output(str(tmp_path / "out")).mask("image-000.jpg")


def test_an_output_without_a_run_is_refused(tmp_path):
    with pytest.raises(JobError, match="there is no run in .*; correct the path"):
        open_output(str(tmp_path))


# Overlays ----------------------------------------------------------------------------------------


def test_an_overlay_colours_the_classes_and_leaves_the_background(folder, output):
    key = "part-1/image-005.png"
    with Image.open(folder / "in" / key) as file:
        pixels = np.asarray(file).astype(int)
    mask = output.mask(key) > 0
    assert mask.any()
    assert not mask.all()
    overlay = output.overlay(key, opacity=0.25)
    assert (overlay.mode, overlay.size) == ("RGB", mask.shape[::-1])
    drawn = np.asarray(overlay).astype(int)
    assert (drawn[~mask] == pixels[~mask]).all()
    assert (drawn[mask] != pixels[mask]).any(axis=1).all()
    assert max(output.overlay(key, size=35).size) == 35
    with pytest.raises(ValueError, match="opacity must lie between 0 and 1"):
        output.overlay(key, opacity=2)


def test_an_overlay_of_an_upright_image_is_upright(tmp_path, weights_file):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "in/a.png", exif=exif)
    run(job_of(tmp_path, weights_file, "inference.orientation=upright"))
    output = open_output(str(tmp_path / "out"))
    assert output.mask("a.png").shape == (60, 40)
    background = output.mask("a.png") == 0
    drawn = np.asarray(output.overlay("a.png", opacity=0))
    assert (drawn[background] == np.rot90(pixels, -1)[background]).all()


def test_an_overlay_of_a_deleted_or_changed_image_is_an_error(tmp_path, weights_file):
    images = draw_images(tmp_path / "in", 2)
    run(job_of(tmp_path, weights_file))
    output = open_output(str(tmp_path / "out"))
    (images / "part-0/image-000.jpg").unlink()
    with pytest.raises(
        NotFound, match=r"image-000.jpg no longer exists, so there is no image to draw on; mask\(\) still"
    ):
        output.overlay("image-000.jpg")
    assert output.mask("image-000.jpg").shape == (48, 64)
    with (images / "part-1/image-001.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(Changed, match="has changed since its mask was made; run the job again"):
        output.overlay("image-001.png")


# Unfinished runs, lost catalogs and large outputs --------------------------------------------------


@pytest.fixture
def unfinished(folder, tmp_path, weights_file):
    """A copy of the output with a third run, stopped after its first shards: every image, with other weights."""
    shutil.copytree(folder / "out", tmp_path / "out")
    table = {"input": str(folder / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    job = Job.of(table, ["inference.threshold=0.4", "run.shard_size=1", "run.max_error_rate=1", "cluster.threads=1"])
    with pytest.raises(Stopped):
        run(job, stopped=once_committed(tmp_path / "out", 2))
    return open_output(str(tmp_path / "out"))


def test_committed_shards_of_an_unfinished_run_count(output, unfinished):
    newest, *_ = unfinished.runs
    assert (newest.state, newest.images, newest.exit_code) == ("unfinished", None, None)
    rows = {row["key"]: row["run_id"] for row in unfinished.rows(["key", "run_id"]).to_pylist()}
    assert rows.keys() == set(output.rows(["key"])["key"].to_pylist())
    done = [key for key, run_id in rows.items() if run_id == newest.id]
    assert 2 <= len(done) < 9
    assert unfinished.all_rows(["key"]).num_rows == 12 + len(done)
    assert unfinished.mask("new.jpg").shape == (48, 64)
    assert unfinished.mask("image-007.PNG").shape == output.mask("image-007.PNG").shape


def test_nothing_needs_the_catalog(folder, output, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out", ignore=shutil.ignore_patterns("catalog"))
    copied = open_output(str(tmp_path / "out"))
    assert copied.rows().equals(output.rows())
    assert (copied.mask("image-004.jpg") == output.mask("image-004.jpg")).all()


def test_nothing_needs_the_compacted_statistics(folder, output, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out", ignore=shutil.ignore_patterns("stats"))
    copied = open_output(str(tmp_path / "out"))
    assert copied.rows().equals(output.rows())
    assert copied.all_rows().equals(output.all_rows())


def test_failures_are_read_in_bounded_memory(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "out", tmp_path / "out")
    storage = LocalStorage(str(tmp_path / "out"))
    run_id = storage.names("runs")[-1]
    template = open_output(storage.root).all_rows().slice(0, 1).to_pylist()[0] | {"run_id": run_id, "status": "ok"}
    rows = 8192
    for part in range(20):
        keys = pa.array([f"{part:02}-{row:06}" for row in range(rows)])
        table = pa.Table.from_pylist([template], SCHEMA).take(pa.array([0] * rows))
        wide = pa.repeat("m" * 2048, rows)
        for name, column in (("key", keys), ("error_message", wide)):
            table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
        writer = TableWriter()
        writer.add(table)
        compacted.write_part(storage, run_id, part, writer.close())
    held, before = [], pa.total_allocated_bytes()

    def measured(*arguments):
        for table in newest_rows(*arguments):
            held.append(pa.total_allocated_bytes() - before)
            yield table

    newest_rows = module.newest_rows
    monkeypatch.setattr(module, "newest_rows", measured)
    assert open_output(storage.root).failures().num_rows == 1
    assert max(held) < 10 * 2048 * rows  # all of them would be 20


# Notebooks and threads ---------------------------------------------------------------------------


def everything(url):
    """What each method of an output returns, in short."""
    output = open_output(url)
    return {
        "runs": len(output.runs),
        "rows": output.rows(["key"]).num_rows,
        "all_rows": output.all_rows(["key"]).num_rows,
        "failures": output.failures().num_rows,
        "mask": output.mask("image-005.png").shape,
        "overlay": output.overlay("image-005.png").size,
    }


EXPECTED = {"runs": 2, "rows": 9, "all_rows": 12, "failures": 2, "mask": (33, 70), "overlay": (70, 33)}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def url(request, folder):
    if request.param == "local":
        return str(folder / "out")
    storage = uploaded(folder / "in", request.getfixturevalue("bucket"))
    for path, data in tree(folder / "out").items():
        storage.write(f"out/{path}", data)
    return f"{storage.root}/out"


def test_it_works_in_a_running_event_loop(url):
    async def cell():
        return everything(url)

    assert asyncio.run(cell()) == EXPECTED


def test_it_works_in_threads(url):
    found = []
    threads = [threading.Thread(target=lambda: found.append(everything(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [EXPECTED] * 3


def test_one_output_serves_several_threads(output):
    found = []
    keys = [row["key"] for row in output.rows(["key", "status"]).to_pylist() if row["status"] == "ok"]
    threads = [threading.Thread(target=lambda key=key: found.append(output.mask(key).dtype)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 7


def test_images_missed_by_a_run_that_died_just_before_its_end_are_gone(tmp_path, weights_file, monkeypatch):
    """The run is in the catalog, another job follows, and nothing lists the image again."""
    images = draw_images(tmp_path / "in", 3)
    run(job_of(tmp_path, weights_file))
    (images / "part-0/image-000.jpg").unlink()
    Image.new("RGB", (40, 40)).save(images / "new.png")
    write = LocalStorage.write

    def dies(self, path, data):
        if path.endswith("run.json"):
            raise Stopped
        write(self, path, data)

    monkeypatch.setattr(LocalStorage, "write", dies)
    with pytest.raises(Stopped):
        run(job_of(tmp_path, weights_file))
    monkeypatch.undo()
    run(job_of(tmp_path, weights_file, "masks.values=[1, 2]"))
    output = open_output(str(tmp_path / "out"))
    keys = output.rows(["key"])["key"].to_pylist()
    assert keys == ["new.png", "part-0/image-002.tif", "part-1/image-001.png"]
    for key in keys:
        output.mask(key)
