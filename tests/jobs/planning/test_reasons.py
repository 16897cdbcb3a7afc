import pyarrow as pa
import pytest

from maskfleet.jobs.inputs.record import LISTED
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.planning.reasons import reasons_of

DONE = {"key": "a.png", "etag": "1", "fingerprint": "f", "status": "ok"}


UNNAMED = {"status": "failed", "stage": "plan", "error_class": "mask_name"}


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
    assert reason_of(known) == reason


def reason_of(known, *, nameless=False):
    listed = pa.Table.from_pylist([{"key": "a.png", "url": "/a.png", "size": 1, "etag": "1"}], LISTED)
    seen = pa.Table.from_pylist([] if known is None else [DONE | known], catalog.SCHEMA)
    nameless = pa.array([nameless])
    (reason,) = reasons_of(listed, seen, fingerprint="f", selection=Selection(), nameless=nameless).to_pylist()
    return reason


def test_an_image_with_a_name_that_cannot_be_held_is_tried_again_once_it_can():
    assert reason_of(UNNAMED, nameless=True) is None
    assert reason_of(UNNAMED) == "failed"
