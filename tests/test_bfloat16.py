"""What bfloat16 costs, where it costs most: weights just beside the ties of rounding, under values of opposite sign.

Kernels may round weights to bfloat16, to nearest, and divide by the sum of the rounded ones.
"""

import cases
import numpy as np
import pytest
from kappa import Yardstick, assert_accurate
from kernel_tables import BFLOAT16 as BFLOAT16_TYPE
from kernel_tables import FEW, MANY, table_of

import cattn
from cattn import _kernel, reference

BFLOAT16 = cases.TYPES["bfloat16"]
HEADS = 3
LITTLE = 2.0**-16  # more than float32's exponentials are off
UPWARDS, DOWNWARDS = (1 + 2.0**-8) * (1 + LITTLE), (1 + 2.0**-8) * (1 - LITTLE)
# Of positive values and of negative ones. Together upwards, weights are what a sum of unrounded ones misses most.
APART, TOGETHER = (UPWARDS, DOWNWARDS), (UPWARDS, UPWARDS)
WEIGHTS = pytest.mark.parametrize("weights", [APART, TOGETHER], ids=["apart", "together"])
ROWS = pytest.mark.parametrize("rows", [*range(1, 9), 20, 50])
# Each in a column: 1 + 2⁻⁸ times the last one does not round to it.
EQUAL = [1, -2.75, 2 - 2.0**-7]


def parts(x):
    """Numbers of float32 as sums of three of bfloat16."""
    x, result = x.astype(np.float32), []
    for _ in range(3):
        result.append(x.astype(BFLOAT16))
        x = x - result[-1].astype(np.float32)
    assert not x.any()
    return np.stack(result, axis=-1)


def problem(rows, keys, weights, size=16, apart=64):
    """Keys of such weights, times powers of two. Every so many keys there is one of weight 2 and value 0: what the
    softmax is relative to is a power of two then."""
    random = np.random.default_rng([rows, keys])
    positive = random.random((HEADS, keys)) < 0.5
    weight = np.where(positive, *weights) * 2.0 ** -random.integers(0, 3, (HEADS, keys))
    largest = np.arange(keys) % apart == 0
    weight[:, largest] = 2
    sign = np.where(largest, 0, np.where(positive, 1, -1))
    key = np.zeros((HEADS, keys, size))
    key[..., :3] = parts(np.log(weight))
    query = random.standard_normal((HEADS, rows, size))
    query[..., :3] = 1
    columns = [sign, -sign, 3 + 0.1 * sign, positive, random.standard_normal((HEADS, keys))]
    columns += [np.full((HEADS, keys), x) for x in EQUAL]
    arrays = {"query": query, "key": key, "value": np.stack(columns, axis=-1)}
    return {name: x.astype(BFLOAT16) for name, x in arrays.items()} | {"scale": 1.0}


def check(**case):
    """The bound, in bfloat16 and in float32; and equal values come out."""
    yardstick = Yardstick(case)
    out, lse = cattn.attention(**case, return_lse=True)
    assert out.dtype == BFLOAT16
    yardstick.check(out, lse)
    yardstick.check(cattn.attention(**case, out=np.empty(out.shape, np.float32)))
    if "sinks" not in case:
        assert keeps_equal_values(out)


def keeps_equal_values(out):
    return np.all(out[..., -len(EQUAL) :].astype(float) == EQUAL)


def beside_sinks(keys):
    """Powers of two, of which the last is the largest weight by far."""
    return np.log([0.5, 4.0, 2.0 ** np.ceil(np.log2(keys))])


@ROWS
@WEIGHTS
@pytest.mark.parametrize("keys", [40, 100])
def test_one_chunk(rows, weights, keys):
    case = problem(rows, keys, weights)
    check(**case)
    check(**case, sinks=beside_sinks(keys))


@ROWS
@WEIGHTS
@pytest.mark.parametrize("chunks", [1.5, 2.5])
def test_several_chunks(rows, weights, chunks):
    keys = int(chunks * cattn.plan(**problem(rows, 2, weights)).chunk)
    case = problem(rows, keys, weights)
    check(**case)
    check(**case, sinks=beside_sinks(keys))


@pytest.mark.parametrize("rows", [1, 4, 40])
@WEIGHTS
@pytest.mark.parametrize("size, apart", [(3, 64), (40, 1000), (64, 64), (128, 7), (256, 64)])
def test_sizes(rows, weights, size, apart):
    check(**problem(rows, 3000, weights, size, apart))


@pytest.mark.parametrize("rows", [1, 4, 40])
@WEIGHTS
def test_beside_modifiers(rows, weights):
    """The logits come from a bias, to other rows other ones; some keys are not seen."""
    random = np.random.default_rng(rows)
    positive = random.random((HEADS, rows, 300)) < 0.5
    bias = np.log(np.where(positive, *weights)).astype(np.float32)
    bias[..., ::64] = np.float32(np.log(2))
    case = problem(rows, 300, weights) | {"bias": bias}
    case["key"] = np.zeros_like(case["key"])
    case["value"][..., :2] = np.where(positive[:, :1], 1, -1)[:, 0, :, None]
    check(**case)
    check(**case, mask=random.random((rows, 300)) < 0.7, key_lengths=290)
    check(**case, causal=True, query_offset=200, window=(150, None), sinks=beside_sinks(300))


@pytest.mark.parametrize("rows", [2, 20])
@WEIGHTS
def test_merged_parts(rows, weights):
    """By the lse of unrounded weights: twice as far off."""
    case = problem(rows, 300, weights)
    results = []
    for keys in (slice(64), slice(64, 192), slice(192, 300)):
        out = np.empty((HEADS, rows, case["value"].shape[-1]), np.float32)
        part = case | {name: case[name][:, keys] for name in ("key", "value")}
        results.append(cattn.attention(**part, out=out, return_lse=True))
    out, _ = cattn.merge_attention(*zip(*results, strict=True))
    yardstick = Yardstick(case)
    yardstick.rounded_weights = 2 * yardstick.rounded_weights
    assert yardstick.kappa(out) <= 4


@pytest.mark.parametrize("rows", [1, 20])
def test_products_below_the_smallest_normal_number(rows):
    """Units for bfloat16 lose them, before the scale enters. Other tables multiply the query by the scale first."""
    query, key, value = np.full((rows, 1), 1e-19), np.array([[1e-19], [-1e-19]]), np.array([[1.0], [0.0]])
    arrays = [x.astype(BFLOAT16) for x in (query, key, value)]
    units = table_of(_kernel.isa()).kernels[BFLOAT16_TYPE][FEW if rows == 1 else MANY].rounds_weights
    expected = 0.5 if units else reference.attention(*arrays, scale=1e38)
    out = cattn.attention(*arrays, scale=1e38, out=np.empty((rows, 1), np.float32))
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), rtol=1e-5)


# The bound itself, held against what kernels might do.


def to_bits(x, bits=8):
    """To nearest, ties to even, with so many bits: bfloat16 has 8."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def emulate(case, rounded=to_bits, summed=to_bits):
    """Which weights values are multiplied by, and which are summed; all else in float64."""
    scores = reference.attention_weights(case["query"], case["key"], scale=case["scale"], stage="scores")
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = rounded(weights) @ case["value"].astype(float) / summed(weights).sum(axis=-1, keepdims=True)
    return out.astype(np.float32)


@pytest.mark.parametrize("keys", [100, 5000])
def test_the_bound_is_tight(keys):
    for weights in (APART, TOGETHER):
        case = problem(5, keys, weights)
        out = emulate(case)
        assert keeps_equal_values(out)
        for dtype in (np.float32, BFLOAT16):
            Yardstick(case).check(out.astype(dtype))
    case = problem(5, keys, APART)
    yardstick = Yardstick(case)
    error = np.abs(emulate(case) - yardstick.out)[..., :2]
    assert 0.95 < np.max(error / yardstick.rounded_weights[..., :2]) < 1


@pytest.mark.parametrize("keys", [100, 5000])
def test_the_bound_refuses_what_rounds_otherwise(keys):
    """A bit less, or a sum of unrounded weights: in bfloat16 that shows where it moves equal values."""
    case = problem(5, keys, tuple((1 + 2.0**-7) * (1 + x) for x in (LITTLE, -LITTLE)))
    out = emulate(case, lambda x: to_bits(x, 7), lambda x: to_bits(x, 7))
    for dtype in (np.float32, BFLOAT16):
        with pytest.raises(AssertionError, match="exceeds"):
            Yardstick(case).check(out.astype(dtype))
    for weights in (APART, TOGETHER):
        case = problem(5, keys, weights)
        out = emulate(case, summed=np.asarray)
        with pytest.raises(AssertionError, match="exceeds"):
            Yardstick(case).check(out)
    assert not keeps_equal_values(out.astype(BFLOAT16))


@pytest.mark.parametrize("size", [1e5, 1e6, 3e6, 1e7, 1e9, 1e18, 1e37, -1e7, -1e18, -1e37])
@pytest.mark.parametrize("rows", [3, 20, 64])
def test_scores_so_large_that_their_rounding_counts(rows, size):
    """The largest one of a row has the weight 1, whatever the scale rounds it by, and equal ones share it."""
    random = np.random.default_rng(rows)
    query = np.ones((rows, 2), BFLOAT16)
    key = np.repeat([1, 1, 0.5, 1] if size > 0 else [2, 1, 1.5, 1], 20)[:, None] * np.array([0.25, 0.5]) * size
    value = random.standard_normal((80, 5)).astype(BFLOAT16)
    case = {"query": query, "key": key.astype(BFLOAT16), "value": value, "scale": 0.3}
    out, lse = cattn.attention(**case, return_lse=True)
    assert np.isfinite(lse).all() and np.isfinite(out.astype(float)).all()
    assert_accurate(out, case, lse)
