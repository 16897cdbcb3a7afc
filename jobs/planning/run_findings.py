"""The findings of a run, from the rows of all its images, whichever command made them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.runs import stored_runs, summary_of
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.planning.findings import Finding, MaskSums, of_masks, of_scale, of_values
from maskfleet.jobs.planning.mask_checks import colours_for_one_channel
from maskfleet.jobs.storage.contract import Storage

_LOOKED_AT = 4
_LARGEST = 8 * 2**20
"""Images decoded again for a network of one channel, and the size in bytes of the largest."""

_FEW = 16
"""Images below which empty masks are no news, if an earlier run of the same settings found something."""


class RunFindings:
    """Collects the findings of a run while its statistics are written. Its size does not grow with the run.

    Args:
        job: The job.
        weights: Description of the weights in `job.json`.
    """

    def __init__(self, job: Job, weights: Mapping[str, Any]) -> None:
        self._job = job
        self._weights = weights
        self._sums = MaskSums()
        self._channels = 0
        self._examples: list[Record] = []

    def add(self, table: pa.Table) -> None:
        """Add rows of the statistics."""
        done = table.select(_COLUMNS).filter(pc.equal(table["status"], "ok"))
        if not done.num_rows:
            return
        pixels, std = _lists(done["class_pixels"]), _lists(done["input_std"])
        self._sums.add(
            class_pixels=pixels,
            confidence=done["mean_confidence"].to_numpy(),
            entropy=done["mean_entropy"].to_numpy(),
            input_std=std,
        )
        self._channels = std.shape[1]
        if self._channels == 1 and len(self._examples) < _LOOKED_AT:
            small = done.filter(pc.less(done["size"], _LARGEST)).slice(0, _LOOKED_AT - len(self._examples))
            columns = (small[name].to_pylist() for name in ("key", "url", "size", "etag"))
            self._examples += [Record(*values) for values in zip(*columns, strict=True)]

    def findings(self, storage: Storage, run_id: str, fingerprint: str) -> list[Finding]:
        """Return what was found.

        Args:
            storage: Output storage, to compare with earlier runs.
            run_id: The run.
            fingerprint: Its fingerprint.
        """
        images, metadata = self._sums.images, self._weights.get("metadata", {})
        if not images:
            return []
        classes = len(self._sums.class_pixels)
        values = self._job.masks.values or self._weights.get("mask_values") or default_values(classes)
        found = [*of_scale(self._job, metadata, images=images), *of_values(self._job, values, images=images)]
        if self._examples:
            with suppress(StorageError):  # the input may be gone by now
                found += colours_for_one_channel(self._job, self._examples)
        normalized, one_logit = self._weights.get("normalize") is not None, self._weights.get("n_classes") == 1
        masks = of_masks(self._job, self._sums, normalized=normalized, one_logit=one_logit)
        return [*found, *(each for each in masks if not self._is_usual(each, storage, run_id, fingerprint))]

    def _is_usual(self, found: Finding, storage: Storage, run_id: str, fingerprint: str) -> bool:
        """Return whether a few empty masks say nothing, since the newest larger run with the same settings was fine."""
        if found.check != "single_class" or found.class_ or found.images >= _FEW:
            return False
        for run in stored_runs(storage, newest_first=True):
            if run.run_id < run_id and run.fingerprint == fingerprint:
                summary = summary_of(storage, run.run_id) or {}
                if summary.get("ok", 0) > found.images:
                    return all(each["check"] != "single_class" for each in summary.get("warnings", ()))
        return False


_COLUMNS = [
    "key", "url", "size", "etag", "status", "class_pixels", "mean_confidence", "mean_entropy", "input_std",
]  # fmt: skip


def _lists(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of lists of one length as an array (rows, length)."""
    array: NDArray[Any] = pc.list_flatten(column).to_numpy()
    return array.reshape(len(column), -1)
