"""Every mask format and export form, opened with the programs it is meant for."""

import os
import subprocess
import sys

import duckdb
import numpy as np
import pytest
import tifffile
from conftest import draw_images, jpeg, seeded, statistics, tree, uploaded
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.network.inference_config import encoder_of, load_weights
from maskfleet.jobs.outputs.exports.export import Exported, export
from maskfleet.jobs.outputs.exports.forms import EXPORTS, Form
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.unet import weights
from maskfleet.unet.inference.segmenter import Segmenter

FORMATS = ("png", "tar", "parquet", "rle")
VALUES = [0, 100, 200]


def quick(this, cpus):
    loaded = load_weights(this.job)
    segmenter = Segmenter(loaded.model, precision="fp32")
    return pipeline_around(this, segmenter, 2, encoder=encoder_of(this.job, loaded))


def run_as(folder, images, form, *sets):
    job = {"input": str(images), "output": str(folder / form), "weights": str(folder / "three.safetensors")}
    sets = (f"masks.format={form}", f"masks.values={VALUES}", "run.shard_size=4", "run.max_error_rate=1", *sets)
    return run(Job.of(job, sets), InProcess(open_pipeline=quick))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The output of one job in each mask format: nine images of three classes, and one file without an image."""
    folder = tmp_path_factory.mktemp("formats")
    images = draw_images(folder / "in", 9)
    (images / "broken.jpg").write_bytes(b"x")
    (folder / "three.safetensors").write_bytes(weights.save(seeded(3)))
    for form in FORMATS:
        run_as(folder, images, form)
    return folder


@pytest.fixture(scope="module")
def truth(outputs):
    """Class maps by mask name, read from the loose files."""
    shown = {name: np.asarray(Image.open(outputs / "png/masks" / name)) for name in tree(outputs / "png/masks")}
    assert len(shown) == 9
    assert set(np.unique(np.concatenate([pixels.ravel() for pixels in shown.values()]))) == set(VALUES)
    return {name: np.searchsorted(VALUES, pixels).astype(np.uint8) for name, pixels in shown.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_verifies(outputs, form):
    audit = verify(str(outputs / form))
    assert (audit.problems, audit.images) == ([], 10)
    assert (outputs / form / "masks").exists() == (form == "png")


def committed(output):
    storage = open_storage(str(output))
    (run_id,) = storage.names("runs")
    return storage, [commit for _, commit in sorted(Commits(storage, run_id, "worker").all().items())]


def test_webdataset_reads_the_tars(outputs, truth):
    webdataset = pytest.importorskip("webdataset")
    storage, commits = committed(outputs / "tar")
    urls = [storage.url(commit.objects["masks.tar"].path) for commit in commits if "masks.tar" in commit.objects]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert {f"{sample['__key__']}.png" for sample in samples} == set(truth)
    for sample in samples:
        assert (np.asarray(sample["png"].convert("L")) == np.array(VALUES)[truth[f"{sample['__key__']}.png"]]).all()


def tables(outputs):
    storage, commits = committed(outputs / "parquet")
    return [storage.url(commit.objects["masks.parquet"].path) for commit in commits]


def test_hugging_face_datasets_reads_the_tables(outputs, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("parquet", data_files=tables(outputs), split="train", cache_dir=str(tmp_path))
    assert found.num_rows == 10
    assert isinstance(found.features["mask"], datasets.Image)
    for row in found:
        if row["status"] == "failed":
            assert row["mask"] is None
        else:
            assert (np.asarray(row["mask"]) == np.array(VALUES)[truth[row["mask_member"]]]).all()
            assert row["class_pixels"] == np.bincount(truth[row["mask_member"]].ravel(), minlength=3).tolist()


@pytest.mark.parametrize("library", ["duckdb", "pandas", "polars"])
def test_tables_open_in(outputs, truth, library):
    if library == "duckdb":
        rows = duckdb.sql(
            f"SELECT mask_member AS name, mask.bytes AS data FROM read_parquet({tables(outputs)})"
        ).fetchall()
    else:
        read = pytest.importorskip(library).read_parquet
        rows = []
        for table in map(read, tables(outputs)):
            masks = [None if mask is None else mask["bytes"] for mask in table["mask"]]
            rows += zip(table["mask_member"], masks, strict=True)
        for table in map(read, (outputs / "rle/stats").rglob("*.parquet")):
            assert len(table) == 10
            assert len(table["mask_rle"][1]) == 3
    masks = {name: bytes(data) for name, data in rows if data is not None}
    assert masks == tree(outputs / "png/masks")


def test_run_lengths_are_those_of_coco(outputs, truth):
    coco = pytest.importorskip("pycocotools.mask")
    rows = [row for row in statistics(outputs / "rle") if row["status"] == "ok"]
    assert len(rows) == 9
    for row in rows:
        for number, runs in enumerate(row["mask_rle"]):
            if runs is not None:
                assert (coco.decode(runs) == (truth[row["mask_member"]] == number)).all()
                assert coco.area(runs) == row["class_pixels"][number]


@pytest.mark.parametrize("form", FORMATS)
def test_exports_are_the_same_from_every_format(outputs, truth, tmp_path, form):
    for kind in ("png", "voc"):
        done = export(str(outputs / form), kind, str(tmp_path / kind), names=("cell", "wall"))
        assert (done.images, done.failed) == (9, 1)
    assert tree(tmp_path / "png") == tree(outputs / "png/masks")
    for name, classes in truth.items():
        image = Image.open(tmp_path / "voc/SegmentationClass" / name)
        assert image.mode == "P"
        assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert (np.asarray(image) == classes).all()
    assert (tmp_path / "voc/labels.txt").read_text() == "background\ncell\nwall\n"


@pytest.mark.parametrize("form", ["tar", "rle"])
def test_coco_json_loads_in_pycocotools(outputs, truth, tmp_path, form, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    export(str(outputs / form), "coco", str(tmp_path), names=("cell", "wall"))
    found = coco.COCO(str(tmp_path / "annotations.json"))
    assert [found.cats[number]["name"] for number in (1, 2)] == ["cell", "wall"]
    names = {row["key"]: row["mask_member"] for row in statistics(outputs / "rle")}
    assert len(found.imgs) == 9
    for image in found.imgs.values():
        classes = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in found.imgToAnns[image["id"]]:
            mask = found.annToMask(annotation)
            classes[mask == 1] = annotation["category_id"]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation["area"], annotation["bbox"]) == (mask.sum(), box)
        assert (classes == truth[names[image["file_name"]]]).all()


def test_the_newest_outcome_of_each_image_is_exported(tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    (tmp_path / "three.safetensors").write_bytes(weights.save(seeded(3)))
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(jpeg(number))
    run_as(tmp_path, images, "tar")
    (images / "0.jpg").write_bytes(jpeg(7))
    (images / "1.jpg").write_bytes(b"broken now")
    run_as(tmp_path, images, "rle", f"output={tmp_path / 'tar'}")  # another format, on top of the first
    done = export(str(tmp_path / "tar"), "png", str(tmp_path / "all"))
    assert (done.images, done.failed) == (2, 1)
    assert set(os.listdir(tmp_path / "all")) == {"0.png", "2.png"}
    done = export(str(tmp_path / "tar"), "png", str(tmp_path / "one"), key="0.jpg")
    assert (done.images, done.failed) == (1, 0)
    assert (tmp_path / "one/0.png").read_bytes() == (tmp_path / "all/0.png").read_bytes()
    rows = {row["key"]: row for row in statistics(tmp_path / "tar") if row["mask_rle"]}
    classes = np.searchsorted(VALUES, np.asarray(Image.open(tmp_path / "one/0.png")))
    assert np.bincount(classes.ravel(), minlength=3).tolist() == rows["0.jpg"]["class_pixels"]
    with pytest.raises(JobError, match="no image key ends with '9.jpg'"):
        export(str(tmp_path / "tar"), "png", str(tmp_path / "none"), key="9.jpg")
    with pytest.raises(JobError, match="is inside the output"):
        export(str(tmp_path / "tar"), "png", str(tmp_path / "tar/masks"))
    with pytest.raises(JobError, match="is inside the input"):
        export(str(tmp_path / "tar"), "png", str(tmp_path / "in/masks"))
    with pytest.raises(JobError, match="there is no run"):
        export(str(tmp_path / "in"), "png", str(tmp_path / "none"))


@pytest.mark.s3
def test_an_export_to_a_bucket(outputs, truth, bucket):
    export(str(outputs / "rle"), "png", f"{bucket}/masks")
    assert {entry.path for entry in open_storage(f"{bucket}/masks").walk()} == set(truth)


def test_one_key_is_found_without_reading_every_row(tmp_path):
    """DuckDB skips row groups by their key range, the page index and Bloom filters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from maskfleet.jobs.ledger.statistics import SCHEMA, table_parquet

    count = 40_000
    fixed = {"url": "u", "run_id": "r", "fingerprint": "f", "status": "ok", "attempt": "a", "worker": "w"}
    columns = {"key": [f"{number:06}.jpg" for number in range(count)]} | {
        name: [v] * count for name, v in fixed.items()
    }
    table = pa.table([pa.array(columns.get(field.name, [None] * count), field.type) for field in SCHEMA], SCHEMA)
    (tmp_path / "part.parquet").write_bytes(table_parquet(table))
    file = pq.ParquetFile(tmp_path / "part.parquet")
    spans = [file.metadata.row_group(number).column(0).statistics for number in range(file.num_row_groups)]
    assert sum(span.min <= "012345.jpg" <= span.max for span in spans) == 1
    assert max(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)) <= 8192
    found = duckdb.sql(
        f"SELECT count(*) FROM parquet_metadata('{tmp_path}/part.parquet') WHERE path_in_schema = 'key' AND bloom_filter_offset > 0"
    ).fetchall()
    assert found == [(file.num_row_groups,)]


def geotiff_inputs(folder):
    """Write satellite images and a plain one. Returns the tie point of each satellite image."""
    folder.mkdir()
    found = {}
    for number, name in enumerate(("a.tif", "b.TIFF", "changed.tif")):
        pixels = np.random.default_rng(number).integers(0, 256, (300, 280 + number, 3), np.uint8)
        tie = (0.0, 0.0, 0.0, 399960.0 + number, 5700000.0, 0.0)
        tags = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, tie, True)]
        tifffile.imwrite(
            folder / name, pixels, photometric="rgb", metadata=None, extratags=tags, resolution=((254, 1), (254, 1))
        )
        found[name] = tie
    Image.new("RGB", (40, 50)).save(folder / "plain.png")
    return found


@pytest.mark.parametrize("form", ["png", "rle"])
@pytest.mark.parametrize("values", [VALUES, [[0, 0, 0], [255, 0, 0], [0, 0, 255]]])
def test_geotiffs_have_the_georeference_of_their_images(form, values, tmp_path):
    import io

    ties = geotiff_inputs(tmp_path / "in")
    (tmp_path / "three.safetensors").write_bytes(weights.save(seeded(3)))
    run_as(tmp_path, tmp_path / "in", form, f"masks.values={values}")
    with (tmp_path / "in/changed.tif").open("ab") as file:
        file.write(b"more")
    done = export(str(tmp_path / form), "geotiff", str(tmp_path / "as-tif"))
    assert done == Exported(4, 0, "2 georeferenced")
    export(str(tmp_path / form), "png", str(tmp_path / "as-png"))
    found = tree(tmp_path / "as-tif")
    assert set(found) == {"a.tif", "b.tif", "changed.tif", "plain.tif"}
    for name, data in found.items():
        with (
            Image.open(io.BytesIO(data)) as mask,
            Image.open(tmp_path / "as-png" / name.replace(".tif", ".png")) as png,
        ):
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(png))
            tie = ties.get(name.replace("b.tif", "b.TIFF"))
            assert mask.tag_v2.get(33922) == (None if name == "changed.tif" else tie)
            if name in ("a.tif", "b.tif"):
                assert mask.info["dpi"] == (254, 254)
                assert mask.tag_v2[33550] == (10, 10, 0)


@pytest.mark.s3
def test_geotiffs_from_and_to_a_bucket(tmp_path, bucket):
    ties = geotiff_inputs(tmp_path / "in")
    storage = uploaded(tmp_path / "in", bucket)
    (tmp_path / "three.safetensors").write_bytes(weights.save(seeded(3)))
    run_as(tmp_path, f"{bucket}/in", "png")
    assert export(str(tmp_path / "png"), "geotiff", f"{bucket}/tif").remark == "3 georeferenced"
    import io

    with Image.open(io.BytesIO(storage.read("tif/a.tif"))) as mask:
        assert mask.tag_v2[33922] == ties["a.tif"]


TOY = """
from maskfleet.jobs.outputs.exports.contract import FileExport


class ClassArrays(FileExport):
    def file(self, mask):
        return f"{mask.name}.raw", mask.classes().tobytes()

    def finish(self):
        return "raw arrays"


EXPORT = ClassArrays
"""


def test_a_form_is_added_by_one_module_and_one_entry(outputs, truth, tmp_path, monkeypatch):
    (tmp_path / "toy_export.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXPORTS, "raw", Form("toy_export", "raw arrays"))
    assert export(str(outputs / "rle"), "raw", str(tmp_path / "raw")) == Exported(9, 1, "raw arrays")
    assert tree(tmp_path / "raw") == {f"{name}.raw": classes.tobytes() for name, classes in truth.items()}


def test_an_unknown_form_is_refused_by_name(outputs, tmp_path):
    with pytest.raises(JobError, match="unknown export form 'gif'; choose one of png, voc, coco, geotiff"):
        export(str(outputs / "rle"), "gif", str(tmp_path / "gif"))


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_names_must_be_as_many_as_the_classes_but_the_first(outputs, tmp_path, names):
    message = f"the masks have 3 classes: {len(names)} given by --names; name all but the first class, such as --names cell,wall"
    with pytest.raises(JobError, match=message):
        export(str(outputs / "tar"), "coco", str(tmp_path / "x"), names=names)
    assert not (tmp_path / "x").exists()


def test_the_table_of_forms_loads_neither_numpy_nor_pyarrow():
    code = "import maskfleet.jobs.outputs.exports.forms, sys; print({'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def inbox(tmp_path, weights_file):
    """A job over an inbox that is emptied from night to night."""
    (tmp_path / "in").mkdir()
    job = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    return Job.of(job, ["cluster.threads=1", "inference.precision=fp32"])


def test_the_mask_of_a_gone_image_is_not_exported(tmp_path, weights_file):
    """Finding 10 of the attacks: an export wrote the masks of gone images over newer ones."""
    job = inbox(tmp_path, weights_file)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "in/scan.png")
    (tmp_path / "in/other.jpg").write_bytes(jpeg(1))
    run(job)
    (tmp_path / "in/scan.png").unlink()
    (tmp_path / "in/scan.jpg").write_bytes(jpeg(2, side=48))
    run(job)
    assert export(str(tmp_path / "out"), "png", str(tmp_path / "as-png")) == Exported(2, 0)
    names = list(tree(tmp_path / "as-png"))
    assert len(names) == 2
    (scan,) = (name for name in names if name.startswith("scan"))
    with Image.open(tmp_path / "as-png" / scan) as mask:
        assert mask.size == (48, 48)
    with pytest.raises(JobError, match="scan.png"):
        export(str(tmp_path / "out"), "png", str(tmp_path / "one"), key="scan.png")
    assert verify(str(tmp_path / "out")).problems == []


def test_two_images_with_one_name_are_both_exported_and_named_by_verify(tmp_path, weights_file, monkeypatch):
    """Outputs of earlier versions: two lists into one output, each with a mask named scan.png."""
    from maskfleet.jobs.outputs.exports.export import _Names

    class Mask:
        def __init__(self, key):
            self.row, self.name = {"key": key, "mask_member": "scan.png"}, "scan.png"

    monkeypatch.setattr("maskfleet.jobs.outputs.exports.export.replace", lambda mask, row: row["mask_member"])
    names = _Names()
    newest = Mask("scan.jpg")
    assert names.distinct(newest) is newest
    assert names.distinct(Mask("scan.png")) == "scan.png.png"
    assert names.distinct(Mask("scan.tif")) == "scan.tif.png"
    assert names.distinct(Mask("scan")) == "scan.png.png.png"
    assert names.distinct(newest) is newest
