import numpy as np

from maskfleet.jobs.masks.rle import FORMAT


def test_run_lengths_that_contradict_their_row_are_found():
    classes = np.array([[0, 1], [1, 1]], np.uint8)
    row = {"height": 2, "width": 2, "class_pixels": [1, 3], "mask_rle": FORMAT.encoder((0, 1)).encode(classes)}
    assert list(FORMAT.problems(row, None)) == []
    assert list(FORMAT.problems(row | {"mask_rle": None}, None)) == ["it has no mask"]
    assert list(FORMAT.problems(row | {"class_pixels": [2, 2]}, None)) == ["its class_pixels are not those of its mask"]
    (problem,) = FORMAT.problems(row | {"width": 3}, None)
    assert "is not 3×2 px" in problem
