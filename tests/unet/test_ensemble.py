"""Ensembles and views, compared with a plain mean of probabilities."""

import numpy as np
import pytest
import torch
from conftest import StandIn, seeded
from drawn_programs import Builder

from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.programs.network import ProgramNetwork
from maskfleet.unet.programs.program import Value
from maskfleet.unet.weights import load, save, together

VIEWS = {
    "off": [lambda x: x],
    "flips": [
        lambda x: x,
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
        lambda x: x.flip(-1).flip(-2),
    ],
}
VIEWS["d4"] = [
    *VIEWS["flips"],
    lambda x: x.transpose(-1, -2),
    lambda x: x.transpose(-1, -2).flip(-1),
    lambda x: x.transpose(-1, -2).flip(-2),
    lambda x: x.transpose(-1, -2).flip(-1).flip(-2),
]
BACK = [0, 1, 2, 3, 4, 6, 5, 7]
"""Index of the inverse of each view of d4."""


def mean_of_probabilities(models, views, x):
    probabilities = []
    for model in models:
        for number, view in enumerate(VIEWS[views]):
            logits = model(view(x))
            seen = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
            probabilities.append(VIEWS["d4"][BACK[number]](seen))
    return torch.stack(probabilities).mean(dim=0)


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_the_probabilities_are_the_mean_of_the_members(n_classes, members, views):
    models = [seeded(n_classes, width=2, seed=seed).double() for seed in range(members)]
    x = torch.rand(2, 3, 41, 56, dtype=torch.float64)
    with torch.inference_mode():
        logits = Ensemble(models, views)(x)
        expected = mean_of_probabilities(models, views, x)
    found = logits.sigmoid() if n_classes == 1 else logits.softmax(dim=1)
    assert found.shape == expected.shape == (2, n_classes, 41, 56)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("views", ["flips", "d4"])
def test_masks_are_those_of_the_mean(views):
    models = [seeded(3, width=2, seed=seed) for seed in range(2)]
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 33, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    with torch.inference_mode():
        expected = mean_of_probabilities([seeded(3, width=2, seed=seed).double() for seed in range(2)], views, x)
    labels, statistics = Segmenter(Ensemble(models, views), precision="fp32").segment(images)
    assert np.array_equal(labels, expected.argmax(dim=1).numpy())
    np.testing.assert_allclose(statistics.mean_confidence, expected.amax(dim=1).mean(dim=(1, 2)), rtol=1e-5)


def test_with_all_views_a_mask_turns_with_its_image():
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8)
    segmenter = Segmenter(Ensemble([seeded(width=2)], "d4"), precision="fp32")
    labels, _ = segmenter.segment(image)
    for turns in range(1, 4):
        turned, _ = segmenter.segment(np.ascontiguousarray(np.rot90(image, turns, (1, 2))))
        assert np.array_equal(turned[0], np.rot90(labels[0], turns))
    plain = Segmenter(seeded(width=2), precision="fp32")
    flipped, _ = plain.segment(np.ascontiguousarray(image[:, :, ::-1]))
    assert not np.array_equal(flipped[0], plain.segment(image)[0][0][:, ::-1])  # what the views are for


def test_members_of_different_shapes_are_refused():
    for other in (seeded(3), seeded(n_channels=1)):
        with pytest.raises(ValueError, match="must have the same numbers of channels and classes"):
            Ensemble([seeded(), other])
    with pytest.raises(ValueError, match="must have"):
        Ensemble([])


def test_one_network_without_views_is_no_ensemble():
    one = load(save(seeded()))
    assert together([one], "off") is one
    assert isinstance(together([one], "flips").model, Ensemble)
    assert together([one], "flips").id == one.id  # the views are the job's, and in its fingerprint
    two = load(save(seeded(seed=1)))
    ids = {one.id, two.id, together([one, two], "off").id, together([two, one], "off").id}
    assert len(ids) == 4


class Other(StandIn):
    """A network of another geometry."""

    grid, halo, min_side = 24, 30, 40


def test_an_ensemble_takes_the_geometry_of_all_its_members():
    alike = Ensemble([seeded(), seeded(seed=1)])
    assert (alike.grid, alike.halo, alike.min_side, alike.untileable) == (16, 96, 16, None)
    mixed = Ensemble([seeded(), Other()])
    assert (mixed.grid, mixed.halo, mixed.min_side) == (48, 96, 40)
    assert [Ensemble([Other()], views).halo for views in ("off", "flips", "d4")] == [30, 54, 54]
    assert "bilinearly" in Ensemble([seeded(), seeded(bilinear=True)]).untileable


def test_networks_of_two_kinds_make_one():
    made = Builder()
    program = made.program(made.conv(Value(0), 3, 2))
    other = ProgramNetwork(program, made.tensors, n_channels=3, multiple=32)
    both = Ensemble([seeded(2), other])
    x = torch.rand(1, 3, 64, 96)
    expected = (seeded(2)(x).softmax(1) + other(x).softmax(1)) / 2
    assert torch.allclose(both(x).softmax(1), expected, atol=1e-6)
    assert (both.grid, both.min_side) == (32, 32)
