"""What each input's mask is called, and where a sorted listing may be cut without changing that."""

import re

import pyarrow as pa
import pyarrow.compute as pc


def mask_names(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of each input's mask.

    It is the key with its ending replaced by `.png`. Where that name would be taken twice, each of
    the inputs concerned keeps its ending and gets `.png` behind it: `a.jpg` and `a.tif` become
    `a.jpg.png` and `a.tif.png`. Parts that would lead out of a folder, and control characters, are
    percent-encoded, and so is a percent sign that could be taken for such a code.

    Args:
        keys: Distinct keys, as text.

    Returns:
        As many distinct names.
    """
    safe = _safe(keys)
    full = pc.binary_join_element_wise(safe, ".png", "")
    short = pc.binary_join_element_wise(_stems(safe), ".png", "")
    counts = short.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    keep = pc.is_in(short, value_set=shared)
    while True:
        names = pc.if_else(keep, full, short)
        # A name with its ending kept may be another input's short name; then that one keeps its ending too.
        clash = pc.and_(pc.invert(keep), pc.is_in(short, value_set=names.filter(keep)))
        if not pc.any(clash).as_py():
            return names
        keep = pc.or_(keep, clash)


_ENDING = r"\.[^./]*$"

_TRIED = 64
"""Places near the end of a listing that are tried as a cut."""


def settled(keys: pa.ChunkedArray) -> int:
    """How many of the first keys of a sorted listing have names that nothing behind them can change.

    Names are a matter of keys that share a *stem*, the key without its ending, and of a key that is
    another's stem. In a sorted listing all keys between two of one stem begin with that stem and then
    a character below '/'. So a cut is free where the key behind it begins with no stem seen so far in
    that way.

    Args:
        keys: Distinct, sorted by code point, from a free cut on.

    Returns:
        A number of keys that ends at a free cut: the last one found near the end, or 0.
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
    """Distinct keys stay distinct: what the codes stand for is found again by reading them from the left."""
    return "/".join(_encoded_part(part) for part in key.split("/"))


def _encoded_part(part: str) -> str:
    if part == "%":
        return "%25"
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"%{ord(found[0]):02X}", _CODED.sub("%25", part))
