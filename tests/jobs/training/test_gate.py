import numpy as np
import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.gate import MARGIN, MIN_IMAGES, judge, refuse_undecidable

BASE = np.random.default_rng(0).uniform(0.5, 0.9, 20)
OTHERS = np.full(20, 0.2)


def verdict(gate, gain, *, spread=0.02, others=OTHERS):
    noise = np.random.default_rng(1).normal(0, spread, 20)
    new = BASE + gain + noise - noise.mean()
    return judge(gate, new=new, others=others, base=BASE)


@pytest.mark.parametrize(
    ("gate", "gain", "accepted"),
    [
        ("better", 0.05, True),
        ("better", 0.001, False),  # within chance
        ("better", 0.0, False),
        ("better", -0.05, False),
        ("not-worse", 0.0, True),
        ("not-worse", -0.8 * MARGIN, False),
        ("not-worse", -0.05, False),
        ("off", -0.5, True),
    ],
)
def test_the_gate_accepts_only_significant_results(gate, gain, accepted):
    assert verdict(gate, gain).accepted is accepted


def test_images_are_compared_pairwise():
    """A small gain on every image is significant, although images differ far more than that."""
    assert verdict("better", 0.005, spread=0.001).accepted


def test_the_reason_states_the_figures():
    reason = verdict("better", 0.0).reason
    assert "Dice 0.7" in reason
    assert "on 20 validation images; with 95 % confidence the gain is at least -0.00" in reason
    assert reason.endswith("but finetune.gate = 'better' needs more than +0.00; add pairs or raise finetune.epochs")


@pytest.mark.parametrize("gate", ["better", "not-worse"])
def test_shuffled_masks_are_refused_however_large_the_gain(gate):
    refused = verdict(gate, 0.3, others=BASE + 0.3)
    assert not refused.accepted
    assert "masks and images seem to be mixed up; check finetune.mask_name" in refused.reason


def test_chance_passes_the_gate_about_once_in_twenty_times():
    random = np.random.default_rng(2)
    passed = 0
    for _ in range(200):
        base = random.uniform(0.5, 0.9, 30)
        new = base + random.normal(0, 0.05, 30)
        passed += judge("better", new=new, others=np.zeros(30), base=base).accepted
    assert 2 <= passed <= 22


def test_an_undecidable_gate_is_refused_before_training():
    counted = {"pairs": 30, "share": 0.23}
    remedy = (
        r"needs at least 5 validation pairs, got 4 of 30 pairs; set finetune.validation_share = 0.23, .*; add pairs"
    )
    with pytest.raises(JobError, match=remedy):
        refuse_undecidable("better", images=MIN_IMAGES - 1, comparable=True, **counted)
    with pytest.raises(JobError, match="got 4 of 6 pairs; add pairs; or set"):
        refuse_undecidable("better", images=MIN_IMAGES - 1, comparable=True, pairs=6, share=None)
    with pytest.raises(JobError, match="have different classes and cannot be compared"):
        refuse_undecidable("not-worse", images=MIN_IMAGES, comparable=False, **counted)
    refuse_undecidable("off", images=1, comparable=False, **counted)
    refuse_undecidable("better", images=MIN_IMAGES, comparable=True, **counted)
