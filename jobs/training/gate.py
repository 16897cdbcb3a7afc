"""Whether new weights may take the place of the old ones: by what both do on the same held-back images.

Differences are paired, image by image, and judged by the end of a one-sided 95 % bootstrap interval, so that chance
alone lets weights that are no better through once in twenty times. Before that, masks must be those of their images:
what was trained on shuffled masks fits its image's own mask no better than others', however it compares with the old
weights.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.scores import lower_bound

MARGIN = 0.01
"""Mean Dice that "not-worse" forgives."""

LEAST = 5
"""Held-back images; of fewer the bootstrap knows nothing."""


class Verdict(NamedTuple):
    """What became of new weights.

    Attributes:
        accepted: Whether they are taken.
        reason: A sentence, with the remedy where they are not.
    """

    accepted: bool
    reason: str


def refuse_what_cannot_be_judged(gate: Literal["better", "not-worse", "off"], *, images: int, comparable: bool) -> None:
    """Before hours are spent.

    Raises:
        JobError: The gate could not decide.
    """
    if gate == "off":
        return
    if images < LEAST:
        raise JobError(
            f"finetune.gate needs {LEAST} held-back pairs and there are {images}; give more pairs, raise "
            "finetune.validation_share, or set finetune.gate = 'off'"
        )
    if not comparable:
        raise JobError(
            "the new network tells other classes apart than 'weights', so that they cannot be compared; set "
            "finetune.gate = 'off'"
        )


def judge(
    gate: Literal["better", "not-worse", "off"], *, new: NDArray[np.float64], others: NDArray[np.float64],
    base: NDArray[np.float64] | None,
) -> Verdict:  # fmt: skip
    """Judge new weights.

    Args:
        gate: The job's.
        new: Dice of each held-back image's new mask.
        others: Dice of the same masks with the truth of other images.
        base: Dice of the old weights' masks; None where they cannot be compared.
    """
    if gate == "off" or base is None:
        return Verdict(True, "not asked: finetune.gate is off")
    own = lower_bound(new - others)
    if own <= 0:
        return Verdict(
            False,
            f"the new masks fit other images' truth (Dice {others.mean():.4f}) as well as their own "
            f"({new.mean():.4f}): are the masks those of their images? Check finetune.mask_name and the folders",
        )
    least = lower_bound(new - base)
    needed = 0.0 if gate == "better" else -MARGIN
    compared = (
        f"Dice {new.mean():.4f} in place of {base.mean():.4f} on {len(new)} held-back images; the difference is at "
        f"least {least:+.4f} with 95 % confidence"
    )
    if least > needed:
        return Verdict(True, compared)
    return Verdict(
        False, f"{compared}, and more than {needed:+.2f} is needed; give more or other pairs, or more finetune.epochs"
    )
