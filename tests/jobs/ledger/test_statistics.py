import pyarrow as pa
import pytest

from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.statistics import SCHEMA

ROW = {
    **dict.fromkeys(("key", "url", "run_id", "fingerprint", "attempt", "worker"), "x"),
    "status": "ok",
    "class_bbox": [[0, 1, 2, 3], None],
    "class_pixels": [5, 0],
    "mean_confidence": 0.5,
}


def stored(rows):
    return statistics.read(statistics.table_parquet(statistics.table_of(rows)))


def test_rows_are_read_back_with_the_schema():
    table = stored([ROW, ROW | {"status": "failed", "error_class": "empty"}])
    assert table.schema.names == SCHEMA.names
    assert table.schema.types == SCHEMA.types
    first, second = table.to_pylist()
    assert first["class_bbox"] == [[0, 1, 2, 3], None]
    assert (second["status"], second["error_class"], second["width"]) == ("failed", "empty", None)


def test_every_column_states_its_meaning():
    assert all(field.metadata[b"meaning"] for field in SCHEMA)


def test_a_row_without_a_required_value_is_refused():
    with pytest.raises(pa.ArrowInvalid, match="fingerprint must not be null"):
        stored([{name: value for name, value in ROW.items() if name != "fingerprint"}])


def test_an_empty_table_is_valid():
    assert stored([]).num_rows == 0
