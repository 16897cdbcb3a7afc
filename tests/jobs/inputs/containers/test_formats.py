"""URLs of members, against the forms of every container."""

import pyarrow as pa
import pytest

from maskfleet.jobs.inputs.containers.contract import MemberUrl
from maskfleet.jobs.inputs.containers.formats import faults, files_of, final_faults, is_member, member_url
from maskfleet.jobs.storage.contract import Fault


@pytest.mark.parametrize(
    "url",
    [
        "/in/a#b.jpg",
        "s3://b/x.tar",
        "/in/x.tar.png#offset=1&size=2",
        "/in/x.tar#",
        "x.tar#a.jpg",
        "x.tar#offset=1",
        "x.tar#offset=-1&size=2",
        "x.parquet#row=1",
        "x.parquet#offset=1&size=2",
        "x.tar#row=1&column=image",
    ],
)
def test_a_file_name_with_a_hash_is_not_a_member(url):
    assert member_url(url) is None
    assert not is_member(url)


@pytest.mark.parametrize(
    ("url", "file", "place"),
    [
        ("s3://b/a#1/x.tar#offset=512&size=9", "s3://b/a#1/x.tar", {"offset": "512", "size": "9"}),
        ("/in/x.Parquet#row=7&column=my%20image.bytes", "/in/x.Parquet", {"row": "7", "column": "my image.bytes"}),
    ],
)
def test_a_url_is_parsed_and_written_back(url, file, place):
    member = member_url(url)
    assert member == MemberUrl(file, place)
    assert member.url == url


def test_a_column_of_any_name_survives_in_a_url():
    for column in ("a&b=c#d", "ä ö", "%41", "x.bytes"):
        member = MemberUrl("/x.parquet", {"row": "1", "column": column})
        assert member_url(member.url) == member


def test_a_member_with_a_fault_raises_it():
    for fault in faults():
        with pytest.raises(Fault, match="x.tar, byte 512: ") as error:
            member_url(MemberUrl("/in/x.tar", {"fault": fault, "offset": "512"}).url)
        assert error.value.error_class == fault


def test_faults_are_final_unless_the_file_may_come_back():
    assert set(faults()) - set(final_faults()) == {"missing", "changed", "denied", "refused", "storage", "slow_parquet"}


def test_the_files_of_members_are_found_at_once():
    urls = ["/a#row=1.parquet#row=2&column=x.bytes", "s3://b/x.tar#offset=1&size=2", "/a#b.jpg"]
    assert files_of(pa.chunked_array([urls])).to_pylist() == ["/a#row=1.parquet", "s3://b/x.tar", "/a#b.jpg"]
