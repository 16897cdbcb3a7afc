"""Ranks sharing batches, over gloo on loopback, compared with one process that has the whole batch."""

from functools import partial

import pytest
import safetensors.torch
import torch
from faults import ranks

from maskfleet.unet.training.process_group import PeerFailed, Peers


@pytest.fixture(scope="module")
def together():
    """Results of two ranks for each way of sharing; processes are started once."""
    return dict(
        zip(("own", "synced", "remade", "short", "failed"), zip(*ranks.on_two(_ways), strict=True), strict=True)
    )


def _ways():
    own = ranks.trained()
    synced = ranks.trained(sync_batchnorm=True)
    remade = ranks.trained(sync_batchnorm=True, checkpointing="on")
    short = ranks.trained(before=partial(ranks.short_of_memory, rank=1))
    try:
        failed = ranks.trained(before=partial(ranks.short_of_memory, rank=1, saved=False))
    except Exception as error:
        failed = error
    return own, synced, remade, short, failed


def tensors(state):
    return {name: value for name, value in safetensors.torch.load(state).items() if value.is_floating_point()}


def differing(one, two):
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def test_a_single_process_needs_no_messages():
    peers = Peers()
    kept = torch.rand(3)
    before = kept.clone()
    peers.average([kept])
    assert (peers.rank, peers.count, list(range(5))[peers.share]) == (0, 1, [0, 1, 2, 3, 4])
    assert torch.equal(kept, before)
    assert (peers.any(False), peers.any(True)) == (False, True)
    assert (peers.number_of_first(0.1), peers.bytes_of_first(b"state")) == (0.1, b"state")


@pytest.mark.parametrize("way", ["own", "synced", "remade", "short"])
def test_all_ranks_end_with_the_same_state(together, way):
    (losses, state), (others_losses, others_state) = together[way]
    assert losses == others_losses
    assert differing(state, others_state) == []


def test_with_synced_normalisation_two_ranks_make_the_steps_of_one(together):
    losses, state = together["synced"][0]
    alone_losses, alone_state = ranks.trained()
    assert losses == pytest.approx(alone_losses, rel=1e-4)
    alone = tensors(alone_state)
    for name, value in tensors(state).items():
        if name.startswith("model."):
            # Adam divides by the gradient's size, so where that is nothing but rounding a weight may go either way.
            assert torch.allclose(value, alone[name], rtol=1e-3, atol=2e-3), name
    running = [name for name in alone if name.endswith("running_var")]
    assert all(torch.allclose(tensors(state)[name], alone[name], rtol=1e-2) for name in running)


def test_with_separate_normalisation_they_do_not(together):
    losses, _ = together["own"][0]
    assert losses != pytest.approx(ranks.trained()[0], rel=1e-4)


def test_checkpointing_changes_no_bit_of_a_shared_step(together):
    (losses, state), (remade_losses, remade) = together["synced"][0], together["remade"][0]
    assert losses == remade_losses
    assert differing(state, remade) == []


def test_one_rank_may_save_memory_alone(together):
    (losses, state), (short_losses, short) = together["own"][0], together["short"][0]
    assert losses == short_losses
    assert differing(state, short) == []


def test_a_failed_rank_ends_the_step_of_the_others(together):
    first, second = together["failed"]
    assert isinstance(first, PeerFailed)
    assert isinstance(second, torch.OutOfMemoryError)
