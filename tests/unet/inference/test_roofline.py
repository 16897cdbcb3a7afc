import pytest
import torch
from conftest import seeded

from maskfleet.unet.inference import roofline
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet


def counted_by_hand(side, *, bilinear):
    """Multiply-adds of the full-width network with 3 channels and 2 classes, by layers as in the paper's figure."""
    macs, below = 0, side
    widths = [64, 128, 256, 512, 1024]
    if bilinear:
        widths[-1] = 512
    channels = 3
    for level, width in enumerate(widths):
        below = side >> level
        macs += below**2 * 9 * (channels * width + width * width)
        channels = width
    for level in (3, 2, 1, 0):
        here, width = side >> level, [64, 128, 256, 512][level]
        if bilinear:
            joined, out = 2 * width, max(64, width // 2) if level else 64
            macs += here**2 * 9 * (joined * (joined // 2) + (joined // 2) * out)
        else:
            macs += (here // 2) ** 2 * 4 * (2 * width) * width
            macs += here**2 * 9 * (2 * width * width + width * width)
    return macs + side**2 * 64 * 2


@pytest.mark.parametrize("bilinear", [False, True])
def test_operations_follow_from_the_geometry(bilinear):
    with torch.device("meta"):
        model = UNet(3, 2, bilinear)
    assert roofline.flops(model, 256, 256) == 2 * counted_by_hand(256, bilinear=bilinear)


def test_a_pass_is_timed_on_resident_input():
    found = roofline.forward(Segmenter(seeded(), precision="fp32"), 64, 48, batch=2, pairs=1, seconds=0.05)
    operations = roofline.flops(seeded(), 64, 48)
    assert found.tflops == pytest.approx(found.images_per_second * operations / 1e12)
    assert 0 < found.peak_share < 1.5
    assert found.images_per_second > 1


def test_passes_are_counted():
    calls = []
    assert roofline.seconds_per_pass(lambda: calls.append(None), least_seconds=0.01) < 0.01
    assert len(calls) > 1


def test_times_are_of_whole_batches():
    class Counting(Segmenter):
        seen = ()

        def segment(self, images, size=None, **more):
            self.seen = (*self.seen, images.shape)
            return super().segment(images, size, **more)

    segmenter = Counting(seeded(), batch_size=3)
    segmenter.seen = ()
    assert roofline.seconds_of(segmenter, (32, 48)) > 0
    assert set(segmenter.seen) == {(3, 32, 48, 3)}
    assert len(segmenter.seen) == 3  # one to warm up


def test_the_best_batch_is_the_smallest_about_as_fast_as_the_fastest(monkeypatch):
    speeds = {1: 1.0, 2: 1.6, 4: 2.0, 8: 2.02, 16: 1.9}
    segmenter = Segmenter(seeded(width=2), precision="fp32")
    monkeypatch.setattr(roofline, "_seconds_of_batch", lambda _, images: len(images) / speeds[len(images)])
    assert roofline.best_batch(segmenter, 30, 40) == 4  # within 3 % of the best

    def short(_, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(images) / speeds[len(images)]

    monkeypatch.setattr(roofline, "_seconds_of_batch", short)
    assert roofline.best_batch(segmenter, 30, 40) == 2
