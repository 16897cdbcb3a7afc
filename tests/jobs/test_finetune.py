import numpy as np
import pytest
from PIL import Image

from jobs.finetune import HELD_BACK, Pair, crops, dice, held_back, main, read_pairs
from unet import weights


def test_the_split_follows_content_and_has_its_share():
    contents = [str(number).encode() for number in range(4000)]
    share = np.mean([held_back(content) for content in contents])
    assert abs(share - HELD_BACK) < 0.03
    assert [held_back(content) for content in contents] == [held_back(content) for content in contents]


def pairs():
    random = np.random.default_rng(0)
    truths = [(random.random((height, 60)) > 0.5).astype(np.uint8) for height in (50, 70, 70, 70)]
    return [Pair(np.repeat(truth[..., None] * np.uint8(150) + 20, 3, axis=2), truth) for truth in truths]


def test_crops_keep_image_and_truth_together():
    pixels, truth = next(crops(pairs(), side=32, batch_size=16, seed=3))
    assert (pixels.shape, truth.shape) == ((16, 3, 32, 32), (16, 32, 32))
    assert set(truth.unique().tolist()) == {0, 1}
    for image, classes in zip(pixels.float().mean(dim=1), truth, strict=True):
        # The truth is the image's light, or its shadow where it was inverted; zooming blurs the border alone.
        agreement = abs(np.corrcoef(image.flatten(), classes.flatten())[0, 1])
        assert agreement > 0.6


def test_the_same_seed_draws_the_same_crops():
    one, two = (next(crops(pairs(), side=32, batch_size=4, seed=7)) for _ in range(2))
    assert (one[0] == two[0]).all()
    assert (one[1] == two[1]).all()


def test_dice():
    one, none = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    assert (dice(one, one), dice(one, none), dice(none, none)) == (1.0, 0.0, 1.0)
    assert dice(np.array([255, 255, 0]), np.array([0, 1, 1])) == pytest.approx(0.5)


def write_pairs(folder, count=60):
    for number in range(count):
        random = np.random.default_rng(number)
        truth = (random.random((40, 40)) > 0.5).astype(np.uint8) * 255
        for name, pixels in (("images", np.repeat(truth[..., None] // 2, 3, axis=2)), ("masks", truth)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_two_folders_become_weights(tmp_path):
    write_pairs(tmp_path)
    training, validation = read_pairs(tmp_path / "images", tmp_path / "masks")
    assert len(training) + len(validation) == 60
    assert validation
    main([
        *("--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--width", "2", "--steps", "5"),
        *("--side", "32", "--batch-size", "2", "--output", str(tmp_path / "w.safetensors")),
    ])  # fmt: skip
    loaded = weights.load((tmp_path / "w.safetensors").read_bytes())
    assert loaded.mask_values == (0, 255)
    assert 0 <= float(loaded.metadata["dice_worst"]) <= float(loaded.metadata["dice_mean"]) <= 1


def test_too_few_pairs_are_refused(tmp_path):
    write_pairs(tmp_path, 1)
    with pytest.raises(ValueError, match="both parts of the split need pairs"):
        read_pairs(tmp_path / "images", tmp_path / "masks")


def test_a_mask_of_another_size_is_refused(tmp_path):
    write_pairs(tmp_path, 1)
    Image.new("L", (30, 30)).save(tmp_path / "masks/0.png")
    with pytest.raises(ValueError, match=r"mask of 0.png is \(30, 30\) px and the image \(40, 40\)"):
        read_pairs(tmp_path / "images", tmp_path / "masks")
