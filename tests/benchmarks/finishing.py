"""What the end of a run takes: statistics, catalog and record of shards that are all committed.

`python tests/benchmarks/finishing.py --images 10000 100000 1000000`: shards of 512 rows whose keys and hashes all differ, as
a run of tars leaves them, but for the masks, which the end of a run does not read. The end itself is in a process of its own
with all that a driver imports; printed are its seconds and its memory before and at most. `--old 10000000` finishes each
after a night of so many other images, in place of an empty output: what the catalog wrote is printed then too.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARD = 512
RUN = "20260102T000000.000-aaaaaa"


def memory(name: str) -> int:
    """A line of the kernel's about this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) // 1024


def committed(output: str, images: int) -> None:
    """A run of so many images, all of whose shards are committed."""
    import pyarrow as pa

    from jobs import statistics
    from jobs.attempt import STATS
    from jobs.commit import Commit, Commits, put
    from jobs.inputs.sources import LISTED
    from jobs.job import Job
    from jobs.planning.plan import LivePlan, Planning, first_of
    from jobs.storage import open_storage

    storage = open_storage(output)
    job = Job.of({"input": "/in", "output": output, "weights": "nuclei", "masks": {"format": "tar"}})
    record = {"run_id": RUN, "fingerprint": "f" * 64, "commit_mode": "worker", "job": job.model_dump(mode="json")}
    storage.write(f"runs/{RUN}/job.json", json.dumps(record).encode())

    def listing():
        for start in range(0, images, 8192):
            numbers = range(start, min(start + 8192, images))
            keys = [f"{number // 1000:05}.tar/{number:08}.jpg" for number in numbers]
            urls = [
                f"/in/{key[:9]}#offset={number % 1000 * 2560}&size=1900"
                for key, number in zip(keys, numbers, strict=True)
            ]
            columns = [keys, urls, [1900] * len(keys), [f"{n:032x}" for n in numbers], [None] * len(keys)]
            yield pa.Table.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, LISTED, strict=True)], schema=LISTED
            )

    planning = Planning(listing(), in_order=True, shard_size=SHARD)
    parts = iter(planning)
    live = LivePlan(storage, RUN, planning, first_of(parts), parts)
    commits = Commits(storage, RUN, "worker")
    from jobs.planning.manifest import Manifest

    for shard in live.shards():
        if shard is None:
            time.sleep(0.02)
            continue
        folder = f"runs/{RUN}/shards/{shard.id}/{shard.id:0>16}"
        rows = [
            {
                **planned._asdict(), "run_id": RUN, "fingerprint": "f" * 64, "status": "ok", "width": 64, "height": 64,
                "class_pixels": [4000, 96], "class_fraction": [0.977, 0.023], "class_bbox": [[0, 0, 64, 64], None],
                "mean_confidence": 0.9, "mean_entropy": 0.2, "input_mean": [0.4] * 3, "input_std": [0.1] * 3,
                "mask_object": f"{folder}/masks.tar", "mask_member": mask, "mask_bytes": 90,
                "mask_sha256": hashlib.sha256(mask.encode()).hexdigest(), "attempt": f"{shard.id:0>16}",
                "worker": "host:1234", "fetch_seconds": 0.001, "decode_seconds": 0.001, "encode_seconds": 0.001,
            }
            for planned, mask in Manifest.stored(storage, RUN).records(shard)
        ]  # fmt: skip
        objects = {STATS: put(storage, f"{folder}/{STATS}", statistics.parquet(rows))}
        commits.commit(Commit(shard.id, f"{shard.id:0>16}", objects, len(rows), 0))


def finished(output: str) -> None:
    import cluster.driver  # noqa: F401  (for its memory)
    from jobs.lock import locked
    from jobs.run import Run, finish
    from jobs.storage import open_storage
    from jobs.tally import Tally

    with locked(open_storage(output), "fail") as lock:
        this = Run.attach(output, RUN, generation=lock.fence.generation)
        before, began = memory("VmHWM"), time.perf_counter()
        images = finish(this, Tally()).images
    seconds = time.perf_counter() - began
    print(json.dumps({"images": images, "seconds": seconds, "before": before, "most": memory("VmHWM")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", help="where outputs are made, and stay")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        finished(options.step[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        for images in options.images:
            output = f"{options.folder or scratch}/{images}"
            if not Path(output).exists():
                committed(output, images)
            command = [sys.executable, __file__, "--step", "finished", output]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
