"""A fine-tuning that is killed behind a step, as the kernel kills; `python finetuning.py JOB STEP`."""

import os
import signal
import sys

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.finetune import finetune


def main() -> None:
    job, last = sys.argv[1], int(sys.argv[2])

    def progress(moment):
        if moment.step.number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune(Job.load(job), progress=progress)


if __name__ == "__main__":
    main()
