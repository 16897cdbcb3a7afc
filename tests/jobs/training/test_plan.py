from conftest import decoded_pairs, seeded

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.pairs import Pairs
from maskfleet.jobs.training.plan import TrainingPlan
from maskfleet.unet import weights


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
