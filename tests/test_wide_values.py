"""Values of more columns than are computed at a time, and the largest head size."""

import cases
import helpers
import numpy as np
import pytest
from helpers import assert_same_bits
from kappa import assert_accurate

import cattn

MOST = 16384  # CATTN_LARGEST_HEAD of problem.h
WIDE = [MOST + 1, 2 * MOST, 2 * MOST + 7]


def problem(rows, keys, size, value_size, dtype=np.float32, heads=1):
    sizes = {"size": size, "value_size": value_size}
    return helpers.problem(rows, keys, dtype, batch=(), heads=heads, key_heads=1, **sizes)


def check(case):
    results = [cattn.attention(**case, return_lse=True, num_threads=threads) for threads in (1, 3)]
    assert_same_bits(*results)
    out, lse = results[0]
    assert_accurate(out, case, lse)


@pytest.mark.parametrize("rows, keys", [(1, 70), (20, 9)])
@pytest.mark.parametrize(
    "columns, name", [*((WIDE[0], name) for name in cases.TYPES), *((columns, "float32") for columns in WIDE[1:])]
)
def test_types(columns, name, rows, keys):
    check(problem(rows, keys, 3, columns, cases.TYPES[name]))


@pytest.mark.parametrize("rows", [2, 12])
def test_columns_are_computed_apart(rows):
    given = problem(rows, 66, 5, WIDE[-1])
    parts = [slice(0, MOST), slice(MOST, 2 * MOST), slice(2 * MOST, None)]
    expected = [cattn.attention(**given | {"value": given["value"][..., part]}) for part in parts]
    assert_same_bits(cattn.attention(**given), np.concatenate(expected, axis=-1))


def test_strides():
    given = problem(12, 66, 3, WIDE[0])
    expected = cattn.attention(**given)
    given = {name: array[..., ::-1].astype(">f4")[..., ::-1] for name, array in given.items()}
    out = np.empty(2 * expected.size, np.float32)[::-2].reshape(expected.shape)
    assert cattn.attention(**given, out=out) is out
    assert_same_bits(out.copy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 12])
def test_chunks(rows):
    """There are so many keys that each part of the rows is joined from several splits."""
    check(problem(rows, 2100, 3, WIDE[0]))


@pytest.mark.parametrize("rows", [3, 12])
def test_modifiers(rows):
    random = np.random.default_rng(5)
    given = problem(rows, 66, 3, WIDE[0], heads=2) | {
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
    given["value"][:, 0] = np.inf
    assert np.array_equal(np.isfinite(cattn.attention(**given)[..., [0, -1]]), ~given["mask"][..., [0, 0]])


def test_packed_sequences():
    given = problem(40, 90, 3, WIDE[0])
    query, key, value = (array.swapaxes(0, 1) for array in given.values())
    rows, keys = [0, 20, 20, 23, 40], [0, 5, 40, 80, 90]
    out = cattn.attention_varlen(query, key, value, rows, keys, num_threads=3)
    for i in range(4):
        one = slice(rows[i], rows[i + 1])
        own = slice(keys[i], keys[i + 1])
        expected = cattn.attention(given["query"][:, one], given["key"][:, own], given["value"][:, own])
        assert_same_bits(out[one].swapaxes(0, 1), expected)


def test_plan():
    """It is that of the columns that are computed at a time."""
    query, key, value = problem(40, 90, 3, 5 * MOST).values()
    assert cattn.plan(query, key, value) == cattn.plan(query, key, value[..., :MOST])


@pytest.mark.parametrize("rows", [3, 12])
@pytest.mark.parametrize("name", cases.TYPES)
def test_the_largest_head_size(rows, name):
    check(problem(rows, 30, MOST, 3, cases.TYPES[name]))


def test_larger_heads_are_refused():
    query, key, value = problem(3, 4, MOST + 1, 2).values()
    indptr = [0, 1]
    for function in (
        lambda: cattn.attention(query, key, value),
        lambda: cattn.attention_weights(query, key),
        lambda: cattn.plan(query, key, value),
        lambda: cattn.attention_varlen(query, key, value, indptr, indptr),
    ):
        with pytest.raises(ValueError, match=r"^query: expected a head size of at most 16384, got 16385 .*bias=$"):
            function()


def test_larger_heads_by_a_bias():
    case = problem(12, 40, MOST + 100, 5)
    query, key, value = case.values()
    scale = 1 / np.sqrt(query.shape[-1])
    rest = cattn.attention_weights(query[..., MOST:], key[..., MOST:], scale=scale, stage="scores")
    out = cattn.attention(query[..., :MOST], key[..., :MOST], value, scale=scale, bias=rest)
    np.testing.assert_allclose(out, cattn.reference.attention(**case), rtol=0, atol=1e-5)
