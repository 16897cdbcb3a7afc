"""Numbers about images: extents of classes, and the columns of a table."""

import numpy as np
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet.inference import statistics as module
from maskfleet.unet.inference.decision import _occupied
from maskfleet.unet.inference.segmenter import Segmenter


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 40), st.integers(16, 40), st.integers(2, 4), st.data())
def test_extents_of_any_class_map(height, width, classes, data):
    seed, share = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([0.0, 0.003, 0.5]))
    random = np.random.default_rng(seed)
    labels = random.integers(1, classes, (1, height, width)) * (random.random((1, height, width)) < share)
    masks = [torch.from_numpy(labels == class_) for class_ in range(1, classes)]
    counts, boxes = module._extents(*(part.numpy() for part in _occupied(masks)))
    for class_ in range(classes):
        rows, columns = np.nonzero(labels[0] == class_)
        assert counts[0, class_] == len(rows)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert boxes[0, class_].tolist() == box


def test_rows_are_plain_numbers_and_an_absent_class_has_no_box():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    labels, statistics = Segmenter(seeded(3), precision="fp32", thresholds=[0.2, 0.999]).segment(images)
    for row, classes, image in zip(statistics.rows(), labels, images, strict=True):
        counts = [int((classes == number).sum()) for number in range(3)]
        assert row["class_pixels"] == counts
        assert row["class_fraction"] == [count / classes.size for count in counts]
        assert [box is None for box in row["class_bbox"]] == [not count for count in counts]
        np.testing.assert_allclose(row["input_mean"], (image / 255).mean(axis=(0, 1)))
        assert 0 < row["mean_confidence"] <= 1
        assert list(row) == list(module.COLUMNS)


def test_every_column_has_its_type_and_meaning_in_the_schema():
    from maskfleet.jobs.ledger.statistics import SCHEMA

    names = [name for name in SCHEMA.names if name in module.COLUMNS]
    assert names == list(module.COLUMNS)
    assert all(SCHEMA.field(name).metadata[b"meaning"] for name in names)
