"""URLs of images within files: `x.tar#offset=512&size=9000`, `x.parquet#row=17&column=image.bytes`.

What comes behind the `#` says where in the file the image is, so that a record is read without asking the
file's index again. An image that the index found to be unusable has a `fault` there: reading it says so.
Only URLs of .tar and .parquet files have parts; in any other URL `#` is a character of the name.
"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from maskfleet.jobs.storage.contract import Fault

_FORM = re.compile(
    r"(?P<file>.+\.(?:(?i:tar)|(?i:parquet)))#"
    r"(?P<place>offset=\d+&size=\d+|row=\d+&column=[^&#]+|fault=[a-z_]+(?:&offset=\d+)?)",
    re.DOTALL,
)

FAULTS = {
    "damaged_tar": "no valid header here, or the tar ends too early; members before it are done, write it again",
    "unsafe_name": "the member's name leads out of its folder, as an attack would; rename it",
    "duplicate_name": "an earlier member of the tar has this name, and which one is meant cannot be known; rename it",
    "link": "the member is a link to another file; write the tar with --dereference --hard-dereference",
    "sparse": "the member is stored sparse; write the tar without --sparse",
    "no_column": "the Parquet file has no column of images, or several; name one with 'column', or leave the file out",
    "damaged_parquet": "the Parquet file does not open; write it again",
    "bad_name": "the file's name is not UTF-8; rename it",
    "missing": "the file is gone; it was deleted while it was listed, or the list is out of date",
    "changed": "the file changed while it was listed; run again to plan it as it is now",
}
"""What an index can find, and what to do; error classes of `jobs.ledger.statistics`."""


class Part(NamedTuple):
    """A part of a file.

    Attributes:
        file: The file's URL.
        place: Where in it, by name.
    """

    file: str
    place: dict[str, str]

    @property
    def url(self) -> str:
        """As text."""
        return f"{self.file}#" + "&".join(f"{name}={quote(value, safe='.@')}" for name, value in self.place.items())


def is_part(url: str) -> bool:
    """Whether a URL names a part of a file."""
    return _FORM.fullmatch(url) is not None


def part_of(url: str) -> Part | None:
    """The part that a URL names; None if it is a file's URL.

    Raises:
        Fault: The part is known to be unusable.
    """
    found = _FORM.fullmatch(url)
    if found is None:
        return None
    place = dict(parse_qsl(found["place"], keep_blank_values=True))
    if fault := place.get("fault"):
        where = f", byte {place['offset']}" if "offset" in place else ""
        raise Fault(fault, f"{found['file']}{where}: {FAULTS.get(fault, fault)}")
    return Part(found["file"], place)
