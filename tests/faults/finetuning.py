"""A fine-tuning that kills itself with SIGKILL after a given step: `python finetuning.py JOB STEP`."""

import os
import signal
import sys

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.finetune import finetune


def main() -> None:
    job, last = sys.argv[1], int(sys.argv[2])

    def on_step(report):
        if report.step.number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune(Job.load(job), on_step=on_step)


if __name__ == "__main__":
    main()
