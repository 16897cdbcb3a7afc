"""A plan and its forecast, for people."""

import os
import sys

import pytest

from maskfleet.cluster.terminal.plan import lines

WORKERS = [
    {"workers": 1, "seconds": 7810.0, "start_share": 0.1, "cost": 4.34, "waits_for": "work", "worker_hours": 2.17},
    {"workers": 64, "seconds": 131.0, "start_share": 0.9, "cost": 4.66, "waits_for": "start", "worker_hours": 2.33},
]
PLAN = {
    "listed": 120_000, "done": 1, "images": 119_999, "why": {"new": 119_998, "failed": 1}, "gone": 2,
    "left_alone": {".txt": 1}, "shards": 235, "bytes": 4_200_000_000, "listing_seconds": 12.3, "fingerprint": "f" * 64,
    "device": "cpu", "sample": 64, "images_per_second_of_a_worker": 15.4, "start_seconds": 2.0,
    "expected_failures": {"corrupt": 40}, "workers": WORKERS, "busiest_stage": "segment",
    "requests": {"list": 120, "get": 120_704, "put": 120_939}, "output_bytes": 310_000_000, "currency": "EUR",
    "requests_cost": 0.654, "keeping_cost": 0.0071, "next_night": "new or changed images; 0 retries",
    "warnings": ["99.94% of the sampled pixels are background (mean confidence 0.99); likely causes: inference.scale"],
}  # fmt: skip


def test_a_plan_in_a_pipe():
    assert list(lines(PLAN)) == [
        "images   119,999 to process (119,998 new, 1 failed) of 120,000 listed, 2 gone; 1 need no work",
        "left     1 file alone: 1 .txt",
        "input    4.2 GB to read, in 235 shards",
        "listing  12 s",
        "sample   64 images on cpu: 15.4 images/s for one worker, ready after 2.0 s; busiest stage: segment",
        "failures about 40 corrupt",
        "forecast workers        time  worker hours      cost  waits for",
        "               1  2 h 10 min          2.17  4.34 EUR       work",
        "              64  2 min 11 s          2.33  4.66 EUR      start",
        "         the start of Ray is not included",
        "output   310 MB, 0.01 EUR a month",
        "requests 120 list, 120,704 get, 120,939 put, 0.65 EUR",
        "next run new or changed images; 0 retries",
        "warning  99.94% of the sampled pixels are background (mean confidence 0.99); likely causes: inference.scale",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_a_plan_fits_its_terminal(width, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((width, 24)))
    found = list(lines(PLAN))
    assert max(map(len, found)) <= width if width == 80 else max(map(len, found)) <= 63
    assert " ".join(" ".join(found).split()).count("sampled pixels are background") == 1


def test_prices_that_are_not_set_are_said():
    free = PLAN | {"workers": [each | {"cost": None} for each in WORKERS], "requests_cost": None, "keeping_cost": None}
    text = "\n".join(lines(free))
    assert "prices not set: see [prices] in the job file" in text
    assert "EUR" not in text


def test_a_plan_without_images_has_no_forecast():
    empty = {name: PLAN[name] for name in ("listed", "gone", "left_alone", "bytes", "listing_seconds", "fingerprint")}
    empty |= {"images": 0, "done": 120_000, "why": {}, "shards": 0, "warnings": []}
    assert "forecast" not in "\n".join(lines(empty))
