"""The command line with one phase that hangs: `python hanging.py PHASE COMMAND …`. The phase says "hanging" on stderr."""

import sys
import threading
import time
from unittest import mock

from maskfleet.cluster.cli.main import main

PHASES = {
    "listing": "jobs.inputs.sources.Source.tables",
    "listing in a thread": "jobs.inputs.sources.Source._images",
    "planning behind the first shards": "jobs.planning.live_plan.LivePlan._store_rest",
    "measuring": "jobs.run.open_pipeline.tuning.tune",
    "opening the pipeline": "jobs.run.open_pipeline.segmenter_of",
    "finishing": "jobs.run.finish._written",
    "finishing in threads": "jobs.run.recovery.derived.rows_of",
}
"""What each phase replaces by a function that hangs."""


def hang(*_, **__):
    where = "main" if threading.current_thread() is threading.main_thread() else "another"
    print(f"hanging in {where} thread", file=sys.stderr, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    phase = sys.argv.pop(1)
    mock.patch(f"maskfleet.{PHASES[phase]}", hang).start()
    main()
