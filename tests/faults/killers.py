"""Pipelines with deliberate faults; tests give them to an executor instead of `jobs.run.open_pipeline.open_pipeline`."""

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
    """Kills its process, or raises, at an image marked with `KILL` or `RAISE`."""

    def segment(self, images, size=None, **more):
        for image in images:
            if (image[0, 0] == 77).all() and image[0, 1, 0] == KILL:
                os._exit(1)
            if (image[0, 0] == 77).all() and image[0, 1, 0] == RAISE:
                raise RuntimeError("CUDA error: device-side assert triggered")
        return super().segment(images, size, **more)


class Slow(Segmenter):
    """Takes 0.15 s per image, so that a test can kill it in the middle of a shard."""

    def segment(self, images, size=None, **more):
        time.sleep(0.15 * len(images))
        return super().segment(images, size, **more)


class Unlucky(Segmenter):
    """Starts normally, then raises at every image."""

    started = False

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.started = True

    def segment(self, images, size=None, **more):
        if self.started:
            raise RuntimeError("no luck")
        return super().segment(images, size, **more)


def _pipeline(run, kind, **more):
    model = load_weights(run.job).model
    torch.set_num_threads(run.threads)
    segmenter = kind(model, precision="fp32", plain_threads=run.threads)
    return pipeline_around(run, segmenter, 1, encoder=Encoder(default_values(2)), **more)


def with_killer_segmenter(run, cpus):
    return _pipeline(run, Killer)


def with_killer_decoder(run, cpus):
    return _pipeline(run, Segmenter, codec="faults.codecs:decode")


def slowly(run, cpus):
    return _pipeline(run, Slow)


def unlucky(run, cpus):
    return _pipeline(run, Unlucky)


def in_company(run, cpus):
    """Wait for a second worker, so that the first cannot finish everything alone."""
    present = Path(f"{run.job.output}-workers")
    present.mkdir(exist_ok=True)
    (present / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(present.iterdir())) < 2:
        if time.monotonic() > end:
            raise RuntimeError("alone for two minutes")
        time.sleep(0.05)
    return _pipeline(run, Segmenter)


__all__ = ["KILL", "RAISE", "codecs", "in_company", "slowly", "unlucky", "with_killer_decoder", "with_killer_segmenter"]
