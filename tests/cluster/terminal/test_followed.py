"""A followed submission shows its progress and its troubles, and no event for programs."""

import json

from maskfleet.cluster.terminal.followed import Followed

LOG = "\n".join(
    [
        "0 of 24 images, 0%, first shard, 2.0 s",
        json.dumps({"time": "t", "event": "started", "run": "r", "images": 24}),
        json.dumps({"time": "t", "event": "shard done", "run": "r", "shard": "00000"}),
        json.dumps({"time": "t", "event": "worker lost", "run": "r", "why": "the node died"}),
        "{this is no event}",
        json.dumps([1]),
        "run      r: complete",
    ]
)


def followed(pieces):
    said = []
    follow = Followed(said.append)
    for piece in pieces:
        follow(piece)
    follow.close()
    return "".join(said)


def test_progress_and_troubles_are_shown_wherever_the_log_is_cut():
    expected = (
        "0 of 24 images, 0%, first shard, 2.0 s\nworker lost: the node died\n{this is no event}\n[1]\n"
        "run      r: complete\n"
    )
    assert followed([LOG]) == expected
    assert followed(LOG) == expected
    assert followed([LOG, "\n"]) == expected
