"""A fine-tuning that is killed behind a step, as the kernel kills; `python finetuning.py JOB [STEP]`."""

import os
import signal
import sys

from jobs.finetune import finetune
from jobs.job import Job


def main() -> None:
    job, at = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None

    def progress(moment):
        if moment.step.number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    print(finetune(Job.load(job), progress=progress).weights)


if __name__ == "__main__":
    main()
