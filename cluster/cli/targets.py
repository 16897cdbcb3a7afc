"""The target of a command: a job from a file or from options, or the output of a job."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from maskfleet.cluster.cli import options
from maskfleet.jobs.job.schema import Job

R = TypeVar("R")


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
        StorageError: Nothing answers at the storage's address.
    """
    if is_job_file(target):
        job = Job.load(target)
        place = Place(job.output, profile or job.profile)
    else:
        place = Place(target, profile)
    _check_reachable(place.output, profile=place.profile)
    return place


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


def reached(job: Job) -> Job:
    """Return a job after asking once whether its servers are there.

    Raises:
        JobError: The address of a server is wrong.
        StorageError: Nothing answers there.
    """
    _check_reachable(job.output, profile=job.profile)
    _check_reachable(job.input, profile=job.input_options.profile or job.profile, endpoint=job.input_options.endpoint)
    return job


def _check_reachable(place: str, *, profile: str | None, endpoint: str | None = None) -> None:
    if "://" in place:
        from maskfleet.jobs.storage.contract import Options
        from maskfleet.jobs.storage.schemes import open_with

        open_with(place, Options(profile, endpoint=endpoint)).check_reachable()


def _selected_job(
    job: options.OptionalJobFile = None,
    input_: options.Input = None,
    output: options.Output = None,
    weights: options.Weights = None,
    exclude: options.Exclude = None,
    sets: options.Set = None,
    date: options.Date = None,
    only: options.Only = None,
    since: options.Since = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
) -> Job:
    selection = {"select.only": only, "select.since": since, "select.limit": limit, "select.sample": sample}
    given = {"input": input_, "output": output, "weights": weights, "exclude": exclude, **selection}
    return reached(job_of(job, given=given, sets=sets or (), date=date))


def with_job(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that describe a job, in place of its first parameter, the job itself."""
    own = list(inspect.signature(command).parameters.values())[1:]
    described = inspect.signature(_selected_job).parameters

    @wraps(command)
    def with_options(**values: Any) -> R:
        job = _selected_job(**{name: values.pop(name) for name in described})
        return command(job, **values)

    parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*described.values(), *own)]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
