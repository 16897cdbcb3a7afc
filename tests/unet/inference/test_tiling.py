import numpy as np
import pytest
import torch
from conftest import seeded
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.inference import fitting
from maskfleet.unet.inference import segmenter as module
from maskfleet.unet.inference.fitting import Fit, NotTileable
from maskfleet.unet.inference.near_ties import BLOCK
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.inference.tiling import Span, Tiling
from maskfleet.unet.model import UNet
from maskfleet.unet.pixels.batch import Pixels

GRID, HALO = UNet.grid, UNet.halo
FLIPPED_HALO = HALO + GRID
TILING = Tiling(GRID, HALO)

SIDES = st.integers(16, 700)
CORES = st.integers(1, 12).map(lambda cells: cells * GRID)


@settings(max_examples=300, deadline=None)
@given(st.integers(16, 5000), CORES, st.sampled_from([HALO, FLIPPED_HALO]))
def test_spans_cover_an_axis_once_with_their_halo(side, core, halo):
    found = Tiling(GRID, halo).spans(side, core)
    assert found[0].core_start == 0
    assert found[-1].core_stop == found[-1].stop == side
    assert len({span.stop - span.start for span in found}) == 1
    for span in found:
        assert span.start % GRID == 0
        assert span.core_start < span.core_stop
        assert span.start == 0 or span.core_start - span.start >= halo
        # What ends within a grid cell loses that cell.
        assert span.stop == side or span.stop - (span.stop - span.start) % GRID - span.core_stop >= halo
    assert [span.core_start for span in found[1:]] == [span.core_stop for span in found[:-1]]


def test_a_core_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        TILING.spans(500, 100)


def limit_whole_images(monkeypatch):
    for where in (fitting, module):
        monkeypatch.setattr(where, "WHOLE_PIXELS", 300 * 300)


def pixels(batch, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)


def stitched(segmenter, model, images, fit):
    """fp64 logits by the segmenter's own cutting and stitching."""

    def network(pixels_BHWC):
        return model((pixels_BHWC.double() / 255).permute(0, 3, 1, 2))

    result = torch.full((len(images), 2, *images.shape[1:3]), torch.nan, dtype=torch.float64)
    with torch.inference_mode():
        for piece in segmenter._passes._cutter.pieces(Pixels(images), fit, network):
            images_, rows, columns = piece.place
            result[images_, :, rows, columns] = piece.logits
    return result


def difference(height, width, core, batch=1, images=1, model=None, halo=HALO):
    model = model or seeded(width=2).double()
    stated = seeded(width=2)
    stated.halo = halo
    segmenter = Segmenter(stated, precision="fp32")
    drawn = pixels(images, height, width)
    whole = stitched(segmenter, model, drawn, Fit(images, 0))
    return float((stitched(segmenter, model, drawn, Fit(batch, core)) - whole).abs().max())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, CORES, st.integers(1, 5), st.integers(1, 3))
@example(405, 371, 64, 3, 2)
@example(700, 699, 16, 5, 1)
def test_stitched_logits_equal_the_whole_images(height, width, core, batch, images):
    assert difference(height, width, core, batch, images) < 1e-12


def test_a_smaller_halo_is_not_exact():
    assert difference(500, 411, 64) < 1e-12
    assert difference(500, 411, 64, halo=80) > 1e-12


def test_a_misaligned_origin_is_not_exact(monkeypatch):
    spans = Tiling.spans

    def shifted(self, side, core):
        return [
            Span(span.start and span.start - 8, span.stop, span.core_start, span.core_stop)
            for span in spans(self, side, core)
        ]

    monkeypatch.setattr(Tiling, "spans", shifted)
    assert difference(500, 411, 64) > 1e-12


@settings(max_examples=12, deadline=None)
@given(SIDES, SIDES, CORES, st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans())
@example(333, 490, 64, 2, 2, True)
def test_labels_do_not_depend_on_tiles_and_batches(height, width, core, images, n_classes, resized):
    drawn = pixels(images, height, width, seed=height)
    size = (height * 3 // 2, width + 7) if resized else None
    model = seeded(n_classes, width=2)
    whole, expected = Segmenter(model, precision="fp32").segment(drawn, size)
    labels, statistics = Segmenter(model, precision="fp32", tile=core, batch_size=3).segment(drawn, size)
    assert np.array_equal(labels, whole)
    assert np.array_equal(statistics.class_pixels, expected.class_pixels)
    assert np.array_equal(statistics.class_bbox, expected.class_bbox)
    assert np.array_equal(statistics.input_square_sum, expected.input_square_sum)
    np.testing.assert_allclose(statistics.mean_entropy, expected.mean_entropy, rtol=1e-5)


@pytest.mark.parametrize("views", ["flips", "d4"])
def test_flipped_views_can_be_tiled(views):
    drawn = pixels(1, 344, 408)
    model = Ensemble([seeded(width=2)], views).double()
    segmenter = Segmenter(Ensemble([seeded(width=2)], views), precision="fp32")
    whole = stitched(segmenter, model, drawn, Fit(1, 0))
    assert (stitched(segmenter, model, drawn, Fit(2, 64)) - whole).abs().max() < 1e-12


def test_halos_equal_the_reach_of_the_network():
    model = seeded(width=2).double()
    x_BCHW = torch.rand(1, 3, 64, 480, dtype=torch.float64)
    whole_BKHW = model(x_BCHW)

    def wrong(left, right):
        """Columns of a tile that are not the whole image's."""
        gap_W = (model(x_BCHW[..., left:right]) - whole_BKHW[..., left:right]).abs().amax(dim=(0, 1, 2))
        return (gap_W > 1e-13).nonzero()[:, 0]

    assert 80 < int(wrong(128, 480)[-1]) + 1 <= HALO
    assert 80 < 320 - int(wrong(0, 320)[0]) <= HALO
    # Seen flipped, a tile ends within a grid cell.
    assert HALO < max(320 + rest - int(wrong(0, 320 + rest)[0]) for rest in range(1, GRID)) <= FLIPPED_HALO


def test_streamed_rows_give_the_same_class_map():
    drawn = pixels(1, 611, 480)
    model = seeded(width=2)
    whole, expected = Segmenter(model, precision="fp32").segment(drawn)
    asked, rows = [], []

    def read(start, stop):
        asked.append((start, stop))
        return drawn[:, start:stop]

    segmenter = Segmenter(model, precision="fp32", tile=128)
    statistics = segmenter.segment_rows(read, 611, 480, rows.append)
    assert np.array_equal(np.concatenate(rows), whole[0])
    assert asked == sorted(asked)
    assert max(stop - start for start, stop in asked) < 128 + 2 * HALO + 2 * BLOCK + GRID
    assert np.array_equal(statistics.class_pixels, expected.class_pixels)
    assert np.array_equal(statistics.class_bbox, expected.class_bbox)


def test_large_images_are_cut_by_default(monkeypatch):
    limit_whole_images(monkeypatch)
    monkeypatch.setitem(fitting.AUTO_CORE, "cpu", 64)
    drawn = pixels(2, 400, 370)
    model = seeded(width=2)
    segmenter = Segmenter(model, precision="fp32")
    labels, statistics = segmenter.segment(drawn)
    whole, expected = Segmenter(model, precision="fp32", tile=0).segment(drawn)
    assert np.array_equal(labels, whole)
    assert segmenter.fits[400, 370][0].core == 64
    assert statistics.input_sum.tolist() == expected.input_sum.tolist()
    alone, _ = segmenter.segment(drawn[1:])
    assert np.array_equal(alone[0], labels[1])


def test_a_bilinear_network_is_cut_only_on_request(monkeypatch):
    model = seeded(width=2, bilinear=True)
    with pytest.raises(NotTileable, match="tile_mode = 'approximate'"):
        Segmenter(model, tile=64)
    limit_whole_images(monkeypatch)
    with pytest.raises(NotTileable, match=r"inference\.tile = 0"):
        Segmenter(model).segment(pixels(1, 400, 370))
    drawn = pixels(1, 400, 370)
    whole, _ = Segmenter(model, tile=0, precision="fp32").segment(drawn)
    cut, _ = Segmenter(model, tile=64, approximate=True, precision="fp32").segment(drawn)
    assert (cut == whole).mean() > 0.99
    gap = difference(400, 370, 64, model=seeded(width=2, bilinear=True).double())
    assert gap > 1e-12


def short(memory=10**9, fails=frozenset(), **more):
    """A segmenter with memory for this many pixels at once, failing at the calls of these numbers, and its calls."""
    segmenter = Segmenter(seeded(width=2), precision="fp32", batch_size=4, **more)
    forward, calls = segmenter._resident.forward, []

    def limited(pixels_BHWC, threads, white):
        calls.append(1)
        if pixels_BHWC.shape[:3].numel() > memory or len(calls) in fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pixels_BHWC, threads, white)

    segmenter._resident.forward = limited
    return segmenter, calls


def test_batches_are_halved_and_then_images_are_cut_until_they_fit():
    drawn = pixels(5, 420, 405)
    expected, statistics = Segmenter(seeded(width=2), precision="fp32").segment(drawn)
    segmenter, calls = short(300 * 300)
    labels, found = segmenter.segment(drawn)
    assert np.array_equal(labels, expected)
    assert found.class_pixels.tolist() == statistics.class_pixels.tolist()
    assert found.input_sum.tolist() == statistics.input_sum.tolist()
    assert segmenter.fits == {(420, 405): [Fit(4, 0), Fit(2, 0), Fit(1, 0), Fit(1, 208), Fit(1, 96)]}
    before = len(calls)
    segmenter.segment(drawn)  # the fit is remembered: nothing fails again
    assert len(calls) - before == 5 * len(TILING.spans(420, 96)) * len(TILING.spans(405, 96))


LADDER = [Fit(4, 0), Fit(2, 0), Fit(1, 0), Fit(1, 208), Fit(1, 96)]


@pytest.mark.slow
@pytest.mark.parametrize("in_a_row", [1, 2, 3, 4])
def test_memory_may_run_out_at_every_forward_call(in_a_row):
    """At each call in turn, and at up to four calls in a row, as many as there are steps down."""
    drawn = pixels(7, 420, 405)
    expected, statistics = Segmenter(seeded(width=2), precision="fp32").segment(drawn)
    at = 1
    while True:
        segmenter, calls = short(fails=range(at, at + in_a_row))
        labels, found = segmenter.segment(drawn)
        assert np.array_equal(labels, expected)
        assert found.class_pixels.tolist() == statistics.class_pixels.tolist()
        assert found.input_sum.tolist() == statistics.input_sum.tolist()
        if len(calls) < at:
            break
        failed = min(in_a_row, len(calls) - at + 1)
        assert segmenter.fits[420, 405] == LADDER[: 1 + failed]
        at += 1
    assert at == 3  # two batches, of four and of three


def test_an_image_that_cannot_be_cut_further_is_an_error():
    segmenter, _ = short(100)
    with pytest.raises(MemoryError, match="64×64 px does not fit into memory, and it is too small"):
        segmenter.segment(pixels(4, 64, 64))
    segmenter, _ = short(250 * 250)
    with pytest.raises(MemoryError, match="not even a tile of 64 px and its halo"):
        segmenter.segment(pixels(1, 512, 512))
    segmenter, _ = short(300 * 300, tile=0)
    with pytest.raises(MemoryError, match=r"405×420 px .* inference\.tile = 0 never cuts it"):
        segmenter.segment(pixels(1, 420, 405))
    assert segmenter.fits[420, 405] == [Fit(4, 0), Fit(2, 0), Fit(1, 0)]


@pytest.mark.parametrize("fails", [(), (1,), (2,), (5,), (1, 2, 3)])
def test_streamed_rows_are_cut_further_if_memory_is_short(fails):
    drawn = pixels(1, 901, 480)
    expected, statistics = Segmenter(seeded(width=2), precision="fp32").segment(drawn)
    segmenter, _ = short(300 * 460, fails, tile=256)
    rows = []
    found = segmenter.segment_rows(lambda start, stop: drawn[:, start:stop], 901, 480, rows.append)
    assert np.array_equal(np.concatenate(rows), expected[0])
    assert found.class_pixels.tolist() == statistics.class_pixels.tolist()
    assert found.class_bbox.tolist() == statistics.class_bbox.tolist()
    assert found.input_sum.tolist() == statistics.input_sum.tolist()
    assert segmenter.fits[901, 480][:4] == [Fit(4, 256), Fit(2, 256), Fit(1, 256), Fit(1, 128)]


@settings(max_examples=200, deadline=None)
@given(st.integers(300, 3000), CORES, CORES)
def test_shorter_tiles_within_a_row_cover_it_once_with_their_halo(side, core, shorter):
    for row in TILING.spans(side, core):
        found = TILING.within(row, min(core, shorter))
        assert (found[0].core_start, found[-1].core_stop) == (row.core_start, row.core_stop)
        assert [part.core_start for part in found[1:]] == [part.core_stop for part in found[:-1]]
        for part in found:
            assert row.start <= part.start < part.stop <= row.stop
            assert part.start % GRID == 0
            assert part.start == 0 or part.core_start - part.start >= HALO
            assert part.stop == side or part.stop - part.core_stop >= HALO


@settings(max_examples=300, deadline=None)
@given(st.integers(300, 5000), CORES)
def test_tiles_are_as_few_and_then_as_short_as_possible(side, core):
    found = TILING.spans(side, core)
    inner = side // GRID * GRID - 2 * HALO
    if len(found) > 1:
        assert len(found) == -(-inner // core)
        length = found[0].stop
        shorter = length - GRID - 2 * HALO - side % GRID
        assert shorter * len(found) < inner  # a grid cell less, and they would not reach
        assert length <= core + 2 * HALO + side % GRID
