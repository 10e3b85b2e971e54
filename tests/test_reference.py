"""The reference gives what pencil and paper give."""

import math
from fractions import Fraction

import cases
import numpy as np
import pytest

from cattn import reference
from cattn.reference import _bounds

# With scale 1 the scores are i · j · log 2, so that row i has the weights 2^(i·j) before they are normalised.
QUERY = np.array([[0.0], [math.log(2)], [2 * math.log(2)]])
KEY = np.array([[0.0], [1.0], [2.0]])
VALUE = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 5.0]])
POWERS = [[1, 1, 1], [1, 2, 4], [1, 4, 16]]


def expect(powers, extra=0, **modifiers):
    """Check output, weights and lse against rows of weights that are not normalised yet."""
    totals = [sum(map(Fraction, row)) + extra for row in powers]
    weights = [[Fraction(x) / t if t else Fraction(0) for x in row] for row, t in zip(powers, totals, strict=True)]
    out = [[sum(w * Fraction(v) for w, v in zip(row, column, strict=True)) for column in VALUE.T] for row in weights]
    lse = [math.log(t) if t else -math.inf for t in totals]
    found, found_lse = reference.attention(QUERY, KEY, VALUE, **{"scale": 1, **modifiers}, return_lse=True)
    np.testing.assert_allclose(found, np.array(out, float), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(found_lse, lse, rtol=1e-14, atol=1e-15)
    found = reference.attention_weights(QUERY, KEY, **{"scale": 1, **modifiers})
    np.testing.assert_allclose(found, np.array(weights, float), rtol=1e-14, atol=1e-15)


def test_three_tokens():
    expect(POWERS)


def test_default_scale():
    four = np.repeat(KEY, 4, axis=-1)
    weights = reference.attention_weights(np.repeat(QUERY, 4, axis=-1), four)
    np.testing.assert_allclose(weights, reference.attention_weights(QUERY, KEY, scale=4 / math.sqrt(4)), rtol=1e-14)


def test_causal():
    expect([[1, 0, 0], [1, 2, 0], [1, 4, 16]], causal=True)


def test_query_offset():
    expect([[1, 1, 0], [1, 2, 4], [1, 4, 16]], causal=True, query_offset=1)
    expect([[0, 0, 0], [1, 0, 0], [1, 4, 0]], causal=True, query_offset=-1)
    expect([[1, 0, 0], [1, 2, 0], [1, 4, 16]], causal=True, query_offset="end")
    expect([[0, 0, 0], [1, 0, 0], [1, 4, 0]], causal=True, query_offset="end", key_lengths=2)


def test_query_offset_is_required():
    with pytest.raises(ValueError, match="query_offset"):
        reference.attention(QUERY[:2], KEY, VALUE, causal=True)


def test_window():
    expect([[1, 1, 0], [1, 2, 4], [0, 4, 16]], window=(1, 1))
    expect([[1, 0, 0], [1, 2, 0], [0, 4, 16]], window=(1, 0))
    expect([[1, 1, 0], [1, 2, 4], [1, 4, 16]], window=(None, 1))
    expect([[1, 1, 1], [0, 2, 4], [0, 0, 16]], window=(0, -1))


def test_key_range():
    expect([[0, 1, 1], [1, 0, 0], [0, 0, 0]], key_range=([1, -9, 2], [9, 1, 2]))
    expect([[0, 1, 1], [1, 2, 4], [0, 0, 16]], key_range=([1, 0, 2], None))
    expect([[1, 0, 0], [1, 2, 4], [0, 0, 0]], key_range=(None, [1, 3, 0]))


def test_lengths():
    expect([[1, 1, 0], [1, 2, 0], [0, 0, 0]], key_lengths=2, query_lengths=2)


def test_mask():
    expect([[1, 0, 1], [0, 0, 0], [0, 4, 16]], mask=np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]], bool))


def test_bias():
    expect([[1, 3, 0], [1, 6, 0], [1, 12, 0]], bias=[0, math.log(3), -math.inf])


def test_alibi():
    half = Fraction(1, 2)
    expect([[1, half, half**2], [half, 2, 2], [half**2, 2, 16]], alibi_slopes=[math.log(2)])


def test_sinks():
    expect(POWERS, extra=5, sinks=[math.log(5)])
    expect(POWERS, sinks=[-math.inf])


def test_sink_alone():
    out, lse = reference.attention(QUERY, KEY, VALUE, sinks=[2.5], key_lengths=0, return_lse=True)
    assert np.array_equal(out, np.zeros((3, 2)))
    np.testing.assert_allclose(lse, 2.5, rtol=1e-15)


def test_softcap_comes_before_bias():
    scores = reference.attention_weights(QUERY, KEY, scale=1, softcap=2.0, bias=[[7.0]], stage="biased")
    expected = [[2 * math.tanh(i * j * math.log(2) / 2) + 7 for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-14)


def test_stages():
    options = {"scale": 1, "softcap": 2.0, "bias": [[7.0]], "causal": True}
    scores = reference.attention_weights(QUERY, KEY, stage="scores", **options)
    softcapped = reference.attention_weights(QUERY, KEY, stage="softcapped", **options)
    biased = reference.attention_weights(QUERY, KEY, stage="biased", **options)
    np.testing.assert_allclose(scores, QUERY @ KEY.T)
    np.testing.assert_allclose(softcapped, 2 * np.tanh(scores / 2))
    np.testing.assert_allclose(biased[np.tril_indices(3)], softcapped[np.tril_indices(3)] + 7)
    assert np.all(biased[np.triu_indices(3, 1)] == -np.inf)


def test_grouped_heads():
    query = np.ones((6, 1, 1))
    value = np.array([10.0, 20.0]).reshape(2, 1, 1)
    out = reference.attention(query, np.ones((2, 1, 1)), value)
    assert out.ravel().tolist() == [10, 10, 10, 20, 20, 20]


def test_layout():
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 2, 4, 5, 6))
    out, lse = reference.attention(query, key, value, causal=True, return_lse=True)
    swapped = [x.swapaxes(1, 2) for x in (query, key, value)]
    out_swapped, lse_swapped = reference.attention(*swapped, causal=True, layout="blhd", return_lse=True)
    np.testing.assert_array_equal(out_swapped, out.swapaxes(1, 2))
    np.testing.assert_array_equal(lse_swapped, lse.swapaxes(1, 2))


def test_longdouble():
    if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
        pytest.skip("longdouble is no wider than float64 here")
    third = np.longdouble(1) / 3
    out = reference.attention(np.zeros((1, 1)), np.zeros((2, 1)), np.array([[third], [third]]))
    assert out.dtype == np.longdouble and out[0, 0] == third
    wide = reference.attention(QUERY, KEY, VALUE, dtype=np.longdouble)
    assert wide.dtype == np.longdouble
    assert np.any(wide != reference.attention(QUERY, KEY, VALUE))


def test_not_finite():
    """An attended NaN or infinity counts even if its weight underflows. A masked one never counts."""
    query, key = np.array([[1.0]]), np.array([[0.0], [-2000.0], [0.0]])
    value = np.array([[1.0, 2, 3, 4], [np.inf, -np.inf, np.nan, 5], [np.nan, np.inf, np.inf, np.nan]])
    out = reference.attention(query, key, value, scale=1, key_lengths=2)
    np.testing.assert_array_equal(out, [[np.inf, -np.inf, np.nan, 4]])
    out = reference.attention(query, key, value, scale=1, key_lengths=1)
    np.testing.assert_array_equal(out, [[1, 2, 3, 4]])
    out = reference.attention(query, np.array([[0.0], [np.nan], [-np.inf]]), value, scale=1, bias=[0, -np.inf, 0])
    np.testing.assert_array_equal(out, [[1, 2, 3, 4]])


EPS, TINY = 2.0**-23, 2.0**-126
TYPES = [(name, dtype) for name, dtype in cases.TYPES.items() if name != "float64"]


def bound_of(dtype=np.float32, value=VALUE, **modifiers):
    """Return the bound for the three tokens, whose scores are 0, i and 2i in row i."""
    arrays = (x.astype(dtype) for x in (np.log2(np.exp(QUERY)), KEY, value))  # whole numbers
    return reference.error_bound(*arrays, scale=1, **modifiers)


def expect_bound(found, largest, size, beyond=0.0):
    """Check a bound against the largest A and the Σ p|v| of each row, and what is added to four units."""
    expected = 4 * (EPS * (1 + np.array(largest, float)[:, None]) * size + TINY) + beyond
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-12)


def test_error_bound():
    """All values are 3 or -3, so that Σ p|v| is 3."""
    signs = 3.0 * np.array([[1.0, -1], [-1, -1], [1, -1]])
    expect_bound(bound_of(value=signs), [0, 2, 4], 3)
    expect_bound(bound_of(value=signs, causal=True), [0, 1, 4], 3)
    expect_bound(bound_of(value=signs, mask=np.array([1, 1, 0], bool)), [0, 1, 2], 3)
    expect_bound(bound_of(value=signs, bias=[-1, -2, -3]), [3, 5, 7], 3)
    expect_bound(bound_of(value=signs, bias=[7, -2, -math.inf]), [7, 7, 7], 3)
    expect_bound(bound_of(value=signs, alibi_slopes=[-0.5]), [1, 2.5, 4], 3)
    expect_bound(bound_of(value=signs, bias=[0, 0, -90]), [0, 1, 2], 3)  # a weight of no influence
    expect_bound(bound_of(value=signs, softcap=1e30), [0, 2, 4], 3)


def test_error_bound_of_sinks():
    """Each row attends to the first key, with a score of 0. A sink of -log 3 leaves it three quarters of the weight."""
    found = bound_of(value=np.ones((3, 1)), sinks=[-math.log(3)], mask=np.eye(3, dtype=bool)[:1])
    expect_bound(found, [math.log(3)] * 3, 3 / 4)


def test_error_bound_of_lse():
    _, found = bound_of(return_lse=True)
    lse = np.log(np.exp(np.outer(np.arange(3), np.arange(3))).sum(axis=1))
    np.testing.assert_allclose(found, 8 * EPS * (1 + np.array([0, 2, 4]) + lse), rtol=1e-12)


@pytest.mark.parametrize("name, dtype", TYPES, ids=[name for name, _ in TYPES])
def test_error_bound_of_half_types(name, dtype):
    """One unit in the last place of a mean of 1 and 3 is added, and for bfloat16 the distance of both from it."""
    value = np.array([[1.0], [3.0], [3.0]])
    found = bound_of(dtype, value, mask=np.array([1, 1, 0], bool))
    weights = 1 / (1 + np.exp(np.arange(3.0)))  # of the first key
    out = weights + 3 * (1 - weights)
    last_place = {"float16": 2.0**-9, "bfloat16": 2.0**-6}.get(name, 0)  # of numbers from 2 to 4
    distance = weights * (out - 1) + (1 - weights) * (3 - out)
    beyond = last_place + (name == "bfloat16") * (1 + 2.0**-6) * 2.0**-8 * distance
    expect_bound(found, [0, 1, 2], out[:, None], beyond[:, None])


def test_error_bound_of_what_underflows():
    """A weight of 1.3e-39 may be lost, whatever its value."""
    arrays = (np.array(x, np.float32) for x in ([[1]], [[0], [-89.5]], [[1], [1e37]]))
    size = 1 + math.exp(-89.5) * float(np.float32(1e37))
    expect_bound(reference.error_bound(*arrays, scale=1), [0], size, math.exp(-89.5) * float(np.float32(1e37)))


def test_error_bound_is_numpys_where_that_is_more():
    """NumPy's float32 adds up equal terms one by one, and each sum rounds the same way."""
    arrays = np.zeros((1, 1), np.float32), np.zeros((100_000, 1), np.float32), np.full((100_000, 1), 0.7, np.float32)
    numpy, exact = (reference.attention(*arrays, dtype=dtype) for dtype in (np.float32, np.float64))
    of_numpy = np.abs(numpy - exact) / (EPS * exact + TINY)
    assert 1.5 * of_numpy + 0.5 > 4
    np.testing.assert_allclose(reference.error_bound(*arrays), (1.5 * of_numpy + 0.5) * EPS * exact, rtol=1e-9)


def test_error_bound_has_the_shape_of_the_result():
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 5, 4, 6), dtype=np.float32)
    bound, lse_bound = reference.error_bound(query, key, value, causal=True, return_lse=True)
    swapped = [x.swapaxes(1, 2) for x in (query, key, value)]
    bound_swapped, lse_bound_swapped = reference.error_bound(*swapped, causal=True, layout="blhd", return_lse=True)
    np.testing.assert_array_equal(bound_swapped, bound.swapaxes(1, 2))
    np.testing.assert_array_equal(lse_bound_swapped, lse_bound.swapaxes(1, 2))


MAXSIM_QUERY = np.array([[1, -2], [3, 0.5]], np.float32)
DOCUMENTS = np.array([[[1, 1], [2, -1]], [[0, 4], [-5, 0]]], np.float32)


def expect_maxsim_bound(found, magnitude, tokens):
    """Check a bound against the sum of the largest Σ|q·d|, and how many tokens of two numbers it is about."""
    np.testing.assert_allclose(found, 4 * (EPS * np.array(magnitude) + 2 * np.array(tokens) * TINY), rtol=1e-12)


@pytest.mark.parametrize("name, dtype", TYPES, ids=[name for name, _ in TYPES])
def test_maxsim_error_bound(name, dtype):
    """The largest Σ|q·d| of the query's tokens are 4 and 6.5 in the first document, 8 and 15 in the other."""
    arrays = MAXSIM_QUERY.astype(dtype), DOCUMENTS.astype(dtype)
    expect_maxsim_bound(reference.maxsim_error_bound(*arrays), [10.5, 23], 2)
    expect_maxsim_bound(reference.maxsim_error_bound(*arrays, document_lengths=[2, 1]), [10.5, 10], 2)
    packed = arrays[1].reshape(4, 2)
    expect_maxsim_bound(reference.maxsim_error_bound(arrays[0], packed, document_indptr=[0, 2, 4]), [10.5, 23], 2)
    queries = np.stack([arrays[0], arrays[0]])
    found = reference.maxsim_error_bound(queries, arrays[1], query_lengths=[2, 1])
    expect_maxsim_bound(found, [[10.5, 23], [4, 8]], [[2], [1]])


def test_maxsim_error_bound_of_nothing():
    """An empty document scores -inf, and only what a finite score may be off by is counted."""
    expect_maxsim_bound(reference.maxsim_error_bound(MAXSIM_QUERY, DOCUMENTS, document_lengths=[0, 2]), [0, 23], 2)
    expect_maxsim_bound(reference.maxsim_error_bound(MAXSIM_QUERY[:0], DOCUMENTS), [0, 0], 0)
    queries = np.stack([MAXSIM_QUERY, MAXSIM_QUERY])
    found = reference.maxsim_error_bound(queries, DOCUMENTS[:, :0], query_lengths=[2, 1])
    expect_maxsim_bound(found, [[0, 0], [0, 0]], [[2], [1]])


def test_a_nan_widens_the_maxsim_error_bound_of_no_other_document():
    documents = DOCUMENTS.copy()
    documents[0, 0, 0] = np.nan
    found = reference.maxsim_error_bound(MAXSIM_QUERY, documents)
    assert np.isnan(found[0])
    expect_maxsim_bound(found[1], 23, 2)


def test_maxsim_error_bound_is_numpys_where_that_is_more(monkeypatch):
    """NumPy's float32, whose chains depend on its BLAS, is made to be off by a thousand units."""
    exact = reference.maxsim

    def inexact(*arrays, dtype, **lengths):
        return exact(*arrays, dtype=dtype, **lengths) * (1 + 1000 * EPS * (dtype == np.float32))

    monkeypatch.setattr(_bounds, "maxsim", inexact)
    query, document = np.ones((2, 2), np.float32), np.ones((1, 3, 2), np.float32)
    found = reference.maxsim_error_bound(query, document)
    np.testing.assert_allclose(found, [1500.5 * 4 * EPS], rtol=1e-4)


def test_varlen():
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 9, 2, 4))
    out, lse = reference.attention_varlen(
        query, key, value, [0, 2, 2, 9], [0, 5, 5, 9], causal=True, query_offset="end", return_lse=True
    )
    for rows, keys in ((slice(0, 2), slice(0, 5)), (slice(2, 9), slice(5, 9))):
        alone = reference.attention(
            *(x.swapaxes(0, 1) for x in (query[rows], key[keys], value[keys])), causal=True, query_offset="end",
            return_lse=True,
        )  # fmt: skip
        np.testing.assert_allclose(out[rows], alone[0].swapaxes(0, 1), rtol=1e-14)
        np.testing.assert_allclose(lse[rows], alone[1].T, rtol=1e-14)


def by_loops(query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None,
             query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
             layout="bhld"):  # fmt: skip
    """Return the output and lse, computed one number at a time in plain Python."""
    query, key, value = (np.asarray(x).astype(float) for x in (query, key, value))
    if query.ndim == 2:
        out, lse = by_loops(query[None], key[None], value[None], scale=scale, causal=causal, window=window,
                            query_offset=query_offset, key_range=key_range, query_lengths=query_lengths,
                            key_lengths=key_lengths, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
                            softcap=softcap, sinks=sinks)  # fmt: skip
        return out[0], lse[0]
    if layout == "blhd":
        query, key, value = (x.swapaxes(-2, -3) for x in (query, key, value))
    batch = np.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    query, key, value = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (query, key, value))
    (heads, rows, size), keys = query.shape[-3:], key.shape[-2]
    start, stop = key_range or (None, None)

    def at(x, index, *shape, default=None):
        return default if x is None else np.broadcast_to(np.asarray(x), batch + shape)[index].astype(float).item()

    out, lse = np.zeros((*query.shape[:-1], value.shape[-1])), np.full(query.shape[:-1], -np.inf)
    for index in np.ndindex(*query.shape[:-1]):
        *entry, head, i = index
        entry = tuple(entry)
        its_head = (*entry, head // (heads // key.shape[-3]))
        length = at(key_lengths, entry, default=keys)
        its_rows = at(query_lengths, entry, default=rows)
        if i >= its_rows:
            continue
        if isinstance(query_offset, str):
            position = i + (0 if query_offset == "start" else length - its_rows)
        else:
            position = i + at(query_offset, entry, default=0)
        total, context = 0.0, np.zeros(value.shape[-1])
        for j in range(keys):
            score = sum(query[index][c] * key[its_head][j, c] for c in range(size))
            score *= 1 / math.sqrt(size) if scale is None else scale
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            score += at(bias, (*index, j), heads, rows, keys, default=0)
            score -= at(alibi_slopes, (*entry, head), heads, default=0) * abs(position - j)
            left, right = window or (None, None)
            if (
                j < length
                and (not causal or j <= position)
                and (left in (None, -1) or j >= position - left)
                and (right in (None, -1) or j <= position + right)
                and at(start, index, heads, rows, default=0) <= j < at(stop, index, heads, rows, default=keys)
                and at(mask, (*index, j), heads, rows, keys, default=True)
            ):
                total += math.exp(score)
                context += math.exp(score) * value[its_head][j]
        total += math.exp(at(sinks, (*entry, head), heads, default=-math.inf))
        if total:
            out[index], lse[index] = context / total, math.log(total)
    return (out.swapaxes(-2, -3), lse.swapaxes(-1, -2)) if layout == "blhd" else (out, lse)


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_against_loops(start):
    for seed in range(start, start + 50):
        case = cases.case(seed, work=1500)
        case["query"] = case["query"] / 1000  # exponentials of scores as they are
        if "bias" in case:
            case["bias"] = np.where(case["bias"] < -100, -100, case["bias"].astype(float))
        out, lse = reference.attention(**case, return_lse=True)
        expected, expected_lse = by_loops(**case)
        message = f"seed {seed}: {cases.describe(case)}"
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-11, atol=1e-11, err_msg=message)
        np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-11, err_msg=message)
