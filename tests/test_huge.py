"""Heads and values of very many columns, which are dealt with a slice at a time."""

import cases
import helpers
import numpy as np
import pytest
from helpers import assert_same_bits
from kappa import assert_accurate

import cattn

LARGEST_WHOLE = 16384  # of plan.pxd
HUGE = [(LARGEST_WHOLE + 1, 3), (3, LARGEST_WHOLE + 1), (18_431, 17_000)]


def problem(rows, keys, size, value_size, dtype=np.float32, heads=1):
    sizes = {"size": size, "value_size": value_size}
    return helpers.problem(rows, keys, dtype, batch=(), heads=heads, key_heads=1, **sizes)


def check(case):
    for threads in (1, 3):
        out, lse = cattn.attention(**case, return_lse=True, num_threads=threads)
        assert_accurate(out, case, lse)


@pytest.mark.parametrize("name", cases.TYPES)
@pytest.mark.parametrize("rows, keys", [(1, 70), (20, 9)])
@pytest.mark.parametrize("sizes", HUGE, ids=str)
def test_types(sizes, rows, keys, name):
    check(problem(rows, keys, *sizes, cases.TYPES[name]))


@pytest.mark.parametrize("sizes", HUGE, ids=str)
def test_strides(sizes):
    given = problem(12, 66, *sizes)
    expected = cattn.attention(**given)
    given = {name: array[..., ::-1].astype(">f4")[..., ::-1] for name, array in given.items()}
    assert_same_bits(cattn.attention(**given), expected)


@pytest.mark.parametrize("rows", [3, 12])
def test_chunks(rows):
    """So many keys that each part of the rows is merged from partial results."""
    given = problem(rows, 2100, 3, LARGEST_WHOLE + 1)
    out, lse = cattn.attention(**given, return_lse=True, num_threads=3)
    assert_accurate(out, given, lse)


@pytest.mark.parametrize("rows", [3, 12])
@pytest.mark.parametrize("sizes", HUGE, ids=str)
def test_modifiers(sizes, rows):
    random = np.random.default_rng(5)
    given = problem(rows, 66, *sizes, heads=2) | {
        "mask": random.random((2, rows, 66)) < 0.8,
        "bias": random.standard_normal((2, rows, 66)).astype(np.float16),
        "alibi_slopes": np.array([0.25, 0.5], np.float32),
        "softcap": 3.0,
        "sinks": np.array([0.5, 1.0], np.float32),
        "causal": True,
        "query_offset": 40,
        "key_lengths": 60,
    }  # fmt: skip
    check(given)
    expected = cattn.attention(**given)
    given["key"][:, 60:] = given["value"][:, 60:] = np.nan
    assert_same_bits(cattn.attention(**given), expected)
    given["value"][:, 0] = np.inf  # the selecting way
    assert np.array_equal(np.isfinite(cattn.attention(**given)[..., 0]), ~given["mask"][..., 0])


def test_packed_sequences():
    given = problem(40, 90, *HUGE[2])
    query, key, value = (array.swapaxes(0, 1) for array in given.values())
    rows, keys = [0, 20, 20, 23, 40], [0, 5, 40, 80, 90]
    out = cattn.attention_varlen(query, key, value, rows, keys, num_threads=3)
    for i in range(4):
        one = slice(rows[i], rows[i + 1])
        own = slice(keys[i], keys[i + 1])
        expected = cattn.attention(given["query"][:, one], given["key"][:, own], given["value"][:, own])
        assert_same_bits(out[one].swapaxes(0, 1), expected)


@pytest.mark.parametrize("stage", ["scores", "softcapped", "biased", "weights"])
@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
def test_weights(stage, modified, name):
    given = problem(50, 120, LARGEST_WHOLE + 1, 1, cases.TYPES[name])
    del given["value"]
    if modified:
        given |= {"bias": np.linspace(-1, 1, 120), "mask": np.arange(120) % 7 > 0, "softcap": 2.0}
    expected = cattn.reference.attention_weights(**given, stage=stage)
    for threads in (1, 3):
        found = cattn.attention_weights(**given, stage=stage, num_threads=threads)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if name == "float64" else 1e-5)


def test_whole_heads_keep_their_strategy():
    """What is not huge goes by many rows, whatever the size."""
    x = np.zeros((1, 9, LARGEST_WHOLE), np.float32)
    assert cattn.plan(x, x, x).strategy == "many rows"
