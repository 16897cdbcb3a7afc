import numpy as np
import pytest
from conftest import decoded_pairs

from maskfleet.jobs.training.crops import Crops
from maskfleet.jobs.training.pairs import Pair


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crops_keep_image_and_truth_together(channels):
    pixels, truth = Crops(decoded_pairs(channels), side=32, batch_size=16, seed=3).batch(0)
    assert (pixels.shape, truth.shape) == ((16, channels, 32, 32), (16, 32, 32))
    assert set(truth.unique().tolist()) == {0, 1}
    for image, classes in zip(pixels.float().mean(dim=1), truth, strict=True):
        # Brightness follows the truth, or its inverse in an inverted crop; only borders are blurred by the zoom.
        assert abs(np.corrcoef(image.flatten(), classes.flatten())[0, 1]) > 0.6


def test_a_batch_follows_from_the_seed_and_its_number():
    one, two = (Crops(decoded_pairs(), side=32, batch_size=4, seed=7) for _ in range(2))
    two.batch(3)
    assert all((a == b).all() for a, b in zip(one.batch(5), two.batch(5), strict=True))
    assert not (one.batch(5)[0] == one.batch(6)[0]).all()
    assert not (one.batch(5)[0] == Crops(decoded_pairs(), side=32, batch_size=4, seed=8).batch(5)[0]).all()


def test_the_shares_of_all_ranks_make_up_the_batch():
    crops = Crops(decoded_pairs(), side=32, batch_size=5, seed=7)
    complete = crops.batch(3)
    for rank in range(2):
        share = slice(rank, None, 2)
        assert all((mine == all_[share]).all() for mine, all_ in zip(crops.batch(3, share), complete, strict=True))


def test_keys_names_the_images_of_a_batch():
    crops = Crops(decoded_pairs()[:1] * 3 + [Pair("odd", np.full((64, 64, 3), 250, np.uint8), np.ones((64, 64), np.uint8))], side=32, batch_size=6, seed=0)  # fmt: skip
    for number in range(4):
        _, truth = crops.batch(number)
        assert [bool(each.all()) for each in truth] == [key == "odd" for key in crops.keys(number)]


def test_a_rare_group_is_sampled_more_often_than_its_share():
    crops = Crops(decoded_pairs(), side=32, batch_size=200, seed=1)
    share = crops.keys(0).count("0") / 200
    assert share == pytest.approx(1 / (1 + 3**0.5), abs=0.1)
