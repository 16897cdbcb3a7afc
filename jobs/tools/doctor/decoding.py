"""Check of the decoding processes: one is started, decodes an image, and says what isolates it."""

import numpy as np

from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.isolation.confinement import MEANS
from maskfleet.jobs.masks.png import Encoder
from maskfleet.jobs.tools.doctor.contract import Finding, Subject


def decoding(subject: Subject) -> Finding:
    """Decode one image in a decoding process."""
    image = Encoder((0, 255)).encode(np.zeros((8, 8), np.uint8))
    with Decoders(Limits(channels=3), processes=1) as decoders:
        decoded = next(decoders.decode([(0, image)]))
        missing = [name for name in MEANS if name not in decoders.means]
    if decoded.failure is not None:
        return Finding("problem", f"a decoding process failed: {decoded.failure.message}", "install maskfleet again")
    if missing:
        text = f"a decoding process decodes, but the kernel or its container withholds {' and '.join(missing)}"
        return Finding("warning", text, "allow these system calls, or decode only images that you trust")
    return Finding("ok", "a decoding process decodes, without credentials, files and network, and within its limits")
