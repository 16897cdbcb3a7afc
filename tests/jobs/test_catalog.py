from jobs import statistics
from jobs.catalog import done
from jobs.storage import LocalStorage


def row(key, run_id, **more):
    return {
        **dict.fromkeys(("url", "attempt", "worker"), "x"),
        "key": key,
        "run_id": run_id,
        "etag": "e1",
        "fingerprint": "f",
        "status": "ok",
        **more,
    }


def test_the_newest_outcome_decides(tmp_path):
    storage = LocalStorage(str(tmp_path))

    def night(run_id, *rows):
        storage.write(f"stats/run_id={run_id}/part-00000.parquet", statistics.parquet(rows))

    assert done(storage, "f").num_rows == 0
    night(
        "1",
        row("same", "1"),
        row("changed", "1"),
        row("stale", "1"),
        row("later-broken", "1"),
        row("later-well", "1", status="failed", error_class="crash"),
    )
    night(
        "2",
        row("changed", "2", etag="e2"),
        row("stale", "2", fingerprint="g"),
        row("later-broken", "2", status="failed", error_class="timeout"),
        row("later-well", "2"),
        row("hopeless", "2", status="failed", error_class="corrupt"),
        row("too-large", "2", status="failed", error_class="too_large"),
    )
    found = sorted(zip(*done(storage, "f").to_pydict().values(), strict=True))
    assert found == [("changed", "e2"), ("hopeless", "e1"), ("later-well", "e1"), ("same", "e1")]
