"""`maskfleet bench`: what this machine reaches, as ratios that were measured in one run."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

if TYPE_CHECKING:
    from maskfleet.jobs.tools.bench import MakeExecutor

app = typer.Typer(
    name="bench", help="Measure what this machine reaches; every figure is a median of pairs.", no_args_is_help=True
)

_DRAWN = "drawn images"

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
WeightsOption = Annotated[list[str], typer.Option("--weights", help="As for `run`.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: section.key=value. May be repeated.")]
Input = Annotated[str, typer.Option("--input", help="Images as for `run`; without it they are drawn.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Of the input, or to draw.")]
Side = Annotated[int, typer.Option("--side", min=16, help="Of drawn images, in px.")]
Pairs = Annotated[int, typer.Option("--pairs", min=1, help="Measurements of both; medians are shown.")]
NoRay = Annotated[bool, typer.Option("--no-ray", help="Run in this process.")]


@app.command()
def forward(
    weights: WeightsOption = ["nuclei"],  # noqa: B006  (Typer copies it)
    shape: Annotated[list[str], typer.Option("--shape", help="WIDTHxHEIGHT in px; again for more.")] = ["256x256"],  # noqa: B006
    precision: Annotated[list[str], typer.Option("--precision", help="fp32, bf16, fp16 or auto; again for more.")] = [  # noqa: B006
        "auto"
    ],
    pairs: Pairs = 3,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """The bare forward pass on resident input: images/s, TFLOP/s, and share of a matrix product's, measured in turn."""
    from maskfleet.jobs.tools import bench

    rows = bench.forward(_job("", weights, set), [_shape(text) for text in shape], precision, pairs=pairs)
    _table(rows, as_json=json)


@app.command()
def run(
    weights: WeightsOption = ["nuclei"],  # noqa: B006
    input: Input = "",  # noqa: A002
    images: Images = 200,
    side: Side = 256,
    pairs: Pairs = 3,
    no_ray: NoRay = False,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """End to end, masks written, as a share of the bare forward pass; and what holds it back."""
    from maskfleet.jobs.tools import bench

    with bench.prepared(_job(input, weights, set), images, side) as job:
        found = bench.end_to_end(job, _executor(no_ray), pairs=pairs)
    _ratio(found, "end to end, steady", "bare forward pass", as_json=json)


@app.command()
def null(
    images: Images = 12000,
    side: Side = 256,
    pairs: Pairs = 3,
    no_ray: NoRay = False,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """The runner's own ceiling: a device that computes nothing, against decoding and encoding alone."""
    from maskfleet.jobs.tools import bench

    with bench.prepared(_job("", ["nuclei"], set), images, side) as job:
        found = bench.null(job, _executor(no_ray), pairs=pairs)
    _ratio(found, "runner with an identity", "decode and encode alone", as_json=json)


@app.command()
def codecs(
    input: Input = "",  # noqa: A002
    images: Images = 2000,
    side: Side = 256,
    json: AsJson = False,
) -> None:
    """What decoding images and encoding masks reach, on every core and on one."""
    from maskfleet.jobs.inputs.fetch import Inputs
    from maskfleet.jobs.inputs.sources import Source
    from maskfleet.jobs.tools import bench

    with bench.prepared(_job(input, ["nuclei"], None), images, side) as job:
        inputs = Inputs()
        found = bench.codecs([inputs.read(record) for record in Source(job.input, output=job.output)])
    _list(found, as_json=json)


@app.command()
def storage(
    url: Annotated[str, typer.Argument(help="Folder or s3:// prefix; what is written there is deleted again.")],
    objects: Annotated[int, typer.Option("--objects", min=1, help="To write and read.")] = 1000,
    size: Annotated[int, typer.Option("--bytes", min=1, help="Of each.")] = 16384,
    profile: Annotated[str | None, typer.Option("--profile", help="AWS profile.")] = None,
    json: AsJson = False,
) -> None:
    """What PUT and GET reach, and the CPU time that a request costs."""
    from maskfleet.jobs.tools import bench

    _list(bench.storage(url, objects=objects, size=size, profile=profile), as_json=json)


def _job(input_: str, weights: list[str], sets: list[str] | None) -> Job:
    # Where nothing is named, `jobs.tools.bench.prepared` puts drawn images in its place.
    job = Job.of({"input": input_ or _DRAWN, "output": "bench", "weights": weights}, sets or [])
    return job if input_ else job.model_copy(update={"input": ""})


def _executor(no_ray: bool) -> "MakeExecutor":
    if no_ray:
        from maskfleet.jobs.run.executor import InProcess

        return InProcess
    from maskfleet.cluster.driver import Fleet

    return Fleet


def _shape(text: str) -> tuple[int, int]:
    """Height and width of WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found or min(width := int(found[1]), height := int(found[2])) < 16:
        raise JobError(f"--shape {text!r} is no WIDTHxHEIGHT of at least 16 px, such as 256x256")
    return height, width


def _ratio(found: dict[str, Any], what: str, reference: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(
        f"{found['images_per_second']:.1f} images/s {what}; {found['reference_per_second']:.1f} images/s {reference}: "
        f"ratio {found['ratio']:.3f} ({found['ratio_least']:.3f}–{found['ratio_most']:.3f} in {found['pairs']} pairs "
        f"of {found['images']} images)"
    )
    if "images_per_second_and_core" in found:
        typer.echo(f"{found['images_per_second_and_core']:.1f} images/s and core, on {found['cores']} cores")
    if found["limit"]:
        typer.echo(found["limit"])
    _table([{"stage": name, **stage} for name, stage in found["stages"].items()], as_json=False)


def _list(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    _table([{"what": name.replace("_", " "), "": value} for name, value in found.items()], as_json=False)


def _table(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table, highlight=False)
