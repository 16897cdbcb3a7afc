"""Batch sizes that were measured once, for every run that follows: of one device, precision, network and shape.

A small file each, `<output>/batches/<digest>.json`, that says in full what it is of. A cache and no more: what is torn,
foreign or beyond reason is measured again, and storage that does not take it costs nothing but the next measurement.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.storage.contract import Storage
from maskfleet.unet.inference.precision import Resolved
from maskfleet.unet.inference.segmenter import MAX_BATCH
from maskfleet.unet.weights import Weights


def what(device: str, precision: Resolved, weights: Weights, shape: tuple[int, int]) -> dict[str, Any]:
    """What the best batch depends on: not the weights' values, but what is computed with them, on what.

    Args:
        device: Its name, as its maker has it.
        precision: Of the convolutions.
        weights: Of which the network counts.
        shape: Height and width of what goes through the network, in px.
    """
    parameters = [list(tensor.shape) for tensor in weights.model.state_dict().values()]
    return {
        "device": device,
        "precision": precision,
        "network": hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16],
        "views": getattr(weights.model, "views", "off"),
        "bilinear": weights.model.bilinear,
        "shape": list(shape),
        "torch": torch.__version__,
    }


def known(storage: Storage, of: Mapping[str, Any]) -> int | None:
    """The batch that was measured, or None."""
    try:
        found = json.loads(storage.read(_path(of)))
        batch = found["batch"] if found["of"] == of else None
    except (StorageError, ValueError, TypeError, KeyError):
        return None
    return batch if type(batch) is int and 1 <= batch <= MAX_BATCH else None


def keep(storage: Storage, of: Mapping[str, Any], batch: int) -> None:
    """Put a measured batch on record, in place of what may be there."""
    with suppress(StorageError):
        storage.write(_path(of), json.dumps({"of": of, "batch": batch}).encode())


def _path(of: Mapping[str, Any]) -> str:
    return f"batches/{hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:32]}.json"
