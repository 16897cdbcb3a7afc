"""Time and memory of finishing a run: statistics, catalog and run record of shards that are all committed.

    python tests/benchmarks/finishing.py --images 10000 100000 1000000
    python tests/benchmarks/finishing.py --images 1000 --old 10000000

Shards have 512 rows with distinct keys and hashes, as after a run over tar files. Masks are missing; finishing does not
read them. Each run is finished in a process of its own with everything a driver imports. Printed are the duration, the
memory before and at the peak (MiB), and the bytes written to the catalog. With --old, the catalog already holds that
many other images.
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
    """Return a line of /proc/self/status in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) // 1024


def committed(output: str, images: int) -> None:
    """Create a run with the given number of images and all shards committed."""
    import pyarrow as pa

    from maskfleet.jobs.inputs.record import LISTED
    from maskfleet.jobs.job.schema import Job
    from maskfleet.jobs.ledger import statistics
    from maskfleet.jobs.ledger.commit import Commit, Commits, put
    from maskfleet.jobs.ledger.manifest import Manifest
    from maskfleet.jobs.ledger.shard_files import STATISTICS
    from maskfleet.jobs.planning.live_plan import LivePlan
    from maskfleet.jobs.planning.plan import Planning, first_part
    from maskfleet.jobs.storage.schemes import open_storage

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
    live = LivePlan(storage, RUN, planning=planning, first=first_part(parts), parts=parts)
    commits = Commits(storage, RUN, "worker")
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
        objects = {
            STATISTICS: put(storage, f"{folder}/{STATISTICS}", statistics.table_parquet(statistics.table_of(rows)))
        }
        commits.commit(Commit(shard.id, f"{shard.id:0>16}", objects, len(rows), 0))


def aged(output: str, old: int) -> None:
    """Create a catalog with the given number of images from earlier runs."""
    import pyarrow as pa

    from maskfleet.jobs.ledger import catalog
    from maskfleet.jobs.storage.schemes import open_storage

    def outcomes():
        for start in range(0, old, 8192):
            count = min(8192, old - start)
            same = {"fingerprint": "f" * 64, "status": "ok", "run_id": "20260101T000000.000-aaaaaa", "shard": "00000"}
            columns = {name: pa.repeat(value, count) for name, value in (same | {"input": "/in"}).items()}
            columns["key"] = pa.array([f"old/{number:08}.jpg" for number in range(start, start + count)])
            columns["etag"] = pa.array([f"{number:032x}" for number in range(start, start + count)])
            nulls = pa.nulls(count, pa.string())
            yield pa.table([columns.get(name, nulls) for name in catalog.SCHEMA.names], schema=catalog.SCHEMA)

    catalog.add(open_storage(output), "20260101T000000.000-aaaaaa", outcomes())


def catalog_bytes(output: str) -> int:
    return sum(path.stat().st_size for path in Path(output, "catalog").rglob("*.parquet"))


def finished(output: str) -> None:
    import maskfleet.cluster.driver  # noqa: F401  (part of a driver's memory)
    from maskfleet.jobs.ledger.lock import locked
    from maskfleet.jobs.run.begin import Run
    from maskfleet.jobs.run.finish import finish
    from maskfleet.jobs.run.progress import Progress
    from maskfleet.jobs.storage.schemes import open_storage

    with locked(open_storage(output), "fail") as lock:
        run = Run.attach(output, RUN, generation=lock.fence.generation)
        before, known, began = memory("VmHWM"), catalog_bytes(output), time.perf_counter()
        images = finish(run, Progress()).images
    told = {
        "images": images, "seconds": round(time.perf_counter() - began, 2), "before": before, "most": memory("VmHWM"),
        "catalog_bytes_before": known, "catalog_bytes_written": catalog_bytes(output) - known,
    }  # fmt: skip
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--old", type=int, default=0, help="images in the catalog from earlier runs")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        finished(options.step[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        for images in options.images:
            output = f"{scratch}/{images}"
            if options.old:
                aged(output, options.old)
            committed(output, images)
            command = [sys.executable, __file__, "--step", "finished", output]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
