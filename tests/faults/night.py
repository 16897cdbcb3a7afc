"""A nightly run that pauses once it holds the output and has a plan, before its first shard.

`python night.py JOB_AS_JSON STALE_SECONDS` prints `holds` there, continues on a line of input, and exits with the exit
code of the command line. STALE_SECONDS is the age at which it takes over the lock of another run.
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
    paused = False

    def on_progress(*_):
        nonlocal paused
        if not paused:
            paused = True
            print("holds", flush=True)
            sys.stdin.readline()

    try:
        return maskfleet.jobs.run.execute.run(Job.of(json.loads(sys.argv[1])), on_progress=on_progress).exit_code
    except MaskfleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
