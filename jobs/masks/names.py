"""Names of masks by the keys of their images, and cuts of a sorted listing without effect on names."""

import hashlib
import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

_NONE = pa.chunked_array([], pa.string())


class Known(NamedTuple):
    """What earlier runs have named, in the range of keys of a listing.

    Attributes:
        recorded: Recorded name of each listed image; null if it has none.
        taken: Recorded names of images that are not listed.
        unrecorded: Keys of known images, listed or not, whose names were not recorded.
    """

    recorded: pa.ChunkedArray
    taken: pa.ChunkedArray = _NONE
    unrecorded: pa.ChunkedArray = _NONE


def mask_names(keys: pa.ChunkedArray, known: Known | None = None) -> pa.ChunkedArray:
    """Name the mask of each image.

    A recorded name stays. Otherwise the name is the key with its ending replaced by `.png`. If two images could share
    a name, the ones without a recorded name keep their ending and append `.png`: `a.jpg` and `a.tif` become `a.jpg.png`
    and `a.tif.png`. If that name belongs to another image, a hash of the key comes before `.png`. Path parts leading
    out of the folder, and control characters, are percent-encoded, and so are the dot of a folder ending in `.png`,
    because it could be the name of a mask, and a percent sign if it looks like such a code.

    Args:
        keys: Distinct keys, as strings.
        known: Masks of earlier runs; None if there are none.

    Returns:
        Distinct names, in the order of the keys; "" for an image with every name taken.
    """
    if known is None:
        return _new_names(keys, _NONE, _NONE)
    unnamed = pc.is_null(known.recorded)
    if not pc.any(unnamed).as_py():
        return known.recorded
    taken = pa.chunked_array([*known.taken.chunks, *known.recorded.drop_null().chunks], pa.string())
    new = _new_names(keys.filter(unnamed), taken, known.unrecorded)
    mask, recorded, new = unnamed.combine_chunks(), known.recorded.combine_chunks(), new.combine_chunks()
    return pa.chunked_array([pc.replace_with_mask(recorded, mask, new)])


def _new_names(keys: pa.ChunkedArray, taken: pa.ChunkedArray, unrecorded: pa.ChunkedArray) -> pa.ChunkedArray:
    """Name images without recorded names.

    Args:
        keys: Keys of the images.
        taken: Names of other masks.
        unrecorded: Keys of known images, among them some of `keys`, with a name of the first two forms.
    """
    safe, others = _safe(keys), _safe(unrecorded)
    full, short = _png(safe), _png(_stems(safe))
    full_others, short_others = _png(others), _png(_stems(others))
    unlisted = pc.invert(pc.is_in(full_others, value_set=full))
    counts = pa.chunked_array([*short.chunks, *short_others.filter(unlisted).chunks], pa.string()).value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    keep = pc.or_(pc.is_in(short, value_set=shared), pc.is_in(short, value_set=taken))
    keep = pc.or_(keep, pc.and_(pc.is_in(short, value_set=full_others), pc.not_equal(short, full)))
    while True:
        names = pc.if_else(keep, full, short)
        # A full name may equal the short name of another image, which then keeps its ending too.
        clash = pc.and_(pc.invert(keep), pc.is_in(short, value_set=names.filter(keep)))
        if not pc.any(clash).as_py():
            break
        keep = pc.or_(keep, clash)
    cut = short_others.filter(pc.not_equal(short_others, full_others))
    blocked = pc.and_(keep, pc.or_(pc.is_in(full, value_set=taken), pc.is_in(full, value_set=cut)))
    return _with_hashes(names, blocked, keys, safe, taken) if pc.any(blocked).as_py() else names


def _with_hashes(
    names: pa.ChunkedArray, blocked: pa.ChunkedArray, keys: pa.ChunkedArray, safe: pa.ChunkedArray, taken: pa.Array
) -> pa.ChunkedArray:
    """Give the blocked images a name with a hash; "" if even this one is taken."""
    rows = zip(*(column.to_pylist() for column in (names, blocked, keys, safe)), strict=True)
    found = [
        f"{safe}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.png" if wrong else name
        for name, wrong, key, safe in rows
    ]
    counts = pa.array(found, pa.string()).value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    array = pa.chunked_array([pa.array(found, pa.string())])
    lost = pc.or_(pc.is_in(array, value_set=twice), pc.is_in(array, value_set=taken))
    return pc.if_else(lost, "", array)


_ENDING = r"\.[^./]*$"

_TRIED = 64
"""Positions near the end of a listing that are tried as a cut."""


def settled(keys: pa.ChunkedArray) -> int:
    """Count the keys at the start of a sorted listing with final names: no later key can change them.

    A name depends on the keys with the same *stem*, the key without its ending, and on a key equal to that stem. In a
    sorted listing, all keys between two keys of one stem begin with that stem followed by a character below '/'. So the
    listing can be cut before any key without such a beginning.

    Args:
        keys: Distinct keys, sorted by code point, beginning at such a cut.

    Returns:
        Number of keys before the last such cut found near the end; 0 if none was found.
    """
    first = max(1, len(keys) - _TRIED)
    tail = keys.slice(first).to_pylist()
    begins = [[key[:end] for end, character in enumerate(key) if character < "/"] for key in tail]
    all_begins = pa.array({begin for of_key in begins for begin in of_key}, pa.string())
    stems = set(all_begins.filter(pc.is_in(all_begins, value_set=_stems(keys.slice(0, first)))).to_pylist())
    cut = 0
    for place, (stem, of_key) in enumerate(zip(_stems(keys.slice(first)).to_pylist(), begins, strict=True), first):
        if stems.isdisjoint(of_key):
            cut = place
        stems.add(stem)
    return cut


def _stems(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(keys, _ENDING, "")


def _png(stems: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(stems, ".png", "")


_UNSAFE = r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f\\]|%([01][0-9A-F]|7F|5C|2E|25)|(^|/)%(/|$)|\.png/"
_CODED = re.compile(r"%(?=[01][0-9A-F]|7F|5C|2E|25)")


def _safe(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    unsafe = pc.match_substring_regex(keys, _UNSAFE)
    if not pc.any(unsafe).as_py():
        return keys
    encoded = [_encoded(key) if bad else key for key, bad in zip(keys.to_pylist(), unsafe.to_pylist(), strict=True)]
    return pa.chunked_array([pa.array(encoded, pa.string())])


def _encoded(key: str) -> str:
    """Encode a key. Distinct keys stay distinct, since decoding from the left restores them."""
    *folders, last = (_encoded_part(part) for part in key.split("/"))
    return "/".join([*(re.sub(r"\.png$", "%2Epng", folder) for folder in folders), last])


def _encoded_part(part: str) -> str:
    if part == "%":
        return "%25"
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"%{ord(found[0]):02X}", _CODED.sub("%25", part))
