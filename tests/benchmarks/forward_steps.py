"""Speed-up by each step of the fast forward pass, on a CPU or a GPU: `python tests/benchmarks/forward_steps.py`.

Each row adds a step to the previous one, or to the named one. The steps take turns; the table shows medians over rounds.
Labels are compared with those of the plain network in fp32, on random images. A failing step prints its reason and is
left out.
"""

import argparse
import copy
import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from maskfleet.unet.folded import folded
from maskfleet.unet.inference.streams import _cuda_graph
from maskfleet.unet.model import UNet
from maskfleet.unet.precision import DTYPES

Step = Callable[[Tensor], Tensor]


def steps(model: nn.Module, device: torch.device, dtype: torch.dtype, x_BCHW: Tensor) -> dict[str, Callable[[], Step]]:
    """Return the steps by name; each is built on its first turn."""
    plain = copy.deepcopy(model).to(device, dtype)
    without_norms = folded(model, device, dtype, fused=False).to(device, dtype)
    last = copy.deepcopy(without_norms).to(memory_format=torch.channels_last)
    one_pass = folded(model, device, dtype, fused=True).to(device, dtype, memory_format=torch.channels_last)
    x_last = x_BCHW.to(memory_format=torch.channels_last)

    def fixed(network: Step, given: Tensor) -> Step:
        return lambda _: network(given)

    def compiled(network: nn.Module) -> Step:
        made = torch.compile(network, mode="max-autotune-no-cudagraphs" if device.type == "cuda" else "default")
        return fixed(made, x_last)

    def benchmarked() -> Step:
        def run(_: Tensor) -> Tensor:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                return last(x_last)

        return run

    def graph(network: nn.Module) -> Step:
        network(x_last)
        whole = lambda given: (network(given),)  # noqa: E731
        replay = _cuda_graph(torch.cuda.graph_pool_handle(), whole, x_last)
        return lambda _: replay(x_last)[0]

    found = {
        "plain": lambda: fixed(plain, x_BCHW),
        "normalisations folded": lambda: fixed(without_norms, x_BCHW),
        "and channels last": lambda: fixed(last, x_last),
        "and convolution with ReLU": lambda: fixed(one_pass, x_last),
        "channels last, torch.compile": lambda: compiled(last),
    }
    if device.type == "cuda":
        found["channels last, a graph"] = lambda: graph(last)
        found["convolution with ReLU, a graph"] = lambda: graph(one_pass)
        found["channels last, cudnn.benchmark"] = benchmarked
    return found


def rate(once: Callable[[], Tensor], device: torch.device, images: int, seconds: float) -> float:
    started, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - started < seconds:
        once()
        passes += 1
        if device.type == "cuda" and passes % 8 == 0:
            torch.cuda.synchronize(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return passes * images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each step in a round")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(given.device), DTYPES[given.precision]
    model = UNet(3, 2, width=given.width).eval().requires_grad_(False)
    x_BCHW = torch.rand(given.batch, 3, given.side, given.side)
    with torch.inference_mode():
        labels = model(x_BCHW).argmax(1)
        x_BCHW = x_BCHW.to(device, dtype)
        ready: dict[str, Callable[[], Tensor]] = {}
        equal: dict[str, float] = {}
        for name, make in steps(model, device, dtype, x_BCHW).items():
            try:
                step = make()
                started = time.perf_counter()
                equal[name] = float((step(x_BCHW).float().argmax(1).cpu() == labels).float().mean())
                print(f"{name}: first pass {time.perf_counter() - started:.1f} s", flush=True)
                ready[name] = functools.partial(step, x_BCHW)
                ready[name]()
            except Exception as error:  # whatever a step lacks here
                print(f"{name}: not here ({type(error).__name__}: {str(error).splitlines()[0][:200]})", flush=True)
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for number in range(given.rounds):
            for name in list(ready) if number % 2 else reversed(ready):
                rates[name].append(rate(ready[name], device, given.batch, given.seconds))
    of = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {given.threads} threads"
    print(f"\n{of}; width {given.width}, {given.batch} × {given.side}², {given.precision}\n")
    print("| step | images/s | of channels last | equal labels |\n|---|---|---|---|")
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, rates["and channels last"], strict=True)]
        spread = f"{np.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {name} | {np.median(found):.4g} | {spread} | {equal[name]:.6f} |")


if __name__ == "__main__":
    main()
