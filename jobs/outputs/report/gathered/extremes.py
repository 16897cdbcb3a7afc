"""The rows with the lowest and the highest values of a feature, and its mean and spread, in constant memory."""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Extreme(NamedTuple):
    """A row and its value of a feature.

    Attributes:
        value: The value.
        row: Columns of the row.
    """

    value: float
    row: dict[str, Any]


@dataclass
class Extremes:
    """A feature of the rows of a run.

    Attributes:
        name: The feature in words, such as "area of class 1".
        keep: Number of rows kept at either end.
        lowest: Rows with the lowest values, in ascending order.
        highest: Rows with the highest values, in descending order.
    """

    name: str
    keep: int
    lowest: list[Extreme] = field(default_factory=list)
    highest: list[Extreme] = field(default_factory=list)
    _count: int = 0
    _mean: float = 0.0
    _squares: float = 0.0

    def add(self, values: NDArray[np.float64], rows: pa.Table) -> None:
        """Take the rows of a batch.

        Args:
            values: Value of each row; those not finite are left out.
            rows: The rows, with the columns to keep.
        """
        finite = np.flatnonzero(np.isfinite(values))
        if not len(finite):
            return
        self._add_moments(values[finite])
        self.lowest = self._best(self.lowest, values, finite, rows, sign=1.0)
        self.highest = self._best(self.highest, values, finite, rows, sign=-1.0)

    def deviation(self, value: float) -> float:
        """Return by how many standard deviations a value differs from the mean; 0 if all values are equal."""
        spread = math.sqrt(self._squares / self._count) if self._count else 0.0
        return (value - self._mean) / spread if spread > 1e-9 * max(1.0, abs(self._mean)) else 0.0

    @property
    def mean(self) -> float:
        """Mean of the values; 0 without any."""
        return self._mean

    def _add_moments(self, values: NDArray[np.float64]) -> None:
        count, mean = len(values), float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        both = self._count + count
        difference = mean - self._mean
        self._squares += squares + difference**2 * self._count * count / both
        self._mean += difference * count / both
        self._count = both

    def _best(
        self, kept: list[Extreme], values: NDArray[np.float64], places: NDArray[np.int64], rows: pa.Table, *,
        sign: float,
    ) -> list[Extreme]:  # fmt: skip
        signed = sign * values[places]
        if len(kept) == self.keep:
            better = signed < sign * kept[-1].value
            signed, places = signed[better], places[better]
        if len(signed) > self.keep:
            # Of equal values the first rows count, so that nothing depends on the batches.
            last = np.partition(signed, self.keep - 1)[self.keep - 1]
            ties = np.flatnonzero(signed == last)[: self.keep - int((signed < last).sum())]
            places = places[np.sort(np.concatenate([np.flatnonzero(signed < last), ties]))]
        if not len(places):
            return kept
        found = [
            Extreme(float(values[place]), row)
            for place, row in zip(places, rows.take(pa.array(places)).to_pylist(), strict=True)
        ]
        return heapq.nsmallest(self.keep, [*kept, *found], key=lambda extreme: sign * extreme.value)
