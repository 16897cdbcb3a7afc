"""Commands for weights: finetune, convert, inspect."""

from pathlib import Path
from typing import Annotated, Any

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.targets import reached
from maskfleet.cluster.terminal import console, signals, table
from maskfleet.cluster.terminal.progress import training
from maskfleet.cluster.terminal.summary import scores
from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.words import counted


def finetune(
    job: options.JobFile,
    sets: options.Set = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Only score the job's current weights on the validation pairs.")
    ] = False,
    address: options.Address = None,
    as_json: options.AsJson = False,
) -> int:
    """Fine-tune the weights of a job on corrected masks.

    Needs a [finetune] section in the job file. Resumes an unfinished training. Exits with code 3 if the gate refuses
    the new weights.

    Examples:
      maskfleet finetune job.toml
      maskfleet finetune job.toml --evaluate
    """
    from maskfleet.jobs.training import finetune as tuning

    work = reached(Job.load(job, sets or ()))
    if evaluate:
        scored = tuning.evaluate(work)
        console.show_json(scored.to_dict()) if as_json else scores("scores", scored.scores)
        return 0
    on_workers: dict[str, Any] = {}
    if work.finetune.workers > 1:
        from maskfleet.cluster import auth

        auth.settle()
        from maskfleet.cluster.train import on_ray

        on_workers = {"loop": on_ray(address)}
    with signals.stopping() as stop:
        try:
            with stop.draining():  # the step in progress ends first
                made = tuning.finetune(work, on_step=training(), stopped=stop, **on_workers)
        except (Stopped, KeyboardInterrupt):
            return signals.stopped()
    if as_json:
        console.show_json(made.record.to_dict())
    else:
        scores("base", made.record.base)
        scores("new", made.record.new)
        typer.echo(f"report   {made.report}")
    if not made.verdict.accepted:
        raise made.refusal()
    if not as_json:
        typer.echo(f"gate     {made.verdict.reason}")
        typer.echo(f"weights  {made.weights}")
    return 0


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="NETWORK", help="Pytorch-UNet checkpoint (.pth, .ckpt), or an exported program (.pt2)."),
    ],
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Safetensors file to write.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME", help="Network to convert, if the checkpoint holds several."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="NUMBERS",
            help="Channel means subtracted in training, for pixels in [0, 1], such as 0.48,0.45,0.4. Default: none.",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std",
            metavar="NUMBERS",
            help="Channel standard deviations used as divisors in training, such as 0.23,0.22,0.22. Default: none.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="FACTOR", help="Image scale used in training; Pytorch-UNet's default is 0.5."),
    ] = None,
) -> None:
    """Convert a Pytorch-UNet checkpoint, or an exported network of another kind, to a safetensors file.

    Accepts checkpoints of any Pytorch-UNet release: state dicts under any key or prefix, Lightning, DataParallel,
    whole modules, TorchScript, safetensors. Accepts programs of torch.export.save that consist of known operators.
    Reads both as data and never runs code from them.

    Examples:
      maskfleet convert checkpoint_epoch5.pth cells.safetensors --scale 0.5
      maskfleet convert last.ckpt cells.safetensors --key model_ema
      maskfleet convert network.pt2 cells.safetensors
    """
    from maskfleet.unet.network import WeightsError

    if (mean is None) != (std is None):
        raise JobError("--mean and --std belong together; give both or neither")
    try:
        normalize = None if mean is None or std is None else (_numbers(mean), _numbers(std))
        typer.echo(_converted(checkpoint, weights, key=key, normalize=normalize, scale=scale))
    except WeightsError as error:
        raise JobError(f"{checkpoint}: {error}") from error
    except OSError as error:
        raise JobError(f"{error.filename}: {error.strerror}; check the path") from error


def _converted(checkpoint: Path, weights: Path, **options: Any) -> str:
    """Write the weights. Return their description."""
    from maskfleet.unet.programs import conversion
    from maskfleet.unet.weights import load

    data = conversion.convert(checkpoint.read_bytes(), **options)
    loaded = load(data)
    weights.write_bytes(data)
    model = loaded.model
    classes = f"{model.n_classes} {'class' if model.n_classes == 1 else 'classes'}"
    tiles = f"tiles from {model.grid} px, halo {model.halo}"
    if model.untileable:
        tiles = f"no exact tiles: {model.untileable}"
    return f"{weights}: {counted(model.n_channels, 'channel')}, {classes}, {tiles}, id {loaded.id[:12]}"


def inspect(
    weights: Annotated[
        str, typer.Argument(metavar="WEIGHTS", help="Safetensors file, or the name of a built-in model.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Show what a weights file holds: its network, its input and classes, its tiles and its origin.

    Examples:
      maskfleet inspect model.safetensors
      maskfleet inspect nuclei --json
    """
    from maskfleet.jobs.network.description import described
    from maskfleet.unet.network import WeightsError
    from maskfleet.unet.weights import load_local

    try:
        found = described(load_local(weights))
    except (WeightsError, FileNotFoundError) as error:
        raise JobError(str(error)) from error
    except OSError as error:
        raise JobError(f"{weights}: {error.strerror}; check the path") from error
    if as_json:
        console.show_json(found)
        return
    for line in table.lines({name: value for name, value in found.items() if value is not None}):
        typer.echo(line)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise JobError(f"{text!r} is not a list of numbers such as 0.5,0.5,0.5") from error
