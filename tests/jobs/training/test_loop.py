"""Cut off at any step, a training ends as if it had not been."""

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
from maskfleet.jobs.training.loop import METRICS, Plan, train
from maskfleet.jobs.training.pairs import Pairs
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
    return Plan(job, base, Pairs(pairs[:3], pairs[3:], (0, 255), "digest"))


def trained(storage, this=None, progress=None, stopped=lambda: False):
    checkpoints = Checkpoints(storage, "training", Fence(storage, 1))
    return train(this or plan(), checkpoints, threads=1, progress=progress, stopped=stopped)


def rows(result):
    kept = ["step", "loss", "learning_rate", "dice", "checkpointing", "parts"]
    return pq.read_table(io.BytesIO(result.metrics)).select(kept).to_pylist()


class Killed(BaseException):
    pass


def killing(at):
    def progress(moment):
        if moment.step.number == at:
            raise Killed

    return progress


@pytest.mark.parametrize("recipe", ["default", "pytorch-unet"])
def test_killed_at_every_step_it_gives_the_same(tmp_path, recipe):
    whole = trained(LocalStorage(str(tmp_path / "whole")), plan(recipe=recipe))
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(whole) if row["dice"] is not None] == [2, 4, 6, 7]
    storage = LocalStorage(str(tmp_path / "killed"))
    for step in range(1, STEPS):
        # In the newest state there is a step of before, so each is reached by a process that began elsewhere.
        with pytest.raises(Killed):
            trained(storage, plan(recipe=recipe), killing(step))
    again = trained(storage, plan(recipe=recipe))
    assert (again.last, again.best) == (whole.last, whole.best)
    assert rows(again) == rows(whole)


def test_in_a_bucket_too(tmp_path, bucket):
    whole = trained(LocalStorage(str(tmp_path)))
    with pytest.raises(Killed):
        trained(open_storage(bucket), progress=killing(5))
    assert trained(open_storage(bucket)).last == whole.last


def test_stopped_it_keeps_every_step(tmp_path):
    storage = LocalStorage(str(tmp_path / "stopped"))
    asked = iter([False, False, False, False, False, True])
    with pytest.raises(Stopped):
        trained(storage, stopped=lambda: next(asked))
    seen = []
    again = trained(storage, progress=lambda moment: seen.append(moment.step.number))
    assert seen == [6, 7]
    assert again.last == trained(LocalStorage(str(tmp_path / "whole"))).last


def test_done_it_does_nothing_more(tmp_path):
    storage = LocalStorage(str(tmp_path))
    first = trained(storage)
    again = trained(storage, progress=killing(None))
    assert (again.last, again.best, rows(again)) == (first.last, first.best, rows(first))


def test_the_best_are_those_of_the_best_validation(tmp_path):
    result = trained(LocalStorage(str(tmp_path)))
    scores = {row["step"]: row["dice"] for row in rows(result) if row["dice"] is not None}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (result.best == result.last) is (best == STEPS)


def test_the_metrics_say_what_each_column_means(tmp_path):
    table = pq.read_table(io.BytesIO(trained(LocalStorage(str(tmp_path))).metrics))
    assert table.schema.names == METRICS.names
    assert all(field.metadata[b"meaning"] for field in table.schema)
    assert min(table["seconds"].to_pylist()) > 0


def test_out_of_memory_goes_on_at_the_same_step_and_gives_the_same(tmp_path, monkeypatch):
    """fp32 or bf16, checkpointing changes no bit; so neither does where it begins."""
    whole = trained(LocalStorage(str(tmp_path / "whole")))
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
    assert result.last == whole.last


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_what_never_fits_says_what_to_do(tmp_path, monkeypatch, error):
    def never(self, *batch):
        raise error

    monkeypatch.setattr(trainer.Training, "_passes", never)
    with pytest.raises(JobError, match=r"step 1 does not fit into memory \(cpu\); set .* or lower finetune.crop"):
        trained(LocalStorage(str(tmp_path)))


def test_a_loss_that_is_no_number_names_the_pairs(tmp_path, monkeypatch):
    passes = trainer.Training._passes
    monkeypatch.setattr(
        trainer.Training, "_passes", lambda self, *b: passes(self, *b) * (float("nan") if self.number == 4 else 1)
    )
    with pytest.raises(
        JobError, match=r"the loss of step 5 is nan.*on crops of [012](, [012])*; look at these pairs, or"
    ):
        trained(LocalStorage(str(tmp_path)))


def test_what_the_result_does_not_depend_on_is_not_in_its_id():
    assert plan().id == plan(save_every=1, checkpointing="on", unpaired="skip", images="a", masks="b").id
    others = [{"seed": 1}, {"steps": 8}, {"crop": 48}, {"recipe": "pytorch-unet"}, {"pick": "best"}, {"store": "fp16"}]
    assert len({plan().id, *(plan(**other).id for other in others)}) == 1 + len(others)


def test_steps_and_rates_that_are_left_to_us():
    assert plan(steps="auto", epochs=4).steps == 6  # of three pairs, two at a time
    assert plan().rate == 3e-4
    assert plan(recipe="pytorch-unet").rate == 1e-5
    assert plan(start="random").rate == 1e-3
    assert plan(steps=100, validate_every="auto").validate_every == 10
