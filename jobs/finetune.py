"""Fine-tuning: pairs and weights to better weights, or what weights are worth on pairs that were held back.

What it leaves is below `OUTPUT/finetune/<id>/`, where the id names base, data and settings: the same command goes on
there, or finds it done.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from jobs.checkpoints import Checkpoints
from jobs.errors import JobError, NotFound
from jobs.fence import Fence
from jobs.job import Job
from jobs.lock import locked
from jobs.masks import default_values
from jobs.pairs import Pairs, read_pairs
from jobs.recipe import load_one, load_weights, threads_of, thresholds
from jobs.scores import Scores, scores_of
from jobs.storage import Storage, open_storage
from jobs.training import Plan, Progress, train
from unet import weights as unet_weights
from unet.model import UNet
from unet.weights import Weights


@dataclass(frozen=True)
class Outcome:
    """What a training came to; `result.json` holds the same.

    Attributes:
        weights: URL of the new weights.
        record: All of it.
    """

    weights: str
    record: dict[str, Any]


def evaluate(job: Job) -> dict[str, Any]:
    """How well the job's weights do on the pairs that are held back, as `run` would apply them in fp32.

    Raises:
        JobError: Something about the pairs or weights is wrong.
    """
    weights = load_weights(job)
    own = _own_values(weights)
    pairs = read_pairs(job, channels=weights.model.n_channels, classes=len(own), own=own)
    scores = scores_of(job, weights, pairs.validation, threads=threads_of(job))
    return {"weights": weights.id, "data": pairs.digest, **_scored(scores, pairs)}


def finetune(job: Job, *, progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Train, or go on, or find it done.

    Args:
        job: With a `finetune` section.
        progress: Called after every step.
        stopped: Asked before every step; True keeps what is done and ends.

    Raises:
        JobError: Something about the pairs, weights or settings is wrong.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        StorageError: Storage goes on failing.
    """
    if len(job.weights) > 1:
        raise JobError("fine-tuning begins with one network and 'weights' names several; name one")
    base = load_one(job, job.weights[0])
    own = None if job.finetune.start == "random" else _own_values(base)
    pairs = read_pairs(job, channels=base.model.n_channels, classes=None if own is None else len(own), own=own)
    plan = Plan(job, base, pairs)
    storage = open_storage(job.output, profile=job.profile)
    with locked(storage, job.run.on_overlap, stopped) as lock:
        if (known := _outcome(plan, storage)) is not None:
            return known
        return _made(plan, storage, lock.fence, progress, stopped)


def _own_values(weights: Weights) -> tuple[Any, ...]:
    return weights.mask_values or tuple(default_values(max(2, weights.model.n_classes)))


def _outcome(plan: Plan, storage: Storage) -> Outcome | None:
    """That is on record."""
    try:
        record = json.loads(storage.read(f"{plan.folder}/result.json"))
    except NotFound:
        return None
    return Outcome(storage.url(f"{plan.folder}/{record['weights']}"), record)


def _made(
    plan: Plan, storage: Storage, fence: Fence, progress: Progress | None, stopped: Callable[[], bool]
) -> Outcome:
    threads = _threads(plan, storage)
    torch.set_num_threads(threads)
    # Before hours are spent: whether the job can apply what will come of it, and what the base is worth.
    thresholds(plan.job, replace(plan.base, model=plan.network()))
    before = scores_of(plan.job, plan.base, plan.pairs.validation, threads=threads) if plan.comparable else None
    checkpoints = Checkpoints(storage, f"{plan.folder}/checkpoints", fence)
    trained = train(plan, checkpoints, threads=threads, progress=progress, stopped=stopped)
    new = unet_weights.load(trained.best if plan.job.finetune.pick == "best" else trained.last)
    assert isinstance(new.model, UNet)
    scores = scores_of(plan.job, new, plan.pairs.validation, threads=threads)
    record = {
        "id": plan.id,
        "weights": "weights.safetensors",
        "about": plan.about,
        "trained_on": len(plan.pairs.training),
        **_scored(scores, plan.pairs),
        "base": None if before is None else _scored(before, plan.pairs),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write(f"{plan.folder}/metrics.parquet", trained.metrics)
    storage.write(f"{plan.folder}/{record['weights']}", plan.weights(new.model, _lineage(plan, scores)))
    fence.check()
    storage.write(f"{plan.folder}/result.json", json.dumps(record, indent=1).encode())
    return Outcome(storage.url(f"{plan.folder}/{record['weights']}"), record)


def _threads(plan: Plan, storage: Storage) -> int:
    """That this training computes with, on record since its first command."""
    path = f"{plan.folder}/finetune.json"
    try:
        return int(json.loads(storage.read(path))["threads"])
    except NotFound:
        threads = threads_of(plan.job)
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
