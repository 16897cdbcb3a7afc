"""Agreement of class maps with a reference."""

import numpy as np
import pytest
import torch
from conftest import needs_bf16, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet.inference.agreement import Agreement, compared
from maskfleet.unet.inference.segmenter import Segmenter


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.integers(2, 4), st.data())
def test_agreement_follows_its_definition(shapes, classes, data):
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    pairs = [tuple(random.integers(0, classes, (2, *shape), np.uint8)) for shape in shapes]
    found = Agreement.of(pairs, classes)
    shares = [(a == b).mean() for a, b in pairs]
    flat = [np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1)]
    dices = []
    for class_ in range(classes):
        a, b = (side == class_ for side in flat)
        dices.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0)
    assert found.images == len(pairs)
    assert found.agreement == pytest.approx((flat[0] == flat[1]).mean())
    assert (found.worst_image, found.worst_agreement) == (int(np.argmin(shares)), min(shares))
    assert (found.worst_class, found.worst_dice) == (int(np.argmin(dices)), pytest.approx(min(dices)))


@needs_bf16
def test_a_segmenter_agrees_fully_with_itself_and_less_with_bf16():
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (40, 50 + index, 3), np.uint8) for index in range(3)]
    exact = Segmenter(seeded(width=8), precision="fp32")
    assert compared(exact, exact, images)[:4] == (3, 1.0, 0, 1.0)
    found = compared(Segmenter(seeded(width=8), precision="bf16"), exact, images)
    assert 0.9 < found.worst_agreement <= found.agreement < 1
    assert found.worst_dice < 1


def test_images_that_do_not_fit_into_memory_are_not_compared():
    def limited(pixels_BHWC, threads, white):
        if pixels_BHWC.shape[1] == 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pixels_BHWC, threads, white)

    drawn = [np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8) for side in (50, 40)]
    short, exact = Segmenter(seeded(), precision="fp32"), Segmenter(seeded(), precision="fp32")
    forward = short._resident.forward
    short._resident.forward = limited
    found = compared(short, exact, drawn)
    assert (found.images, found.worst_image) == (1, 1)
    assert compared(short, exact, drawn[:1]) == (0, 0.0, 0, 0.0, 0, 0.0)
