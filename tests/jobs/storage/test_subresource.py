import pytest

from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.subresource import FAULTS, Part, part_of


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
    ],
)
def test_names_of_files_are_no_parts(url):
    assert part_of(url) is None


@pytest.mark.parametrize(
    ("url", "file", "place"),
    [
        ("s3://b/a#1/x.tar#offset=512&size=9", "s3://b/a#1/x.tar", {"offset": "512", "size": "9"}),
        ("/in/x.Parquet#row=7&column=my%20image.bytes", "/in/x.Parquet", {"row": "7", "column": "my image.bytes"}),
    ],
)
def test_urls_and_parts_are_the_same(url, file, place):
    part = part_of(url)
    assert part == Part(file, place)
    assert part.url == url


def test_columns_of_any_name_come_back():
    for column in ("a&b=c#d", "ä ö", "%41", "x.bytes"):
        part = Part("/x.parquet", {"row": "1", "column": column})
        assert part_of(part.url) == part


def test_a_part_with_a_fault_says_so():
    for fault in FAULTS:
        with pytest.raises(Fault, match="x.tar, byte 512: ") as error:
            part_of(Part("/in/x.tar", {"fault": fault, "offset": "512"}).url)
        assert error.value.error_class == fault
