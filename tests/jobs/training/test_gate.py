import numpy as np
import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.gate import LEAST, MARGIN, judge, refuse_what_cannot_be_judged

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
        ("better", 0.001, False),  # better by chance alone, perhaps
        ("better", 0.0, False),
        ("better", -0.05, False),
        ("not-worse", 0.0, True),
        ("not-worse", -0.8 * MARGIN, False),
        ("not-worse", -0.05, False),
        ("off", -0.5, True),
    ],
)
def test_the_gate_asks_for_what_is_sure(gate, gain, accepted):
    assert verdict(gate, gain).accepted is accepted


def test_images_are_compared_each_with_itself():
    """Images differ far more than the gain; paired, a small gain on every image is sure."""
    assert verdict("better", 0.005, spread=0.001).accepted


def test_a_reason_has_the_figures():
    reason = verdict("better", 0.0).reason
    assert "Dice 0.7" in reason
    assert "on 20 held-back images; the difference is at least -0.00" in reason
    assert reason.endswith("give more or other pairs, or more finetune.epochs")


@pytest.mark.parametrize("gate", ["better", "not-worse"])
def test_masks_of_other_images_are_refused_however_much_better_they_are_learnt(gate):
    refused = verdict(gate, 0.3, others=BASE + 0.3)
    assert not refused.accepted
    assert "are the masks those of their images? Check finetune.mask_name" in refused.reason


def test_better_lets_chance_through_once_in_twenty_times():
    random = np.random.default_rng(2)
    through = 0
    for _ in range(200):
        base = random.uniform(0.5, 0.9, 30)
        new = base + random.normal(0, 0.05, 30)
        through += judge("better", new=new, others=np.zeros(30), base=base).accepted
    assert 2 <= through <= 22


def test_what_cannot_be_judged_is_refused_first():
    with pytest.raises(JobError, match=r"needs 5 held-back pairs and there are 4; .* raise finetune.validation_share"):
        refuse_what_cannot_be_judged("better", images=LEAST - 1, comparable=True)
    with pytest.raises(JobError, match="tells other classes apart"):
        refuse_what_cannot_be_judged("not-worse", images=LEAST, comparable=False)
    refuse_what_cannot_be_judged("off", images=1, comparable=False)
    refuse_what_cannot_be_judged("better", images=LEAST, comparable=True)
