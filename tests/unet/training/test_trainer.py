import json

import pytest
import safetensors.torch
import torch

from maskfleet.unet.model import UNet
from maskfleet.unet.training import trainer
from maskfleet.unet.training.trainer import NotFinite, Training, rate

RECIPES = ("default", "pytorch-unet")


def batch(number, size=4):
    generator = torch.Generator().manual_seed(number)
    target = (torch.rand(size, 1, 8, 8, generator=generator) > 0.6).float()
    target = torch.nn.functional.interpolate(target, (32, 32)).to(torch.uint8)
    return (target * 200).expand(-1, 3, -1, -1).contiguous(), target[:, 0]


def training(*, classes=2, **more):
    torch.manual_seed(0)
    return Training(UNet(3, classes, width=2), **({"steps": 12} | more))


def trained(this, first, last):
    """Make steps, with a validation at every third, at constant scores."""
    for number in range(first, last):
        this.step(*batch(number))
        if number % 3 == 2:
            this.validated(1 / (1 + number))
    return this


def same(one, two):
    first, second = safetensors.torch.load(one.state()), safetensors.torch.load(two.state())
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("classes", [1, 2])
def test_training_learns(classes):
    torch.manual_seed(0)
    this = Training(UNet(3, classes, width=4), steps=40, learning_rate=1e-2)
    steps = [this.step(*batch(number, 2)) for number in range(40)]
    assert [step.number for step in steps] == list(range(1, 41))
    assert sum(step.loss for step in steps[-5:]) < 0.5 * sum(step.loss for step in steps[:5])
    assert all(step.seconds > 0 and step.memory > 0 for step in steps)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cut", range(0, 13, 4))
def test_a_restored_state_continues_bit_for_bit(recipe, cut):
    whole = trained(training(recipe=recipe), 0, 12)
    before = trained(training(recipe=recipe), 0, cut)
    after = training(recipe=recipe)
    after.model.outc.conv.bias.data.fill_(9)  # the state alone counts
    after.restore(before.state())
    assert same(whole, trained(after, cut, 12)) == []
    assert (after.number, after.best) == (whole.number, whole.best)


def test_a_state_is_complete():
    """Leaving out any part of a state changes later steps."""
    before = trained(training(), 0, 6)
    whole = trained(before, 6, 8)
    state = trained(training(), 0, 6).state()
    tensors = safetensors.torch.load(state)
    length = int.from_bytes(state[:8], "little")
    header = json.loads(state[8 : 8 + length])["__metadata__"]
    for part in ("model.", "average.", "optimizer."):
        spoilt = {
            name: value * 0 if name.startswith(part) and value.is_floating_point() and value.ndim else value
            for name, value in tensors.items()
        }
        after = training()
        after.restore(safetensors.torch.save(spoilt, header))
        assert same(whole, trained(after, 6, 8)), part


def test_a_state_is_no_pickle():
    state = trained(training(), 0, 1).state()
    length = int.from_bytes(state[:8], "little")
    assert json.loads(json.loads(state[8 : 8 + length])["__metadata__"]["state"])["number"] == 1


def test_pytorch_unets_recipe_has_its_own_optimizer_and_schedule():
    this = training(recipe="pytorch-unet")
    (group,) = this._optimizer.param_groups
    assert isinstance(this._optimizer, torch.optim.RMSprop)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-5, 0.999, 1e-8)
    assert (group["alpha"], group["eps"], group["centered"], group["foreach"]) == (0.99, 1e-8, False, True)
    this.validated(0.5)
    rates = []
    for _ in range(7):
        this.validated(0.4)
        rates.append(this.step(*batch(0, 1)).learning_rate)
    assert rates == pytest.approx([1e-5] * 5 + [1e-6] * 2)


def test_a_step_of_pytorch_unets_recipe_follows_the_clipped_gradient():
    this, twin = training(recipe="pytorch-unet"), training(recipe="pytorch-unet").model
    for model in (this.model, twin):
        model.outc.conv.weight.data *= 10
    pixels, target = batch(0)
    this.step(pixels, target)
    optimizer = torch.optim.RMSprop(twin.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999, foreach=True)
    trainer.pytorch_unet_loss(twin((pixels.float() / 255).to(memory_format=torch.channels_last)), target).backward()
    assert torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0) > 1  # it was clipped
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(this.model.parameters(), twin.parameters(), strict=True))


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [rate(step / 100) for step in range(101)]
    assert rates[2] == pytest.approx(0.4)
    assert max(rates) == pytest.approx(1.0)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(0.0)


def test_the_default_result_is_the_running_mean_of_the_weights():
    this = trained(training(), 0, 3)
    result = this.result
    assert not result.training
    assert result.outc.conv.weight.is_contiguous()
    assert not torch.equal(result.outc.conv.weight, this.model.outc.conv.weight)
    before = result.outc.conv.weight.clone()
    trained(this, 3, 4)
    assert torch.equal(result.outc.conv.weight, before)


def short_of_memory(this, monkeypatch, *, fits):
    """Raise a GPU's error within a pass, unless `fits` accepts the batch."""
    up = this.model.up3.forward

    def forward(x_BCHW, skip_BCHW):
        if not fits(this.model.checkpointing, len(x_BCHW)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return up(x_BCHW, skip_BCHW)

    monkeypatch.setattr(this.model.up3, "forward", forward)


def test_out_of_memory_turns_checkpointing_on(monkeypatch):
    plain = trained(training(), 0, 8)
    this = trained(training(), 0, 5)
    short_of_memory(this, monkeypatch, fits=lambda checkpointing, _: checkpointing)
    step = this.step(*batch(5))
    assert (step.number, step.checkpointing, step.micro_batches) == (6, True, 1)
    this.validated(1 / 6)
    assert same(plain, trained(this, 6, 8)) == []


def test_still_out_of_memory_splits_the_batch_of_the_same_step(monkeypatch):
    this = trained(training(), 0, 2)
    seen = this.model.inc.double_conv[1].num_batches_tracked.clone()
    short_of_memory(this, monkeypatch, fits=lambda checkpointing, images: checkpointing and images <= 1)
    step = this.step(*batch(2))
    assert (step.number, step.checkpointing, step.micro_batches) == (3, True, 4)
    # Tries that failed left nothing behind: four parts have been normalised, once each.
    assert this.model.inc.double_conv[1].num_batches_tracked == seen + 4
    assert this.step(*batch(3)).micro_batches == 4
    after = training()
    after.restore(this.state())
    assert after.step(*batch(4)).micro_batches == 4


def test_the_optimizers_state_is_allocated_before_the_first_pass(monkeypatch):
    """Allocated later, it would run out of memory when no saving is possible."""
    plain = trained(training(), 0, 2)
    this = training()
    room = 1.5 * sum(value.nbytes for value in this.model.parameters())
    state = this._optimizer.state

    def taken():
        return sum(value.nbytes for kept in state.values() for name, value in kept.items() if name != "step")

    # Activations fit beside what is taken by then, or without it; never beside all of the optimizer's.
    short_of_memory(this, monkeypatch, fits=lambda checkpointing, _: checkpointing or taken() < room)
    make = this._optimizer.step

    def step(*arguments):
        before = taken()
        made = make(*arguments)
        if taken() > before:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    monkeypatch.setattr(this._optimizer, "step", step)
    assert this.step(*batch(0)).checkpointing
    assert same(plain, trained(this, 1, 2)) == []


def test_gradients_of_micro_batches_add_up_to_the_batchs(monkeypatch):
    """With a normalisation independent of the batch."""
    gradients = []
    for parts in (1, 2, 4):
        this = training(recipe="pytorch-unet")
        this.model.eval()
        this._parts = parts
        monkeypatch.setattr(trainer, "pytorch_unet_loss", lambda logits, target, **_: logits.square().mean())
        this._gradients(*batch(0))
        gradients.append(torch.cat([value.grad.flatten() for value in this.model.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_memory_is_saved_only_with_auto(monkeypatch, checkpointing):
    this = training(checkpointing=checkpointing)
    short_of_memory(this, monkeypatch, fits=lambda *_: False)
    with pytest.raises(torch.OutOfMemoryError):
        this.step(*batch(0))
    assert this.model.checkpointing is (checkpointing == "on")


def test_other_errors_save_no_memory(monkeypatch):
    this = training()
    monkeypatch.setattr(this.model.up3, "forward", lambda *_: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        this.step(*batch(0))
    assert not this.model.checkpointing


def test_pixels_are_normalised():
    normalize = ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    seen = []
    this = training(recipe="pytorch-unet", normalize=normalize)
    this.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    pixels, target = batch(0)
    this.step(pixels, target)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in normalize)
    assert torch.equal(seen[0], (pixels.float() / 255 - mean) / std)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loss_that_is_not_finite_changes_nothing(recipe):
    this = trained(training(recipe=recipe), 0, 3)
    before = this.state()
    weight = this.model.outc.conv.weight
    kept = weight.data[0, 0, 0, 0].item()
    weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match="the loss of step 4 is nan"):
        this.step(*batch(3))
    weight.data[0, 0, 0, 0] = kept
    after = training(recipe=recipe)
    after.restore(before)
    assert same(this, after) == []
