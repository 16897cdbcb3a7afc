"""The line of a run in progress fits any width, and the least important parts go first."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from maskfleet.cluster.terminal.live_line import Shown
from maskfleet.cluster.terminal.pace import Pace


def shown(**values):
    pace = SimpleNamespace(rate=41.26, seconds_left=lambda _: 213.0)
    return Shown(began=time.monotonic(), pace=pace, phase="segmenting", **values)


def drawn(line, width, **more):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, _environ={"TERM": "xterm"}, **more)
    console.print(line, end="")
    return file.getvalue()


BUSY = {"images": 12_000, "done": 3_000, "failed": 12, "busiest": "decode"}


@pytest.mark.parametrize(
    ("width", "there", "missing"),
    [
        (40, ["3,000 of 12,000 images"], ["25%", "busiest", "━"]),
        (60, ["3,000 of 12,000 images", "41.3/s", "4 min left", "12 failed"], ["busiest", "━"]),
        (80, ["3,000 of 12,000 images", "25%", "41.3/s", "4 min left", "12 failed"], []),
        (200, ["━━━", "25%", "41.3/s", "4 min left", "12 failed", "busiest: decode"], []),
    ],
)
def test_a_line_fits_its_terminal(width, there, missing):
    text = drawn(shown(**BUSY), width, no_color=True)
    assert len(text.rstrip("\n")) <= width
    assert "\n" not in text.rstrip("\n")
    assert all(part in text for part in there), text
    assert not any(part in text for part in missing), text


def test_the_bar_can_be_read_without_colours():
    text = drawn(shown(**BUSY), 120, no_color=True)
    assert "━" in text
    assert "─" in text
    assert "\x1b" not in text.replace("\x1b[0m", "")


def test_a_time_left_that_is_unknown_is_blank():
    line = shown(images=100, done=0)
    line.pace = Pace()
    assert "left" not in line.plain()
    assert "/s" not in line.plain()
    growing = shown(**BUSY, growing=True)
    assert "left" not in growing.plain()
    assert "12,000+ images" in growing.plain()


def test_a_phase_has_its_seconds():
    line = shown()
    line.enter("starting Ray")
    line.since -= 65
    assert line.plain() == "starting Ray, 1 min 5 s"


def test_the_end_is_not_left_at_0_seconds():
    line = shown(images=100, done=100)
    assert line.plain() == "100 of 100 images, writing tables"
