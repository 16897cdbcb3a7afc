"""A mask drawn over its image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import Changed, JobError, NotFound
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.outputs.palette import voc_palette
from maskfleet.jobs.outputs.stored_masks import StoredMask
from maskfleet.jobs.storage.contract import Options

_ROWS = 512
"""Rows drawn at once."""


def input_image(mask: StoredMask, options: Options) -> NDArray[np.uint8]:
    """Read and decode the image of a mask. Decoding runs in a separate process, since the bytes may be hostile.

    Args:
        mask: Mask of the image.
        options: How the buckets of the input are asked.

    Returns:
        Pixels (H, W, 3), uint8, aligned with the mask.

    Raises:
        NotFound: The image is gone.
        Changed: The image has changed since its mask was made.
        JobError: The image cannot be shown as RGB.
        StorageError: The image cannot be read.
    """
    record = Record(*(mask.row[name] for name in ("key", "url", "size", "etag")))
    inputs = Inputs(options)
    try:
        data = inputs.read(record)
    except NotFound as error:
        raise NotFound(f"{record.url} no longer exists, so there is no image to draw on; mask() still works") from error
    except Changed as error:
        raise Changed(f"{record.url} has changed since its mask was made; run the job again") from error
    finally:
        inputs.close()
    with Decoders(Limits(channels=3, upright=mask.upright), processes=1) as decoders:
        (decoded,) = ((image.failure, _copied(image.pixels)) for image in decoders.decode([(0, data)]))
    failure, pixels = decoded
    if pixels is None:
        raise JobError(f"{record.key} cannot be shown as an RGB image: {failure.message if failure else 'no pixels'}")
    return pixels


def _copied(pixels: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    return None if pixels is None else pixels.copy()  # the decoder reuses its memory


def drawn_over(pixels: NDArray[np.uint8], classes: NDArray[np.uint8], *, opacity: float) -> Image.Image:
    """Draw a class map over an image.

    Args:
        pixels: Pixels of the image (H, W, 3), uint8. Changed in place.
        classes: Class map (H, W), uint8. Class 0 is not drawn.
        opacity: Opacity of the classes, 0 … 1.

    Raises:
        ValueError: The opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {opacity}")
    if pixels.shape[:2] != classes.shape:
        raise JobError(f"the mask has the shape {classes.shape}, but its image {pixels.shape[:2]}; run the job again")
    colours = np.array(voc_palette(), np.float32).reshape(256, 3)
    for top in range(0, len(pixels), _ROWS):
        band, numbers = pixels[top : top + _ROWS], classes[top : top + _ROWS]
        drawn = numbers > 0
        band[drawn] = np.rint((1 - opacity) * band[drawn] + opacity * colours[numbers[drawn]])
    return Image.fromarray(pixels)
