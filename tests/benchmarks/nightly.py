"""Runs every minute under a real cron, with new images arriving and runs overlapping on purpose.

    python tests/benchmarks/nightly.py --crond "busybox crond" --minutes 10

The crontab holds the line of `maskfleet schedule --for cron` twice, so two runs start every minute, and a line without
its lock, as on a second machine. One run gets enough images to last longer than a minute. Prints the outcome of every
run and fails unless every image has exactly one row and the last run succeeds.
"""

import argparse
import collections
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset
from PIL import Image

MASKFLEET = Path(sys.executable).parent / "maskfleet"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crond", required=True, help="crond command accepting -f -c FOLDER")
    parser.add_argument("--minutes", type=int, default=10)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nightly-"))
    (folder / "images").mkdir()
    job = folder / "job.toml"
    job.write_text(
        f'name="nightly"\ninput="{folder}/images"\noutput="{folder}/out"\nweights="nuclei"\n[run]\nshard_size=8\n'
        '[schedule]\ncron="* * * * *"\n'
    )
    subprocess.run([MASKFLEET, "schedule", job, "--for", "cron", "--output", folder / "made"], check=True)
    lines = (folder / "made" / "nightly.crontab").read_text().replace(f"{MASKFLEET} run", f"{MASKFLEET} run --no-ray")
    other = f"sleep 20; {MASKFLEET} run --no-ray {job} >> {folder}/other.log 2>&1; echo exit $? >> {folder}/other.log"
    spool = folder / "spool"
    spool.mkdir()
    # BusyBox crond does not know CRON_TZ, and every minute is the same in all time zones.
    kept = [line for line in lines.splitlines() if not line.startswith(("#", "CRON_TZ"))]
    (spool / "root").write_text("\n".join([*kept, *kept, f"*/2 * * * * {other}", ""]))
    add(folder / "images", 6, 0)
    cron = subprocess.Popen([*shlex.split(given.crond), "-f", "-c", str(spool)])
    try:
        for minute in range(given.minutes):
            add(folder / "images", 300 if minute == 3 else 6, minute + 1)
            time.sleep(60)
        (spool / "root").write_text("")
        time.sleep(90)
    finally:
        cron.terminate()
        cron.wait()
    code = subprocess.run([MASKFLEET, "run", "--no-ray", job], check=False, capture_output=True).returncode
    return report(folder, code)


def add(folder: Path, count: int, minute: int) -> None:
    random = np.random.default_rng(minute)
    for number in range(count):
        path = folder / f"{minute:02}-{number:03}.png"
        part = path.with_suffix(".part")  # renamed when complete
        Image.fromarray(random.integers(0, 256, (256, 256, 3), np.uint8)).save(part, "png")
        part.rename(path)


def report(folder: Path, code: int) -> int:
    images = len(list((folder / "images").glob("*.png")))
    rows = pyarrow.dataset.dataset(folder / "out" / "stats", format="parquet").to_table(columns=["key", "status"])
    times = collections.Counter(rows["key"].to_pylist())
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("out/runs/*/run.json"))]
    log, other = ((folder / name).read_text() for name in ("job.toml.log", "other.log"))
    print(f"images {images}, rows {rows.num_rows}, most rows per image {max(times.values())}")
    print(
        f"failed images {sum(status != 'ok' for status in rows['status'].to_pylist())}, exit code of the last run {code}"
    )
    print(
        f"runs with work {sum(bool(run['images']) for run in runs)}, without {sum(not run['images'] for run in runs)}"
    )
    print(f"runs skipped by the lock of the cron line {log.count('skipped')}")
    print(
        f"runs of the second machine: done {other.count('exit 0')}, refused by the lock of the output {other.count('exit 4')}"
    )
    print(
        f"verify: {subprocess.run([MASKFLEET, 'verify', folder / 'out'], capture_output=True, text=True).stdout.strip()[-60:]}"
    )
    right = images == rows.num_rows == len(times) and code == 0
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
