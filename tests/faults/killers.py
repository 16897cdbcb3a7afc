"""Pipelines with parts that fail on purpose; given to the driver in place of `jobs.run.execute.open_pipeline`."""

import os
import time
from pathlib import Path

import torch
from faults import codecs

from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.network.inference_config import load_weights
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.unet.inference.segmenter import Segmenter

KILL, RAISE = 201, 202


class Killer(Segmenter):
    """Ends its process, or raises, at an image that is marked with `KILL` or `RAISE`."""

    def segment(self, images, size=None):
        for image in images:
            if (image[0, 0] == 77).all() and image[0, 1, 0] == KILL:
                os._exit(1)
            if (image[0, 0] == 77).all() and image[0, 1, 0] == RAISE:
                raise RuntimeError("CUDA error: device-side assert triggered")
        return super().segment(images, size)


class Slow(Segmenter):
    """Takes its time, so that there is a middle to be killed in."""

    def segment(self, images, size=None):
        time.sleep(0.15 * len(images))
        return super().segment(images, size)


class Unlucky(Segmenter):
    """Starts well, and raises at every image."""

    started = False

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.started = True

    def segment(self, images, size=None):
        if self.started:
            raise RuntimeError("no luck")
        return super().segment(images, size)


def _pipeline(run, kind, **more):
    model = load_weights(run.job).model
    torch.set_num_threads(run.threads)
    segmenter = kind(model, precision="fp32", plain_threads=run.threads)
    return pipeline_around(run, segmenter, 1, encoder=Encoder(default_values(2)), **more)


def with_killer_segmenter(this, cpus):
    return _pipeline(this, Killer)


def with_killer_decoder(this, cpus):
    return _pipeline(this, Segmenter, codec="faults.codecs:decode")


def slowly(this, cpus):
    return _pipeline(this, Slow)


def unlucky(this, cpus):
    return _pipeline(this, Unlucky)


def in_company(this, cpus):
    """Ready once another worker is about to be, so that none does all before the others come."""
    present = Path(f"{this.job.output}-workers")
    present.mkdir(exist_ok=True)
    (present / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(present.iterdir())) < 2:
        if time.monotonic() > end:
            raise RuntimeError("alone for two minutes")
        time.sleep(0.05)
    return _pipeline(this, Segmenter)


__all__ = ["KILL", "RAISE", "codecs", "in_company", "slowly", "unlucky", "with_killer_decoder", "with_killer_segmenter"]
