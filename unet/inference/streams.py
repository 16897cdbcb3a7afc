"""Where batches are computed beside each other: on a GPU each on a stream of its own, by graphs that launch as one.

While one lane's batch is copied, fetched or added up on the host, the device works on another's. A pass over a
batch is some hundred kernels, and PyTorch takes Python's lock anew for each of them, which the threads around it
want too; recorded as a CUDA graph, all of them are launched by one call that does without the lock.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pass = Callable[[Tensor], tuple[Tensor, ...]]
"""From a batch's pixels to what is found out about them, on the device."""

Capture = Callable[[Pass, Tensor], Pass]
"""Records a pass over a batch on the device; what it gives takes others of that shape from anywhere."""

GRAPHS = 4
"""Shapes of batches, per lane, that graphs are recorded for: each keeps its results in memory for good."""

SEEN_BEFORE = 2
"""Batches of a shape that come before the one that is recorded: for a rare shape it does not pay."""

_SHAPES = 1000
"""That are counted at once."""

_RECORDING = threading.Lock()
"""Torch allows one recording at a time in a process."""


class Lane:
    """Computes one batch at a time, for the thread that holds it.

    Args:
        device: That it is on.
        capture: Records passes; None where they are not recorded.
        quiet: In there no other lane asks anything of the device, or it gives False.
        short: Set where memory is.
    """

    def __init__(
        self,
        device: torch.device,
        capture: Capture | None,
        quiet: Callable[[], AbstractContextManager[bool]],
        short: threading.Event,
    ) -> None:
        self._device, self._capture, self._quiet, self._short = device, capture, quiet, short
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._seen: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, Pass] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """What this thread asks the device for goes into this lane's stream."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def run(self, whole: Pass, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """What a pass gives of a batch: by its graph, once there is one.

        Args:
            whole: The same pass at each call.
            pixels_BHWC: On the host.

        Returns:
            On the device. The next call may overwrite it.
        """
        if self._short.is_set():
            self._capture = None
            self._graphs.clear()
        shape = pixels_BHWC.shape
        if (graph := self._graphs.get(shape)) is not None:
            return graph(pixels_BHWC)
        pixels = pixels_BHWC.to(self._device, non_blocking=True)
        found = whole(pixels)
        if self._capture is not None and len(self._graphs) < GRAPHS:
            if len(self._seen) >= _SHAPES:  # so many are rare ones
                self._seen.clear()
            self._seen[shape] += 1
            if self._seen[shape] > SEEN_BEFORE:
                with self._quiet() as quiet:
                    if quiet:
                        self._graphs[shape] = self._recorded(self._capture, whole, pixels, found)
        return found

    def _recorded(self, capture: Capture, whole: Pass, pixels: Tensor, expected: tuple[Tensor, ...]) -> Pass:
        """The pass as a graph, if it can be recorded and gives the same to the last bit; else as it is."""
        try:
            graph = capture(whole, pixels)
            if all(map(_same, graph(pixels), expected)):
                return graph
        except RuntimeError:  # too little memory, or a kernel that cannot be recorded
            pass
        return lambda pixels_BHWC: whole(pixels_BHWC.to(self._device, non_blocking=True))


class Lanes:
    """The lanes of a device.

    Args:
        device: That they are on.
        count: How many.
        capture: Records passes; None for CUDA graphs on a GPU, and none elsewhere.
    """

    def __init__(self, device: torch.device, count: int, capture: Capture | None = None) -> None:
        self._count = count
        self._idle: SimpleQueue[Lane] = SimpleQueue()
        self._door = threading.Lock()
        self._short = threading.Event()
        for _ in range(count):
            if capture is None and device.type == "cuda":
                # Graphs of a lane share memory: what one leaves in it is fetched before another is launched.
                recorded: Capture | None = partial(_cuda_graph, torch.cuda.graph_pool_handle())
            else:
                recorded = capture
            self._idle.put(Lane(device, recorded, self._quiet, self._short))

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """Whichever is idle first."""
        with self._door:
            lane = self._idle.get()
        try:
            with lane.held():
                yield lane
        finally:
            self._idle.put(lane)

    def forget(self) -> None:
        """There is too little memory: each lane gives back what its graphs hold before its next pass, for good."""
        self._short.set()

    @contextmanager
    def _quiet(self) -> Iterator[bool]:
        """All other lanes, for a thread that holds one; False where another thread of this process is in here."""
        # Nor may two wait for each other's lane.
        if not _RECORDING.acquire(blocking=False):
            yield False
            return
        try:
            with self._door:  # or whoever gives a lane back would take it again before this thread wakes
                others = [self._idle.get() for _ in range(self._count - 1)]
                try:
                    yield True
                finally:
                    for lane in others:
                        self._idle.put(lane)
        finally:
            _RECORDING.release()


def _cuda_graph(pool: Any, whole: Pass, pixels: Tensor) -> Pass:
    """See `torch.cuda.graph`. `whole` has been called in this stream by this thread: its libraries are ready."""
    given = pixels.clone()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(pixels.device)
    # Other threads may go on asking for memory, which anything but thread_local would take for a part of this.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        found = whole(given)

    def replayed(pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        given.copy_(pixels_BHWC, non_blocking=True)
        graph.replay()
        return found

    return replayed


def _same(a: Tensor, b: Tensor) -> bool:
    """To the last bit, where NaN is NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def room(device: torch.device, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Where a batch is put together on the host: memory that a GPU copies from by itself, while the host goes on."""
    array: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda").numpy()
    return array


def on_host(*tensors: Tensor) -> list[Tensor]:
    """The same on the host, for all of which the device is waited for once."""
    # Into pinned memory, which is what torch takes where a copy shall not block.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies
