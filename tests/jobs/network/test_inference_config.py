"""A job's network, its settings, and its fingerprint."""

import numpy as np
import pytest
import torch
from conftest import seeded

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network import inference_config
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values, segmenter_of, thresholds
from maskfleet.unet import weights
from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.model import UNet


@pytest.fixture
def made(tmp_path):
    def make(*sets, names=("w",), n_classes=2, values=None, **more):
        for number, name in enumerate(names):
            model = seeded(n_classes, seed=number, **more)
            (tmp_path / f"{name}.safetensors").write_bytes(weights.save(model, mask_values=values))
        files = [str(tmp_path / f"{name}.safetensors") for name in names]
        job = Job.of({"input": "in", "output": "out", "weights": files}, sets)
        return job, load_weights(job)

    return make


DEFAULTS = [
    "inference.scale=1.0",
    "inference.orientation=stored",
    "inference.precision=auto",
    "inference.min_agreement=0.999",
    "inference.tta=off",
    "masks.values=[0, 255]",
    "masks.format=png",
]
OTHERS = [
    "inference.scale=0.5",
    "inference.orientation=upright",
    "inference.precision=fp32",
    "inference.min_agreement=0.99",
    "inference.tta=flips",
    "inference.tta=d4",
    "inference.threshold=0.5",
    "inference.threshold=0.6",
    "inference.threshold=[0.7]",
    "masks.values=[0, 1]",
    "masks.values=[[0, 0, 0], [255, 0, 0]]",
    "masks.format=none",
]
NOT_OF_THE_MASK = [
    "name=other",
    "inference.batch_size=3",
    "inference.tile=64",
    "inference.device=cpu",
    "masks.format=tar",
    "run.shard_size=3",
    "run.max_image_pixels=1000",
    "cluster.workers=3",
    "cluster.decoders=2",
]


def test_defaults_stated_explicitly_change_nothing(made):
    fingerprint = fingerprint_of(*made())
    for key in DEFAULTS:
        assert fingerprint_of(*made(key)) == fingerprint, key
    job, loaded = made()
    assert not isinstance(loaded.model, Ensemble)
    segmenter = segmenter_of(job, loaded, threads=1)
    assert (segmenter.thresholds, segmenter._fitting._tile, segmenter._resident._normalize) == (None, None, None)


def test_the_fingerprint_covers_everything_a_mask_depends_on(made):
    found = {key: fingerprint_of(*made(key)) for key in ["name=x", *OTHERS]}
    assert len(set(found.values())) == len(found)
    members = {fingerprint_of(*made(names=names)) for names in (("w",), ("w", "v"), ("w", "v", "u"))}
    assert len(members) == 3
    assert fingerprint_of(*made(values=(0, 7))) != found["name=x"]
    assert fingerprint_of(*made(width=2)) != found["name=x"]


def test_the_fingerprint_covers_nothing_else(made):
    fingerprint = fingerprint_of(*made())
    for key in NOT_OF_THE_MASK:
        assert fingerprint_of(*made(key)) == fingerprint, key


def test_the_fingerprint_covers_inexact_tiles(made):
    approximate = "inference.tile_mode=approximate"
    found = [
        fingerprint_of(*made(*sets, bilinear=True)) for sets in ((), (approximate,), (approximate, "inference.tile=64"))
    ]
    assert len(set(found)) == 3
    with pytest.raises(
        JobError, match="tiles never give the whole image's logits with the weights .*: it up-samples bilinearly"
    ):
        made("inference.tile=64", bilinear=True)


def test_tiles_lie_on_the_grid_of_the_network(made, monkeypatch):
    for tile in (8, 100):
        with pytest.raises(JobError, match=rf"inference.tile is {tile}; .* must be 0 or a multiple of 16 px"):
            made(f"inference.tile={tile}")
    monkeypatch.setattr(UNet, "grid", 32)
    with pytest.raises(JobError, match="multiple of 32 px"):
        made("inference.tile=48")


def test_mask_values_are_the_jobs_else_the_weights_else_the_default(made):
    assert mask_values(*made()) == (0, 255)
    assert mask_values(*made(n_classes=3)) == (0, 1, 2)
    assert mask_values(*made(values=(3, 9))) == (3, 9)
    assert mask_values(*made("masks.values=[5, 6]", values=(3, 9))) == (5, 6)
    assert mask_values(*made("masks.values=[[0,0,0],[1,2,3]]")) == ((0, 0, 0), (1, 2, 3))
    assert mask_values(*made(values=([0, 0, 0], [9, 8, 7]))) == ([0, 0, 0], [9, 8, 7])
    with pytest.raises(JobError, match="3 values, but the weights have 2 classes"):
        mask_values(*made("masks.values=[1, 2, 3]"))
    with pytest.raises(JobError, match="set masks.values"):
        mask_values(*made(values=(0, 300)))


def test_thresholds_are_one_for_all_or_one_each(made):
    assert thresholds(*made()) is None
    assert thresholds(*made(n_classes=1)) == (0.5,)
    assert thresholds(*made("inference.threshold=0.3", n_classes=1)) == (0.3,)
    assert thresholds(*made("inference.threshold=0.3", n_classes=4)) == (0.3, 0.3, 0.3)
    assert thresholds(*made("inference.threshold=[0.3, 0.6]", n_classes=3)) == (0.3, 0.6)
    with pytest.raises(JobError, match="has 2 values, but the weights have 3 classes besides the background"):
        made("inference.threshold=[0.3, 0.6]", n_classes=4)


def test_the_segmenter_follows_the_job(made):
    job, loaded = made("inference.threshold=[0.2, 0.4]", "inference.batch_size=3", "inference.tile=64", n_classes=3)
    segmenter = segmenter_of(job, loaded, threads=1, precision="fp32")
    assert (segmenter.batch_size(99, 99), segmenter._fitting._tile) == (3, 64)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), np.uint8)
    with torch.inference_mode():
        probability = seeded(3)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).softmax(dim=1)[0].numpy()
    may = probability[1:] > np.array([0.2, 0.4])[:, None, None]
    expected = np.where(may.any(axis=0), np.where(may, probability[1:], 0).argmax(axis=0) + 1, 0)
    assert np.array_equal(segmenter.segment(images)[0][0], expected)


def test_different_members_are_refused(made, tmp_path):
    made(names=("a",))
    made(names=("b",), n_classes=3)
    made(names=("c",), values=(0, 9))
    for other, message in (("b", "same numbers of channels"), ("c", "same mask values")):
        files = [str(tmp_path / f"{name}.safetensors") for name in ("a", other)]
        with pytest.raises(JobError, match=message):
            load_weights(Job.of({"input": "in", "output": "out", "weights": files}))


@pytest.mark.parametrize(("there", "threads"), [(2, 2), (8, 8), (64, 8)])
def test_the_default_number_of_threads_is_limited(monkeypatch, there, threads):
    monkeypatch.setattr(inference_config, "cores", lambda: there)
    job = Job.of({"input": "in", "output": "out", "weights": "nuclei"})
    assert (inference_config.threads_of(job), inference_config.threads_of(job, alone=True)) == (threads, there)
    assert inference_config.threads_of(Job.of(job.model_dump() | {"cluster": {"threads": 32}})) == 32
