"""A night that stops where its test wants it: once it holds the output and has a plan, before its first shard.

`python night.py JOB_AS_JSON STALE_SECONDS`: prints `holds` there and goes on when a line comes; ends with the command
line's exit code. `STALE_SECONDS` is the time without a renewal after which it takes another's output over.
"""

import functools
import json
import sys

import maskfleet.jobs.ledger.lock
import maskfleet.jobs.run.execute
from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.lock import Lock


def main():
    maskfleet.jobs.ledger.lock.Lock = functools.partial(Lock, renew=0.1, stale=float(sys.argv[2]))
    told = False

    def progress(*_):
        nonlocal told
        if not told:
            told = True
            print("holds", flush=True)
            sys.stdin.readline()

    try:
        return maskfleet.jobs.run.execute.run(Job.of(json.loads(sys.argv[1])), on_progress=progress).exit_code
    except MaskfleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
