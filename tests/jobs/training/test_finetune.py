import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import draw_pairs, seeded, statistics
from PIL import Image

from maskfleet.jobs.errors import JobError, Locked, Refused, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.ledger import fence
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.training.finetune import apply_finished_finetuning, evaluate, finetune
from maskfleet.jobs.training.record import TrainingRecord
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


def new_weights(result):
    return weights.load(Path(result.weights).read_bytes())


def test_pairs_become_weights_with_their_provenance(tmp_path):
    work = job(tmp_path)
    assert apply_finished_finetuning(work) == work
    result = finetune(work)
    record = result.record
    loaded = weights.load((tmp_path / "base.safetensors").read_bytes())
    new = new_weights(result)
    assert new.mask_values == (0, 255)
    assert new.id != loaded.id
    assert new.metadata["base"] == loaded.id
    assert new.metadata["data"] == record.identity["data"]
    assert json.loads(new.metadata["recipe"])["steps"] == 4
    assert float(new.metadata["dice_mean"]) == pytest.approx(record.new.dice, abs=1e-4)
    assert record.trained_on + record.new.images == 16
    folder = tmp_path / "output" / "finetune" / record.id
    assert pq.read_table(folder / "metrics.parquet").num_rows == 4
    assert (folder / "report.html").read_text().count("<img") == 3 * 4
    stored = (folder / "result.json").read_bytes()
    assert json.loads(stored) == record.to_dict()
    assert TrainingRecord.from_json(stored) == record


def test_scores_equal_those_of_the_masks_written_by_a_run(tmp_path):
    import numpy as np
    from PIL import Image

    from maskfleet.jobs.training.scores import dice

    work = job(tmp_path, inference={"precision": "fp32"})
    result = finetune(work)
    again = work.model_copy(update={"weights": (result.weights,)})
    assert evaluate(again).scores.dice == pytest.approx(result.record.new.dice)
    assert evaluate(work).scores.dice == pytest.approx(result.record.base.dice)
    run(again.model_copy(update={"finetune": Finetune()}))
    from maskfleet.jobs.training.pairs import read_pairs

    limits = limits_of(work, channels=3, min_side=16)
    validation = [pair.key for pair in read_pairs(work, limits, classes=2, base_values=(0, 255)).validation]
    scores = [
        dice(*(np.asarray(Image.open(place / key)) for place in (tmp_path / "output/masks", tmp_path / "truth")))
        for key in validation
    ]
    assert np.mean(scores) == pytest.approx(result.record.new.dice)


def test_a_finished_training_is_not_repeated(tmp_path):
    work = job(tmp_path)
    first = finetune(work)
    assert finetune(work, loop=None) == first


def test_a_random_start_trains_other_classes(tmp_path):
    images, masks = draw_pairs(tmp_path / "three", 16, classes=3)
    work = job(tmp_path, start="random", images=str(images), masks=str(masks), store="fp16")
    result = finetune(work)
    new = new_weights(result)
    assert (new.model.n_classes, new.model.width, new.mask_values) == (3, 2, (0, 127, 254))
    assert new.metadata["base"] == "none"
    assert result.record.base is None
    assert [row.value for row in result.record.new.classes] == [127, 254]


def test_normalisation_and_mask_values_are_inherited(tmp_path):
    base = tmp_path / "base.safetensors"
    normalize = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    base.write_bytes(weights.save(seeded(width=2), mask_values=(3, 9), normalize=normalize))
    new = new_weights(finetune(job(tmp_path, base=base)))
    assert (new.normalize, new.mask_values) == (normalize, (3, 9))


def test_impossible_trainings_are_refused_at_once(tmp_path):
    work = job(tmp_path)
    with pytest.raises(JobError, match="starts from one network, but 'weights' names several"):
        finetune(work.model_copy(update={"weights": work.weights * 2}))
    images, masks = draw_pairs(tmp_path / "three", 16, classes=3)
    other = job(tmp_path, start="random", images=str(images), masks=str(masks), inference={"threshold": [0.4]})
    with pytest.raises(JobError, match="inference.threshold has 1 values, but the weights have 2 classes"):
        finetune(other)
    assert not list((tmp_path / "output").glob("finetune/*/checkpoints"))


LEARNING = {"steps": 60, "learning_rate": 1e-2, "gate": "better", "validate_every": 60}


def test_a_run_trains_better_weights_and_uses_them(tmp_path):
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
    assert apply_finished_finetuning(work).weights == with_new.weights
    # The same command again trains nothing and finds nothing to do.
    assert run(work, on_training_step=lambda _: pytest.fail("trained again")).images == 0


def test_a_run_stopped_while_training_resumes_there(tmp_path):
    work = job(tmp_path)
    with pytest.raises(Stopped):
        run(work, stopped=iter([False, False, True]).__next__)
    seen = []
    summary = run(work, on_training_step=lambda report: seen.append(report.step.number))
    assert (seen, summary.ok) == ([3, 4], 16)


def test_a_training_that_is_taken_over_replaces_nothing(tmp_path, monkeypatch):
    """It is stopped after its last step, another driver takes over, and it goes on."""
    monkeypatch.setattr(fence, "FRESH", 0)
    work, out = job(tmp_path), tmp_path / "output"

    def taken_over(report):
        if report.step.number == report.steps:
            (out / "lock/000099.json").write_text("{}")

    with pytest.raises(Locked):
        finetune(work, on_step=taken_over)
    (folder,) = (out / "finetune").iterdir()
    assert {path.name for path in folder.iterdir()} <= {"finetune.json", "checkpoints"}


def shuffle(masks):
    """Swap each mask with that of another image of the same size."""
    for places in (range(0, 16, 2), range(1, 16, 2)):
        images = [Image.open(masks / f"{place:03}.png").copy() for place in places]
        for place, image in zip(places, images[1:] + images[:1], strict=True):
            image.save(masks / f"{place:03}.png")


def test_shuffled_masks_are_refused_and_the_weights_kept(tmp_path):
    work = job(tmp_path, **LEARNING)
    shuffle(tmp_path / "truth")
    with pytest.raises(
        Refused, match=r"kept as .*/refused.safetensors: .*masks and images seem to be mixed up"
    ) as caught:
        run(work)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "output/runs").exists()
    (refused,) = (tmp_path / "output/finetune").glob("*/refused.safetensors")
    with pytest.raises(Refused):
        apply_finished_finetuning(work)
    kept = refused.read_bytes()
    assert weights.load(kept).metadata["base"] == load_weights(work).id
    # On request, the run continues with the base weights.
    with_base = Job.of(work.model_dump(mode="json", exclude_none=True), ["finetune.on_refused=base"])
    assert run(with_base).fingerprint == fingerprint_of(work, load_weights(work))
    # Another gate judges the finished training again.
    judged = finetune(Job.of(work.model_dump(mode="json", exclude_none=True), ["finetune.gate=off"]))
    assert judged.verdict.accepted
    assert Path(judged.weights).name == "weights.safetensors"
    assert Path(judged.weights).read_bytes() == kept
    assert not refused.exists()
    # Once refused again, no file is called weights, whatever a killed process left behind.
    again = finetune(work)
    assert [path.name for path in Path(again.weights).parent.glob("*.safetensors")] == ["refused.safetensors"]


def test_too_few_pairs_for_a_gate_are_refused_before_training(tmp_path):
    work = job(tmp_path, gate="better", validation_share=0.2)
    with pytest.raises(JobError, match=r"finetune.gate needs at least 5 validation pairs, got \d of 16") as caught:
        finetune(work)
    enough = float(str(caught.value).partition("validation_share = ")[2].partition(",")[0])
    assert finetune(job(tmp_path, gate="not-worse", validation_share=enough)).record.new.images >= 5
    assert len([*(tmp_path / "output/finetune").iterdir()]) == 1
