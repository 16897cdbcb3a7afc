import pytest
from conftest import decoded_pairs, seeded
from drawn_programs import Builder

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.pairs import Pairs
from maskfleet.jobs.training.plan import TrainingPlan, plan_training
from maskfleet.unet import weights
from maskfleet.unet.programs.network import ProgramNetwork
from maskfleet.unet.programs.program import Value


def plan(**settings):
    job = Job.of({
        "input": "images",
        "output": "output",
        "weights": "nuclei",
        "finetune": {
            "images": "images", "masks": "masks", "steps": 7, "crop": 32, "batch_size": 2, "width": 2,
        } | settings,
    })  # fmt: skip
    base = weights.load(weights.save(seeded(width=2), mask_values=(0, 255)))
    pairs = decoded_pairs()
    return TrainingPlan(job, base, Pairs(pairs[:3], pairs[3:], (0, 255), "digest"))


def test_the_id_covers_exactly_the_settings_the_weights_depend_on():
    assert plan().id == plan(save_every=1, checkpointing="on", unpaired="skip", images="a", masks="b").id
    others = [{"seed": 1}, {"steps": 8}, {"crop": 48}, {"recipe": "pytorch-unet"}, {"pick": "best"}, {"store": "fp16"}]
    assert len({plan().id, *(plan(**other).id for other in others)}) == 1 + len(others)


def test_defaults_follow_from_pairs_and_recipe():
    assert plan(steps="auto", epochs=4).steps == 6  # three pairs, two per batch
    assert plan().learning_rate == 3e-4
    assert plan(recipe="pytorch-unet").learning_rate == 1e-5
    assert plan(start="random").learning_rate == 1e-3
    assert plan(steps=100, validate_every="auto").validate_every == 10


def test_a_random_start_follows_from_the_seed():
    same, again, other = (plan(start="random", seed=seed).network() for seed in (1, 1, 2))
    first, second, third = (network.inc.double_conv[0].weight for network in (same, again, other))
    assert (first == second).all()
    assert not (first == third).all()


def test_an_exported_network_is_not_trained(tmp_path):
    made = Builder()
    program = made.program(made.conv(Value(0), 3, 2))
    network = ProgramNetwork(program, made.tensors, n_channels=3, multiple=2)
    (tmp_path / "w.safetensors").write_bytes(weights.save(network))
    job = Job.of({
        "input": "images", "output": str(tmp_path / "out"), "weights": str(tmp_path / "w.safetensors"),
        "finetune": {"images": "images", "masks": "masks"},
    })  # fmt: skip
    with pytest.raises(JobError, match="trains Pytorch-UNets, and .* is an exported network; train it in its library"):
        plan_training(job)
