"""Recognition by content, and a format that is added by one module and one entry."""

import io
import subprocess
import sys

import imagecodecs
import numpy as np
import pytest
from conftest import statistics, tree
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ENDINGS, FORMATS, recognised
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import encoder_of, load_weights
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.unet.inference.segmenter import Segmenter

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def file(name):
    sink = io.BytesIO()
    if name == ".npy":
        np.save(sink, RGB)
    elif name == "JPEG XL":
        sink.write(imagecodecs.jpegxl_encode(RGB))
    else:
        Image.fromarray(RGB).save(sink, name.replace(" ", ""))
    return sink


@pytest.mark.parametrize("name", [format_.name for format_ in FORMATS])
def test_a_file_is_recognised_by_its_content(name):
    sink = file(name)
    format_ = recognised(sink)
    assert format_.name == name
    image = format_.open(sink, max_pixels=600)
    assert (image.width, image.height, image.frames(), image.orientation()) == (30, 20, 1, 1)
    assert np.asarray(image.pixels()).shape[:2] == (20, 30)
    with pytest.raises(Undecodable, match="600 pixels and run.max_image_pixels is 599") as error:
        format_.open(sink, max_pixels=599)
    assert error.value.error_class == "too_large"


@pytest.mark.parametrize("prefix", [b"MM\x00*", b"II*\x00", b"MM*\x00", b"II\x00*", b"MM\x00+", b"II+\x00"])
def test_every_byte_order_of_tiff_is_recognised(prefix):
    assert recognised(io.BytesIO(prefix + bytes(20))).name == "TIFF"


def test_other_files_are_unidentified():
    for data in (b"GIF80a" + bytes(20), b"<html>", b"RIFF1234WAVE", b"II"):
        with pytest.raises(Undecodable, match=r"not a JPEG, .* or \.npy file but ") as error:
            recognised(io.BytesIO(data))
        assert error.value.error_class == "unidentified"


def test_endings_are_those_of_the_table():
    photos = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")
    expected = (*photos, ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".npy")
    assert expected == ENDINGS


def test_the_table_loads_no_image_library():
    code = "import maskfleet.jobs.images.formats, sys; print({'PIL', 'simplejpeg', 'tifffile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


TOY = '''
"""Portable graymaps: a reader, and a codec that adds its line in the decoding process."""

import numpy as np

from maskfleet.jobs.images import formats
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.formats import Format, ImageFile

LINE = Format("PGM", (".pgm",), rb"P5", "toy_pgm")
formats.FORMATS = (*formats.FORMATS, LINE)


class Graymap(ImageFile):
    def __init__(self, file):
        _, sides, _, self.data = file.read().split(b"\\n", 3)
        self.width, self.height = map(int, sides.split())

    def pixels(self):
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)


read_header = Graymap
'''


def test_a_format_is_added_by_one_module_and_one_entry(tmp_path, weights_file, monkeypatch):
    (tmp_path / "toy_pgm.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)

    def with_toy(this, cpus):
        loaded = load_weights(this.job)
        segmenter = Segmenter(loaded.model, precision="fp32")
        return pipeline_around(this, segmenter, 1, encoder=encoder_of(this.job, loaded), codec="toy_pgm:decode")

    outputs = {}
    for ending in ("pgm", "png"):
        folder = tmp_path / f"as_{ending}"
        folder.mkdir()
        for number in range(4):
            grey = np.random.default_rng(number).integers(0, 256, (40, 50), np.uint8)
            if ending == "png":
                Image.fromarray(grey).save(folder / f"{number}.png")
            else:
                (folder / f"{number}.pgm").write_bytes(b"P5\n50 40\n255\n" + grey.tobytes())
        (tmp_path / f"{ending}.txt").write_text("\n".join(str(path) for path in sorted(folder.iterdir())))
        output = outputs[ending] = tmp_path / f"out_{ending}"
        job = {"input": str(tmp_path / f"{ending}.txt"), "output": str(output), "weights": weights_file}
        summary = run(Job.of(job, ["cluster.threads=1"]), InProcess(with_toy))
        assert (summary.ok, summary.failed) == (4, 0)
    assert list(tree(outputs["pgm"] / "masks").values()) == list(tree(outputs["png"] / "masks").values())
    counts = [[row["class_pixels"] for row in statistics(output)] for output in outputs.values()]
    assert counts[0] == counts[1]
