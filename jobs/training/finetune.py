"""Fine-tuning: pairs and weights to weights that were shown to be better, or what weights are worth on held-back pairs.

What it leaves is below `OUTPUT/finetune/<id>/`, where the id names base, data and settings: the same command goes on
there, or finds it done.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError, NotFound, Refused
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.network.inference_config import load_one, load_weights, threads_of, thresholds
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.training import report
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.gate import Verdict, judge, refuse_what_cannot_be_judged
from maskfleet.jobs.training.loop import Plan, Progress, Train, Trained, rows_of
from maskfleet.jobs.training.loop import train as train_here
from maskfleet.jobs.training.pairs import Pairs, read_pairs
from maskfleet.jobs.training.scores import Scores, class_maps, counts_of, fit_to_others, scores_of
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.model import UNet
from maskfleet.unet.weights import Weights

_UNJUDGED, _ACCEPTED, _REFUSED = "unjudged.safetensors", "weights.safetensors", "refused.safetensors"
"""What new weights are called."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to; `result.json` holds the same.

    Attributes:
        weights: URL of the new weights.
        verdict: The gate's.
        record: All of it.
    """

    weights: str
    verdict: Verdict
    record: dict[str, Any]


def evaluate(job: Job) -> dict[str, Any]:
    """How well the job's weights do on the pairs that are held back, as `run` would apply them in fp32.

    Raises:
        JobError: Something about the pairs or weights is wrong.
    """
    weights = load_weights(job)
    own = _own_values(weights)
    pairs = read_pairs(job, channels=weights.model.n_channels, classes=len(own), own=own)
    scores = scores_of(job, weights, pairs.validation, threads=threads_of(job, alone=True))
    return {"weights": weights.id, "data": pairs.digest, **_scored(scores, pairs)}


def improved(
    job: Job, *, progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False,
    train: Train = train_here,
) -> Job:  # fmt: skip
    """The job with the weights that its `finetune` section makes, and without that section.

    Raises:
        Refused: The gate refused them, and the job says to stop then.
        Others as `finetune`.
    """
    if not job.finetune.images:
        return job
    return _with(job, finetune(job, progress=progress, stopped=stopped, train=train))


def foreseen(job: Job) -> Job:
    """What `improved` would give where the training is done; else the job as it is. Writes nothing.

    Raises as `improved`.
    """
    if not job.finetune.images:
        return job
    plan = plan_of(job)
    storage = open_storage(job.output, profile=job.profile)
    record = _known(plan, storage)
    if record is None:
        return job
    return _with(job, Outcome(storage.url(f"{plan.folder}/{record['weights']}"), _verdict(plan, record), record))


def _with(job: Job, outcome: Outcome) -> Job:
    if not outcome.verdict.accepted and job.finetune.on_refused == "stop":
        raise refusal(outcome)
    weights = (outcome.weights,) if outcome.verdict.accepted else job.weights
    return job.model_copy(update={"weights": weights, "finetune": Finetune()})


def refusal(outcome: Outcome) -> Refused:
    """What a refused training says."""
    return Refused(f"the gate refused the new weights, kept as {outcome.weights}: {outcome.verdict.reason}")


def finetune(
    job: Job, *, progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False,
    train: Train = train_here,
) -> Outcome:  # fmt: skip
    """Train, or go on, or find it done.

    Args:
        job: With a `finetune` section.
        progress: Called after every step.
        stopped: Asked before every step; True keeps what is done and ends.
        train: Makes the steps.

    Raises:
        JobError: Something about the pairs, weights or settings is wrong.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        StorageError: Storage goes on failing.
    """
    plan = plan_of(job)
    if train is train_here and job.finetune.workers > 1:
        raise JobError(f"finetune.workers = {job.finetune.workers} needs Ray; leave --no-ray out, or set it to 1")
    storage = open_storage(job.output, profile=job.profile)
    with locked(storage, job.run.on_overlap, stopped) as lock:
        record = _known(plan, storage) or _made(plan, storage, lock.fence, train, progress, stopped)
        return _judged(plan, storage, record)


def plan_of(job: Job) -> Plan:
    """What a job trains, all pairs read and checked.

    Raises:
        JobError: Something about the pairs, weights or settings is wrong.
    """
    if len(job.weights) > 1:
        raise JobError("fine-tuning begins with one network and 'weights' names several; name one")
    base = load_one(job, job.weights[0])
    own = None if job.finetune.start == "random" else _own_values(base)
    pairs = read_pairs(job, channels=base.model.n_channels, classes=None if own is None else len(own), own=own)
    plan = Plan(job, base, pairs)
    refuse_what_cannot_be_judged(job.finetune.gate, images=len(pairs.validation), comparable=plan.comparable)
    return plan


def _own_values(weights: Weights) -> tuple[Any, ...]:
    return weights.mask_values or tuple(default_values(max(2, weights.model.n_classes)))


def _known(plan: Plan, storage: Storage) -> dict[str, Any] | None:
    """The record of a training that is done."""
    try:
        record: dict[str, Any] = json.loads(storage.read(f"{plan.folder}/result.json"))
    except NotFound:
        return None
    return record


def _judged(plan: Plan, storage: Storage, record: dict[str, Any]) -> Outcome:
    """A training with the verdict of the gate that the job has now, which need not be the one that it was done with."""
    verdict = _verdict(plan, record)
    name = _ACCEPTED if verdict.accepted else _REFUSED
    if record["weights"] != name:
        storage.write(f"{plan.folder}/{name}", storage.read(f"{plan.folder}/{record['weights']}"))
    judged = record | {"weights": name, "gate": plan.job.finetune.gate, **verdict._asdict()}
    if judged != record:
        storage.write(f"{plan.folder}/result.json", json.dumps(judged, indent=1).encode())
    # Behind the record, and each time, since a kill may have come between: what is called weights was accepted.
    for other in {_UNJUDGED, _ACCEPTED, _REFUSED} - {name}:
        storage.delete(f"{plan.folder}/{other}")
    return Outcome(storage.url(f"{plan.folder}/{name}"), verdict, judged)


def _verdict(plan: Plan, record: dict[str, Any]) -> Verdict:
    base, new, others = (_column(record, name) for name in ("base", "new", "others"))
    assert new is not None
    assert others is not None
    return judge(plan.job.finetune.gate, new=new, others=others, base=base)


def _column(record: dict[str, Any], name: str) -> NDArray[np.float64] | None:
    values = [image[name] for image in record["held_back"]]
    return None if values[0] is None else np.array(values)


def _made(
    plan: Plan, storage: Storage, fence: Fence, train: Train, progress: Progress | None, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """The record of a training, once it is done; nothing says that its weights may be used."""
    threads = _threads(plan, storage)
    torch.set_num_threads(threads)
    # Before hours are spent: whether the job can apply what will come of it, and what the base is worth.
    thresholds(plan.job, replace(plan.base, model=plan.network()))
    before = scores_of(plan.job, plan.base, plan.pairs.validation, threads=threads) if plan.comparable else None
    checkpoints = Checkpoints(storage, f"{plan.folder}/checkpoints", fence)
    trained = train(plan, checkpoints, threads=threads, progress=progress, stopped=stopped)
    new = unet_weights.load(trained.best if plan.job.finetune.pick == "best" else trained.last)
    assert isinstance(new.model, UNet)
    held = plan.pairs.validation
    classes = max(2, new.model.n_classes)
    maps = list(class_maps(plan.job, new, held, threads=threads))
    scores = Scores(np.stack([counts_of(found, pair.truth, classes) for found, pair in zip(maps, held, strict=True)]))
    others = fit_to_others(maps, [pair.truth for pair in held], classes) if len(held) > 1 else np.zeros(1)
    old = [None] * len(held) if before is None else before.of_images.tolist()
    record = {
        "id": plan.id,
        "weights": _UNJUDGED,
        "about": plan.about,
        "trained_on": len(plan.pairs.training),
        **_scored(scores, plan.pairs),
        "base": None if before is None else _scored(before, plan.pairs),
        "held_back": [
            {"key": pair.key, "base": base, "new": mine, "others": other}
            for pair, base, mine, other in zip(held, old, scores.of_images.tolist(), others.tolist(), strict=True)
        ],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write(f"{plan.folder}/metrics.parquet", trained.metrics)
    storage.write(f"{plan.folder}/report.html", _report(plan, record, trained, maps, threads))
    storage.write(f"{plan.folder}/{record['weights']}", plan.weights(new.model, _lineage(plan, scores)))
    fence.check()
    storage.write(f"{plan.folder}/result.json", json.dumps(record, indent=1).encode())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # this process may drive workers on the same GPU
    return record


def _report(
    plan: Plan, record: dict[str, Any], trained: Trained, maps: Sequence[NDArray[np.uint8]], threads: int
) -> bytes:
    held = plan.pairs.validation
    dice = np.array([image["new"] for image in record["held_back"]])
    shown = report.chosen(dice)
    pairs = [held[number] for _, number in shown]
    old = class_maps(plan.job, plan.base, pairs, threads=threads) if plan.comparable else itertools.repeat(None)
    examples = [
        (name, report.Example(held[number], before, maps[number], float(dice[number])))
        for (name, number), before in zip(shown, old, strict=False)
    ]
    return report.page(record, rows_of(trained.metrics), examples)


def _threads(plan: Plan, storage: Storage) -> int:
    """That this training computes with, on record since its first command."""
    path = f"{plan.folder}/finetune.json"
    try:
        return int(json.loads(storage.read(path))["threads"])
    except NotFound:
        threads = threads_of(plan.job, alone=True)
        record = {
            "id": plan.id,
            "about": plan.about,
            "threads": threads,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": plan.job.model_dump(mode="json", exclude_none=True),
        }
        storage.write(path, json.dumps(record, indent=1).encode())
        return threads


def _lineage(plan: Plan, scores: Scores) -> dict[str, str]:
    """What new weights say of where they come from. Equal trainings say the same: nothing of when or where."""
    kept = {} if plan.job.inference.scale == 1 else {"scale": f"{plan.job.inference.scale:g}"}
    return kept | {
        "base": "none" if plan.new else plan.base.id,
        "base_name": "a new network" if plan.new else plan.job.weights[0].rsplit("/", 1)[-1],
        "data": plan.pairs.digest,
        "split": f"{len(plan.pairs.training)} pairs to train on, {len(plan.pairs.validation)} held back by content",
        "recipe": json.dumps(plan.about, sort_keys=True),
        "code": f"maskfleet {version('maskfleet')}, torch {version('torch')}",
        "dice_mean": f"{scores.mean:.4f}",
        "dice_median": f"{np.median(scores.of_images):.4f}",
        "dice_worst": f"{scores.of_images.min():.4f}",
        "iou_mean": f"{scores.iou.mean():.4f}",
    }


def _scored(scores: Scores, pairs: Pairs) -> dict[str, Any]:
    return {
        "images": len(pairs.validation),
        "dice": scores.mean,
        "iou": float(scores.iou.mean()),
        "classes": [
            {"class": number + 1, "value": pairs.values[number + 1]}
            | {name: interval._asdict() for name, interval in scores.of_class(number).items()}
            for number in range(scores.counts.shape[1])
        ],
    }
