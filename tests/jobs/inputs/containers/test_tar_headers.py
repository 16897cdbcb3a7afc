"""Archives of the standard library's writer, and damaged ones."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.inputs.containers.tar_headers import TarMember, members


def written(members, kind=tarfile.PAX_FORMAT):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return sink.getvalue()


def found(data, wanted=lambda name: True):
    return list(members(lambda start, length: data[start : start + length], len(data), wanted))


NAMES = st.text("abcé/.-", min_size=1, max_size=300).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8, unique_by=lambda member: member[0]),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_every_member_is_found_at_its_offset(members, kind):
    data = written(members, kind)
    index = found(data)
    assert [(member.name, data[member.offset : member.offset + member.size]) for member in index] == members
    assert all(member.fault is None for member in index)


def test_ustar_prefixes_are_joined_and_dots_dropped():
    name = "a" * 90 + "/" + "b" * 90
    assert [member.name for member in found(written([(name, b"x")], tarfile.USTAR_FORMAT))] == [name]
    assert [member.name for member in found(written([("./x/a.jpg", b"x")]))] == ["x/a.jpg"]


def test_sizes_beyond_eight_gigabytes_are_read():
    header = tarfile.TarInfo("large.npy")
    header.size = 9 * 2**30
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        block = header.tobuf(kind)
        size = len(block) + header.size + 1024

        def read(start, length, block=block, size=size):
            return (block[start:] + bytes(length))[: min(length, size - start)]

        (member,) = members(read, size, lambda name: True)
        assert (member.name, member.offset, member.size) == ("large.npy", len(block), header.size)


@given(st.integers(0, 3), st.integers(0, 511), st.integers(1, 255))
def test_members_before_a_damaged_header_are_kept(number, place, flip):
    data = bytearray(written([(f"{index}.jpg", bytes([index]) * 700) for index in range(4)], tarfile.USTAR_FORMAT))
    offset = number * (512 + 1024)
    data[offset + place] ^= flip
    index = found(bytes(data))
    assert [member.name for member in index[:number]] == [f"{index}.jpg" for index in range(number)]
    assert index[number:] == [TarMember("", offset, 0, "damaged_tar")]


@pytest.mark.parametrize("cut", [100, 600, 512 + 1024 + 512 + 300])
def test_a_truncated_archive_is_damaged(cut):
    index = found(written([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)])[:cut])
    assert index[-1].fault == "damaged_tar"
    assert len(index) == 1 + (cut > 1536)


def test_an_archive_without_an_end_mark_is_complete():
    data = written([("a.jpg", b"x" * 512)])
    assert [member.name for member in found(data[:1024])] == ["a.jpg"]
    assert found(b"") == []


def test_unusable_names_and_types_have_a_fault():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("../../x.jpg", "/etc/y.jpg", "a/../b.jpg", "a.jpg", "a.jpg"):
            archive.addfile(tarfile.TarInfo(name))
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.jpg"
            archive.addfile(link)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert [(member.name, member.fault) for member in found(sink.getvalue())] == [
        ("../../x.jpg", "unsafe_name"),
        ("/etc/y.jpg", "unsafe_name"),
        ("a/../b.jpg", "unsafe_name"),
        ("a.jpg", None),
        ("a.jpg", "duplicate_name"),
        ("s.jpg", "link"),
        ("h.jpg", "link"),
    ]


def test_small_members_share_reads_and_large_ones_are_skipped():
    def reads(size, count):
        data = written([(f"{number:05}.jpg", bytes(size)) for number in range(count)])
        asked = []
        list(members(lambda start, n: asked.append(n) or data[start : start + n], len(data), lambda _: True))
        return len(asked), sum(asked)

    assert reads(2000, 1000)[0] <= 3
    count, total = reads(3 * 2**20, 8)
    assert count <= 10
    assert total < 2**20
