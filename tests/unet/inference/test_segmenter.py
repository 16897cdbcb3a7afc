import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import StandIn, needs_bf16, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.folded import folded
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.network import WeightsError
from maskfleet.unet.precision import DeviceError
from maskfleet.unet.process_state import cpu_threads
from maskfleet.unet.weights import save


def pixels(batch, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), np.uint8)


def plain_logits(model, images, size=None):
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.inference_mode():
        logits = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
        return nn.functional.interpolate(logits, size, mode="bilinear") if size else logits


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_labels_are_those_of_the_plain_network(n_classes, bilinear):
    model = seeded(n_classes, bilinear=bilinear)
    images = pixels(3, 40, 57)
    logits = plain_logits(model, images)
    expected = logits[:, 0].sigmoid() > 0.5 if n_classes == 1 else logits.argmax(dim=1)
    labels, _ = Segmenter(model, precision="fp32").segment(images)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected.numpy())
    assert len(np.unique(labels)) >= 2


@pytest.mark.parametrize("tile", [None, 64])
def test_input_is_normalized_as_in_training(tile):
    model = seeded(2)
    images = pixels(1, 300, 280)
    mean, std = (0.5, 0.3, 0.1), (0.2, 0.5, 2.0)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    x = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = model(x).argmax(dim=1).numpy()
    labels, statistics = Segmenter(model, precision="fp32", normalize=(mean, std), tile=tile).segment(images)
    plain, unchanged = Segmenter(model, precision="fp32", tile=tile).segment(images)
    assert np.array_equal(labels, expected)
    assert (labels != plain).mean() > 0.01
    assert statistics.input_sum.tolist() == unchanged.input_sum.tolist(), "statistics describe the pixels themselves"


def test_folding_and_layout_move_logits_by_less_than_a_tie():
    for width in (4, 16):
        model = seeded(width=width)
        images = pixels(2, 96, 80)
        fast = folded(model, torch.device("cpu"), torch.float32).to(memory_format=torch.channels_last)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            plain = plain_logits(model, images)
            # Half of the margin that counts as a tie is the most that two logits may move apart.
            assert (
                2 * (fast(x) - plain).abs().max()
                < Segmenter(model, precision="fp32")._passes.bounds.plain * plain.abs().max() / 2
            )


class Crossing(StandIn):
    """Logits so close that the plain and the fast pass disagree about every pixel."""

    def forward(self, x):
        # Only the plain pass gets a contiguous input.
        sign = 1.0 if x.is_contiguous() else -1.0
        return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0 + 1 + sign * 1e-7], dim=1)


def test_ties_are_decided_by_the_plain_pass():
    labels, statistics = Segmenter(Crossing(), precision="fp32").segment(pixels(2, 20, 20))
    assert labels.all()
    assert statistics.class_pixels.tolist() == [[0, 400], [0, 400]]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(16, 70), st.integers(16, 70), st.integers(0, 100))
def test_a_mask_does_not_depend_on_its_batch(batch, height, width, seed):
    segmenter = Segmenter(seeded(), precision="fp32")
    images = pixels(batch, height, width, seed=seed)
    together, _ = segmenter.segment(images)
    for index in range(batch):
        assert np.array_equal(segmenter.segment(images[index : index + 1])[0][0], together[index])


def test_logits_are_resized_before_the_decision():
    model = seeded(3)
    images = pixels(2, 32, 40)
    expected = plain_logits(model, images, (65, 79)).argmax(dim=1).numpy()
    labels, statistics = Segmenter(model, precision="fp32").segment(images, (65, 79))
    assert np.array_equal(labels, expected)
    assert statistics.class_pixels.sum(axis=1).tolist() == [65 * 79] * 2


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_threshold_is_a_probability(threshold):
    model = seeded(1)
    images = pixels(1, 32, 32)
    expected = plain_logits(model, images)[:, 0].sigmoid() > threshold
    labels, _ = Segmenter(model, precision="fp32", thresholds=[threshold]).segment(images)
    assert np.array_equal(labels, expected.numpy())


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_statistics_follow_their_definition(n_classes):
    model = seeded(n_classes)
    images = pixels(2, 45, 61)
    labels, statistics = Segmenter(model, precision="fp32").segment(images)
    logits = plain_logits(model, images).double()
    if n_classes == 1:
        foreground = logits[:, 0].sigmoid()
        probability = torch.stack([1 - foreground, foreground], dim=1)
    else:
        probability = logits.softmax(dim=1)
    entropy = -(probability * probability.log()).sum(dim=1)
    for index in range(2):
        for class_ in range(max(2, n_classes)):
            rows, columns = np.nonzero(labels[index] == class_)
            assert statistics.class_pixels[index, class_] == len(rows)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
            assert statistics.class_bbox[index, class_].tolist() == box
    np.testing.assert_allclose(statistics.mean_confidence, probability.amax(dim=1).mean(dim=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(statistics.mean_entropy, entropy.mean(dim=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(statistics.input_mean, (images / 255).mean(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics.input_std, (images / 255).std(axis=(1, 2)), rtol=1e-9)
    assert statistics.finite.all()


class Broken(StandIn):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        logits = x[:, :2].clone()
        logits[:, 1, 5, 5] = torch.where(x[:, 0, 0, 0] > 0.5, self.value, 0.0)
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_logits_that_are_not_finite_are_reported_for_their_image_alone(value, precision):
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, 0, 0] = 255
    _, statistics = Segmenter(Broken(value), precision=precision).segment(images)
    assert statistics.finite.tolist() == [True, False]


def test_a_missing_gpu_is_an_error_and_never_replaced_by_the_cpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="device cuda is not available"):
        Segmenter(seeded(), device="cuda")
    with pytest.raises(DeviceError, match="not supported"):
        Segmenter(seeded(), device="meta")


def test_wrong_batches_are_refused():
    segmenter = Segmenter(seeded())
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\)"):
        segmenter.segment(pixels(1, 20, 20, channels=1))
    with pytest.raises(ValueError, match="at least 16 px"):
        segmenter.segment(pixels(1, 20, 15))


def test_batch_size_follows_the_pixels():
    segmenter = Segmenter(seeded())
    assert segmenter.batch_size(256, 256) == 4
    assert segmenter.batch_size(16, 16) == 64
    assert segmenter.batch_size(4000, 4000) == 1
    assert Segmenter(seeded(), batch_size=3).batch_size(16, 16) == 3


def test_threads_may_share_a_segmenter():
    segmenter = Segmenter(seeded(), precision="fp32")
    batches = [pixels(2, 32, 32, seed=seed) for seed in range(8)]
    expected = [segmenter.segment(batch)[0] for batch in batches]
    found = [None] * 8

    def work(index):
        found[index] = segmenter.segment(batches[index])[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("threads", "concurrency", "each"), [(1, 1, 1), (2, 2, 1), (3, 1, 3), (4, 2, 2)])
def test_a_cpu_computes_two_batches_concurrently(threads, concurrency, each):
    with cpu_threads(threads):
        segmenter = Segmenter(seeded())
        seen = []
        segmenter._resident.fast.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        segmenter.segment(pixels(1, 32, 32))
        assert (segmenter.concurrency, segmenter.concurrency_of(512, 512), seen) == (concurrency, concurrency, [each])


def test_a_large_image_has_all_threads_to_itself():
    with cpu_threads(2):
        segmenter = Segmenter(seeded())
        seen = []
        segmenter._resident.fast.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        segmenter.segment(pixels(1, 1024, 528))
        segmenter.segment(pixels(1, 1024, 512))
        assert (segmenter.concurrency_of(1024, 528), seen) == (1, [2, 1])


def test_as_many_callers_compute_at_once_as_there_are_streams():
    with cpu_threads(2):
        segmenter = Segmenter(seeded())
    inside, together = [], threading.Barrier(segmenter.concurrency)

    def counted(*_):
        inside.append(1)
        together.wait(60)  # passes if two callers are in here at once
        assert len(inside) <= segmenter.concurrency
        together.wait(60)
        inside.pop()

    segmenter._resident.fast.register_forward_pre_hook(counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(segmenter.segment, [pixels(1, 32, 32)] * 4))
    assert not inside


@needs_bf16
def test_reduced_precision_differs_little():
    model, images = seeded(width=8), pixels(2, 64, 64)
    exact, _ = Segmenter(model, precision="fp32").segment(images)
    reduced, _ = Segmenter(model, precision="bf16").segment(images)
    assert (exact == reduced).mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_agrees_with_the_cpu(precision):
    model, images = seeded(width=16), pixels(4, 128, 96)
    cpu, _ = Segmenter(model, precision="fp32").segment(images)
    gpu, statistics = Segmenter(model, device="cuda", precision=precision).segment(images)
    assert (cpu == gpu).mean() > (0.9999 if precision == "fp32" else 0.95)
    assert statistics.finite.all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_divides_pixels_exactly():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    scaled = Segmenter(seeded(), device="cuda", precision="fp32")._resident.scaled(
        torch.from_numpy(values).cuda().float()
    )
    assert np.array_equal(scaled.permute(0, 2, 3, 1).cpu().numpy(), (values / 255).astype(np.float32))


@needs_bf16
def test_an_image_that_overflows_bf16_is_computed_in_fp32():
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


def test_loaded_by_name_or_path_it_takes_images_of_any_sizes(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save(seeded(3), normalize=((0.5,) * 3, (0.2,) * 3)))
    segmenter = Segmenter.load(tmp_path / "w.safetensors", device="cpu", batch_size=2)
    images = [pixels(1, height, 40, seed=height)[0] for height in (32, 48, 32, 32)]
    found = segmenter(images)
    for image, (classes, numbers) in zip(images, found, strict=True):
        labels, statistics = segmenter.segment(image[None])
        assert np.array_equal(classes, labels[0])
        assert numbers == next(statistics.rows())
    together = segmenter(np.stack([images[0], images[2]]))
    assert [np.array_equal(a.classes, found[number].classes) for a, number in zip(together, (0, 2), strict=True)]
    assert segmenter([]) == []
    assert Segmenter.load("nuclei").n_classes == 2


def test_loaded_weights_may_be_several_with_several_views(tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        path.write_bytes(save(seeded(seed=seed)))
    image = pixels(1, 40, 40)
    expected = Segmenter(Ensemble([seeded(), seeded(seed=1)], "flips"), precision="fp32").segment(image)[0]
    assert np.array_equal(Segmenter.load(paths, tta="flips", device="cpu")(image)[0].classes, expected[0])


def test_a_network_of_one_channel_takes_images_without_a_channel_axis(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save(seeded(n_channels=1)))
    segmenter = Segmenter.load(str(tmp_path / "w.safetensors"), device="cpu")
    image = pixels(1, 30, 40, channels=1)[0]
    assert np.array_equal(segmenter([image[..., 0]])[0].classes, segmenter([image])[0].classes)


def test_wrong_weights_and_images_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"weights .*gone do not exist; name a safetensors file or a built-in .*nuclei"
    ):
        Segmenter.load(tmp_path / "gone")
    (tmp_path / "w").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="w: not a safetensors file"):
        Segmenter.load(tmp_path / "w")
    segmenter = Segmenter.load("nuclei", device="cpu")
    with pytest.raises(TypeError, match="image 1 has floats from -1 to -1 without a stated range"):
        segmenter([pixels(1, 20, 20)[0], np.full((20, 20, 3), -1, np.float32)])
    with pytest.raises(ValueError, match=r"image 0 must have the shape \(H, W, 3\), got \(20, 20\)"):
        segmenter([np.zeros((20, 20), np.uint8)])
    with pytest.raises(ValueError, match="at least 16 px"):
        segmenter([np.zeros((20, 9, 3), np.uint8)])
    with pytest.raises(FloatingPointError, match="logits of image 0 contain NaN or infinity"):
        Segmenter(Broken(float("nan")))(np.full((1, 20, 20, 3), 255, np.uint8))
