"""The format `parquet`: a table per shard, with the rows of the statistics and the masks as PNG files.

Hugging Face `datasets` reads the column as an `Image`.
"""

import io
import json
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.masks.png_files import PngFiles

MASK = pa.field(
    "mask",
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    metadata={"meaning": "the mask's PNG and its name; null for a failed image"},
)
"""Column that follows those of the statistics, in the layout of Hugging Face's images."""

_ROW_GROUP = 128
"""Rows; small groups let readers stream."""

_HUGGING_FACE = json.dumps({"info": {"features": {"mask": {"_type": "Image"}}}})


class Parquet(PngFiles):
    """PNG files in a Parquet table per shard."""

    archive = "masks.parquet"
    archive_label = "tables"

    def pack(self, table: pa.Table, files: Mapping[str, bytes]) -> bytes:
        names = table["mask_member"].to_pylist()
        masks = pa.array([{"bytes": files[name], "path": name} if name else None for name in names], MASK.type)
        packed = table.append_column(MASK, masks)
        packed = packed.replace_schema_metadata({**(table.schema.metadata or {}), b"huggingface": _HUGGING_FACE})
        # PNG files are compressed already.
        compression = {path: "none" if path.startswith("mask.") else "zstd" for path in _leaves(packed.schema)}
        sink = io.BytesIO()
        pq.write_table(packed, sink, row_group_size=_ROW_GROUP, compression=compression, write_page_index=True)
        return sink.getvalue()

    def unpack(self, archive: bytes) -> Iterator[tuple[str, bytes]]:
        for mask in pq.read_table(io.BytesIO(archive), columns=[MASK.name])[MASK.name].to_pylist():
            if mask is not None:
                yield mask["path"], mask["bytes"]

    def agrees(self, archive: bytes, table: pa.Table) -> bool:
        return bool(pq.read_table(io.BytesIO(archive), schema=table.schema).equals(table))


FORMAT = Parquet()


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns of a schema."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(sink).schema
    return [columns.column(number).path for number in range(len(columns))]
