"""Speed of the parts around the network on this machine: decoding, encoding, and storage requests."""

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.cores import cores
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.storage.schemes import open_storage

_REQUESTS_IN_FLIGHT = 32
_ENCODED_MASKS = 16
"""Distinct masks of the encoding measurement."""


def codecs(files: Sequence[bytes]) -> dict[str, Any]:
    """Measure decoding of these files and encoding of as many masks, in images per second on every core and on one.

    Args:
        files: Image files.
    """
    found: dict[str, Any] = {"cores": cores(), "images": len(files), "bytes": sum(map(len, files))}
    with every_core() as rate:
        for name, work in (("decode", _decode), ("encode", _encode), ("both", decode_and_encode)):
            found[f"{name}_per_second"] = rate(work, files)
            found[f"{name}_per_second_one_core"] = rate(work, files, 1)
    return found


def storage(url: str, *, objects: int, size: int, profile: str | None = None) -> dict[str, Any]:
    """Write, read and delete objects of random bytes below a new prefix; return the rates and CPU times.

    Args:
        url: Folder or s3:// prefix.
        objects: Number of objects.
        size: Object size in bytes.
        profile: AWS profile.
    """
    folder = f"maskfleet-bench-{secrets.token_hex(6)}"
    store = open_storage(url, profile=profile)
    data = secrets.token_bytes(size)
    names = [f"{folder}/{number:06}" for number in range(objects)]
    found: dict[str, Any] = {"objects": objects, "bytes": size}
    with ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as pool:
        try:
            for verb, call in (("put", lambda name: store.write(name, data)), ("get", store.read)):
                started, cpu = time.perf_counter(), time.process_time()
                done = list(pool.map(call, names))
                assert verb == "put" or all(item is not None and len(item) == size for item in done)
                seconds = time.perf_counter() - started
                found[f"{verb}_per_second"] = objects / seconds
                found[f"{verb}_megabytes_per_second"] = objects * size / seconds / 1e6
                found[f"{verb}_cpu_ms"] = (time.process_time() - cpu) / objects * 1e3
        finally:
            list(pool.map(store.delete, names))
    store.remove_folder(folder)
    return found | {"retries": store.retries}


@contextmanager
def every_core() -> Iterator[Callable[..., float]]:
    """Yield a function to measure work in one process per core, in images per second.

    Its arguments are the work, which returns its duration, the image files, and optionally the number of processes.
    """
    every = cores()
    with multiprocessing.get_context("spawn").Pool(every) as pool:

        def rate(work: Callable[[list[bytes]], float], files: Sequence[bytes], processes: int = every) -> float:
            pool.map(work, [list(files[:4])] * every, chunksize=1)  # keeps imports out of the measurement
            shares = [list(files[process::processes]) for process in range(processes)]
            return len(files) / max(pool.map(work, shares, chunksize=1))

        yield rate


def decode_and_encode(files: Iterable[bytes]) -> float:
    """Decode every file and encode a mask of it; return the duration in seconds."""
    encoder = Encoder(default_values(2))
    started = time.perf_counter()
    for data in files:
        encoder.encode(_mask(data))
    return time.perf_counter() - started


def _decode(files: Iterable[bytes]) -> float:
    started = time.perf_counter()
    for data in files:
        decode(data, channels=3)
    return time.perf_counter() - started


def _encode(files: Sequence[bytes]) -> float:
    """Encode as many masks as there are files, cycling through those of the first files."""
    masks = [_mask(data) for data in files[:_ENCODED_MASKS]]
    encoder = Encoder(default_values(2))
    started = time.perf_counter()
    for number in range(len(files)):
        encoder.encode(masks[number % len(masks)])
    return time.perf_counter() - started


def _mask(data: bytes) -> NDArray[np.uint8]:
    """Return 1 for each pixel with more green than red, else 0."""
    pixels, *_ = decode(data, channels=3)
    mask: NDArray[np.uint8] = (pixels[..., 1] > pixels[..., 0]).view(np.uint8)
    return mask
