import numpy as np
import pytest

from maskfleet.jobs.tools.identity import Identity

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), np.uint8)


def test_the_mask_is_where_green_exceeds_red():
    labels, statistics = Identity().segment(IMAGES)
    assert (labels == (IMAGES[..., 1] > IMAGES[..., 0])).all()
    assert labels.dtype == np.uint8
    assert statistics.class_pixels.tolist() == [[40 * 24 - mask.sum(), mask.sum()] for mask in labels]
    assert statistics.finite.all()


def test_rows_give_the_same():
    labels, whole = Identity().segment(IMAGES[:1])
    bands = []
    statistics = Identity().segment_rows(lambda top, bottom: IMAGES[:1, top:bottom], 40, 24, bands.append)
    assert (np.concatenate(bands) == labels[0]).all()
    assert (statistics.class_pixels == whole.class_pixels).all()


def test_it_does_not_resize():
    with pytest.raises(ValueError, match="set inference.scale = 1"):
        Identity().segment(IMAGES, (80, 48))
