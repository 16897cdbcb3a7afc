"""Commands measuring this machine, as ratios of two speeds measured alternately."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.help import Command
from maskfleet.cluster.terminal import console
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.words import counted

if TYPE_CHECKING:
    from maskfleet.jobs.tools.bench import MakeExecutor

_DRAWN = "synthetic images"

Weights = Annotated[
    list[str],
    typer.Option("--weights", metavar="FILE|NAME", help="Weights, as for `maskfleet run`. Repeat for an ensemble."),
]
Input = Annotated[
    str, typer.Option("--input", metavar="PLACE", help="Images, as for `maskfleet run`. Default: synthetic images.")
]
Images = Annotated[int, typer.Option("--images", min=1, metavar="N", help="Number of images to generate or read.")]
Side = Annotated[int, typer.Option("--side", min=16, metavar="PX", help="Width and height of synthetic images in px.")]
Pairs = Annotated[
    int, typer.Option("--pairs", min=1, metavar="N", help="Number of paired measurements. Results are their medians.")
]


def forward(
    weights: Weights = ["nuclei"],  # noqa: B006  (Typer copies it)
    shapes: Annotated[
        list[str],
        typer.Option("--shape", metavar="WIDTHxHEIGHT", help="Image size in px. Repeatable."),
    ] = ["256x256"],  # noqa: B006
    precisions: Annotated[
        list[str],
        typer.Option("--precision", metavar="NAME", help="fp32, bf16, fp16 or auto. Repeatable."),
    ] = ["auto"],  # noqa: B006
    pairs: Pairs = 3,
    sets: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the bare forward pass of the network.

    Shows images/s, TFLOP/s, and the TFLOP/s as a share of those of a plain matrix product, measured alternately. Input
    stays on the device.

    Examples:
      maskfleet bench forward --shape 256x256 --shape 1024x1024 --precision bf16
    """
    from maskfleet.jobs.tools import bench

    job = _job("", weights, sets)
    _table(bench.forward(job, [_shape(text) for text in shapes], precisions, pairs=pairs), as_json=as_json)


def run(
    weights: Weights = ["nuclei"],  # noqa: B006
    input_: Input = "",
    images: Images = 200,
    side: Side = 256,
    pairs: Pairs = 3,
    no_ray: options.NoRay = False,
    sets: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure whole runs against the bare forward pass.

    Shows the speed from reading images to writing masks, its share of the bare forward pass, and the bottleneck.

    Examples:
      maskfleet bench run --input images/ --images 500 --no-ray
    """
    from maskfleet.jobs.tools import bench
    from maskfleet.jobs.tools.bench_images import bench_job

    with bench_job(_job(input_, weights, sets), images, side) as job:
        found = bench.end_to_end(job, _executor(no_ray), pairs=pairs)
    _ratio(found, "end to end", "bare forward pass", as_json=as_json)


def null(
    images: Images = 12000,
    side: Side = 256,
    pairs: Pairs = 3,
    no_ray: options.NoRay = False,
    sets: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the runner's own speed limit, without a network.

    Compares whole runs with a no-op network against bare decoding and encoding.

    Examples:
      maskfleet bench null --images 2000
    """
    from maskfleet.jobs.tools import bench
    from maskfleet.jobs.tools.bench_images import bench_job

    with bench_job(_job("", ["nuclei"], sets), images, side) as job:
        found = bench.without_network(job, _executor(no_ray), pairs=pairs)
    _ratio(found, "without a network", "decoding and encoding alone", as_json=as_json)


def codecs(input_: Input = "", images: Images = 2000, side: Side = 256, as_json: options.AsJson = False) -> None:
    """Measure decoding of images and encoding of masks.

    Shows the speed on one core and on all cores.

    Examples:
      maskfleet bench codecs --input images/
    """
    from maskfleet.jobs.inputs.fetch import Inputs
    from maskfleet.jobs.inputs.sources import Source
    from maskfleet.jobs.tools import machine_speed
    from maskfleet.jobs.tools.bench_images import bench_job

    with bench_job(_job(input_, ["nuclei"], None), images, side) as job:
        inputs = Inputs()
        found = machine_speed.codecs([inputs.read(record) for record in Source(job.input, output=job.output)])
    _list(found, as_json=as_json)


def storage(
    url: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help="Folder or s3:// prefix. Test objects are written there and deleted afterwards."
        ),
    ],
    objects: Annotated[int, typer.Option("--objects", min=1, metavar="N", help="Number of objects.")] = 1000,
    size: Annotated[int, typer.Option("--bytes", min=1, metavar="N", help="Object size in bytes.")] = 16384,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="AWS profile. Default: the environment.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure storage: speed of PUT and GET, and CPU time per request.

    Examples:
      maskfleet bench storage s3://bucket/tmp/ --objects 200
    """
    from maskfleet.jobs.tools import machine_speed

    _list(machine_speed.storage(url, objects=objects, size=size, profile=profile), as_json=as_json)


COMMANDS: dict[str, Callable[..., None]] = {
    "forward": forward,
    "run": run,
    "null": null,
    "codecs": codecs,
    "storage": storage,
}
"""All measurements by name."""


def _bench() -> None:
    """Measure the speed of this machine. Comparisons are medians of paired measurements."""


def _app() -> typer.Typer:
    made = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    made.callback()(_bench)
    for name, command in COMMANDS.items():
        made.command(name, cls=Command)(command)
    return made


app = _app()


def _job(input_: str, weights: list[str], sets: list[str] | None) -> Job:
    # `jobs.tools.bench_images.bench_job` replaces an empty input with synthetic images.
    job = Job.of({"input": input_ or _DRAWN, "output": "bench", "weights": weights}, sets or [])
    return job if input_ else job.model_copy(update={"input": ""})


def _executor(no_ray: bool) -> "MakeExecutor":
    if no_ray:
        from maskfleet.jobs.run.executor import InProcess

        return InProcess
    from maskfleet.cluster.driver import Fleet

    return Fleet


def _shape(text: str) -> tuple[int, int]:
    """Return the height and width in px from WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found or min(width := int(found[1]), height := int(found[2])) < 16:
        raise JobError(f"--shape {text!r} is not WIDTHxHEIGHT of at least 16 px each, such as 256x256")
    return height, width


def _ratio(found: dict[str, Any], what: str, reference: str, *, as_json: bool) -> None:
    if as_json:
        console.show_json(found)
        return
    typer.echo(
        f"{found['images_per_second']:.1f} images/s {what}; {found['reference_per_second']:.1f} images/s {reference}: "
        f"ratio {found['ratio']:.3f} ({found['ratio_least']:.3f}–{found['ratio_most']:.3f} in "
        f"{counted(found['pairs'], 'pair')} of {counted(found['images'], 'image')})"
    )
    if "images_per_second_and_core" in found:
        cores = counted(found["cores"], "core")
        typer.echo(f"{found['images_per_second_and_core']:.1f} images/s per core, on {cores}")
    if found["limit"]:
        typer.echo(found["limit"])
    _table([{"stage": name, **stage} for name, stage in found["stages"].items()], as_json=False)


def _list(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.show_json(found)
        return
    _table([{"what": name.replace("_", " "), "": value} for name, value in found.items()], as_json=False)


def _table(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        console.show_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table, highlight=False)
