"""Packed sequences: each as if it were alone."""

import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits
from kappa import assert_accurate

import cattn
from cattn import reference

QUERY_INDPTR, KEY_INDPTR = [0, 3, 3, 20, 21, 60], [0, 5, 9, 26, 26, 100]
MODIFIERS = [
    {},
    {"scale": 0.5, "softcap": 2.0},
    {"causal": True, "query_offset": "start"},
    {"causal": True, "query_offset": "end", "sinks": [0.5, 0.0, -np.inf, 2.0]},
    {"window": (4, 2), "query_offset": [0, 3, -2, 5, 40]},
    {"alibi_slopes": [0.5, 0.25, 0.125, 0.0], "query_offset": 2},
]


def packed(dtype=np.float32, queries=60, keys=100):
    random = np.random.default_rng(0)
    shapes = (queries, 4, 9), (keys, 2, 9), (keys, 2, 5)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def alone(query, key, value, n, query_indptr=QUERY_INDPTR, key_indptr=KEY_INDPTR):
    """The arguments of `attention` for sequence n."""
    rows, keys = slice(*query_indptr[n : n + 2]), slice(*key_indptr[n : n + 2])
    return {"query": query[rows], "key": key[keys], "value": value[keys], "layout": "blhd"}


def modifiers_of(n, modifiers):
    offset = modifiers.get("query_offset")
    return modifiers | ({"query_offset": offset[n]} if isinstance(offset, list) else {})


@EVERY_TYPE
@pytest.mark.parametrize("modifiers", MODIFIERS, ids=lambda x: "-".join(x))
def test_matches_the_reference_and_attention_alone(dtype, modifiers):
    arrays = packed(dtype)
    out, lse = cattn.attention_varlen(*arrays, QUERY_INDPTR, KEY_INDPTR, **modifiers, return_lse=True)
    assert out.shape == (60, 4, 5) and out.dtype == dtype
    assert lse.shape == (60, 4) and lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    expected = reference.attention_varlen(*arrays, QUERY_INDPTR, KEY_INDPTR, **modifiers)
    assert np.abs(out.astype(float) - expected).max() < {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype.name, 1e-5)
    for n in range(5):
        rows = slice(*QUERY_INDPTR[n : n + 2])
        case = alone(*arrays, n) | modifiers_of(n, modifiers)
        assert_accurate(out[rows], case, lse[rows])
        assert_same_bits(cattn.attention(**case, return_lse=True), (out[rows], lse[rows]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_types_of_indptr(dtype):
    expected = cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR)
    found = cattn.attention_varlen(*packed(), np.array(QUERY_INDPTR, dtype), np.array(KEY_INDPTR, dtype))
    np.testing.assert_array_equal(found, expected)


def test_a_sequence_without_keys_gives_zeros():
    out, lse = cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR, return_lse=True)
    assert np.all(out[20:21] == 0) and np.all(lse[20:21] == -np.inf)
    assert np.all(out[:20] != 0) and np.all(out[21:] != 0)


@EVERY_TYPE
def test_sequences_do_not_touch(dtype):
    query, key, value = packed(dtype)
    clean = cattn.attention_varlen(query, key, value, QUERY_INDPTR, KEY_INDPTR)
    for x, rows in ((query, slice(3, 20)), (key, slice(9, 26)), (value, slice(9, 26))):
        x[rows] = np.nan
        out = cattn.attention_varlen(query, key, value, QUERY_INDPTR, KEY_INDPTR)
        assert np.all(np.isnan(out[3:20]))
        assert_same_bits((out[:3], out[20:]), (clean[:3], clean[20:]))


def test_no_sequences_and_no_rows():
    arrays = packed(queries=0, keys=0)
    assert cattn.attention_varlen(*arrays, [0], [0]).shape == (0, 4, 5)
    assert cattn.attention_varlen(*arrays, [0, 0, 0], [0, 0, 0]).shape == (0, 4, 5)
    assert cattn.attention_varlen(*packed(queries=0), [0, 0], [0, 100]).shape == (0, 4, 5)
    out, lse = cattn.attention_varlen(*packed(keys=0), [0, 60], [0, 0], return_lse=True)
    assert np.all(out == 0) and np.all(lse == -np.inf)


def test_out():
    expected = cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR)
    out = np.full((60, 4, 5), np.nan, np.float32)
    assert cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_any_strides():
    expected = cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR)
    strided = [np.ascontiguousarray(x[::-1].swapaxes(0, 1)).swapaxes(0, 1)[::-1] for x in packed()]
    np.testing.assert_array_equal(cattn.attention_varlen(*strided, QUERY_INDPTR, KEY_INDPTR), expected)


def test_the_offset_is_required_where_lengths_differ():
    with pytest.raises(ValueError, match="query_offset"):
        cattn.attention_varlen(*packed(), QUERY_INDPTR, KEY_INDPTR, causal=True)
    query, _, _ = packed(queries=100)
    _, key, value = packed()
    cattn.attention_varlen(query, key, value, KEY_INDPTR, KEY_INDPTR, causal=True)
