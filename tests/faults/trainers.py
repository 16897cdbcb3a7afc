"""Training loops with faults, used by `cluster.train.on_ray` instead of the real one."""

import os
import signal
from pathlib import Path

import torch.distributed as dist

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.loop import train


def killed_once(plan, checkpoints, *, stopped, **more):
    """Train; rank 1 kills itself with SIGKILL before its sixth step, the first time only."""
    mark = Path(plan.job.output, "killed")
    asked = iter(range(10**9))

    def stop():
        if next(asked) == 5 and dist.get_rank() == 1 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return stopped()

    return train(plan, checkpoints, stopped=stop, **more)


def wrong(plan, checkpoints, **more):
    """Raise an error no restart can cure."""
    raise JobError("the pairs are wrong; correct them")
