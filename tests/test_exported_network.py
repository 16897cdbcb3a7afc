"""A network of another kind through a whole job: the masks are those of its own forward pass."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run
from maskfleet.unet.programs.export import export_network

SIZES = ((64, 64), (65, 81), (64, 64), (150, 230), (33, 40))


class Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        fine = self.fine(x)
        coarse = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="bilinear")
        return self.last(torch.cat([fine, coarse], 1))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    model = Segmentation().eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("network") / "w.safetensors"
    export_network(model, path, channels=3, multiple=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return model, path


def expected(model, path):
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    height, width = pixels.shape[2:]
    x = F.pad((pixels - mean) / std, (0, width % 2, 0, height % 2), "reflect")
    return model(x)[0, :, :height, :width].argmax(0).numpy()


@pytest.mark.parametrize("settings", [(), ("inference.tile=64",), ("inference.batch_size=2",)])
def test_the_masks_are_the_networks_own(drawn, network, tmp_path, settings):
    model, weights = network
    table = {"input": str(drawn), "output": str(tmp_path / "out"), "weights": str(weights)}
    report = run(Job.of(table, ["inference.precision=fp32", "masks.values=[0,1,2]", *settings]))
    assert (report.ok, report.failed) == (len(SIZES), 0)
    for path in sorted(drawn.iterdir()):
        found = np.asarray(Image.open(tmp_path / "out/masks" / path.name))
        assert len(np.unique(found)) > 1
        assert (found == expected(model, path)).all()
