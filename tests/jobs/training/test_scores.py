import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskfleet.jobs.training.scores import (
    Interval,
    Scores,
    counts_of,
    dice,
    dice_with_other_truths,
    interval,
    lower_bound,
)
from maskfleet.jobs.training.truth.classes import IGNORED

MAPS = arrays(np.uint8, (5, 4), elements=st.integers(0, 2))


def scores(*pairs, classes=3):
    return Scores(np.stack([counts_of(found, truth, classes) for found, truth in pairs]))


@given(MAPS, MAPS)
def test_scores_match_their_definitions(found, truth):
    this = scores((found, truth))
    for number in (1, 2):
        a, b = found == number, truth == number
        if not (a | b).any():
            expected = {"dice": 1, "iou": 1, "precision": 1, "recall": 1}
        else:
            both = (a & b).sum()
            expected = {
                "dice": 2 * both / (a.sum() + b.sum()),
                "iou": both / (a | b).sum(),
                "precision": both / max(a.sum(), 1),
                "recall": both / max(b.sum(), 1),
            }
        for name, value in expected.items():
            assert getattr(this, name)[0, number - 1] == pytest.approx(value)


@given(MAPS, MAPS)
def test_the_mean_is_pytorch_unets_validation_score(found, truth):
    """Mean over images and classes without the background of (2 |A ∩ B| + ε) / (|A| + |B| + ε), ε = 1e-6."""
    pairs = [
        (2 * (a & b).sum() + 1e-6) / (a.sum() + b.sum() + 1e-6)
        for a, b in ((found == number, truth == number) for number in (1, 2))
    ]
    assert scores((found, truth)).mean == pytest.approx(np.mean(pairs), abs=1e-6)


def test_dice_counts_every_non_zero_pixel():
    one, none = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    assert (dice(one, one), dice(one, none), dice(none, none)) == (1.0, 0.0, 1.0)
    assert dice(np.array([255, 255, 0], np.uint8), np.array([0, 1, 1], np.uint8)) == pytest.approx(0.5)


def test_intervals_have_their_nominal_coverage():
    random = np.random.default_rng(1)
    samples = [random.normal(0.5, 0.2, 60) for _ in range(150)]
    covered = np.mean([(low := interval(sample)).low <= 0.5 <= low.high for sample in samples])
    above = np.mean([lower_bound(sample) <= 0.5 for sample in samples])
    assert 0.88 <= covered <= 0.99
    assert 0.88 <= above <= 0.99
    assert interval(samples[0]) == interval(samples[0].copy())


def test_a_constant_has_no_spread():
    assert interval(np.full(5, 0.25)) == Interval(mean=0.25, low=0.25, high=0.25)


def test_other_truths_exclude_ones_own_and_prefer_ones_size():
    truths = [
        np.eye(4, dtype=np.uint8),
        np.ones((4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.ones((2, 6), np.uint8),
    ]
    found = dice_with_other_truths(truths, truths, 2)
    by_hand = [
        np.mean([dice(truths[0], truths[1]), dice(truths[0], truths[2])]),
        np.mean([dice(truths[1], truths[0]), 0]),
        0,
        # No other has this size, so all are resized to it.
        np.mean([dice(np.ones((2, 6), np.uint8), truth[[0, 2]][:, [0, 0, 1, 2, 2, 3]]) for truth in truths[:3]]),
    ]
    assert found == pytest.approx(by_hand)


def test_random_predictions_match_all_truths_alike():
    random = np.random.default_rng(0)
    maps, truths = ([(random.random((16, 16)) > 0.5).astype(np.uint8) for _ in range(40)] for _ in range(2))
    own = np.array([dice(found, truth) for found, truth in zip(maps, truths, strict=True)])
    assert abs((own - dice_with_other_truths(maps, truths, 2)).mean()) < 0.02


@given(MAPS, MAPS, arrays(np.bool_, (5, 4)))
def test_pixels_without_a_class_are_not_scored(found, truth, left_out):
    kept = counts_of(found[~left_out], truth[~left_out], 3)
    assert (counts_of(found, np.where(left_out, np.uint8(IGNORED), truth), 3) == kept).all()
