import numpy as np
import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.classes import MAX_VALUES, ObservedCodes, classes_of
from maskfleet.jobs.training.truth import code_of


def observed(*masks):
    seen = ObservedCodes()
    for number, mask in enumerate(masks):
        seen.add(f"mask-{number}.png", np.array(mask))
    return seen


@pytest.mark.parametrize(
    ("masks", "stated", "classes", "base_values", "values"),
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
def test_values_are_stated_or_those_of_the_base_or_counted_or_observed(masks, stated, classes, base_values, values):
    assert observed(*masks).mask_values(stated=stated, classes=classes, base_values=base_values) == values


@pytest.mark.parametrize(
    ("masks", "stated", "classes", "message"),
    [
        (
            [[0, 1], [0, 5, 9]],
            None,
            2,
            r"masks contain 0, 1, 5, 9, but the weights have 2 classes; see mask mask-1.png: JPEG",
        ),
        ([[0, 1], [0, 7]], (0, 1), 2, "mask mask-1.png contains 7, but the classes are 0, 1; correct the mask"),
        (
            [[0, 1]],
            (0, 1, 2),
            2,
            r"the number of finetune.values \(3\) differs from the weights' number of classes \(2\); state one",
        ),
        ([[4, 4]], None, None, r"every mask contains only the value 4 \(see mask-0.png\); add masks"),
        ([[9]], None, 2, "masks contain 9, but the weights have 2 classes"),
    ],
)
def test_ambiguous_masks_are_refused_by_name(masks, stated, classes, message):
    with pytest.raises(JobError, match=message):
        observed(*masks).mask_values(stated=stated, classes=classes, base_values=(0, 255) if classes else None)


def test_a_blurred_mask_is_refused_at_once():
    with pytest.raises(
        JobError, match=r"mask mask-1.png has 65 distinct values: JPEG compression, smoothing .* export it as"
    ):
        observed([0, 255], range(MAX_VALUES + 1))


def test_pixels_become_the_classes_of_their_values():
    codes = np.array([[255, 0], [7, 255]])
    assert classes_of(codes, (0, 7, 255)).tolist() == [[2, 0], [1, 2]]
    assert classes_of(codes, (255, 7, 0)).dtype == np.uint8
