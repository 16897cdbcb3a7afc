"""A million small images in a thousand tars or Parquet files: does an image cost more than in a run of ten thousand?

`python tests/benchmarks/million.py --images 10000 100000 1000000 --forms tar parquet --folder FOLDER`

2,000 different JPEGs of 64² under other names, 1,000 to a file; local Ray, the identity device, masks as tars, each run in a
process of its own. Printed for each: images per second and worker while workers served, and of the whole command; the cost
of an image against the smallest run's; and the driver's memory when a tenth, half and all was done. Then `verify`.
A million needs 6 GB of disk for each form.

With `--kill-at 0.9` the driver of the largest runs kills itself by SIGKILL when so much is done, and the same command goes on:
printed are then the seconds from the start of that command, imports included, until a new shard was on record, and how many
shards that were finished before were done again.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sources import drawn, table

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.tar import tar
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.tools.bench import identity_pipeline, steady_rate

EACH = 1000
DIFFERENT = 2000
MARKS = (0.1, 0.5, 0.9, 1.0)


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


def done(place: str, output: str, kill_at: float, started: float) -> None:
    """One run, told as JSON; in a process of its own, whose memory is the driver's."""
    from maskfleet.cluster.driver import Fleet
    from maskfleet.jobs.run.execute import run
    from maskfleet.unet import weights
    from maskfleet.unet.model import UNet

    path = Path(output).with_suffix(".safetensors")
    if not path.exists():  # what a run goes on with must be the same
        path.write_bytes(weights.save(UNet(3, 2, width=4)))
    memory, resumed = {}, {}

    def on_progress(this, progress):
        if progress.done > progress.before:
            resumed.setdefault("first_shard", time.time() - started)
            resumed.setdefault("before", progress.before)
        if this.live is None or this.live.planning.complete:
            for mark in MARKS:
                if progress.done >= mark * this.images:
                    memory.setdefault(mark, resident())
            if kill_at and progress.done >= kill_at * this.images:
                rate = progress.measured / progress.speed(loose=False).worker_seconds
                print(json.dumps({"memory": memory, "steady": rate, "peak": status("VmHWM")}), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    began = time.perf_counter()
    job = Job.of({"input": place, "output": output, "weights": str(path)}, ["masks.format=tar"])
    summary = run(job, Fleet(open_pipeline=identity_pipeline), on_progress=on_progress)
    seconds = time.perf_counter() - began
    told = {
        "images": summary.ok, "seconds": seconds, "steady": steady_rate(summary),
        "memory": memory, "peak": status("VmHWM"), "limit": summary.speed.limit, **resumed,
    }  # fmt: skip
    print(json.dumps(told))


def status(name: str) -> int:
    """A line of the kernel's about this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) // 1024


def resident() -> int:
    return status("VmRSS")


def told_by(place: Path, output: str, *, kill_at: float = 0.0) -> dict:
    """What a run in a process of its own tells, to its end or until it kills itself."""
    command = [sys.executable, __file__, "--run", str(place), output, str(kill_at), str(time.time())]
    run = subprocess.run(command, check=not kill_at, stdout=subprocess.PIPE)
    assert run.returncode == (-signal.SIGKILL if kill_at else 0), run
    return json.loads(run.stdout.splitlines()[-1])


def commits(output: str) -> dict[str, bytes]:
    """What each finished shard's record says: another attempt would be another record."""
    return {path.name: path.read_bytes() for path in Path(output).glob("runs/*/commits/*.json")}


def measured(place: Path, scratch: str, count: int, kill_at: float) -> dict:
    output = f"{scratch}/out-{place.name}"
    killed, before = {}, {}
    if kill_at:
        killed, before = told_by(place, output, kill_at=kill_at), commits(output)
        time.sleep(5)  # its Ray goes with it
    told = told_by(place, output)
    assert told["images"] == count, told
    if kill_at:
        attempts = [len(list(Path(output).glob(f"runs/*/shards/{name[:-5]}/*"))) for name in before]
        again = sum(commits(output)[name] != record for name, record in before.items()) + sum(attempts) - len(attempts)
        told |= {"finished": len(before), "again": again, "killed": killed, "steady": killed["steady"]}
    began = time.perf_counter()
    verify = [
        sys.executable,
        "-c",
        f"from maskfleet.jobs.outputs.verify import verify; assert not verify({output!r}).problems",
    ]
    subprocess.run(verify, check=True)
    told["verify"] = time.perf_counter() - began
    shutil.rmtree(output)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--forms", nargs="+", choices=("tar", "parquet"), default=("tar", "parquet"))
    parser.add_argument("--folder", type=Path, help="where the images are made, and stay")
    parser.add_argument("--kill-at", type=float, default=0.0, help="share of the largest runs that is done then")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        done(*options.run[:2], *map(float, options.run[2:]))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for form in options.forms:
            least = 0.0
            for count in options.images:
                place = prepare(options.folder or Path(scratch), count, form)
                told = measured(place, scratch, count, options.kill_at if count == max(options.images) else 0.0)
                cost = 1 / told["steady"]
                least = least or cost
                print(
                    f"{form:8}{count:9} images: {told['steady']:7.1f} images/s and worker, whole command "
                    f"{count / told['seconds']:7.1f} images/s, cost of an image {cost / least:.2f} of the first; driver "
                    f"{told['memory']} MiB, peak {told['peak']}; verified in {told['verify']:.0f} s; {told['limit']}",
                    flush=True,
                )
                if "again" in told:
                    print(
                        f"   killed with {told['finished']} shards finished, at {told['killed']['memory']} MiB, at most "
                        f"{told['killed']['peak']}; {told['first_shard']:.1f} s until the first new shard; "
                        f"{told['again']} finished shards again",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
