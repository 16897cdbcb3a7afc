"""Checkpoints of Pytorch-UNet as weights files."""

import io
import os

import pytest
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet import weights
from maskfleet.unet.checkpoints.pytorch_unet import convert
from maskfleet.unet.network import WeightsError


def checkpoint(state) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink)
    return sink.getvalue()


@pytest.mark.parametrize("bilinear", [False, True])
def test_convert_reads_head_with_and_without_mask_values(bilinear):
    model = seeded(2, bilinear=bilinear)
    plain = weights.load(convert(checkpoint(model.state_dict())))
    full = weights.load(convert(checkpoint({**model.state_dict(), "mask_values": [0, 200]})))
    x = torch.rand(1, 3, 32, 48)
    assert torch.equal(plain.model(x), model(x))
    assert (plain.model.bilinear, plain.mask_values, full.mask_values) == (bilinear, None, (0, 200))


def test_convert_reads_rgb_mask_values():
    state = {**seeded().state_dict(), "mask_values": [[0, 0, 0], [255, 0, 0]]}
    assert weights.load(convert(checkpoint(state))).mask_values == ([0, 0, 0], [255, 0, 0])


def test_convert_folds_the_biases_of_the_first_releases():
    model = seeded()
    state = model.state_dict()
    biased = torch.nn.ModuleDict()
    for name in [name for name in state if name.endswith((".double_conv.0.weight", ".double_conv.3.weight"))]:
        state[name.replace("weight", "bias")] = torch.randn(state[name].shape[0])
    # The reference: the same network with biases in its convolutions.
    reference = seeded()
    for block_name, block in reference.named_modules():
        if block_name.endswith("double_conv"):
            for index in (0, 3):
                block[index].bias = torch.nn.Parameter(state[f"{block_name}.{index}.bias"], requires_grad=False)
    assert not biased
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    converted = weights.load(convert(checkpoint(state))).model.double()
    assert torch.allclose(converted(x), reference.double()(x), rtol=0, atol=1e-5)
    assert not torch.allclose(converted(x), model.double()(x), atol=1e-2)


def test_convert_strips_data_parallel():
    state = {f"module.{name}": value for name, value in seeded().state_dict().items()}
    assert weights.load(convert(checkpoint(state))).model.n_classes == 2


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_convert_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="holds no tensors"):
        convert(checkpoint({"a": Bomb()}))
    assert not list(tmp_path.iterdir())


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "inc.double_conv.0.weight"), "another network than a Pytorch-UNet"),
        (lambda s: without(s, "up2.up.weight"), "tensor up2.up.weight is missing"),
        (lambda s: s | {"extra": torch.zeros(1)}, "unexpected tensor extra"),
        (lambda s: s | {"up3.up.bias": torch.zeros(5)}, "tensor up3.up.bias has the shape"),
        (lambda s: s | {"outc.conv.bias": torch.tensor([0.0, float("nan")])}, "NaN or infinity"),
        (lambda s: s | {"mask_values": [1, 2, 3]}, "mask_values names 3 classes"),
        (lambda s: s | {"mask_values": [[0], {}]}, "mask_values is no list of pixel values"),
        (lambda s: without(s, "outc.conv.weight"), "tensor outc.conv.weight is missing"),
        (lambda s: [1, 2], "holds no tensors"),
    ],
)
def test_convert_names_what_is_wrong(change, message):
    with pytest.raises(WeightsError, match=message):
        convert(checkpoint(change(seeded().state_dict())))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_a_message(data):
    with pytest.raises(WeightsError):
        convert(data)
