"""Images of a benchmark: the first ones of an input, or synthetic ones with the detail of photographs."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.fetch import options_of
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job

_DISTINCT = 1000
"""Most distinct synthetic images. Further ones are hard links to them."""


@contextmanager
def bench_job(job: Job, images: int, side: int) -> Iterator[Job]:
    """Yield the job with a limited input and a temporary output, deleted at the end.

    Args:
        job: Job whose input is drawn if empty.
        images: Number of images.
        side: Width and height of drawn images in px.

    Raises:
        JobError: The input has no image.
    """
    with tempfile.TemporaryDirectory(prefix="maskfleet-bench-") as scratch:
        if job.input:
            source = Source(job.input, output=job.output, options=options_of(job))
            listed = [record.url for record in islice(source, images)]
            if not listed:
                raise JobError(f"no images in {job.input}; correct 'input'")
        else:
            listed = [str(path) for path in sorted(draw(Path(scratch) / "drawn", images, side).iterdir())]
        (Path(scratch) / "images.txt").write_text("\n".join(listed))
        yield job.model_copy(update={"input": f"{scratch}/images.txt", "output": f"{scratch}/output"})


def draw(folder: Path, images: int, side: int, *, seed: int = 0) -> Path:
    """Draw square JPEG files of quality 90 with the detail of photographs; return the folder.

    Args:
        folder: Folder for the files.
        images: Number of files.
        side: Width and height in px.
        seed: Random seed; equal seeds give equal files.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(images, _DISTINCT)):
        coarse = random.integers(0, 256, (max(2, side // 10), max(2, side // 10), 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06}.jpg", quality=90)
    for number in range(_DISTINCT, images):
        os.link(folder / f"{number % _DISTINCT:06}.jpg", folder / f"{number:06}.jpg")
    return folder
