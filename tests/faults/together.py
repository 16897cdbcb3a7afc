"""A codec that waits on import until three processes of the same parent have imported it."""

import os
import time
from pathlib import Path

from maskfleet.jobs.images.decode import decode

_HERE = Path("/tmp") / f"together-{os.getppid()}"  # decoder processes have no TMPDIR
_HERE.mkdir(exist_ok=True)
(_HERE / str(os.getpid())).touch()
_END = time.monotonic() + 30
while len(list(_HERE.iterdir())) < 3:
    if time.monotonic() > _END:
        raise SystemExit("alone for 30 s")
    time.sleep(0.01)

__all__ = ["decode"]
