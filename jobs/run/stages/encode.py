"""Encoding: class maps to masks, in threads, while the device works on the next batch."""

import math
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.masks.formats import Encoder
from maskfleet.jobs.run.stages.batch import Batch
from maskfleet.jobs.run.stages.shard_pass import Movement, ShardPass
from maskfleet.jobs.timing.stage_timers import Resource, Wait

_BATCHES_AHEAD = 4
"""Largest number of batches per shard waiting to be encoded."""


class Encode:
    """Encodes masks.

    Args:
        encoder: Mask encoder; None if masks are not stored.
        threads: Number of threads.
        movement: Records progress, to detect stalls.
    """

    def __init__(self, encoder: Encoder | None, threads: int, movement: Movement) -> None:
        self._encoder = encoder
        self._threads = ThreadPoolExecutor(threads, "encode")
        self._resources = threading.local()
        self._movement = movement

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def queue(self, shard: ShardPass) -> "EncodeQueue":
        """Return the queue of one shard."""
        return EncodeQueue(self, shard)

    def submit(self, batch: Batch, class_maps: NDArray[np.uint8], shard: ShardPass) -> Future[None]:
        """Start encoding a batch in a thread."""
        return self._threads.submit(self._run, batch, class_maps, shard)

    def _run(self, batch: Batch, class_maps: NDArray[np.uint8], shard: ShardPass) -> None:
        if not hasattr(self._resources, "of_thread"):
            self._resources.of_thread = Resource("encode")
        # Encoding is never blocked by its output: the shard keeps masks in memory until it is written.
        with self._resources.of_thread.work(shard.timers, Wait(starved=math.inf, since=shard.began)):
            for outcome, class_map in zip(batch.outcomes, class_maps, strict=True):
                started = time.perf_counter()
                if self._encoder is not None and outcome.failure is None:
                    outcome.mask = self._encoder.encode(class_map)
                outcome.seconds["encode"] = time.perf_counter() - started
        self._movement.note()


class EncodeQueue:
    """The batches of one shard being encoded, a bounded number at a time.

    Args:
        encode: The stage.
        shard: The shard.
    """

    def __init__(self, encode: Encode, shard: ShardPass) -> None:
        self._encode = encode
        self._shard = shard
        self._pending: deque[Future[None]] = deque()

    def put(self, batch: Batch, class_maps: NDArray[np.uint8]) -> None:
        """Add a batch; wait first if too many are pending."""
        with self._shard.wait.for_output():
            while len(self._pending) >= _BATCHES_AHEAD:
                self._pending.popleft().result()
        self._pending.append(self._encode.submit(batch, class_maps, self._shard))

    def finish(self) -> None:
        """Wait until every batch is encoded."""
        while self._pending:
            self._pending.popleft().result()
