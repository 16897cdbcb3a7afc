"""CPU time of each step of one image alone, in µs of one thread: `python tests/benchmarks/steps.py --folder DIR`.

These are the steps of a run without a network, excluding messages, copies, locks and shared caches between them. Use a
folder on a file system without deletions in the last minutes; see the README.
"""

import argparse
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.readers.jpeg import read_header
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.commit import put
from maskfleet.jobs.masks import png
from maskfleet.jobs.masks.tar import FORMAT, tar
from maskfleet.jobs.run import attempt
from maskfleet.jobs.run.stages.shard_pass import Outcome
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.tools.bench_images import draw
from maskfleet.jobs.tools.identity import Identity

_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder for the files; they are kept")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=options.folder))
    draw(root / "in", options.images, options.side)
    storage = LocalStorage(str(root / "out"))
    records = list(Source(str(root / "in"), output=str(root / "out")))
    round_ = iter(range(10**6))

    def least(step: str, work: Callable[[], object]) -> object:
        """Print the shortest time of several rounds and return the result."""
        seconds = []
        for _ in range(options.rounds):
            began = time.process_time()
            done = work()
            seconds.append(time.process_time() - began)
        print(f"| {step} | {min(seconds) / len(records) * 1e6:.1f} |", flush=True)
        return done

    def export() -> None:
        folder = next(round_)
        for number, mask in enumerate(masks):
            storage.export(f"masks/{folder}/{number:06}.png", mask)

    print("| step | µs |\n|---|---|")
    data = least("read the file", lambda: [local_file.read(record.url, record.etag) for record in records])
    least("thereof: Pillow reads the header", lambda: [read_header(io.BytesIO(each)) for each in data])
    pixels = least("decode", lambda: [decode(each, channels=3)[0] for each in data])
    batches = [np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    device = Identity()
    found = least("compare green with red", lambda: [device.segment(batch) for batch in batches])
    encoder = png.Encoder(png.default_values(2))
    maps = [each for labels, _ in found for each in labels]
    masks = least("encode the mask as PNG", lambda: [encoder.encode(each) for each in maps])
    least("write it as a loose file", export)
    with mock.patch.object(os, "O_TMPFILE", 0):  # without O_TMPFILE, a file gets a temporary name
        least("the same with a temporary name", export)
    output = SimpleNamespace(run_id="r", fingerprint="f" * 64, format=FORMAT)
    seconds = dict.fromkeys(statistics.STAGES, 0.1)

    def table() -> bytes:
        columns = [each for _, batch in found for each in batch.rows()]
        rows = []
        for record, mask, column in zip(records, masks, columns, strict=True):
            outcome = Outcome(record, mask, (options.side, options.side), None, column, dict(seconds))
            named = attempt.Named(f"{record.key}.png", outcome)
            rows.append(attempt._row(output, named, attempt="a", worker="w", folder="x"))
        return statistics.table_parquet(statistics.table_of(rows))

    least("its row with the mask's SHA-256, and the table", table)
    least("thereof: SHA-256", lambda: [hashlib.sha256(mask).hexdigest() for mask in masks])
    archive = least("add it to the tar", lambda: tar((f"{n}.png", mask) for n, mask in enumerate(masks)))
    least("write the tar with fsync", lambda: put(storage, f"runs/{next(round_)}/masks.tar", archive))
    print(f"\nFiles: {root}")


if __name__ == "__main__":
    main()
