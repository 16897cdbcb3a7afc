"""Files of the kinds that users reported as misread, drawn anew: each is read rightly, or refused by the true reason.

`test_references` has the same kinds by chance; here each has its name.
"""

import io
import logging
import os
import re
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.formats import recognised
from maskfleet.jobs.images.row_reader import _Rows

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (24, 40, 3), np.uint8)
WIDE = RANDOM.integers(0, 65536, (24, 40, 3)).astype(np.uint16)
UNIT = RANDOM.random((24, 40)).astype(np.float32)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def tiff(pixels, *, byteorder="<", bigtiff=False, **how):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, metadata=None, **{"photometric": "minisblack"} | how)
    return sink.getvalue()


def saved(image, format_, **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def stored(data):
    """Return the pixels of a file as its reader gives them."""
    file = io.BytesIO(data)
    return np.asarray(recognised(file).open(file, max_pixels=10**6).pixels())


def by_rows(data, **limits):
    """Read a file in rows, for three channels."""
    descriptor = os.memfd_create("image")
    os.write(descriptor, data)
    with os.fdopen(descriptor, "rb") as file:
        rows = _Rows(file, Limits(3, **limits))
        return [rows.read(top, min(7, rows.height - top)) for top in range(0, rows.height, 7)]


def refused(data, **options):
    with pytest.raises(Undecodable) as error:
        decode(data, **{"channels": 3} | options)
    return f"{error.value.error_class}: {error.value}"


VALID = {
    "3 bands of 16 bits": (WIDE, {"planarconfig": "contig", "extrasamples": [0, 0]}),
    "RGB of 8 bits called MINISBLACK": (RGB, {"planarconfig": "contig", "extrasamples": [0, 0]}),
    "float64": (UNIT.astype(np.float64), {}),
    "float16": (UNIT.astype(np.float16), {}),
    "RGB of floats": (WIDE / np.float32(65535), {"photometric": "rgb"}),
    "uint32, big-endian": (WIDE[..., 0].astype(np.uint32), {"byteorder": ">"}),
    "BigTIFF, big-endian": (RGB, {"photometric": "rgb", "bigtiff": True, "byteorder": ">"}),
    "LERC": (RGB, {"photometric": "rgb", "compression": "lerc"}),
    "JPEG XL": (RGB, {"photometric": "rgb", "compression": "jpegxl"}),
    "WebP": (RGB, {"photometric": "rgb", "compression": "webp", "compressionargs": {"lossless": True}}),
    "big-endian floats, compressed": (UNIT, {"byteorder": ">", "compression": "zlib"}),
    "planes of 16 bits": (np.moveaxis(WIDE, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_tiff_that_pillow_lacks_or_misreads_is_read(name):
    pixels, how = VALID[name]
    data = tiff(pixels, **how)
    expected = np.moveaxis(pixels, 0, 2) if how.get("planarconfig") == "separate" else pixels
    np.testing.assert_array_equal(stored(data).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("pixels", "how", "words"),
    [
        (WIDE[..., 0].astype(np.int16), {}, r"int16|signed 16-bit"),
        (RGB[..., 0].astype(np.int8), {}, r"int8|signed 8-bit"),
        (WIDE[..., 0].astype(np.uint32), {}, r"uint32|unsigned 32-bit"),
        (UNIT.astype(np.complex64), {}, "complex"),
        (np.dstack([WIDE, WIDE]), {"planarconfig": "contig", "extrasamples": [0] * 5}, "6 bands"),
    ],
)
def test_numbers_that_a_network_cannot_take_are_refused_by_their_type(pixels, how, words):
    found = refused(tiff(pixels, **how))
    assert found.startswith("unsupported: ")
    assert re.search(words, found)


def halves(data):
    """A file cut in half, and one that ends as if it were whole."""
    return (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("way", ["whole", "in rows"])
@pytest.mark.parametrize(
    "data",
    [
        tiff(RGB, photometric="rgb", compression="zstd", rowsperstrip=5),
        tiff(RGB, photometric="rgb", compression="lzma", rowsperstrip=5),
        tiff(RGB, photometric="rgb", compression="zlib", tile=(16, 16)),
        tiff(RGB, photometric="rgb"),
        saved(Image.fromarray(RGB), "JPEG", quality=95),
        saved(Image.fromarray(RGB), "JPEG", quality=95, progressive=True),
        saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95),
        saved(Image.fromarray(RGB), "PNG"),
    ],
    ids=["ZSTD", "LZMA", "tiles", "plain TIFF", "JPEG", "progressive JPEG", "CMYK JPEG", "PNG"],
)
def test_half_a_file_is_a_failed_row_at_any_size(data, way):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    for half in halves(data):
        with pytest.raises(Exception, match=r"."):  # the program of rows makes any error `corrupt`
            decode(half, channels=3) if way == "whole" else by_rows(half)


def with_orientation(format_):
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(RGB), format_, exif=exif)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_large_image_with_an_orientation_is_turned_or_refused_never_lost(format_):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    data = with_orientation(format_)
    with pytest.raises(Undecodable, match="cannot be turned"):
        by_rows(data, upright=True)
    assert decode(data, channels=3, upright=True)[0].shape == (40, 24, 3)
    assert np.concatenate(by_rows(data)).shape == RGB.shape


def four_bands(kind):
    pixels = np.dstack([RGB, RGB[..., 0]])
    return pixels, tiff(pixels, photometric="rgb", extrasamples=[kind])


@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
def test_four_bands_are_colours_and_a_further_one_or_four(kind):
    pixels, data = four_bands(kind)
    np.testing.assert_array_equal(decode(data, channels=4)[0], pixels)
    np.testing.assert_array_equal(decode(data, channels=3)[0], RGB)


def test_two_bands_are_two_bands():
    pixels = RGB[..., :2].copy()
    data = tiff(pixels, planarconfig="contig", extrasamples=[0])
    np.testing.assert_array_equal(decode(data, channels=2)[0], pixels)
    assert "2 bands" in refused(data)


def array(values):
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def test_an_array_of_the_other_byte_order_is_read():
    np.testing.assert_array_equal(stored(array(WIDE.astype(">u2"))), WIDE)


def test_an_array_with_the_channels_first_is_told_so():
    assert "store the channels last, (H, W, C)" in refused(array(np.moveaxis(RGB, 2, 0)))


def test_floats_just_beyond_one_are_refused_by_their_range():
    found = refused(array(np.full((24, 40), 1.001)))
    assert "[0, 1]" in found or "1.001" in found
    assert found.startswith("unsupported")


@pytest.mark.parametrize("place", [0x7FFFFFF0, 10**6])
def test_a_next_page_beyond_the_end_is_no_page(place):
    data = bytearray(tiff(RGB, photometric="rgb"))
    first = int.from_bytes(data[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[end : end + 4] = place.to_bytes(4, "little")
    np.testing.assert_array_equal(stored(bytes(data)), RGB)


def test_a_stack_of_an_image_depth_is_several_images():
    deep = tiff(np.stack([RGB[..., 0]] * 32), volumetric=True, tile=(16, 16, 16))
    assert "frames or pages" in refused(deep)


def without_tag(data, code, value=None):
    """Return a TIFF without a tag, or with another number of 32 bits in it."""
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    entries = [data[place : place + 12] for place in range(first + 2, first + 2 + 12 * count, 12)]
    changed = [
        entry if int.from_bytes(entry[:2], "little") != code else entry[:8] + value.to_bytes(4, "little")
        for entry in entries
        if int.from_bytes(entry[:2], "little") != code or value is not None
    ]
    tail = data[first + 2 + 12 * count :]
    head = data[:first] + len(changed).to_bytes(2, "little") + b"".join(changed)
    return (
        head + bytes(12 * (count - len(changed))) + tail
        if value is not None
        else head + tail[:4] + bytes(12) + tail[4:]
    )


@pytest.mark.parametrize("tag", [259, 262, 278, 279, 284])  # compression, colours, rows, counts, planes
def test_a_tag_that_programs_leave_out_is_understood(tag):
    data = tiff(RGB, photometric="rgb", rowsperstrip=24)
    np.testing.assert_array_equal(stored(without_tag(data, tag)), RGB)


def test_a_grey_image_without_a_colour_space_is_not_inverted():
    np.testing.assert_array_equal(stored(without_tag(tiff(RGB[..., 0]), 262)), RGB[..., 0])


def test_a_strip_without_a_count_is_no_absent_one():
    np.testing.assert_array_equal(stored(without_tag(tiff(RGB, photometric="rgb", rowsperstrip=24), 279, 0)), RGB)
    compressed = tiff(RGB, photometric="rgb", rowsperstrip=24, compression="zlib")
    assert "corrupt" in refused(without_tag(compressed, 279, 0))


@pytest.mark.parametrize(("number", "name"), [(34676, "SGILOG"), (99, "JPEG_99"), (64999, "64999")])
def test_a_compression_that_is_not_known_is_named(number, name):
    found = refused(without_tag(tiff(RGB, photometric="rgb"), 259, number))
    assert found.startswith("unsupported: ")
    assert name in found


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def test_a_png_that_needs_more_than_is_known_or_lacks_its_palette_is_refused():
    data = saved(Image.fromarray(RGB), "PNG")
    apple = data[:8] + chunk(b"CgBI", b"\0\0\0\2") + data[8:]
    palette = saved(Image.fromarray(RGB).quantize(9), "PNG")
    place = palette.index(b"PLTE") - 4
    lacking = palette[:place] + palette[place + 12 + int.from_bytes(palette[place : place + 4]) :]
    for harmed, words in ((apple, "unsupported"), (lacking, "corrupt")):
        assert refused(harmed).startswith(words)
    assert "CgBI" in refused(apple) or "damaged" in refused(apple)
