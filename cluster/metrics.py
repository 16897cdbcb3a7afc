"""Metrics of a run for Prometheus, exported by Ray as `ray_maskfleet_<name>`.

The driver updates all of them from the reports of its workers, so metrics cost no extra calls.
"""

from collections.abc import Iterator
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from maskfleet.jobs.run.attempt import ShardReport

_SECONDS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800]
"""Bucket bounds of the histogram of seconds per shard."""

_TAGS = ("job",)


class Metrics:
    """The metrics of a run.

    Args:
        job: Name of the job, attached to every metric as the label `job`.
    """

    def __init__(self, job: str) -> None:
        def metric(kind: Any, name: str, description: str, *tags: str, **more: Any) -> Any:
            made = kind(f"maskfleet_{name}", description, tag_keys=(*_TAGS, *tags), **more)
            made.set_default_tags({"job": job})
            return made

        self._images = metric(Counter, "images", "Finished images, by outcome.", "outcome")
        self._failures = metric(Counter, "failures", "Failed images, by error class.", "error_class")
        self._stage_seconds = metric(Counter, "stage_seconds", "Busy seconds, by stage.", "stage")
        self._shard_seconds = metric(Histogram, "shard_seconds", "Seconds per shard.", boundaries=_SECONDS)
        self._lost = metric(Counter, "workers_lost", "Lost workers, and attempts that raised an error.")
        self._workers = metric(Gauge, "workers", "Workers, by state.", "state")
        self._queue = metric(Gauge, "queue_shards", "Unfinished shards, by queue.", "queue")
        self._queued_images = metric(Gauge, "queue_images", "Unfinished images, by queue.", "queue")
        self._share = metric(Gauge, "device_share", "Busy share of the devices of ready workers.")

    def report(self, report: ShardReport) -> None:
        """Count a committed shard."""
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
        """Count a lost worker, or an attempt that raised an error."""
        self._lost.inc()

    def fleet(
        self, *, ready: int, pending: int, waiting: tuple[int, int], in_work: tuple[int, int], device_share: float
    ) -> None:
        """Publish the state of the fleet.

        Args:
            ready: Workers ready for shards.
            pending: Workers requested and not yet ready.
            waiting: Shards without a worker, and the images in them.
            in_work: Shards with a worker, and the images in them.
            device_share: Busy share of the ready workers' devices, in [0, 1].
        """
        for state, count in (("ready", ready), ("pending", pending)):
            self._workers.set(count, {"state": state})
        for queue, (shards, images) in (("waiting", waiting), ("in_work", in_work)):
            self._queue.set(shards, {"queue": queue})
            self._queued_images.set(images, {"queue": queue})
        self._share.set(device_share)


def exported() -> Iterator[str]:
    """Yield the names of all metrics in Prometheus."""
    for metric in vars(Metrics("names")).values():
        name = f"ray_{metric.info['name']}"
        if isinstance(metric, Histogram):
            yield from (f"{name}_{part}" for part in ("bucket", "sum", "count"))
        else:
            yield f"{name}_total" if isinstance(metric, Counter) else name
