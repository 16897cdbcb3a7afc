"""What the terminal says before and during a run."""

from types import SimpleNamespace

import pytest

from maskfleet.cluster.terminal.progress import progress


def run_of(mode, reason):
    output = SimpleNamespace(commits=SimpleNamespace(mode=mode))
    return SimpleNamespace(run_id="night", record={"commit_mode_reason": reason}, output=output)


def shown(run, capsys):
    moment = SimpleNamespace(done=0, images=3, rate=0.0, failed=0, busiest="", shards=0, notices=[])
    with progress() as show:
        for _ in range(3):
            show(run, moment)
    return capsys.readouterr().err


@pytest.mark.parametrize("reason", ["the storage ignores If-None-Match", "the storage refuses If-None-Match", None])
def test_commits_by_the_driver_alone_are_announced_once_with_the_reason(reason, capsys):
    """Finding 18 of the attacks: the probe was right and the terminal said nothing."""
    lines = shown(run_of("driver", reason), capsys).splitlines()
    said = [line for line in lines if "only the driver commits" in line]
    expected = reason or "the storage ignores If-None-Match"
    assert said == [f"only the driver commits, one shard at a time, since {expected}; results are the same"]
    assert lines[0] == said[0]


def test_commits_by_workers_are_not_mentioned(capsys):
    assert "commits" not in shown(run_of("worker", ""), capsys)
