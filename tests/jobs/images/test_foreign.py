import io

import numpy as np
import pytest
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.foreign import HEAD, KINDS, looks_like

HEADS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a git-annex pointer": b"/annex/objects/SHA256E-s31390--f50d7ac4.png\n",
    "a data URL": b"data:image/png;base64,iVBORw0KGgo",
    "a HEIC photo": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "an MP4 or QuickTime video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "a DICOM file": bytes(128) + b"DICM" + bytes(20),
    "a NIfTI volume": b"\x5c\x01\0\0" + bytes(340) + b"n+1\0",
    "a gzip file": b"\x1f\x8b\x08\0" + bytes(20),
    "a .npz or ZIP archive": b"PK\x03\x04" + bytes(20),
    "a Python pickle": b"\x80\x04\x95" + bytes(20),
    "a PDF document": b"%PDF-1.7\n",
    "zeros only": bytes(HEAD),
    "an HTML page": b"\xef\xbb\xbf<!DOCTYPE html><html>",
    "a JSON text": b'{"error": "not found"}',
    "a text": b"Access denied\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_file_of_another_kind_is_named(name):
    with pytest.raises(Undecodable, match=rf"not a JPEG, .* but {name}") as error:
        decode(HEADS[name], channels=3)
    assert error.value.error_class == "unidentified"


def test_other_bytes_are_shown():
    assert looks_like(b"\x01\x02\x03\x04" + bytes(10)) == "bytes that begin with 01 02 03 04 00 00 00 00"


def test_every_kind_has_a_name_and_a_remedy():
    assert all(kind.name and kind.remedy for kind in KINDS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_after_its_signature_says_so(format_):
    sink = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(sink, format_)
    with pytest.raises(Undecodable) as error:
        decode(sink.getvalue()[:17], channels=3)
    assert error.value.error_class == "corrupt"
