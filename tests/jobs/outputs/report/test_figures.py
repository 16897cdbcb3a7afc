"""The figures of a run: equal to those of NumPy over all rows, whatever the batches."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from maskfleet.jobs.ledger.statistics import table_of
from maskfleet.jobs.outputs.report.gathered.extremes import Extremes
from maskfleet.jobs.outputs.report.gathered.figures import Distributions, collect
from maskfleet.jobs.outputs.report.gathered.histogram import Histogram
from maskfleet.jobs.outputs.report.gathered.picks import PER_GROUP, groups


def drawn(count=500, *, classes=3, failed=7):
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        areas = random.dirichlet([8, *[1] * (classes - 1)])
        row = {
            "key": f"{number:05}.png", "url": "u", "run_id": "r", "fingerprint": "f", "attempt": f"a{number // 64}",
            "worker": f"w{number // 64 % 2}", "status": "ok", "width": 10, "height": 20, "mask_bytes": 5,
            "class_fraction": areas.tolist(), "mean_confidence": float(random.beta(50, 1)),
            "mean_entropy": float(random.random() / 9), "input_mean": [float(random.normal(0.5, 0.1))], "input_std": [0.1],
        }  # fmt: skip
        if number < failed:
            ending = {"status": "failed", "stage": "decode", "error_class": "corrupt", "error_message": f"bad {number}"}
            row = {
                key: value
                for key, value in row.items()
                if key in {"key", "url", "run_id", "fingerprint", "attempt", "worker"}
            }
            row |= ending
        rows.append(row)
    return table_of(rows)


def batches(table, rows):
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def test_figures_equal_those_of_all_rows():
    table = drawn()
    figures = collect(batches(table, 64), seed="s")
    ok = table.slice(7)
    areas = np.array(ok["class_fraction"].to_pylist())
    assert (figures.images, figures.ok, figures.failed) == (500, 493, 7)
    assert (figures.pixels, figures.mask_bytes) == (493 * 200, 493 * 5)
    assert [(each.count, each.key, each.message) for each in figures.failures.values()] == [(7, "00000.png", "bad 0")]
    assert sum(images for _, images in figures.attempts.values()) == 500
    assert figures.attempts["a1"] == ("w1", 64)
    for place in range(3):
        histogram = figures.distributions.areas[place]
        assert histogram.count == 493
        assert histogram.mean == pytest.approx(areas[:, place].mean())
        for share in (0.05, 0.5, 0.95):
            assert histogram.quantile(share) == pytest.approx(np.quantile(areas[:, place], share), abs=0.01)
    confidence = np.array(ok["mean_confidence"].to_pylist())
    lowest = [extreme.value for extreme in figures.features["confidence"].lowest]
    assert np.array_equal(lowest, np.sort(confidence)[: len(lowest)])
    assert figures.features["confidence"].deviation(lowest[0]) == pytest.approx(
        (lowest[0] - confidence.mean()) / confidence.std(), rel=1e-6
    )


def test_figures_do_not_depend_on_batches():
    table = drawn()
    one, other = collect([table], seed="s"), collect(batches(table, 33), seed="s")
    assert one.distributions.to_json() != b""
    assert [e.row["key"] for e in one.lot.lowest] != [e.row["key"] for e in collect([table], seed="t").lot.lowest]
    for mine, others in zip(one.distributions.all, other.distributions.all, strict=True):
        assert np.array_equal(mine.counts, others.counts)
    for name, feature in one.features.items():
        assert feature.lowest == other.features[name].lowest
        assert feature.highest == other.features[name].highest


def test_stored_figures_are_read_back_and_damaged_ones_are_none():
    found = collect([drawn()], seed="s").distributions
    again = Distributions.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    for damaged in (b"", b"[]", b"{}", b'{"version": 99}', json.dumps({"version": 1, "areas": [3]}).encode()):
        assert Distributions.from_json(damaged) is None


def test_empty_and_strange_values():
    assert collect([], seed="s").distributions is None
    assert collect([drawn(7)], seed="s").ok == 0
    histogram = Histogram(1.0, "low")
    histogram.add(np.array([np.nan, np.inf, 0.0, 1.0, 0.5, 7.0]))
    assert histogram.count == 4
    assert math.isfinite(histogram.quantile(0.5))
    extremes = Extremes("x", 3)
    rows = pa.table({"key": ["a", "b"]})
    extremes.add(np.array([np.nan, 1.0]), rows)
    assert [each.row["key"] for each in extremes.lowest] == ["b"]
    assert extremes.deviation(5.0) == 0  # one value has no spread


def test_a_distribution_is_drawn_whole():
    histogram = Histogram(1.0, "high")
    histogram.add(np.random.default_rng(0).beta(60, 2, 1000))
    for low, high in ((0, 1), (0.9, 1), (0.97, 0.98)):
        assert histogram.shares(np.linspace(low, high, 26)).sum() == pytest.approx(1)


def test_no_image_is_shown_twice_and_a_small_run_is_shown_whole():
    found = groups(collect(batches(drawn(), 64), seed="s"))
    keys = [pick.row["key"] for group in found for pick in group.picks]
    assert len(keys) == len(set(keys)) == 5 * PER_GROUP
    assert found[0].title == "By lot"
    (group,) = groups(collect([drawn(10)], seed="s"))
    assert [pick.row["key"] for pick in group.picks] == ["00007.png", "00008.png", "00009.png"]
    assert groups(collect([drawn(7)], seed="s")) == []
