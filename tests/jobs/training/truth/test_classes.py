import numpy as np
import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.truth.classes import IGNORED, MAX_VALUES, Legend, Observed
from maskfleet.jobs.training.truth.codes import Kind

BLACK, WHITE, RED, GREEN, BLUE = 0, 0xFFFFFF, 0xFF0000, 0x00FF00, 0x0000FF


def number(value):
    return int(np.uint32(value % 2**32))


def colour(value):
    return Kind.COLOUR << 32 | value


def index(place, shown):
    return Kind.INDEX << 32 | place << 24 | shown


def blocks(*codes):
    """A mask of one region per code, (4, 4 × codes)."""
    return np.repeat(np.array([codes], np.int64), 4, axis=1).repeat(4, axis=0)


def observed(*masks, **settings):
    seen = Observed(**settings)
    for place, mask in enumerate(masks):
        seen.add(f"mask-{place}.png", mask if isinstance(mask, np.ndarray) else blocks(*map(int, mask)))
    return seen


def legend(*masks, stated=None, classes=None, base_values=None, written=None, **settings):
    seen = observed(*masks, **settings)
    return seen.legend(stated=stated, classes=classes, base_values=base_values, written=written)


RGB = ([0, 0, 0], [255, 0, 0], [0, 255, 0])


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
        ([[0, number(-1)]], (0, -1), 2, None, (0, -1)),
        ([[colour(BLACK), colour(RED)]], None, 2, RGB[:2], ((0, 0, 0), (255, 0, 0))),
        ([[colour(BLACK), colour(RED)], [0]], None, 2, (0, 255), ((0, 0, 0), (255, 0, 0))),
        ([[colour(BLACK), colour(RED)]], RGB[:2], 2, None, ((0, 0, 0), (255, 0, 0))),
        ([[colour(BLACK), colour(RED), colour(GREEN)]], RGB, 3, None, ((0, 0, 0), (255, 0, 0), (0, 255, 0))),
        ([[colour(BLACK), colour(BLUE), colour(RED)]], None, None, None, ((0, 0, 0), (0, 0, 255), (255, 0, 0))),
    ],
)
def test_values_are_stated_or_those_of_the_base_or_counted_or_observed(masks, stated, classes, base_values, values):
    found = legend(*masks, stated=stated, classes=classes, base_values=base_values)
    assert found == Legend(values)


def test_the_values_that_the_job_writes_go_before_those_of_the_weights():
    assert legend([0, 255], classes=2, base_values=(0, 255), written=(255, 0)).values == (255, 0)
    assert legend([0, 9], classes=2, base_values=(0, 9), written=(255, 0)).values == (0, 9)
    three = legend([colour(BLACK), colour(RED)], written=RGB)  # a new network: the mask lacks a class
    assert len(three.values) == 3


def test_indices_count_unless_only_the_colours_fit():
    bits = [index(0, BLACK), index(1, WHITE)]
    assert legend(bits, classes=2, base_values=(0, 255)) == Legend((0, 1))
    assert legend(bits, [0, 255], classes=2, base_values=(0, 255)) == Legend((0, 255), shown=True)
    assert legend(bits, stated=(0, 1), classes=2) == Legend((0, 1))
    assert legend(bits, stated=(0, 255), classes=2) == Legend((0, 255), shown=True)
    voc = [index(0, BLACK), index(1, 0x800000), index(2, 0x008000)]
    assert legend(voc, classes=3) == Legend((0, 1, 2))
    assert legend(voc, classes=3, stated=((0, 0, 0), (128, 0, 0), (0, 128, 0))).shown


def test_palettes_that_contradict_their_order_or_one_another_are_refused():
    falling = [index(0, WHITE), index(1, BLACK)]
    doubt = r"mask-0.png leave open what their numbers mean: a lower number is shown brighter .*; state finetune.values"
    with pytest.raises(JobError, match=doubt):
        legend(falling, classes=2, base_values=(0, 255))
    assert legend(falling, stated=(1, 0), classes=2) == Legend((1, 0))
    assert legend(falling, stated=(0, 255), classes=2) == Legend((0, 255), shown=True)
    other = [index(0, GREEN), index(1, RED)], [index(0, RED), index(1, GREEN)]
    with pytest.raises(JobError, match="index 0 of a palette is shown in several colours; state finetune.values"):
        legend(*other, classes=2, base_values=(0, 255))
    other = [index(0, BLACK), index(1, RED)], [index(0, RED), index(1, BLACK)]
    assert legend(*other, classes=2, base_values=RGB[:2]) == Legend(((0, 0, 0), (255, 0, 0)), shown=True)
    one_entry = [index(0, BLACK), index(1, WHITE)], [index(0, WHITE)]
    assert legend(*one_entry, classes=2, base_values=(0, 255)) == Legend((0, 255), shown=True)


def soft():
    """A disc with a rim of many greys."""
    rows, columns = np.indices((40, 40)) - 20
    return np.clip((14 - np.hypot(rows, columns)) * 60 + 128, 0, 255).astype(np.int64)


def instances(count):
    return np.arange(count + 1).repeat(8)[None].repeat(8, axis=0)


@pytest.mark.parametrize(
    ("masks", "more", "message"),
    [
        ([[0, 1], [0, 5, 9]], {}, "masks contain 0, 1, 5, 9, but the weights have 2 classes; see mask mask-1.png: "),
        (
            [[0, 1], [0, 7]],
            {"stated": (0, 1)},
            "mask mask-1.png contains 7, but the classes are 0, 1; correct the mask",
        ),
        (
            [[0, 1]],
            {"stated": (0, 1, 2)},
            r"the number of finetune.values \(3\) differs from the weights' number of classes \(2\); state one",
        ),
        ([[4, 4]], {"classes": None}, r"every mask contains only the value 4 \(see mask-0.png\); add masks"),
        ([[9]], {}, "masks contain 9, but the weights have 2 classes"),
        ([[0, 1, 255]], {"base_values": None}, "255 often means 'no class'; set finetune.ignore = 255 to leave such"),
        ([[0, 1, number(-1)]], {}, "-1 often means 'no class'; set finetune.ignore = -1"),
        ([[0, 1, 255]], {"stated": (0, 1)}, "contains 255, .* or finetune.values; set finetune.ignore = 255"),
        ([[0, number(-1)]], {}, "often means 'no class'"),
        (
            [[colour(RED), colour(GREEN)]],
            {},
            r"\(0, 255, 0\), \(255, 0, 0\), but .* nothing says which of them is the back",
        ),
        (
            [[colour(BLACK), colour(RED), colour(GREEN)]],
            {"classes": 3},
            "nothing says which .* or state finetune.values",
        ),
        ([[0, 70, 140, 210, 250]], {}, "its values fill regions of their own, so they may be classes that the weights"),
        (
            [instances(30)],
            {},
            "mask-0.png: instance numbers, not classes: 0 … 30; set finetune.instances = true to tre",
        ),
        ([instances(99)], {}, "has 100 distinct values: instance numbers, not classes: 0 … 99; set finetune.instances"),
        (
            [instances(count) for count in (3, 12, 5)],
            {"classes": None},
            "mask-1.png hold instance numbers, not classes: each counts from 0, up to 12; set finetune.instances",
        ),
        ([soft()], {}, "mask-0.png.* soft edges: its other values lie along edges"),
        ([soft() // 16 * 17], {}, "soft edges"),
        ([soft() // 16 * 17], {"classes": None}, "soft edges"),
    ],
)
def test_ambiguous_masks_are_refused_by_name(masks, more, message):
    with pytest.raises(JobError, match=message):
        legend(*masks, **{"classes": 2, "base_values": (0, 255), **more})


def test_a_blurred_jpeg_is_named():
    seen = Observed()
    with pytest.raises(JobError, match=r"mask a.jpg has \d+ distinct values: JPEG compression, smoothing .* export it"):
        seen.add("a.jpg", np.arange(MAX_VALUES + 1)[None])


def test_real_classes_are_no_instances():
    masks = [[0, 3, 11], [0, 1, 2], [4, 5, 6, 7, 8, 9, 10, 0]]
    assert legend(*masks).values == tuple(range(12))
    border = soft() // 128  # a thin class of its own
    assert legend(border, [0, 1, 2]).values == (0, 1, 2)


def test_pixels_become_the_classes_of_their_values():
    codes = np.array([[255, 0], [7, 255]], np.int64)
    assert Legend((0, 7, 255)).classes(codes).tolist() == [[2, 0], [1, 2]]
    assert Legend((255, 7, 0)).classes(codes).dtype == np.uint8
    assert Legend((0, 7), ignore=255).classes(codes).tolist() == [[IGNORED, 0], [1, IGNORED]]
    codes = np.array([[colour(BLACK), colour(RED)], [0, colour(WHITE)]])
    assert Legend(((0, 0, 0), (255, 0, 0)), ignore=255).classes(codes).tolist() == [[0, 1], [0, IGNORED]]


def test_ignored_pixels_are_no_class_of_their_own():
    assert legend([0, 1, 255], classes=2, ignore=255) == Legend((0, 1), ignore=255)
    voc = [index(0, BLACK), index(1, 0x800000), index(255, 0xE0E0C0)]
    assert legend(voc, classes=2, ignore=255).classes(blocks(*voc))[0, ::4].tolist() == [0, 1, IGNORED]
    void = [224, 224, 192]
    shown = legend(voc, stated=((0, 0, 0), (128, 0, 0)), classes=2, ignore=void)
    assert shown.classes(blocks(*voc))[0, ::4].tolist() == [0, 1, IGNORED]
    with pytest.raises(JobError, match="every pixel of every mask has the value finetune.ignore"):
        legend([255], classes=None, ignore=255)


def test_instance_numbers_become_one_class_on_request():
    found = legend([0, 1, 900, number(-1)], classes=2, base_values=(3, 9), instances=True, ignore=-1)
    assert found.values == (3, 9)
    assert found.classes(blocks(0, 1, 900, number(-1)))[0, ::4].tolist() == [0, 1, 1, IGNORED]
    assert legend([0, 1], instances=True).values == (0, 255)
    with pytest.raises(JobError, match="finetune.instances makes two classes, but the weights have 3"):
        legend([0, 1], classes=3, instances=True)
