"""A page of a bucket's listing, from S3's XML straight into columns.

botocore makes a dictionary of every object, and a page of a thousand costs 31 ms. So its event `before-parse` gives the
body to the parser here, and botocore an empty one. Signing, errors and all else are as for any other request: a body
that is no such page is left to botocore.

Of the body the objects are cut out, and what is left is read as XML. The objects' fields are found by regular
expressions on all at once, in half the time that a parser takes which makes elements of them. Text in XML has no `<`
that is not markup; so a field is found whole, or the body is refused.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.storage.contract import OBJECTS

EVENT = "before-parse.*.ListObjectsV2"
"""botocore's, that `take_body` is for. With an asterisk it comes before botocore's own handler, which would parse the
body once more to look for an error in it."""

_ROOT = "ListBucketResult"
_EMPTY = f"<{_ROOT}/>".encode()


class Page(NamedTuple):
    """A page.

    Attributes:
        objects: Of `OBJECTS`; their paths are whole keys.
        folders: Prefixes up to the delimiter, if one was asked for.
        more: What continues the listing, or None at its end.
    """

    objects: pa.Table
    folders: list[str]
    more: str | None


def take_body(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Put the page beside what botocore makes of the answer, as `Page`; see `EVENT`."""
    if response_dict["status_code"] == 200:
        page = page_of(response_dict["body"])
        if page is not None:
            response_dict["body"] = _EMPTY
            customized_response_dict["Page"] = page


def page_of(body: bytes) -> Page | None:
    """What ListObjectsV2 answered; None if that is not whole, or something else."""
    head, *pieces = body.split(b"<Contents>")
    parts = [piece.partition(b"</Contents>") for piece in pieces]
    try:
        root = ET.fromstring(head + b"".join(tail for _, _, tail in parts))  # noqa: S314  (botocore would do the same)
        objects = _objects([inner for inner, _, _ in parts])
    except (ET.ParseError, pa.ArrowInvalid):
        return None
    space, brace, name = root.tag.rpartition("}")
    space += brace
    truncated = root.findtext(f"{space}IsTruncated") == "true"
    more = root.findtext(f"{space}NextContinuationToken") if truncated else None
    # Without a field of an object, or without what continues it, a page would pass for shorter than it is.
    if name != _ROOT or truncated is (more is None) or any(column.null_count for column in objects.columns):
        return None
    folders = pa.array([prefix.text for prefix in root.iterfind(f"{space}CommonPrefixes/{space}Prefix")], pa.string())
    if root.findtext(f"{space}EncodingType") == "url":
        objects = objects.set_column(0, "path", _each(objects["path"].combine_chunks(), "[%+]", unquote_plus))
        folders = _each(folders, "[%+]", unquote_plus)
    return Page(objects.cast(OBJECTS), folders.to_pylist(), more)


def _objects(pieces: list[bytes]) -> pa.Table:
    """The insides of elements `Contents`; null for what one lacks, and keys as they stand there."""
    inner = pa.array(pieces, pa.string())
    keys, sizes, etags, times = (_texts(inner, field) for field in ("Key", "Size", "ETag", "LastModified"))
    microseconds = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    modified = pc.divide(microseconds.cast(pa.float64()), 1e6)
    return pa.table([keys, sizes.cast(pa.int64()), pc.ascii_trim(etags, '"'), modified], OBJECTS.names)


def _texts(inner: pa.Array, field: str) -> pa.Array:
    texts = pc.struct_field(pc.extract_regex(inner, f"<{field}>(?P<text>[^<]*)</{field}>"), 0)
    texts = pc.replace_substring(texts, "&quot;", '"')  # every etag has two
    return _each(texts, "&", lambda text: ET.fromstring(f"<x>{text}</x>").text)  # noqa: S314


def _each(texts: pa.Array, pattern: str, changed: Callable[[str], str | None]) -> pa.Array:
    """Texts of which those that have the pattern, which are few, are changed one by one."""
    concerned = pc.fill_null(pc.match_substring_regex(texts, pattern), False)
    if not pc.any(concerned).as_py():
        return texts
    few = pa.array([changed(text) for text in texts.filter(concerned).to_pylist()], pa.string())
    return pc.replace_with_mask(texts, concerned, few)
