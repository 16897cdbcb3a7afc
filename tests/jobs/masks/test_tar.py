import io
import tarfile
import tempfile

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskfleet.jobs.masks.names import mask_names
from maskfleet.jobs.masks.tar import FORMAT, tar, untar

MEMBERS = st.dictionaries(
    st.text("abc/é.", min_size=1, max_size=200).filter(lambda name: name.strip("/") == name),
    st.binary(max_size=600),
    max_size=5,
)


@given(MEMBERS)
def test_a_tar_gives_its_members_back(members):
    data = tar(members.items())
    assert dict(untar(data)) == members
    assert tar(members.items()) == data


@given(MEMBERS)
@example({"a" * 99: b"1", "b" * 100: b"2", "c" * 101: b""})
def test_a_tar_is_what_tarfile_writes(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    end = len(tar(members.items()))
    assert tar(members.items()) == sink.getvalue()[:end]
    assert not any(sink.getvalue()[end:])


def test_only_regular_files_come_out():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(untar(sink.getvalue())) == []


STEMS = st.text("ab.%2E/é", min_size=1, max_size=20).filter(lambda name: all(name.split("/")))


@settings(deadline=None)
@given(st.sets(st.builds(str.__add__, STEMS, st.sampled_from([".jpg", "/.", "/..", ""])), min_size=1, max_size=6))
@example({"a/.", "a/...jpg", "a/..", "a/....jpg", "%2E", "..jpg"})
def test_names_come_back_from_a_packed_tar(keys):
    names = mask_names(pa.chunked_array([pa.array(sorted(keys))])).to_pylist()
    files = {name: name.encode() for name in names}
    archive = FORMAT.pack(None, files)
    assert dict(FORMAT.unpack(archive)) == files


def test_archives_of_earlier_versions_are_read():
    files = {"a/plate1.well01.png": b"1", "a%2Epng/b.c.png": b"2"}
    assert dict(FORMAT.unpack(tar(files.items()))) == files


@settings(deadline=None, max_examples=20)
@given(st.sets(STEMS, min_size=1, max_size=6))
def test_webdataset_gives_one_sample_for_each_mask(stems):
    webdataset = pytest.importorskip("webdataset")
    keys = [f"{stem}.jpg" for stem in sorted(stems) if stem.rpartition("/")[2].strip(".")]
    names = mask_names(pa.chunked_array([pa.array(keys, pa.string())])).to_pylist()
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(FORMAT.pack(None, {name: name.encode() for name in names}))
        file.flush()
        samples = list(webdataset.WebDataset(file.name, shardshuffle=False, empty_check=False))
    assert [sample["png"].decode() for sample in samples] == names
    assert len({sample["__key__"] for sample in samples}) == len(names)
