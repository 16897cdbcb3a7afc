import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import draw_pairs, seeded

from jobs.errors import JobError
from jobs.finetune import evaluate, finetune
from jobs.job import Job
from jobs.run import run
from unet import weights


def job(folder, *, base=None, inference=None, **settings):
    folder.mkdir(exist_ok=True)
    if base is None:
        base = folder / "base.safetensors"
        base.write_bytes(weights.save(seeded(width=2), mask_values=(0, 255), metadata={"note": "a base"}))
    images, masks = draw_pairs(folder, 16)
    return Job.of({
        "input": str(images),
        "output": str(folder / "output"),
        "weights": str(base),
        "cluster": {"decoders": 1, "threads": 1},
        "inference": inference or {},
        "finetune": {
            "images": str(images), "masks": str(masks), "steps": 4, "crop": 32, "batch_size": 2,
            "validation_share": 0.4, "width": 2,
        } | settings,
    })  # fmt: skip


def new_weights(outcome):
    return weights.load(Path(outcome.weights).read_bytes())


def test_pairs_become_weights_that_say_where_they_come_from(tmp_path):
    work = job(tmp_path)
    outcome = finetune(work)
    loaded = weights.load((tmp_path / "base.safetensors").read_bytes())
    new = new_weights(outcome)
    assert new.mask_values == (0, 255)
    assert new.id != loaded.id
    assert new.metadata["base"] == loaded.id
    assert new.metadata["data"] == outcome.record["about"]["data"]
    assert json.loads(new.metadata["recipe"])["steps"] == 4
    assert float(new.metadata["dice_mean"]) == pytest.approx(outcome.record["dice"], abs=1e-4)
    assert outcome.record["trained_on"] + outcome.record["images"] == 16
    folder = tmp_path / "output" / "finetune" / outcome.record["id"]
    assert pq.read_table(folder / "metrics.parquet").num_rows == 4
    assert json.loads((folder / "result.json").read_text()) == outcome.record


def test_the_scores_are_those_of_the_masks_that_a_run_writes(tmp_path):
    import numpy as np
    from PIL import Image

    from jobs.scores import dice

    work = job(tmp_path, inference={"precision": "fp32"})
    outcome = finetune(work)
    again = work.model_copy(update={"weights": (outcome.weights,)})
    assert evaluate(again)["dice"] == pytest.approx(outcome.record["dice"])
    assert evaluate(work)["dice"] == pytest.approx(outcome.record["base"]["dice"])
    run(again)
    from jobs.pairs import read_pairs

    held = [pair.key for pair in read_pairs(work, channels=3, classes=2, own=(0, 255)).validation]
    scores = [
        dice(*(np.asarray(Image.open(place / key)) for place in (tmp_path / "output/masks", tmp_path / "truth")))
        for key in held
    ]
    assert np.mean(scores) == pytest.approx(outcome.record["dice"])


def test_done_it_is_not_trained_again(tmp_path, monkeypatch):
    work = job(tmp_path)
    first = finetune(work)
    monkeypatch.setattr("jobs.finetune.train", None)
    assert finetune(work) == first


def test_a_new_network_for_other_classes(tmp_path):
    images, masks = draw_pairs(tmp_path / "three", 16, classes=3)
    work = job(tmp_path, start="random", images=str(images), masks=str(masks), store="fp16")
    outcome = finetune(work)
    new = new_weights(outcome)
    assert (new.model.n_classes, new.model.width, new.mask_values) == (3, 2, (0, 127, 254))
    assert new.metadata["base"] == "none"
    assert outcome.record["base"] is None
    assert [row["value"] for row in outcome.record["classes"]] == [127, 254]


def test_equal_trainings_give_equal_files(tmp_path):
    digests = set()
    for name in ("one", "two"):
        outcome = finetune(job(tmp_path / name))
        digests.add(hashlib.sha256(Path(outcome.weights).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_normalisation_and_mask_values_are_inherited(tmp_path):
    base = tmp_path / "base.safetensors"
    normalize = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    base.write_bytes(weights.save(seeded(width=2), mask_values=(3, 9), normalize=normalize))
    new = new_weights(finetune(job(tmp_path, base=base)))
    assert (new.normalize, new.mask_values) == (normalize, (3, 9))


def test_what_cannot_be_trained_is_said_before_hours_are_spent(tmp_path):
    work = job(tmp_path)
    with pytest.raises(JobError, match="begins with one network and 'weights' names several"):
        finetune(work.model_copy(update={"weights": work.weights * 2}))
    images, masks = draw_pairs(tmp_path / "three", 16, classes=3)
    other = job(tmp_path, start="random", images=str(images), masks=str(masks), inference={"threshold": [0.4]})
    with pytest.raises(JobError, match="inference.threshold has 1 values and the weights have 2 classes"):
        finetune(other)
    assert not list((tmp_path / "output").glob("finetune/*/checkpoints"))
