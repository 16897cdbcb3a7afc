import io

import numpy as np
import pytest

from maskfleet.jobs.images import decode as module
from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)


def array(values):
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def test_a_large_array_is_refused_since_it_has_no_rows(monkeypatch):
    monkeypatch.setattr(module, "STREAM_PIXELS", 100)
    with pytest.raises(Undecodable, match="cannot be read in rows; store TIFF or PNG"):
        decode(array(GREY), channels=1, max_pixels=10**9)


@pytest.mark.parametrize("shape", [(20,), (2, 3, 4, 5), (0, 30), ()])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(Undecodable, match="an image has") as error:
        decode(array(np.zeros(shape, np.uint8)), channels=1)
    assert error.value.error_class == "unsupported"
