"""Streams, and recorded passes: a stand-in returns the same tensors at each replay, as CUDA graphs do."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import needs_bf16, seeded

from maskfleet.unet.inference import segmenter as segmenter_module
from maskfleet.unet.inference.resident import Resident
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.inference.streams import GRAPHS, SEEN_BEFORE, Streams, on_host, pinned_buffer
from maskfleet.unet.process_state import IEEE_FP32, cpu_threads

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class Recorder:
    """Records passes and counts what is recorded and replayed."""

    def __init__(self):
        self.recorded, self.replayed = [], 0

    def __call__(self, whole, pixels):
        given = pixels.clone()
        found = [tensor.clone() for tensor in whole(given)]
        self.recorded.append(tuple(pixels.shape))

        def replay(batch):
            self.replayed += 1
            given.copy_(batch)
            for place, value in zip(found, whole(given), strict=True):
                place.copy_(value)
            return tuple(found)

        return replay


def halves(pixels):
    return (pixels.float() / 2, pixels.amax())


def batch(value, size=4):
    return torch.full((size, 2, 2, 3), value, dtype=torch.uint8)


def run(streams, pixels, whole=halves):
    with streams.one() as stream:
        return [tensor.clone() for tensor in stream.run(whole, pixels)]


def test_a_pass_is_recorded_once_its_shape_is_frequent():
    recorder = Recorder()
    streams = Streams(CPU, 1, recorder)
    for number in range(SEEN_BEFORE + 4):
        assert not recorder.recorded or number > SEEN_BEFORE
        values, most = run(streams, batch(number))
        assert (values == number / 2).all()
        assert most == number
    assert recorder.recorded == [(4, 2, 2, 3)]
    assert recorder.replayed == 1 + 3, "once to compare, then for every batch"
    run(streams, batch(1, size=3))
    assert recorder.replayed == 4, "another shape is not the recorded one"


def test_the_number_of_recorded_shapes_is_limited():
    recorder = Recorder()
    streams = Streams(CPU, 1, recorder)
    for size in range(1, GRAPHS + 3):
        for _ in range(SEEN_BEFORE + 2):
            run(streams, batch(7, size))
    assert len(recorder.recorded) == GRAPHS


@pytest.mark.parametrize("wrong", ["bits", "error"])
def test_a_pass_that_cannot_be_recorded_exactly_runs_unrecorded(wrong):
    tries = []

    def capture(whole, pixels):
        tries.append(1)
        if wrong == "error":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda pixels: tuple(tensor + 1 for tensor in whole(pixels))

    streams = Streams(CPU, 1, capture)
    for number in range(SEEN_BEFORE + 4):
        assert run(streams, batch(number))[1] == number
    assert len(tries) == 1, "it is not tried again and again"


def test_nan_equals_nan_in_a_recorded_pass():
    recorder = Recorder()
    streams = Streams(CPU, 1, recorder)
    for _ in range(SEEN_BEFORE + 2):
        run(streams, batch(0), lambda pixels: (pixels.float() / 0,))
    assert recorder.replayed == 2


def test_graphs_are_dropped_permanently_once_memory_is_short():
    recorder = Recorder()
    streams = Streams(CPU, 1, recorder)
    for _ in range(SEEN_BEFORE + 2):
        run(streams, batch(1))
    streams.forget()
    before = recorder.replayed
    for number in range(SEEN_BEFORE + 3):
        assert run(streams, batch(number))[1] == number
    assert (recorder.replayed, len(recorder.recorded)) == (before, 1)


def test_while_a_pass_is_recorded_no_other_stream_works():
    inside, disturbed = [], []

    def slowly(pixels):
        inside.append(1)
        time.sleep(0.01)
        inside.pop()
        return halves(pixels)

    def capture(whole, pixels):
        for _ in range(20):
            disturbed.append(len(inside))
            time.sleep(0.002)
        return halves

    streams = Streams(CPU, 2, capture)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, streams, batch(1), slowly) for _ in range(20)]:
            future.result(timeout=60)
    assert len(disturbed) == 2 * 20, "each stream recorded it once"
    assert not any(disturbed)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_recorded_passes_change_no_result(monkeypatch, precision):
    images = np.random.default_rng(0).integers(0, 256, (24, 2, 40, 33, 3), np.uint8)
    recorder = Recorder()
    with cpu_threads(2):
        plain = Segmenter(seeded(3), precision=precision, batch_size=2)
        monkeypatch.setattr(segmenter_module, "Streams", lambda device, count: Streams(device, count, recorder))
        recorded = Segmenter(seeded(3), precision=precision, batch_size=2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(recorded.segment, images))
    for batch_, (labels, statistics) in zip(images, found, strict=True):
        expected_labels, expected = plain.segment(batch_)
        assert np.array_equal(labels, expected_labels)
        for name, values in vars(expected).items():
            assert np.array_equal(getattr(statistics, name), values), name
    assert recorder.recorded.count((2, 40, 33, 3)) == 2, "once in each stream"
    assert recorder.replayed > 10


def test_a_segmenter_out_of_memory_drops_its_graphs(monkeypatch):
    forward = Resident.forward

    def limited(self, pixels_BHWC, threads, white=255.0):
        if pixels_BHWC.shape[:2] == (2, 48):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels_BHWC, threads, white)

    monkeypatch.setattr(Resident, "forward", limited)
    recorder = Recorder()
    monkeypatch.setattr(segmenter_module, "Streams", lambda device, count: Streams(device, count, recorder))
    with cpu_threads(1):
        segmenter = Segmenter(seeded(), precision="fp32", batch_size=2)
    assert segmenter.concurrency == 1
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    expected = [segmenter.segment(images)[0] for _ in range(SEEN_BEFORE + 2)]
    assert recorder.replayed == 2
    segmenter.segment(np.zeros((2, 48, 40, 3), np.uint8))
    assert segmenter.fits[48, 40][-1].batch == 1
    assert np.array_equal(segmenter.segment(images)[0], expected[0])
    assert recorder.replayed == 2


def test_tf32_is_allowed_again_only_when_the_last_has_left(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    first, second = IEEE_FP32.on(), IEEE_FP32.on()
    with first:
        second.__enter__()
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32


def test_buffers_and_copies_are_the_hosts():
    assert pinned_buffer(CPU, (2, 16, 16, 3), "uint16").shape == (2, 16, 16, 3)
    tensors = torch.arange(3), torch.ones(2)
    assert all(torch.equal(a, b) for a, b in zip(on_host(*tensors), tensors, strict=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_graphs_in_two_streams_of_a_gpu_change_nothing(monkeypatch, n_classes, precision):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 96, 80, 3), np.uint8)
    recorded = Segmenter(seeded(n_classes, width=16), device="cuda", precision=precision)
    monkeypatch.setattr(
        segmenter_module, "Streams", lambda device, count: Streams(device, count, lambda whole, _: whole)
    )
    eager = Segmenter(seeded(n_classes, width=16), device="cuda", precision=precision)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(recorded.segment, images))
    for batch_, (labels, statistics) in zip(images, found, strict=True):
        expected_labels, expected = eager.segment(batch_)
        assert np.array_equal(labels, expected_labels)
        assert np.array_equal(statistics.class_pixels, expected.class_pixels)
        assert np.allclose(statistics.mean_entropy, expected.mean_entropy)
    assert all(len(stream._graphs) == 1 for stream in (recorded._streams._idle.get(), recorded._streams._idle.get()))


@pytest.mark.gpu
@needs_gpu
def test_a_graph_of_a_gpu_is_one_launch():
    from maskfleet.unet.inference.streams import _cuda_graph

    model = Segmenter(seeded(width=16), device="cuda", precision="bf16")
    images = torch.from_numpy(pinned_buffer(torch.device("cuda"), (4, 96, 80, 3), "uint8")).fill_(9)
    assert images.is_pinned()
    with model._computing():
        whole = lambda pixels: model._passes.whole(model._resident.fast_pass(1, 255.0), pixels)  # noqa: E731
        expected = whole(images.cuda())
        graph = _cuda_graph(torch.cuda.graph_pool_handle(), whole, images.cuda())
        assert all(torch.equal(a, b) for a, b in zip(graph(images), expected, strict=True))
