"""Masks as a run writes them, in every form, are understood as they were written when they are trained on."""

import io

import numpy as np
import pytest
from conftest import draw_pairs, seeded
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks import geotiff
from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.outputs.exports.export import export
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.training.finetune import evaluate, finetune
from maskfleet.jobs.training.pairs import read_pairs
from maskfleet.jobs.training.truth.classes import IGNORED, Observed
from maskfleet.jobs.training.truth.codes import codes_of, decode
from maskfleet.unet import weights

VALUES = {
    "default": (0, 255),
    "0 and 1, stored in 1 bit": (0, 1),
    "inverted": (255, 0),
    "greys": (7, 3),
    "colours": ([0, 0, 0], [255, 0, 0]),
    "colours without black": ([0, 0, 255], [255, 0, 0]),
    "inverted colours": ([255, 255, 255], [0, 0, 0]),
    "black as the last": ([255, 0, 0], [0, 0, 0]),
    "three by default": (0, 1, 2),
    "three greys": (0, 255, 128),
    "three colours": ([0, 0, 0], [255, 0, 0], [0, 255, 0]),
}
CLASSES = np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)


def as_png(classes, values):
    return Encoder(values).encode(classes)


def as_geotiff(classes, values):
    table = np.asarray(values, np.uint8)
    return geotiff.tiff([table[classes]], shape=table[classes].shape, placement=None)


def as_palette(classes, values):
    image = Image.fromarray(classes, "P")
    image.putpalette(
        np.array([value if isinstance(value, list) else [value] * 3 for value in values], np.uint8).tobytes()
    )
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def understood(masks, *, classes, **known):
    codes = [codes_of(decode(mask, max_pixels=10**6)[0]) for mask in masks]
    seen = Observed()
    for number, each in enumerate(codes):
        seen.add(str(number), each)
    legend = seen.legend(**{"stated": None, "classes": classes, "base_values": None} | known)
    return [legend.classes(each) for each in codes]


@pytest.mark.parametrize("form", [as_png, as_geotiff, as_palette])
@pytest.mark.parametrize("name", VALUES)
def test_the_jobs_own_masks_are_understood(form, name):
    """Known by finetune.values, by masks.values of the same job, or by the weights; also if a mask lacks classes."""
    values = VALUES[name]
    drawn = [np.minimum(CLASSES, len(values) - 1), np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)]
    masks = [form(classes, values) for classes in drawn]
    for known in ("stated", "written", "base_values"):
        if (
            form is as_palette
            and known != "stated"
            and name in {"inverted", "greys", "inverted colours", "three greys"}
        ):
            continue  # such palettes are refused, see the test of classes
        found = understood(masks, classes=len(values), **{known: values})
        assert all((a == b).all() for a, b in zip(found, drawn, strict=True)), known


def job(folder, masks, values=None, **settings):
    base = folder / "base.safetensors"
    if not base.exists():
        base.write_bytes(weights.save(seeded(width=2)))
    return Job.of({
        "input": str(folder / "pairs"), "output": str(folder / "out"), "weights": str(base),
        "cluster": {"decoders": 1, "threads": 1},
        "masks": {} if values is None else {"values": list(values)},
        "finetune": {"images": str(folder / "pairs"), "masks": str(masks), "gate": "off", "steps": 2, "crop": 32,
                     "batch_size": 2, "validation_share": 0.5} | settings,
    })  # fmt: skip


def truths(work):
    pairs = read_pairs(work, limits_of(work, channels=3, min_side=16), classes=2, base_values=default_values(2))
    return {pair.key: pair.truth for pair in [*pairs.training, *pairs.validation]}


@pytest.mark.slow
@pytest.mark.parametrize("values", [(0, 255), (255, 0), ([0, 0, 0], [255, 0, 0])])
def test_masks_of_a_run_train_in_every_exported_form(tmp_path, values):
    draw_pairs(tmp_path, 8)
    first = job(tmp_path, tmp_path / "truth", values)
    run(
        Job.of(
            {
                name: part
                for name, part in first.model_dump(mode="json", exclude_none=True).items()
                if name != "finetune"
            }
        )
    )
    export(first.output, "png", str(tmp_path / "png"))
    expected = {}
    for path in (tmp_path / "png").glob("*.png"):
        pixels = np.asarray(Image.open(path))
        expected[path.name] = (pixels == np.asarray(values[1])).reshape(*pixels.shape[:2], -1).all(axis=2)
    assert 0 < np.mean([mask.mean() for mask in expected.values()]) < 1
    for form, folder in (("geotiff", ""), ("voc", "/SegmentationClass")):
        export(first.output, form, str(tmp_path / form))
        found = truths(job(tmp_path, str(tmp_path / form) + folder, values))
        assert all((found[key] == expected[key]).all() for key in expected)
    again = job(tmp_path, tmp_path / "png", values)
    assert all((truths(again)[key] == expected[key]).all() for key in expected)
    assert finetune(again).record.trained_on
    with pytest.raises(JobError, match=r"finetune.masks .*/out/masks is inside the job's own output .*; copy"):
        truths(job(tmp_path, tmp_path / "out/masks"))


def test_pairs_as_in_carvana_train(tmp_path):
    """Photos in JPEG, masks in GIF with a palette, named as in the data set of Pytorch-UNet."""
    images, masks = draw_pairs(tmp_path, 8)
    for path in images.glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        mask = masks / path.name
        drawn = Image.open(mask).point(lambda value: value // 255)
        indexed = Image.fromarray(np.asarray(drawn), "P")
        indexed.putpalette([0, 0, 0, 255, 255, 255])
        indexed.save(masks / f"{path.stem}_mask.gif")
        mask.unlink()
        path.unlink()
    work = job(tmp_path, masks, mask_name="{stem}_mask")
    for key, truth in truths(work).items():
        assert (
            truth == np.asarray(Image.open(masks / f"{key.removesuffix('.jpg')}_mask.gif").convert("L")) // 255
        ).all()
    assert finetune(work).record.trained_on


def test_ignored_pixels_take_no_part(tmp_path):
    images, masks = draw_pairs(tmp_path, 8)
    for path in masks.iterdir():
        mask = np.asarray(Image.open(path)) // 255
        mask[:, :9] = 255
        Image.fromarray(mask).save(path)
    with pytest.raises(JobError, match="255 often means 'no class'; set finetune.ignore = 255"):
        finetune(job(tmp_path, masks))
    work = job(tmp_path, masks, ignore=255)
    assert all((truth[:, :9] == IGNORED).all() and truth[:, 9:].max() == 1 for truth in truths(work).values())
    record = finetune(work).record
    for path in masks.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) % 255).save(path)
    assert finetune(job(tmp_path, masks)).record.id != record.id
    assert record.base.dice != evaluate(job(tmp_path, masks)).scores.dice
