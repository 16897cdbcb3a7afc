"""The drafted job file is valid, whatever was found, and says what needs a decision."""

import re
import tomllib

import pytest

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.starting.draft import draft
from maskfleet.jobs.tools.starting.look import Kind, Look
from maskfleet.jobs.tools.starting.mask_files import Pairs
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.checkpoints.pytorch_unet import ORIGIN
from maskfleet.unet.model import UNet

PLACES = ('my "images"', "out", "nuclei")


def network(channels=3, **metadata):
    return unet_weights.load(unet_weights.save(UNet(channels, 2, width=4), metadata=metadata))


def found(*sample, **more):
    values = {"images": 5, "more": False, "endings": {".png": 5}, "masks": 0, "mask_patterns": (), "pairs": None}
    return Look(**values | more, sample=sample)


def made(look, weights):
    given = Job.of({"input": PLACES[0], "output": "out", "weights": "nuclei"})
    text, notes = draft(given, look, weights, places=PLACES)
    return tomllib.loads(text), text, " ".join(notes)


GREY = Kind("a.png", format="PNG", width=50, height=40, bands=1, bits="8")


@pytest.mark.parametrize(
    ("sample", "weights", "note"),
    [
        (GREY, {"channels": 5}, "take 5 channels, the images have 1"),
        (Kind("a.png", format="PNG", width=5, height=4, bands=4, bits="8"), {}, "alpha"),
        (Kind("a.png", format="PNG", width=5, height=4, bands=3, bits="8"), {"channels": 1}, "luminance"),
        (Kind("a.tif", format="TIFF", width=5, height=4, pages=3), {}, 'a.tif holds 3 pages, so pages = "each"'),
        (Kind("a.tif", format="TIFF", width=5, height=4, bands=1, bits="16"), {}, "16 bits"),
        (Kind("a.jpg", problem="no image"), {}, "1 of 1 sampled images cannot be read, such as a.jpg"),
        (GREY, {"origin": ORIGIN}, "default is 0.5"),
    ],
)
def test_what_needs_a_decision_is_noted(sample, weights, note):
    table, text, notes = made(found(sample), network(**weights))
    assert note in notes
    assert note in text
    Job.of(table)


def test_a_plain_case_has_no_notes():
    table, text, notes = made(found(GREY), network(scale="0.5"))
    assert not notes
    assert (table["name"], table["input"], table["inference"]["scale"]) == ("my--images", PLACES[0], 0.5)
    assert "# Sample: 1 × PNG grey, 8 bits; 50 × 40 px." in text


@pytest.mark.parametrize(
    ("classes", "stored", "drafted"),
    [(2, (0, 1), [0, 255]), (3, None, [0, 128, 255]), (2, (0, 255), None), (2, None, None), (12, None, None)],
)
def test_masks_that_would_look_black_get_other_values(classes, stored, drafted):
    data = unet_weights.save(UNet(3, classes, width=4), mask_values=stored)
    table, _, _ = made(found(GREY), unet_weights.load(data))
    assert table["masks"].get("values") == drafted
    assert Job.of(table)


def test_many_and_large_images_set_their_keys():
    huge = Kind("a.tif", format="TIFF", width=40_000, height=30_000)
    table, _, _ = made(found(huge, images=200_000, more=True), network())
    assert table["masks"]["format"] == "tar"
    assert table["run"]["max_image_pixels"] == 2 * 40_000 * 30_000
    assert Job.of(table)


def test_the_section_for_training_is_valid_without_its_marks():
    _, text, _ = made(
        found(GREY, masks=5, mask_patterns=("masks/",), pairs=Pairs("images", "masks", "{stem}")), network()
    )
    shown = re.sub(r"^# (\[finetune|images |masks )", r"\1", text, flags=re.MULTILINE)
    job = Job.of(tomllib.loads(shown))
    assert (job.finetune.images.endswith('my "images"/images'), job.exclude) == (True, ("masks/",))
