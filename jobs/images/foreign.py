"""Names of files that are no image of a supported format, by their first bytes: "a HEIC photo" says more than bytes.

Adding one is one line of `KINDS`.
"""

import re
from typing import NamedTuple

HEAD = 512
"""Bytes needed to name a file."""


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: Name for people, with its article.
        signature: Regular expression for the first bytes.
        remedy: What to do about such a file.
    """

    name: str
    signature: bytes
    remedy: str = "convert it to PNG or TIFF"


_FETCH = "fetch the file itself"
_UNPACK = "unpack it"
_REPLACE = "upload the image again"
_BOX = rb".{4}ftyp(?:....)*?"
"""Beginning of an ISO base media file (ISO/IEC 14496-12), up to one of its brands."""

KINDS: tuple[Kind, ...] = (
    Kind("a Git LFS pointer", rb"version https://git-lfs", "run git lfs pull"),
    Kind("a git-annex pointer", rb"(?:\.\./)*(?:\.git|/)?/?annex/objects/", "run git annex get"),
    Kind("a data URL", rb"\s*data:[\w.+-]+/[\w.+-]+[;,]", "decode its base64 text to a file"),
    Kind("a HEIC photo", _BOX + rb"(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
    Kind("a Canon raw photo", _BOX + rb"crx ", "develop it to TIFF"),
    Kind("an MP4 or QuickTime video", rb".{4}(?:ftyp|moov|mdat)", "extract its frames"),
    Kind("an AVI video", rb"RIFF....AVI ", "extract its frames"),
    Kind("a Matroska or WebM video", rb"\x1a\x45\xdf\xa3", "extract its frames"),
    Kind("a JPEG XR image", rb"II\xbc"),
    Kind("a DICOM file", rb".{128}DICM", "export its pixels to TIFF or .npy"),
    Kind("a NIfTI volume", rb".{344}(?:n\+1|ni1)\0|\x5c\x01\0\0.{28}", "export its slices to TIFF or .npy"),
    Kind("an HDF5 file", rb"\x89HDF\r\n\x1a\n", "export its images to TIFF or .npy"),
    Kind("a netCDF file", rb"CDF[\x01\x02\x05]", "export its images to TIFF or .npy"),
    Kind("a FITS file", rb"SIMPLE  =", "export its images to TIFF or .npy"),
    Kind("a MATLAB file", rb"MATLAB 5\.0", "export its images to TIFF or .npy"),
    Kind("a Zeiss CZI file", rb"ZISRAWFILE", "export its images to TIFF"),
    Kind("a Nikon ND2 file", rb"\xda\xce\xbe\x0a", "export its images to TIFF"),
    Kind("a Leica LIF file", rb"\x70\0\0\0.{4}\x2a", "export its images to TIFF"),
    Kind("a Fujifilm raw photo", rb"FUJIFILMCCD-RAW", "develop it to TIFF"),
    Kind("a Photoshop file", rb"8BPS"),
    Kind("a portable anymap (PNM)", rb"P[1-7fF]\s"),
    Kind("an OpenEXR image", rb"v/1\x01"),
    Kind("a Radiance HDR image", rb"#\?RADIANCE|#\?RGBE"),
    Kind("an icon", rb"\0\0[\x01\x02]\0[^\0]\0"),
    Kind("an SVG drawing", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{0,400}?)?<svg"),
    Kind("a PDF document", rb"%PDF-", "extract its images"),
    Kind("a PostScript document", rb"%!PS|\xc5\xd0\xd3\xc6", "render it to PNG"),
    Kind("a DjVu document", rb"AT&TFORM", "render it to PNG"),
    Kind("a gzip file", rb"\x1f\x8b", _UNPACK),
    Kind("a bzip2 file", rb"BZh[1-9]1AY&SY", _UNPACK),
    Kind("an xz file", rb"\xfd7zXZ\0", _UNPACK),
    Kind("a Zstandard file", rb"\x28\xb5\x2f\xfd", _UNPACK),
    Kind("a 7z archive", rb"7z\xbc\xaf\x27\x1c", _UNPACK),
    Kind("a RAR archive", rb"Rar!\x1a\x07", _UNPACK),
    Kind("a .npz or ZIP archive", rb"PK(?:\x03\x04|\x05\x06)", _UNPACK),
    Kind("a tar archive", rb".{257}ustar", "name it with the ending .tar"),
    Kind("a Parquet file", rb"PAR1", "name it with the ending .parquet"),
    Kind("a Python pickle", rb"\x80[\x02-\x05]", "save the array with numpy.save"),
    Kind("a macOS resource fork", rb"\0\x05\x16[\0\x07]", "delete it; the image lies beside it"),
    Kind("a Windows shortcut", rb"L\0\0\0\x01\x14\x02", _FETCH),
    Kind("zeros only", rb"\0+\Z", f"the upload was not finished; {_REPLACE}"),
    Kind("an HTML page", rb"(?:\xef\xbb\xbf)?\s*(?i:<!doctype html|<html|<head)", f"an error page? {_REPLACE}"),
    Kind("a UTF-16 text", rb"\xff\xfe.\0|\xfe\xff\0.", _REPLACE),
    Kind("an XML text", rb"(?:\xef\xbb\xbf)?\s*<", f"an error page? {_REPLACE}"),
    Kind("a JSON text", rb"(?:\xef\xbb\xbf)?\s*[{\[]", f"an error message? {_REPLACE}"),
    Kind("a text", rb"[\t\n\r\x20-\x7e]{8,}\Z", _REPLACE),
)
"""Known kinds; the first that matches counts, so specific ones come first."""


def looks_like(head: bytes) -> str:
    """Name a file and the remedy.

    Args:
        head: First bytes of the file, `HEAD` of them if it has as many.
    """
    for kind in KINDS:
        if re.match(kind.signature, head, re.DOTALL):
            return f"{kind.name}; {kind.remedy}"
    return f"bytes that begin with {head[:8].hex(' ')}"
