"""The quality gate: new weights replace the base weights only if they segment the same validation images better.

Both are compared image by image. The gate tests the lower end of a one-sided 95 % bootstrap interval of the mean
difference, so weights without improvement pass by chance in about one of twenty trainings. First it checks for shuffled
masks: a network trained on them fits its own masks no better than those of other images, however it compares with the
base.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.scores import lower_bound

Gate = Literal["better", "not-worse", "off"]

MARGIN = 0.01
"""Loss in mean Dice tolerated by "not-worse"."""

MIN_IMAGES = 5
"""Smallest validation set with a meaningful bootstrap interval."""


@dataclass(frozen=True)
class Verdict:
    """The gate's decision about new weights.

    Attributes:
        accepted: Whether the new weights replace the base weights.
        reason: One sentence; if refused, with the remedy.
    """

    accepted: bool
    reason: str


def refuse_undecidable(gate: Gate, *, images: int, pairs: int, share: float | None, comparable: bool) -> None:
    """Refuse, before any training, a gate unable to decide.

    Args:
        gate: The job's gate.
        images: Number of validation images.
        pairs: Number of all pairs.
        share: Share of the pairs that holds back enough of them; None if there is none.
        comparable: Whether the base and the new network have the same number of classes.

    Raises:
        JobError: There are too few images, or the two networks cannot be compared.
    """
    if gate == "off":
        return
    if images < MIN_IMAGES:
        enough = "" if share is None else f"set finetune.validation_share = {share:g}, which holds back enough; "
        raise JobError(
            f"finetune.gate needs at least {MIN_IMAGES} validation pairs, got {images} of {pairs} pairs; {enough}add "
            "pairs; or set finetune.gate = 'off'"
        )
    if not comparable:
        raise JobError(
            "the new network and 'weights' have different classes and cannot be compared; set finetune.gate = 'off'"
        )


def judge(
    gate: Gate, *, new: NDArray[np.float64], others: NDArray[np.float64], base: NDArray[np.float64] | None
) -> Verdict:
    """Judge new weights.

    Args:
        gate: The job's gate.
        new: Dice of each validation image with the new weights, (images,).
        others: Mean Dice of the same predictions against the ground truth of other images, (images,).
        base: Dice of each validation image with the base weights, (images,); None if not comparable.
    """
    if gate == "off" or base is None:
        return Verdict(accepted=True, reason="not judged: finetune.gate is off")
    if lower_bound(new - others) <= 0:
        return Verdict(
            accepted=False,
            reason=(
                f"predictions match the masks of other images (Dice {others.mean():.4f}) as well as their own "
                f"({new.mean():.4f}), so masks and images seem to be mixed up; check finetune.mask_name and the folders"
            ),
        )
    gain = lower_bound(new - base)
    needed = 0.0 if gate == "better" else -MARGIN
    compared = (
        f"Dice {new.mean():.4f}, was {base.mean():.4f}, on {len(new)} validation images; with 95 % confidence the gain "
        f"is at least {gain:+.4f}"
    )
    if gain > needed:
        return Verdict(accepted=True, reason=compared)
    return Verdict(
        accepted=False,
        reason=f"{compared}, but finetune.gate = {gate!r} needs more than {needed:+.2f}; add pairs or raise "
        "finetune.epochs",
    )
