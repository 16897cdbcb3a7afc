"""Pictures of images and masks: what is drawn, in which colour, and at which size."""

import io
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode as decode_as_network
from maskfleet.jobs.outputs.overlay import class_colours, decode, displayed, drawn, overlay, shrunk, shrunk_mask

COLOURS = class_colours((0, 255))
RED = [(0, 0, 0), (255, 0, 0)]


def square(side=64):
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return mask


def test_the_fill_is_translucent_the_contour_opaque_and_the_background_untouched():
    image = np.full((64, 64, 3), 100, np.uint8)
    pixels = np.asarray(overlay(image, square(), RED, opacity=0.2))
    assert pixels[0, 0].tolist() == [100, 100, 100]
    assert pixels[32, 32].tolist() == [131, 80, 80]
    assert pixels[16, 20].tolist() == [255, 0, 0]
    assert image.max() == 100  # the image itself is not painted


def test_a_mask_that_fills_the_picture_has_no_contour():
    pixels = np.asarray(overlay(np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), np.uint8), RED, opacity=0.2))
    assert (pixels == [51, 0, 0]).all()


def test_colours_are_those_of_the_job_or_bright_ones():
    assert class_colours([[0, 0, 0], [10, 20, 30]]) == [(0, 0, 0), (10, 20, 30)]
    colours = class_colours(range(256))
    assert len(set(colours)) > 200
    assert all(max(colour) >= 190 for colour in colours[1:])


def test_a_mask_alone_and_an_image_alone():
    alone = np.asarray(overlay(None, square(), RED))
    assert alone[32, 32].tolist() == [255, 0, 0]
    assert alone[0, 0].max() < 40
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (np.asarray(overlay(image, None, RED)) == image).all()
    with pytest.raises(ValueError, match="neither an image nor a mask"):
        overlay(None, None, RED)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(JobError, match=r"the mask has the shape \(64, 64\), but its image \(20, 20\); run the job"):
        overlay(np.zeros((20, 20, 3), np.uint8), square(), RED)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((1000, 500), 100, (100, 50)),
        ((1999, 300), 100, (100, 15)),
        ((30, 40), 100, (60, 80)),
        ((33, 70), None, (33, 70)),
        ((3000, 1), 100, (100, 1)),
        ((100, 100), 100, (100, 100)),
    ],
)
def test_sizes(shape, size, expected):
    picture = overlay(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), RED, size=size)
    assert (picture.mode, picture.size[::-1]) == ("RGB", expected)


def test_a_line_of_one_pixel_survives_reduction_and_a_speck_does_not():
    mask = np.zeros((1000, 1000), np.uint8)
    mask[:, 503] = 1
    mask[5, 5] = 2
    classes, coverage = shrunk_mask([mask], mask.shape, 100)
    assert (classes[:, 50] == 1).all()
    assert np.count_nonzero(classes) == 100
    assert set(coverage[:, 50]) == {26}  # a tenth of each block


def test_bands_give_the_same_as_the_whole():
    random = np.random.default_rng(0)
    image, mask = random.integers(0, 256, (301, 203, 3), np.uint8), random.integers(0, 3, (301, 203), np.uint8)
    parts = np.cumsum([0, 7, 1, 100, 193])
    for size in (None, 40):
        for one, bands in ((shrunk, image), (shrunk_mask, mask)):
            pieces = [bands[start:stop] for start, stop in pairwise(parts)]
            assert np.array_equal(one(pieces, mask.shape, size), one([bands], mask.shape, size))
    whole = overlay(image, mask, COLOURS, size=40)
    labels = shrunk_mask([mask], mask.shape, 40)
    assert whole.tobytes() == drawn(shrunk([image], mask.shape, 40), labels, COLOURS, size=40).tobytes()


def test_a_huge_image_is_never_held():
    def bands():
        for _ in range(200):
            yield np.zeros((100, 10_000, 3), np.uint8)

    tracemalloc.start()
    picture = drawn(shrunk(bands(), (20_000, 10_000), 500), None, COLOURS, size=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.size == (250, 500)
    assert peak < 60e6  # the image has 600 MB


def test_16_bits_are_stretched_between_percentiles():
    image = np.full((100, 100), 500, np.uint16)
    image[:, 50:] = 900
    image[0, 0] = 65535  # a hot pixel
    shown = displayed(image)
    assert shown.shape == (100, 100, 3)
    assert (shown[50, 10].tolist(), shown[50, 60].tolist()) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 1, None)), (5, (0, 1, 2))])
def test_of_many_bands_the_first_three_are_shown(channels, shown):
    image = np.random.default_rng(0).normal(0, 5, (50, 50, channels)).astype(np.float32)
    image[0, 0] = np.nan
    pixels = displayed(image)
    assert pixels.shape == (50, 50, 3)
    for plane, band in enumerate(shown):
        if band is None:
            assert pixels[..., plane].max() == 0
        else:
            order = np.argsort(image[1:, 1:, band], axis=None)
            assert (np.diff(pixels[1:, 1:, plane].ravel()[order].astype(int)) >= 0).all()
            assert (pixels[..., plane].min(), pixels[..., plane].max()) == (0, 255)


def test_dark_8_bit_images_are_brightened_all_channels_alike():
    dark = np.zeros((50, 50, 3), np.uint8)
    dark[10:20, 10:20] = (8, 16, 32)
    assert displayed(dark)[15, 15].tolist() == [56, 112, 224]
    assert displayed(dark // 32).max() == 16
    assert displayed(np.zeros((5, 5, 3), np.uint8)).max() == 0


def test_8_bit_images_stay_as_they_are_and_flat_ones_do_not_fail():
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    assert (displayed(image) == image).all()
    assert (displayed(image[..., 0])[..., 1] == image[..., 0]).all()
    for flat in (np.zeros((4, 4), np.uint16), np.full((4, 4, 2), np.nan, np.float32)):
        assert displayed(flat).max() == 0


# Decoding for display ------------------------------------------------------------------------------


def file_of(array, kind):
    sink = io.BytesIO()
    if kind == "npy":
        np.save(sink, array)
    elif kind == "tif":
        tifffile.imwrite(sink, array)
    else:
        Image.fromarray(array).save(sink, kind)
    return sink.getvalue()


RAMP = np.linspace(0, 1, 40 * 50).reshape(40, 50)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        ((RAMP * 900).astype(np.uint16), "png"),  # 10 bits stored in 16
        ((RAMP * 900).astype(np.uint16), "tif"),
        ((RAMP * 4e9).astype(np.uint32), "tif"),
        ((RAMP * 900 - 500).astype(np.int16), "tif"),
        ((RAMP * 9e4 - 3).astype(np.float32), "tif"),
        ((RAMP * 9e4 - 3).astype(np.float64), "npy"),
        ((np.stack([RAMP] * 7, axis=2) * 30).astype(np.uint8), "npy"),
        ((np.stack([RAMP] * 2, axis=2) * 900).astype(np.uint16), "npy"),
    ],
)
def test_any_depth_and_number_of_bands_is_decoded_for_display(array, kind):
    pixels, size = decode(file_of(array, kind), channels=3)
    assert (pixels.shape, pixels.dtype, size) == ((40, 50, 3), np.uint8, (40, 50))
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1, 0] == 255
    assert abs(int(pixels[20, 0, 0]) - 128) < 6


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA"])
def test_8_bits_are_decoded_as_the_network_sees_them(mode):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(array).convert(mode).save(sink, "PNG")
    assert np.array_equal(decode(sink.getvalue(), channels=3)[0], decode_as_network(sink.getvalue(), channels=3)[0])


def test_bytes_that_are_no_image_are_refused():
    for data in (b"", b"no image", file_of((RAMP * 900).astype(np.uint16), "png")[:150]):
        with pytest.raises(Undecodable):
            decode(data, channels=3)


def test_an_upright_image_of_16_bits_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray((RAMP * 900).astype(np.uint16)).save(sink, "PNG", exif=exif)
    upright, size = decode(sink.getvalue(), channels=3, upright=True)
    assert size == (50, 40)
    assert np.array_equal(upright, np.rot90(decode(sink.getvalue(), channels=3)[0], -1))
