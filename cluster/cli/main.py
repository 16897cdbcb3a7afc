"""The command line. stdout is for results, stderr for progress; every error is one line with its remedy."""

import atexit
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from maskfleet.cluster.cli import bench, operations, terminal
from maskfleet.cluster.deploy import generate
from maskfleet.jobs.cores import PATIENT_THREADS
from maskfleet.jobs.errors import JobError, MaskfleetError, Stopped, redacted
from maskfleet.jobs.job.schema import Job

# Ray and torch are imported inside the commands that need them: `--help` and `status` answer at once.

app = typer.Typer(
    name="maskfleet",
    help="Buckets of images to segmentation masks and Parquet statistics, on Ray, with a U-Net resident on every GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(bench.app, name="bench")
app.add_typer(operations.app)
app.add_typer(generate.app)

_options: dict[str, bool] = {"debug": False}

JobFile = Annotated[Path | None, typer.Argument(help="Job file (TOML); or give --input, --output and --weights.")]
Input = Annotated[
    str | None,
    typer.Option("--input", help="Folder, glob, tar, Parquet, list of URLs or S3 Inventory; local or s3://."),
]
Output = Annotated[str | None, typer.Option("--output", help="Folder or s3:// prefix that receives everything.")]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Safetensors file, or a built-in model: nuclei; again for each of an ensemble."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: section.key=value. May be repeated.")]
Date = Annotated[
    datetime | None,
    typer.Option("--date", formats=["%Y-%m-%d"], help="What {date} in input and output means; else today in UTC."),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Only new, changed, stale or failed images. May be repeated.")
]
Since = Annotated[str | None, typer.Option("--since", help="Only images modified since, such as 2026-11-24.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many, the first by key.")]
Sample = Annotated[int | None, typer.Option("--sample", min=1, help="Only so many, from all over the input.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster; without it RAY_ADDRESS, else local.")]
NoRay = Annotated[bool, typer.Option("--no-ray", help="Run in this process.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
OutputFolder = Annotated[str, typer.Argument(help="A job's output.")]
Form = Literal["png", "voc", "coco", "geotiff"]
Profile = Annotated[str | None, typer.Option("--profile", help="AWS profile.")]


def main() -> None:
    """The console script. Exit codes: 0 complete, 1 incomplete, 2 wrong job, 3 refused, 4 locked, 130 stopped."""
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)  # read once, when torch is loaded
    code = _guarded(lambda: app(standalone_mode=False))
    # The C++ threads of torch, pyarrow and Ray were seen to abort an interpreter that was ending (exit 134),
    # and schedulers read this code: so all that Python has to end is ended here, and the process leaves.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except MaskfleetError as error:
        return _complain(error, error.exit_code)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if callable(show := getattr(error, "show", None)):  # a wrong option; the class is private to Typer
            show()
            return 2
        return _complain(error, 1)
    return code if isinstance(code, int) else 0


def _complain(error: Exception, code: int) -> int:
    if _options["debug"]:
        traceback.print_exception(error)
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, MaskfleetError) else f"{type(error).__name__}: "
    hint = "" if isinstance(error, MaskfleetError) else " (run 'maskfleet --debug …' for the traceback)"
    terminal.err.print(
        f"maskfleet: {kind}{redacted(lines[0])}{hint}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskfleet {version('maskfleet')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Show the run's log on stderr, one JSON object a line.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _options["debug"] = debug
    logger = logging.getLogger("maskfleet")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler() if log else logging.NullHandler())


@app.command()
def run(
    job: JobFile = None,
    input: Input = None,  # noqa: A002
    output: Output = None,
    weights: WeightsOption = None,
    set: Set = None,  # noqa: A002
    date: Date = None,
    only: Only = None,
    since: Since = None,
    limit: Limit = None,
    sample: Sample = None,
    address: Address = None,
    no_ray: NoRay = False,
    json: AsJson = False,
) -> int:
    """Make masks and statistics of every image; goes on with an unfinished run of the same job."""
    selection = _selection(only, since, limit, sample)
    work = _job(job, input, output, weights, [*selection, *(set or [])], date=date)
    return _run(work, address=address, no_ray=no_ray, as_json=json)


@app.command()
def plan(
    job: JobFile = None,
    input: Input = None,  # noqa: A002
    output: Output = None,
    weights: WeightsOption = None,
    set: Set = None,  # noqa: A002
    date: Date = None,
    only: Only = None,
    since: Since = None,
    limit: Limit = None,
    sample: Sample = None,
    json: AsJson = False,
) -> None:
    """Count what a run would do, time a sample, reckon what it costs, and warn of wrong masks. Writes nothing."""
    from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values, threads_of
    from maskfleet.jobs.planning.mask_checks import warnings
    from maskfleet.jobs.run.begin import plan as make_plan
    from maskfleet.jobs.tools.estimate import estimate
    from maskfleet.jobs.training.finetune import apply_finished_finetuning

    selection = _selection(only, since, limit, sample)
    work = apply_finished_finetuning(_job(job, input, output, weights, [*selection, *(set or [])], date=date))
    loaded = load_weights(work)
    mask_values(work, loaded)
    fingerprint = fingerprint_of(work, loaded)
    planned = make_plan(work, fingerprint)
    seen = planned.manifest
    result = estimate(work, planned, fingerprint)
    result["warnings"] = warnings(work, loaded, seen, threads=threads_of(work))
    if work.finetune.images:
        result["warnings"].append(
            "the new weights are not trained yet: run does that first, and what is planned here is for the old ones"
        )
    terminal.show(result, as_json=json)


@app.command()
def status(
    target: Annotated[str, typer.Argument(help="An output or its job file; with --address also a submission's id.")],
    address: operations.MaybeAddress = None,
    profile: Profile = None,
    json: AsJson = False,
) -> None:
    """Show how far the newest run of an output, or a submission, is."""
    from maskfleet.jobs.outputs.status import status as read_status

    if address is not None:
        terminal.show(operations.submission_status(target, address, profile=profile), as_json=json)
    else:
        terminal.show(read_status(operations.output_of(target), profile=profile), as_json=json)


@app.command()
def explain(
    output: OutputFolder,
    key: Annotated[str, typer.Argument(help="The image's key, or any ending of it that no other key has.")],
    profile: Profile = None,
    json: AsJson = False,
) -> None:
    """Tell an image's whole story: runs, attempts, weights, and why it was or was not planned."""
    from maskfleet.jobs.outputs.explain import explain as tell

    told = tell(output, key, profile=profile)
    if json:
        terminal.show(told, as_json=True)
        return
    typer.echo(f"{told['key']}: {told['state']}")
    for run_told in told["runs"]:
        typer.echo(f"\nrun {run_told.pop('run')}")
        terminal.show(run_told, as_json=False)


@app.command()
def retry(
    output: OutputFolder,
    classes: Annotated[list[str], typer.Option("--class", help="decode, oom, io or crash. May be repeated.")],
    set: Set = None,  # noqa: A002
    address: Address = None,
    no_ray: NoRay = False,
    profile: Profile = None,
    json: AsJson = False,
) -> int:
    """Do failed images of these kinds again, with the newest run's job."""
    from maskfleet.jobs.outputs.status import newest_job

    newest = newest_job(output, profile=profile)
    newest["select"] = {"classes": classes}
    return _run(Job.of(newest, set or ()), address=address, no_ray=no_ray, as_json=json)


@app.command()
def gc(
    output: OutputFolder,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; else they are only shown.")] = False,
    hours: Annotated[float, typer.Option("--grace", min=0, help="Hours that a file must be old.")] = 24,
    profile: Profile = None,
    json: AsJson = False,
) -> None:
    """Find files that nothing needs: attempts that lost, merged catalog files, indexes of tars that are gone."""
    from maskfleet.jobs.outputs.gc import collect

    found = collect(output, profile=profile, grace=hours * 3600, delete=delete)
    if json:
        terminal.show(vars(found), as_json=True)
        return
    for path in found.paths:
        typer.echo(path)
    verb = "deleted" if delete else "would be deleted with --delete"
    typer.echo(f"{len(found.paths)} files, {found.size} bytes {verb}; {found.young} too young to judge")


@app.command()
def backfill(
    job: Annotated[Path, typer.Argument(help="Job file (TOML) with {date} in its input.")],
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")],
    set: Set = None,  # noqa: A002
    address: Address = None,
    no_ray: NoRay = False,
    json: AsJson = False,
) -> int:
    """Run a job for each of several days, the earliest first; a day that is done costs its listing."""
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    works = [Job.load(job, set or (), day=day.date()) for day in days]
    if not works:
        raise JobError("--to lies before --from; turn them round")
    if len({work.input for work in works}) < len(works):
        raise JobError("the job's input does not depend on {date}, so that every day would be the same; put it in")
    code = 0
    for day, work in zip(days, works, strict=True):
        terminal.err.print(f"{day:%Y-%m-%d}", highlight=False)
        code = max(code, _run(work, address=address, no_ray=no_ray, as_json=json, last=False))
        if code == 130:
            break
    return code


@app.command()
def verify(output: OutputFolder, profile: Profile = None, json: AsJson = False) -> int:
    """Check an output again from storage: one row per image, every mask whole and right. Exit 1 if not."""
    from maskfleet.jobs.outputs.verify import verify as audit_output

    audit = audit_output(output, profile=profile)
    shown = {"runs": audit.runs, "images": audit.images, "problems": audit.problems}
    if json:
        terminal.show(shown, as_json=True)
    else:
        for run_id, state in audit.runs.items():
            typer.echo(f"run {run_id}: {state}")
        for problem in audit.problems:
            typer.echo(f"PROBLEM {problem}")
        typer.echo(f"{audit.images} rows checked, {len(audit.problems) or 'no'} problems")
    return 1 if audit.problems else 0


@app.command()
def export(
    output: OutputFolder,
    destination: Annotated[str, typer.Argument(help="Folder or s3:// prefix to write to, outside the output.")],
    to: Annotated[
        Form, typer.Option("--to", help="Loose PNG, palette PNG as VOC has it, COCO JSON, or GeoTIFF.")
    ] = "png",
    key: Annotated[str | None, typer.Option("--key", help="One image: any unique ending of its key.")] = None,
    names: Annotated[str | None, typer.Option("--names", help="Of the classes after the first: cell,wall")] = None,
    profile: Profile = None,
) -> None:
    """Write the newest mask of every image in another form."""
    from maskfleet.jobs.outputs.export import export as export_masks

    classes = tuple(names.split(",")) if names else ()
    done = export_masks(output, to, destination, key=key, names=classes, profile=profile)
    placed = f", {done.placed} with their image's place or resolution" if to == "geotiff" else ""
    left = f"; {done.failed} failed and have none" if done.failed else ""
    typer.echo(f"{done.images} masks in {destination}{placed}{left}")


@app.command()
def finetune(
    job: JobFile = None,
    set: Set = None,  # noqa: A002
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Only score the job's weights on the pairs that are held back.")
    ] = False,
    address: Address = None,
    json: AsJson = False,
) -> int:
    """Make better weights of corrected masks ([finetune] in the job); goes on with an unfinished training.

    Exit 3 where the gate refuses them.
    """
    from maskfleet.jobs.training import finetune as training

    work = _job(job, None, None, None, set)
    if evaluate:
        scored = training.evaluate(work)
        if json:
            terminal.show(scored.to_dict(), as_json=True)
        else:
            terminal.tell_scores("scores", scored.scores)
        return 0
    on_workers: dict[str, Any] = {}
    if work.finetune.workers > 1:
        from maskfleet.cluster import auth

        auth.settle()
        from maskfleet.cluster.train import on_ray

        on_workers = {"loop": on_ray(address)}
    with terminal.draining() as stopped:
        try:
            made = training.finetune(work, on_step=terminal.training(), stopped=stopped, **on_workers)
        except Stopped:
            return _said_stopped()
    if json:
        terminal.show(made.record.to_dict(), as_json=True)
    else:
        terminal.tell_scores("base", made.record.base)
        terminal.tell_scores("new", made.record.new)
    if not made.verdict.accepted:
        raise made.refusal()
    if not json:
        typer.echo(f"gate     {made.verdict.reason}")
        typer.echo(f"weights  {made.weights}")
    return 0


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Pytorch-UNet checkpoint (.pth) of any release.")],
    weights: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="Mean of each channel in [0, 1] that training subtracted: 0.48,0.45,0.4"),
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="Standard deviation that it divided by, likewise.")] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Scale that it was trained at; Pytorch-UNet's default is 0.5.")
    ] = None,
) -> None:
    """Make a safetensors file of a Pytorch-UNet checkpoint; reads tensors only, never code."""
    from maskfleet.unet import weights as unet_weights

    if (mean is None) != (std is None):
        raise JobError("--mean and --std belong together; give both or neither")
    try:
        normalize = None if mean is None or std is None else (_numbers(mean), _numbers(std))
        data = unet_weights.convert(checkpoint.read_bytes(), normalize=normalize, scale=scale)
        loaded = unet_weights.load(data)
        weights.write_bytes(data)
    except unet_weights.WeightsError as error:
        raise JobError(f"{checkpoint}: {error}") from error
    except OSError as error:
        raise JobError(f"{error.filename}: {error.strerror}; check the path") from error
    model = loaded.model
    typer.echo(
        f"{weights}: {model.n_channels} channels, {model.n_classes} classes, width {model.width}, "
        f"{'bilinear' if model.bilinear else 'transposed'}, id {loaded.id[:12]}"
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise JobError(f"{text!r} is no list of numbers such as 0.5,0.5,0.5") from error


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--output", help="Folder to write to.")] = Path("maskfleet-demo"),
    images: Annotated[int, typer.Option("--images", min=1, help="Images to draw.")] = 240,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Run in this process.")] = False,
) -> int:
    """Draw microscopy-like images with known truth, run the whole job on them, and compare."""
    from maskfleet.jobs.tools.demo import draw, mean_dice

    drawn = draw(folder, images=images)
    terminal.err.print(f"drew {images} images and {drawn.broken} broken files in {drawn.images}", highlight=False)
    job = Job.of(
        {
            "name": "demo",
            "input": str(drawn.images),
            "output": str(folder / "output"),
            "weights": "nuclei",
            "run": {"max_error_rate": 1.0 if images < 100 else 0.05},
        }
    )
    code = _run(job, address="local", no_ray=no_ray, as_json=False)
    score = mean_dice(folder / "output" / "masks", drawn.truth)
    typer.echo(f"Dice     {score:.3f} mean against the drawn truth")
    return code


def _selection(only: list[str] | None, since: str | None, limit: int | None, sample: int | None) -> list[str]:
    given = {"only": only, "since": since, "limit": limit, "sample": sample}
    return [f"select.{key}={json.dumps(value)}" for key, value in given.items() if value]


def _job(
    path: Path | None, input_: str | None, output: str | None, weights: list[str] | None,
    overrides: list[str] | None, *, date: datetime | None = None,
) -> Job:  # fmt: skip
    given = {"input": input_, "output": output, "weights": weights}
    sets = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    sets += overrides or []
    day = date.date() if date else None
    return Job.load(path, sets, day=day) if path is not None else Job.of({}, sets, day=day)


def _run(job: Job, *, address: str | None, no_ray: bool, as_json: bool, last: bool = True) -> int:
    """Run a job; what is half made behind the last run of a process is left to end with it."""
    with terminal.draining() as stopped, terminal.progress() as progress:
        learning = terminal.training()
        try:
            if no_ray:
                from maskfleet.jobs.run.execute import run

                summary = run(job, on_progress=progress, stopped=stopped, on_training_step=learning)
            else:
                from maskfleet.cluster import auth

                auth.settle()
                from maskfleet.cluster.connection import Connection

                connection = Connection(address)
                if last and not job.finetune.images:  # a training may take hours before Ray is needed
                    connection.begin()
                from maskfleet.cluster.driver import Fleet
                from maskfleet.jobs.run.execute import run

                try:
                    summary = run(
                        job, Fleet(connection), on_progress=progress, stopped=stopped, on_training_step=learning
                    )
                finally:
                    connection.close(wait=not last)
        except Stopped:
            return _said_stopped()
    if as_json:
        terminal.show(summary.to_json(), as_json=True)
    else:
        terminal.summary(job, summary)
    return summary.exit_code


def _said_stopped() -> int:
    terminal.err.print("stopped; what is done is kept: run the same command to go on", highlight=False)
    return 130


if __name__ == "__main__":
    main()
