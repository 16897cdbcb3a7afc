import numpy as np
from conftest import tree
from PIL import Image

from maskfleet.jobs.tools.demo import SIZES, draw, mean_dice


def test_images_have_a_ground_truth_of_their_size(tmp_path):
    drawn = draw(tmp_path, images=8)
    truths = sorted(drawn.truth.rglob("*.png"))
    assert len(truths) == 8
    seen = set()
    for path in truths:
        (image,) = drawn.images.glob(f"{path.relative_to(drawn.truth).with_suffix('')}.*")
        with Image.open(image) as picture, Image.open(path) as truth:
            assert picture.size == truth.size
            assert set(np.unique(np.asarray(truth))) == {0, 255}
            seen.add(picture.size[::-1])
    assert seen == set(SIZES)
    assert len([path for path in drawn.images.iterdir() if path.is_file()]) == drawn.broken == 3


def test_equal_seeds_draw_equal_files(tmp_path):
    draw(tmp_path / "a", images=3)
    draw(tmp_path / "b", images=3)
    draw(tmp_path / "c", images=3, seed=1)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")


def test_a_missing_mask_scores_zero(tmp_path):
    drawn = draw(tmp_path, images=2)
    assert mean_dice(drawn.truth, drawn.truth) == 1.0
    assert mean_dice(tmp_path / "none", drawn.truth) == 0.0
