import numpy as np
import pytest

from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.masks.png import Encoder
from maskfleet.jobs.outputs.stored_masks import StoredMask

CLASSES = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
COLOURS = ((0, 0, 0), (255, 0, 0), (255, 128, 0))


def stored(values, classes):
    return StoredMask(row={}, values=values, file=Encoder(values).encode(classes), format=mask_format("tar"))


@pytest.mark.parametrize(("values", "classes"), [(COLOURS, CLASSES), ((0, 1), CLASSES % 2), ((0, 100, 200), CLASSES)])
def test_pixel_values_are_decoded_to_classes(values, classes):
    assert (stored(values, classes).classes() == classes).all()


@pytest.mark.parametrize(("values", "classes"), [(COLOURS, CLASSES), ((0, 1), CLASSES % 2), ((0, 100, 200), CLASSES)])
def test_pixels_are_the_values_of_the_classes(values, classes):
    pixels = stored(values, classes).pixels()
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(values)[classes]).all()


def test_a_mask_without_a_file_is_encoded_as_png():
    lengths = mask_format("rle").encoder(COLOURS).encode(CLASSES)
    mask = StoredMask(
        row={"mask_rle": lengths, "height": 20, "width": 30}, values=COLOURS, file=None, format=mask_format("rle")
    )
    assert mask.png() == Encoder(COLOURS).encode(CLASSES)
    assert mask.run_lengths() == lengths
