"""A million small images in a thousand tar or Parquet files: the cost per image compared with ten thousand images.

    python tests/benchmarks/million.py --images 10000 100000 1000000 --forms tar parquet --folder FOLDER

The input has 2,000 distinct JPEGs of 64×64 px under a million names, 1,000 per file. Runs use a local Ray, no network
and masks in tar files, each in a process of its own. Printed for each run: images per second and worker while workers
had shards, the same for the whole command, the cost per image relative to the smallest run, and the driver's memory at
10, 50, 90 and 100 %. Each output is verified. A million images need 6 GB of disk per form.

With `--kill-at 0.9`, the driver of the largest runs kills itself with SIGKILL at that share, and the same command
resumes. Printed then: seconds from the start of that command, imports included, to the first new shard, and the number
of finished shards repeated.
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
    """Run once in this process, whose memory is the driver's; print the result as JSON."""
    from maskfleet.cluster.driver import Fleet
    from maskfleet.jobs.run.execute import run as run_job
    from maskfleet.unet import weights
    from maskfleet.unet.model import UNet

    path = Path(output).with_suffix(".safetensors")
    if not path.exists():  # a resumed run needs the same weights
        path.write_bytes(weights.save(UNet(3, 2, width=4)))
    memory, resumed = {}, {}

    def on_progress(run, progress):
        if progress.done > progress.before:
            resumed.setdefault("first_shard", time.time() - started)
            resumed.setdefault("before", progress.before)
        if run.live is None or run.live.planning.complete:
            for mark in MARKS:
                if progress.done >= mark * run.images:
                    memory.setdefault(mark, resident())
            if kill_at and progress.done >= kill_at * run.images:
                rate = progress.measured / progress.speed(loose=False).worker_seconds
                print(json.dumps({"memory": memory, "steady": rate, "peak": status("VmHWM")}), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    began = time.perf_counter()
    job = Job.of({"input": place, "output": output, "weights": str(path)}, ["masks.format=tar"])
    summary = run_job(job, Fleet(open_pipeline=identity_pipeline), on_progress=on_progress)
    seconds = time.perf_counter() - began
    told = {
        "images": summary.ok, "seconds": seconds, "steady": steady_rate(summary),
        "memory": memory, "peak": status("VmHWM"), "limit": summary.speed.limit, **resumed,
    }  # fmt: skip
    print(json.dumps(told))


def status(name: str) -> int:
    """Return a line of /proc/self/status in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) // 1024


def resident() -> int:
    return status("VmRSS")


def told_by(place: Path, output: str, *, kill_at: float = 0.0) -> dict:
    """Run in a process of its own, to the end or until it kills itself; return its printed result."""
    command = [sys.executable, __file__, "--run", str(place), output, str(kill_at), str(time.time())]
    run = subprocess.run(command, check=not kill_at, stdout=subprocess.PIPE)
    assert run.returncode == (-signal.SIGKILL if kill_at else 0), run
    return json.loads(run.stdout.splitlines()[-1])


def commits(output: str) -> dict[str, bytes]:
    """Return the commit record of each finished shard. Another attempt would leave another record."""
    return {path.name: path.read_bytes() for path in Path(output).glob("runs/*/commits/*.json")}


def measured(place: Path, scratch: str, count: int, kill_at: float) -> dict:
    output = f"{scratch}/out-{place.name}"
    killed, before = {}, {}
    if kill_at:
        killed, before = told_by(place, output, kill_at=kill_at), commits(output)
        time.sleep(5)  # its Ray ends with it
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
    parser.add_argument("--folder", type=Path, help="folder for the images; they are kept")
    parser.add_argument(
        "--kill-at", type=float, default=0.0, help="share of the largest runs after which the driver is killed"
    )
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
                    f"{count / told['seconds']:7.1f} images/s, cost per image {cost / least:.2f} × the first run's; driver "
                    f"{told['memory']} MiB, peak {told['peak']} MiB; verified in {told['verify']:.0f} s; {told['limit']}",
                    flush=True,
                )
                if "again" in told:
                    print(
                        f"   killed after {told['finished']} shards, at {told['killed']['memory']} MiB, peak "
                        f"{told['killed']['peak']} MiB; first new shard after {told['first_shard']:.1f} s; "
                        f"finished shards repeated: {told['again']}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
