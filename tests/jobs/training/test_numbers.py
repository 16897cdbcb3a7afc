"""Fine-tuning on wide integers and many bands: images are read as for inference, and new weights say how."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import seeded
from PIL import Image

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.crops import Crops
from maskfleet.jobs.training.finetune import evaluate, finetune
from maskfleet.jobs.training.pairs import Pair
from maskfleet.jobs.training.plan import plan_training
from maskfleet.unet import weights
from maskfleet.unet.pixels.normalization import Normalization

ZSCORE = Normalization(per_image="zscore")


@pytest.fixture
def job(tmp_path):
    """Pairs of GeoTIFFs of five bands of uint16, one of them of 8 bits, and weights that declare z-scores."""
    for name in ("in", "truth"):
        (tmp_path / name).mkdir()
    for number in range(8):
        random = np.random.default_rng(number)
        truth = random.integers(0, 2, (5, 6)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        stored = truth[..., None].astype(np.int64) * 3000 + random.integers(0, 900, (40, 48, 5))
        stored = (stored / 20).astype(np.uint8) if number == 0 else stored.astype(np.uint16)
        tifffile.imwrite(tmp_path / f"in/{number}.tif", stored, photometric="minisblack", planarconfig="contig")
        Image.fromarray(truth * 255).save(tmp_path / f"truth/{number}.png")
    base = weights.save(seeded(n_channels=5, width=2), mask_values=(0, 255), input=ZSCORE)
    (tmp_path / "base.safetensors").write_bytes(base)

    def made(**inference):
        return Job.of({
            "input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": str(tmp_path / "base.safetensors"),
            "cluster": {"decoders": 1, "threads": 1}, "inference": inference,
            "finetune": {
                "images": str(tmp_path / "in"), "masks": str(tmp_path / "truth"), "steps": 3, "crop": 32, "batch_size": 2,
                "validation_share": 0.5, "gate": "off",
            },
        })  # fmt: skip

    return made


def test_new_weights_say_how_their_images_were_seen(job):
    pairs = plan_training(job()).pairs
    for pair in (*pairs.training, *pairs.validation):
        assert pair.image.dtype == np.float32
        np.testing.assert_allclose(pair.image.mean(axis=(0, 1)), 0, atol=1e-6)
        np.testing.assert_allclose(pair.image.std(axis=(0, 1)), 1, atol=1e-5)
    result = finetune(job())
    new = weights.load(Path(result.weights).read_bytes())
    assert (new.input, new.normalize) == (ZSCORE, None)
    evaluated = evaluate(job().model_copy(update={"weights": (result.weights,)}))
    assert evaluated.scores.dice == pytest.approx(result.record.new.dice, abs=1e-9)


def test_the_jobs_declaration_and_bands_make_another_training(job):
    plans = [plan_training(job(**more)) for more in (
        {}, {"normalize": {"range": [0, 4000]}}, {"bands": [5, 4, 3, 2, 1]},
    )]  # fmt: skip
    assert len({plan.id for plan in plans}) == 3
    assert plans[1].declared == Normalization(range=(0.0, 4000.0))
    straight, _, turned = (plan.pairs.training[0].image for plan in plans)
    np.testing.assert_array_equal(turned, straight[..., ::-1])


def test_crops_of_floats_and_bytes_share_a_batch():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (60, 50)).astype(np.uint8)
    eight = random.integers(0, 256, (60, 50, 5)).astype(np.uint8)
    wide = random.normal(0, 1, (60, 50, 5)).astype(np.float32)
    mixed = Crops([Pair("a", eight, truth), Pair("b", wide, truth)], side=32, batch_size=8, seed=0)
    pixels, classes = mixed.batch(0)
    assert (str(pixels.dtype), tuple(pixels.shape)) == ("torch.float32", (8, 5, 32, 32))
    assert classes.max() <= 1
    assert bool(pixels.isfinite().all())
    assert float(pixels.abs().max()) < 20
    alone = Crops([Pair("a", eight, truth)], side=32, batch_size=8, seed=0)
    assert str(alone.batch(0)[0].dtype) == "torch.uint8"
