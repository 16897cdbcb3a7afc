"""Savings and costs of activation checkpointing, by granularity; prints the table in README.md.

"Kept" is the memory saved by the forward pass for the backward pass (saved-tensor hooks). "Peak" is the largest memory
alive at once during a step, with recomputation and gradients, without parameters (every storage created by an operator,
until it is freed). Seconds are CPU seconds of all threads, with the granularities in turn, so that other load on the
machine matters little.
"""

import argparse
import time
import weakref
from functools import partial
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskfleet.unet.checkpointing import checkpointed
from maskfleet.unet.model import UNet


class Peak(TorchDispatchMode):
    """Bytes of storages created while it is active, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakKeyDictionary()

    def _freed(self, size):
        self.now -= size

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen[storage] = True
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.now)
        return made


def measured(granularity: str, batch: int, side: int, width: int):
    """Return bytes kept, peak bytes, and a step for timing."""

    def fresh():
        torch.manual_seed(0)
        model = UNet(3, 2, width=width).train()
        if granularity == "on":
            model.use_checkpointing()
        elif granularity == "blocks":
            model._checkpointed = partial(_in_blocks, model)
            model.use_checkpointing()
        return model

    model, image = fresh(), torch.rand(batch, 3, side, side)
    kept: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(image).square().mean()
    del loss
    with Peak() as peak:
        model(image).square().mean().backward()
    return sum(kept.values()), peak.most, partial(_step, model, image)


def _step(model, image) -> float:
    started = time.process_time()
    model(image).square().mean().backward()
    return time.process_time() - started


def _in_blocks(model, x):
    x1 = checkpointed(model.inc, x, owner=model.inc)
    x2 = checkpointed(model.down1, x1, owner=model.down1)
    x3 = checkpointed(model.down2, x2, owner=model.down2)
    x4 = checkpointed(model.down3, x3, owner=model.down3)
    x = checkpointed(model.down4, x4, owner=model.down4)
    for up, skip in ((model.up1, x4), (model.up2, x3), (model.up3, x2), (model.up4, x1)):
        x = checkpointed(up, x, skip, owner=up)
    return model.outc(x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--shapes", default="1x256,4x256,4x512")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| batch × side | granularity | kept, MiB | of off | peak, MiB | of off | step, s | of off |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shapes.split(","):
        batch, side = map(int, shape.split("x"))
        forms = {name: measured(name, batch, side, options.width) for name in ("off", "blocks", "on")}
        times = {name: [] for name in forms}
        for _ in range(options.pairs):
            for name, (_, _, step) in forms.items():
                times[name].append(step())
        for name, (kept, peak, _) in forms.items():
            base = forms["off"]
            seconds, least = median(times[name]), median(times["off"])
            print(
                f"| {batch} × {side}² | {name} | {kept / 2**20:.0f} | {kept / base[0]:.2f} | {peak / 2**20:.0f} "
                f"| {peak / base[1]:.2f} | {seconds:.2f} | {seconds / least:.2f} |"
            )


if __name__ == "__main__":
    main()
