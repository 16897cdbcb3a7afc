import json

import pytest

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger.runs import described, state_of, stored_run, stored_runs, summary_of
from maskfleet.jobs.storage.local import LocalStorage


def store(storage, run_id, **job):
    record = {
        "created": "2026-11-28T00:00:00+00:00",
        "fingerprint": "f",
        "weights": {"id": "w", "mask_values": None},
        "commit_mode": "worker",
        "job": {"input": "in", **job},
    }
    storage.write(f"runs/{run_id}/job.json", json.dumps(record).encode())


def test_runs_are_read_in_order_of_age(tmp_path):
    storage = LocalStorage(str(tmp_path))
    for run_id in ("b", "a", "c"):
        store(storage, run_id)
    storage.write("runs/d/logs/x.jsonl", b"")  # interrupted before its description was written
    assert [run.run_id for run in stored_runs(storage)] == ["a", "b", "c"]
    assert [run.run_id for run in stored_runs(storage, newest_first=True)] == ["c", "b", "a"]
    with pytest.raises(NotFound):
        stored_run(storage, "d")


def test_a_run_states_what_its_job_left_to_the_defaults(tmp_path):
    storage = LocalStorage(str(tmp_path))
    store(storage, "a")
    store(storage, "b", masks={"format": "rle"}, inference={"orientation": "upright"})
    first, second = stored_runs(storage)
    assert (first.input, first.mask_format, first.upright) == ("in", "png", False)
    assert (second.mask_format, second.upright) == ("rle", True)


def test_a_run_without_a_summary_is_unfinished(tmp_path):
    storage = LocalStorage(str(tmp_path))
    store(storage, "a")
    assert summary_of(storage, "a") is None
    assert state_of(storage, "a") == "unfinished"
    storage.write("runs/a/run.json", b'{"status": "incomplete"}')
    assert state_of(storage, "a") == "incomplete"


def test_an_unreadable_description_costs_its_run_alone(tmp_path):
    storage = LocalStorage(str(tmp_path))
    for run_id in "abc":
        store(storage, run_id)
    for data in (b"\xff", b"[]", b"{}", b"null"):
        storage.write("runs/b/job.json", data)
        assert [run.run_id for run in stored_runs(storage)] == ["a", "c"]
        with pytest.raises(Damaged, match="runs/b/job.json is damaged; restore it"):
            described(storage, "b")
