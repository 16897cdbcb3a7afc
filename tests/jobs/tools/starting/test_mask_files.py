"""Masks are recognised by their names, and left in peace where they are all that an input holds."""

import pytest

from maskfleet.jobs.tools.starting.mask_files import MaskFiles, Pairs, folder_beside


@pytest.mark.parametrize(
    ("keys", "patterns", "pairs"),
    [
        (["a.png", "a_mask.png"], ("*_mask.png",), Pairs("", "", "{stem}_mask")),
        (["a.jpg", "a.seg.png", "b.jpg"], ("*.seg.png",), Pairs("", "", "{stem}.seg")),
        (["images/a.png", "masks/a.png"], ("masks/",), Pairs("images", "masks", "{stem}")),
        (["a.png", "more/b.png", "Labels/a.tif"], ("Labels/",), Pairs("", "Labels", "{stem}")),
        (["p/images/a.png", "p/masks/a.png"], ("masks/",), None),
        (["a.png", "a_mask.png", "b_gt.png"], ("*_gt.png", "*_mask.png"), None),
        (["a_mask.png", "b_mask.png"], (), None),
        (["mask.png", "a.png", "unmasked.png", "b_mask.txt"], (), None),
        ([], (), None),
    ],
)
def test_masks_are_found_by_name(keys, patterns, pairs):
    assert MaskFiles.among(keys) == MaskFiles(patterns, pairs)


def test_a_folder_of_masks_beside_the_images_is_found(tmp_path):
    for name in ("images", "masks", "more"):
        (tmp_path / name).mkdir()
    assert folder_beside(str(tmp_path / "images")) == "masks"
    assert not folder_beside(str(tmp_path / "masks"))
    assert not folder_beside(str(tmp_path / "missing" / "images"))
