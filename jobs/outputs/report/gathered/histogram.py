"""Distributions in constant memory: fine bins, counted batch by batch and merged over nights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

BINS = 1000
_FEW = 500

Fine = Literal["low", "high"]
"""Where the bins are fine: near the lowest value, for areas and entropies, or near the highest, for confidences."""


@dataclass
class Histogram:
    """A distribution.

    Attributes:
        top: Highest possible value; the lowest is 0.
        fine: Where the bins are fine.
        counts: Number of values in each bin, (`BINS`,).
        total: Sum of the values.
    """

    top: float
    fine: Fine
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    total: float = 0.0

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, (`BINS` + 1,)."""
        steps = np.linspace(0, 1, BINS + 1)
        return self.top * (steps**2 if self.fine == "low" else 1 - (1 - steps) ** 2)

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the values; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Count finite values; others are left out."""
        values = values[np.isfinite(values)]
        share = np.clip(values / self.top, 0, 1)
        place = np.sqrt(share) if self.fine == "low" else 1 - np.sqrt(1 - share)
        self.counts += np.bincount(np.minimum((place * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        self.total += float(values.sum())

    def merge(self, other: Self) -> None:
        """Count the values of another distribution of the same form."""
        self.counts += other.counts
        self.total += other.total

    def quantile(self, share: float) -> float:
        """Return the value below which a share of the values lies, interpolated inside its bin; 0 without values."""
        if not self.count:
            return 0.0
        reached = np.concatenate([[0], np.cumsum(self.counts)]) / self.count
        place = int(np.clip(np.searchsorted(reached, share, "left") - 1, 0, BINS - 1))
        inside = (share - reached[place]) / max(reached[place + 1] - reached[place], 1e-12)
        edges = self.edges
        return float(edges[place] + np.clip(inside, 0, 1) * (edges[place + 1] - edges[place]))

    def shares(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the values between each two edges, (edges - 1,).

        Values in a bin count as spread evenly, or as in its middle if there are few. Values beyond the outermost edges
        count in the outermost bars.
        """
        if 0 < self.count < _FEW:
            middles = (self.edges[:-1] + self.edges[1:]) / 2
            bars = np.clip(np.searchsorted(edges, middles, "right") - 1, 0, len(edges) - 2)
            return np.bincount(bars, self.counts, minlength=len(edges) - 1) / self.count
        reached = np.concatenate([[0], np.cumsum(self.counts)]) / max(self.count, 1)
        at = np.interp(edges, self.edges, reached)
        at[0], at[-1] = 0.0, 1.0 if self.count else 0.0
        return np.diff(at)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: filled bins only."""
        filled = np.flatnonzero(self.counts)
        return {
            "top": self.top,
            "fine": self.fine,
            "bins": filled.tolist(),
            "counts": self.counts[filled].tolist(),
            "total": self.total,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        found = cls(float(stored["top"]), stored["fine"], total=float(stored["total"]))
        found.counts[np.array(stored["bins"], np.int64)] = stored["counts"]
        return found
