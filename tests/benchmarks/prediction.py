"""Prediction of `maskfleet plan` compared with the run: `python tests/benchmarks/prediction.py IMAGES --rounds 3`.

Both are the real commands, in turn, without Ray: one worker on this machine. Time is that of the run from its first shard,
including the start of the device, as in the plan. Bytes are those of masks, statistics and commits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from maskfleet.jobs.storage.local import LocalStorage


def maskfleet(*arguments: str) -> dict:
    command = [sys.executable, "-m", "maskfleet", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    settings = [word for value in options.set for word in ("--set", value)]
    print(
        "| images | seconds predicted | taken | ratio | bytes predicted | written | ratio |\n|---|---|---|---|---|---|---|"
    )
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder, "out"))
            job = ["--input", options.images, "--output", output, "--weights", "nuclei", *settings]
            plan = maskfleet("plan", *job)
            run = maskfleet("run", *job, "--no-ray")
            (shards,) = Path(output, "runs").iterdir()
            storage = LocalStorage(output)
            places = ["masks", "stats", *(f"runs/{shards.name}/{part}" for part in ("shards", "commits", "exports"))]
            written = sum(entry.size for place in places for entry in storage.walk(place))
            one = plan["workers"][0]["seconds"]
            print(
                f"| {run['images']} | {one} | {run['seconds']} | {one / run['seconds']:.2f} | {plan['output_bytes']} | "
                f"{written} | {plan['output_bytes'] / written:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
