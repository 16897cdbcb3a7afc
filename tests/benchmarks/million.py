"""A million small images in a thousand tars or Parquet files: does an image cost more than in a run of ten thousand?

`python tests/benchmarks/million.py --images 10000 100000 1000000 --forms tar parquet --folder FOLDER`

2,000 different JPEGs of 64² under other names, 1,000 to a file; local Ray, the identity device, masks as tars, each run in a
process of its own. Printed for each: images per second and worker while workers served, and of the whole command; the cost
of an image against the smallest run's; and the driver's memory when a tenth, half and all was done. Then `verify`.
A million needs 6 GB of disk for each form.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sources import drawn, table

from jobs.bench import steady, with_identity
from jobs.job import Job
from jobs.masks.encode import tar
from jobs.storage import LocalStorage

EACH = 1000
DIFFERENT = 2000
MARKS = (0.1, 0.5, 1.0)


def prepare(folder: Path, count: int, form: str) -> Path:
    place = folder / f"{form}-{count}"
    if place.exists():
        return place
    making = LocalStorage(f"{place}-making")
    images = [data for _, data in drawn(DIFFERENT, 64)]
    write = tar if form == "tar" else table
    for number in range(-(-count // EACH)):
        names = range(number * EACH, min((number + 1) * EACH, count))
        data = write([(f"{name:07}.jpg", images[name % DIFFERENT]) for name in names])
        making.export(f"{number:04}.{form}", data)
    os.rename(making.root, place)
    return place


def done(place: str, output: str) -> None:
    """One run, told as JSON; in a process of its own, whose memory is the driver's."""
    from cluster.driver import run
    from unet import weights
    from unet.model import UNet

    path = Path(output).with_suffix(".safetensors")
    path.write_bytes(weights.save(UNet(3, 2, width=4)))
    memory = {}

    def progress(this, tally):
        if this.live is None or this.live.planning.whole:
            for mark in MARKS:
                if tally.done >= mark * this.images:
                    memory.setdefault(mark, resident())

    began = time.perf_counter()
    job = Job.of({"input": place, "output": output, "weights": str(path)}, ["masks.format=tar"])
    record = run(job, progress=progress, open_pipeline=with_identity).record
    seconds = time.perf_counter() - began
    told = {
        "images": record["ok"], "seconds": seconds, "steady": steady(record),
        "memory": memory, "peak": int(status("VmHWM")), "limit": record["limit"],
    }  # fmt: skip
    print(json.dumps(told))


def status(name: str) -> int:
    """A line of the kernel's about this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) // 1024


def resident() -> int:
    return status("VmRSS")


def measured(place: Path, scratch: str, count: int) -> dict:
    output = f"{scratch}/out-{place.name}"
    command = [sys.executable, __file__, "--run", str(place), output]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    assert told["images"] == count, told
    began = time.perf_counter()
    verify = [sys.executable, "-c", f"from jobs.verify import verify; assert not verify({output!r}).problems"]
    subprocess.run(verify, check=True)
    told["verify"] = time.perf_counter() - began
    shutil.rmtree(output)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--forms", nargs="+", choices=("tar", "parquet"), default=("tar", "parquet"))
    parser.add_argument("--folder", type=Path, help="where the images are made, and stay")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        done(*options.run)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for form in options.forms:
            least = 0.0
            for count in options.images:
                place = prepare(options.folder or Path(scratch), count, form)
                told = measured(place, scratch, count)
                cost = 1 / told["steady"]
                least = least or cost
                print(
                    f"{form:8}{count:9} images: {told['steady']:7.1f} images/s and worker, whole command "
                    f"{count / told['seconds']:7.1f} images/s, cost of an image {cost / least:.2f} of the first; driver "
                    f"{told['memory']} MiB, peak {told['peak']}; verified in {told['verify']:.0f} s; {told['limit']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
