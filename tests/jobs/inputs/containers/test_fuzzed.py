"""Damaged containers of every kind: each is listed and read to its end, and leaves a row."""

import pytest
from faults.fuzzed_containers import outcomes


@pytest.mark.parametrize("count", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_damaged_container_crashes_nothing_and_leaves_a_row(tmp_path, count):
    found, _ = outcomes(tmp_path, range(count))
    assert {"ok", "damaged_tar", "damaged_parquet", "damaged_row"} <= set(found.values())
