"""A look at an input says what its images are, and survives what they are not."""

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.starting import look as looking
from maskfleet.jobs.tools.starting.look import look


def job(folder):
    return Job.of({"input": str(folder), "output": str(folder / "out"), "weights": "nuclei"})


def test_kinds_sizes_bands_and_bits_are_seen(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "colour.png")
    Image.new("RGBA", (5, 4)).save(tmp_path / "alpha.png")
    Image.new("1", (5, 4)).save(tmp_path / "bits.png")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "deep.tif")
    np.save(tmp_path / "bands.npy", np.zeros((4, 5, 7), np.float32))
    Image.new("L", (5, 4)).save(tmp_path / "stack.tif", save_all=True, append_images=[Image.new("L", (5, 4))])
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    found = look(job(tmp_path))
    kinds = {kind.key: (kind.format, kind.width, kind.pages, kind.bands, kind.bits) for kind in found.sample}
    assert kinds == {
        "colour.png": ("PNG", 50, 1, 3, "8"),
        "alpha.png": ("PNG", 5, 1, 4, "8"),
        "bits.png": ("PNG", 5, 1, 1, "1"),
        "deep.tif": ("TIFF", 5, 1, 1, "16"),
        "bands.npy": (".npy", 5, 1, 7, "float"),
        "stack.tif": ("TIFF", 5, 2, None, None),
        "damaged.jpg": ("", 0, 1, None, None),
    }
    assert [kind.key for kind in found.sample if kind.problem] == ["damaged.jpg"]
    assert (found.images, found.more, found.endings[".png"], found.masks) == (7, False, 3, 0)


def test_a_long_listing_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "_LISTED", 3)
    for number in range(5):
        Image.new("L", (5, 4)).save(tmp_path / f"{number}.png")
    found = look(job(tmp_path))
    assert (found.images, found.more) == (3, True)


def test_an_empty_folder_and_a_missing_one(tmp_path):
    assert (look(job(tmp_path)).images, look(job(tmp_path)).sample) == (0, ())
    with pytest.raises(JobError, match="missing"):
        look(job(tmp_path / "missing"))
