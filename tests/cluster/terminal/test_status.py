"""The state of a run and its output, for people."""

from maskfleet.cluster.terminal.status import lines
from maskfleet.jobs.outputs.status import Status

NIGHT = {
    "run_id": "20261128T020000.000-1a2b3c", "state": "unfinished", "created": "2026-11-28T02:00:00+00:00",
    "images": 12_000, "done": 3_000, "ok": 2_990, "failed": 10, "shards_left": 1, "left_alone": {".txt": 1},
    "fingerprint": "f" * 64, "weights": "081031be7d634f27845b", "totals": {"ok": 1_000_000, "failed": 3, "redo": 2},
}  # fmt: skip


def test_a_run_in_progress_and_the_totals_of_the_output():
    assert list(lines(Status(**NIGHT))) == [
        "run      20261128T020000.000-1a2b3c: unfinished, begun 2026-11-28 02:00 UTC",
        "images   3,000 of 12,000 done: 2,990 ok, 10 failed; 1 shard left",
        "left     1 file alone: 1 .txt",
        "output   1,000,005 images over all finished runs: 1,000,000 ok, 3 failed, 2 to be done again",
        "weights  081031be7d63",
    ]


def test_a_night_with_nothing_to_do_still_shows_the_output():
    idle = Status(**NIGHT | {"state": "complete", "images": 0, "done": 0, "ok": 0, "failed": 0, "shards_left": 0})
    assert "images   nothing to do: every image was up to date" in list(lines(idle))
    assert any(line.startswith("output   1,000,005 images") for line in lines(idle))
