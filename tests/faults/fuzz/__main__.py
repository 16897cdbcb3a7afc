"""Fuzz the decoders: `python -m tests.faults.fuzz --files 2000`. Ends with 1 if a file broke a promise."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from faults.fuzz.decoding import LIMITS, in_rows, keep, whole
from faults.fuzz.files import SOUND, fuzzed


def main() -> int:
    """Fuzz, print what became of the files, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="files of each format")
    parser.add_argument(
        "--rows", type=int, default=100, help="of these, files of each format that are also read in rows"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", help="folder for files that killed or held up their process")
    options = parser.parse_args()
    print(f"seed {options.seed}; {len(SOUND)} formats")
    broken = 0
    for way, run, count in (("whole", whole, options.files), ("in rows", in_rows, options.rows)):
        files = list(fuzzed(count * len(SOUND), options.seed))
        began = time.monotonic()
        outcome = run(files)
        classes = ", ".join(f"{count} {name}" for name, count in outcome.classes.most_common())
        print(f"{way}: {len(files)} files in {time.monotonic() - began:.0f} s: {classes}")
        print(
            f"  slowest {outcome.slowest:.2f} s (limit {LIMITS.seconds:g} s), {outcome.processes} processes replaced, peak "
            f"{outcome.peak / 2**20:.0f} MiB (limit {LIMITS.memory / 2**20:.0f} MiB beyond the start), parent grew by "
            f"{outcome.grown / 2**20:.0f} MiB"
        )
        broken += len(files) != outcome.classes.total() or bool(outcome.bad)
        if options.keep:
            keep(outcome, options.keep)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
