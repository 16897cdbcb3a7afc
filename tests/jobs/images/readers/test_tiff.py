import io

import numpy as np
import pytest

from maskfleet.jobs.images.decode import decode

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def with_overviews():
    """A TIFF like a cloud-optimised GeoTIFF: the image, smaller copies and a transparency mask."""
    tifffile = pytest.importorskip("tifffile", reason="needs the extra 'geo'")
    sink = io.BytesIO()
    big = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    with tifffile.TiffWriter(sink) as writer:
        writer.write(big, photometric="rgb", metadata=None)
        writer.write(big[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(big[..., 0] > 127, photometric="minisblack", subfiletype=4, metadata=None)
    return sink.getvalue(), big


def test_smaller_copies_and_masks_are_not_counted_as_pages():
    data, pixels = with_overviews()
    np.testing.assert_array_equal(decode(data, channels=3)[0], pixels)
