"""The table of formats in docs/images.md, cell by cell: each kind is drawn, read, and read by the library that is named."""

import io
import os
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image
from PIL.ImageFile import ImageFile as PillowFile

from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.formats import FORMATS, recognised
from maskfleet.jobs.images.row_reader import _Rows

ROOT = Path(__file__).resolve().parents[3]
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (40, 50, 3), np.uint8)
WIDE = RANDOM.integers(0, 4096, (40, 50, 3)).astype(np.uint16)
COLOURS, GREY = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])


def saved(image, format_, **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def tiff(pixels, **how):
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, metadata=None, **{"photometric": "minisblack"} | how)
    return sink.getvalue()


def array(values):
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def planes(count, dtype):
    return {"planarconfig": "contig", "extrasamples": [0] * (count - 1)}, RANDOM.random((40, 50, count)).astype(dtype)


DRAWN = {
    ("JPEG", "grey or colours of 8 bits"): [saved(GREY, "JPEG"), saved(COLOURS, "JPEG", progressive=True)],
    ("JPEG", "CMYK of 8 bits"): [saved(COLOURS.convert("CMYK"), "JPEG", subsampling=each) for each in ("4:4:4", "4:2:0")],
    ("JPEG", "12 bits; lossless of up to 16 bits; JPEG-LS"): [
        imagecodecs.jpeg8_encode(WIDE, bitspersample=12),
        imagecodecs.jpeg8_encode(WIDE, lossless=True, bitspersample=16),
        imagecodecs.jpegls_encode(WIDE),
    ],
    ("PNG", "1 to 16 bits, palettes, alpha"): [
        saved(GREY.convert("1"), "PNG"), saved(GREY, "PNG"), saved(COLOURS.quantize(9), "PNG"),
        saved(COLOURS.convert("RGBA"), "PNG"), imagecodecs.png_encode(WIDE), saved(Image.fromarray(WIDE[..., 0].copy()), "PNG"),
    ],
    ("TIFF", "1 to 64 bits, any number of bands"): [
        tiff(RGB[..., 0] > 99), tiff(RGB[..., 0] % 16, bitspersample=4), tiff(WIDE, photometric="rgb"),
        tiff(WIDE[..., 0].astype(np.float64) / 4096), tiff(planes(7, np.float32)[1], **planes(7, np.float32)[0]),
    ],
    ("WebP", "colours of 8 bits, alpha"): [saved(COLOURS, "WEBP"), saved(COLOURS.convert("RGBA"), "WEBP", lossless=True)],
    ("BMP", "1 to 8 bits a colour"): [saved(COLOURS.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB")],
    ("GIF", "a palette; frames are pages"): [saved(COLOURS.quantize(9), "GIF")],
    ("AVIF", "8, 10 or 12 bits, alpha"): [
        saved(COLOURS, "AVIF"), saved(COLOURS.convert("RGBA"), "AVIF"), imagecodecs.avif_encode(WIDE, bitspersample=12),
        imagecodecs.avif_encode(WIDE // 4, bitspersample=10),
    ],
    ("JPEG 2000", "1 to 16 bits, any number of bands"): [
        imagecodecs.jpeg2k_encode(WIDE, level=0, bitspersample=12), imagecodecs.jpeg2k_encode(RGB[..., 0].copy()),
        imagecodecs.jpeg2k_encode(RGB[..., 0] // 128, bitspersample=1), imagecodecs.jpeg2k_encode(WIDE[..., :2].copy(), level=0),
    ],
    ("JPEG XL", "1 to 16 bits, floats, alpha"): [
        imagecodecs.jpegxl_encode(WIDE, lossless=True, bitspersample=12), imagecodecs.jpegxl_encode(np.dstack([RGB, RGB[..., 0]])),
        imagecodecs.jpegxl_encode(WIDE.astype(np.float32) / 4095, lossless=True),
    ],
    (".npy", "any type of numbers"): [array(WIDE.astype(dtype)) for dtype in ("u1", ">u2", "i4", "f2", "f8", "?")],
}  # fmt: skip


def table():
    """Return the cells of the table."""
    text = (ROOT / "docs/images.md").read_text("utf-8")
    lines = re.search(r"<!-- formats -->\n(.*?)\n<!-- /formats -->", text, re.DOTALL)[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ROWS = {(name, stored): (endings, libraries, beyond) for name, endings, stored, libraries, beyond in table()}


def test_every_format_has_its_endings_and_every_row_is_drawn():
    assert set(ROWS) == set(DRAWN)
    stated = {name: endings for (name, _), (endings, _, _) in ROWS.items()}
    assert stated == {format_.name: ", ".join(format_.endings) for format_ in FORMATS}


ENTRIES = {
    "simplejpeg": [(simplejpeg, "decode_jpeg")],
    "Pillow": [(PillowFile, "load")],
    "tifffile": [(tifffile, "TiffFile")],
    "imagecodecs": [(imagecodecs, f"{name}_decode") for name in ("jpeg8", "jpegls", "jpeg2k", "jpegxl", "avif", "png")],
    "NumPy": [(np, "load")],
}
"""By library, the functions by which it reads an image."""


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_every_kind_is_read_by_the_libraries_that_are_named(row, monkeypatch):
    called = set()

    def noted(library, function):
        def call(*arguments, **options):
            called.add(library)
            return function(*arguments, **options)

        return call

    for library, entries in ENTRIES.items():
        for owner, name in entries:
            monkeypatch.setattr(owner, name, noted(library, getattr(owner, name)))
    named = set(re.split(", or |, ", ROWS[row][1]))
    for data in DRAWN[row]:
        called.clear()
        file = io.BytesIO(data)
        recognised(file).open(file, max_pixels=10**6).pixels()
        assert called
        assert called <= named


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_every_kind_is_read_in_rows_or_refused_beyond_memory(row):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    for data in DRAWN[row]:
        descriptor = os.memfd_create("image")
        os.write(descriptor, data)
        with os.fdopen(descriptor, "rb") as file:
            image = recognised(file).open(file, max_pixels=10**6)
            if ROWS[row][2] == "refused":
                with pytest.raises(Undecodable, match="cannot be read in rows"):
                    _Rows(file, Limits(3))
            elif image.gives_rows:
                np.testing.assert_array_equal(np.asarray(image.rows(3, 9)), np.asarray(image.pixels())[3:9])
            else:
                assert _Rows(file, Limits(3)).read(3, 6).shape == (6, 50, 3)
