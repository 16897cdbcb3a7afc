"""Archives of the standard library's writer, and damaged ones."""

import io
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskfleet.jobs.inputs.containers import tar_members, tars
from maskfleet.jobs.inputs.containers.tar_headers import TarMember
from maskfleet.jobs.inputs.containers.tar_members import members


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


CHECKSUM = range(148, 156)


@example(number=0, place=155, flip=1)  # behind the digits
@example(number=1, place=148, flip=0x10)  # a leading zero becomes a space
@given(number=st.integers(0, 3), place=st.integers(0, 511), flip=st.integers(1, 255))
def test_members_around_a_damaged_header_are_kept(number, place, flip):
    data = bytearray(written([(f"{index}.jpg", bytes([index]) * 700) for index in range(4)], tarfile.USTAR_FORMAT))
    offset = number * (512 + 1024)
    data[offset + place] ^= flip
    index = found(bytes(data))
    names = [f"{index}.jpg" for index in range(4)]
    if place in CHECKSUM and index[number].fault is None:  # the same number, so that nothing it protects has changed
        assert [(member.name, member.fault) for member in index] == [(name, None) for name in names]
        return
    assert [member.name for member in index] == [*names[:number], "", *names[number + 1 :]]
    assert index[number] == TarMember("", offset, 0, "damaged_tar")


@pytest.mark.parametrize("cut", [100, 600, 512 + 1024 + 512 + 300])
def test_a_truncated_archive_is_damaged(cut):
    index = found(written([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)])[:cut])
    assert index[-1].fault == "damaged_tar"
    assert len(index) == 1 + (cut > 1536)


def test_an_archive_without_an_end_mark_is_complete():
    data = written([("a.jpg", b"x" * 512)])
    assert [member.name for member in found(data[:1024])] == ["a.jpg"]
    assert found(data[:1300]) == found(data[:1024])  # cut off within the end mark


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


def files(*names, size=700):
    return written([(name, name.encode() * (size // len(name))) for name in names], tarfile.USTAR_FORMAT)


def names(data):
    return [member.fault or member.name for member in found(data)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=4),
            st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
            st.sampled_from([512, 1024, 2048, None]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_concatenated_archives_of_any_format_are_listed_completely(archives):
    expected, parts = [], []
    for number, (files, kind, end) in enumerate(archives):
        named = [(f"{number}-{place}/{name}", data) for place, (name, data) in enumerate(files)]
        expected += named
        whole = written(named, kind)
        parts.append(whole if end is None else whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 1536 + end])
    data = b"".join(parts)
    index = found(data)
    assert [(member.name, data[member.offset : member.offset + member.size]) for member in index] == expected
    assert all(member.fault is None for member in index)


@pytest.mark.parametrize("blocks", [0, 1, 2, 20, 2047])
def test_an_end_mark_before_further_members_is_not_the_end(blocks):
    first, second = files("a.jpg", "b.jpg"), files("c.jpg")
    assert names(first[: 2 * 1536] + bytes(512 * blocks) + second) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_hole_is_a_row_and_the_members_behind_it_are_found():
    data = bytearray(files(*(f"{number}.jpg" for number in range(8))))
    data[2 * 1536 + 100 : 4 * 1536 + 700] = bytes(2 * 1536 + 600)  # from header 2 into the data of member 4
    assert names(bytes(data)) == ["0.jpg", "1.jpg", "damaged_tar", "5.jpg", "6.jpg", "7.jpg"]
    data = bytearray(files(*(f"{number}.jpg" for number in range(8))))
    data[2 * 1536 : 4 * 1536 + 700] = bytes(2 * 1536 + 700)
    assert names(bytes(data)) == ["0.jpg", "1.jpg", "damaged_tar", "5.jpg", "6.jpg", "7.jpg"]
    assert found(bytes(data))[2].offset == 2 * 1536


def test_a_hole_longer_than_any_end_mark_is_a_row_even_if_a_header_follows():
    first, second = files("a.jpg"), files("b.jpg")
    assert names(first[:1536] + bytes(2**20 + 512) + second) == ["a.jpg", "damaged_tar", "b.jpg"]
    assert names(first[:1536] + bytes(3 * 2**20)) == ["a.jpg"]


def test_an_archive_of_nothing_is_a_row_unless_it_was_written_empty():
    assert found(b"") == [TarMember("", 0, 0, "damaged_tar")]
    assert found(bytes(3 * 2**20)) == [TarMember("", 0, 0, "damaged_tar")]
    assert found(written([])) == []


def test_text_behind_the_end_mark_is_a_row():
    assert names(files("a.jpg") + b"text") == ["a.jpg", "damaged_tar"]


def test_a_search_for_headers_is_bounded(monkeypatch):
    hole = bytes(9 * 2**20)
    data = files("a.jpg")[:1536] + hole + files("b.jpg")
    assert names(data) == ["a.jpg", "damaged_tar", "b.jpg"]
    monkeypatch.setattr(tar_members, "_MOST_SEARCHED", 2**20)
    assert names(data) == ["a.jpg", "damaged_tar"]
    assert names(data[: -len(files("b.jpg"))]) == ["a.jpg", "damaged_tar"]


def test_the_number_of_members_and_their_names_are_bounded(monkeypatch):
    data = files("a.jpg", "b.jpg", "c.jpg")
    monkeypatch.setattr(tar_members, "_MOST_ENTRIES", 2)
    assert names(data) == ["a.jpg", "b.jpg", "too_many_members"]
    monkeypatch.setattr(tar_members, "_MOST_ENTRIES", 9)
    monkeypatch.setattr(tar_members, "_MOST_CHARACTERS", 9)
    assert names(data) == ["a.jpg", "b.jpg", "too_many_members"]


def test_a_long_name_is_shortened():
    first, second = found(written([("a" * 5000 + ".jpg", b"x"), ("a" * 6000 + ".jpg", b"x")]))
    assert (first.fault, second.fault) == ("long_name", "long_name")
    assert len(first.name) < 200
    assert first.name.endswith("a.jpg")


def with_checksum(block):
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sized(field):
    """Write three files, the second with another size in its header."""
    data = bytearray(files("a.jpg", "b.jpg", "c.jpg"))
    header = data[1536 : 1536 + 512]
    header[124:136] = field.ljust(12, b"\0")
    data[1536 : 1536 + 512] = with_checksum(header)
    return bytes(data)


@pytest.mark.parametrize("field", [b"-0000001000", b"+0000001000", b"0_0001000", b"-1", b"\xff" * 12, b"1e3", b"0x10"])
def test_a_size_that_is_no_number_is_damage_and_never_a_loop(field):
    assert names(sized(field)) == ["a.jpg", "damaged_tar", "c.jpg"]


@pytest.mark.parametrize("field", [b"77777777777", b"\x80" + b"\xff" * 11, b"\x80" + bytes(6) + b"\x7f" * 5])
def test_a_size_beyond_the_end_is_damage(field):
    assert names(sized(field)) == ["a.jpg", "damaged_tar"]


@pytest.mark.parametrize("value", [b"-5", b"+700", b"1_0", b"", b"9" * 5000, b" "])
def test_a_pax_size_that_is_no_number_is_damage_and_never_a_loop(value):
    length = len(b" size=\n") + len(value)
    length += len(str(length + len(str(length))))
    record = b"%d size=%s\n" % (length, value)
    extra = tarfile.TarInfo("pax")
    extra.size, extra.type = len(record), tarfile.XHDTYPE
    padded = record + bytes(-len(record) % 512)
    data = files("a.jpg")[:1536] + extra.tobuf(tarfile.USTAR_FORMAT) + padded + files("b.jpg", "c.jpg")
    if value.strip():
        # The header behind the pax header is found again, with its own size.
        assert names(data) == ["a.jpg", "damaged_tar", "b.jpg", "c.jpg"]
    else:
        assert names(data)[0] == "a.jpg"


def test_members_behind_a_sparse_file_with_a_long_map_are_found():
    whole = bytearray(files("s.jpg", "b.jpg"))
    header = whole[:512]
    header[156:157], header[482] = b"S", 1
    more, last = bytes(504) + b"\1" + bytes(7), bytes(512)
    data = with_checksum(header) + more + last + bytes(whole[512:])
    assert names(data) == ["sparse", "b.jpg"]
    assert found(data)[0].offset == 3 * 512
    assert names(data[:700]) == ["damaged_tar"]


def test_a_name_used_twice_is_a_row_of_its_own_whatever_else_is_wrong():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
        for name in ("a.jpg", "b.jpg", "b.jpg", "b.jpg"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "c.jpg"
            archive.addfile(link)
        archive.addfile(tarfile.TarInfo("b.jpg"))
    index = found(sink.getvalue())
    assert [member.fault for member in index] == [
        None,
        "duplicate_name",
        "link",
        "duplicate_name",
        "duplicate_name",
        "duplicate_name",
    ]
    assert len({tars.Tars().member(member).name for member in index}) == 6


def test_the_data_of_unknown_types_is_skipped():
    data = bytearray(files("v", "a.jpg"))
    header = data[:512]
    header[156:157] = b"V"
    data[:512] = with_checksum(header)
    assert names(bytes(data)) == ["a.jpg"]


def test_small_members_share_reads_and_large_ones_are_skipped():
    def reads(size, count):
        data = written([(f"{number:05}.jpg", bytes(size)) for number in range(count)])
        asked = []

        def read(start, length):
            asked.append(len(data[start : start + length]))
            return data[start : start + length]

        list(members(read, len(data), lambda _: True))
        return len(asked), sum(asked)

    assert reads(2000, 1000)[0] <= 3
    count, total = reads(3 * 2**20, 8)
    assert count <= 10
    assert total < 2**20
