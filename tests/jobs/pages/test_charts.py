import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from maskfleet.jobs.pages import charts
from maskfleet.jobs.pages.axes import Range, ticks, widened


def parsed(svg):
    return ET.fromstring(svg)  # well-formed


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0007), (0.93, 0.99), (-3, 12_345), (0, 1e-9)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(Range(low, high))
    assert 2 <= len(found) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_noise_does_not_fill_an_axis():
    assert widened(0.9001, 0.9002, least=0.05).high - widened(0.9001, 0.9002, least=0.05).low >= 0.05
    assert widened(0.1, 0.9, least=0.05).low < 0.1


def test_every_chart_says_what_it_shows():
    edges, shares = np.linspace(0, 1, 6), np.array([0.1, 0, 0.4, 0.5, 0])
    shape = charts.Shape(edges, shares)
    night = charts.Night(label="11-28", low=0.1, median=0.2, high=0.4)
    found = [
        charts.distribution(shape, shape, words=str, label="<x>", summary="a <b>"),
        charts.trend([night, night], words=str, least=0.1, summary="b"),
        charts.rate(edges, shares, summary="c"),
        charts.curve([1], [0.5], words=str, label="step", summary="d", least=0.1, level=0.4),
        charts.curve(range(1, 900), np.arange(1, 900) / 7, words=str, label="", summary="e", least=1, smooth=True),
        charts.stacked([charts.Part("bar", 1, "one")], whole=4, summary="f"),
    ]
    assert all(parsed(svg).attrib["role"] == "img" and parsed(svg).attrib["aria-label"] for svg in found)
    assert "<b>" not in found[0]
    assert len(parsed(found[0]).findall("rect")) == 3  # empty bars are not drawn


def test_long_curves_have_a_bounded_number_of_points():
    svg = charts.curve(range(5000), np.sin(np.arange(5000)), words=str, label="", summary="x", least=1, smooth=True)
    assert max(len(points.split()) for points in re.findall(r'points="([^"]*)"', svg)) <= 300
