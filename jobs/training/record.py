"""The record of a finished training, stored as `result.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.training.gate import Gate, Verdict
from maskfleet.jobs.training.pairs import Pairs
from maskfleet.jobs.training.scores import KINDS, Interval, Scores
from maskfleet.jobs.training.truth.labels import as_value


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of one class over the validation set.

    Attributes:
        number: Number of the class, from 1; 0 is the background.
        value: Mask value of the class.
        intervals: Mean and 95 % interval of each of `scores.KINDS`.
    """

    number: int
    value: Any
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"class": self.number, "value": self.value} | {kind: asdict(self.intervals[kind]) for kind in KINDS}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ClassScores":
        """Read the JSON form."""
        intervals = {kind: Interval(**stored[kind]) for kind in KINDS}
        return cls(number=stored["class"], value=as_value(stored["value"]), intervals=intervals)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one set of weights on the validation set.

    Attributes:
        images: Number of validation images.
        dice: Mean Dice over images and classes.
        iou: Mean IoU over images and classes.
        classes: Scores of each class except the background.
    """

    images: int
    dice: float
    iou: float
    classes: Sequence[ClassScores]

    @classmethod
    def of(cls, scores: Scores, pairs: Pairs) -> "Evaluation":
        """Summarise scores on the validation set of these pairs."""
        classes = [
            ClassScores(number=index + 1, value=pairs.values[index + 1], intervals=scores.intervals(index))
            for index in range(scores.counts.shape[1])
        ]
        return cls(images=len(pairs.validation), dice=scores.mean, iou=float(scores.iou.mean()), classes=classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        classes = [each.to_dict() for each in self.classes]
        return {"images": self.images, "dice": self.dice, "iou": self.iou, "classes": classes}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Evaluation":
        """Read the JSON form."""
        classes = [ClassScores.from_dict(each) for each in stored["classes"]]
        return cls(images=stored["images"], dice=stored["dice"], iou=stored["iou"], classes=classes)


@dataclass(frozen=True, kw_only=True)
class WeightsEvaluation:
    """Scores of given weights on given pairs.

    Attributes:
        weights: Id of the weights.
        data: Digest of the pairs.
        scores: Scores on the validation set.
    """

    weights: str
    data: str
    scores: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"weights": self.weights, "data": self.data, **self.scores.to_dict()}


@dataclass(frozen=True, kw_only=True)
class ValidationImage:
    """Dice of one validation image.

    Attributes:
        key: Key of the image.
        base: Dice with the base weights; None if not comparable.
        new: Dice with the new weights.
        others: Mean Dice of the new prediction with the ground truth of other images.
    """

    key: str
    base: float | None
    new: float
    others: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The gate's decision.

    Attributes:
        gate: Gate of the job.
        verdict: Decision and reason.
    """

    gate: Gate
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"gate": self.gate, "accepted": self.verdict.accepted, "reason": self.verdict.reason}


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A finished training.

    Attributes:
        id: Id of the training plan.
        weights: File name of the new weights.
        identity: Everything the weights depend on; stored as `about`.
        trained_on: Number of training pairs.
        new: Scores of the new weights.
        base: Scores of the base weights; None if not comparable.
        validation: Dice of each validation image; stored as `held_back`.
        finished: End of the training, ISO 8601, UTC.
        judgement: Decision of the gate; None until judged.
    """

    id: str
    weights: str
    identity: Mapping[str, Any]
    trained_on: int
    new: Evaluation
    base: Evaluation | None
    validation: Sequence[ValidationImage]
    finished: str
    judgement: Judgement | None = None

    @property
    def new_dice(self) -> NDArray[np.float64]:
        """Dice of each validation image with the new weights, (images,)."""
        return np.array([image.new for image in self.validation])

    @property
    def other_dice(self) -> NDArray[np.float64]:
        """Mean Dice of each new prediction with the ground truth of other images, (images,)."""
        return np.array([image.others for image in self.validation])

    @property
    def base_dice(self) -> NDArray[np.float64] | None:
        """Dice of each validation image with the base weights, (images,); None if not comparable."""
        return None if self.base is None else np.array([image.base for image in self.validation], np.float64)

    def judged(self, judgement: Judgement, *, weights: str) -> "TrainingRecord":
        """Return the record with a decision of the gate and the file name that follows from it."""
        return replace(self, judgement=judgement, weights=weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "id": self.id,
            "weights": self.weights,
            "about": dict(self.identity),
            "trained_on": self.trained_on,
            **self.new.to_dict(),
            "base": None if self.base is None else self.base.to_dict(),
            "held_back": [asdict(image) for image in self.validation],
            "finished": self.finished,
            **({} if self.judgement is None else self.judgement.to_dict()),
        }

    def to_json(self) -> bytes:
        """Return the content of `result.json`."""
        return json.dumps(self.to_dict(), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "TrainingRecord":
        """Read `result.json`."""
        stored = json.loads(data)
        verdict = Verdict(stored["accepted"], stored["reason"]) if "gate" in stored else None
        names = [field.name for field in fields(ValidationImage)]
        return cls(
            id=stored["id"],
            weights=stored["weights"],
            identity=stored["about"],
            trained_on=stored["trained_on"],
            new=Evaluation.from_dict(stored),
            base=None if stored["base"] is None else Evaluation.from_dict(stored["base"]),
            validation=[ValidationImage(**{name: image[name] for name in names}) for image in stored["held_back"]],
            finished=stored["finished"],
            judgement=None if verdict is None else Judgement(gate=stored["gate"], verdict=verdict),
        )
