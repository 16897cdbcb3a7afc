import pyarrow as pa
import pytest

from maskfleet.jobs.inputs.record import LISTED
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.planning.reasons import reasons_of

DONE = {"key": "a.png", "etag": "1", "fingerprint": "f", "status": "ok"}


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (None, "new"),
        ({}, None),
        ({"status": "gone"}, "new"),
        ({"etag": "0"}, "changed"),
        ({"fingerprint": "g"}, "stale"),
        ({"status": "failed", "error_class": "missing"}, "failed"),
        ({"status": "failed", "error_class": "corrupt"}, None),  # would fail again
    ],
)
def test_the_reason_follows_from_the_catalog(known, reason):
    listed = pa.Table.from_pylist([{"key": "a.png", "url": "/a.png", "size": 1, "etag": "1"}], LISTED)
    seen = pa.Table.from_pylist([] if known is None else [DONE | known], catalog.SCHEMA)
    assert reasons_of(listed, seen, fingerprint="f", selection=Selection()).to_pylist() == [reason]
