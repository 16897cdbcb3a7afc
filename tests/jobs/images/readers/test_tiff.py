"""TIFF by its tags. The reference is NumPy, and for what other libraries read, Pillow and libvips."""

import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.unet.pixels.numbers import seen

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
GREY = RGB[..., 0]


def written(pixels, **how):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, bigtiff=how.pop("bigtiff", False), byteorder=how.pop("byteorder", "<")) as writer:
        writer.write(pixels, metadata=None, **how)
    return sink.getvalue()


def eight(values, maximum):
    return np.rint(np.asarray(values, np.float64) * 255 / maximum).astype(np.uint8)


def network_input(data, channels=3):
    """What the network sees, in [0, 1]."""
    pixels, _, levels = decode(data, channels=channels)
    return pixels / 255 if levels is None else seen(pixels, levels)


def three(grey):
    return np.repeat(grey[..., None], 3, 2)


def with_overviews():
    """A TIFF like a cloud-optimised GeoTIFF: the image, smaller copies and a transparency mask."""
    sink = io.BytesIO()
    big = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    with tifffile.TiffWriter(sink) as writer:
        writer.write(big, photometric="rgb", metadata=None)
        writer.write(big[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[..., 0] > 127, photometric="minisblack", subfiletype=4, metadata=None)
    return sink.getvalue(), big


def test_smaller_copies_and_masks_are_not_counted_as_pages():
    data, pixels = with_overviews()
    np.testing.assert_array_equal(decode(data, channels=3)[0], pixels)


DTYPES = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}
HOW = st.fixed_dictionaries(
    {
        "byteorder": st.sampled_from("<>"),
        "bigtiff": st.booleans(),
        "planarconfig": st.sampled_from(["contig", "separate"]),
        "compression": st.sampled_from([None, "zlib", "lzw", "zstd", "packbits", "lzma"]),
        "predictor": st.booleans(),
        "cut": st.sampled_from([{}, {"tile": (16, 16)}, {"tile": (32, 16)}, {"rowsperstrip": 1}, {"rowsperstrip": 7}]),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(DTYPES)), st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 40), HOW)
def test_every_layout_gives_the_stored_pixels(dtype, bands, height, width, how):
    how = dict(how)
    cut = how.pop("cut")
    maximum = DTYPES[dtype]
    values = np.random.default_rng(height * width).random((height, width, bands))
    stored = values.astype(dtype) if dtype.startswith("float") else np.rint(values * maximum).astype(dtype)
    if bands == 1:
        stored, how["planarconfig"] = stored[..., 0], None
    elif how["planarconfig"] == "separate":
        stored = stored.transpose(2, 0, 1)
    if not how["compression"] or how["compression"] == "packbits" or (dtype == "float16" and how["predictor"]):
        how["predictor"] = False
    extra = {"extrasamples": ["unassalpha"]} if bands == 4 else {}
    data = written(stored, photometric="minisblack" if bands == 1 else "rgb", **extra, **cut, **how)
    pixels, size, _ = decode(data, channels=3)
    assert size == (height, width)
    assert pixels.dtype.name == ("float32" if dtype == "float64" else dtype)
    expected = np.atleast_3d(stored.transpose(1, 2, 0) if how["planarconfig"] == "separate" else stored)[..., :3]
    expected = (np.repeat(expected, 3, 2) if bands == 1 else expected).astype(np.float64) / maximum
    np.testing.assert_allclose(network_input(data), expected, rtol=0, atol=1e-7)
    for cut_at in (len(data) // 2, len(data) - 1):
        if cut_at > 8:
            _read_or_refused(data[:cut_at], pixels)


def _read_or_refused(data, pixels):
    """A cut file is refused, unless what it lacks is not of the pixels."""
    try:
        found = decode(data, channels=3)[0]
    except Undecodable:
        return
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "P", "LAB", "I;16", "F"])
def test_eight_bits_are_as_pillow_reads_them(mode, compression):
    image = {
        "1": Image.fromarray(GREY > 99), "LA": Image.fromarray(RGB).convert("LA"), "P": _palette(),
        "I;16": Image.fromarray(GREY.astype(np.uint16) * 257), "F": Image.fromarray(GREY.astype(np.float32) / 255),
        "LAB": Image.merge("LAB", [Image.fromarray(np.ascontiguousarray(RGB[..., band])) for band in range(3)]),
    }.get(mode) or Image.fromarray(RGB).convert(mode)  # fmt: skip
    sink = io.BytesIO()
    if mode == "LAB" and compression == "jpeg":
        pytest.skip("Pillow does not convert it back")
    try:
        image.save(sink, "TIFF", compression=compression)
        sink.seek(0)
        with Image.open(sink) as read:
            read.load()
    except Exception:
        pytest.skip("Pillow does not write this")
    expected = GREY if mode in ("I;16", "F") else np.asarray(read.convert("RGB"))
    found = np.rint(network_input(sink.getvalue()) * 255)
    expected = three(expected) if expected.ndim == 2 else expected
    # libtiff, which Pillow calls for compressed files, rounds YCbCr in its own way.
    assert np.abs(found.astype(int) - expected).max() <= (2 if mode == "YCbCr" and compression else 0)


def _palette():
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0, 7, 7, 255] + [0] * 756)
    return image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("byteorder", "<>")
def test_where_white_is_zero_the_greys_are_inverted(dtype, byteorder):
    maximum = DTYPES[dtype]
    stored = (GREY / 255 * maximum).astype(dtype)
    data = written(stored, photometric="miniswhite", byteorder=byteorder)
    np.testing.assert_allclose(network_input(data), three((maximum - stored) / maximum), rtol=0, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_the_stated_bits_are_the_range(bits):
    maximum = 2**bits - 1
    stored = RANDOM.integers(0, maximum + 1, (20, 32)).astype(np.uint8 if bits < 8 else np.uint16)
    data = written(stored, photometric="minisblack", bitspersample=bits)
    found = network_input(data)
    if bits < 8:
        np.testing.assert_array_equal(found, three(eight(stored, maximum) / 255))
    else:
        np.testing.assert_allclose(found, three(stored / maximum), rtol=0, atol=1e-7)
        assert len(np.unique(found)) == len(np.unique(stored))


@pytest.mark.parametrize("bands", [2, 5, 12])
def test_bands_of_other_numbers_are_refused_or_given_as_stored(bands):
    stored = RANDOM.integers(0, 65536, (20, 30, bands)).astype(np.uint16)
    data = written(stored, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * (bands - 1))
    np.testing.assert_array_equal(decode(data, channels=bands)[0], stored)
    with pytest.raises(Undecodable, match=f"{bands} bands, the network takes 3"):
        decode(data, channels=3)


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("int8", "signed 8-bit integers from"),
        ("int16", "signed 16-bit integers from"),
        ("uint32", "unsigned 32-bit integers from"),
        ("int32", "signed 32-bit integers from"),
        ("complex64", "complex numbers"),
    ],
)
def test_numbers_without_a_range_are_refused_by_their_type(dtype, reason):
    with pytest.raises(Undecodable, match=reason) as error:
        decode(written(GREY.astype(dtype), photometric="minisblack"), channels=3)
    assert error.value.error_class == "unsupported"


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_absent_segments_are_zeros(compression):
    data = written(RGB, photometric="rgb", rowsperstrip=5, compression=compression)
    with tifffile.TiffFile(io.BytesIO(data), mode="r") as file:
        tags = {name: file.pages[0].tags[name] for name in ("StripOffsets", "StripByteCounts")}
        changed = bytearray(data)
        for tag in tags.values():
            size = {3: 2, 4: 4}[int(tag.dtype)]
            changed[tag.valueoffset + size : tag.valueoffset + 2 * size] = bytes(size)  # the second strip
    expected = RGB.copy()
    expected[5:10] = 0
    np.testing.assert_array_equal(decode(bytes(changed), channels=3)[0], expected)


def test_a_palette_of_8_bit_colours_is_read():
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :4] = [[10, 200, 0, 7], [20, 0, 150, 7], [30, 0, 0, 255]]
    data = written(GREY % 4, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(decode(data, channels=3)[0], colours.T.astype(np.uint8)[GREY % 4])


def stack_of_imagej():
    sink = io.BytesIO()
    tifffile.imwrite(sink, GREY[None].repeat(3, 0), imagej=True)
    data = bytearray(sink.getvalue())
    (first,) = np.frombuffer(data, "<u4", 1, 4)
    count = int(np.frombuffer(data, "<u2", 1, int(first))[0])
    data[first + 2 + 12 * count : first + 6 + 12 * count] = bytes(4)  # no further header
    return bytes(data)


def test_a_stack_with_one_header_is_a_stack():
    truncated = io.BytesIO()
    tifffile.imwrite(truncated, GREY[None].repeat(4, 0), truncate=True, photometric="minisblack")
    for data, pages in ((stack_of_imagej(), 3), (truncated.getvalue(), 4)):
        with pytest.raises(Undecodable, match=f"{pages} frames or pages in one file"):
            decode(data, channels=3)


def test_an_offset_of_the_next_header_beyond_the_end_ends_the_file():
    data = bytearray(written(RGB, photometric="rgb"))
    first = int(np.frombuffer(data, "<u4", 1, 4)[0])
    count = int(np.frombuffer(data, "<u2", 1, first)[0])
    data[first + 2 + 12 * count : first + 6 + 12 * count] = (0x7FFFFFF0).to_bytes(4, "little")
    np.testing.assert_array_equal(decode(bytes(data), channels=3)[0], RGB)


@pytest.mark.parametrize(("code", "dtype"), [(258, "uint16"), (339, "int16")])  # BitsPerSample, SampleFormat
def test_a_layout_whose_tags_are_cut_off_is_damage(code, dtype):
    """Without them, the pixels would be read as something else."""
    data = bytearray(written(RGB.astype(dtype), photometric="rgb"))
    (first,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (place,) = (
        place
        for place in range(first + 2, first + 2 + 12 * count, 12)
        if struct.unpack_from("<H", data, place)[0] == code
    )
    struct.pack_into("<L", data, place + 8, len(data) + 100)
    with pytest.raises(Undecodable, match="lacks tags that describe its pixels") as error:
        decode(bytes(data), channels=3)
    assert error.value.error_class == "corrupt"


def test_a_cut_strip_of_jpeg_is_refused_though_libjpeg_would_fill_it():
    smooth = np.asarray(Image.fromarray(RGB).resize((160, 160)))
    data = written(smooth, photometric="ycbcr", compression="jpeg", rowsperstrip=160)
    assert decode(data, channels=3)[0].shape == smooth.shape
    with pytest.raises(Undecodable, match="ends before its pixels do"):
        decode(data[:-400], channels=3)


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb", "minisblack"])
@pytest.mark.parametrize("harm", [b"\x55" * 60, bytes(60)])
def test_a_tile_of_jpeg_with_damage_in_the_middle_is_refused(photometric, harm):
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    noise = noise[..., 0].copy() if photometric == "minisblack" else noise
    data = written(noise, photometric=photometric, compression="jpeg", tile=(64, 64))
    assert decode(data, channels=3)[0].shape == (128, 128, 3)
    place = len(data) * 2 // 3
    with pytest.raises(Undecodable, match="the JPEG is damaged"):
        decode(data[:place] + harm + data[place + len(harm) :], channels=3)
