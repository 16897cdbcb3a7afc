import io
import tarfile

from hypothesis import example, given
from hypothesis import strategies as st

from maskfleet.jobs.masks.tar import tar, untar

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
