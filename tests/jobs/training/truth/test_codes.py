import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.training.truth.codes import CHANNELS, codes_of, decode
from maskfleet.jobs.training.truth.labels import label_of

GREY = np.array([[0, 7], [128, 255]], np.uint8)
BITS = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
BLACK_FIRST, WHITE_FIRST = [0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]


def png(image, **more):
    sink = io.BytesIO()
    image.save(sink, more.pop("kind", "PNG"), **more)
    return sink.getvalue()


def npy(array):
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def tiff(array, **more):
    sink = io.BytesIO()
    tifffile.imwrite(sink, array, **more)
    return sink.getvalue()


def indexed(indices, palette, **more):
    image = Image.fromarray(indices, "P")
    image.putpalette(palette)
    return png(image, **more)


def labels(data, *, shown=False):
    pixels, size = decode(data, channels=CHANNELS, scale=0.5, max_pixels=10**6, upright=True)
    codes = codes_of(pixels)
    assert codes.shape == size
    return [[label_of(code, shown=shown) for code in row] for row in codes.tolist()]


STORED = {
    "grey": (png(Image.fromarray(GREY)), GREY),
    "palette": (indexed(GREY, [number * 7 % 251 for number in range(768)]), GREY),
    "grey palette": (indexed(GREY, [number for number in range(256) for _ in range(3)]), GREY),
    "inverting palette of ImageJ": (indexed(GREY, [255 - number for number in range(256) for _ in range(3)]), GREY),
    "white-first palette": (indexed(BITS, WHITE_FIRST), BITS),
    "white-first palette of 1 bit": (indexed(BITS, WHITE_FIRST, bits=1), BITS),
    "1 bit": (png(Image.fromarray(BITS > 0)), BITS),
    "16 bits": (png(Image.fromarray(GREY.astype(np.uint16) * 256)), GREY.astype(int) * 256),
    "alpha": (png(Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (2, 2), 255)])), GREY),
    "grey RGB": (png(Image.fromarray(np.stack([GREY] * 3, 2))), GREY),
    "grey RGBA": (png(Image.fromarray(np.stack([GREY] * 3 + [GREY * 0], 2))), GREY),
    "BMP": (png(Image.fromarray(GREY), kind="BMP"), GREY),
    "WebP": (png(Image.fromarray(np.stack([GREY] * 3, 2)), kind="WebP", lossless=True), GREY),
    "TIFF": (tiff(GREY), GREY),
    "MINISWHITE": (tiff(GREY, photometric="miniswhite"), GREY),
    "MINISWHITE of 16 bits": (tiff(GREY.astype(np.uint16), photometric="miniswhite"), GREY),
    "TIFF palette": (tiff(GREY, photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)), GREY),
    "TIFF of 1 bit": (tiff(BITS, bitspersample=1), BITS),
    "TIFF of 1 bit, white first": (tiff(BITS, bitspersample=1, photometric="miniswhite"), BITS),
    "TIFF of 4 bits": (png(Image.fromarray(BITS), kind="TIFF"), BITS),
    "TIFF with alpha": (
        tiff(np.stack([GREY, GREY * 0], 2), extrasamples=["unassalpha"], photometric="minisblack"),
        GREY,
    ),
    "TIFF of int8": (tiff(GREY.view(np.int8)), GREY.view(np.int8)),
    "TIFF of int16": (tiff(-GREY.astype(np.int16)), -GREY.astype(int)),
    "TIFF of uint32": (tiff(GREY.astype(np.uint32) * 70000), GREY.astype(int) * 70000),
    "big-endian TIFF of int32": (tiff(-GREY.astype(">i4") * 70000, byteorder=">"), -GREY.astype(int) * 70000),
    "bool array": (npy(BITS > 0), BITS),
    "array of int64": (npy(-GREY.astype(np.int64)), -GREY.astype(int)),
    "array with an axis for one channel": (npy(GREY[..., None]), GREY),
    "big-endian array": (npy(GREY.astype(">u2")), GREY),
}


@pytest.mark.parametrize("name", STORED)
def test_numbers_are_those_stored_and_never_converted(name):
    data, expected = STORED[name]
    assert labels(data) == expected.tolist()


def test_greys_of_few_bits_are_not_stretched():
    """Pillow stretches the 0 to 3 of 2 bits to 0 to 255."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for bits, stored in ((2, 0b00011011), (4, 0x0123)):
        row = b"\0" + stored.to_bytes(bits // 2)
        shape = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
        assert labels(data) == [[0, 1, 2, 3]]
        assert labels(data, shown=True) == [[number * 255 // (2**bits - 1) for number in range(4)]]


def test_colours_are_colours_and_black_is_zero():
    colours = np.array([[[255, 0, 0], [0, 0, 0]], [[0, 255, 0], [9, 9, 9]]], np.uint8)
    expected = [[(255, 0, 0), 0], [(0, 255, 0), 9]]
    assert labels(png(Image.fromarray(colours))) == expected
    assert labels(png(Image.fromarray(np.dstack([colours, np.full((2, 2), 200, np.uint8)])))) == expected
    assert labels(tiff(colours, photometric="rgb", planarconfig="contig")) == expected
    assert labels(npy(colours)) == expected
    assert labels(tiff(colours.astype(np.uint16) * 257, photometric="rgb")) == expected


def test_png_of_16_bits_keeps_its_low_bytes():
    """Pillow keeps the high byte of colours alone."""
    grey = np.array([[0, 1], [2, 300]], np.uint16)
    for bands in (2, 3, 4):
        wide = np.stack([grey] * bands, axis=2)
        if bands != 3:
            wide[..., -1] = 65535
        assert labels(imagecodecs.png_encode(wide)) == grey.tolist()
    colours = np.zeros((2, 2, 3), np.uint16)
    colours[0, 0] = 65535, 0, 0
    assert labels(imagecodecs.png_encode(colours)) == [[(255, 0, 0), 0], [0, 0]]


def test_an_index_can_be_taken_as_the_colour_that_it_shows():
    assert labels(indexed(BITS, WHITE_FIRST), shown=True) == (255 - 255 * BITS.astype(int)).tolist()
    assert labels(indexed(BITS, [0, 0, 0, 255, 0, 0]), shown=True)[0] == [0, (255, 0, 0), (255, 0, 0)]
    assert labels(png(Image.fromarray(BITS > 0)), shown=True)[0] == [0, 255, 255]
    assert labels(tiff(BITS, bitspersample=1, photometric="miniswhite"), shown=True)[0] == [255, 0, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_tiff_of_integers_gives_the_numbers_written(data):
    dtype = data.draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "i8"]))
    compression = data.draw(st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"]))
    limits = np.iinfo(dtype if dtype != "u4" else "i4")
    low, high = (limits.min if dtype != "u4" else 0), limits.max
    drawn = st.integers(max(low, -(2**31)), min(high, 2**31 - 1))
    array = data.draw(arrays(dtype, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=drawn))
    more = {"tile": (16, 16)} if data.draw(st.booleans()) else {}
    if dtype != "i8" and compression in ("zlib", "lzw") and data.draw(st.booleans()):  # tifffile writes no others
        more["predictor"] = True
    file = tiff(
        array,
        byteorder=data.draw(st.sampled_from("<>")),
        bigtiff=data.draw(st.booleans()),
        photometric=data.draw(st.sampled_from(["minisblack", "miniswhite"])),
        compression=compression,
        **more,
    )
    assert labels(file) == array.tolist()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_drawn_in_its_alpha_channel_is_refused(mode):
    bands = [Image.new("L", (2, 2), 255)] * (len(mode) - 1)
    with pytest.raises(Undecodable, match="drawn in its alpha channel: one colour has several opacities; save the alp"):
        labels(png(Image.merge(mode, [*bands, Image.fromarray(GREY)])))


@pytest.mark.parametrize(
    ("data", "kind"), [(b"", "empty"), (b"<html>", "unidentified"), (b"\x89PNG\r\n\x1a\n....", "corrupt")]
)
def test_files_other_than_masks_are_classified(data, kind):
    with pytest.raises(Undecodable) as caught:
        labels(data)
    assert caught.value.error_class == kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((2, 2, 3))), "store one integer per pixel"),
        (npy(np.zeros((2, 2))), "store one integer per pixel"),
        (npy(np.zeros((5, 2, 2), np.uint8).transpose(1, 2, 0)), r"shape \(2, 2, 5\) .* store one integer per pixel"),
        (npy(np.zeros(4, np.uint8)), r"an image has \(H, W\)"),
        (npy(np.array([[2**40]])), "the value 1099511627776; store classes as small integers"),
        (tiff(np.array([[0, 2**32 - 1]], np.uint32)), "the value 4294967295; store classes as small integers"),
        (tiff(np.zeros((2, 2), np.float32)), "store one integer per pixel"),
        (tiff(np.random.default_rng(0).integers(0, 65536, (8, 8, 3), np.uint16)), "store 8 bits per colour"),
    ],
)
def test_masks_hold_one_integer_or_colour_per_pixel(data, message):
    with pytest.raises(Undecodable, match=message):
        labels(data)
