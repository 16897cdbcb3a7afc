"""Commands on the output of a job, read from storage alone: report, explain, show, verify, export, gc."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.targets import place_of
from maskfleet.cluster.terminal import console
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.outputs.exports.forms import EXPORTS
from maskfleet.jobs.words import counted, size

_FAILED_SHOWN = 24


def explain(
    output: options.OutputOrJob,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the image, or a unique ending of it.")],
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the history of one image.

    Lists every run with the image, its attempts and weights, and the reason for planning it or not.

    Examples:
      maskfleet explain out/ plate-1/well-0003.png
    """
    from maskfleet.jobs.outputs.explain import explain as history_of

    place = place_of(output, profile=profile)
    history = history_of(place.output, key, profile=place.profile).to_json()
    if as_json:
        console.show_json(history)
        return
    typer.echo(f"{history['key']}: {history['state']}")
    for run in history["runs"]:
        typer.echo(f"\nrun {run.pop('run')}")
        planned = f"{'yes' if run.pop('planned') else 'no'}: {run.pop('why')}"
        console.show({"planned": planned, **run}, as_json=False)


def report(
    output: options.OutputOrJob,
    run_id: Annotated[str | None, typer.Option("--run", metavar="RUN", help="The run. Default: the newest.")] = None,
    nights: Annotated[
        int | None,
        typer.Option("--nights", min=1, metavar="N", help="Show the last N runs with images beside each other."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write to this local file. Default: into the folder of the run."),
    ] = None,
    profile: options.Profile = None,
) -> None:
    """Write the report of a run as one HTML page, and print its place.

    Every run writes its report at its end. This command writes it again, or for a run of an earlier version. The page
    holds everything it needs, so that it can be sent by mail. Without --to, it takes the output's lock.

    Examples:
      maskfleet report out/
      maskfleet report s3://bucket/masks/ --to report.html
      maskfleet report out/ --nights 7 --to week.html
    """
    from maskfleet.jobs.outputs.report.write import report as report_of
    from maskfleet.jobs.outputs.report.write import report_of_nights

    if nights is not None and run_id is not None:
        raise JobError("--run and --nights exclude each other; give one of them")
    place = place_of(output, profile=profile)
    to_output = to is None
    if nights is None:
        path, data = report_of(place.output, run_id=run_id, to_output=to_output, profile=place.profile)
    else:
        path, data = report_of_nights(place.output, nights, to_output=to_output, profile=place.profile)
    if to is not None:
        _save(to, data, option="--to")
    typer.echo(path if to is None else to)


def _save(file: Path, data: bytes, *, option: str) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise JobError(f"{file} cannot be written ({error.strerror}); give another file with {option}") from error


def show(
    output: options.OutputOrJob,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Key of the image, or a unique ending of it.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Contact sheet of failed images, with the reasons.")] = False,
    least_confident: Annotated[
        int | None,
        typer.Option(
            "--least-confident", min=1, max=200, metavar="N", help="Contact sheet of the N least confident images."
        ),
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Show this run. Default: the newest of each image.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="PNG file to write. Default: maskfleet-show.png.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=16, max=8192, metavar="PX", help="Longest side of each picture. Default: 640, 224."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the file in the system's viewer.")] = False,
    profile: options.Profile = None,
) -> None:
    """Draw an image, its mask and their overlay as a PNG file, or a contact sheet.

    Reads the image from the input again. If it is no longer there, the mask is drawn alone.

    Examples:
      maskfleet show out/ well-0003.png --open
      maskfleet show out/ --least-confident 24 --output sheet.png
      maskfleet show out/ --failed
    """
    from maskfleet.jobs.outputs.pictures import show as pictures

    if sum((key is not None, failed, least_confident is not None)) != 1:
        raise JobError("name one image, or give --failed or --least-confident N")
    place = place_of(output, profile=profile)
    settings: dict[str, Any] = {"run_id": run_id, "profile": place.profile} | ({"size": size} if size else {})
    picture: pictures.Picture | None
    if key is not None:
        picture = pictures.show(place.output, key, **settings)
    elif least_confident is not None:
        picture = pictures.least_confident(place.output, least_confident, **settings)
    else:
        picture = pictures.failed(place.output, _FAILED_SHOWN, **settings)
    if picture is None:
        typer.echo(f"no image failed in {place.output}")
        return
    target = file or Path("maskfleet-show.png")
    sink = io.BytesIO()
    picture.image.save(sink, "PNG")
    _save(target, sink.getvalue(), option="--output")
    _tell(picture.lines, picture.notices, target)
    if open_ and typer.launch(str(target.resolve())):
        console.say(f"no viewer opens {target}; open it yourself")


def _tell(lines: Sequence[str], notices: Sequence[str], file: Path) -> None:
    for line in lines:
        typer.echo(line)
    for notice in notices:
        console.say(notice)
    typer.echo(str(file))


def verify(output: options.OutputOrJob, profile: options.Profile = None, as_json: options.AsJson = False) -> int:
    """Check a whole output against its records.

    Reads every file: each image must have one row, and each mask must exist, be undamaged and match its commit. Exits
    with code 1 if there are problems.

    Examples:
      maskfleet verify s3://bucket/masks/
    """
    from maskfleet.jobs.outputs.verify import verify as audit_output

    place = place_of(output, profile=profile)
    audit = audit_output(place.output, profile=place.profile)
    if as_json:
        console.show_json(vars(audit))
        return 1 if audit.problems else 0
    for run_id, state in audit.runs.items():
        typer.echo(f"run {run_id}: {state}")
    for problem in audit.problems:
        typer.echo(f"PROBLEM {problem}")
    for command in audit.remedies:
        typer.echo(f"REMEDY {command}")
    for shard in audit.superseded:
        typer.echo(shard)
    problems = counted(len(audit.problems), "problem") if audit.problems else "no problems"
    typer.echo(f"{counted(audit.images, 'row')} checked, {problems}")
    return 1 if audit.problems else 0


def export(
    output: options.OutputOrJob,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="Folder or s3:// prefix to write to, outside the output.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORM", help=" ".join(f"{name}: {form.label}." for name, form in EXPORTS.items())),
    ] = "png",
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Export only one image, by its key or a unique ending of it."),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option("--names", metavar="NAME,NAME", help="Names of the classes 1, 2, …, such as cell,wall."),
    ] = None,
    profile: options.Profile = None,
) -> None:
    """Write the newest mask of every image in another form.

    Examples:
      maskfleet export out/ coco/ --to coco --names nucleus
      maskfleet export out/ one/ --key well-0003.png
    """
    from maskfleet.jobs.outputs.exports.export import export as export_masks

    place = place_of(output, profile=profile)
    classes = tuple(names.split(",")) if names else ()
    done = export_masks(place.output, to, destination, key=key, names=classes, profile=place.profile)
    remark = f", {done.remark}" if done.remark else ""
    without = f"; {counted(done.failed, 'failed image')} without a mask" if done.failed else ""
    typer.echo(f"{counted(done.images, 'mask')} in {destination}{remark}{without}")


def gc(
    output: options.OutputOrJob,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files. Default: only list them.")] = False,
    hours: Annotated[
        float,
        typer.Option("--grace", min=0, metavar="HOURS", help="Keep files younger than this."),
    ] = 24,
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> None:
    """List or delete unused files of an output.

    These are uncommitted leftovers of superseded attempts, temporary files of killed processes, merged catalog files,
    and indexes of deleted tar files. --delete takes the output's lock: a run in progress is not disturbed.

    Examples:
      maskfleet gc out/
      maskfleet gc out/ --delete --grace 48
    """
    from maskfleet.jobs.outputs.gc import collect
    from maskfleet.jobs.outputs.status import newest_job

    place = place_of(output, profile=profile)
    newest_job(place.output, profile=place.profile)  # an error if this is not an output
    found = collect(place.output, profile=place.profile, grace=hours * 3600, delete=delete, waiting=console.say)
    if as_json:
        console.show_json(vars(found))
        return
    for path in found.paths:
        typer.echo(path)
    for reason in found.damaged:
        typer.echo(reason)
    files, young = counted(len(found.paths), "file"), counted(found.young, "unused file")
    action = "deleted" if delete else "unused; delete with --delete"
    typer.echo(f"{files} ({size(found.size)}) {action}; {young} younger than {hours:g} hours kept")
