"""Names of pages: keys that sort, and URLs that no file's own name is taken for."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.inputs.containers.formats import files_of, is_part, part_of_file, whole
from maskfleet.jobs.inputs.pages.names import Page, counts_of, file_of_key, key_of, page_of, stacks_among, url_of

FILES = ["/in/a.tif", "s3://b/a.TIFF", "/in/x.gif", "/in/x.tar#offset=512&size=90", "/in/x.parquet#row=3&column=image"]


@pytest.mark.parametrize("file", FILES)
def test_a_page_and_its_file_are_found_in_its_url(file):
    assert page_of(file) == Page(file, 0)
    for of in (None, 12):
        assert page_of(url_of(file, 3, of)) == Page(file, 3)
        assert is_part(url_of(file, 3, of))


def test_keys_of_pages_sort():
    for count in (9, 12_345):
        keys = [key_of("a.tif", number, count) for number in range(1, count + 1)]
        assert keys == sorted(keys)
        assert {file_of_key(key) for key in keys} == {"a.tif"}
    assert key_of("a.tif", 3, 12) == "a.tif/page=0003"


@pytest.mark.parametrize("name", ["/in/a.tif#page=3", "/in/a.tif#page=3&of=9", "/in/x.tar#offset=0&size=9&page=1"])
def test_the_name_of_a_file_is_not_taken_for_a_page(name):
    assert page_of(whole(name)) == Page(whole(name), 0)
    assert part_of_file(name).endswith("#fault=part_of_file")


@given(st.sampled_from(["", "a", "#", "&page=1", "#page=2", "%"]), st.sampled_from([".tif", ".png", ".tar", ".gif"]))
def test_whatever_a_file_is_called_its_pages_lead_back_to_it(name, ending):
    file = whole(f"/in/b{name}{ending}")
    assert page_of(file) == Page(file, 0)
    if ending in (".tif", ".gif"):
        assert page_of(url_of(file, 7, 9)) == Page(file, 7)


def test_columns_of_urls():
    urls = pa.chunked_array([[FILES[0], url_of(FILES[0], 1), url_of(FILES[0], 1, 3), url_of(FILES[3], 2, 40)]])
    assert counts_of(urls).to_pylist() == [None, 0, 3, 40]
    assert files_of(urls).to_pylist()[3] == "/in/x.tar"
    assert stacks_among([url_of(FILES[0], 1, 3), url_of(FILES[0], 2, 3), url_of(FILES[3], 1, 9)]) == {FILES[0]: 2}
