"""The newest outcome of every image over all runs of an output, from its compacted statistics."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.storage import Storage

FINAL = (
    *("empty", "unidentified", "corrupt", "unsupported", "too_small"),
    *("damaged_tar", "unsafe_name", "duplicate_name", "link", "sparse", "no_column", "damaged_parquet", "no_bytes"),
)
"""Failures that the same bytes under the same job give again, so that a new run does not try them."""

_COLUMNS = ["key", "etag", "fingerprint", "status", "error_class"]


def done(storage: Storage, fingerprint: str) -> pa.Table:
    """Key and etag of the images whose newest outcome has this fingerprint and would be the same again."""
    tables = []
    for run in storage.names("stats"):
        parts = [name for name in storage.names(f"stats/{run}") if name.endswith(".parquet")]
        for part in parts:
            data = storage.read(f"stats/{run}/{part}")
            tables.append(pq.read_table(io.BytesIO(data), columns=_COLUMNS, partitioning=None))
    if not tables:
        return pa.table({"key": pa.array([], pa.string()), "etag": pa.array([], pa.string())})
    # Run ids begin with their time, so that the last row of a key is its newest.
    rows = pa.concat_tables(tables)
    rows = rows.append_column("order", pa.array(range(rows.num_rows), pa.int64()))
    newest = rows.group_by("key").aggregate([("order", "max")])["order_max"]
    rows = rows.take(newest)
    settled = pc.or_(pc.equal(rows["status"], "ok"), pc.is_in(rows["error_class"], value_set=pa.array(FINAL)))
    same = pc.equal(rows["fingerprint"], fingerprint)
    return rows.filter(pc.and_(same, pc.fill_null(settled, False))).select(["key", "etag"])
