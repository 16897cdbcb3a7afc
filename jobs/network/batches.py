"""Measured batch sizes, kept for later runs by device, precision, network and shape.

Each is a small file, `<output>/batches/<digest>.json`, with everything it depends on. It is only a cache: a torn or
foreign file, or one out of range, is measured again; storage that refuses it costs the next measurement.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.storage.contract import Storage
from maskfleet.unet.inference.fitting import MAX_BATCH
from maskfleet.unet.precision import Resolved
from maskfleet.unet.weights import Weights


def subject_of(device: str, precision: Resolved, weights: Weights, shape: tuple[int, int]) -> dict[str, Any]:
    """Return everything that the best batch depends on: the network's layers, not the values of its weights.

    Args:
        device: Name of the device, as its maker states it.
        precision: Type of the convolutions.
        weights: The network.
        shape: Height and width of the network's input in px.
    """
    return {
        "device": device,
        "precision": precision,
        "network": hashlib.sha256(repr(weights.model).encode()).hexdigest()[:16],
        "shape": list(shape),
        "torch": torch.__version__,
    }


def known(storage: Storage, subject: Mapping[str, Any]) -> int | None:
    """Return the measured batch, or None."""
    try:
        found = json.loads(storage.read(_path(subject)))
        batch = found["batch"] if found["of"] == subject else None
    except (StorageError, ValueError, TypeError, KeyError):
        return None
    return batch if type(batch) is int and 1 <= batch <= MAX_BATCH else None


def keep(storage: Storage, subject: Mapping[str, Any], batch: int) -> None:
    """Store a measured batch, replacing an earlier one."""
    with suppress(StorageError):
        storage.write(_path(subject), json.dumps({"of": subject, "batch": batch}).encode())


def _path(subject: Mapping[str, Any]) -> str:
    return f"batches/{hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:32]}.json"
