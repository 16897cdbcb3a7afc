import numpy as np

from maskfleet.jobs.masks.png import Encoder
from maskfleet.jobs.masks.tar import FORMAT


def problems(row, file):
    return list(FORMAT.problems(row | FORMAT.columns(file, name="a.png", folder="x"), file))


def test_a_mask_that_contradicts_its_row_is_found():
    file = Encoder([0, 255]).encode(np.zeros((4, 5), np.uint8))
    assert problems({"height": 4, "width": 5, "class_pixels": [20, 0]}, file) == []
    assert len(problems({"height": 5, "width": 4, "class_pixels": [19, 1]}, file)) == 2
    assert "no complete mask" in problems({"height": 4, "width": 5, "class_pixels": [20, 0]}, file[:-22])[0]


def test_a_mask_that_is_missing_or_another_is_found():
    file = Encoder([0, 255]).encode(np.zeros((4, 5), np.uint8))
    row = {"height": 4, "width": 5, "class_pixels": [20, 0]} | FORMAT.columns(file, name="a.png", folder="x")
    assert list(FORMAT.problems(row, None)) == ["its mask a.png is not in its shard's file"]
    assert list(FORMAT.problems(row, file + b" ")) == ["its mask is not the one that its row describes"]
