"""A job's network and its settings: weights, thresholds, mask values, device, and their fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import Denied, JobError, NotFound
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.masks import png
from maskfleet.jobs.masks.formats import Encoder, mask_format
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.storage.schemes import open_storage, split_url
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.inference.fitting import NotTileable
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.network import Network, WeightsError
from maskfleet.unet.pixels.normalization import Normalization
from maskfleet.unet.precision import DeviceError, Precision
from maskfleet.unet.weights import Weights

RECIPE = 2
"""Version of the way from pixels to masks. It rises when a release gives other masks for the same image, weights and
settings; a new release alone must not make a million masks stale."""

_MOST_THREADS = 8
"""Default limit of CPU threads per worker. Threads sharing a batch wait for each other: with a network of width 8, two
threads made 117 images/s, and 139 with a batch each. A larger machine has several workers."""


def load_weights(job: Job) -> Weights:
    """Return the job's weights, several as an ensemble.

    Raises:
        JobError: A file is missing or holds no network, the networks do not fit together, or the job's tiles or
            thresholds do not fit the network.
    """
    try:
        weights = unet_weights.together([load_one(job, name) for name in job.weights], job.inference.tta)
    except WeightsError as error:
        raise JobError(f"weights {', '.join(job.weights)}: {error}") from error
    _check_tiles(job, weights.model)
    check_bands(job, weights)
    thresholds(job, weights)
    return weights


def check_bands(job: Job, weights: Weights) -> None:
    """Refuse bands and a normalisation of another number than the network takes.

    Raises:
        JobError: The number differs.
    """
    channels, bands, declared = weights.model.n_channels, job.inference.bands, normalization_of(job, weights)
    if bands and len(bands) != channels:
        raise JobError(
            f"inference.bands names {len(bands)} bands, but the weights take {channels}; name as many, counted from 1"
        )
    misfit = None if declared is None else declared.misfit(channels)
    if misfit is not None:
        raise JobError(f"inference.normalize: {misfit}; set one number, or one per band")


def _check_tiles(job: Job, network: Network) -> None:
    tile, names = job.inference.tile, ", ".join(job.weights)
    if tile in ("auto", 0):
        return
    if tile % network.grid:
        raise JobError(
            f"inference.tile is {tile}; with the weights {names} it must be 0 or a multiple of {network.grid} px, so "
            "that tiles give the whole image's logits"
        )
    if network.untileable is not None and job.inference.tile_mode == "exact":
        raise JobError(
            f"tiles never give the whole image's logits with the weights {names}: {network.untileable}; "
            "set inference.tile_mode = 'approximate', or inference.tile = 'auto' or 0"
        )


def load_one(job: Job, name: str) -> Weights:
    """Return the weights of one name in the job.

    Raises:
        JobError: See `load_weights`.
    """
    try:
        if name in unet_weights.BUILTIN:
            return unet_weights.load(unet_weights.builtin(name))
        root, path = split_url(name)
        return unet_weights.load(open_storage(root, profile=job.profile).read(path))
    except NotFound as error:
        known = ", ".join(unet_weights.BUILTIN)
        raise JobError(f"weights {name} do not exist; name a safetensors file or a built-in model ({known})") from error
    except (WeightsError, Denied) as error:
        raise JobError(f"weights {name}: {error}") from error


def mask_values(job: Job, weights: Weights) -> tuple[Any, ...]:
    """Return the mask value of each class: the job's, else the weights', else the default.

    Raises:
        JobError: There are more or fewer values than classes.
    """
    classes = max(2, weights.model.n_classes)
    if job.masks.values is not None and len(job.masks.values) != classes:
        raise JobError(
            f"masks.values has {len(job.masks.values)} values, but the weights have {classes} classes; "
            "set one per class"
        )
    values = job.masks.values or weights.mask_values or default_values(classes)
    try:
        png.Encoder(values)
    except (ValueError, TypeError) as error:
        raise JobError(
            f"the mask values {list(values)} cannot be written; set masks.values to one of 0 … 255, or one "
            "[red, green, blue], per class"
        ) from error
    return tuple(values)


def encoder_of(job: Job, weights: Weights) -> Encoder | None:
    """Create the encoder of the job's masks; None if the job stores none."""
    return mask_format(job.masks.format).encoder(mask_values(job, weights))


def thresholds(job: Job, weights: Weights) -> tuple[float, ...] | None:
    """Return the probability threshold of each class after the first; None for the largest logit.

    Raises:
        JobError: There are more or fewer thresholds than such classes.
    """
    stated = job.inference.threshold
    others = max(2, weights.model.n_classes) - 1
    if stated is None:
        return (0.5,) if weights.model.n_classes == 1 else None
    if isinstance(stated, float):
        return (stated,) * others
    if len(stated) != others:
        raise JobError(
            f"inference.threshold has {len(stated)} values, but the weights have {others} classes besides the "
            "background; set one per class"
        )
    return stated


def normalization_of(job: Job, weights: Weights) -> Normalization | None:
    """Return the declared normalisation: the job's, else the weights'; None for numbers in [0, 1]."""
    return job.inference.normalize.declared or weights.input


def image_limits(job: Job, weights: Weights) -> Limits:
    """Return what one image becomes for the network of a job, and what it may cost."""
    return limits_of(
        job,
        channels=weights.model.n_channels,
        min_side=weights.model.min_side,
        bands=job.inference.bands,
        normalize=normalization_of(job, weights),
    )


def fingerprint_of(job: Job, weights: Weights) -> str:
    """Return the hash of everything but the image that a mask depends on, 64 hexadecimal digits."""
    # Exact tiles change nothing, so they are left out.
    cut = None if weights.model.untileable is None else [job.inference.tile, job.inference.tile_mode]
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
        **stated_pixels(job),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stated_pixels(job: Job) -> dict[str, Any]:
    """Return what the job says of bands and numbers; nothing unless it does, so that earlier masks stay done."""
    declared = job.inference.normalize.declared
    stated = {"bands": job.inference.bands, "normalize": None if declared is None else declared.table}
    return {name: value for name, value in stated.items() if value}


def device_of(job: Job) -> str:
    """Return the job's device on this machine: "cpu", "cuda", or "cuda:N"."""
    if job.inference.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return job.inference.device


def threads_of(job: Job, *, alone: bool = False) -> int:
    """Return the CPU threads of the network: one number for the whole fleet, since fp32 convolutions depend on it.

    Args:
        job: The job.
        alone: Whether one process has the machine to itself, as in training.
    """
    if job.cluster.threads != "auto":
        return job.cluster.threads
    return cores() if alone else min(_MOST_THREADS, cores())


def segmenter_of(
    job: Job, weights: Weights, *, threads: int, precision: Precision | None = None, batch_pixels: int | None = None,
    batches: Mapping[tuple[int, int], int] | None = None, fused: bool | None = None,
) -> Segmenter:  # fmt: skip
    """Return the job's network, resident on its device.

    Args:
        job: The job.
        weights: Its weights; see `load_weights`.
        threads: CPU threads of the network.
        precision: Overrides the job's precision.
        batch_pixels: Pixels per batch, if the job states no batch size.
        batches: Measured images per batch, by height and width.
        fused: See `unet.inference.segmenter.Segmenter`.

    Raises:
        JobError: The device is missing or cannot compute as the job asks.
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
            declared=normalization_of(job, weights),
            plain_threads=threads,
            fused=fused,
        )
    except (DeviceError, NotTileable) as error:
        raise JobError(str(error)) from error
