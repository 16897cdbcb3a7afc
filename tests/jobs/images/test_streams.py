"""Images read in rows have the pixels of whole decoding, or a named refusal."""

import io
import os
import signal
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.streams import Stream, Unreadable

pytest.importorskip("pyvips", reason="needs the extra 'large'")

RANDOM = np.random.default_rng(1)
HEIGHT, WIDTH = 310, 170
GREY = RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
RGB = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(RGB[::10, ::10]).resize((WIDTH, HEIGHT)))
ALPHA = Image.fromarray(GREY)
WIDE = RANDOM.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


def palette():
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0, 7, 7, 255] + [0] * 756)
    return image


def file(tmp_path, image, format_, **more):
    path = tmp_path / "image"
    image.save(path, format_, **more)
    return path


CASES = {
    "RGB TIFF in strips": (Image.fromarray(RGB), "TIFF", {}),
    "RGB TIFF, LZW": (Image.fromarray(RGB), "TIFF", {"compression": "tiff_lzw"}),
    "RGB TIFF, deflate": (Image.fromarray(RGB), "TIFF", {"compression": "tiff_adobe_deflate"}),
    "RGB PNG": (Image.fromarray(RGB), "PNG", {}),
    "RGB JPEG": (Image.fromarray(SMOOTH), "JPEG", {"quality": 90}),
    "RGB WebP": (Image.fromarray(RGB), "WEBP", {"lossless": True}),
    "RGBA PNG": (Image.fromarray(np.dstack([RGB, GREY])), "PNG", {}),
    "LA PNG": (Image.merge("LA", [Image.fromarray(GREY), ALPHA]), "PNG", {}),
    "L PNG": (Image.fromarray(GREY), "PNG", {}),
    "1 PNG": (Image.fromarray(GREY > 127), "PNG", {}),
    "1 TIFF": (Image.fromarray(GREY > 127), "TIFF", {}),
    "P PNG": (palette(), "PNG", {}),
    "P TIFF": (palette(), "TIFF", {}),
    "I;16 PNG": (Image.fromarray(WIDE), "PNG", {}),
    "I;16 TIFF": (Image.fromarray(WIDE), "TIFF", {}),
    "F TIFF": (Image.fromarray((GREY / 255).astype(np.float32)), "TIFF", {}),
    "CMYK TIFF": (Image.merge("CMYK", [*Image.fromarray(RGB).split(), ALPHA]), "TIFF", {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_those_of_whole_decoding(name, channels, tmp_path):
    image, format_, more = CASES[name]
    path = file(tmp_path, image, format_, **more)
    expected, size, _ = decode(path.read_bytes(), channels=channels)
    with path.open("rb") as opened, Stream(opened.fileno(), Limits(channels)) as stream:
        assert (stream.height, stream.width) == size
        # Tiles ask with overlaps, and the last ones lie close together.
        for start, stop in ((0, 150), (64, 214), (128, 300), (160, 310)):
            np.testing.assert_array_equal(stream.read(start, stop)[0], expected[start:stop])


def test_pages_bombs_and_damage_are_refused_by_name(tmp_path):
    first = Image.fromarray(RGB)
    whole = io.BytesIO()
    first.save(whole, "PNG")
    jpeg = io.BytesIO()
    first.save(jpeg, "JPEG")
    bmp = io.BytesIO()
    first.save(bmp, "BMP")
    pages = io.BytesIO()
    first.save(pages, "TIFF", save_all=True, append_images=[first])
    cases = [
        (b"<html>", Limits(3), "unidentified"),
        (pages.getvalue(), Limits(3), "several_pages"),
        (whole.getvalue(), Limits(3, max_pixels=1000), "too_large"),
        (whole.getvalue(), Limits(3, scale=0.5), "unsupported"),
        (whole.getvalue(), Limits(4), "unsupported"),
        (whole.getvalue()[:50_000], Limits(3), "corrupt"),
        (jpeg.getvalue()[:20_000], Limits(3), "corrupt"),
        (bmp.getvalue(), Limits(3), "unsupported"),
    ]
    for data, limits, error_class in cases:
        path = tmp_path / "image"
        path.write_bytes(data)
        with path.open("rb") as opened, pytest.raises(Unreadable) as error, Stream(opened.fileno(), limits) as stream:
            stream.read(0, HEIGHT)
        assert error.value.failure.error_class == error_class
        assert "\n" not in error.value.failure.message


def test_a_reader_that_dies_fails_its_image_alone(tmp_path):
    path = file(tmp_path, Image.fromarray(RGB), "PNG")
    with path.open("rb") as opened, Stream(opened.fileno(), Limits(3)) as stream:
        stream._process._process.kill()
        with pytest.raises(Unreadable, match="crashed the reader process") as error:
            stream.read(0, 20)
    assert error.value.failure.error_class == "crash"


def test_13_a_stopped_reader_has_a_deadline(tmp_path):
    path = file(tmp_path, Image.fromarray(RGB), "PNG")
    with path.open("rb") as opened, Stream(opened.fileno(), Limits(3, seconds=2)) as stream:
        os.kill(stream._process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(Unreadable, match="took more than 2 s") as error:
            stream.read(0, 20)
        assert time.monotonic() - began < 10
    assert error.value.failure.error_class == "timeout"


def test_smaller_copies_are_not_counted_as_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "image") as writer:
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    with (tmp_path / "image").open("rb") as opened, Stream(opened.fileno(), Limits(3)) as stream:
        np.testing.assert_array_equal(stream.read(0, HEIGHT)[0], RGB)
