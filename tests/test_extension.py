"""What a new kind of a thing costs: one module, and one entry in one table. Each test adds one to a copy of the code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskfleet

TOYS = Path(__file__).parent / "toys"

ENTRIES = {
    "toy_container": ("jobs/inputs/containers/formats.py", "    ParquetFiles(),\n", "    Bundles(),\n"),
    "toy_image": (
        "jobs/images/formats.py",
        "FORMATS: tuple[Format, ...] = (\n",
        '    Format("toy", (".toy",), rb"TOY!", "maskfleet.jobs.images.toy_image"),\n',
    ),
    "toy_mask": ("jobs/masks/formats.py", "FORMATS = {\n", '    "toy": "maskfleet.jobs.masks.toy_mask",\n'),
    "toy_storage": ("jobs/storage/schemes.py", '    "s3": S3Storage,\n', '    "toy": ToyStorage,\n'),
    "toy_export": (
        "jobs/outputs/exports/forms.py",
        "EXPORTS = {\n",
        '    "toy": Form("maskfleet.jobs.outputs.exports.toy_export", "digits"),\n',
    ),
    "toy_check": (
        "jobs/tools/doctor/table.py",
        '    "versions": Check(versions.versions),\n',
        '    "own name": Check(toy_check.own_name),\n',
    ),
    "toy_network": ("unet/network.py", 'KINDS = {"unet"', 'KINDS = {"bright": "maskfleet.unet.toy_network", "unet"'),
}
"""Of each toy: the file of the table, a text in it, and the entry, which goes behind it (or replaces it)."""

IMPORTS = {
    "toy_check": "from maskfleet.jobs.tools.doctor import toy_check\n",
    "toy_container": "from maskfleet.jobs.inputs.containers.toy_container import Bundles\n",
    "toy_storage": "from maskfleet.jobs.storage.toy_storage import ToyStorage\n",
}
"""Imports of tables that hold objects rather than names of modules."""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with every toy in it."""
    folder = tmp_path / "code"
    shutil.copytree(Path(maskfleet.__file__).parent, folder / "maskfleet", ignore=shutil.ignore_patterns("__pycache__"))
    for toy, (table, before, entry) in ENTRIES.items():
        path = folder / "maskfleet" / table
        shutil.copy(TOYS / f"{toy}.py", path.parent)
        text = path.read_text("utf-8")
        assert text.count(before) == 1, f"the table of {table} has another form; correct this test and CONTRIBUTING.md"
        text = text.replace(before, entry if entry.startswith("KINDS") else before + entry)
        if toy in IMPORTS:
            text = text.replace("\nfrom maskfleet", f"\n{IMPORTS[toy]}from maskfleet", 1)
        path.write_text(text, "utf-8")
    return folder


def python(copy, *arguments):
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, cwd=copy, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def toy_image(pixels) -> bytes:
    height, width, _ = pixels.shape
    return b"TOY!" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + pixels.tobytes()


def draw(folder) -> dict[str, np.ndarray]:
    """Images by key: one alone, and two in a bundle."""
    random = np.random.default_rng(0)
    images = {
        name: random.integers(0, 256, (20, 30, 3), np.uint8) for name in ("a.toy", "b.bundle/c.toy", "b.bundle/d.png")
    }
    members = {"c.toy": toy_image(images["b.bundle/c.toy"])}
    folder.mkdir()
    Image.fromarray(images["b.bundle/d.png"]).save(folder / "d.png")
    members["d.png"] = (folder / "d.png").read_bytes()
    (folder / "d.png").unlink()
    table, offset = [], 0
    for name, data in members.items():
        table.append((name, offset, len(data)))
        offset += len(data)
    (folder / "b.bundle").write_bytes(json.dumps(table).encode() + b"\n" + b"".join(members.values()))
    (folder / "a.toy").write_bytes(toy_image(images["a.toy"]))
    return images


WEIGHTS = """
import sys
from maskfleet.unet import weights
from maskfleet.unet.toy_network import Bright
open(sys.argv[1], "wb").write(weights.save(Bright(3)))
"""


CHECK = """
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.doctor.contract import Subject, examined
from maskfleet.jobs.tools.doctor.table import CHECKS
job = Job.of({"input": "in", "output": "out", "weights": "nuclei", "name": "night"})
print(*examined({"own name": CHECKS["own name"]}, Subject(job=job)))
"""


def test_doctor_has_the_toy_check(copy):
    assert "the job is called night" in python(copy, "-c", CHECK)


@pytest.mark.ray
@pytest.mark.parametrize(
    "ray", [["--no-ray"], pytest.param(["--set", "cluster.threads=1"], marks=pytest.mark.slow)], ids=["process", "ray"]
)
def test_a_job_uses_a_toy_of_every_kind(ray, copy, tmp_path):
    images = draw(tmp_path / "in")
    python(copy, "-c", WEIGHTS, str(tmp_path / "bright.safetensors"))
    options = ["--input", f"toy://{tmp_path}/in", "--output", f"toy://{tmp_path}/out", "--set", "masks.format=toy"]
    weights = ["--weights", f"toy://{tmp_path}/bright.safetensors"]
    told = json.loads(python(copy, "-m", "maskfleet", "run", "--json", *options, *weights, *ray))
    assert (told["images"], told["ok"]) == (3, 3)
    python(copy, "-m", "maskfleet", "verify", f"toy://{tmp_path}/out")
    python(copy, "-m", "maskfleet", "export", f"toy://{tmp_path}/out", f"toy://{tmp_path}/text", "--to", "toy")
    for key, pixels in images.items():
        (file,) = (tmp_path / "text").rglob(f"{Path(key).stem}*.txt")
        digits = np.array([[int(digit) for digit in line] for line in file.read_text().splitlines()])
        assert (digits == (pixels.astype(int).sum(axis=2) > 382)).all(), key
