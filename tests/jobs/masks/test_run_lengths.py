"""Run lengths compared with pycocotools, in both directions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.masks.run_lengths import Encoder, box_of, decode

coco = pytest.importorskip("pycocotools.mask")


def maps(seed, height, width, classes, coarse):
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (-(-height // coarse), -(-width // coarse)))
    return np.kron(blocks, np.ones((coarse, coarse)))[:height, :width].astype(np.uint8)


MAPS = st.builds(
    maps,
    st.integers(0, 10**6),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 4),
    st.sampled_from([1, 7, 60]),
)


@settings(max_examples=150, deadline=None)
@given(MAPS)
def test_pycocotools_writes_and_reads_the_same(classes):
    masks = Encoder(5).encode(classes)
    assert masks[0] is None
    for number in range(1, 5):
        truth = np.asfortranarray(classes == number)
        if not truth.any():
            assert masks[number] is None
            continue
        assert masks[number]["counts"] == coco.encode(truth.astype(np.uint8))["counts"].decode()
        assert (coco.decode(dict(masks[number])) == truth).all()
        assert coco.toBbox(dict(masks[number])).tolist() == list(box_of(masks[number]))
    assert (decode(masks, *classes.shape) == classes).all()


@given(MAPS, st.integers(1, 50))
def test_rows_give_the_masks_of_the_whole(classes, step):
    rows = Encoder(4).row_encoder(*classes.shape)
    for start in range(0, len(classes), step):
        rows.write(classes[start : start + step])
    assert rows.finish() == Encoder(4).encode(classes)


def test_long_runs_keep_their_lengths():
    classes = np.zeros((3000, 3000), np.uint8)
    classes[1, 1] = classes[2999, 2999] = 1
    (mask,) = Encoder(2).encode(classes)[1:]
    assert mask["counts"] == coco.encode(np.asfortranarray(classes))["counts"].decode()
    assert (decode([None, mask], 3000, 3000) == classes).all()


def test_inconsistent_masks_are_refused():
    one = Encoder(2).encode(np.array([[0, 1], [1, 1]], np.uint8))[1]
    for masks, size, message in (
        ([None, one], (2, 3), "not 3×2 px"),
        ([None, one, one], (2, 2), "overlaps another"),
        ([None, one | {"counts": one["counts"] + "o"}], (2, 2), "truncated"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(masks, *size)
