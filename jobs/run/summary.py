"""The outcome of a run, as `run` returns it and as `run.json` stores it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from maskfleet.jobs.timing.bottleneck import Speed


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The outcome of a run.

    Attributes:
        run_id: Name of the run. It starts with the start time in UTC, so names sort by age.
        status: "complete"; or "incomplete" if more images failed than `run.max_error_rate` allows, if a container is
            damaged, so that nobody knows how many images are missing, or if masks of this or an earlier run could not
            be exported.
        exit_code: 0 if complete, else 1.
        images: Images in the run; each has exactly one row.
        ok: Images processed successfully.
        failed: Failed images; their rows name the reason.
        errors: Failed images by error class, most frequent first.
        damaged_containers: Tar and Parquet files with a row that stands for an unknown number of images.
        exports_failed: Committed masks that could not be written below `masks/`; every later run tries them again.
        export_failure: One of them with the reason, or "".
        planned: Images by the reason for planning them: new, changed, stale or failed.
        listed: Images found in the input, including those that needed no work.
        listed_to_its_end: Whether the plan covers the whole input.
        gone: Images of earlier runs that the input no longer holds.
        left_alone: Files of the input that are no images of it, by the rule that left them alone.
        shards: Number of shards.
        resumed: Whether an earlier command began this run.
        total_seconds: Seconds from the start of this command to the end of the run.
        seconds: Seconds from the start of shard processing to the end of the run, in this command.
        images_per_second: Images finished by this command, divided by `seconds`.
        start_seconds: Seconds of each step before the first finished shard: plan, ray, worker, shard.
        measured_images: Images in the shards that `speed` covers.
        speed: Seconds by stage, and the speed of the bare forward pass.
        attempts_lost: Lost workers, plus attempts that raised an error.
        tuning: Precision and batch sizes chosen at the start (see `jobs.network.tuning.Tuning`); None if not tuned.
        short_of_memory: By image size ("width×height"), the batch and tile sizes tried until they fitted.
        warnings: Likely problems with the masks, see `jobs.planning.findings.Finding`: check, class, share, images,
            message.
        commit_mode: "worker", or "driver" if the storage has no create-if-absent.
        decoder_isolation: Means of the kernel that held every decoding process, of "landlock" and "seccomp".
        fingerprint: Hash of everything that affects a mask, except its image.
        generation: Generation of the output's lock.
        finished: End of the run, ISO 8601 in UTC.
    """

    run_id: str
    status: Literal["complete", "incomplete"]
    exit_code: int
    images: int
    ok: int
    failed: int
    errors: Mapping[str, int]
    damaged_containers: int
    exports_failed: int
    export_failure: str
    planned: Mapping[str, int]
    listed: int
    listed_to_its_end: bool
    gone: int
    left_alone: Mapping[str, int]
    shards: int
    resumed: bool
    total_seconds: float
    seconds: float
    images_per_second: float
    start_seconds: Mapping[str, float]
    measured_images: int
    speed: Speed
    attempts_lost: int
    tuning: Mapping[str, Any] | None
    short_of_memory: Mapping[str, list[str]]
    warnings: Sequence[Mapping[str, Any]]
    commit_mode: str
    decoder_isolation: Sequence[str] | None
    fingerprint: str
    generation: int
    finished: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of `run.json`: all attributes, with those of `speed` on the same level."""
        table = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "speed"}
        derived = {"forward_share": self.speed.forward_share, "limit": self.speed.limit}
        return table | asdict(self.speed) | derived
