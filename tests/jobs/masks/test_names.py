import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.jobs.masks.names import mask_names, settled


def column(keys):
    return pa.chunked_array([pa.array(keys, pa.string())])


def names(keys):
    return mask_names(column(keys)).to_pylist()


def test_a_mask_is_named_by_its_key():
    assert names(["a.jpg", "b/c.d.tif", "e", "f.PNG"]) == ["a.png", "b/c.d.png", "e.png", "f.png"]


def test_images_that_differ_only_in_their_ending_keep_it():
    assert names(["a.jpg", "a.png", "b.jpg"]) == ["a.jpg.png", "a.png.png", "b.png"]
    # An image whose short name is one of these keeps its ending too.
    assert names(["a.jpg", "a.png", "a.jpg.bmp"]) == ["a.jpg.png", "a.png.png", "a.jpg.bmp.png"]


def test_names_never_leave_their_folder():
    assert names(["../a.jpg", "b/./c.jpg", "/d.jpg", "e//f.jpg", "g\n.jpg", "h\\i.jpg"]) == [
        *("%2E%2E/a.png", "b/%2E/c.png", "%/d.png", "e/%/f.png", "g%0A.png", "h%5Ci.png")
    ]


KEYS = st.lists(
    st.text(alphabet="ab./%", min_size=1, max_size=6).flatmap(
        lambda stem: st.sampled_from([stem, stem + ".jpg", stem + ".png"])
    ),
    unique=True,
    min_size=1,
    max_size=12,
)


@settings(max_examples=400, deadline=None)
@given(KEYS)
def test_names_are_distinct_and_safe_in_any_order(keys):
    found = names(keys)
    assert len(set(found)) == len(keys)
    assert all(name.endswith(".png") for name in found)
    assert all(part not in ("", ".", "..") for name in found for part in name.split("/"))
    assert dict(zip(keys, found, strict=True)) == dict(zip(reversed(keys), names(keys[::-1]), strict=True))


def test_a_percent_sign_that_looks_like_a_code_is_encoded():
    assert names(["100%.jpg", "a%2E.jpg", "%/b.jpg", "/b.jpg"]) == ["100%.png", "a%252E.png", "%25/b.png", "%/b.png"]


NEIGHBOURS = st.lists(
    st.text(alphabet="ab.-/", min_size=1, max_size=5).flatmap(
        lambda stem: st.sampled_from([stem, f"{stem}.jpg", f"{stem}.png", f"{stem}.jpg.png"])
    ),
    unique=True,
    min_size=1,
    max_size=30,
)


@settings(max_examples=600, deadline=None)
@given(NEIGHBOURS, st.sampled_from([2, 64]))
def test_a_listing_named_in_pieces_has_the_names_of_the_whole(keys, tried):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskfleet.jobs.masks.names._TRIED", tried)
        _check_pieces(sorted(keys))


def _check_pieces(keys):
    whole, found, rest = names(keys), [], keys
    held = []
    while rest:  # as a listing yields them, three at a time
        held, rest = held + rest[:3], rest[3:]
        if cut := settled(column(held)):
            found += names(held[:cut])
            held = held[cut:]
    assert found + (names(held) if held else []) == whole


def test_a_listing_of_numbered_files_and_folders_can_be_cut():
    assert settled(column([f"frame.{number:06}.png" for number in range(1000)])) == 999
    assert settled(column([f"{number:04}/image.png" for number in range(1000)])) == 999
    assert settled(column(["a.jpg", "a.png"])) == 0
