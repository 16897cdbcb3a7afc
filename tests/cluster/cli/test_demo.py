"""The demo."""

import re

import pytest
from command_line import maskfleet


@pytest.mark.slow
@pytest.mark.ray
def test_the_demo_runs_in_an_empty_folder(tmp_path):
    done = maskfleet("demo", "--images", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images   11: 8 ok, 3 failed (1 corrupt, 1 empty, 1 unidentified)" in done.stdout
    assert float(re.search(r"Dice +([\d.]+)", done.stdout)[1]) > 0.8
    assert len(list((tmp_path / "maskfleet-demo/output/masks").rglob("*.png"))) == 8
