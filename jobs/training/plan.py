"""A training plan: base weights, pairs and schedule, and the id computed from them. Knows no storage."""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.network.inference_config import check_bands, image_limits, load_one, normalization_of, stated_pixels
from maskfleet.jobs.training.gate import MIN_IMAGES, refuse_undecidable
from maskfleet.jobs.training.pairs import Pairs, read_pairs
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.model import UNet
from maskfleet.unet.pixels.normalization import Normalization
from maskfleet.unet.precision import DTYPES
from maskfleet.unet.training.trainer import LEARNING_RATES
from maskfleet.unet.weights import Normalize, Weights

VERSION = 2
"""Version of the training procedure. A release that trains differently raises it; finished trainings stay valid."""

_RANDOM_START_RATE = 1e-3
"""Learning rate of the recipe "default" for a randomly initialised network."""

_VALIDATIONS = 10
"""Number of validations of a training with `validate_every = "auto"`."""

_IN_THE_DATA = {"images", "masks", "mask_name", "ignore", "instances", "mask_orientation"}
"""Settings that `Pairs.digest` covers."""

_IRRELEVANT = {"unpaired", "save_every", "checkpointing", "gate", "on_refused"}
"""Settings without influence on the resulting weights."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines the weights of a training.

    Attributes:
        job: Job with a `finetune` section.
        base: Base weights.
        pairs: Training and validation pairs.
    """

    job: Job
    base: Weights
    pairs: Pairs

    @cached_property
    def random_start(self) -> bool:
        """Whether training starts from a randomly initialised network."""
        return self.job.finetune.start == "random"

    @cached_property
    def steps(self) -> int:
        """Number of optimizer steps."""
        settings = self.job.finetune
        if settings.steps != "auto":
            return settings.steps
        return -(-settings.epochs * len(self.pairs.training) // settings.batch_size)

    @cached_property
    def validate_every(self) -> int:
        """Optimizer steps between two validations."""
        every = self.job.finetune.validate_every
        return max(1, self.steps // _VALIDATIONS) if every == "auto" else every

    @cached_property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        settings = self.job.finetune
        if settings.learning_rate != "auto":
            return settings.learning_rate
        if self.random_start and settings.recipe == "default":
            return _RANDOM_START_RATE
        return LEARNING_RATES[settings.recipe]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything the resulting weights depend on; stored as `about` in `finetune.json` and `result.json`."""
        inference, settings = self.job.inference, self.job.finetune
        return {
            "training": VERSION,
            "base": self.base.id,
            "data": self.pairs.digest,
            "scale": inference.scale,
            "orientation": inference.orientation,
            "threshold": inference.threshold,
            "tta": inference.tta,
            **stated_pixels(self.job),
            **settings.model_dump(mode="json", exclude=_IRRELEVANT | _IN_THE_DATA),
            "steps": self.steps,
            "learning_rate": self.learning_rate,
        }

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Folder of this training within the output."""
        return f"finetune/{self.id}"

    @property
    def comparable(self) -> bool:
        """Whether the base and the new network have the same number of classes."""
        return len(self.pairs.values) == max(2, self.base.model.n_classes)

    @property
    def declared(self) -> Normalization | None:
        """Declared normalisation of the images."""
        return normalization_of(self.job, self.base)

    @property
    def normalize(self) -> Normalize | None:
        """Mean and standard deviation of each channel in [0, 1]; None for pixels in [0, 1] or a declared one."""
        return None if self.random_start or self.declared else self.base.normalize

    def network(self) -> UNet:
        """Return the initial network: a copy of the base, or a randomly initialised one."""
        if not self.random_start:
            assert isinstance(self.base.model, UNet)
            return copy.deepcopy(self.base.model)
        torch.manual_seed(self.job.finetune.seed)
        return UNet(self.base.model.n_channels, len(self.pairs.values), width=self.job.finetune.width)

    def weights_file(self, network: UNet, metadata: dict[str, str]) -> bytes:
        """Serialise a network with this plan's mask values, normalisation and dtype."""
        return unet_weights.save(
            network,
            mask_values=self.pairs.values if self.random_start else self.base.mask_values,
            normalize=self.normalize,
            input=self.declared,
            metadata=metadata,
            dtype=DTYPES[self.job.finetune.store],
        )


def plan_training(job: Job) -> TrainingPlan:
    """Load the base weights, read and check all pairs, and plan the training.

    Raises:
        JobError: The pairs, weights or settings are wrong.
    """
    if len(job.weights) > 1:
        raise JobError("fine-tuning starts from one network, but 'weights' names several; name one")
    base = load_one(job, job.weights[0])
    if job.finetune.start != "random" and not isinstance(base.model, UNet):
        raise JobError(
            f"fine-tuning trains Pytorch-UNets, and {job.weights[0]} is an exported network; train it in its library "
            "and export it again"
        )
    values = None if job.finetune.start == "random" else mask_values_of(base)
    check_bands(job, base)
    pairs = read_pairs(
        job,
        image_limits(job, base),
        classes=None if values is None else len(values),
        base_values=values,
    )
    plan = TrainingPlan(job, base, pairs)
    refuse_undecidable(
        job.finetune.gate,
        images=len(pairs.validation),
        pairs=len(pairs.training) + len(pairs.validation),
        share=pairs.share_of(MIN_IMAGES),
        comparable=plan.comparable,
    )
    return plan


def mask_values_of(weights: Weights) -> tuple[Any, ...]:
    """Return the mask value of each class: the weights' own, or the default ones."""
    return weights.mask_values or tuple(default_values(max(2, weights.model.n_classes)))
