"""Two ranks training together, each in a process of its own and with a result file."""

import multiprocessing
import os
import pickle
import tempfile

import torch
import torch.distributed as dist

from maskfleet.unet.model import UNet
from maskfleet.unet.training import trainer
from maskfleet.unet.training.process_group import Peers
from maskfleet.unet.training.trainer import Training

STEPS = 3


def batch(number, size=4):
    generator = torch.Generator().manual_seed(number)
    target = (torch.rand(size, 1, 8, 8, generator=generator) > 0.6).float()
    target = torch.nn.functional.interpolate(target, (32, 32)).to(torch.uint8)
    light = target * 150 + torch.arange(size)[:, None, None, None].to(torch.uint8) * 20  # all images differ
    return light.expand(-1, 3, -1, -1).contiguous(), target[:, 0]


def trained(*, before=lambda this, number: None, **more):
    """Make some steps on this rank's share of each batch; return their losses and the final state."""
    trainer.native = lambda device: ("fp32",)
    torch.manual_seed(0)
    peers = Peers()
    this = Training(UNet(3, 2, width=2), steps=6, peers=peers, **more)
    losses = []
    for number in range(STEPS):
        before(this, number)
        losses.append(this.step(*(part[peers.share] for part in batch(number))).loss)
    return losses, this.state()


def short_of_memory(this, number, *, rank, at=1, saved=True):
    """From one step on, raise a GPU's out-of-memory error in the middle of the forward pass of one rank."""
    if number != at or dist.get_rank() != rank:
        return
    up = this.model.up3.forward

    def forward(*inputs):
        if not (saved and this.model.checkpointing):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return up(*inputs)

    this.model.up3.forward = forward


def _rank(rank, folder, function):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    try:
        result = function()
    except Exception as error:
        result = error
    with open(f"{folder}/{rank}", "wb") as file:
        pickle.dump(result, file)
    dist.barrier()
    dist.destroy_process_group()


def on_two(function):
    """Return the result of a function, or its exception, on each of two ranks."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [spawn.Process(target=_rank, args=(rank, folder, function)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = []
        for rank in range(2):
            with open(f"{folder}/{rank}", "rb") as file:
                results.append(pickle.load(file))
        return results
