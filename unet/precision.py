"""Devices, and the precisions that they compute well in."""

from typing import Literal

import torch

Resolved = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

EXACTNESS: tuple[Resolved, ...] = ("bf16", "fp16", "fp32")
"""Precisions by their mantissa: 8, 11 and 24 bits."""

_CLEARLY = 1.1
"""Required speed-up by a less exact precision, so that noise does not decide."""


class DeviceError(RuntimeError):
    """The requested device is missing or lacks an ability; the message states the remedy."""


def device_named(name: str) -> torch.device:
    """Return the device of a name: "cpu", "cuda", or "cuda:N".

    Raises:
        DeviceError: The device is missing or not supported.
    """
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name} is not available: PyTorch {torch.__version__} sees no GPU; check nvidia-smi and the "
            "CUDA build of PyTorch"
        )
    return device


def native(device: torch.device) -> tuple[Resolved, ...]:
    """Return the precisions that a device has instructions for, in the order of `EXACTNESS`."""
    if device.type == "cuda":
        fast = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False), "fp16": True}
    else:
        instructions = torch.cpu.get_capabilities()
        fast = {
            "bf16": any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")),
            "fp16": any(instructions.get(name) for name in ("avx512_fp16", "amx_fp16")),
        }
    return tuple(precision for precision in EXACTNESS if precision == "fp32" or fast[precision])


def resolved(precision: Precision, device: torch.device) -> Resolved:
    """Return the meaning of `precision` on a device before any measurement: "auto" is the first native one.

    Raises:
        DeviceError: The device cannot compute in that precision.
    """
    if precision == "auto":
        return native(device)[0]
    works = precision in native(device) or (
        # oneDNN emulates both exactly and slowly: a way to try a GPU's precision.
        device.type == "cpu"
        and {
            "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
            "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }[precision]()
    )
    if not works:
        raise DeviceError(f"{device} cannot compute in {precision}; set inference.precision to 'auto' or 'fp32'")
    return precision


def above(precision: Resolved, device: torch.device) -> Resolved:
    """Return the next more exact native precision."""
    return next(
        other for other in native(device) if other == "fp32" or EXACTNESS.index(other) > EXACTNESS.index(precision)
    )


def fastest(seconds: dict[Resolved, float]) -> Resolved:
    """Return the fastest precision by these times; among about equally fast ones, the most exact."""
    least = min(seconds.values())
    return max((name for name in seconds if seconds[name] <= least * _CLEARLY), key=EXACTNESS.index)
