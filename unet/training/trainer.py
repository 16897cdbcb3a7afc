"""Training: an object with all training state, advanced one optimizer step at a time. Knows no file and no logging.

A step depends on the state and its batch alone: nothing in a U-Net is random, and the caller draws batches by their
number. So a restored state continues exactly, bit for bit on one machine's CPU.
"""

import copy
import json
import math
import resource
import time
from dataclasses import dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from maskfleet.unet.memory import keep_freed_memory, ran_out
from maskfleet.unet.model import UNet
from maskfleet.unet.precision import DTYPES, device_named, native
from maskfleet.unet.training.losses import pytorch_unet_loss, segmentation_loss
from maskfleet.unet.training.process_group import PeerFailed, Peers
from maskfleet.unet.training.synced_batchnorm import synchronize

Recipe = Literal["default", "pytorch-unet"]
Checkpointing = Literal["off", "on", "auto"]

AVERAGE = 0.995
"""Decay of the running mean of the weights per step, in the recipe "default". That mean is the result."""

WARMUP = 0.05
"""Share of the steps with a rising learning rate, in the recipe "default"."""

LEARNING_RATES: dict[Recipe, float] = {"default": 3e-4, "pytorch-unet": 1e-5}
"""Peak learning rates of the recipes, for a pretrained network."""

_CLIP = 1.0
_NOT_TENSORS = "state"


class NotFinite(ArithmeticError):
    """The loss or its gradient is not finite; the step was not made."""


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: Number of the step, from 1.
        loss: Loss of the batch.
        learning_rate: Learning rate of the step.
        seconds: Duration of the step.
        memory: Peak memory so far in bytes: of the GPU's tensors, or of this process on a CPU.
        checkpointing: Whether activations were recomputed.
        micro_batches: Number of parts of the batch, computed one after the other.
    """

    number: int
    loss: float
    learning_rate: float
    seconds: float
    memory: int
    checkpointing: bool
    micro_batches: int


class Training:
    """A network being trained.

    Args:
        model: Trained in place; moved to the device.
        recipe: "default" is AdamW, warm-up and cosine, bf16 if the device has instructions for it, and a running mean
            of the weights. "pytorch-unet" is that project's: RMSprop with momentum 0.999 and weight decay 1e-8, fp32, a
            tenth of the rate after six rounds without a better validation score. Both clip gradients to norm 1.
        steps: Length of the schedule.
        learning_rate: Peak learning rate; None for the recipe's.
        checkpointing: Activation checkpointing. "auto" turns it on once memory runs out, then splits batches into
            micro-batches, and repeats the step. Each micro-batch is normalised by itself.
        device: "cpu", "cuda", or "cuda:N".
        normalize: Mean and standard deviation of each channel in [0, 1], to normalise pixels with; None for pixels in
            [0, 1].
        peers: All ranks of this training, with equal initial weights; None for this process alone. Each rank gets its
            own share of every batch, of equal sizes, and all make one step together. Running statistics are averaged.
        sync_batchnorm: Whether batches are normalised over all ranks' shares, not each share by itself. "auto" then
            saves no memory: a rank cannot repeat its share alone.
        ignored: Class of pixels that add nothing to the loss; None if there are none.

    Attributes:
        number: Number of steps made.
        best: Highest validation score so far, or None.
        synced: Whether batches are normalised over several ranks.
    """

    def __init__(
        self,
        model: UNet,
        *,
        recipe: Recipe = "default",
        steps: int,
        learning_rate: float | None = None,
        checkpointing: Checkpointing = "auto",
        device: str = "cpu",
        normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        peers: Peers | None = None,
        sync_batchnorm: bool = False,
        ignored: int | None = None,
    ) -> None:
        self.device = device_named(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
        self.model.use_checkpointing(checkpointing == "on")
        self._peers = peers or Peers()
        self.synced = sync_batchnorm and self._peers.count > 1
        if self.synced:
            synchronize(self.model, self.device)
        self.number = 0
        self.best: float | None = None
        self._steps, self._recipe = steps, recipe
        self._ignored = ignored
        self._automatic = checkpointing == "auto" and not self.synced
        self._micro_batches = 1
        self._peak = learning_rate or LEARNING_RATES[recipe]
        self._average: UNet | None = None
        self._plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._optimizer: torch.optim.Optimizer
        self._dtype = torch.float32
        if recipe == "default":
            self._optimizer = torch.optim.AdamW(model.parameters(), lr=self._peak, weight_decay=1e-4, fused=True)
            self._average = copy.deepcopy(self.model).requires_grad_(False)
            self._dtype = DTYPES[native(self.device)[0]]
        else:
            self._optimizer = torch.optim.RMSprop(
                model.parameters(), lr=self._peak, momentum=0.999, weight_decay=1e-8, foreach=True
            )
            self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self._optimizer, mode="max", patience=5)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._dtype == torch.float16)
        self._mean_std = (
            None if normalize is None else torch.tensor(normalize, device=self.device).reshape(2, 1, -1, 1, 1)
        )

    @property
    def result(self) -> UNet:
        """A copy of the current result, on the CPU: the mean of the weights, or the weights themselves."""
        network = copy.deepcopy(self._average or self.model).cpu().requires_grad_(False).eval()
        network.use_checkpointing(False)
        return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def step(self, pixels_BCHW: Tensor, target_BHW: Tensor) -> Step:
        """Make the next step.

        Args:
            pixels_BCHW: Pixels of this rank's share of the batch: uint8, divided by 255 here, or fp32, normalised.
            target_BHW: Class of each pixel, uint8.

        Raises:
            NotFinite: The loss or its gradient is not finite.
            PeerFailed: Another rank failed; the step was not made.
            torch.OutOfMemoryError: Memory runs out with all allowed savings.
        """
        started = time.perf_counter()
        if self._plateau is None:
            for group in self._optimizer.param_groups:
                group["lr"] = self._peak * rate(self.number / self._steps)
        loss = self._gradients(pixels_BCHW, target_BHW)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.number += 1
        if self._average is not None:
            self._follow(self._average)
        return Step(
            number=self.number,
            loss=loss,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]),
            seconds=time.perf_counter() - started,
            memory=_memory(self.device),
            checkpointing=self.model.checkpointing,
            micro_batches=self._micro_batches,
        )

    def validated(self, score: float) -> bool:
        """Record a validation score. Return whether it is the best so far."""
        if self._plateau is not None:
            self._plateau.step(score)
        better = self.best is None or score > self.best
        if better:
            self.best = score
        return better

    def _gradients(self, pixels_BCHW: Tensor, target_BHW: Tensor) -> float:
        """Compute the clipped gradients of a batch, saving memory if necessary. Return the batch's loss."""
        # A failed pass has already updated some running statistics.
        before = [buffer.clone() for buffer in self.model.buffers()]
        loss = self._averaged(self._own_gradients(pixels_BCHW, target_BHW, before))
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        # A scaler skips steps with overflowed gradients, and scales less afterwards.
        if not math.isfinite(loss) or not (self._scaler.is_enabled() or math.isfinite(norm.item())):
            self._undo(before)
            raise NotFinite(
                f"the loss of step {self.number + 1} is {loss}, the norm of its gradient {norm.item()}; "
                "lower the learning rate or check the pairs"
            )
        return loss

    def _own_gradients(self, pixels_BCHW: Tensor, target_BHW: Tensor, before: list[Tensor]) -> float:
        """Compute the gradients of this rank's share. Return its loss."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                self._allocate()
                loss = self._passes(pixels_BCHW, target_BHW)
            except (RuntimeError, MemoryError) as error:
                self._undo(before)
                if ran_out(error) and self._saves_memory(len(pixels_BCHW)):
                    continue
                if not self.synced:  # else the others are inside a pass and cannot be told
                    self._peers.any(True)
                raise
            if self._peers.any(False):
                self._undo(before)
                raise PeerFailed(f"another rank failed in step {self.number + 1}; see its message")
            return loss

    def _averaged(self, loss: float) -> float:
        """Average gradients and running statistics over all ranks. Return the mean loss."""
        mean = torch.tensor(loss, device=self.device)
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        self._peers.average([mean, *gradients, *statistics])
        return loss if self._peers.count == 1 else mean.item()

    @torch.no_grad()
    def _allocate(self) -> None:
        """Allocate the optimizer's state before the first pass, which can save memory; the optimizer cannot."""
        if self._recipe != "default":
            return
        for parameter in self.model.parameters():
            if not self._optimizer.state[parameter]:
                self._optimizer.state[parameter] = {
                    "step": torch.zeros((), device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def _undo(self, before: list[Tensor]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _passes(self, pixels_BCHW: Tensor, target_BHW: Tensor) -> float:
        criterion = segmentation_loss if self._recipe == "default" else pytorch_unet_loss
        total = 0.0
        parts = self._micro_batches
        for pixels, target in zip(pixels_BCHW.chunk(parts), target_BHW.chunk(parts), strict=True):
            x_BCHW = pixels.to(self.device, torch.float32, memory_format=torch.channels_last)
            if pixels.dtype == torch.uint8:
                x_BCHW = x_BCHW / 255
            if self._mean_std is not None:
                x_BCHW = (x_BCHW - self._mean_std[0]) / self._mean_std[1]
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                logits_BKHW = self.model(x_BCHW)
            loss = criterion(logits_BKHW, target.to(self.device), ignored=self._ignored) * (
                len(pixels) / len(pixels_BCHW)
            )
            total += loss.item()
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return total

    def _saves_memory(self, batch: int) -> bool:
        """Turn on the next saving of memory. Return whether there is one."""
        if not self._automatic:
            return False
        if not self.model.checkpointing:
            self.model.use_checkpointing()
            return True
        if self._micro_batches >= batch:
            return False
        self._micro_batches = min(batch, 2 * self._micro_batches)
        return True

    @torch.no_grad()
    def _follow(self, average: UNet) -> None:
        # The mean forgets quickly at first, so that a random start does not linger.
        keep = min(AVERAGE, self.number / (self.number + 9))
        for mean, value in zip(average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def state(self) -> bytes:
        """Return everything that the next step depends on, as a safetensors file with JSON in its header."""
        packed = self._optimizer.state_dict()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        for index, values in packed["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        header = {
            "number": self.number,
            "best": self.best,
            "parts": self._micro_batches,
            "checkpointing": self.model.checkpointing,
            "groups": packed["param_groups"],
            "plateau": None if self._plateau is None else _plain(self._plateau.state_dict()),
            "scaler": self._scaler.state_dict(),
        }
        # Cloned, since two names must not share a storage. The file does not keep memory layouts.
        stored = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        return safetensors.torch.save(stored, {_NOT_TENSORS: json.dumps(header)})

    def restore(self, state: bytes) -> None:
        """Continue from a `state` of the same network, recipe and schedule."""
        tensors = safetensors.torch.load(state)
        length = int.from_bytes(state[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(state[8 : 8 + length])["__metadata__"][_NOT_TENSORS])
        self.model.load_state_dict(_below("model.", tensors))
        if self._average is not None:
            self._average.load_state_dict(_below("average.", tensors))
        packed: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            packed.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({"state": packed, "param_groups": header["groups"]})
        for parameter, values in self._optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:  # restores the memory layout
                    values[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.number, self.best, self._micro_batches = header["number"], header["best"], header["parts"]
        self.model.use_checkpointing(header["checkpointing"])
        if self._plateau is not None:
            self._plateau.load_state_dict(header["plateau"])
        self._scaler.load_state_dict(header["scaler"])


def rate(progress: float) -> float:
    """Return the share of the peak learning rate after a share of the steps: a linear rise, then a cosine to 0."""
    if progress < WARMUP:
        return max(progress / WARMUP, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, bool | int | float | str | list | None)}


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
