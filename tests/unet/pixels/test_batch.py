"""Numbers of every type reach the network normalised, tile by tile, as NumPy normalises them."""

import numpy as np
import pytest
import torch
from conftest import seeded

from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.inference import fitting
from maskfleet.unet.inference import segmenter as module
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.pixels.batch import Pixels
from maskfleet.unet.pixels.normalization import Levels, Normalization

CPU = torch.device("cpu")


def drawn(dtype, bands, height=200, width=180, batch=2):
    random = np.random.default_rng(0)
    if dtype == "float32":
        return random.normal(50, 9, (batch, height, width, bands)).astype(np.float32)
    return random.integers(0, 10_000, (batch, height, width, bands)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
@pytest.mark.parametrize("offset", [0.0, 1234.5678, 59_999.9])
def test_the_device_normalises_as_numpy_does(dtype, offset):
    values = (drawn("uint16", 3) % 256 if dtype == "uint8" else drawn("uint16", 3)).astype(dtype)
    levels = [Levels((offset, offset + 0.3, 0.0), (7.3, 900.0, 65535.0))] * 2
    found = Pixels.of(values, levels).on_device(CPU).numpy()
    wanted = (values.astype(np.float64) - levels[0].offset) / levels[0].divisor
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-6)


def test_pixels_of_the_caller_are_not_overwritten():
    values = drawn("float32", 3)
    before = values.copy()
    segmenter = Segmenter(seeded(width=2), precision="fp32")
    segmenter.segment(values)
    np.testing.assert_array_equal(values, before)


@pytest.fixture(params=["one", "flips", "ensemble"])
def network(request):
    members = [seeded(n_channels=5, width=2, seed=seed) for seed in range(2 if request.param == "ensemble" else 1)]
    return members[0] if request.param == "one" else Ensemble(members, "flips" if request.param == "flips" else "off")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("size", [None, (300, 211)])
def test_tiles_rows_and_whole_images_give_one_mask(network, dtype, size, monkeypatch):
    """Each image of a batch has its own levels; tiles, rows and near ties must find them."""
    for where in (fitting, module):
        monkeypatch.setattr(where, "WHOLE_PIXELS", 100 * 100)
    values = drawn(dtype, 5)
    levels = [Levels((0.0,) * 5, (20_000.0,) * 5), Levels((40.0, 45.0, 50.0, 55.0, 60.0), (1.0, 2.0, 3.0, 4.0, 5.0))]
    tiled = Segmenter(network, precision="fp32", tile=64)
    expected, sums = Segmenter(network, precision="fp32", tile=0).segment(values, size, levels=levels)
    found, tiled_sums = tiled.segment(values, size, levels=levels)
    np.testing.assert_array_equal(found, expected)
    wanted = np.stack([Pixels.of(values[[i]], [levels[i]]).on_device(CPU).numpy()[0] for i in range(2)])
    for each in (sums, tiled_sums):
        np.testing.assert_allclose(each.input_mean, wanted.mean(axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(each.input_std, wanted.std(axis=(1, 2)), rtol=1e-4)
    if size is None:
        for index in range(2):
            written = []
            image = values[[index]]
            rows = lambda top, bottom, image=image: image[:, top:bottom]  # noqa: E731
            tiled.segment_rows(rows, *values.shape[1:3], written.append, levels=levels[index])
            np.testing.assert_array_equal(np.concatenate(written), expected[index])


def test_no_data_is_seen_as_zero():
    values = drawn("float32", 3, batch=1)
    without = values.copy()
    values[:, :50] = np.nan
    without[:, :50] = 50
    segmenter = Segmenter(seeded(width=2), precision="fp32")
    levels = [Levels((50.0,) * 3, (9.0,) * 3)]
    np.testing.assert_array_equal(
        segmenter.segment(values, levels=levels)[0], segmenter.segment(without, levels=levels)[0]
    )


@pytest.mark.parametrize("declared", [None, Normalization(per_image="zscore"), Normalization(scale=4095.0)])
def test_a_caller_hands_over_arrays_of_any_type(declared):
    segmenter = Segmenter(seeded(width=2), precision="fp32", declared=declared)
    wide = drawn("uint16", 3)
    eight = (wide % 256).astype(np.uint8)
    found = segmenter([wide[0], eight[0], wide[1]])
    if declared is None:
        np.testing.assert_allclose(found[0].numbers["input_mean"], wide[0].mean(axis=(0, 1)) / 65535, rtol=1e-6)
        np.testing.assert_array_equal(found[1].classes, segmenter.segment(eight[:1])[0][0])
        with pytest.raises(TypeError, match="image 0 has signed 16-bit integers"):
            segmenter([wide[0].astype(np.int16)])
    elif declared.per_image:
        np.testing.assert_allclose(found[1].numbers["input_mean"], 0, atol=1e-6)
        np.testing.assert_allclose(found[2].numbers["input_std"], 1, atol=1e-5)
    else:
        assert segmenter([wide[0].astype(np.int16)])[0].numbers == found[0].numbers
