"""The target of a command: a job from a file or from options, or the output of a job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from maskfleet.jobs.job.schema import Job


@dataclass(frozen=True)
class Place:
    """An output and the AWS profile for reading it.

    Attributes:
        output: Folder or s3:// prefix.
        profile: AWS profile; None for AWS's default credential chain.
    """

    output: str
    profile: str | None


def is_job_file(target: str) -> bool:
    """Return whether a target is the path of a job file, judged by its extension."""
    return target.endswith((".toml", ".json")) and "://" not in target


def place_of(target: str, *, profile: str | None) -> Place:
    """Return the output named by a target.

    Args:
        target: Output or job file.
        profile: AWS profile; None for the job file's.

    Raises:
        JobError: The job file is missing or invalid.
    """
    if not is_job_file(target):
        return Place(target, profile)
    job = Job.load(target)
    return Place(job.output, profile or job.profile)


def job_of(path: Path | None, *, given: Mapping[str, object], sets: Sequence[str], date: datetime | None = None) -> Job:
    """Return the job from a file and options, or from options alone.

    Args:
        path: Job file; None for a job from options alone.
        given: Values by key, such as `input` or `select.limit`; empty values are ignored.
        sets: `key=value` overrides, applied last.
        date: Value of `{date}`; None for today in UTC.

    Raises:
        JobError: The job file is missing, or the job is invalid.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value] + list(sets)
    day = date.date() if date else None
    return Job.of({}, overrides, day=day) if path is None else Job.load(path, overrides, day=day)
