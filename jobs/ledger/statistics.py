"""The statistics: one row per image, ok or failed, with an explicit schema."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1
"""Version of the schema; part of the fingerprint."""

STAGES = ("fetch", "decode", "segment", "encode")
"""Stages with a column of seconds, in order."""


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


SCHEMA = pa.schema(
    [
        _column("key", pa.string(), "name of the image, relative to the input", nullable=False),
        _column(
            "url",
            pa.string(),
            "full name of the image: path or URL; that of a page ends with its number",
            nullable=False,
        ),
        _column(
            "size",
            pa.int64(),
            "size of the image file in bytes, or a page's share of it; null if the plan could not determine it",
        ),
        _column(
            "etag",
            pa.string(),
            "S3 ETag, or modification time and size of a local file; null if the plan could not determine it",
        ),
        _column("run_id", pa.string(), "run that made this row", nullable=False),
        _column("fingerprint", pa.string(), "hash of everything a mask depends on besides its image", nullable=False),
        _column("width", pa.int32(), "stored width in px; null if the image was not decoded"),
        _column("height", pa.int32(), "stored height in px; null if the image was not decoded"),
        _column("status", pa.string(), "ok or failed", nullable=False),
        _column("stage", pa.string(), "stage that failed: plan, fetch, decode, segment, encode or worker; null if ok"),
        _column(
            "error_class",
            pa.string(),
            "kind of failure in one word, such as corrupt, missing, too_large, crash; null if ok",
        ),
        _column("error_message", pa.string(), "description of the failure and its remedy; null if ok"),
        _column("class_pixels", pa.list_(pa.int64()), "number of pixels of each class"),
        _column("class_fraction", pa.list_(pa.float64()), "share of the image's pixels in each class, in [0, 1]"),
        _column(
            "class_bbox",
            pa.list_(pa.list_(pa.int32(), 4)),
            "left, top, right and bottom of each class in px, right and bottom exclusive; null for an absent class",
        ),
        _column("mean_confidence", pa.float32(), "mean over the pixels of the probability of the chosen class"),
        _column(
            "mean_entropy", pa.float32(), "mean over the pixels of the entropy of the class probabilities, in nats"
        ),
        _column(
            "input_mean",
            pa.list_(pa.float64()),
            "mean of each channel as the network saw it, in [0, 1] or as normalised",
        ),
        _column("input_std", pa.list_(pa.float64()), "standard deviation of each channel as the network saw it"),
        _column("mask_object", pa.string(), "path in the output of the tar or Parquet file holding the mask"),
        _column(
            "mask_member",
            pa.string(),
            "name of the mask below masks/ and in exports; also in that file, but for inner dots in a tar (%2E)",
        ),
        _column("mask_bytes", pa.int64(), "size of the mask's PNG in bytes"),
        _column("mask_sha256", pa.string(), "SHA-256 of the mask's PNG, hexadecimal"),
        _column(
            "mask_rle",
            pa.list_(pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
            "mask of each class as COCO's compressed run lengths, if masks.format is rle; null for class 0 "
            "and absent classes",
        ),
        _column("attempt", pa.string(), "committed attempt at the shard", nullable=False),
        _column("worker", pa.string(), "host and process id of the worker", nullable=False),
        *(
            _column(
                f"{stage}_seconds", pa.float32(), f"seconds in {stage}; those of a batch are shared among its images"
            )
            for stage in STAGES
        ),
    ],
    metadata={"maskfleet.schema": str(VERSION)},
)
"""Columns of the statistics. The metadata of each field state its meaning."""


ROW_GROUP = 8192
"""Rows per row group: few enough to read little for one key, enough to compress well."""


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return a table of rows. Missing columns are null.

    Raises:
        pyarrow.ArrowInvalid: A value has the wrong type.
    """
    return pa.Table.from_pylist([dict(row) for row in rows], SCHEMA)


def table_parquet(table: pa.Table) -> bytes:
    """Return a Parquet file of a table in `SCHEMA`."""
    writer = TableWriter(rows=table.num_rows)
    writer.add(table)
    return writer.close()


class TableWriter:
    """A Parquet file in `SCHEMA`, written table by table. Rows added are held in memory compressed.

    Args:
        rows: Expected number of rows, which sizes the Bloom filters.
    """

    def __init__(self, *, rows: int = ROW_GROUP) -> None:
        self._sink = io.BytesIO()
        # Key ranges of several runs overlap: Bloom filters rule out more files than ranges do.
        bloom = {"key": {"ndv": max(1, min(rows, ROW_GROUP)), "fpp": 0.01}}
        self._file = pq.ParquetWriter(
            self._sink, SCHEMA, compression="zstd", write_page_index=True, bloom_filter_options=bloom
        )

    def add(self, table: pa.Table) -> None:
        """Add rows. They start a new row group.

        Raises:
            pyarrow.ArrowInvalid: A value is missing in a non-null column.
        """
        table.validate(full=True)
        for field in SCHEMA:
            if not field.nullable and table[field.name].null_count:
                raise pa.ArrowInvalid(f"column {field.name} must not be null")
        self._file.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> bytes:
        """Finish and return the file."""
        self._file.close()
        return self._sink.getvalue()


def read(data: bytes) -> pa.Table:
    """Return the rows in a statistics file."""
    return pq.read_table(io.BytesIO(data), schema=SCHEMA)
