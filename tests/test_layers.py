"""cluster → jobs → unet, never back; and light commands load neither torch nor Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_layers_hold():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import maskfleet.cluster.cli.main", {"torch", "ray", "s3fs", "pyarrow"}),
        (
            "import maskfleet.jobs.images.decoders, maskfleet.jobs.images.decoder, maskfleet.jobs.images.row_reader",
            {"torch", "ray", "s3fs", "pyarrow", "pydantic"},
        ),
        (
            "import maskfleet.jobs.outputs.status, maskfleet.jobs.inputs.sources, maskfleet.jobs.storage.schemes",
            {"torch", "ray", "s3fs"},
        ),
        ("import maskfleet.jobs.run.execute", {"ray"}),
        ("import maskfleet.unet.inference.segmenter, maskfleet.unet.weights", {"ray", "pyarrow", "PIL", "fsspec"}),
    ],
)
def test_what_an_import_does_not_load(code, absent):
    check = f"{code}; import sys; print(*[m for m in {sorted(absent)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
