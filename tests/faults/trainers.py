"""The loop of a training with a fault in it; given to `cluster.train.on_ray` in place of the real one."""

import os
import signal
from pathlib import Path

import torch.distributed as dist

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training import loop


def killed_once(plan, checkpoints, *, stopped, **more):
    """Rank 1 kills itself before its sixth step, as the kernel kills, and only the first time."""
    mark = Path(plan.job.output, "killed")
    asked = iter(range(10**9))

    def stop():
        if next(asked) == 5 and dist.get_rank() == 1 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return stopped()

    return loop.train(plan, checkpoints, stopped=stop, **more)


def wrong(plan, checkpoints, **more):
    """Something is wrong that no second try makes right."""
    raise JobError("the pairs are wrong; correct them")
