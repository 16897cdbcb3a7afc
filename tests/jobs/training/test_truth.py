import io

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.training.truth import CHANNELS, code_of, decode, value_of


def codes(image, *, scale=1.0, upright=False, kind="PNG", **more):
    sink = io.BytesIO()
    np.save(sink, image) if isinstance(image, np.ndarray) else image.save(sink, kind, **more)
    pixels, _ = decode(sink.getvalue(), channels=CHANNELS, scale=scale, max_pixels=10**6, upright=upright)
    return pixels.view("<u4")[..., 0]


def test_values_are_labels_and_never_converted():
    grey = np.array([[0, 7], [128, 255]], np.uint8)
    assert (codes(Image.fromarray(grey)) == grey).all()
    assert (codes(Image.fromarray(grey > 100)) == (grey > 100) * 255).all()
    palette = Image.fromarray(grey, "P")
    palette.putpalette([number % 251 for number in range(768)])
    assert (codes(palette) == grey).all()
    wide = np.array([[0, 300], [1000, 65535]], np.uint16)
    assert (codes(Image.fromarray(wide)) == wide).all()
    assert (codes(wide.astype(np.int64)) == wide).all()
    assert (codes(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey)])) == grey).all()


def test_colours_have_their_own_codes_and_grey_rgb_is_grey():
    colours = np.array([[[255, 0, 0], [0, 0, 0]], [[0, 255, 0], [9, 9, 9]]], np.uint8)
    found = codes(Image.fromarray(colours))
    assert [value_of(code) for code in found[:, 0].tolist()] == [(255, 0, 0), (0, 255, 0)]
    assert found[0, 0] == code_of((255, 0, 0))
    grey = np.repeat(np.array([[0, 7]], np.uint8)[..., None], 3, axis=2)
    assert codes(Image.fromarray(grey)).tolist() == [[0, 7]]
    assert code_of((7, 7, 7)) == 7


def test_scaling_is_nearest_neighbour_and_creates_no_values():
    grey = (np.indices((40, 60)).sum(axis=0) % 3 * 100).astype(np.uint8)
    found = codes(Image.fromarray(grey), scale=0.51)
    assert found.shape == (20, 30)
    assert set(np.unique(found)) <= {0, 100, 200}


def test_upright_applies_the_exif_orientation():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (codes(Image.fromarray(grey), upright=True, exif=exif) == np.rot90(grey, -1)).all()
    assert (codes(Image.fromarray(grey), exif=exif) == grey).all()


@pytest.mark.parametrize(
    ("data", "kind"), [(b"", "empty"), (b"<html>", "unidentified"), (b"\x89PNG\r\n\x1a\n....", "corrupt")]
)
def test_files_other_than_masks_are_classified(data, kind):
    with pytest.raises(Undecodable) as caught:
        decode(data, channels=CHANNELS, scale=1, max_pixels=100, upright=False)
    assert caught.value.error_class == kind


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3)), np.zeros((2, 2)), np.zeros(4, np.uint8)])
def test_arrays_must_hold_one_integer_per_pixel(array):
    with pytest.raises(Undecodable, match=r"store one integer per pixel|an image has \(H, W\)"):
        codes(array)
