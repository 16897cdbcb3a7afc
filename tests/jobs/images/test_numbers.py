"""Wide integers, floats, bands, normalisation and no data: what decoding gives the network, against NumPy."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.images.streams import Stream, Unreadable
from maskfleet.unet.pixels.normalization import Normalization
from maskfleet.unet.pixels.numbers import seen

RANDOM = np.random.default_rng(0)
ZSCORE, PERCENTILE = Normalization(per_image="zscore"), Normalization(percentile=(1.0, 99.0))


def geotiff(pixels, nodata=None, **how):
    sink = io.BytesIO()
    tags = [] if nodata is None else [(42113, "s", 0, str(nodata), True)]
    how = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None} | how
    tifffile.imwrite(sink, pixels, extratags=tags, **how)
    return sink.getvalue()


def npy(pixels):
    sink = io.BytesIO()
    np.save(sink, pixels)
    return sink.getvalue()


def drawn(dtype, bands, height=60, width=50):
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(100, 30, (height, width, bands)).astype(dtype)
    return RANDOM.integers(-3000 if dtype == "int16" else 0, 255 if dtype == "uint8" else 12_000,
                           (height, width, bands)).astype(dtype)  # fmt: skip


def in_rows(data, limits, tmp_path):
    """What the network sees of an image that is read in rows."""
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file, Stream(file.fileno(), limits) as stream:
        rows = np.concatenate([stream.read(top, min(top + 25, stream.height))[0].copy()
                               for top in range(0, stream.height, 25)])  # fmt: skip
        return rows, stream.levels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("declared", [ZSCORE, PERCENTILE, Normalization(range=(-3000.0, 12_000.0))], ids=str)
def test_every_type_is_normalised_as_numpy_does_whole_and_in_rows(dtype, declared, tmp_path):
    stored = drawn(dtype, 5)
    data = geotiff(stored, tile=(16, 32))
    pixels, size, levels = decode(data, channels=5, normalize=declared)
    assert size == (60, 50)
    assert pixels.dtype == np.dtype("float32" if dtype == "float64" else dtype)
    v = np.float64(pixels)
    if declared is ZSCORE:
        wanted = (v - v.mean(axis=(0, 1))) / v.std(axis=(0, 1))
    else:
        ends = np.percentile(v, (1, 99), axis=(0, 1)) if declared is PERCENTILE else declared.range
        wanted = (v - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(seen(pixels, levels), wanted, rtol=0, atol=1e-6)
    rows, levels_of_rows = in_rows(data, Limits(5, normalize=declared), tmp_path)
    assert (rows.dtype, levels_of_rows) == (pixels.dtype, levels)
    np.testing.assert_array_equal(rows, pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_are_picked_and_ordered_as_gdal_counts_them(dtype, tmp_path):
    stored = drawn(dtype, 12) if dtype != "float32" else RANDOM.random((60, 50, 12)).astype(np.float32)
    data = geotiff(stored)
    pixels, _, _ = decode(data, channels=3, bands=(4, 3, 2))
    np.testing.assert_array_equal(pixels, stored[..., [3, 2, 1]])
    np.testing.assert_array_equal(in_rows(data, Limits(3, bands=(4, 3, 2)), tmp_path)[0], pixels)
    np.testing.assert_array_equal(decode(data, channels=1, bands=(12,))[0], stored[..., 11:])
    np.testing.assert_array_equal(decode(data, channels=12)[0], stored)
    with pytest.raises(Undecodable, match="12 bands, the network takes 3: set inference.bands"):
        decode(data, channels=3)
    with pytest.raises(Undecodable, match="12 bands, and inference.bands names band 13"):
        decode(data, channels=3, bands=(13, 1, 1))


def test_bands_are_those_of_any_format():
    rgba = RANDOM.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(rgba).save(sink, "PNG")
    np.testing.assert_array_equal(decode(sink.getvalue(), channels=3, bands=(4, 1, 1))[0], rgba[..., [3, 0, 0]])
    sink = io.BytesIO()
    Image.fromarray(rgba[..., :3]).save(sink, "JPEG", quality=95)
    straight, turned = (decode(sink.getvalue(), channels=3, bands=bands)[0] for bands in ((), (3, 2, 1)))
    np.testing.assert_array_equal(turned, straight[..., ::-1])
    np.testing.assert_array_equal(decode(npy(rgba), channels=2, bands=(2, 4))[0], rgba[..., [1, 3]])


@pytest.mark.parametrize("write", [geotiff, npy])
def test_a_camera_of_12_bits_keeps_its_levels(write):
    stored = (np.arange(4096).reshape(64, 64) * 1).astype(np.uint16)
    pixels, _, levels = decode(write(stored), channels=1)
    assert len(np.unique(seen(pixels, levels))) == 4096
    np.testing.assert_allclose(seen(pixels, levels)[..., 0], stored / 65535, rtol=0, atol=1e-7)
    pixels, _, levels = decode(geotiff(stored, bitspersample=12), channels=3)
    np.testing.assert_allclose(seen(pixels, levels)[..., 2], stored / 4095, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [0.5, 1.7])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_each_band_is_resized_in_floats(dtype, scale):
    stored = drawn(dtype, 4)
    pixels, size, levels = decode(geotiff(stored), channels=4, scale=scale, normalize=ZSCORE)
    assert (pixels.dtype, size) == (np.float32, (60, 50))
    target = int(50 * scale), int(60 * scale)
    for band in range(4):
        plane = Image.fromarray(stored[..., band].astype(np.float32)).resize(target, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels[..., band], np.asarray(plane))
    np.testing.assert_allclose(levels.offset, stored.mean(axis=(0, 1), dtype=np.float64), rtol=1e-12)  # before resizing


@pytest.mark.parametrize("orientation", range(1, 9))
def test_numbers_are_turned_as_images_are(orientation):
    grey = drawn("uint8", 1)[..., 0]
    tag = [(274, "H", 1, orientation, True)]
    eight, wide = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(eight, grey, metadata=None, extratags=tag)
    tifffile.imwrite(wide, grey.astype(np.uint16), metadata=None, extratags=tag)
    expected = decode(eight.getvalue(), channels=1, upright=True)
    found = decode(wide.getvalue(), channels=1, upright=True)
    assert found.size == expected.size
    np.testing.assert_array_equal(found.pixels, expected.pixels)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", 65535), ("int16", -9999), ("float32", -3.4e38),
                                               ("float32", "nan")])  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_no_data_counts_for_nothing_and_is_seen_as_zero(dtype, nodata, scale, tmp_path):
    stored = drawn(dtype, 4, height=64, width=64)
    stored[stored == 0] = 1
    lacking = np.zeros(stored.shape, bool)
    lacking[:20, :30] = lacking[40:, 40:, 1] = True
    stored[lacking] = np.array(float(nodata)).astype(dtype)
    data = geotiff(stored, nodata=nodata)
    pixels, _, levels = decode(data, channels=4, scale=scale, normalize=ZSCORE)
    valid = np.where(lacking, np.nan, stored.astype(np.float64))
    np.testing.assert_allclose(levels.offset, np.nanmean(valid, axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(levels.divisor, np.nanstd(valid, axis=(0, 1)), rtol=1e-6)
    found = seen(pixels, levels)
    assert np.isfinite(found).all()
    if scale == 1:
        np.testing.assert_array_equal(found[lacking], 0)
        rows, levels_of_rows = in_rows(data, Limits(4, normalize=ZSCORE), tmp_path)
        np.testing.assert_array_equal(rows, pixels)
        assert levels_of_rows == levels
    else:
        np.testing.assert_array_equal(found[:9, :14], 0)


def test_plain_8_bits_ignore_no_data_as_ever():
    stored = drawn("uint8", 3)
    pixels, _, levels = decode(geotiff(stored, nodata=0, photometric="rgb"), channels=3)
    assert levels is None
    np.testing.assert_array_equal(pixels, stored)


FLOATS = drawn("float32", 3)
NAN, INFINITE = FLOATS / 1000, FLOATS / 1000
NAN[3, 4, 1], INFINITE[3, 4, 1] = np.nan, np.inf


@pytest.mark.parametrize("declared", [None, ZSCORE])
@pytest.mark.parametrize(("stored", "message"), [(NAN, "NaN"), (INFINITE, "infinity")])
def test_numbers_that_are_none_are_refused(stored, message, declared, tmp_path):
    with pytest.raises(Undecodable, match=message) as error:
        decode(npy(stored), channels=3, normalize=declared)
    assert error.value.error_class == "unsupported"
    with pytest.raises(Unreadable, match=message):
        in_rows(geotiff(stored), Limits(3, normalize=declared), tmp_path)


@pytest.mark.parametrize("stored", [FLOATS, drawn("int16", 3), drawn("uint16", 3).astype(np.uint32)])
def test_an_unknown_range_is_refused_with_the_line_to_add_and_read_with_it(stored, tmp_path):
    line = r"set inference.normalize, such as normalize = \{ range = \[.*\] \} below \[inference\]"
    with pytest.raises(Undecodable, match=line):
        decode(geotiff(stored), channels=3)
    with pytest.raises(Unreadable, match="set inference.normalize"):
        in_rows(geotiff(stored), Limits(3), tmp_path)
    pixels, _, levels = decode(geotiff(stored), channels=3, normalize=Normalization(range=(0.0, 1000.0)))
    np.testing.assert_allclose(seen(pixels, levels), stored / 1000, rtol=1e-6)


def test_colours_of_16_bits_become_grey_in_floats():
    stored = drawn("uint16", 3)
    pixels, _, levels = decode(geotiff(stored, photometric="rgb"), channels=1)
    wanted = stored.astype(np.float64) @ np.array([[0.299], [0.587], [0.114]]) / 65535
    np.testing.assert_allclose(seen(pixels, levels), wanted, rtol=0, atol=1e-7)


def test_types_and_shapes_share_a_group():
    """Images of odd sizes and every type, one after another in the shared block."""
    images = [drawn(dtype, 3, height=31 + number, width=29)
              for number, dtype in enumerate(["uint8", "uint16", "uint8", "float32", "int16", "float16"] * 3)]  # fmt: skip
    limits = Limits(3, normalize=Normalization(range=(-5000.0, 20_000.0)))
    with Decoders(limits, processes=1) as decoders:
        for number, decoded in enumerate(decoders.decode(enumerate(map(npy, images)))):
            assert decoded.failure is None
            assert decoded.pixels.dtype == images[number].dtype
            np.testing.assert_array_equal(decoded.pixels, images[number])
            assert decoded.levels == ((-5000.0,) * 3, (25_000.0,) * 3)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_png_colours_of_16_bits_keep_them(bands, tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = drawn("uint16", bands)
    data = imagecodecs.png_encode(stored)
    colours = stored[..., [0, 0, 0]] if bands == 2 else stored[..., :3]
    np.testing.assert_array_equal(decode(data, channels=3)[0], colours)
    if bands != 3:
        np.testing.assert_array_equal(decode(data, channels=bands)[0], stored)
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    rows, levels = in_rows(data, Limits(3, normalize=PERCENTILE), tmp_path)
    np.testing.assert_array_equal(rows, colours)
    assert levels == decode(data, channels=3, normalize=PERCENTILE).levels
