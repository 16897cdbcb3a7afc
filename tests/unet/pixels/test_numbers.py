"""Levels of images, against NumPy, by every form of normalisation and every dtype, whole and in blocks of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet.pixels.normalization import Levels, Normalization
from maskfleet.unet.pixels.numbers import Unstated, levels_of, seen, transported, white_of


def drawn(dtype, height=23, width=17, bands=3, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (random.normal(-20, 300, (height, width, bands)) * [1, 0.001, 50]).astype(dtype)
    kind = np.iinfo(dtype)
    return random.integers(kind.min, kind.max, (height, width, bands), endpoint=True).astype(dtype)


def expected(values, declared):
    """The normalisation in NumPy's words."""
    v = values.astype(np.float64)
    if declared.range is not None:
        low, high = declared.range
    elif declared.percentile is not None:
        low, high = np.nanpercentile(v, declared.percentile, axis=(0, 1))
    elif declared.per_image == "minmax":
        low, high = np.nanmin(v, axis=(0, 1)), np.nanmax(v, axis=(0, 1))
    elif declared.per_image == "zscore":
        return (v - np.nanmean(v, axis=(0, 1))) / np.nanstd(v, axis=(0, 1))
    else:
        scaled = v / (1 if declared.scale is None else declared.scale)
        return (scaled - np.array(declared.mean or 0)) / np.array(declared.std or 1)
    return (v - low) / (high - low)


FORMS = [
    Normalization(scale=10_000.0),
    Normalization(scale=255.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
    Normalization(mean=(7.0,), std=(3.0,)),
    Normalization(per_image="zscore"),
    Normalization(per_image="minmax"),
    Normalization(percentile=(1.0, 99.0)),
    Normalization(percentile=(0.0, 37.5)),
    Normalization(range=(-1000.0, 3000.0)),
]


@pytest.mark.parametrize("declared", FORMS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
def test_levels_are_numpys(declared, dtype):
    values = drawn(dtype)
    wanted = expected(values, declared)
    for blocks in ([values], [values[:5], values[5:6], values[6:]]):
        found = seen(values, levels_of(declared, 3, lambda blocks=blocks: blocks))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(0, 99), st.integers(1, 5),
)  # fmt: skip
def test_percentiles_of_floats_are_exact_whatever_the_blocks(numbers, low, rows):
    values = np.array(numbers, np.float32)[:, None, None]
    declared = Normalization(percentile=(low, 100.0))
    blocks = [values[top : top + rows] for top in range(0, len(values), rows)]
    (offset,), _ = levels_of(declared, 1, lambda: blocks)
    np.testing.assert_allclose(offset, np.percentile(values.astype(np.float64), low), rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("declared", FORMS[3:6], ids=str)
def test_levels_do_not_depend_on_the_blocks(dtype, declared):
    values = drawn(dtype, height=97)
    whole = levels_of(declared, 3, lambda: [values])
    assert whole == levels_of(declared, 3, lambda: [values[top : top + 10] for top in range(0, 97, 10)])


@pytest.mark.parametrize("declared", FORMS, ids=str)
def test_no_data_counts_for_nothing_and_is_seen_as_zero(declared):
    values = drawn("float32")
    lacking = np.random.default_rng(1).random(values.shape) < 0.3
    values[lacking] = np.nan
    found = seen(values, levels_of(declared, 3, lambda: [values]))
    np.testing.assert_array_equal(found[lacking], 0)
    np.testing.assert_allclose(found[~lacking], expected(values, declared)[~lacking], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("declared", FORMS[3:6], ids=str)
@pytest.mark.parametrize("value", [7.0, np.nan])
def test_an_image_of_one_number_or_none_is_zeros(declared, value):
    values = np.full((4, 5, 2), value, np.float32)
    np.testing.assert_array_equal(seen(values, levels_of(declared, 2, lambda: [values])), 0)


@pytest.mark.parametrize(
    ("dtype", "travels"),
    [("bool", "uint8"), ("int8", "int16"), ("uint32", "float32"), ("int64", "float32"), ("float64", "float32"),
     (">u2", "uint16"), ("<i2", "int16"), (">f4", "float32"), ("float16", "float16"), ("uint8", "uint8")],
)  # fmt: skip
def test_numbers_travel_in_their_own_type_or_the_next(dtype, travels):
    values = np.array([[[0], [1]]], dtype)
    assert transported(values).dtype == np.dtype(travels)
    assert transported(values).dtype.isnative


def test_complex_numbers_do_not_travel():
    with pytest.raises(Unstated, match="complex64"):
        transported(np.zeros((1, 1, 1), np.complex64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.int16([[[-1024]], [[3071]]]), r"signed 16-bit integers from -1024 to 3071 .* range = \[-1024, 3071\]"),
        (np.uint32([[[0]], [[9]]]), "unsigned 32-bit integers from 0 to 9"),
        (np.float32([[[0]], [[1.5]]]), r"floats from 0 to 1.5 .* range = \[0, 1.5\]"),
        (np.float16([[[-0.5]]]), "floats from -0.5 to -0.5"),
    ],
)  # fmt: skip
def test_numbers_of_an_unknown_range_are_refused_with_the_line_to_add(values, message):
    with pytest.raises(Unstated, match=message):
        white_of(values)


def test_the_rest_is_seen_from_zero_to_one():
    assert white_of(np.uint16([[[9]]])) == 65535
    assert white_of(np.uint16([[[9]]]), maximum=4095) == 4095
    assert white_of(np.float32([[[np.nan]], [[1.0]]])) == 1
    assert Levels.of_white(9.0, 2) == ((0.0, 0.0), (9.0, 9.0))


@pytest.mark.parametrize(
    "table",
    [
        {}, {"scale": 0}, {"std": [1, 0]}, {"per_image": "other"}, {"percentile": [99, 1]}, {"percentile": [1]},
        {"range": [5, 5]}, {"range": 7}, {"scale": 1, "range": [0, 1]}, {"per_image": "zscore", "percentile": [1, 99]},
        {"gamma": 2}, {"mean": [float("nan")]}, {"scale": 1e300, "mean": [1e300]},
    ],
)  # fmt: skip
def test_wrong_declarations_are_refused(table):
    with pytest.raises(ValueError, match="; set|such as|known are|must be one of"):
        Normalization.of_table(table)


@pytest.mark.parametrize("declared", FORMS, ids=str)
def test_a_declaration_survives_its_table(declared):
    assert Normalization.of_table(declared.table) == declared


def test_means_must_be_as_many_as_the_bands():
    declared = Normalization(mean=(1.0, 2.0, 3.0))
    assert declared.misfit(3) is None
    assert "3 numbers" in declared.misfit(4)
