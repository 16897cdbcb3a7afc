"""The table in `jobs.images.decode`, cell by cell, and bytes that are no images."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from maskfleet.jobs.images import decode as module
from maskfleet.jobs.images.decode import Undecodable, decode

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (20, 30), np.uint8)
RGB = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
ALPHA = RANDOM.integers(0, 256, (20, 30, 1), np.uint8)
WIDE = RANDOM.integers(0, 65536, (20, 30)).astype(np.uint16)
THREE = np.repeat(GREY[..., None], 3, axis=2)
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))[..., None]
NARROW = np.rint(WIDE * (255 / 65535)).astype(np.uint8)


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
    "I;16 PNG": (file(Image.fromarray(WIDE)), np.repeat(NARROW[..., None], 3, 2), NARROW[..., None]),
    "I;16 TIFF": (file(Image.fromarray(WIDE), "TIFF"), np.repeat(NARROW[..., None], 3, 2), NARROW[..., None]),
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


UNIT = GREY.astype(np.float32) / 255
FOUR = np.dstack([RGB, ALPHA])
REFUSED = "refused"


def array(values):
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


# What a network of other channels sees: for n channels that the file stores, or `REFUSED`.
OTHERS = {
    "LA": (2, np.dstack([GREY, ALPHA])),
    "RGBA": (4, FOUR),
    "CMYK": (4, np.dstack([RGB, GREY])),
    ".npy of 5": (5, np.dstack([RGB, GREY, GREY])),
}
TABLE |= {
    "F TIFF": (file(Image.fromarray(UNIT), "TIFF"), THREE, GREY[..., None]),
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
    ".npy uint16": (array(WIDE), np.repeat(NARROW[..., None], 3, 2), NARROW[..., None]),
    ".npy float64": (array(RGB / 255), RGB, LUMA),
    ".npy float beyond": (array(RGB / 200), REFUSED, REFUSED),
    ".npy int64": (array(RGB.astype(np.int64)), REFUSED, REFUSED),
    ".npy of 5": (array(OTHERS[".npy of 5"][1]), REFUSED, REFUSED),
    ".npy of one axis": (array(GREY[0]), REFUSED, REFUSED),
    ".npy of objects": (array(np.array([[{}]], dtype=object)), REFUSED, REFUSED),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_each_mode_and_each_network(name, channels):
    data, three, one = TABLE[name]
    stored, others = OTHERS.get(name, (0, REFUSED))
    expected = {1: one, 3: three}.get(channels, others if channels == stored else REFUSED)
    if isinstance(expected, str):
        with pytest.raises(Undecodable) as error:
            decode(data, channels=channels)
        assert error.value.error_class in ("unsupported", "corrupt")
    else:
        pixels, size = decode(data, channels=channels)
        assert size == (20, 30)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)


def test_the_table_is_printed_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "images.md").read_text("utf-8")
    rows = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(rows) > 12
    assert "\n".join(rows) in page


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels, _ = decode(file(Image.fromarray(ramp)), channels=1)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert len(np.unique(pixels)) == 256


def test_jpeg_pixels_are_pillows():
    data = file(Image.fromarray(RGB), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data, channels=3)[0], np.asarray(image))


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.5])
def test_scaling_is_pillows_bicubic_with_truncated_sides(scale):
    big = RANDOM.integers(0, 256, (61, 75, 3), np.uint8)
    pixels, size = decode(file(Image.fromarray(big)), channels=3, scale=scale)
    expected = Image.fromarray(big).resize((int(scale * 75), int(scale * 61)), Image.Resampling.BICUBIC)
    assert size == (61, 75)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_where_the_job_says_so(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(RGB), format_, exif=exif)
    pixels, size = decode(data, channels=3)
    assert size == (20, 30)
    np.testing.assert_array_equal(pixels, RGB)
    pixels, size = decode(data, channels=3, upright=True)
    expected = np.rot90(RGB, {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0))
    np.testing.assert_array_equal(pixels, expected[:, ::-1] if orientation in (2, 4, 5, 7) else expected)
    assert size == pixels.shape[:2]


def test_a_profile_is_left_alone():
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
        (b"<!doctype html><title>503</title>", "unidentified", "text .an error page"),
        (b"\x00\x01\x02\x03", "unidentified", "begin with 00 01 02 03"),
        (file(Image.fromarray(RGB), "JPEG")[:400], "corrupt", "does not decode"),
        (file(Image.fromarray(RGB))[:-300], "corrupt", "does not decode"),
        (file(Image.new("RGB", (15, 15))), "too_small", "15×15 px; the network needs 16"),
        (bomb(), "too_large", "160000000 pixels and run.max_image_pixels is 89478485"),
        (pages(), "unsupported", "3 frames or pages"),
        (file(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "unsupported", r"must lie in \[0, 1\]"),
        (file(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "unsupported", "mode I"),
        (file(Image.fromarray(RGB), "GIF"), "unidentified", "not a JPEG, PNG"),
        (file(Image.fromarray(RGB), "PPM"), "unidentified", "not a JPEG, PNG"),
    ],
)
def test_each_reason_has_a_name_and_a_remedy(data, error_class, message):
    with pytest.raises(Undecodable, match=message) as error:
        decode(data, channels=3)
    assert error.value.error_class == error_class


def test_an_image_that_scaling_makes_too_small():
    with pytest.raises(Undecodable, match="30×20 px scaled by 0.5; the network needs 16") as error:
        decode(file(Image.fromarray(RGB)), channels=3, scale=0.5)
    assert error.value.error_class == "too_small"


WHOLE = [
    file(Image.fromarray(RGB), "JPEG"),
    file(Image.fromarray(RGB)),
    file(Image.fromarray(WIDE), "TIFF"),
    file(Image.fromarray(RGB), "WEBP"),
    file(palette()[0], "BMP"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_give_pixels_or_a_reason(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels, (height, width) = decode(bytes(damaged[:cut]), channels=3, max_pixels=100_000)
        except Undecodable as error:
            assert error.error_class in {"empty", "unidentified", "corrupt", "unsupported", "too_large", "too_small"}
            assert str(error)
        else:
            assert pixels.shape == (height, width, 3)


def with_overviews():
    """A TIFF as cloud-optimised GeoTIFFs are: smaller copies and a transparency mask behind the image."""
    tifffile = pytest.importorskip("tifffile", reason="needs the extra 'geo'")
    sink = io.BytesIO()
    big = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    with tifffile.TiffWriter(sink) as writer:
        writer.write(big, photometric="rgb", metadata=None)
        writer.write(big[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[..., 0] > 127, photometric="minisblack", subfiletype=4, metadata=None)
    return sink.getvalue(), big


def test_smaller_copies_of_a_page_are_no_pages():
    data, pixels = with_overviews()
    np.testing.assert_array_equal(decode(data, channels=3)[0], pixels)


def test_an_array_that_cannot_be_read_in_rows_says_so(monkeypatch):
    monkeypatch.setattr(module, "STREAM_PIXELS", 100)
    with pytest.raises(Undecodable, match="cannot be read in rows; store TIFF or PNG"):
        decode(array(GREY), channels=1, max_pixels=10**9)


needs_fast = pytest.mark.skipif(module.simplejpeg is None, reason="the extra 'fast' is not installed")


def both_ways(data):
    """What becomes of a file without the extra `fast`, and with it."""
    results = []
    for decoder in (None, module.simplejpeg):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "simplejpeg", decoder)
            try:
                pixels, size = decode(data, channels=3)
                results.append((pixels.tolist(), pixels.dtype, size))
            except Undecodable as error:
                results.append((error.error_class, str(error)))
    return results


@needs_fast
@settings(deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "keep_rgb"]),
    st.booleans(), st.sampled_from(["RGB", "L", "CMYK"]), st.integers(0, 2**32 - 1), st.sampled_from([None, "cut", "bent"]),
)  # fmt: skip
def test_the_fast_decoder_changes_nothing(height, width, quality, sampling, progressive, mode, seed, harm):
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8)).resize((width, height)).convert(mode)
    how = {"keep_rgb": True} if sampling == "keep_rgb" and mode == "RGB" else {"subsampling": "4:2:0"}
    how = how if sampling == "keep_rgb" else {"subsampling": sampling}
    data = bytearray(file(smooth, "JPEG", quality=quality, progressive=progressive, **how))
    if harm == "cut":
        del data[len(data) * 2 // 3 :]
    elif harm == "bent":
        for place in random.integers(len(data) // 3, len(data), 3):
            data[place] ^= 1 << int(random.integers(8))
    without, with_ = both_ways(bytes(data))
    assert with_ == without


@needs_fast
@pytest.mark.parametrize("room", [0, 3 * 20 * 30 - 1, 3 * 20 * 30, 10_000])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_lie_in_the_room_they_fit_into_or_elsewhere(room, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).convert(mode)
    data = file(image, "JPEG")
    given = np.full(room, 7, np.uint8)
    pixels, size = decode(data, channels=3, room=given)
    assert size == (20, 30)
    np.testing.assert_array_equal(pixels, decode(data, channels=3)[0])
    there = np.may_share_memory(pixels, given)
    assert there == (mode == "RGB" and room >= pixels.size)
    if there:
        np.testing.assert_array_equal(given[: pixels.size], pixels.reshape(-1))
    assert (given[pixels.size if there else 0 :] == 7).all()


@needs_fast
def test_the_fast_decoder_is_taken(monkeypatch):
    data = file(Image.fromarray(RGB), "JPEG")
    expected = decode(data, channels=3)[0]
    monkeypatch.setattr(module, "as_seen", None)
    assert (decode(data, channels=3)[0] == expected).all()


@needs_fast
def test_broken_exif_matters_to_neither():
    data = file(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    without, with_ = both_ways(data)
    assert with_ == without
    assert with_[2] == RGB.shape[:2]
