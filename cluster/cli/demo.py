"""The demo: a whole job on synthetic images with known masks."""

from pathlib import Path
from typing import Annotated

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.running import run_job
from maskfleet.cluster.terminal import console
from maskfleet.cluster.terminal.progress import progress
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.words import counted


def demo(
    folder: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Folder to write to.")] = Path(
        "maskfleet-demo"
    ),
    images: Annotated[int, typer.Option("--images", min=1, metavar="N", help="Number of images to generate.")] = 240,
    no_ray: options.NoRay = False,
) -> int:
    """Try maskfleet on synthetic images with known masks.

    Generates microscopy-like images and 3 broken files, runs a whole job on them, and compares the masks with the
    known ones.

    Examples:
      maskfleet demo --images 24
    """
    from maskfleet.jobs.tools.demo import draw, mean_dice

    with progress() as view:
        view.phase("generating images")
        drawn = draw(folder, images=images)
    console.say(f"generated {counted(images, 'image')} and {counted(drawn.broken, 'broken file')} in {drawn.images}")
    job = Job.of(
        {
            "name": "demo",
            "input": str(drawn.images),
            "output": str(folder / "output"),
            "weights": "nuclei",
            "run": {"max_error_rate": 1.0 if images < 100 else 0.05},
        }
    )
    code = run_job(job, address="local", no_ray=no_ray, as_json=False)
    score = mean_dice(folder / "output" / "masks", drawn.truth)
    typer.echo(f"Dice     {score:.3f} mean against the known masks")
    return code
