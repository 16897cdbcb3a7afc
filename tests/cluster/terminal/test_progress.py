"""What the terminal says before and during a run."""

import sys
import time
from types import SimpleNamespace

import pytest

from maskfleet.cluster.terminal import progress as module
from maskfleet.cluster.terminal.progress import progress


def run_of(mode, reason):
    output = SimpleNamespace(commits=SimpleNamespace(mode=mode))
    return SimpleNamespace(run_id="night", record={"commit_mode_reason": reason}, output=output, live=None)


def moment(**values):
    return SimpleNamespace(**{"done": 0, "images": 3, "failed": 0, "busiest": "", "notices": []} | values)


def shown(run, capsys):
    with progress() as view:
        for _ in range(3):
            view.progress(run, moment(notices=["run x was set aside"]))
    return capsys.readouterr().err


@pytest.mark.parametrize("reason", ["the storage ignores If-None-Match", "the storage refuses If-None-Match", None])
def test_commits_by_the_driver_alone_are_announced_once_with_the_reason(reason, capsys):
    """Finding 18 of the attacks: the probe was right and the terminal said nothing."""
    lines = shown(run_of("driver", reason), capsys).splitlines()
    said = [line for line in lines if "only the driver commits" in line]
    expected = reason or "the storage ignores If-None-Match"
    assert said == [f"only the driver commits, one shard at a time, since {expected}; results are the same"]
    assert lines[0] == said[0]


def test_a_notice_is_printed_once_and_commits_by_workers_are_not_mentioned(capsys):
    assert shown(run_of("worker", ""), capsys) == "run x was set aside\n"


def test_a_pipe_gets_plain_lines_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "_PLAIN_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as view:
        view.phase("starting Ray")
        time.sleep(0.2)
        view.phase("segmenting")
        view.progress(run_of("worker", ""), moment(done=3))
        time.sleep(0.3)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    first, *_, last = said.splitlines()
    assert first.startswith("starting Ray, 0.")
    assert last == "3 of 3 images, writing tables"
    assert said.count(last) == 1


def test_a_long_phase_is_a_sentence_with_a_line_of_its_own(capsys):
    sentence = "out/ is held by process 12 on other (renewed 3 s ago); waiting for that run to end"
    with progress() as view:
        view.phase(sentence)
        assert view.shown.phase == "waiting for the lock"
    assert capsys.readouterr().err == f"{sentence}\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "err", SimpleNamespace(is_dumb_terminal=True, print=lambda *_, **__: None))
    with progress() as view:
        view.phase("starting Ray")
