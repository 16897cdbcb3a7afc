"""What a run tells Prometheus, through Ray: every node of a cluster exports it as `ray_<name>`.

All of it comes from the driver, out of the reports that it gets anyway, so that no image costs a call.
"""

from collections.abc import Iterator
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from maskfleet.jobs.run.attempt import ShardReport

_SECONDS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800]
_TAGS = ("job",)


class Metrics:
    """The metrics of a run.

    Args:
        job: Its job's name, by which they are told apart.
    """

    def __init__(self, job: str) -> None:
        def made(kind: Any, name: str, description: str, *tags: str, **more: Any) -> Any:
            metric = kind(f"maskfleet_{name}", description, tag_keys=(*_TAGS, *tags), **more)
            metric.set_default_tags({"job": job})
            return metric

        self._images = made(Counter, "images", "Images with an outcome.", "outcome")
        self._failures = made(Counter, "failures", "Failed images, by error class.", "error_class")
        self._stage_seconds = made(Counter, "stage_seconds", "Seconds of work, by stage.", "stage")
        self._shard_seconds = made(Histogram, "shard_seconds", "Seconds that a shard took.", boundaries=_SECONDS)
        self._lost = made(Counter, "workers_lost", "Workers lost, and attempts that raised.")
        self._workers = made(Gauge, "workers", "Workers, by state.", "state")
        self._queue = made(Gauge, "queue_shards", "Shards, by where they are.", "queue")
        self._queued_images = made(Gauge, "queue_images", "Images, by where they are.", "queue")
        self._share = made(Gauge, "device_share", "Share of the ready workers' time that their devices worked.")

    def report(self, report: ShardReport) -> None:
        """A shard is on record."""
        failed = report.commit.failed
        for outcome, count in (("ok", report.commit.images - failed), ("failed", failed)):
            self._images.inc(count, {"outcome": outcome}) if count else None
        for error_class, count in report.errors.items():
            self._failures.inc(count, {"error_class": error_class})
        for stage, seconds in report.busy.items():
            self._stage_seconds.inc(seconds, {"stage": stage}) if seconds else None
        if report.seconds:
            self._shard_seconds.observe(report.seconds)

    def lost(self) -> None:
        """A worker was lost, or raised."""
        self._lost.inc()

    def fleet(
        self, *, ready: int, pending: int, waiting: tuple[int, int], in_work: tuple[int, int], device_share: float
    ) -> None:
        """How things stand.

        Args:
            ready: Workers that are.
            pending: Workers that were asked for.
            waiting: Shards that nobody has yet, and images in them.
            in_work: Shards that workers have, and images in them.
            device_share: Of the ready workers' time.
        """
        for state, count in (("ready", ready), ("pending", pending)):
            self._workers.set(count, {"state": state})
        for queue, (shards, images) in (("waiting", waiting), ("in_work", in_work)):
            self._queue.set(shards, {"queue": queue})
            self._queued_images.set(images, {"queue": queue})
        self._share.set(device_share)


def exported() -> Iterator[str]:
    """The names that Prometheus sees, for the dashboard's test."""
    shown = Metrics("names")
    for metric in vars(shown).values():
        name = f"ray_{metric.info['name']}"
        if isinstance(metric, Histogram):
            yield from (f"{name}_{part}" for part in ("bucket", "sum", "count"))
        else:
            yield f"{name}_total" if isinstance(metric, Counter) else name
