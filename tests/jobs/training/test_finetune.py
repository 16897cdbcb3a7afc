import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import draw_pairs, seeded, statistics
from PIL import Image

from maskfleet.jobs.errors import JobError, Refused, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.training.finetune import evaluate, finetune, foreseen
from maskfleet.unet import weights


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
            "validation_share": 0.5, "width": 2, "gate": "off",
        } | settings,
    })  # fmt: skip


def new_weights(outcome):
    return weights.load(Path(outcome.weights).read_bytes())


def test_pairs_become_weights_that_say_where_they_come_from(tmp_path):
    work = job(tmp_path)
    assert foreseen(work) == work
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
    assert (folder / "report.html").read_text().count("<img") == 3 * 4
    assert json.loads((folder / "result.json").read_text()) == outcome.record


def test_the_scores_are_those_of_the_masks_that_a_run_writes(tmp_path):
    import numpy as np
    from PIL import Image

    from maskfleet.jobs.training.scores import dice

    work = job(tmp_path, inference={"precision": "fp32"})
    outcome = finetune(work)
    again = work.model_copy(update={"weights": (outcome.weights,)})
    assert evaluate(again)["dice"] == pytest.approx(outcome.record["dice"])
    assert evaluate(work)["dice"] == pytest.approx(outcome.record["base"]["dice"])
    run(again.model_copy(update={"finetune": Finetune()}))
    from maskfleet.jobs.training.pairs import read_pairs

    held = [pair.key for pair in read_pairs(work, channels=3, classes=2, own=(0, 255)).validation]
    scores = [
        dice(*(np.asarray(Image.open(place / key)) for place in (tmp_path / "output/masks", tmp_path / "truth")))
        for key in held
    ]
    assert np.mean(scores) == pytest.approx(outcome.record["dice"])


def test_done_it_is_not_trained_again(tmp_path):
    work = job(tmp_path)
    first = finetune(work)
    assert finetune(work, train=None) == first


def test_a_new_network_for_other_classes(tmp_path):
    images, masks = draw_pairs(tmp_path / "three", 16, classes=3)
    work = job(tmp_path, start="random", images=str(images), masks=str(masks), store="fp16")
    outcome = finetune(work)
    new = new_weights(outcome)
    assert (new.model.n_classes, new.model.width, new.mask_values) == (3, 2, (0, 127, 254))
    assert new.metadata["base"] == "none"
    assert outcome.record["base"] is None
    assert [row["value"] for row in outcome.record["classes"]] == [127, 254]


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


LEARNING = {"steps": 60, "learning_rate": 1e-2, "gate": "better", "validate_every": 60}


def test_a_run_makes_better_weights_and_uses_them(tmp_path):
    work = job(tmp_path, **LEARNING)
    report = run(work)
    (result,) = (tmp_path / "output/finetune").glob("*/result.json")
    record = json.loads(result.read_text())
    assert (record["accepted"], record["gate"], record["weights"]) == (True, "better", "weights.safetensors")
    assert record["dice"] > record["base"]["dice"] + 0.1
    with_new = work.model_copy(update={"weights": (str(result.parent / "weights.safetensors"),)})
    fingerprint = fingerprint_of(with_new, load_weights(with_new))
    assert {row["fingerprint"] for row in statistics(tmp_path / "output")} == {fingerprint}
    assert report.fingerprint == fingerprint
    assert not list(result.parent.glob("unjudged*"))
    assert foreseen(work).weights == with_new.weights
    # The same command again: nothing is trained and nothing is to do.
    assert run(work, on_training_step=lambda _: pytest.fail("trained again")).images == 0


def test_a_run_that_is_stopped_while_it_trains_goes_on_there(tmp_path):
    work = job(tmp_path)
    with pytest.raises(Stopped):
        run(work, stopped=iter([False, False, True]).__next__)
    seen = []
    report = run(work, on_training_step=lambda moment: seen.append(moment.step.number))
    assert (seen, report.ok) == ([3, 4], 16)


def shuffle(masks):
    """Each mask to another image of its size."""
    for places in (range(0, 16, 2), range(1, 16, 2)):
        images = [Image.open(masks / f"{place:03}.png").copy() for place in places]
        for place, image in zip(places, images[1:] + images[:1], strict=True):
            image.save(masks / f"{place:03}.png")


def test_shuffled_masks_are_refused_and_the_weights_kept_beside(tmp_path):
    work = job(tmp_path, **LEARNING)
    shuffle(tmp_path / "truth")
    with pytest.raises(
        Refused, match=r"kept as .*/refused.safetensors: .*are the masks those of their images"
    ) as caught:
        run(work)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "output/runs").exists()
    (refused,) = (tmp_path / "output/finetune").glob("*/refused.safetensors")
    with pytest.raises(Refused):
        foreseen(work)
    kept = refused.read_bytes()
    assert weights.load(kept).metadata["base"] == load_weights(work).id
    # Going on with the base, where the job says so.
    going_on = Job.of(work.model_dump(mode="json", exclude_none=True), ["finetune.on_refused=base"])
    assert run(going_on).fingerprint == fingerprint_of(work, load_weights(work))
    # Another gate judges what is trained already.
    judged = finetune(Job.of(work.model_dump(mode="json", exclude_none=True), ["finetune.gate=off"]))
    assert judged.verdict.accepted
    assert Path(judged.weights).name == "weights.safetensors"
    assert Path(judged.weights).read_bytes() == kept
    assert not refused.exists()
    # What a kill may have left there is no longer called weights once they are refused again.
    again = finetune(work)
    assert [path.name for path in Path(again.weights).parent.glob("*.safetensors")] == ["refused.safetensors"]


def test_too_few_pairs_for_a_gate_are_refused_before_training(tmp_path):
    work = job(tmp_path, gate="better", validation_share=0.2)
    with pytest.raises(JobError, match=r"finetune.gate needs 5 held-back pairs and there are \d"):
        finetune(work)
    assert not (tmp_path / "output/finetune").exists()
