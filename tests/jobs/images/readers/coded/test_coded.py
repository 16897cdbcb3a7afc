"""JPEG 2000, JPEG XL and AVIF. The references are the array that was written, and Pillow."""

import io

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.formats import recognised

SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def drawn(sides, bands, bits, seed=0):
    values = np.random.default_rng(seed).integers(0, 2**bits, (*sides, bands))
    pixels = values.astype(np.uint8 if bits == 8 else np.uint16)
    return pixels[..., 0].copy() if bands == 1 else pixels


def saved(image, format_, **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


WRITERS = {
    "JPEG 2000": lambda pixels, bits, boxed: imagecodecs.jpeg2k_encode(
        pixels, level=0, bitspersample=bits, codecformat="jp2" if boxed else "j2k"
    ),
    "JPEG XL": lambda pixels, bits, boxed: imagecodecs.jpegxl_encode(
        pixels, lossless=True, bitspersample=bits, usecontainer=boxed
    ),
    "AVIF": lambda pixels, bits, boxed: imagecodecs.avif_encode(pixels, level=100, bitspersample=min(bits, 12)),
}


def opened(data):
    file = io.BytesIO(data)
    format_ = recognised(file)
    return format_.name, format_.open(file, max_pixels=10_000)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(WRITERS)), SIDES, st.sampled_from([1, 2, 3, 4]), st.sampled_from([8, 10, 12, 16]),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_the_pixels_are_those_that_were_written(name, sides, bands, bits, boxed, seed):
    bits = min(bits, 12) if name == "AVIF" else bits
    pixels = drawn(sides, bands, bits, seed)
    found, image = opened(WRITERS[name](pixels, bits, boxed))
    assert (found, image.height, image.width, image.frames(), image.orientation()) == (name, *sides, 1, 1)
    np.testing.assert_array_equal(image.pixels(), pixels)
    assert image.maximum == 2**bits - 1
    if name != "JPEG 2000" or bands != 2:  # where two bands of JPEG 2000 without a definition are two greys
        assert image.colours == (1 if bands <= 2 else 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("format_", ["JPEG2000", "AVIF"])
def test_files_of_pillow_are_read_as_pillow_reads_them(format_, mode):
    image = Image.fromarray(drawn((40, 50), 3, 8)).convert(mode)
    data = saved(image, format_)
    with Image.open(io.BytesIO(data)) as read:
        colours = read.convert("L" if mode in ("L", "LA") and read.mode in ("L", "LA") else "RGB")
        expected = np.asarray(colours.convert("RGB"))
    np.testing.assert_array_equal(decode(data, channels=3)[0], expected)


@pytest.mark.parametrize("sides", [(1, 1), (60, 100), (3, 2000), (9, 16), (75, 100), (60, 90), (200, 40), (40, 80)])
def test_every_form_of_a_size_in_jpeg_xl_is_understood(sides):
    _, image = opened(imagecodecs.jpegxl_encode(np.zeros(sides, np.uint8)))
    assert (image.height, image.width) == sides


def test_floats_of_jpeg_xl_are_floats():
    pixels = np.random.default_rng(0).random((40, 30, 3)).astype(np.float32)
    image = opened(imagecodecs.jpegxl_encode(pixels, lossless=True))[1]
    assert image.maximum is None
    np.testing.assert_array_equal(image.pixels(), pixels)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bands", [1, 3])
def test_a_cut_file_is_refused(name, bands):
    data = WRITERS[name](drawn((60, 70), bands, 8), 8, True)
    for end in (20, len(data) // 4, len(data) // 2, len(data) - 3):
        with pytest.raises(Undecodable) as error:
            decode(data[:end], channels=3)
        assert error.value.error_class == "corrupt"


def test_sizes_are_limited_before_anything_is_decoded():
    for name, write in WRITERS.items():
        data = write(drawn((120, 120), 1, 8), 8, True)
        with pytest.raises(Undecodable, match="14400 pixels and run.max_image_pixels is 10000") as error:
            opened(data)
        assert error.value.error_class == "too_large", name


def test_what_is_not_read_is_named():
    rgb = Image.fromarray(drawn((40, 50), 3, 8))
    frames = saved(rgb, "AVIF", save_all=True, append_images=[rgb.rotate(90)])
    stacked = imagecodecs.jpegxl_encode(np.zeros((3, 20, 30, 3), np.uint8))
    for data, words in (
        (saved(rgb.convert("YCbCr"), "JPEG2000"), "JPEG 2000 of the colour space sYCC"),
        (frames, "2 frames"),
        (stacked, "an animated JPEG XL image"),
    ):
        with pytest.raises(Undecodable, match=words) as error:
            opened(data)
        assert error.value.error_class == "unsupported"


def test_avif_is_turned_as_it_says():
    image = Image.fromarray(drawn((40, 50), 3, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, "AVIF", exif=exif.tobytes())
    stored, upright = (decode(data, channels=3, upright=upright)[0] for upright in (False, True))
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))
