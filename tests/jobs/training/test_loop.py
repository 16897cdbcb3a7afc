"""A training killed at any step ends with the same result as an undisturbed one."""

import io

import pyarrow.parquet as pq
import pytest
import torch
from conftest import decoded_pairs, seeded

from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.loop import METRICS, train
from maskfleet.jobs.training.pairs import Pairs
from maskfleet.jobs.training.plan import TrainingPlan
from maskfleet.unet import weights
from maskfleet.unet.training import trainer

STEPS = 7


def plan(**settings):
    job = Job.of({
        "input": "images",
        "output": "output",
        "weights": "nuclei",
        "finetune": {
            "images": "images", "masks": "masks", "steps": STEPS, "crop": 32, "batch_size": 2, "width": 2,
            "validate_every": 2, "save_every": 3,
        } | settings,
    })  # fmt: skip
    base = weights.load(weights.save(seeded(width=2), mask_values=(0, 255)))
    pairs = decoded_pairs()
    return TrainingPlan(job, base, Pairs(pairs[:3], pairs[3:], (0, 255), "digest"))


def trained(storage, this=None, on_step=None, stopped=lambda: False):
    checkpoints = Checkpoints(storage, "training", Fence(storage, 1))
    return train(this or plan(), checkpoints, threads=1, on_step=on_step, stopped=stopped)


def rows(result):
    kept = ["step", "loss", "learning_rate", "dice", "checkpointing", "parts"]
    return pq.read_table(io.BytesIO(result.metrics)).select(kept).to_pylist()


class Killed(BaseException):
    pass


def killing(at):
    def on_step(report):
        if report.step.number == at:
            raise Killed

    return on_step


@pytest.mark.parametrize("recipe", ["default", "pytorch-unet"])
def test_a_training_killed_at_every_step_gives_the_same_result(tmp_path, recipe):
    undisturbed = trained(LocalStorage(str(tmp_path / "undisturbed")), plan(recipe=recipe))
    assert [row["step"] for row in rows(undisturbed)] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(undisturbed) if row["dice"] is not None] == [2, 4, 6, 7]
    storage = LocalStorage(str(tmp_path / "killed"))
    for step in range(1, STEPS):
        # Checkpoints are rarer than steps, so each process starts some steps before the one it is killed at.
        with pytest.raises(Killed):
            trained(storage, plan(recipe=recipe), killing(step))
    again = trained(storage, plan(recipe=recipe))
    assert (again.last, again.best) == (undisturbed.last, undisturbed.best)
    assert rows(again) == rows(undisturbed)


def test_a_training_in_a_bucket_resumes(tmp_path, bucket):
    undisturbed = trained(LocalStorage(str(tmp_path)))
    with pytest.raises(Killed):
        trained(open_storage(bucket), on_step=killing(5))
    assert trained(open_storage(bucket)).last == undisturbed.last


def test_a_stopped_training_keeps_every_step(tmp_path):
    storage = LocalStorage(str(tmp_path / "stopped"))
    asked = iter([False, False, False, False, False, True])
    with pytest.raises(Stopped):
        trained(storage, stopped=lambda: next(asked))
    seen = []
    again = trained(storage, on_step=lambda report: seen.append(report.step.number))
    assert seen == [6, 7]
    assert again.last == trained(LocalStorage(str(tmp_path / "undisturbed"))).last


def test_a_finished_training_makes_no_more_steps(tmp_path):
    storage = LocalStorage(str(tmp_path))
    first = trained(storage)
    again = trained(storage, on_step=killing(None))
    assert (again.last, again.best, rows(again)) == (first.last, first.best, rows(first))


def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    result = trained(LocalStorage(str(tmp_path)))
    scores = {row["step"]: row["dice"] for row in rows(result) if row["dice"] is not None}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (result.best == result.last) is (best == STEPS)


def test_every_metrics_column_has_a_meaning(tmp_path):
    table = pq.read_table(io.BytesIO(trained(LocalStorage(str(tmp_path))).metrics))
    assert table.schema.names == METRICS.names
    assert all(field.metadata[b"meaning"] for field in table.schema)
    assert min(table["seconds"].to_pylist()) > 0


def test_out_of_memory_repeats_the_step_and_gives_the_same_result(tmp_path, monkeypatch):
    """Activation checkpointing changes no bit in fp32 or bf16, so the step it starts at makes no difference."""
    undisturbed = trained(LocalStorage(str(tmp_path / "undisturbed")))
    passes = trainer.Training._passes
    seen = []

    def short(self, *batch):
        seen.append(self.number)
        if self.number == 3 and not self.model.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return passes(self, *batch)

    monkeypatch.setattr(trainer.Training, "_passes", short)
    result = trained(LocalStorage(str(tmp_path / "short")))
    assert seen == [0, 1, 2, 3, 3, 4, 5, 6]
    assert [row["checkpointing"] for row in rows(result)] == [False] * 3 + [True] * 4
    assert result.last == undisturbed.last


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_a_step_that_never_fits_is_refused_with_a_remedy(tmp_path, monkeypatch, error):
    def never(self, *batch):
        raise error

    monkeypatch.setattr(trainer.Training, "_passes", never)
    with pytest.raises(JobError, match=r"step 1 does not fit into memory \(cpu\); set .* or lower finetune.crop"):
        trained(LocalStorage(str(tmp_path)))


def test_a_nan_loss_names_the_pairs(tmp_path, monkeypatch):
    passes = trainer.Training._passes
    monkeypatch.setattr(
        trainer.Training, "_passes", lambda self, *b: passes(self, *b) * (float("nan") if self.number == 4 else 1)
    )
    with pytest.raises(
        JobError, match=r"the loss of step 5 is nan.*on crops of [012](, [012])*; check these pairs, or"
    ):
        trained(LocalStorage(str(tmp_path)))
