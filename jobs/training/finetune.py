"""Fine-tuning: train new weights from pairs, judge them against the base weights, or only evaluate weights.

A training writes to `OUTPUT/finetune/<id>/`. The id follows from base weights, pairs and settings, so repeating the
command resumes an unfinished training or finds the finished one.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError, NotFound, Refused
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.network.inference_config import image_limits, load_weights, threads_of, thresholds
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.training import report
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.gate import Verdict, judge
from maskfleet.jobs.training.loop import OnStep, TrainingLoop, TrainingResult, read_metrics, train
from maskfleet.jobs.training.pairs import Pair, read_pairs
from maskfleet.jobs.training.plan import TrainingPlan, mask_values_of, plan_training
from maskfleet.jobs.training.record import Evaluation, Judgement, TrainingRecord, ValidationImage, WeightsEvaluation
from maskfleet.jobs.training.scores import Scores, class_maps, counts_of, dice_with_other_truths, scores_of
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.model import UNet

_UNJUDGED, _ACCEPTED, _REFUSED = "unjudged.safetensors", "weights.safetensors", "refused.safetensors"
"""File names of new weights."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A finished and judged training.

    Attributes:
        weights: URL of the new weights.
        verdict: Decision of the gate.
        record: Content of `result.json`.
    """

    weights: str
    verdict: Verdict
    record: TrainingRecord

    @property
    def report(self) -> str:
        """URL of the report."""
        return f"{self.weights.rpartition('/')[0]}/report.html"

    def refusal(self) -> Refused:
        """Return the error for weights refused by the gate."""
        return Refused(f"the gate refused the new weights, kept as {self.weights}: {self.verdict.reason}")


def evaluate(job: Job) -> WeightsEvaluation:
    """Score the job's weights on its validation pairs, applied in fp32 with its inference settings.

    Raises:
        JobError: The pairs or weights are wrong.
    """
    weights = load_weights(job)
    values = mask_values_of(weights)
    pairs = read_pairs(job, image_limits(job, weights), classes=len(values), base_values=values)
    scores = scores_of(job, weights, pairs.validation, threads=threads_of(job, alone=True))
    return WeightsEvaluation(weights=weights.id, data=pairs.digest, scores=Evaluation.of(scores, pairs))


def apply_finetuning(
    job: Job, *, on_step: OnStep | None = None, stopped: Callable[[], bool] = lambda: False,
    loop: TrainingLoop = train,
) -> Job:  # fmt: skip
    """Return the job with its `finetune` section carried out and replaced by the resulting weights.

    Returns a job without that section unchanged.

    Raises:
        Refused: The gate refused the new weights and `finetune.on_refused` is "stop".
        MaskfleetError: As `finetune`.
    """
    if not job.finetune.images:
        return job
    return _with_result(job, finetune(job, on_step=on_step, stopped=stopped, loop=loop))


def apply_finished_finetuning(job: Job) -> Job:
    """Return the same as `apply_finetuning` if the training is finished, else the job unchanged. Writes nothing.

    Raises:
        JobError: The pairs, weights or settings are wrong.
        Refused: The gate refused the new weights and `finetune.on_refused` is "stop".
    """
    if not job.finetune.images:
        return job
    plan = plan_training(job)
    storage = open_storage(job.output, profile=job.profile)
    record = _stored_record(plan, storage)
    if record is None:
        return job
    weights = storage.url(f"{plan.folder}/{record.weights}")
    return _with_result(job, FinetuneResult(weights=weights, verdict=_verdict(plan, record), record=record))


def _with_result(job: Job, result: FinetuneResult) -> Job:
    if not result.verdict.accepted and job.finetune.on_refused == "stop":
        raise result.refusal()
    weights = (result.weights,) if result.verdict.accepted else job.weights
    return job.model_copy(update={"weights": weights, "finetune": Finetune()})


def finetune(
    job: Job, *, on_step: OnStep | None = None, stopped: Callable[[], bool] = lambda: False,
    loop: TrainingLoop = train,
) -> FinetuneResult:  # fmt: skip
    """Train, resume an unfinished training, or find the finished one; then judge it.

    Args:
        job: Job with a `finetune` section.
        on_step: Called after every step.
        stopped: Called before every step; if it returns True, all finished steps are saved and training stops.
        loop: Makes the steps: in this process, or on several workers.

    Raises:
        JobError: The pairs, weights or settings are wrong.
        Locked: Another run holds the output.
        Stopped: `stopped` returned True.
        StorageError: Storage keeps failing.
    """
    plan = plan_training(job)
    if loop is train and job.finetune.workers > 1:
        raise JobError(f"finetune.workers = {job.finetune.workers} needs Ray; omit --no-ray, or set it to 1")
    storage = open_storage(job.output, profile=job.profile)
    with locked(storage, job.run.on_overlap, stopped) as lock:
        storage = lock.fence.storage
        record = _stored_record(plan, storage)
        if record is None:
            record = _train(plan, storage, lock.fence, loop=loop, on_step=on_step, stopped=stopped)
        return _judge(plan, storage, record)


def _stored_record(plan: TrainingPlan, storage: Storage) -> TrainingRecord | None:
    """Return the record of a finished training, or None."""
    try:
        return TrainingRecord.from_json(storage.read(f"{plan.folder}/result.json"))
    except NotFound:
        return None


def _judge(plan: TrainingPlan, storage: Storage, record: TrainingRecord) -> FinetuneResult:
    """Judge a training by the gate the job has now, which may differ from the one it was trained with."""
    verdict = _verdict(plan, record)
    name = _ACCEPTED if verdict.accepted else _REFUSED
    if record.weights != name:
        storage.write(f"{plan.folder}/{name}", storage.read(f"{plan.folder}/{record.weights}"))
    judged = record.judged(Judgement(gate=plan.job.finetune.gate, verdict=verdict), weights=name)
    if judged != record:
        storage.write(f"{plan.folder}/result.json", judged.to_json())
    # After the record, and every time: an earlier process may have been killed before it got here.
    for other in {_UNJUDGED, _ACCEPTED, _REFUSED} - {name}:
        storage.discard(f"{plan.folder}/{other}")
    return FinetuneResult(weights=storage.url(f"{plan.folder}/{name}"), verdict=verdict, record=judged)


def _verdict(plan: TrainingPlan, record: TrainingRecord) -> Verdict:
    return judge(plan.job.finetune.gate, new=record.new_dice, others=record.other_dice, base=record.base_dice)


def _train(
    plan: TrainingPlan, storage: Storage, fence: Fence, *, loop: TrainingLoop, on_step: OnStep | None,
    stopped: Callable[[], bool],
) -> TrainingRecord:  # fmt: skip
    """Train and score the new weights; store them with metrics, report and record, not yet judged."""
    threads = _recorded_threads(plan, storage)
    torch.set_num_threads(threads)
    # Before hours of training: refuse thresholds unsuited to the new network, and score the base.
    thresholds(plan.job, replace(plan.base, model=plan.network()))
    before = scores_of(plan.job, plan.base, plan.pairs.validation, threads=threads) if plan.comparable else None
    checkpoints = Checkpoints(storage, f"{plan.folder}/checkpoints", fence)
    result = loop(plan, checkpoints, threads=threads, on_step=on_step, stopped=stopped)
    new = unet_weights.load(result.best if plan.job.finetune.pick == "best" else result.last)
    assert isinstance(new.model, UNet)
    validation = plan.pairs.validation
    classes = max(2, new.model.n_classes)
    maps = list(class_maps(plan.job, new, validation, threads=threads))
    scores = Scores(np.stack([counts_of(m, pair.truth, classes) for m, pair in zip(maps, validation, strict=True)]))
    record = TrainingRecord(
        id=plan.id,
        weights=_UNJUDGED,
        identity=plan.identity,
        trained_on=len(plan.pairs.training),
        new=Evaluation.of(scores, plan.pairs),
        base=None if before is None else Evaluation.of(before, plan.pairs),
        validation=_validation_images(validation, maps, classes=classes, new=scores, base=before),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write(f"{plan.folder}/metrics.parquet", result.metrics)
    storage.write(f"{plan.folder}/report.html", _report(plan, record, result, maps, threads=threads))
    storage.write(f"{plan.folder}/{record.weights}", plan.weights_file(new.model, _lineage(plan, scores)))
    fence.check()
    storage.write(f"{plan.folder}/result.json", record.to_json())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # workers on the same GPU may follow
    return record


def _validation_images(
    pairs: Sequence[Pair], maps: Sequence[NDArray[np.uint8]], *, classes: int, new: Scores, base: Scores | None
) -> list[ValidationImage]:
    # With a single image there is no other ground truth to compare with.
    others = dice_with_other_truths(maps, [pair.truth for pair in pairs], classes) if len(pairs) > 1 else np.zeros(1)
    old: Sequence[float | None] = [None] * len(pairs) if base is None else base.image_dice.tolist()
    return [
        ValidationImage(key=pair.key, base=before, new=after, others=other)
        for pair, before, after, other in zip(pairs, old, new.image_dice.tolist(), others.tolist(), strict=True)
    ]


def _report(
    plan: TrainingPlan, record: TrainingRecord, result: TrainingResult, maps: Sequence[NDArray[np.uint8]], *,
    threads: int,
) -> bytes:  # fmt: skip
    validation = plan.pairs.validation
    dice = record.new_dice
    shown = report.worst_median_best(dice)
    pairs = [validation[index] for _, index in shown]
    old = class_maps(plan.job, plan.base, pairs, threads=threads) if plan.comparable else itertools.repeat(None)
    examples = [
        report.Example(title=title, pair=validation[index], base=before, new=maps[index], dice=float(dice[index]))
        for (title, index), before in zip(shown, old, strict=False)
    ]
    return report.page(
        record, read_metrics(result.metrics), examples, job=plan.job, verdict=_verdict(plan, record), steps=plan.steps
    )


def _recorded_threads(plan: TrainingPlan, storage: Storage) -> int:
    """Return the number of CPU threads of this training, fixed by its first command.

    Results depend on it in their last bits.
    """
    path = f"{plan.folder}/finetune.json"
    try:
        return int(json.loads(storage.read(path))["threads"])
    except NotFound:
        threads = threads_of(plan.job, alone=True)
        record = {
            "id": plan.id,
            "about": plan.identity,
            "threads": threads,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": plan.job.model_dump(mode="json", exclude_none=True),
        }
        storage.write(path, json.dumps(record, indent=1).encode())
        return threads


def _lineage(plan: TrainingPlan, scores: Scores) -> dict[str, str]:
    """Return the provenance stored in new weights.

    No time and no place: equal trainings give equal files.
    """
    scale = {} if plan.job.inference.scale == 1 else {"scale": f"{plan.job.inference.scale:g}"}
    return scale | {
        "base": "none" if plan.random_start else plan.base.id,
        "base_name": "a new network" if plan.random_start else plan.job.weights[0].rsplit("/", 1)[-1],
        "data": plan.pairs.digest,
        "split": f"{len(plan.pairs.training)} pairs to train on, {len(plan.pairs.validation)} held back by content",
        "recipe": json.dumps(plan.identity, sort_keys=True),
        "code": f"maskfleet {version('maskfleet')}, torch {version('torch')}",
        "dice_mean": f"{scores.mean:.4f}",
        "dice_median": f"{np.median(scores.image_dice):.4f}",
        "dice_worst": f"{scores.image_dice.min():.4f}",
        "iou_mean": f"{scores.iou.mean():.4f}",
    }
