"""A decoder with deliberate faults; the first two pixels of an image select one. Tests use it as a pipeline's codec."""

import os
import signal
import time

import numpy as np

from maskfleet.jobs.images.decode import decode as decode_well

CRASH, HANG, EAT, RAISE, EXIT = 1, 2, 3, 4, 5


def decode(data, **limits):
    pixels, size, levels = decode_well(data, **limits)
    if (pixels[0, 0] == [77, 77, 77]).all():
        kind = int(pixels[0, 1, 0])
        if kind == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif kind == HANG:
            while True:
                time.sleep(0.01)
        elif kind == EAT:
            np.ones(2**33, np.uint8)
        elif kind == RAISE:
            raise RuntimeError("a bug in the decoder")
        elif kind == EXIT:
            os._exit(0)
    return pixels, size, levels


def marked(kind: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Return pixels (H, W, 3) that make `decode` fail in the given way."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = 77, kind
    return pixels
