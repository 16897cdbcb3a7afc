import io

import numpy as np
import pytest
import tifffile
from conftest import draw_pairs
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.decode import turned
from maskfleet.jobs.images.formats import FORMATS
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.training.pairs import read_pairs
from maskfleet.jobs.training.truth.orientation import aligned, decode, refuse_doubt

ORIENTATION = 0x0112
STORED = np.arange(12, dtype=np.uint8).reshape(3, 4)


def shown(array, orientation):
    return np.asarray(turned(Image.fromarray(array), orientation))


def tagged(array, orientation, kind="PNG"):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, kind, exif=exif)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_file_is_read(orientation, kind):
    assert decode(tagged(STORED, orientation, kind), max_pixels=100)[0].tolist() == [[[orientation]]]


def test_a_file_without_a_valid_orientation_is_upright():
    sink = io.BytesIO()
    tifffile.imwrite(sink, STORED, extratags=[(ORIENTATION, 3, 1, 99, True)])
    assert decode(sink.getvalue(), max_pixels=100)[0].tolist() == [[[1]]]
    assert {format_.name for format_ in FORMATS} >= {"PNG", "TIFF"}


@pytest.mark.parametrize("image", range(1, 9))
def test_a_mask_lies_on_the_grid_of_its_image(image):
    """By every way to draw it: as tagged as its image, on the stored pixels without a tag, and on the shown picture."""
    upright = shown(STORED, image)
    for wanted, expected in (("stored", STORED), ("upright", upright)):
        for mask, tag, drawn in (
            (STORED, image, None),
            (STORED, image, "upright"),
            (STORED, image, "stored"),
            (STORED, 1, "stored"),
            (upright, 1, "upright"),
        ):
            found = aligned(mask, image=image, mask=tag, wanted=wanted, drawn=drawn)
            assert found.tolist() == expected.tolist(), (wanted, tag, drawn)
    assert (aligned(upright, image=image, mask=1, wanted="upright", drawn=None) == upright).all()


@pytest.mark.parametrize(("image", "mask"), [(6, 1), (3, 1), (1, 3), (3, 6)])
def test_a_pair_with_different_orientations_is_refused_by_name(image, mask):
    pair = {"image": ("a.jpg", image), "mask": ("a.png", mask)}
    message = (
        rf"image a.jpg has orientation {image} and mask a.png has {mask}; set inference.orientation = 'upright', or"
    )
    with pytest.raises(JobError, match=message):
        refuse_doubt(**pair, wanted="stored", drawn=None)
    for wanted, drawn in (("upright", None), ("stored", "stored"), ("stored", "upright"), ("upright", "stored")):
        refuse_doubt(**pair, wanted=wanted, drawn=drawn)
    refuse_doubt(image=("a", image), mask=("b", image), wanted="stored", drawn=None)


def pairs(folder, *, scale=1.0, orientation="stored", drawn=None):
    more = {} if drawn is None else {"mask_orientation": drawn}
    work = Job.of({
        "input": str(folder / "pairs"), "output": "/nowhere", "weights": "nuclei", "cluster": {"decoders": 1},
        "inference": {"orientation": orientation, "scale": scale},
        "finetune": {"images": str(folder / "pairs"), "masks": str(folder / "truth"), "validation_share": 0.7} | more,
    })  # fmt: skip
    found = read_pairs(work, limits_of(work, channels=3, min_side=8), classes=2, base_values=(0, 255))
    return [*found.training, *found.validation]


def fits(pair):
    """Whether an image is as bright as its mask says; see `draw_pairs`."""
    return pair.image.shape[:2] == pair.truth.shape and bool(((pair.image[..., 0] > 100) == pair.truth).all())


@pytest.mark.parametrize("tag", [3, 6])
def test_photos_with_an_orientation_train_aligned_or_not_at_all(tmp_path, tag):
    images, masks = draw_pairs(tmp_path, 4)
    drawn = {path.name: np.asarray(Image.open(path)) for path in masks.iterdir()}
    for path in images.iterdir():
        path.write_bytes(tagged(np.asarray(Image.open(path)), tag))
    for name, mask in drawn.items():
        Image.fromarray(shown(mask, tag)).save(masks / name)
    with pytest.raises(JobError, match=rf"image .*/000.png has orientation {tag} and mask .*/000.png has 1; set"):
        pairs(tmp_path)
    assert all(map(fits, pairs(tmp_path, orientation="upright")))
    assert all(map(fits, pairs(tmp_path, drawn="upright")))


def test_image_and_mask_with_one_tag_are_turned_together(tmp_path):
    images, masks = draw_pairs(tmp_path, 8)
    for path in [*images.iterdir(), *masks.iterdir()]:
        tifffile.imwrite(
            path.with_suffix(".tif"), np.asarray(Image.open(path)), extratags=[(ORIENTATION, 3, 1, 3, True)]
        )
        path.unlink()
    assert all(map(fits, pairs(tmp_path)))
    assert all(map(fits, pairs(tmp_path, orientation="upright")))
