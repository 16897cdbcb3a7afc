import numpy as np
import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.classes import MOST_VALUES, Found, classes_of
from maskfleet.jobs.training.truth import code_of


def found(*masks):
    seen = Found()
    for number, mask in enumerate(masks):
        seen.add(f"mask-{number}.png", np.array(mask))
    return seen


@pytest.mark.parametrize(
    ("masks", "stated", "classes", "own", "values"),
    [
        ([[0, 255]], None, 2, (0, 255), (0, 255)),
        ([[0]], None, 2, (0, 255), (0, 255)),
        ([[0, 1]], None, 2, (0, 255), (0, 1)),
        ([[0, 2]], None, 3, None, (0, 1, 2)),
        ([[0], [128], [255]], None, 3, (0, 1, 2), (0, 128, 255)),
        ([[7, 9]], (9, 7), 2, (0, 255), (9, 7)),
        ([[3, 9]], None, None, None, (3, 9)),
        ([[0, code_of((255, 0, 0))]], None, 2, ([0, 0, 0], [255, 0, 0]), ((0, 0, 0), (255, 0, 0))),
        ([[0, code_of((255, 0, 0))]], None, 2, (0, 1), (0, (255, 0, 0))),
    ],
)
def test_as_stated_else_as_the_weights_own_else_counted_else_as_found(masks, stated, classes, own, values):
    assert found(*masks).values(stated=stated, classes=classes, own=own) == values


@pytest.mark.parametrize(
    ("masks", "stated", "classes", "message"),
    [
        (
            [[0, 1], [0, 5, 9]],
            None,
            2,
            r"masks show 0, 1, 5, 9 and the weights have 2 classes, see mask mask-1.png: JPEG",
        ),
        ([[0, 1], [0, 7]], (0, 1), 2, "mask mask-1.png shows 7, which is no class: 0, 1 are; correct the mask"),
        ([[0, 1]], (0, 1, 2), 2, "finetune.values has 3 values and the weights have 2 classes"),
        ([[4, 4]], None, None, "all masks show 4 and nothing else, as mask-0.png does"),
        ([[9]], None, 2, "masks show 9 and the weights have 2 classes"),
    ],
)
def test_every_doubt_is_named_with_its_mask(masks, stated, classes, message):
    with pytest.raises(JobError, match=message):
        found(*masks).values(stated=stated, classes=classes, own=(0, 255) if classes else None)


def test_a_smeared_mask_is_named_at_once():
    with pytest.raises(JobError, match=r"mask mask-1.png shows 65 values: JPEG, smoothing or a resize .* export it as"):
        found([0, 255], range(MOST_VALUES + 1))


def test_pixels_become_the_numbers_of_their_values():
    codes = np.array([[255, 0], [7, 255]])
    assert classes_of(codes, (0, 7, 255)).tolist() == [[2, 0], [1, 2]]
    assert classes_of(codes, (255, 7, 0)).dtype == np.uint8
