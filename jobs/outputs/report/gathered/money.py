"""What a run cost, as far as its job states prices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LEAST = 0.01


@dataclass(frozen=True)
class Money:
    """The cost of the machines of a run.

    Attributes:
        hours: Hours of all workers together, from the first shard of each to its last.
        unit: "GPU hours" or "worker hours".
        amount: Cost with its currency; "" if the job states no price.
    """

    hours: float
    unit: str
    amount: str

    @property
    def words(self) -> str:
        """The hours in words: "0.25 GPU hours"."""
        return f"{_rounded(self.hours)} {self.unit}" if self.hours >= _LEAST else f"below {_LEAST} {self.unit}"

    @property
    def sentence(self) -> str:
        """The cost in one sentence."""
        if self.amount:
            return f"{self.amount} for {self.words}"
        key = "prices.gpu_hour" if self.unit == "GPU hours" else "prices.worker_hour"
        return f"{self.words}; prices not set (key {key} of the job)"


def money(job: Mapping[str, Any], summary: Mapping[str, Any]) -> Money | None:
    """Return the cost of a run; None if no worker was measured.

    Args:
        job: The job, as a table.
        summary: Content of `run.json`.
    """
    seconds = float(summary.get("worker_seconds") or 0)
    if not seconds:
        return None
    prices = job.get("prices", {})
    gpu = summary.get("device") == "cuda"
    price = float(prices.get("gpu_hour" if gpu else "worker_hour") or 0)
    hours = seconds / 3600
    cost = hours * price
    amount = (
        f"{_rounded(cost) if cost >= _LEAST else f'below {_LEAST}'} {prices.get('currency', 'USD')}" if price else ""
    )
    return Money(hours, "GPU hours" if gpu else "worker hours", amount)


def _rounded(amount: float) -> str:
    return f"{amount:,.2f}"
