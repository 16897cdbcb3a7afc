"""Choice of a device and a precision."""

import pytest
import torch

from maskfleet.unet import precision as module
from maskfleet.unet.precision import DeviceError, above, fastest, native, resolved

CPU = torch.device("cpu")


def with_instructions(monkeypatch, *names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


def test_a_precision_is_native_with_instructions_for_it(monkeypatch):
    with_instructions(monkeypatch, "avx512_f")
    assert native(CPU) == ("fp32",)
    with_instructions(monkeypatch, "avx512_f", "avx512_bf16")
    assert native(CPU) == ("bf16", "fp32")
    with_instructions(monkeypatch, "amx_bf16", "amx_fp16")
    assert native(CPU) == ("bf16", "fp16", "fp32")


def test_auto_is_the_first_that_is_native(monkeypatch):
    with_instructions(monkeypatch)
    assert resolved("auto", CPU) == "fp32"
    with_instructions(monkeypatch, "amx_bf16")
    assert resolved("auto", CPU) == "bf16"


def test_an_unsupported_precision_is_refused_with_a_remedy(monkeypatch):
    with_instructions(monkeypatch)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(DeviceError, match="cpu cannot compute in fp16; set inference.precision to 'auto' or 'fp32'"):
        resolved("fp16", CPU)


def test_each_precision_has_a_more_exact_one(monkeypatch):
    with_instructions(monkeypatch, "amx_bf16", "amx_fp16")
    assert [above(each, CPU) for each in ("bf16", "fp16")] == ["fp16", "fp32"]
    with_instructions(monkeypatch, "amx_bf16")
    assert above("bf16", CPU) == "fp32"


def test_among_about_equally_fast_precisions_the_most_exact_wins():
    assert fastest({"bf16": 1.0, "fp16": 2.0, "fp32": 4.0}) == "bf16"
    assert fastest({"bf16": 1.0, "fp16": 1.05, "fp32": 4.0}) == "fp16"
    assert fastest({"bf16": 1.0, "fp32": 1.09}) == "fp32"
    assert fastest({"bf16": 2.0, "fp32": 1.0}) == "fp32"


def test_dtypes_are_in_the_order_of_their_mantissas():
    eps = [torch.finfo(module.DTYPES[name]).eps for name in module.EXACTNESS]
    assert eps == sorted(eps, reverse=True)
