"""The forms in which checkpoints of Pytorch-UNet lie about: each gives the same weights, or the true reason."""

import argparse
import collections
import io
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import seeded
from torch import nn

from maskfleet.unet import weights
from maskfleet.unet.checkpoints.pytorch_unet import convert
from maskfleet.unet.model import DoubleConv, Down, OutConv, UNet, Up
from maskfleet.unet.network import WeightsError

MODEL = seeded(2, bilinear=True)
STATE = MODEL.state_dict()


def saved(value, **how) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **how)
    return sink.getvalue()


def under(prefix, state=STATE):
    return collections.OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def release_1(name):
    name = name.replace("inc.double_conv", "inc.conv.conv").replace("maxpool_conv.1.double_conv", "mpconv.1.conv")
    return name.replace("conv.double_conv", "conv.conv")


def traced() -> bytes:
    sink = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(MODEL, torch.rand(1, 3, 32, 32)), sink)
    return sink.getvalue()


def lightning(prefix, **more):
    return {
        "state_dict": under(prefix) | {"loss.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.4",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "loops": {"fit_loop": {"state_dict": {}}},
        **more,
    }


SAME = {
    "plain": lambda: saved(STATE),
    "data parallel": lambda: saved(under("module.")),
    "nested state_dict": lambda: saved({"state_dict": STATE, "epoch": 3}),
    "nested model": lambda: saved({"model": STATE, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}),
    "nested net": lambda: saved({"net": STATE, "epoch": 3}),
    "nested model_state_dict": lambda: saved({"model_state_dict": STATE, "optimizer_state_dict": {}, "loss": 0.1}),
    "pth.tar": lambda: saved({"state_dict": under("module."), "epoch": 3, "best": torch.tensor(0.5)}),
    "lightning": lambda: saved(lightning("model.", hyper_parameters={"lr": 1e-3})),
    "lightning with a namespace": lambda: saved(lightning("net.", hyper_parameters=argparse.Namespace(lr=1))),
    "compiled": lambda: saved(under("_orig_mod.")),
    "compiled and data parallel": lambda: saved(under("module._orig_mod.")),
    "whole module": lambda: saved(MODEL),
    "whole module, data parallel": lambda: saved(nn.DataParallel(MODEL)),
    "numpy scalar": lambda: saved({"model": STATE, "best_dice": np.float64(0.9)}),
    "namespace": lambda: saved({"model": STATE, "args": argparse.Namespace(lr=1)}),
    "equal average beside": lambda: saved({"model": STATE, "model_ema": under("module.")}),
    "averaged model": lambda: saved({**under("module."), "n_averaged": torch.tensor(5)}),
    "names of release 1": lambda: saved({release_1(name): tensor for name, tensor in STATE.items()}),
    "before PyTorch 1.6": lambda: saved(STATE, _use_new_zipfile_serialization=False),
    "whole module before PyTorch 1.6": lambda: saved(MODEL, _use_new_zipfile_serialization=False),
    "TorchScript": traced,
    "safetensors": lambda: safetensors.torch.save({name: t.clone() for name, t in STATE.items()}),
    "prefix unet": lambda: saved(under("unet.")),
    "prefix module.model": lambda: saved(under("module.model.")),
    "parameters": lambda: saved({n: nn.Parameter(t) if t.is_floating_point() else t for n, t in STATE.items()}),
    "list": lambda: saved([STATE]),
    "tuple": lambda: saved((STATE, {"epoch": 1})),
    "channels last": lambda: saved(
        {n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in STATE.items()}
    ),
    "one storage for all": lambda: saved(shared(STATE)),
}


def shared(state):
    """Return views of one storage, as DistributedDataParallel's buckets leave them."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    whole, start, views = torch.cat([tensor.flatten() for tensor in floats.values()]), 0, {}
    for name, tensor in floats.items():
        views[name] = whole[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    return state | views


@pytest.fixture(scope="module")
def expected():
    return weights.load(convert(saved(STATE)))


@pytest.mark.parametrize("form", SAME)
def test_a_form_gives_the_same_weights(form, expected):
    found = weights.load(convert(SAME[form]()))
    assert found.id == expected.id
    x = torch.rand(1, 3, 32, 48)
    assert torch.equal(found.model(x), MODEL(x))


def test_halves_become_the_nearest_floats():
    halves = {name: t.half() if t.is_floating_point() else t for name, t in STATE.items()}
    found = weights.load(convert(saved(halves)))
    assert torch.equal(found.model.state_dict()["outc.conv.weight"], STATE["outc.conv.weight"].half().float())


@pytest.mark.parametrize(
    ("channels", "classes", "bilinear", "width"), [(1, 1, False, 2), (4, 5, True, 2), (3, 2, False, 32)]
)
def test_channels_classes_and_width_follow_from_the_shapes(channels, classes, bilinear, width):
    model = UNet(channels, classes, bilinear=bilinear, width=width).eval()
    found = weights.load(convert(saved({"model": model.state_dict()}))).model
    assert (found.n_channels, found.n_classes, found.bilinear, found.width) == (channels, classes, bilinear, width)


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_mask_values_are_found_in_and_beside_the_state_dict(where):
    state = {"model": {**STATE, "mask_values": [0, 7]}} if where == "inside" else {"m": STATE, "mask_values": [0, 7]}
    assert weights.load(convert(saved(state))).mask_values == (0, 7)


class Levels(nn.Module):
    """A U-Net of another depth, with Pytorch-UNet's names."""

    def __init__(self, levels):
        super().__init__()
        self.inc = DoubleConv(3, 2)
        for level in range(levels):
            setattr(self, f"down{level + 1}", Down(2 * 2**level, 4 * 2**level))
            setattr(self, f"up{level + 1}", Up(2 * 2 ** (levels - level), 2 ** (levels - level), bilinear=False))
        self.outc = OutConv(2, 2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: saved(Levels(3).state_dict()), "has 3 levels; maskfleet runs Pytorch-UNet's four"),
        (lambda: saved(Levels(5).state_dict()), "has 5 levels"),
        (lambda: saved(STATE | {"att1.W_g.0.weight": torch.rand(4, 4, 1, 1)}), "unexpected tensor att1.W_g.0.weight"),
        (lambda: saved({"encoder.conv1.weight": torch.ones(3)}), "first named 'encoder.conv1.weight'"),
        (lambda: saved({"epoch": 3}), "holds no tensors"),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras writes"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda: saved({n: t[..., None] if t.ndim == 4 else t for n, t in STATE.items()}), "not two-dimensional"),
        (lambda: saved(STATE)[:-500], "damaged or cut off"),
        (lambda: saved(STATE, _use_new_zipfile_serialization=False)[:-500], "damaged or cut off"),
    ],
)
def test_what_is_none_of_ours_is_said(made, message):
    with pytest.raises(WeightsError, match=message):
        convert(made())


def test_an_average_that_differs_is_chosen_by_its_key():
    average = {name: t * 0.5 if t.is_floating_point() else t for name, t in STATE.items()}
    data = saved({"model": STATE, "ema": {"module": average}})
    with pytest.raises(
        WeightsError, match=re.escape("holds 2 networks that differ; choose one with --key: model, ema.module")
    ):
        convert(data)
    with pytest.raises(WeightsError, match="holds no network 'other'; give one of model, ema.module to --key"):
        convert(data, key="other")
    assert weights.load(convert(data, key="model")).id == weights.load(convert(saved(STATE))).id
    assert weights.load(convert(data, key="ema.module")).id == weights.load(convert(saved(average))).id
