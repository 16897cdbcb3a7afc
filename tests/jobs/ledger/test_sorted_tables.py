import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.ledger.sorted_tables import even


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=9), st.integers(1, 5))
def test_even_tables_hold_the_same_rows(tables, rows):
    found = [table["x"].to_pylist() for table in even((pa.table({"x": pa.array(t, pa.int64())}) for t in tables), rows)]
    assert [x for table in found for x in table] == [x for table in tables for x in table]
    assert all(len(table) == rows for table in found[:-1])
    assert all(0 < len(table) <= rows for table in found[-1:])
