"""Limits, orientation, scaling and refusals, whatever the format."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from maskfleet.jobs.images import decode as module
from maskfleet.jobs.images.contract import STREAM, Undecodable
from maskfleet.jobs.images.decode import decode

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (20, 30), np.uint8)
RGB = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
WIDE = RANDOM.integers(0, 65536, (20, 30)).astype(np.uint16)


def file(image, format_="PNG", **more):
    sink = io.BytesIO()
    image.save(sink, format_, **more)
    return sink.getvalue()


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.5])
def test_scaling_is_pillows_bicubic_with_truncated_sides(scale):
    big = RANDOM.integers(0, 256, (61, 75, 3), np.uint8)
    pixels, size, _ = decode(file(Image.fromarray(big)), channels=3, scale=scale)
    expected = Image.fromarray(big).resize((int(scale * 75), int(scale * 61)), Image.Resampling.BICUBIC)
    assert size == (61, 75)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_only_if_the_job_says_so(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(RGB), format_, exif=exif)
    pixels, size, _ = decode(data, channels=3)
    assert size == (20, 30)
    np.testing.assert_array_equal(pixels, RGB)
    pixels, size, _ = decode(data, channels=3, upright=True)
    expected = np.rot90(RGB, {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0))
    np.testing.assert_array_equal(pixels, expected[:, ::-1] if orientation in (2, 4, 5, 7) else expected)
    assert size == pixels.shape[:2]


def test_a_colour_profile_is_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(decode(file(Image.fromarray(RGB), icc_profile=profile), channels=3)[0], RGB)


def pages():
    first = Image.fromarray(RGB)
    return file(first, "TIFF", save_all=True, append_images=[first, first])


def bomb():
    return file(Image.new("L", (16000, 10000)))


@pytest.mark.parametrize(
    ("data", "error_class", "message"),
    [
        (b"", "empty", "empty; upload it again"),
        (b"<!doctype html><title>503</title>", "unidentified", "an error page"),
        (b"\x00\x01\x02\x03", "unidentified", "begin with 00 01 02 03"),
        (file(Image.fromarray(RGB), "JPEG")[:400], "corrupt", "does not decode"),
        (file(Image.fromarray(RGB))[:-300], "corrupt", "the PNG file is damaged"),
        (file(Image.new("RGB", (15, 15))), "too_small", "15×15 px; the network needs 16"),
        (bomb(), "too_large", "160000000 pixels and run.max_image_pixels is 89478485"),
        (pages(), "several_pages", "3 frames or pages"),
        (file(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "unsupported", "set inference.normalize"),
        (file(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "unsupported", "signed 32-bit integers"),
        (file(Image.fromarray(RGB), "PPM"), "unidentified", "not a JPEG, PNG"),
    ],
)
def test_each_refusal_has_a_name_and_a_remedy(data, error_class, message):
    with pytest.raises(Undecodable, match=message) as error:
        decode(data, channels=3, min_side=16)
    assert error.value.error_class == error_class


def test_an_image_too_small_after_scaling_is_refused():
    with pytest.raises(Undecodable, match="30×20 px scaled by 0.5; the network needs 16") as error:
        decode(file(Image.fromarray(RGB)), channels=3, scale=0.5, min_side=16)
    assert error.value.error_class == "too_small"


WHOLE = [
    file(Image.fromarray(RGB), "JPEG"),
    file(Image.fromarray(RGB)),
    file(Image.fromarray(WIDE), "TIFF"),
    file(Image.fromarray(RGB), "WEBP"),
    file(Image.fromarray(GREY % 4, "L").convert("P"), "BMP"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_give_pixels_or_a_refusal(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels, (height, width), _ = decode(bytes(damaged[:cut]), channels=3, max_pixels=100_000, min_side=16)
        except Undecodable as error:
            assert error.error_class in {"empty", "unidentified", "corrupt", "unsupported", "too_large", "too_small"}
            assert str(error)
        else:
            assert pixels.shape == (height, width, 3)


def test_an_image_too_large_to_be_decoded_whole_is_left_to_a_stream(monkeypatch):
    monkeypatch.setattr(module, "STREAM_PIXELS", 100)
    with pytest.raises(Undecodable) as error:
        decode(file(Image.fromarray(RGB)), channels=3, max_pixels=10**9)
    assert error.value.error_class == STREAM


def test_a_large_image_of_a_format_without_rows_is_refused(monkeypatch):
    monkeypatch.setattr(module, "STREAM_PIXELS", 100)
    with pytest.raises(Undecodable, match="a BMP file of 600 px cannot be read in rows; store TIFF or PNG") as error:
        decode(file(Image.fromarray(RGB), "BMP"), channels=3, max_pixels=10**9)
    assert error.value.error_class == "unsupported"


def test_the_smallest_side_is_the_network_s():
    assert decode(file(Image.new("RGB", (9, 8))), channels=3, min_side=8)[1] == (8, 9)
    with pytest.raises(Undecodable, match="30×20 px; the network needs 32 px a side"):
        decode(file(Image.fromarray(RGB)), channels=3, min_side=32)
