"""Faults at their full figures, by hand: `python -m tests.faults --help`. Run it from the root of the repository."""

import argparse
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # the home of the tests, and no threads
from faults import calls, crashes, soak
from faults.figures import disks, drivers, line, on_ray
from faults.nights import CONTAINERS, FORMATS, Kind
from faults.servers import new_bucket, s3_server

ON_S3 = {
    "F3": line.racing_commits,
    "F8": line.throttling,
    "F8-outage": line.outage,
    "F9": line.hanging,
    "F10": line.torn_answers,
    "F11": line.gateway_kills,
    "F12": line.expiring_keys,
    "F13": line.unconditional,
}
ALONE = {
    "F1": on_ray.worker_kills,
    "F2": on_ray.frozen_node,
    "F5": drivers.driver_kills,
    "F7": drivers.two_names,
    "F18": disks.full_disks,
    "F19": drivers.changed_inputs,
    "F21": on_ray.ray_calls,
    "F25": disks.power_cuts,
    "F25-strace": disks.synced,
    "clock": drivers.wrong_clocks,
}
ACTS = {"die": calls.die, "freeze": calls.freeze, "cut-power": calls.cut_power}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    sweep = what.add_parser("crashes", help="death or a pause at every call of storage")
    sweep.add_argument("--format", choices=FORMATS, default="png")
    sweep.add_argument("--container", choices=CONTAINERS, default="folder")
    sweep.add_argument("--act", choices=ACTS, default="die")
    sweep.add_argument("--within", action="store_true", help="calls of the operating system instead of storage")
    sweep.add_argument("--changed", action="store_true", help="another job, or the next night's images, in between")
    sweep.add_argument("--s3", action="store_true", help="in a bucket")
    sweep.add_argument("--every", type=int, default=1)
    sweep.add_argument("--first", type=int, default=1)
    soaking = what.add_parser("soak", help="jobs and faults drawn by seeds")
    soaking.add_argument("--seeds", type=int, default=50)
    soaking.add_argument("--first", type=int, default=0)
    soaking.add_argument("--only", type=int, help="replay one seed")
    soaking.add_argument("--storage", choices=("folder", "bucket"), help="only the seeds of this storage")
    for name in (*ON_S3, *ALONE):
        figure = what.add_parser(name)
        figure.add_argument("--json", help="file to which the figure is appended")
    given = parser.parse_args()
    try:
        return {"crashes": _crashes, "soak": _soak}.get(given.what, _figure)(given)
    finally:
        shutil.rmtree(conftest._HOME, ignore_errors=True)


def _crashes(given) -> int:
    kind = Kind(given.format, given.container)
    sweep = crashes.Sweep(
        kind, ACTS[given.act], within=given.within, changed=given.changed, every=given.every, first=given.first
    )
    with s3_server() if given.s3 else nullcontext():
        tally = crashes.swept(sweep, new_bucket() if given.s3 else None, _said)
    print(f"{kind}{' in a bucket' if given.s3 else ''}, {given.act}: {tally}")
    return bool(tally.problems)


def _said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _soak(given) -> int:
    seeds = [given.only] if given.only is not None else range(given.first, given.first + given.seeds)
    seeds = [seed for seed in seeds if given.storage != ("folder" if soak.in_bucket(seed) else "bucket")]
    failed, injected, began = [], 0, time.monotonic()
    with s3_server() if any(map(soak.in_bucket, seeds)) else nullcontext():
        for seed in seeds:
            found = soak.soaked(seed, new_bucket() if soak.in_bucket(seed) else None)
            injected += found.injected
            print(
                f"seed {seed}: {found.injected} faults, {len(found.problems)} problems ({found.story[0]})", flush=True
            )
            if found.problems:
                failed.append(seed)
                print("\n".join([*found.story, *found.problems]))
                print(f"replay: python -m tests.faults soak --only {seed}", flush=True)
    print(
        f"{len(seeds)} seeds, {injected} faults, {len(failed)} seeds failed {failed}, {time.monotonic() - began:.0f} s"
    )
    return bool(failed)


def _figure(given) -> int:
    with s3_server() if given.what in ON_S3 else nullcontext() as server:
        found = ON_S3[given.what](server) if server else ALONE[given.what]()
    for figure in found if isinstance(found, list) else [found]:
        print(figure)
        if given.json:
            figure.write(given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
