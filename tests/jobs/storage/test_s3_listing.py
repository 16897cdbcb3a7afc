import threading
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.storage.contract import OBJECTS
from maskfleet.jobs.storage.list_objects_xml import Page
from maskfleet.jobs.storage.s3_listing import ranged_pages
from maskfleet.jobs.storage.schemes import open_storage


def bucket(keys, page=3, running=None):
    """Return a stub of ListObjectsV2."""
    keys = sorted(keys)

    def pages(arguments):
        prefix, after, delimiter = arguments["Prefix"], arguments.get("StartAfter", ""), arguments.get("Delimiter")
        items = {}
        for key in keys:
            if key.startswith(prefix) and key > after:
                rest = key[len(prefix) :]
                name = prefix + rest.split("/")[0] + "/" if delimiter and "/" in rest else key
                items[name] = name != key
        found = list(items.items())
        for start in range(0, max(1, len(found)), page):
            if running is not None:
                running.append(threading.current_thread().name)
                time.sleep(0.005)
            chosen = found[start : start + page]
            objects = [{"path": name, "size": 1, "etag": "e", "modified": 0.0} for name, folder in chosen if not folder]
            more = "more" if start + page < len(found) else None
            yield Page(pa.Table.from_pylist(objects, OBJECTS), [name for name, folder in chosen if folder], more)

    return pages


@settings(max_examples=300, deadline=None)
@given(st.sets(st.text("ab/.-", min_size=1, max_size=7), max_size=40), st.sampled_from(["", "a/"]))
def test_concurrent_ranges_give_the_same_listing(keys, folder):
    keys = {key for key in keys if not key.endswith("/")}
    found = [key for page in ranged_pages(bucket(keys), folder) for key in page.objects["path"].to_pylist()]
    assert found == sorted(key for key in keys if key.startswith(folder))


def test_folders_are_listed_concurrently():
    names = []
    keys = [f"in/{folder}/{number:03}" for folder in "abcd" for number in range(50)]
    keys += [f"in/0/{number:03}" for number in range(300)]  # the first pages are not delayed by other ranges
    found = ranged_pages(bucket(keys, 10, names), "in/")
    next(found)
    assert len({name for name in names if name.startswith("list")}) == 1
    list(found)
    assert len({name for name in names if name.startswith("list")}) > 2


def test_later_ranges_finish_while_the_reader_is_at_the_first():
    names = []
    keys = [f"in/{folder}/{number:03}" for folder in "abcd" for number in range(90)]
    found = ranged_pages(bucket(keys, 3, names), "in/")
    for _ in range(20):  # until all ranges have started
        next(found)
    deadline = time.monotonic() + 60
    while len(names) < 4 * 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(names) >= 4 * 30
    assert sum(page.objects.num_rows for page in found) == len(keys) - 60


def test_an_error_in_a_range_reaches_the_reader():
    def pages(arguments):
        if "StartAfter" in arguments:
            raise OSError("gone")
        yield from bucket([f"{folder}/x" for folder in "abc"])(arguments)

    with pytest.raises(OSError, match="gone"):
        list(ranged_pages(pages, ""))


@pytest.mark.s3
def test_a_bucket_is_walked_in_key_order_across_folders(bucket):
    storage = open_storage(f"{bucket}/in")
    keys = [f"{folder}/{number}.png" for folder in ("a", "a-b", "a.b", "b/c") for number in range(3)] + ["a.png", "z"]
    for key in keys:
        storage.write(key, b"x")
    entries = list(storage.walk())
    assert [entry.path for entry in entries] == sorted(keys)
    assert all(entry.modified > 1_700_000_000 for entry in entries)
