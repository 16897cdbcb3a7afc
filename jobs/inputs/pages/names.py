"""Names of pages: the key `x.tif/page=0003` and the URL `x.tif#page=3&of=12`. Reads no file.

A page is counted from 1. The number in a key has as many digits as that of the last page, and at least four, so that
keys sort. A job that reads the first page alone has the key of the file, and the URL `x.tif#page=1`. The page of an
image in a container comes behind its place: `x.tar#offset=512&size=9000&page=3&of=12`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.images.contract import PageBytes
from maskfleet.jobs.inputs.containers.formats import file_of_page, is_member, whole

IN_KEY = r"/page=\d{4,}$"
"""Form of a page at the end of a key."""

_DIGITS = 4
_NUMBER = re.compile(r"[#&]page=(\d+)(?:&of=\d+)?$")
_OF = r"[#&]page=\d+&of=(?P<of>\d+)$"


class Page(NamedTuple):
    """A page of a file.

    Attributes:
        file: URL of the file, or of the image inside a container.
        number: Number of the page, counted from 1; 0 for the only image of its file.
    """

    file: str
    number: int


def page_of(url: str) -> Page:
    """Return which page of which file a URL names."""
    if "page=" not in url:  # asked for with every image
        return Page(url, 0)
    file, number = file_of_page(url), _NUMBER.search(url)
    if file is None or number is None:
        return Page(url, 0)
    return Page(file if is_member(file) else whole(file), int(number[1]))


def file_of_key(key: str) -> str:
    """Return the key of a page's file."""
    return re.sub(IN_KEY, "", key)


def key_of(file: str, page: int, of: int) -> str:
    """Return the key of a page.

    Args:
        file: Key of the file.
        page: Number of the page.
        of: Number of pages.
    """
    return f"{file}/page={page:0{max(_DIGITS, len(str(of)))}}"


def url_of(file: str, page: int, of: int | None = None) -> str:
    """Return the URL of a page.

    Args:
        file: URL of the file, or of an image inside a container.
        page: Number of the page.
        of: Number of pages; None if unknown.
    """
    mark = "&" if is_member(file) else "#"
    return f"{file.removesuffix('#')}{mark}page={page}{'' if of is None else f'&of={of}'}"


def encoded(url: str, data: bytes) -> bytes | PageBytes:
    """Return the bytes of the file of an image as decoding needs them.

    Args:
        url: URL of the image.
        data: Bytes of its file.
    """
    page = page_of(url).number
    return PageBytes(data, page) if page else data


def stacks_among(urls: Iterable[str]) -> dict[str, int]:
    """Return the files of which several pages are among some URLs, each with the number of these pages."""
    counts = Counter(page.file for page in map(page_of, urls) if page.number)
    return {file: count for file, count in counts.items() if count > 1}


def counts_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the number of pages stated in each URL: 0 for a first page of unknown many, null for no page."""
    if not pc.any(pc.match_substring(urls, "page=")).as_py():
        return pa.chunked_array([pa.nulls(len(urls), pa.int32())])
    stated = pc.struct_field(pc.extract_regex(urls, _OF), "of").cast(pa.int32())
    first = pc.match_substring_regex(urls, r"[#&]page=1$")
    return pc.if_else(first, pa.scalar(0, pa.int32()), stated)
