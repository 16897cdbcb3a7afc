"""Training: an object that holds all of its state and makes one optimizer step at a time. Knows no file, no logging.

A step follows from the state and its batch alone: nothing in a U-Net is drawn, and the caller draws batches by their
number. So a state that is restored goes on exactly, bit for bit on one machine's CPU.
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
"""Of the recipe "default": the share that the running mean of the weights keeps at a step; that is the result."""

WARMUP = 0.05
"""Share of the steps that the rate of "default" rises over."""

LEARNING_RATES: dict[Recipe, float] = {"default": 3e-4, "pytorch-unet": 1e-5}
"""At their peak, for a network that knows something already."""

_CLIP = 1.0
_NOT_TENSORS = "state"


class NotFinite(ArithmeticError):
    """The loss or its gradient is not a number or infinite; the step was not made."""


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: From 1.
        loss: Of its batch.
        learning_rate: That it was made with.
        seconds: That it took.
        memory: Bytes at its peak so far: of the GPU's tensors, or of this process on a CPU.
        checkpointing: Whether activations were made again.
        parts: That the batch went through in.
    """

    number: int
    loss: float
    learning_rate: float
    seconds: float
    memory: int
    checkpointing: bool
    parts: int


class Training:
    """A network being trained.

    Args:
        model: Trained in place; moved to the device.
        recipe: "default" is AdamW, warm-up and cosine, bf16 where the device has instructions for it, and a running
            mean of the weights. "pytorch-unet" is that project's: RMSprop with momentum 0.999 and weight decay 1e-8,
            fp32, a tenth of the rate when the validation score has not risen for six rounds. Both clip to norm 1.
        steps: The length of the schedule.
        learning_rate: At its peak; None for the recipe's.
        checkpointing: "auto" turns it on when memory runs out, then cuts batches into parts, and goes on at the same
            step. A batch in parts is normalised part by part.
        device: Where.
        normalize: Mean and standard deviation of each channel, in [0, 1], that pixels are brought to 0 and 1 by; None
            where the network takes [0, 1].
        peers: Who trains it too, from the same start; None for nobody. Each is given its own share of every batch, all
            of one size, and they make one step together. Running statistics are the mean of theirs.
        sync_batchnorm: Whether batches are normalised over all peers' shares, not each share by itself. "auto" then
            saves no memory: a rank that tries its share again would be alone in it.

    Attributes:
        number: Steps made.
        best: The highest validation score so far, or None.
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
        self._automatic = checkpointing == "auto" and not self.synced
        self._parts = 1
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
        """A copy of the network as it would be used now, on the CPU."""
        network = copy.deepcopy(self._average or self.model).cpu().requires_grad_(False).eval()
        network.use_checkpointing(False)
        return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def step(self, pixels_BCHW: Tensor, target_BHW: Tensor) -> Step:
        """Make the next step.

        Args:
            pixels_BCHW: uint8; divided by 255 here. This rank's share of the batch.
            target_BHW: Class of each pixel, uint8.

        Raises:
            NotFinite: The loss is no number.
            PeerFailed: A peer could not do its share; the step was not made.
            torch.OutOfMemoryError: Even with checkpointing and an image at a time, or where neither is allowed.
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
            parts=self._parts,
        )

    def validated(self, score: float) -> bool:
        """Take note of a validation score. Returns whether it is the best so far."""
        if self._plateau is not None:
            self._plateau.step(score)
        better = self.best is None or score > self.best
        if better:
            self.best = score
        return better

    def _gradients(self, pixels_BCHW: Tensor, target_BHW: Tensor) -> float:
        """Clipped gradients of a batch, in less memory where there is too little; the batch's loss."""
        # A pass that fails has updated some running statistics already.
        before = [buffer.clone() for buffer in self.model.buffers()]
        loss = self._averaged(self._own_gradients(pixels_BCHW, target_BHW, before))
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        # A scaler skips steps whose gradients overflowed, and scales less from then on.
        if not math.isfinite(loss) or not (self._scaler.is_enabled() or math.isfinite(norm.item())):
            self._undo(before)
            raise NotFinite(f"the loss of step {self.number + 1} is {loss} and its gradient's norm {norm.item()}")
        return loss

    def _own_gradients(self, pixels_BCHW: Tensor, target_BHW: Tensor, before: list[Tensor]) -> float:
        """Of this rank's share; its loss."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                self._allocate()
                loss = self._passes(pixels_BCHW, target_BHW)
            except (RuntimeError, MemoryError) as error:
                self._undo(before)
                if ran_out(error) and self._saves_memory(len(pixels_BCHW)):
                    continue
                if not self.synced:  # else the others are in mid-pass, and no word reaches them
                    self._peers.any(True)
                raise
            if self._peers.any(False):
                self._undo(before)
                raise PeerFailed(f"a peer could not do its share of step {self.number + 1}")
            return loss

    def _averaged(self, loss: float) -> float:
        """Make the gradients and running statistics the mean of all ranks'; their mean loss."""
        mean = torch.tensor(loss, device=self.device)
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        self._peers.average([mean, *gradients, *statistics])
        return loss if self._peers.count == 1 else mean.item()

    @torch.no_grad()
    def _allocate(self) -> None:
        """Take the optimizer's memory before the first pass, which can do with less, not after it."""
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
        for pixels, target in zip(pixels_BCHW.chunk(self._parts), target_BHW.chunk(self._parts), strict=True):
            x_BCHW = pixels.to(self.device, torch.float32, memory_format=torch.channels_last) / 255
            if self._mean_std is not None:
                x_BCHW = (x_BCHW - self._mean_std[0]) / self._mean_std[1]
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                logits_BKHW = self.model(x_BCHW)
            loss = criterion(logits_BKHW, target.to(self.device)) * (len(pixels) / len(pixels_BCHW))
            total += loss.item()
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return total

    def _saves_memory(self, batch: int) -> bool:
        """Turn the next thing on that needs less memory, if there is one and it is ours to choose."""
        if not self._automatic:
            return False
        if not self.model.checkpointing:
            self.model.use_checkpointing()
            return True
        if self._parts >= batch:
            return False
        self._parts = min(batch, 2 * self._parts)
        return True

    @torch.no_grad()
    def _follow(self, average: UNet) -> None:
        # Young, it forgets quickly, so that a random start does not linger.
        keep = min(AVERAGE, self.number / (self.number + 9))
        for mean, value in zip(average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def state(self) -> bytes:
        """All that the next step depends on, as a safetensors file with JSON in its header; no pickle."""
        packed = self._optimizer.state_dict()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        for index, values in packed["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        header = {
            "number": self.number,
            "best": self.best,
            "parts": self._parts,
            "checkpointing": self.model.checkpointing,
            "groups": packed["param_groups"],
            "plateau": None if self._plateau is None else _plain(self._plateau.state_dict()),
            "scaler": self._scaler.state_dict(),
        }
        # Clones: two names must not share a storage. How a tensor lies in memory is not in the file.
        stored = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        return safetensors.torch.save(stored, {_NOT_TENSORS: json.dumps(header)})

    def restore(self, state: bytes) -> None:
        """Go on from a state of the same network, recipe and schedule."""
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
                if value.shape == parameter.shape:  # laid out in memory as it was
                    values[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        self.number, self.best, self._parts = header["number"], header["best"], header["parts"]
        self.model.use_checkpointing(header["checkpointing"])
        if self._plateau is not None:
            self._plateau.load_state_dict(header["plateau"])
        self._scaler.load_state_dict(header["scaler"])


def rate(progress: float) -> float:
    """Share of the peak learning rate, by the share of the steps that are done: linear rise, then cosine to zero."""
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
