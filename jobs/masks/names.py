"""Names of masks by the keys of their images, and cuts of a sorted listing without effect on names."""

import re

import pyarrow as pa
import pyarrow.compute as pc


def mask_names(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Name the mask of each image.

    The name is the key with its ending replaced by `.png`. If two images would share a name, both keep their ending and
    append `.png`: `a.jpg` and `a.tif` become `a.jpg.png` and `a.tif.png`. Path parts leading out of the folder, and
    control characters, are percent-encoded, and so is a percent sign if it looks like such a code.

    Args:
        keys: Distinct keys, as strings.

    Returns:
        Distinct names, in the order of the keys.
    """
    safe = _safe(keys)
    full = pc.binary_join_element_wise(safe, ".png", "")
    short = pc.binary_join_element_wise(_stems(safe), ".png", "")
    counts = short.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    keep = pc.is_in(short, value_set=shared)
    while True:
        names = pc.if_else(keep, full, short)
        # A full name may equal the short name of another image, which then keeps its ending too.
        clash = pc.and_(pc.invert(keep), pc.is_in(short, value_set=names.filter(keep)))
        if not pc.any(clash).as_py():
            return names
        keep = pc.or_(keep, clash)


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


_UNSAFE = r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f\\]|%([01][0-9A-F]|7F|5C|2E|25)|(^|/)%(/|$)"
_CODED = re.compile(r"%(?=[01][0-9A-F]|7F|5C|2E|25)")


def _safe(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    unsafe = pc.match_substring_regex(keys, _UNSAFE)
    if not pc.any(unsafe).as_py():
        return keys
    encoded = [_encoded(key) if bad else key for key, bad in zip(keys.to_pylist(), unsafe.to_pylist(), strict=True)]
    return pa.chunked_array([pa.array(encoded, pa.string())])


def _encoded(key: str) -> str:
    """Encode a key. Distinct keys stay distinct, since decoding from the left restores them."""
    return "/".join(_encoded_part(part) for part in key.split("/"))


def _encoded_part(part: str) -> str:
    if part == "%":
        return "%25"
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"%{ord(found[0]):02X}", _CODED.sub("%25", part))
