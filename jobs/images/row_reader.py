"""The program of a process for one large image, read in rows; see `jobs.images.streams`.

A format that gives rows by itself (TIFF) is read by its own reader, so both ways of decoding are one. libvips reads the
others (pyvips, the extra `large`): it alone gives rows of PNG and JPEG in bounded memory. Rows are converted for the
network as in `jobs.images.channels`.
"""

import importlib
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.channels import Wanted, is_8_bit, numbers_of, planes_of
from maskfleet.jobs.images.contract import Limits, Undecodable
from maskfleet.jobs.images.decode import corrupt, not_in_rows, stacked, too_small
from maskfleet.jobs.images.formats import FORMATS, ImageFile, recognised
from maskfleet.jobs.images.protocol import shortened
from maskfleet.jobs.isolation.child import Serve, answer_each, limit_time
from maskfleet.unet.pixels.normalization import DTYPES

_DTYPES = {"uchar": "u1", "ushort": "u2", "float": "f4"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_COLOURS = ("b-w", "grey16", "srgb", "rgb", "rgb16", "multiband")


class _Rows:
    """Rows of an open image, as the network sees them.

    Args:
        file: Open file.
        limits: Limits of the image.
        page: Number of the page, counted from 1; 0 for the only image of the file.

    Raises:
        Undecodable: The image cannot be read in rows.
    """

    def __init__(self, file: IO[bytes], limits: Limits, page: int = 0) -> None:
        self._limits = limits
        self._header = _header(file, limits, page)
        self.height, self.width = self._header.height, self._header.width
        if min(self.width, self.height) < limits.min_side:
            raise too_small(self.width, self.height, min_side=limits.min_side)
        if not self._header.gives_rows:
            self._header.check_rows()
        self._wanted = Wanted(limits.channels, self._header.colours, self._header.maximum, limits.bands)
        self._vips = None if self._header.gives_rows else _Vips(file.fileno(), self._header)
        first, self.white = self._seen(0, 1)
        self.dtype = first.dtype

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Decode `count` rows (count, W, C) from row `start` on."""
        return self._seen(start, count)[0]

    def _seen(self, start: int, count: int) -> tuple[NDArray[Any], float]:
        """Return rows and the number in them that counts as 1, as `jobs.images.decode` does for a whole image."""
        rows = self._vips.read(start, count) if self._vips else self._header.rows(start, start + count)
        declared, nodata = self._limits.normalize is not None, self._header.nodata
        if is_8_bit(rows) and not (declared and nodata is not None):
            return stacked(planes_of(rows, self._wanted)), 255.0
        return numbers_of(rows, self._wanted, nodata=nodata, declared=declared)


def _header(file: IO[bytes], limits: Limits, page: int) -> ImageFile:
    format_ = recognised(file)
    if not format_.in_rows:
        raise not_in_rows(format_, "this size")
    header = format_.open(file, max_pixels=limits.max_pixels, page=page)
    if limits.scale != 1:
        raise Undecodable("unsupported", "an image that is read in rows cannot be scaled; set inference.scale = 1")
    if limits.upright and header.orientation() != 1:
        raise Undecodable("unsupported", "an image that is read in rows cannot be turned; store it upright")
    return header


class _Vips:
    """Rows read by libvips.

    Args:
        file: Descriptor of the open file.
        header: Header of the image.

    Raises:
        Undecodable: libvips is missing, or does not read such pixels.
    """

    def __init__(self, file: int, header: ImageFile) -> None:
        try:
            pyvips = importlib.import_module("pyvips")
        except ImportError as error:
            message = f"{header.width}×{header.height} px are read in rows; run: pip install 'maskfleet[large]'"
            raise Undecodable("unsupported", message) from error
        self._pyvips, self._file, self._fail_on = pyvips, file, header.fail_on
        self._open()
        if self._image.format not in _DTYPES:
            raise Undecodable(
                "unsupported", f"{self._image.format} pixels have no known value range; store 8 or 16 bits"
            )

    def _open(self) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        source = self._pyvips.Source.new_from_descriptor(self._file)
        # By default libvips fills what a truncated file lacks, and a warning is all that it says of other damage.
        self._image = self._pyvips.Image.new_from_source(source, "", access="sequential", fail_on=self._fail_on)
        self._region = self._pyvips.Region.new(self._image)
        self._next = 0

    def read(self, start: int, count: int) -> Image.Image | NDArray[Any]:
        """Decode `count` rows from row `start` on."""
        if start < self._next:  # an image that is measured is read twice
            self._open()
        self._next = start + count
        image = self._image
        data = self._region.fetch(0, start, image.width, count)
        samples = np.frombuffer(data, _DTYPES[image.format]).reshape(count, image.width, image.bands)
        return _as_decoded(samples, image.interpretation)


def _as_decoded(samples: NDArray[Any], interpretation: str) -> Image.Image | NDArray[Any]:
    """Return rows as if decoded whole: 8 bits as a Pillow image, others as an array."""
    bands = samples.shape[2]
    mode = "CMYK" if interpretation == "cmyk" and bands == 4 else _MODES.get(bands)
    if mode is None or (interpretation not in _COLOURS and mode != "CMYK"):
        raise Undecodable("unsupported", f"{bands} bands of {samples.dtype} ({interpretation}) cannot be read in rows")
    if samples.dtype != np.uint8:
        return samples
    planes = [Image.fromarray(np.ascontiguousarray(samples[..., band])) for band in range(bands)]
    return planes[0] if bands == 1 else Image.merge(mode, planes)


def program(settings: dict[str, Any]) -> Serve:
    """Load the libraries; return the function that answers one request after another."""
    limits = Limits.of_json(settings["limits"])
    block = np.frombuffer(mmap.mmap(settings["block"], settings["size"]), np.uint8)
    with suppress(ImportError):  # told when an image needs it
        importlib.import_module("pyvips")
    for format_ in FORMATS:
        importlib.import_module(format_.reader)
    opened: list[_Rows] = []

    def header() -> dict[str, Any]:
        rows = _Rows(os.fdopen(settings["file"], "rb"), limits, settings["page"])
        opened.append(rows)
        kind = DTYPES.index(rows.dtype.name) + 1
        return {"height": rows.height, "width": rows.width, "kind": kind, "white": int(rows.white)}

    def read(start: int, count: int) -> dict[str, Any]:
        pixels = opened[0].read(start, count)
        block[: pixels.nbytes].view(pixels.dtype)[:] = pixels.reshape(-1)
        return {}

    def answer(request: dict[str, int]) -> dict[str, Any]:
        limit_time(limits.seconds)
        return _answer(partial(read, **request) if request else header)

    return answer_each(answer)


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except MemoryError:
        return {"error_class": "memory", "message": "reading it in rows needs more than run.decode_memory"}
    except Exception as error:  # hostile bytes make image libraries raise nearly anything
        refusal = error if isinstance(error, Undecodable) else corrupt(error)
        return {"error_class": refusal.error_class, "message": shortened(str(refusal))}
