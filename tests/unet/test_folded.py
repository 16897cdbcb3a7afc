"""Folding changes rounding alone, fused layers change no bit, and overflow stays visible."""

import copy

import pytest
import torch
from conftest import needs_bf16, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.folded import ConvReLU, MaxPool, ceiling, folded

CPU = torch.device("cpu")


def unfused(network: nn.Module) -> nn.Module:
    """Separate convolution, ReLU and pooling."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvReLU):
                setattr(module, name, nn.Sequential(child.convolution, nn.ReLU()))
            elif isinstance(child, MaxPool):
                setattr(module, name, nn.MaxPool2d(2))
    return network


@needs_bf16
@pytest.mark.parametrize("bilinear", [False, True])
@given(height=st.integers(16, 70), width=st.integers(16, 70), batch=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_fused_layers_change_no_bit(bilinear, height, width, batch):
    network = folded(seeded(bilinear=bilinear), CPU, torch.bfloat16)
    network = network.to(torch.bfloat16, memory_format=torch.channels_last)
    assert sum(isinstance(module, ConvReLU) for module in network.modules()) == 18
    x_BCHW = torch.rand(batch, 3, height, width).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(network(x_BCHW), unfused(network)(x_BCHW))


@pytest.mark.parametrize("bilinear", [False, True])
def test_a_folded_network_is_the_same_function(bilinear):
    network = seeded(bilinear=bilinear)
    x_BCHW = torch.rand(1, 3, 40, 52)
    with torch.inference_mode():
        assert torch.allclose(folded(network, CPU, torch.float32)(x_BCHW), network(x_BCHW), rtol=1e-4, atol=1e-5)


def test_the_members_of_an_ensemble_are_fused_too():
    both = folded(Ensemble([seeded(), seeded(seed=1)]), CPU, torch.float32)
    assert sum(isinstance(module, ConvReLU) for module in both.modules()) == 36


@given(seed=st.integers(0, 100), bilinear=st.booleans(), largest=st.sampled_from([1.0, 30.0]))
@settings(max_examples=20, deadline=None)
def test_no_activation_exceeds_the_ceiling(seed, bilinear, largest):
    network = folded(seeded(seed=seed, bilinear=bilinear), torch.device("meta"), torch.float32)
    seen = []
    for module in network.modules():
        module.register_forward_hook(lambda _module, _given, made: seen.append(float(made.abs().max())))
    network(largest * (2 * torch.rand(1, 3, 32, 32) - 1))
    assert max(seen) <= ceiling(network, largest)


def test_a_network_that_may_overflow_is_not_fused():
    network = seeded()
    for place in (0, 3):
        network.down4.maxpool_conv[1].double_conv[place].weight.mul_(1e30)
    kept = folded(network, CPU, torch.float32)
    assert not any(isinstance(module, ConvReLU) for module in kept.modules())
    with torch.inference_mode():
        assert not kept(torch.rand(1, 3, 32, 32)).isfinite().all()
    assert not any(isinstance(module, ConvReLU) for module in folded(seeded(), CPU, torch.float16).modules())


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_on_other_devices_only_normalisations_are_folded(device):
    network = folded(seeded(), torch.device(device), torch.float32)
    assert not any(isinstance(module, ConvReLU | MaxPool | nn.BatchNorm2d) for module in network.modules())


def test_max_pooling_keeps_nan():
    x_BCHW = torch.rand(2, 3, 17, 20)
    x_BCHW[0, 0, 5, 5] = float("nan")
    assert torch.equal(MaxPool()(x_BCHW).nan_to_num(7), nn.MaxPool2d(2)(x_BCHW).nan_to_num(7))


def test_a_gpu_fuses_convolution_and_relu_on_request():
    for dtype, count in ((torch.float32, 18), (torch.bfloat16, 18), (torch.float16, 0)):
        network = folded(seeded(), torch.device("cuda"), dtype, fused=True)
        assert sum(isinstance(module, ConvReLU) for module in network.modules()) == count
        assert not any(isinstance(module, MaxPool) for module in network.modules())
    assert not any(
        isinstance(module, ConvReLU) for module in folded(seeded(), CPU, torch.float32, fused=False).modules()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_on_a_gpu_are_the_same_function(dtype):
    cuda, exact = torch.device("cuda"), seeded(width=16)
    network = folded(exact, cuda, dtype, fused=True).to(cuda, dtype, memory_format=torch.channels_last)
    x_BCHW = torch.rand(2, 3, 64, 96)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = network(x_BCHW.to(cuda, dtype, memory_format=torch.channels_last)).float().cpu()
        expected = exact(x_BCHW)
    assert (found - expected).norm() < (1e-5 if dtype is torch.float32 else 2e-2) * expected.norm()
