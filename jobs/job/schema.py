"""The job: what to do, as one TOML file or a few options. Knows nothing about how it is done.

A job never holds secrets: it names an AWS profile, or leaves credentials to the environment.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from maskfleet.jobs.job import keys, loading
from maskfleet.jobs.job.machines import Cluster, Schedule
from maskfleet.jobs.job.places import absolute, filled
from maskfleet.jobs.job.section import Section
from maskfleet.jobs.job.sections import (
    Finetune,
    Inference,
    InputOptions,
    Masks,
    Prices,
    Run,
    Selection,
)
from maskfleet.jobs.job.values import Form


class Job(Section):
    """What to do. Frozen and validated; `Job.load` reads a file, `Job.of` takes a table."""

    input: str = Field(examples=["images/", "s3://bucket/images/"])
    """Images to segment, local or s3://: a folder or glob of images, tars and Parquet files; one tar or Parquet file; a
    list of paths and URLs (.txt, .csv, .parquet); or the manifest.json of an S3 Inventory. `{date}` and `{name}` are
    filled in."""
    column: str | None = Field(default=None, examples=["url"])
    """Column of images or URLs in Parquet files and lists. Without it: found by type and name."""
    exclude: tuple[str, ...] = Field(default=(), examples=[["*.thumb.jpg"]])
    """Images to leave alone: globs such as "**/seg.png" or "*.thumb.jpg", also for members of containers. One without a
    slash is compared with each part of a path, others with the path from the folder of the input on."""
    pages: Literal["refuse", "first", "each"] = "refuse"
    """Images in files with several, such as TIFF stacks and GIF: such a file fails, its first page stands for it, or
    each page is an image named `<file>/page=0001`."""
    output: str = Field(examples=["masks/", "s3://bucket/masks/"])
    """Folder or s3:// prefix for masks, statistics and records. `{date}` and `{name}` are filled in."""
    weights: tuple[str, ...] = Field(examples=["nuclei", "cells.safetensors"])
    """Safetensors file, local or s3://, or the name of a built-in model. A list is an ensemble: the mean of the
    probabilities."""
    name: Annotated[str, Form("at most 63 letters, digits, dots, _ and -, the first a letter or digit")] = Field(
        default="maskfleet", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
    )
    """Name of the job in records, submissions and reports."""
    profile: str | None = Field(default=None, examples=["archive"])
    """AWS profile for credentials. Without it: the usual AWS chain (environment, default profile, instance role)."""
    input_options: InputOptions = InputOptions()
    inference: Inference = Inference()
    masks: Masks = Masks()
    run: Run = Run()
    select: Selection = Selection()
    prices: Prices = Prices()
    cluster: Cluster = Cluster()
    finetune: Finetune = Finetune()
    schedule: Schedule = Schedule()

    @field_validator("weights", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("exclude", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        patterns = (value,) if isinstance(value, str) else value
        for pattern in patterns if isinstance(patterns, list | tuple) else ():
            if isinstance(pattern, str) and not pattern.strip("/"):
                raise ValueError("must not be empty")
            if isinstance(pattern, str) and any("**" in part and part != "**" for part in pattern.split("/")):
                raise ValueError("may have ** only as a whole part of a path, such as **/thumbs/*")
        return patterns

    @field_validator("input", "output")
    @classmethod
    def _place(cls, value: str) -> str:
        return absolute(value)

    @field_validator("weights")
    @classmethod
    def _files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must not be empty")
        return tuple(absolute(item, names_allowed=True) for item in value)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), *, day: date | None = None) -> Self:
        """Return the job in a file.

        Args:
            path: Local TOML file, or JSON if it is named `*.json`. Relative local paths in it are relative to the
                working directory.
            overrides: `section.key=value` each. Values are TOML; a bare word is text.
            day: Value of `{date}` in `input` and `output`; None for today in UTC.

        Raises:
            JobError: The file is missing or not TOML, names an unknown key, or holds a wrong value.
        """
        return cls.of(loading.read(Path(path)), overrides, day=day)

    @classmethod
    def of(cls, table: Mapping[str, Any], overrides: Sequence[str] = (), *, day: date | None = None) -> Self:
        """Return the job in a table such as a TOML file holds.

        Args:
            table: Keys and sections.
            overrides: See `load`.
            day: See `load`.

        Raises:
            JobError: A key is unknown, or a value is wrong or missing.
        """
        merged = loading.overridden(table, overrides)
        keys.refuse_unknown(cls, merged)
        name = str(merged.get("name", cls.model_fields["name"].default))
        for key in ("input", "output"):
            if isinstance(merged.get(key), str):
                merged[key] = filled(merged[key], day=day, name=name)
        return loading.validated(cls, merged)
