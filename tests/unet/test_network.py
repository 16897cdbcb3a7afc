"""The protocol of a network, and the table of kinds: a toy of another geometry goes through everything."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import seeded
from torch import nn

from maskfleet.unet import network, weights
from maskfleet.unet.inference.fitting import NotTileable
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet
from maskfleet.unet.network import WeightsError, load_tensors


class Strided(nn.Module):
    """A network of stride 24 whose logits reach 24 px further, and depend on nothing else."""

    kind = "strided"
    grid, halo, untileable, min_side = 24, 24, None, 24

    def __init__(self, n_channels, n_classes):
        super().__init__()
        self.n_channels, self.n_classes = n_channels, n_classes
        self.mix = nn.Conv2d(n_channels, n_classes, 1)

    @property
    def configuration(self):
        return {"n_channels": self.n_channels, "n_classes": self.n_classes}

    def forward(self, x):
        height, width = x.shape[2:]
        padded = nn.functional.pad(x, (0, -width % 24, 0, -height % 24))
        coarse = nn.functional.avg_pool2d(padded, 24)
        coarse = nn.functional.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
        spread = coarse.repeat_interleave(24, 2).repeat_interleave(24, 3)[..., :height, :width]
        return self.mix(x) + 3 * self.mix(spread)


def build(configuration, tensors):
    with torch.device("meta"):
        model = Strided(**configuration)
    load_tensors(model, tensors, described=f"a strided network of {configuration}")
    return model


@pytest.fixture
def strided(monkeypatch):
    """The toy, as one module and one line of the table."""
    module = SimpleNamespace(CONFIGURATION=("n_channels", "n_classes"), build=build)
    monkeypatch.setitem(sys.modules, "strided_networks", module)
    monkeypatch.setitem(network.KINDS, "strided", "strided_networks")
    torch.manual_seed(0)
    model = Strided(3, 2).requires_grad_(False).eval()
    model.mix.bias -= model(torch.rand(1, 3, 96, 96)).mean(dim=(0, 2, 3)) / 4  # it is added 1 + 3 times
    return model


def test_a_kind_of_networks_is_one_module_and_one_line(strided):
    loaded = weights.load(weights.save(strided, mask_values=(0, 9)))
    assert isinstance(loaded.model, Strided)
    assert loaded.mask_values == (0, 9)
    assert torch.equal(loaded.model.mix.weight, strided.mix.weight)


@pytest.mark.parametrize("tile", [24, 72, 240])
def test_tiles_follow_the_geometry_of_the_network(strided, tile):
    images = np.random.default_rng(0).integers(0, 256, (2, 331, 290, 3), np.uint8)
    whole, expected = Segmenter(strided, precision="fp32").segment(images)
    labels, statistics = Segmenter(strided, precision="fp32", tile=tile).segment(images)
    assert len(np.unique(whole)) == 2
    assert np.array_equal(labels, whole)
    assert np.array_equal(statistics.class_bbox, expected.class_bbox)
    rows = []
    segmenter = Segmenter(strided, precision="fp32", tile=tile)
    segmenter.segment_rows(lambda start, stop: images[:1, start:stop], 331, 290, rows.append)
    assert np.array_equal(np.concatenate(rows), whole[0])


def test_a_network_refuses_tiles_off_its_grid_and_images_below_its_size(strided):
    with pytest.raises(ValueError, match="multiple of 24 px, got 64"):
        Segmenter(strided, tile=64)
    with pytest.raises(ValueError, match="at least 24 px"):
        Segmenter(strided).segment(np.zeros((1, 30, 20, 3), np.uint8))
    strided.untileable = "it looks at the whole image"
    with pytest.raises(NotTileable, match="with this network: it looks at the whole image; set"):
        Segmenter(strided, tile=48)


def test_an_unknown_kind_is_refused_by_name(strided, monkeypatch):
    data = weights.save(strided)
    monkeypatch.delitem(network.KINDS, "strided")
    with pytest.raises(WeightsError, match="of the unknown kind 'strided'; this release knows unet"):
        weights.load(data)


def test_a_file_without_a_kind_holds_a_unet_and_keeps_its_id():
    data = weights.save(seeded())
    assert b"kind" not in data[: int.from_bytes(data[:8], "little")]
    loaded = weights.load(data)
    assert isinstance(loaded.model, UNet)
    assert (
        weights.load(weights.builtin("nuclei")).id == "081031be7d634f27845b199bb1546993e67043c80c9916234cc652ca1b40ad4d"
    )


def test_the_kind_belongs_to_the_id(strided, monkeypatch):
    first = weights.load(weights.save(strided)).id
    monkeypatch.setitem(network.KINDS, "other", "strided_networks")
    monkeypatch.setattr(Strided, "kind", "other")
    assert weights.load(weights.save(strided)).id != first
