"""Which precision is taken, and how far it is from fp32."""

import numpy as np
import pytest
import torch
from conftest import needs_bf16, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet.inference import precision as module
from maskfleet.unet.inference.precision import (
    Agreement,
    DeviceError,
    above,
    compared,
    fastest,
    native,
    resolved,
    seconds_of,
)
from maskfleet.unet.inference.segmenter import Segmenter

CPU = torch.device("cpu")


def with_instructions(monkeypatch, *names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


def test_a_processor_has_what_it_has_instructions_for(monkeypatch):
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


def test_what_a_device_cannot_do_is_refused_with_a_remedy(monkeypatch):
    with_instructions(monkeypatch)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(DeviceError, match="cpu cannot compute in fp16; set inference.precision to 'auto' or 'fp32'"):
        resolved("fp16", CPU)


def test_each_precision_has_one_above(monkeypatch):
    with_instructions(monkeypatch, "amx_bf16", "amx_fp16")
    assert [above(each, CPU) for each in ("bf16", "fp16")] == ["fp16", "fp32"]
    with_instructions(monkeypatch, "amx_bf16")
    assert above("bf16", CPU) == "fp32"


def test_of_about_as_quick_ones_the_most_exact_is_taken():
    assert fastest({"bf16": 1.0, "fp16": 2.0, "fp32": 4.0}) == "bf16"
    assert fastest({"bf16": 1.0, "fp16": 1.05, "fp32": 4.0}) == "fp16"
    assert fastest({"bf16": 1.0, "fp32": 1.09}) == "fp32"
    assert fastest({"bf16": 2.0, "fp32": 1.0}) == "fp32"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.integers(2, 4), st.data())
def test_agreement_is_that_of_the_definition(shapes, classes, data):
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    pairs = [tuple(random.integers(0, classes, (2, *shape), np.uint8)) for shape in shapes]
    found = Agreement.of(pairs, classes)
    shares = [(a == b).mean() for a, b in pairs]
    flat = [np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1)]
    dices = []
    for class_ in range(classes):
        a, b = (side == class_ for side in flat)
        dices.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0)
    assert found.images == len(pairs)
    assert found.agreement == pytest.approx((flat[0] == flat[1]).mean())
    assert (found.worst_image, found.worst_agreement) == (int(np.argmin(shares)), min(shares))
    assert (found.worst_class, found.worst_dice) == (int(np.argmin(dices)), pytest.approx(min(dices)))


@needs_bf16
def test_a_segmenter_agrees_with_itself_and_bf16_does_not_quite():
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (40, 50 + index, 3), np.uint8) for index in range(3)]
    exact = Segmenter(seeded(width=8), precision="fp32")
    assert compared(exact, exact, images)[:4] == (3, 1.0, 0, 1.0)
    found = compared(Segmenter(seeded(width=8), precision="bf16"), exact, images)
    assert 0.9 < found.worst_agreement <= found.agreement < 1
    assert found.worst_dice < 1


def test_times_are_of_whole_batches():
    class Counting(Segmenter):
        seen = ()

        def segment(self, images, size=None):
            self.seen = (*self.seen, images.shape)
            return super().segment(images, size)

    segmenter = Counting(seeded(), batch_size=3)
    segmenter.seen = ()
    assert seconds_of(segmenter, (32, 48)) > 0
    assert set(segmenter.seen) == {(3, 32, 48, 3)}
    assert len(segmenter.seen) == 3  # one to warm up


@needs_bf16
def test_what_overflows_in_bf16_is_computed_in_fp32():
    model = overflowing()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    with torch.inference_mode():
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        assert not model.to(torch.bfloat16)(x.to(torch.bfloat16)).isfinite().all()
    expected, _ = Segmenter(overflowing(), precision="fp32").segment(images)
    labels, statistics = Segmenter(overflowing(), precision="bf16").segment(images)
    assert statistics.finite.all()
    assert np.array_equal(labels, expected)
    # And of an image that comes in rows.
    rows = []
    segmenter = Segmenter(overflowing(), precision="bf16")
    assert segmenter.segment_rows(lambda start, stop: images[:1, start:stop], 32, 48, rows.append).finite.all()
    assert np.array_equal(np.concatenate(rows), expected[0])


def overflowing():
    """A network with a weight that fp32 holds and bf16 rounds to infinity."""
    model = seeded()
    model.up4.conv.double_conv[4].weight[0] = 1e-36
    model.up4.conv.double_conv[4].bias[0] = 1e-36
    model.outc.conv.weight[0, 0] = 3.4e38
    assert torch.tensor(3.4e38).bfloat16().isinf()
    return model


def test_dtypes_are_in_the_order_of_their_mantissas():
    eps = [torch.finfo(module.DTYPES[name]).eps for name in module.EXACTNESS]
    assert eps == sorted(eps, reverse=True)


def test_images_that_do_not_fit_are_not_compared():
    class Short(Segmenter):
        def _forward(self, pixels_BHWC, threads=None):
            if pixels_BHWC.shape[1] == 50:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._forward(pixels_BHWC, threads)

    drawn = [np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8) for side in (50, 40)]
    short, exact = Short(seeded(), precision="fp32"), Segmenter(seeded(), precision="fp32")
    found = compared(short, exact, drawn)
    assert (found.images, found.worst_image) == (1, 1)
    assert compared(short, exact, drawn[:1]) == (0, 0.0, 0, 0.0, 0, 0.0)
