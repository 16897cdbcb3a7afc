"""The training loop: batches in, steps out, the network changed in place. Knows no file, no folder, no logging."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unet.losses import segmentation_loss
from unet.precision import resolved
from unet.segmenter import keep_freed_memory


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: From 1.
        loss: Of its batch.
        learning_rate: That it was made with.
        seconds: That it took.
    """

    number: int
    loss: float
    learning_rate: float
    seconds: float


def finetune(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    device: str = "cpu",
) -> Iterator[Step]:
    """Train a network, one batch per step: AdamW, linear warm-up, then cosine to zero; gradients clipped to norm 1.

    Args:
        model: Trained in place; moved to the device.
        batches: Pixels (B, C, H, W), uint8, and classes (B, H, W), uint8.
        steps: The length of the schedule; the loop ends there or with the batches.
        learning_rate: At its peak.
        weight_decay: AdamW's.
        warmup: Share of the steps that the rate rises over.
        device: Where; bf16 autocast where the device has instructions for it.

    Yields:
        Each step, after it was made, so that the caller decides what to print, keep or end.
    """
    where = torch.device(device)
    if where.type == "cpu":
        keep_freed_memory()
    model.to(where).to(memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, warmup))
    bf16 = resolved("auto", where) == "bf16"
    for number, (pixels_BCHW, target_BHW) in enumerate(batches, start=1):
        started = time.perf_counter()
        x_BCHW = pixels_BCHW.to(where, torch.float32, memory_format=torch.channels_last) / 255
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            logits_BKHW = model(x_BCHW)
        loss = segmentation_loss(logits_BKHW, target_BHW.to(where))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate = float(schedule.get_last_lr()[0])
        schedule.step()
        yield Step(number, loss.item(), rate, time.perf_counter() - started)
        if number >= steps:
            return


def _rate(progress: float, warmup: float) -> float:
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
