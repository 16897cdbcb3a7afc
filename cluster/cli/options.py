"""Arguments and options shared by several commands, each declared once."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, get_args

import typer

from maskfleet.jobs.job.sections import FailureKind, Reason


def _choice_of(choices: tuple[str, ...]) -> Callable[[list[str] | None], list[str] | None]:
    """Return a check of a repeatable option; Typer itself checks only single values."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in choices:
                raise typer.BadParameter(f"{value!r} is unknown; choose from {', '.join(choices)}")
        return values

    return check


def _date(text: str | None) -> str | None:
    try:
        datetime.fromisoformat(text or "2026-11-24")
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no date; write 2026-11-24 or 2026-11-24T18:00") from error
    return text


JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="Job file (TOML).")]
OptionalJobFile = Annotated[
    Path | None,
    typer.Argument(metavar="JOB", help="Job file (TOML). Without it, give --input, --output and --weights."),
]
OptionalCheckedJob = Annotated[
    Path | None,
    typer.Argument(
        metavar="JOB", help="Job file (TOML). Without it, give --input and --output, or check the machine only."
    ),
]
OutputOrJob = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="Output of a job (folder or s3:// prefix), or its job file.")
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="Output or job file. With --address: job file or submission id.")
]
OptionalTarget = Annotated[
    str | None, typer.Argument(metavar="OUTPUT", help="Output or job file. Not needed with --address.")
]
Submission = Annotated[str, typer.Argument(metavar="SUBMISSION", help="Submission id, or job file.")]

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="PLACE",
        help="Images: a folder, glob, tar, Parquet file, list of URLs or S3 Inventory, local or s3://.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="PLACE", help="Folder or s3:// prefix for masks, statistics and records."),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="FILE|NAME",
        help="Safetensors file, local or s3://, or the built-in model: nuclei. Repeat for an ensemble.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the job, such as run.shard_size=64. Repeatable."
    ),
]
Date = Annotated[
    datetime | None,
    typer.Option(
        "--date",
        formats=["%Y-%m-%d"],
        metavar="YYYY-MM-DD",
        help="Value of {date} in input and output. Default: today in UTC.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="REASON",
        callback=_choice_of(get_args(Reason)),
        help="Process only images planned for this reason: new, changed, stale, failed or redo. Repeatable.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="DATE",
        callback=_date,
        help="Process only images modified at or after this date, such as 2026-11-24.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Process only the first N images, in key order.")
]
Sample = Annotated[
    int | None, typer.Option("--sample", min=1, metavar="N", help="Process only a random sample of N images.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Leave alone images matching this pattern, such as '*.thumb.jpg'. Repeatable."
    ),
]
FailureKinds = Annotated[
    list[str],
    typer.Option(
        "--class",
        metavar="KIND",
        callback=_choice_of(get_args(FailureKind)),
        help="Kind of failure to retry: decode, oom, io or crash. Repeatable.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Ray cluster. Default: RAY_ADDRESS if set, otherwise a local Ray."
    ),
]
Dashboard = Annotated[
    str, typer.Option("--address", metavar="URL", help="Dashboard of the Ray cluster: http://HOST:8265.")
]
OptionalDashboard = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Ask a Ray cluster, by its dashboard: http://HOST:8265. Default: read the output.",
    ),
]
NoRay = Annotated[bool, typer.Option("--no-ray", help="Run in this process, without Ray.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="AWS profile. Default: the job file's, otherwise the environment."),
]
