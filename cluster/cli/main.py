"""The command line: the table of all commands, and how the process ends.

Results go to stdout, progress and messages to stderr. Every error is one line with its remedy. Ray and torch are
imported only inside the commands that need them, so `--help` and `status` answer at once.
"""

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from maskfleet.cluster.cli import bench, demo, doctor, generate, operations, outputs, running, weights
from maskfleet.cluster.cli.help import Command, Group, explained
from maskfleet.cluster.terminal import console
from maskfleet.cluster.terminal.signals import STOPPED
from maskfleet.jobs.cores import PATIENT_THREADS
from maskfleet.jobs.errors import MaskfleetError, Stopped, redacted

COMMANDS: dict[str, dict[str, Callable[..., Any] | typer.Typer]] = {
    "First steps": {
        "demo": demo.demo,
        "init": generate.init,
        "doctor": doctor.doctor,
    },
    "Process images": {
        "plan": running.plan,
        "run": running.run,
        "retry": running.retry,
        "redo": running.redo,
        "backfill": running.backfill,
    },
    "Runs and outputs": {
        "status": operations.status,
        "list": operations.list_,
        "logs": operations.logs,
        "report": outputs.report,
        "show": outputs.show,
        "explain": outputs.explain,
        "verify": outputs.verify,
        "export": outputs.export,
        "gc": outputs.gc,
    },
    "Weights": {
        "finetune": weights.finetune,
        "convert": weights.convert,
        "inspect": weights.inspect,
    },
    "Clusters and schedules": {
        "submit": operations.submit,
        "stop": operations.stop,
        "schema": generate.schema,
        "cluster-config": generate.cluster_config,
        "schedule": generate.schedule,
    },
    "Measurements": {
        "bench": bench.app,
    },
}
"""All commands by heading in `maskfleet --help` and by name."""

_GLOBAL = ("--log", "--debug")

_log = logging.getLogger("maskfleet")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)  # torch reads it once, when it is imported
    code = _exit_code(lambda: app(_with_global_options_first(sys.argv[1:]), standalone_mode=False))
    # C++ threads of torch, pyarrow and Ray can abort an interpreter during shutdown (exit code 134), and schedulers
    # read the exit code. So Python's exit functions run here, and then the process exits at once.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _with_global_options_first(arguments: list[str]) -> list[str]:
    """Move --log and --debug before the command: they may stand anywhere before a "--"."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = [argument for argument in arguments[:end] if argument in _GLOBAL]
    return [*found, *(argument for argument in arguments[:end] if argument not in _GLOBAL), *arguments[end:]]


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except MaskfleetError as error:
        return _complain(error, error.exit_code)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, Stopped, typer.Abort):
        return STOPPED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if callable(getattr(error, "show", None)):  # wrong usage; the base class is private to Typer
            return _complain_of_usage(error)
        return _complain(error, 1)
    return code if isinstance(code, int) else 0


def _complain(error: Exception, code: int) -> int:
    if _log.isEnabledFor(logging.DEBUG):
        typer.echo(redacted("".join(traceback.format_exception(error))), err=True)
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MaskfleetError):
        console.complain(redacted(first))
    else:
        what = f"{type(error).__name__}: {redacted(first)}"
        console.complain(f"internal error ({what}); please report it with the output of the same command and --debug")
    return code


def _complain_of_usage(error: Any) -> int:
    message = error.format_message()
    if message.startswith("Usage:"):  # no command was given
        typer.echo(message, err=True)
        return 2
    console.complain(explained(error))
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskfleet {version('maskfleet')}")
        raise typer.Exit


def _maskfleet(
    debug: Annotated[bool, typer.Option("--debug", help="Show the tracebacks of errors.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Show the run's log on stderr, one JSON object per line.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn buckets of images into segmentation masks and Parquet statistics, on Ray.

    `maskfleet COMMAND --help` describes a command, and `maskfleet --install-completion` makes the shell complete them.
    --debug and --log may stand anywhere.

    Exit codes: 0 success; 1 incomplete run or other failure; 2 invalid job, input, weights or usage; 3 new weights
    refused by the gate; 4 output locked by another run; 130 stopped.

    Examples:
      maskfleet demo
      maskfleet run --input images/ --output out/ --weights nuclei
      maskfleet run job.toml --log
    """
    _log.propagate = False
    _log.setLevel(logging.DEBUG if debug else logging.INFO)
    _log.handlers = [logging.StreamHandler() if log else logging.NullHandler()]


def _app() -> typer.Typer:
    made = typer.Typer(
        name="maskfleet",
        cls=Group,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(_maskfleet)
    for heading, commands in COMMANDS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                made.add_typer(command, name=name, cls=Group, rich_help_panel=heading)
            else:
                made.command(name, cls=Command, rich_help_panel=heading)(command)
    return made


app = _app()
