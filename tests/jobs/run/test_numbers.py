"""Runs over images of many bands, wide integers and floats: what the network sees is NumPy's own normalisation."""

import numpy as np
import pytest
import tifffile
import torch
from conftest import seeded, statistics
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.stages import fetch
from maskfleet.unet import weights
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.pixels.batch import Pixels
from maskfleet.unet.pixels.normalization import Normalization


@pytest.fixture
def scene(tmp_path):
    """Two GeoTIFFs of 12 bands of uint16 and a network for them."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        stored = np.random.default_rng(number).integers(200, 9000, (90, 80, 12)).astype(np.uint16)
        how = {"photometric": "minisblack", "planarconfig": ("contig", "separate")[number]}
        tifffile.imwrite(tmp_path / f"in/{number}.tif", stored.transpose(2, 0, 1) if number else stored, **how)
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(n_channels=12, width=2)))
    return tmp_path


def job_of(folder, **inference):
    table = {"input": str(folder / "in"), "output": str(folder / "out"), "weights": str(folder / "w.safetensors")}
    return Job.of(table | {"inference": {"precision": "fp32", **inference}})


@pytest.mark.parametrize(
    ("normalize", "in_rows"),
    [
        ({}, False),
        ({"per_image": "zscore"}, False),
        ({"percentile": [1, 99]}, True),
        ({"scale": 10_000, "mean": [0.3] * 12, "std": [0.1] * 12}, True),
    ],
)
def test_twelve_bands_reach_a_network_of_twelve_channels(scene, normalize, in_rows, monkeypatch):
    inputs = []
    on_device = Pixels.on_device

    def noted(self, device):
        found = on_device(self, device)
        inputs.append(found.clone())  # the network overwrites its input
        return found

    monkeypatch.setattr(Pixels, "on_device", noted)
    if in_rows:
        monkeypatch.setattr(fetch, "STREAM_BYTES", 100)
    assert run(job_of(scene, normalize=normalize)).ok == 2
    for number, row in enumerate(statistics(scene / "out")):
        v = np.random.default_rng(number).integers(200, 9000, (90, 80, 12)).astype(np.float64)
        if "per_image" in normalize:
            wanted = (v - v.mean(axis=(0, 1))) / v.std(axis=(0, 1))
        elif "percentile" in normalize:
            low, high = np.percentile(v, (1, 99), axis=(0, 1))
            wanted = (v - low) / (high - low)
        else:
            wanted = (v / 10_000 - 0.3) / 0.1 if normalize else v / 65535
        network_input = [x for batch in inputs for x in batch.reshape(-1, *batch.shape[-3:]).numpy()]
        assert any(x.shape == wanted.shape and np.abs(x - wanted).max() < 1e-6 for x in network_input)
        np.testing.assert_allclose(row["input_mean"], wanted.mean(axis=(0, 1)), rtol=0, atol=1e-6)
        np.testing.assert_allclose(row["input_std"], wanted.std(axis=(0, 1)), rtol=0, atol=1e-6)


def test_masks_are_the_segmenters_own(scene):
    run(job_of(scene, normalize={"per_image": "minmax"}))
    segmenter = Segmenter.load(scene / "w.safetensors", device="cpu")
    declared = Segmenter(segmenter.network, precision="fp32", declared=Normalization(per_image="minmax"))
    for number in range(2):
        stored = np.random.default_rng(number).integers(200, 9000, (90, 80, 12)).astype(np.uint16)
        mask = np.asarray(Image.open(scene / f"out/masks/{number}.png"))
        np.testing.assert_array_equal(mask > 0, declared([stored])[0].classes > 0)


def test_the_jobs_word_goes_before_the_weights(scene):
    declared = Normalization(scale=10_000.0, mean=(0.5,), std=(0.25,))
    (scene / "w.safetensors").write_bytes(weights.save(seeded(n_channels=12, width=2), input=declared))
    assert load_weights(job_of(scene)).input == declared
    run(job_of(scene))
    mean = statistics(scene / "out")[0]["input_mean"]
    v = np.random.default_rng(0).integers(200, 9000, (90, 80, 12))
    np.testing.assert_allclose(mean, (v.mean(axis=(0, 1)) / 10_000 - 0.5) / 0.25, atol=1e-5)
    run(job_of(scene, normalize={"range": [0, 1000]}))
    rows = [row["input_mean"] for row in statistics(scene / "out") if row["key"] == "0.tif"]
    assert any(np.allclose(row, v.mean(axis=(0, 1)) / 1000, atol=1e-5) for row in rows)


def test_bands_and_normalisation_belong_to_the_fingerprint_only_where_stated(scene):
    plain = job_of(scene)
    loaded = load_weights(plain)
    prints = {fingerprint_of(job, loaded) for job in (
        plain, job_of(scene, bands=list(range(12, 0, -1))), job_of(scene, normalize={"per_image": "zscore"}),
        job_of(scene, normalize={"per_image": "minmax"}), job_of(scene, normalize={}),
    )}  # fmt: skip
    assert len(prints) == 4
    assert fingerprint_of(plain, loaded) == fingerprint_of(job_of(scene, normalize={}), loaded)


def test_a_wrong_number_of_bands_is_refused_before_the_run(scene):
    with pytest.raises(JobError, match="inference.bands names 3 bands, but the weights take 12"):
        load_weights(job_of(scene, bands=[3, 2, 1]))
    with pytest.raises(JobError, match=r"inference.normalize: mean has 2 numbers, and the network takes 12 bands"):
        load_weights(job_of(scene, normalize={"mean": [1, 2]}))


def test_weights_with_a_declaration_are_other_weights(scene):
    network = seeded(n_channels=12, width=2)
    plain, declared = (weights.load(weights.save(network, input=each)) for each in (None, Normalization(scale=9.0)))
    assert plain.id != declared.id
    assert plain.id == load_weights(job_of(scene)).id
    assert torch.equal(plain.model.inc.double_conv[0].weight, declared.model.inc.double_conv[0].weight)
    with pytest.raises(weights.WeightsError, match="same normalisation"):
        weights.together([plain, declared], "off")
