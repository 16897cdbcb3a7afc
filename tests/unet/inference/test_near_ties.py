"""Pixels too close to call get the same label with any tiles and without, and only because ties are broken."""

import numpy as np
import pytest
import torch
from conftest import StandIn, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskfleet.unet.inference import fitting
from maskfleet.unet.inference import segmenter as module
from maskfleet.unet.inference.decision import decide, margins
from maskfleet.unet.inference.near_ties import BLOCK, block_side, neighbours, rows_needed
from maskfleet.unet.inference.passes import Passes
from maskfleet.unet.inference.pieces import Strip
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.inference.tiling import Tiling
from maskfleet.unet.model import UNet
from maskfleet.unet.pixels.batch import Pixels

GRID, HALO = UNet.grid, UNet.halo
FLIPPED_HALO = HALO + GRID

HEIGHT, WIDTH = 411, 370


class Wavering(StandIn):
    """Rounds differently in every shape and layout, as floating point may; half of its pixels are ties."""

    def __init__(self, n_classes):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x):
        height, width = x.shape[2:]
        places = torch.arange(height * width).view(1, 1, height, width)
        rounding = torch.sin(places.double() * (height + 3 * width) + x.is_contiguous()) * 2e-7
        classes = torch.arange(self.n_classes).view(1, -1, 1, 1)
        clear = (x[:, 1:2] > 0.5) * (classes % 2 * 2 - 1)
        close = (x[:, :1].double() * (1 + classes) % 1 - 0.5) * 1e-6
        return (clear + close + rounding * (1 + classes)).float()


def limit_whole_images(monkeypatch):
    for where in (fitting, module):
        monkeypatch.setattr(where, "WHOLE_PIXELS", 300 * 300)


@pytest.fixture
def large(monkeypatch):
    """One image, too large for a plain pass."""
    limit_whole_images(monkeypatch)
    return np.random.default_rng(5).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)


def limit_memory(segmenter, name, pixels):
    """Have a pass run out of memory with more pixels at once."""
    compute = getattr(segmenter._resident, name)

    def limited(pixels_BHWC, *args, **more):
        if pixels_BHWC.shape[:3].numel() > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(pixels_BHWC, *args, **more)

    setattr(segmenter._resident, name, limited)


def streamed(segmenter, image):
    rows = []
    statistics = segmenter.segment_rows(lambda start, stop: image[:, start:stop], *image.shape[1:3], rows.append)
    return np.concatenate(rows)[None], statistics


def same(found, expected):
    (labels, statistics), (others, their) = found, expected
    return np.array_equal(labels, others) and np.array_equal(statistics.class_pixels, their.class_pixels)


@pytest.mark.parametrize(("n_classes", "thresholds"), [(1, [0.5]), (2, None), (2, [0.5]), (4, None), (4, [0.25] * 3)])
def test_ties_of_large_images_do_not_depend_on_tiles(large, monkeypatch, n_classes, thresholds):
    def segmenter(tile):
        return Segmenter(Wavering(n_classes), precision="fp32", tile=tile, thresholds=thresholds)

    whole = segmenter(0).segment(large)
    assert len(np.unique(whole[0])) >= max(2, n_classes - 1)
    for tile in (64, 128, 208):
        assert same(segmenter(tile).segment(large), whole)
        assert same(streamed(segmenter(tile), large), whole)
    monkeypatch.setattr(Passes, "_tie_breaker", lambda self, strip: None)
    unsettled = segmenter(0).segment(large)
    assert not same(segmenter(64).segment(large), unsettled)
    assert not same(streamed(segmenter(64), large), unsettled)


@pytest.mark.parametrize("size", [(800, 555), (205, 187)])
def test_ties_of_resized_logits_do_not_depend_on_tiles(large, monkeypatch, size):
    def labels(tile):
        return Segmenter(Wavering(2), precision="fp32", tile=tile).segment(large, size)

    whole = labels(0)
    assert same(labels(64), whole)
    assert same(labels(128), whole)
    monkeypatch.setattr(Passes, "_tie_breaker", lambda self, strip: None)
    assert not same(labels(64), labels(0))


def test_images_cut_for_want_of_memory_get_the_same_tie_breaker(monkeypatch):
    """If not even one whole image fits, neither does its plain pass, which takes more memory."""
    image = np.random.default_rng(5).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)

    def short(memory):
        segmenter = Segmenter(Wavering(2), precision="fp32")
        for name in ("forward", "plain_forward"):
            limit_memory(segmenter, name, memory)
        return segmenter.segment(image)

    assert same(short(340 * 340), short(110_000))
    limit_whole_images(monkeypatch)
    assert same(short(340 * 340), Segmenter(Wavering(2), precision="fp32", tile=0).segment(image))


def test_logits_that_are_not_finite_are_not_ties(large):
    class Broken(Wavering):
        def forward(self, x):
            return super().forward(x) + torch.where(x[:, 2:] > 0.99, torch.nan, 0.0)

    for size in (None, (300, 200)):
        _, statistics = Segmenter(Broken(2), precision="fp32", tile=128).segment(large, size)
        assert not statistics.finite.any()
    assert not streamed(Segmenter(Broken(2), precision="fp32", tile=128), large)[1].finite.any()


def test_a_network_with_nothing_but_ties_has_a_bounded_cost(large):
    """With weights of zero every pixel is a tie."""
    crops = []

    class Counting(Wavering):
        def forward(self, x):
            crops.append(x.shape[2:].numel())
            return super().forward(x) * 0

    segmenter = Segmenter(Counting(2), precision="fp32")
    segmenter._passes = segmenter._passes._replace(bounds=segmenter._passes.bounds._replace(tile=1e-6))
    crops.clear()
    labels, _ = segmenter.segment(large)
    assert not labels.any()
    assert sum(crops) < (BLOCK + 2 * HALO + GRID) ** 2 / BLOCK**2 * (HEIGHT + BLOCK) * (WIDTH + BLOCK) * 1.5


@settings(max_examples=300, deadline=None)
@given(st.integers(16, 3000), st.sampled_from([HALO, FLIPPED_HALO]), st.integers(1, 30).map(lambda n: n * GRID))
def test_crops_have_one_shape_and_lie_within_the_streamed_rows(side, halo, core):
    tiling = Tiling(GRID, halo)
    crops = [tiling.around(start, BLOCK, side) for start in range(0, side, BLOCK)]
    assert len({crop.stop - crop.start for crop in crops}) == 1
    assert [crop.core_start for crop in crops] == list(range(0, side, BLOCK))
    for crop in crops:
        assert 0 <= crop.start <= crop.core_start < crop.core_stop <= crop.stop <= side
        assert crop.start % GRID == 0
        assert (side - crop.stop) % GRID == 0
        assert crop.start == 0 or crop.core_start - crop.start >= halo
        assert crop.stop == side or crop.stop - side % GRID - crop.core_stop >= halo
    before = 0
    for row in tiling.spans(side, core):
        top, bottom = rows_needed(row, side, tiling)
        assert before <= top <= row.start
        assert row.stop <= bottom
        before = top
        for crop in crops[row.core_start // BLOCK : (row.core_stop - 1) // BLOCK + 1]:
            assert top <= crop.start
            assert crop.stop <= bottom


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(5, 200), st.integers(5, 200), st.integers(0, 99))
def test_neighbours_include_every_pixel_that_resizing_reads(height, width, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 2, height, width, generator=generator)
    resized = nn.functional.interpolate(logits, (rows, columns), mode="bilinear")
    row, column = (torch.randint(side, (3,), generator=generator) for side in (rows, columns))
    kept = torch.zeros_like(logits)
    source = neighbours(row, column, (rows, columns), (height, width))
    kept[:, :, source[0], source[1]] = logits[:, :, source[0], source[1]]
    again = nn.functional.interpolate(kept, (rows, columns), mode="bilinear")
    assert torch.equal(resized[:, :, row, column], again[:, :, row, column])


@pytest.mark.parametrize(("n_classes", "thresholds"), [(1, [0.3]), (2, None), (2, [0.7]), (5, None), (5, [0.2] * 4)])
def test_margins_agree_with_the_decision(n_classes, thresholds):
    logits = torch.randn(2, n_classes, 30, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(margins(logits, thresholds).amin(dim=(1, 2)), decide(logits, thresholds).margin)


def test_a_crop_gives_the_logits_of_the_whole_image():
    """In fp64, where rounding cannot hide a halo that is too small."""
    image = np.random.default_rng(2).integers(0, 256, (1, 523, 606, 3), np.uint8)
    model = seeded(width=2).double()
    segmenter = Segmenter(seeded(width=2), precision="fp32")

    def network(pixels_BHWC):
        return model((torch.as_tensor(pixels_BHWC).double() / 255).permute(0, 3, 1, 2))

    with torch.inference_mode():
        whole = network(image)[0]
        breaker = segmenter._passes._tie_breaker(Strip(Pixels(image), 0, (523, 606)))._replace(
            forward=lambda crop: network(crop.values)
        )
        rows, columns = (
            torch.randint(side, (200,), generator=torch.Generator().manual_seed(side)) for side in (523, 606)
        )
        found = breaker.logits(rows, columns)
    assert float((found.T - whole[:, rows, columns]).abs().max()) < 1e-12


@pytest.mark.parametrize(("grid", "side"), [(1, 64), (16, 64), (32, 64), (24, 72), (100, 100)])
def test_blocks_lie_on_the_grid_of_any_network(grid, side):
    assert block_side(grid) == side
