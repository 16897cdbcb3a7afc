"""The pictures of a report: each image with its mask and without, small enough for a page."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import JobError, MaskfleetError
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.outputs.input_images import InputImages
from maskfleet.jobs.outputs.overlay import class_colours, drawn, shrunk_mask
from maskfleet.jobs.outputs.stored_masks import stored_masks
from maskfleet.jobs.storage.contract import Storage

SIDE = 512
"""Longest side of a picture in px."""

SECONDS = 60.0
"""Time after which no further picture is made: a slow input must not hold up the end of a run."""

_MASK_PIXELS = 2**28
"""Pixels of the largest mask that is decoded for a picture."""

_SHARDS_IN_FLIGHT = 4
_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image for people.

    Attributes:
        masked: The image with its mask; the mask alone without the image; the image alone without a mask.
        plain: The image without its mask; None without the image, or without a mask.
        missing: Why the image is missing, in one sentence; "" if it is there.
    """

    masked: Image.Image
    plain: Image.Image | None
    missing: str = ""


@dataclass(frozen=True)
class _Labels:
    """A mask at the size of its picture: classes and coverage as `overlay.shrunk_mask` returns them, and colours."""

    planes: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    colours: Sequence[tuple[int, int, int]]


def pictures(
    storage: Storage, run: StoredRun, rows: Sequence[Mapping[str, Any]], *, profile: str | None,
    seconds: float = SECONDS,
) -> Iterator[tuple[str, Picture]]:  # fmt: skip
    """Yield the pictures of some images with their keys. Those that cannot be drawn are left out.

    Args:
        storage: Output storage.
        run: Run of the rows.
        rows: The images: `key` and `mask_object` of each.
        profile: AWS profile, if the job names none for its input.
        seconds: Time after which no further picture is begun.

    Raises:
        MaskfleetError: No image can be read: no decoding process starts, or the plan is missing.
    """
    end = time.monotonic() + seconds
    plan = None if all(row["mask_object"] for row in rows) else Manifest.stored(storage, run.run_id)
    with InputImages(run, profile=profile) as images:
        for first in range(0, len(rows), _AT_ONCE):
            if time.monotonic() > end:
                return
            found = list(_with_masks(storage, run, plan, rows[first : first + _AT_ONCE]))
            shown = images.images([row for row, _ in found], size=SIDE)
            for (row, labels), image in zip(found, shown, strict=True):
                if (picture := _drawn(image.pixels, labels, image.reason)) is not None:
                    yield row["key"], picture


def _drawn(pixels: NDArray[Any] | None, labels: _Labels | None, missing: str) -> Picture | None:
    if labels is None:
        return None if pixels is None else Picture(masked=drawn(pixels, None, (), size=SIDE), plain=None)
    if pixels is not None and pixels.shape[:2] != labels.planes[0].shape:
        pixels, missing = None, "the image has another size than its mask"
    masked = drawn(pixels, labels.planes, labels.colours, size=SIDE)
    if pixels is None:
        return Picture(masked=masked, plain=None, missing=missing)
    return Picture(masked=masked, plain=drawn(pixels, None, (), size=SIDE))


def _with_masks(
    storage: Storage, run: StoredRun, plan: Manifest | None, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[dict[str, Any], _Labels | None]]:
    """Yield the whole row of each image with its mask. Every shard is read once."""
    keys: dict[str, list[str]] = {}
    for row in rows:
        keys.setdefault(_shard_of(plan, row), []).append(row["key"])
    with ThreadPoolExecutor(_SHARDS_IN_FLIGHT, "picture") as pool:
        read = partial(_of_shard, storage, run, run.commits(storage))
        for found in pool.map(read, keys.keys(), keys.values()):
            yield from found


def _shard_of(plan: Manifest | None, row: Mapping[str, Any]) -> str:
    """Return the shard of an image: by the place of its mask, or by the plan if there is no such place."""
    if row["mask_object"]:
        return str(row["mask_object"]).split("/")[3]
    planned = None if plan is None else plan.find(str(row["key"]))
    return "" if planned is None else str(planned["shard"])


def _of_shard(
    storage: Storage, run: StoredRun, commits: Commits, shard: str, keys: Sequence[str]
) -> list[tuple[dict[str, Any], _Labels | None]]:
    try:
        commit = commits.get(shard)
        if commit is None:
            return []
        if commit.split:
            halves = (_of_shard(storage, run, commits, f"{shard}.{half}", keys) for half in (0, 1))
            return [found for half in halves for found in half]
        table = rows_of(storage, commit)
        rows = table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string()))).to_pylist()
        small = [row for row in rows if (row["width"] or 0) * (row["height"] or 0) <= _MASK_PIXELS]
        try:
            masks = stored_masks(storage, run, commit, small)
        except JobError:  # the run stored no masks
            return [(row, None) for row in rows]
        labels = {mask.row["key"]: _shrunk(mask.classes(), class_colours(mask.values)) for mask in masks}
    except MaskfleetError:  # damaged, which `verify` says better
        return []
    return [(row, labels.get(row["key"])) for row in rows]


def _shrunk(classes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]) -> _Labels:
    return _Labels(shrunk_mask([classes], (classes.shape[0], classes.shape[1]), SIDE), colours)
