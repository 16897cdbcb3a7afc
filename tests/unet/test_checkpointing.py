"""Checkpointing changes memory and time, but no bit of gradients and statistics; known wrong ways are noticed."""

import copy

import pytest
import torch
from conftest import seeded
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from maskfleet.unet import model as unet_model


def network(*, bilinear=False, checkpointing=False):
    model = seeded(bilinear=bilinear, width=4).train().requires_grad_(True)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.num_batches_tracked.fill_(7)
    model.use_checkpointing(checkpointing)
    return model


def after_a_step(model, *, autocast=False, forward=None, batches=1, needs_gradient=False):
    """Loss, gradients and buffers after a forward and backward pass of each batch."""
    torch.manual_seed(3)
    for _ in range(batches):
        image = torch.rand(2, 3, 49, 70, requires_grad=needs_gradient)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (model if forward is None else forward)(image).float().square().mean()
        loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient of {name}": value.grad for name, value in model.named_parameters()}
    return found | {f"buffer {name}": value.clone() for name, value in model.named_buffers()}


def differences(one, two):
    return [
        name
        for name in one
        if (one[name] is None) != (two[name] is None)
        or (one[name] is not None and not torch.equal(one[name], two[name]))
    ]


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bilinear", [False, True])
def test_gradients_and_statistics_are_bit_equal(bilinear, autocast, needs_gradient):
    how = {"autocast": autocast, "batches": 2, "needs_gradient": needs_gradient}
    plain = after_a_step(network(bilinear=bilinear), **how)
    saving = after_a_step(network(bilinear=bilinear, checkpointing=True), **how)
    assert differences(plain, saving) == []
    assert all(value is not None for value in plain.values())
    assert plain["buffer down3.maxpool_conv.1.double_conv.4.num_batches_tracked"] == 9


def test_the_state_dict_is_the_same():
    one, two = network(), network(checkpointing=True)
    assert list(one.state_dict()) == list(two.state_dict())
    two.load_state_dict(one.state_dict())


def test_momentum_none_is_averaged_once():
    def averaging(checkpointing):
        model = network(checkpointing=checkpointing)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None
        return after_a_step(model, batches=3)

    assert differences(averaging(False), averaging(True)) == []


@pytest.mark.parametrize(("reentrant", "needs_gradient"), [(False, False), (True, True), (True, False)])
def test_the_known_wrong_ways_are_noticed(reentrant, needs_gradient, monkeypatch):
    def naive(function, *inputs, owner):
        return checkpoint(function, *inputs, use_reentrant=reentrant)

    plain = after_a_step(network(), needs_gradient=needs_gradient)
    monkeypatch.setattr(unet_model, "checkpointed", naive)
    differ = differences(plain, after_a_step(network(checkpointing=True), needs_gradient=needs_gradient))
    # The losses are equal, so that nobody notices.
    assert "loss" not in differ
    if reentrant and not needs_gradient:
        # An image needs no gradient: of all that is checkpointed nothing is trained.
        assert {name for name in plain if name.startswith("gradient")} - set(differ) == {
            "gradient of outc.conv.weight",
            "gradient of outc.conv.bias",
        }
    else:
        assert {name for name in plain if "running_mean" in name or "num_batches" in name} <= set(differ)
        assert not any(name.startswith("gradient") for name in differ)


def test_activations_are_recomputed():
    """Counted in operations: one more forward pass of all checkpointed blocks."""

    def work(model, *, backward=True):
        with FlopCounterMode(display=False) as counter:
            loss = model(torch.rand(2, 3, 48, 64)).square().mean()
            if backward:
                loss.backward()
        return counter.get_total_flops()

    model = network()
    head = 2 * 2 * 48 * 64 * 4 * 2
    assert work(network(checkpointing=True)) == work(model) + work(model, backward=False) - head


def test_less_is_kept_for_backward():
    def kept(model):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(torch.rand(2, 3, 128, 128))
        assert logits.requires_grad
        return sum(size for pointer, size in storages.items() if pointer not in parameters)

    assert kept(network(checkpointing=True)) <= 0.3 * kept(network())


def test_it_costs_nothing_without_gradients_and_can_be_turned_off():
    model = network(checkpointing=True)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        one = copy.deepcopy(model)(image)
    model.use_checkpointing(False)
    two = model(image)
    assert torch.equal(one, two)


@pytest.mark.parametrize("bilinear", [False, True])
def test_a_compiled_network_gives_the_same(bilinear):
    """Compared with the compiled network without checkpointing; statistics are updated once."""
    torch._dynamo.reset()
    plain = network(bilinear=bilinear)
    saving = network(bilinear=bilinear, checkpointing=True)
    one = after_a_step(plain, forward=torch.compile(plain, backend="aot_eager"))
    two = after_a_step(saving, forward=torch.compile(saving, backend="aot_eager"))
    assert differences(one, two) == []
    assert two["buffer inc.double_conv.1.num_batches_tracked"] == 8
