"""What a job makes of its weights: the network, its thresholds, what masks show, and the fingerprint of it all."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import Denied, JobError, NotFound
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.masks import png
from maskfleet.jobs.masks.formats import Encoder, mask_format
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.storage.schemes import open_storage, split_url
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.inference.precision import DeviceError, Precision
from maskfleet.unet.inference.segmenter import NotTileable, Segmenter
from maskfleet.unet.weights import Weights, WeightsError

RECIPE = 2
"""Of pixels to masks. Raised whenever a release gives other masks for the same image, weights and settings; a new
release alone must not make a million masks stale."""

_MOST_THREADS = 8
"""Of a worker. Threads that share a batch wait for each other: with a network of width 8 two made 117 images/s, and 139
with a batch each. A larger machine has several workers."""


def load_weights(job: Job) -> Weights:
    """The job's weights, several as one.

    Raises:
        JobError: They are missing, are no safetensors file, do not go together, or cannot be applied as the job asks.
    """
    try:
        weights = unet_weights.together([load_one(job, name) for name in job.weights], job.inference.tta)
    except WeightsError as error:
        raise JobError(f"weights {', '.join(job.weights)}: {error}") from error
    if job.inference.tile not in ("auto", 0) and weights.model.bilinear and job.inference.tile_mode == "exact":
        raise JobError(
            f"weights {', '.join(job.weights)} are bilinear, and tiles of a bilinear network never give the whole "
            "image's logits; set inference.tile_mode = 'approximate', or inference.tile = 'auto' or 0"
        )
    thresholds(job, weights)
    return weights


def load_one(job: Job, name: str) -> Weights:
    """Weights by themselves, as the job names them. Raises as `load_weights`."""
    try:
        if name in unet_weights.BUILTIN:
            return unet_weights.load(unet_weights.builtin(name))
        root, path = split_url(name)
        return unet_weights.load(open_storage(root, profile=job.profile).read(path))
    except NotFound as error:
        known = ", ".join(unet_weights.BUILTIN)
        raise JobError(f"there are no weights {name}; name a safetensors file or a built-in model ({known})") from error
    except (WeightsError, Denied) as error:
        raise JobError(f"weights {name}: {error}") from error


def mask_values(job: Job, weights: Weights) -> tuple[Any, ...]:
    """What masks show for each class: the job's values, else the weights', else the default.

    Raises:
        JobError: There are not as many as classes.
    """
    classes = max(2, weights.model.n_classes)
    if job.masks.values is not None and len(job.masks.values) != classes:
        raise JobError(f"masks.values has {len(job.masks.values)} values and the weights have {classes} classes")
    values = job.masks.values or weights.mask_values or default_values(classes)
    try:
        png.Encoder(values)
    except (ValueError, TypeError) as error:
        raise JobError(f"the mask values cannot be written ({error}); set masks.values") from error
    return tuple(values)


def encoder_of(job: Job, weights: Weights) -> Encoder | None:
    """Create the encoder of the job's masks; None if the job stores none."""
    return mask_format(job.masks.format).encoder(mask_values(job, weights))


def thresholds(job: Job, weights: Weights) -> tuple[float, ...] | None:
    """The probability that each class after the first must exceed; None for the largest logit.

    Raises:
        JobError: There are not as many as such classes.
    """
    stated = job.inference.threshold
    others = max(2, weights.model.n_classes) - 1
    if stated is None:
        return (0.5,) if weights.model.n_classes == 1 else None
    if isinstance(stated, float):
        return (stated,) * others
    if len(stated) != others:
        raise JobError(
            f"inference.threshold has {len(stated)} values and the weights have {others} classes beside the background"
        )
    return stated


def fingerprint_of(job: Job, weights: Weights) -> str:
    """What a mask depends on beside its image, as 64 hexadecimal digits."""
    # Not the tiles of a network that can be tiled: they change nothing.
    cut = [job.inference.tile, job.inference.tile_mode] if weights.model.bilinear else None
    parts = {
        "recipe": RECIPE,
        "schema": statistics.VERSION,
        "weights": weights.id,
        "scale": job.inference.scale,
        "orientation": job.inference.orientation,
        "precision": [job.inference.precision, job.inference.min_agreement],
        "threshold": thresholds(job, weights),
        "tta": job.inference.tta,
        "tile": cut,
        "values": mask_values(job, weights),
        "masks": mask_format(job.masks.format).stored,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def device_of(job: Job) -> str:
    """What "auto" is on this machine."""
    if job.inference.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return job.inference.device


def threads_of(job: Job, *, alone: bool = False) -> int:
    """One number for the whole fleet, however many workers share a machine: fp32 convolutions depend on it.

    Args:
        job: What to do.
        alone: One process has the machine, as a training has.
    """
    if job.cluster.threads != "auto":
        return job.cluster.threads
    return cores() if alone else min(_MOST_THREADS, cores())


def segmenter_of(
    job: Job, weights: Weights, *, threads: int, precision: Precision | None = None, batch_pixels: int | None = None,
    batches: Mapping[tuple[int, int], int] | None = None, fused: bool | None = None,
) -> Segmenter:  # fmt: skip
    """The job's network, resident on its device.

    Args:
        job: What to do.
        weights: Of `load_weights`.
        threads: Of a network on a CPU.
        precision: In place of the job's.
        batch_pixels: Of a batch, where the job leaves its size to us.
        batches: Images of a batch by height and width, where that was measured.
        fused: See `unet.inference.segmenter.Segmenter`.

    Raises:
        JobError: The device is not there or cannot do what the job asks.
    """
    torch.set_num_threads(threads)
    try:
        return Segmenter(
            weights.model,
            device=device_of(job),
            precision=precision or job.inference.precision,
            batch_size=None if job.inference.batch_size == "auto" else job.inference.batch_size,
            batch_pixels=batch_pixels,
            batches=batches,
            thresholds=thresholds(job, weights),
            tile=None if job.inference.tile == "auto" else job.inference.tile,
            approximate=job.inference.tile_mode == "approximate",
            normalize=weights.normalize,
            plain_threads=threads,
            fused=fused,
        )
    except (DeviceError, NotTileable) as error:
        raise JobError(str(error)) from error
