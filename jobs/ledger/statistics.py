"""The statistics: one row per image, ok or failed, with an explicit schema."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1
"""Of the schema; part of the fingerprint."""

STAGES = ("fetch", "decode", "segment", "encode")
"""Where the seconds of an image go, in order."""


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


SCHEMA = pa.schema(
    [
        _column("key", pa.string(), "name of the image within the job", nullable=False),
        _column("url", pa.string(), "where the image was read", nullable=False),
        _column("size", pa.int64(), "bytes of the image's file; null where the plan could not find it"),
        _column("etag", pa.string(), "S3 ETag, or modification time and size of a local file; null likewise"),
        _column("run_id", pa.string(), "the run that made this row", nullable=False),
        _column("fingerprint", pa.string(), "hash of all that a mask depends on beside its image", nullable=False),
        _column("width", pa.int32(), "stored width in px; null if the image was not decoded"),
        _column("height", pa.int32(), "stored height in px; null likewise"),
        _column("status", pa.string(), "ok or failed", nullable=False),
        _column("stage", pa.string(), "of a failure: fetch, decode, segment, encode or worker"),
        _column("error_class", pa.string(), "of a failure: one word, such as corrupt, missing, too_large, crash"),
        _column("error_message", pa.string(), "of a failure: what happened and what to do"),
        _column("class_pixels", pa.list_(pa.int64()), "pixels of each class"),
        _column("class_fraction", pa.list_(pa.float64()), "share of the pixels of each class, in [0, 1]"),
        _column(
            "class_bbox",
            pa.list_(pa.list_(pa.int32(), 4)),
            "left, top, right, bottom of each class in px, right and bottom exclusive; null for an absent class",
        ),
        _column("mean_confidence", pa.float32(), "probability of the chosen class, mean over the pixels"),
        _column("mean_entropy", pa.float32(), "entropy of the class probabilities in nats, mean over the pixels"),
        _column("input_mean", pa.list_(pa.float64()), "mean of each channel as the network saw it, in [0, 1]"),
        _column("input_std", pa.list_(pa.float64()), "standard deviation of each channel, likewise"),
        _column("mask_object", pa.string(), "path in the output of the tar or Parquet file that holds the mask"),
        _column("mask_member", pa.string(), "the mask's name there, below masks/, and in exports"),
        _column("mask_bytes", pa.int64(), "bytes of the mask's PNG"),
        _column("mask_sha256", pa.string(), "sha256 of the mask's PNG, hexadecimal"),
        _column(
            "mask_rle",
            pa.list_(pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
            "masks of the classes as COCO's compressed run lengths, where masks.format is rle; null for class 0 "
            "and absent classes",
        ),
        _column("attempt", pa.string(), "the attempt at the shard that was committed", nullable=False),
        _column("worker", pa.string(), "host and process that made it", nullable=False),
        *(_column(f"{stage}_seconds", pa.float32(), f"seconds in {stage}; a batch's are shared") for stage in STAGES),
    ],
    metadata={"maskfleet.schema": str(VERSION)},
)
"""Columns of statistics tables; each field's metadata state its meaning."""


ROW_GROUP = 8192
"""Small enough that the statistics of `key` leave little to read for one image, large enough to compress."""


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return a table of `SCHEMA`; a column missing from a row is null.

    Raises:
        pyarrow.ArrowInvalid: A value has another type.
    """
    return pa.Table.from_pylist([dict(row) for row in rows], SCHEMA)


def table_parquet(table: pa.Table) -> bytes:
    """A Parquet file of a table of `SCHEMA`."""
    writer = Writer(rows=table.num_rows)
    writer.add(table)
    return writer.close()


class Writer:
    """A Parquet file of tables of `SCHEMA`; what was added is in memory as it will be stored, compressed.

    Args:
        rows: That it will have, as far as known.
    """

    def __init__(self, *, rows: int = ROW_GROUP) -> None:
        self._sink = io.BytesIO()
        # Parts of several nights overlap, and so do their least and largest keys; Bloom filters rule out more.
        bloom = {"key": {"ndv": max(1, min(rows, ROW_GROUP)), "fpp": 0.01}}
        self._file = pq.ParquetWriter(
            self._sink, SCHEMA, compression="zstd", write_page_index=True, bloom_filter_options=bloom
        )

    def add(self, table: pa.Table) -> None:
        """Add rows, which begin a row group.

        Raises:
            pyarrow.ArrowInvalid: A column that must be there is null.
        """
        table.validate(full=True)
        for field in SCHEMA:
            if not field.nullable and table[field.name].null_count:
                raise pa.ArrowInvalid(f"column {field.name} must not be null")
        self._file.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> bytes:
        """The file."""
        self._file.close()
        return self._sink.getvalue()


def read(data: bytes) -> pa.Table:
    """The table in a statistics file."""
    return pq.read_table(io.BytesIO(data), schema=SCHEMA)
