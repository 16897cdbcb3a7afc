"""The table in `jobs.images.channels`, cell by cell."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images import channels as module
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.unet.pixels.numbers import seen

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (20, 30), np.uint8)
RGB = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
ALPHA = RANDOM.integers(0, 256, (20, 30, 1), np.uint8)
WIDE = RANDOM.integers(0, 65536, (20, 30)).astype(np.uint16)
THREE = np.repeat(GREY[..., None], 3, axis=2)
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))[..., None]
WIDE_SEEN = (WIDE / 65535).astype(np.float32)[..., None]


def file(image, format_="PNG", **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


def palette():
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0, 7, 7, 255] + [0] * 756)
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 0], [7, 7, 255]], np.uint8)[GREY % 4]
    return image, colours


BILEVEL = Image.fromarray(GREY > 127)
CMYK = Image.merge("CMYK", [Image.fromarray(channel) for channel in (*RGB.transpose(2, 0, 1), GREY)])

TABLE = {
    "1": (
        file(BILEVEL),
        np.repeat(((GREY > 127) * np.uint8(255))[..., None], 3, 2),
        ((GREY > 127) * np.uint8(255))[..., None],
    ),
    "L": (file(Image.fromarray(GREY)), THREE, GREY[..., None]),
    "LA": (file(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])])), THREE, GREY[..., None]),
    "I;16 PNG": (file(Image.fromarray(WIDE)), np.repeat(WIDE_SEEN, 3, 2), WIDE_SEEN),
    "I;16 TIFF": (file(Image.fromarray(WIDE), "TIFF"), np.repeat(WIDE_SEEN, 3, 2), WIDE_SEEN),
    "P": (file(palette()[0]), palette()[1], np.asarray(Image.fromarray(palette()[1]).convert("L"))[..., None]),
    "RGB": (file(Image.fromarray(RGB)), RGB, LUMA),
    "RGB BMP": (file(Image.fromarray(RGB), "BMP"), RGB, LUMA),
    "RGB WebP": (file(Image.fromarray(RGB), "WEBP", lossless=True), RGB, LUMA),
    "RGB TIFF": (file(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB, LUMA),
    "RGBA": (file(Image.fromarray(np.dstack([RGB, ALPHA]))), RGB, LUMA),
    "CMYK": (
        file(CMYK, "TIFF"),
        np.asarray(CMYK.convert("RGB")),
        np.asarray(CMYK.convert("RGB").convert("L"))[..., None],
    ),
}


WEIGHTS = np.array([[0.299], [0.587], [0.114]])
UNIT = GREY.astype(np.float32) / 255
FOUR = np.dstack([RGB, ALPHA])
REFUSED = "refused"


def array(values):
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


# Pixels for a network of as many channels as the file stores.
OTHERS = {
    "LA": (2, np.dstack([GREY, ALPHA])),
    "RGBA": (4, FOUR),
    "CMYK": (4, np.dstack([RGB, GREY])),
    ".npy of 5": (5, np.dstack([RGB, GREY, GREY])),
}
TABLE |= {
    "F TIFF": (file(Image.fromarray(UNIT), "TIFF"), np.repeat(UNIT[..., None], 3, 2), UNIT[..., None]),
    "F beyond": (file(Image.fromarray(UNIT * 2), "TIFF"), REFUSED, REFUSED),
    "F not a number": (file(Image.fromarray(UNIT * np.float32("nan")), "TIFF"), REFUSED, REFUSED),
    "I": (file(Image.fromarray(GREY.astype(np.int32)), "TIFF"), REFUSED, REFUSED),
    "YCbCr": (
        file(Image.fromarray(RGB).convert("YCbCr"), "TIFF"),
        np.asarray(Image.fromarray(RGB).convert("YCbCr").convert("RGB")),
        np.asarray(Image.fromarray(RGB).convert("YCbCr").convert("RGB").convert("L"))[..., None],
    ),
    ".npy grey": (array(GREY), THREE, GREY[..., None]),
    ".npy of 1": (array(GREY[..., None]), THREE, GREY[..., None]),
    ".npy RGB": (array(RGB), RGB, LUMA),
    ".npy bool": (array(GREY > 127), *TABLE["1"][1:]),
    ".npy uint16": (array(WIDE), np.repeat(WIDE_SEEN, 3, 2), WIDE_SEEN),
    ".npy float64": (array(RGB / 255), (RGB / 255).astype(np.float32), (RGB / 255 @ WEIGHTS).astype(np.float32)),
    ".npy float beyond": (array(RGB / 200), REFUSED, REFUSED),
    ".npy int64": (array(RGB.astype(np.int64)), REFUSED, REFUSED),
    ".npy of 5": (array(OTHERS[".npy of 5"][1]), REFUSED, REFUSED),
    ".npy of one axis": (array(GREY[0]), REFUSED, REFUSED),
    ".npy of objects": (array(np.array([[{}]], dtype=object)), REFUSED, REFUSED),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_each_mode_and_each_number_of_channels(name, channels):
    data, three, one = TABLE[name]
    stored, others = OTHERS.get(name, (0, REFUSED))
    expected = {1: one, 3: three}.get(channels, others if channels == stored else REFUSED)
    if isinstance(expected, str):
        with pytest.raises(Undecodable) as error:
            decode(data, channels=channels)
        assert error.value.error_class in ("unsupported", "corrupt")
    else:
        pixels, size, levels = decode(data, channels=channels)
        assert size == (20, 30)
        if expected.dtype == np.uint8:
            assert (pixels.dtype, levels) == (np.uint8, None)
            np.testing.assert_array_equal(pixels, expected)
        else:
            np.testing.assert_allclose(seen(pixels, levels), expected, rtol=0, atol=1e-7)


def test_the_table_is_printed_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "images.md").read_text("utf-8")
    rows = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(rows) > 12
    assert "\n".join(rows) in page


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels, _, levels = decode(file(Image.fromarray(ramp)), channels=1)
    found = seen(pixels, levels)
    assert (found.min(), found.max()) == (0, 1)
    assert len(np.unique(found)) == len(np.unique(ramp))
