"""The reason for planning an image: it is to be redone, new, changed, stale (of another fingerprint), or failed."""

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.images.formats import SEVERAL_PAGES
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog


def reasons_of(
    table: pa.Table,
    seen: pa.Table,
    *,
    fingerprint: str,
    selection: Selection,
    nameless: pa.Array,
    pages_wanted: bool = False,
) -> pa.ChunkedArray:
    """Return the reason for planning each image; null if it needs no work or is not selected.

    Args:
        table: Listed images.
        seen: Catalog rows of the same range of keys.
        fingerprint: Fingerprint of the job.
        selection: The part of the input to process.
        nameless: Whether the output cannot hold each image's mask under its name.
        pages_wanted: Whether the job reads files with pages, so that their refusal is not final.
    """
    known = _known_outcomes(table, seen)
    etag = table["etag"].combine_chunks()
    unknown = pc.fill_null(pc.equal(known["status"], catalog.GONE), True)
    same = pc.or_(
        pc.fill_null(pc.equal(known["etag"], etag), False), pc.and_(pc.is_null(known["etag"]), pc.is_null(etag))
    )
    stale = pc.invert(pc.fill_null(pc.equal(known["fingerprint"], fingerprint), False))
    failed = pc.fill_null(pc.equal(known["status"], "failed"), False)
    redo = pc.fill_null(pc.equal(known["status"], catalog.REDO), False)
    if selection.classes:
        wanted = catalog.in_classes(known["stage"], known["error_class"], selection.classes)
        reasons = pc.if_else(pc.and_(failed, wanted), "failed", None)
    else:
        final = pc.fill_null(pc.is_in(known["error_class"], value_set=pa.array(catalog.final_failures())), False)
        unnamed = pc.fill_null(pc.equal(known["error_class"], catalog.UNNAMED), False)
        final = pc.or_(final, pc.and_(unnamed, nameless))
        if pages_wanted:
            final = pc.and_not(final, pc.fill_null(pc.equal(known["error_class"], SEVERAL_PAGES), False))
        retried = pc.and_(failed, pc.invert(final))
        conditions = pc.make_struct(redo, unknown, pc.invert(same), stale, retried)
        reasons = pc.case_when(conditions, "redo", "new", "changed", "stale", "failed")
    if selection.only:
        reasons = pc.if_else(pc.is_in(reasons, value_set=pa.array(selection.only)), reasons, None)
    if selection.since is not None:
        since = selection.since.timestamp()
        recent = pc.fill_null(pc.greater_equal(table["modified"].combine_chunks(), since), True)
        reasons = pc.if_else(recent, reasons, None)
    return pa.chunked_array([reasons.cast(pa.string())])


def _known_outcomes(table: pa.Table, seen: pa.Table) -> dict[str, pa.Array]:
    """Return catalog columns aligned with the listed images; null for images not in the catalog."""
    # One null row after the catalog's stands for unknown images, since `take` needs at least one row.
    row = pc.fill_null(pc.index_in(table["key"], value_set=seen["key"]), seen.num_rows)
    indices = row.combine_chunks() if isinstance(row, pa.ChunkedArray) else row
    return {
        name: pa.concat_arrays([*seen[name].chunks, pa.nulls(1, seen.schema.field(name).type)]).take(indices)
        for name in ("etag", "fingerprint", "status", "stage", "error_class")
    }
