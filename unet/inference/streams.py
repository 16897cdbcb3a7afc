"""Batches computed concurrently: on a GPU each on a CUDA stream of its own, by graphs launched as one.

While one stream's batch is copied, fetched or added up on the host, the device computes another's. A pass over a
batch is some hundred kernels, and PyTorch acquires Python's lock for each of them, in competition with other threads.
Recorded as a CUDA graph, all of them are launched by one call without the lock.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Pass = Callable[[Tensor], tuple[Tensor, ...]]
"""From a batch's pixels to results on the device."""

Capture = Callable[[Pass, Tensor], Pass]
"""Records a pass over a batch on the device; the recorded pass takes other batches of that shape, on any device."""

GRAPHS = 4
"""Largest number of recorded shapes of batches per stream: each graph keeps its results in memory permanently."""

SEEN_BEFORE = 2
"""Batches of a shape before it is recorded: recording does not pay for a rare shape."""

_SHAPES = 1000
"""Largest number of shapes counted at a time."""

_RECORDING = threading.Lock()
"""Held while recording: torch allows one recording at a time in a process."""


class Stream:
    """Computes one batch at a time, for the thread holding it.

    Args:
        device: The device it belongs to.
        capture: Records passes; None to record none.
        quiet: Context in which no other stream uses the device; it yields False if that is impossible now.
        short: Set once memory is short.
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
        """Send this thread's work for the device into this stream."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def run(self, compute: Pass, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Return a pass's results for a batch, by its graph once there is one.

        Args:
            compute: The same pass at each call.
            pixels_BHWC: Pixels on the host.

        Returns:
            Results on the device. The next call may overwrite them.
        """
        if self._short.is_set():
            self._capture = None
            self._graphs.clear()
        shape = pixels_BHWC.shape
        if (graph := self._graphs.get(shape)) is not None:
            return graph(pixels_BHWC)
        pixels = pixels_BHWC.to(self._device, non_blocking=True)
        found = compute(pixels)
        if self._capture is not None and len(self._graphs) < GRAPHS:
            if len(self._seen) >= _SHAPES:  # all of them rare
                self._seen.clear()
            self._seen[shape] += 1
            if self._seen[shape] > SEEN_BEFORE:
                with self._quiet() as quiet:
                    if quiet:
                        self._graphs[shape] = self._recorded(self._capture, compute, pixels, found)
        return found

    def _recorded(self, capture: Capture, compute: Pass, pixels: Tensor, expected: tuple[Tensor, ...]) -> Pass:
        """Return the pass as a graph if that can be recorded and gives the same bits, else the pass itself."""
        try:
            graph = capture(compute, pixels)
            if all(map(_same, graph(pixels), expected)):
                return graph
        except RuntimeError:  # out of memory, or a kernel that cannot be recorded
            pass
        return lambda pixels_BHWC: compute(pixels_BHWC.to(self._device, non_blocking=True))


class Streams:
    """The streams of a device.

    Args:
        device: The device they belong to.
        count: Number of streams.
        capture: Records passes; None for CUDA graphs on a GPU, and no recording elsewhere.
    """

    def __init__(self, device: torch.device, count: int, capture: Capture | None = None) -> None:
        self._count = count
        self._idle: SimpleQueue[Stream] = SimpleQueue()
        self._door = threading.Lock()
        self._short = threading.Event()
        for _ in range(count):
            if capture is None and device.type == "cuda":
                # The graphs of a stream share memory: the results of one are fetched before another is launched.
                recorded: Capture | None = partial(_cuda_graph, torch.cuda.graph_pool_handle())
            else:
                recorded = capture
            self._idle.put(Stream(device, recorded, self._quiet, self._short))

    @contextmanager
    def one(self) -> Iterator[Stream]:
        """Hold the first idle stream."""
        with self._door:
            stream = self._idle.get()
        try:
            with stream.held():
                yield stream
        finally:
            self._idle.put(stream)

    def forget(self) -> None:
        """Have each stream drop its graphs before its next pass, and record no more, because memory is short."""
        self._short.set()

    @contextmanager
    def _quiet(self) -> Iterator[bool]:
        """Take all other streams, for a thread holding one. Yields False if another thread does so already."""
        # Two threads must not wait for each other's stream.
        if not _RECORDING.acquire(blocking=False):
            yield False
            return
        try:
            with self._door:  # else a thread releasing a stream would take it again before this thread wakes
                others = [self._idle.get() for _ in range(self._count - 1)]
                try:
                    yield True
                finally:
                    for stream in others:
                        self._idle.put(stream)
        finally:
            _RECORDING.release()


def _cuda_graph(pool: Any, compute: Pass, pixels: Tensor) -> Pass:
    """Record a pass; see `torch.cuda.graph`. This thread has called it in this stream, so its libraries are ready."""
    given = pixels.clone()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(pixels.device)
    # Other threads may allocate memory meanwhile; any mode but thread_local would take that for a part of the graph.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        found = compute(given)

    def replayed(pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        given.copy_(pixels_BHWC, non_blocking=True)
        graph.replay()
        return found

    return replayed


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN equal to NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def pinned_buffer(device: torch.device, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return host memory for a batch, pinned for a GPU, which copies from it without the host."""
    array: NDArray[Any] = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=device.type == "cuda").numpy()
    return array


def on_host(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the host with a single device synchronisation."""
    # Torch copies into pinned memory if the copy must not block.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies
