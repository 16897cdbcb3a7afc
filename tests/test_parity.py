"""The masks of a Pytorch-UNet checkpoint, against its recipe written out with torch and Pillow.

Resize with bicubic, divide by 255, forward one image, resize the logits, argmax or threshold.
"""

import io

import numpy as np
import pytest
import torch
from conftest import seeded
from PIL import Image

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.unet.checkpoints.pytorch_unet import convert

SIZES = ((64, 64), (97, 50), (130, 203), (40, 33))


def recipe(model, path, scale, threshold=0.5):
    image = Image.open(path).convert("RGB")
    width, height = image.size
    small = image.resize((int(scale * width), int(scale * height)), Image.Resampling.BICUBIC)
    x = torch.as_tensor((np.asarray(small).transpose(2, 0, 1) / 255.0)[None], dtype=torch.float32).contiguous()
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(model(x), (height, width), mode="bilinear")
    if model.n_classes > 1:
        return logits.argmax(dim=1)[0].numpy()
    return (torch.sigmoid(logits)[0, 0] > threshold).long().numpy()


def checkpoint(model, mask_values):
    sink = io.BytesIO()
    torch.save({**model.state_dict(), "mask_values": mask_values}, sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES * 2):
        pixels = Image.fromarray(random.integers(0, 256, (height // 4, width // 4, 3), np.uint8)).resize(
            (width, height)
        )
        pixels.save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder


def compare(folder, out, model, scale, mask_values):
    out.mkdir(parents=True)
    (out / "w.safetensors").write_bytes(convert(checkpoint(model, mask_values)))
    table = {"input": str(folder), "output": str(out / "out"), "weights": str(out / "w.safetensors")}
    report = run(Job.of(table, [f"inference.scale={scale}", "inference.precision=fp32"]))
    assert report.failed == 0
    appearing = set()
    # In the threads that the program would have, of which its fp32 convolution depends.
    before = torch.get_num_threads()
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    try:
        for path in sorted(folder.iterdir()):
            expected = recipe(model, path, scale)
            found = np.asarray(Image.open(out / "out/masks" / f"{path.stem}.png"))
            np.testing.assert_array_equal(found, np.array(mask_values, np.uint8)[expected], err_msg=str(path))
            appearing |= set(np.unique(expected))
    finally:
        torch.set_num_threads(before)
    return appearing


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize(("n_classes", "mask_values"), [(1, [0, 1]), (2, [0, 255]), (4, [0, 50, 100, 200])])
def test_masks_are_those_of_the_recipe(n_classes, mask_values, bilinear, scale, drawn, tmp_path):
    model = seeded(n_classes, bilinear=bilinear, width=8)
    assert len(compare(drawn, tmp_path / "x", model, scale, mask_values)) >= 2


@pytest.mark.parametrize("bilinear", [False, True])
def test_on_real_images_of_every_size(bilinear, nuclei, tmp_path):
    chosen: dict[tuple[int, int], list] = {}
    for path in sorted((nuclei / "images").iterdir()):
        with Image.open(path) as image:
            chosen.setdefault(image.size, []).append(path)
    (tmp_path / "in").mkdir()
    for paths in chosen.values():
        for path in paths[:2]:
            (tmp_path / "in" / path.name).symlink_to(path)
    for scale, n_classes in ((1.0, 2), (0.5, 3)):
        model = seeded(n_classes, bilinear=bilinear, width=8)
        compare(tmp_path / "in", tmp_path / f"{n_classes}", model, scale, list(range(0, 40 * n_classes, 40)))
