"""Each format on its own, and a format that is added by one module and one entry."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import seeded, statistics, tree
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.formats import FORMATS, mask_format
from maskfleet.jobs.outputs.exports.export import export
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights

CLASSES = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
VALUES = (0, 100, 200)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "none"])
def test_a_stored_mask_decodes_to_its_class_map(name):
    format_ = mask_format(name)
    mask = format_.encoder(VALUES).encode(CLASSES)
    row = {"height": 2, "width": 3, "class_pixels": [1, 2, 3]} | format_.columns(mask, name="a.png", folder="shards/x")
    file = None
    if format_.archive is not None:
        table = pa.table({"mask_member": ["a.png", None]})
        archive = format_.pack(table, {"a.png": mask})
        ((stored_as, file),) = format_.unpack(archive)
        assert stored_as == row["mask_member"] == "a.png"
        assert row["mask_object"] == f"shards/x/{format_.archive}"
        assert format_.agrees(archive, table)
    np.testing.assert_array_equal(format_.classes(row, file, VALUES), CLASSES)
    assert list(format_.problems(row, file)) == []
    rows = format_.encoder(VALUES).row_encoder(*CLASSES.shape)
    for number in range(len(CLASSES)):
        rows.write(CLASSES[number : number + 1])
    assert rows.finish() == mask


def test_locations_name_every_place_of_masks():
    places = {name: dict(mask_format(name).locations("out", "r")) for name in FORMATS}
    assert places == {
        "png": {"masks": "out/masks/", "tars": "out/runs/r/shards/*/*/masks.tar"},
        "tar": {"tars": "out/runs/r/shards/*/*/masks.tar"},
        "parquet": {"tables": "out/runs/r/shards/*/*/masks.parquet"},
        "rle": {},
        "none": {},
    }


def test_only_loose_formats_export_files_and_all_of_them_have_an_archive():
    loose = [name for name in FORMATS if mask_format(name).loose]
    assert loose == ["png"]
    assert all(mask_format(name).archive for name in loose)


def test_the_table_of_formats_loads_neither_numpy_nor_pyarrow():
    code = "import maskfleet.jobs.masks.formats, sys; print({'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_job_with_an_unknown_format_is_refused():
    with pytest.raises(JobError, match='masks.format = "gif": must be one of png, tar, parquet, rle, none'):
        Job.of({"input": "in", "output": "out", "weights": "w.safetensors"}, ["masks.format=gif"])


TOY = """
import io

import numpy as np

from maskfleet.jobs.masks.formats import MaskFormat


class Rows:
    def __init__(self):
        self.rows = []

    def write(self, classes):
        self.rows.append(classes.copy())

    def finish(self):
        sink = io.BytesIO()
        np.save(sink, np.concatenate(self.rows))
        return sink.getvalue()


class Encoder:
    def encode(self, classes):
        rows = self.row_encoder(*classes.shape)
        rows.write(classes)
        return rows.finish()

    def row_encoder(self, height, width):
        return Rows()


class Arrays(MaskFormat):
    archive = "masks.npz"
    archive_label = "arrays"

    def encoder(self, values):
        return Encoder()

    def columns(self, mask, *, name, folder):
        return {"mask_object": f"{folder}/masks.npz", "mask_member": name, "mask_bytes": len(mask)}

    def pack(self, table, files):
        sink = io.BytesIO()
        np.savez(sink, **{name: np.frombuffer(file, np.uint8) for name, file in files.items()})
        return sink.getvalue()

    def unpack(self, archive):
        for name, file in np.load(io.BytesIO(archive)).items():
            yield name, file.tobytes()

    def problems(self, row, file):
        if file is None:
            yield "it has no mask"

    def classes(self, row, file, values):
        return np.load(io.BytesIO(file))


FORMAT = Arrays()
"""


def test_a_format_is_added_by_one_module_and_one_entry(images, tmp_path, monkeypatch):
    (tmp_path / "toy_arrays.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMATS, "npz", "toy_arrays")
    path = tmp_path / "three.safetensors"
    path.write_bytes(weights.save(seeded(3)))
    sets = [f"masks.values={list(VALUES)}", "run.shard_size=12", "cluster.threads=1"]
    outputs = {}
    for name in ("npz", "png"):
        output = outputs[name] = tmp_path / name
        table = {"input": str(images), "output": str(output), "weights": str(path)}
        assert run(Job.of(table, [*sets, f"masks.format={name}"])).failed == 0
        assert verify(str(output)).problems == []
    archives = list(outputs["npz"].glob("runs/*/shards/*/*/masks.npz"))
    assert len(archives) == len(statistics(outputs["npz"])) / 12
    export(str(outputs["npz"]), "png", str(tmp_path / "exported"))
    assert tree(tmp_path / "exported") == tree(outputs["png"] / "masks")
    some = next(iter(tree(tmp_path / "exported").values()))
    assert Image.open(io.BytesIO(some)).format == "PNG"
