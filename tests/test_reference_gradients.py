"""The gradients of the reference are slopes: a small step of an input changes the loss by as much as they say."""

import itertools
import math

import cases
import numpy as np
import pytest
from helpers import EVERY_TYPE, normal, problem

from cattn import reference
from cattn.reference import _bounds

# Two entries, four query heads on two key heads, three queries, four keys. Sizes differ, so that no axis is another.
QUERY, KEY, VALUE = problem(3, 4, np.float64).values()
GRAD_OUT, GRAD_LSE = normal(2, 4, 3, 3, dtype=np.float64), normal(2, 4, 3, dtype=np.float64)
MODIFIERS = {
    "scale": {"scale": -0.7},
    "causal": {"causal": True},
    "window": {"window": (1, 0)},
    "query_offset": {"query_offset": [1, -1], "causal": True},  # a row of the second entry attends to nothing
    "key_range": {"key_range": (np.array([0, 1, 3]), np.array([2, 4, 3]))},
    "query_lengths": {"query_lengths": [2, 3]},
    "key_lengths": {"key_lengths": [3, 0]},
    "mask": {"mask": np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)},
    "bias": {"bias": np.where(np.eye(3, 4, dtype=bool), -np.inf, normal(4, 3, 4, dtype=np.float64))},
    "alibi_slopes": {"alibi_slopes": np.array([0.5, 0.1, 0, -0.2])},
    "softcap": {"softcap": 1.1},
    "sinks": {"sinks": np.array([1, -2, 0.5, -np.inf])},
}
PAIRS = [{**MODIFIERS[one], **MODIFIERS[other]} for one, other in itertools.combinations(MODIFIERS, 2)]
BIAS_SHAPES = [(), (4,), (1, 1), (3, 1), (3, 4), (4, 1, 4), (1, 3, 1), (2, 1, 3, 4), (1, 4, 1, 1), (2, 4, 3, 4)]


def placed(modifiers):
    """Return the modifiers, with a query_offset if they need one."""
    return {"query_offset": "end"} | modifiers if {"causal", "window", "alibi_slopes"} & modifiers.keys() else modifiers


def loss(inputs, grad_out, grad_lse, others):
    out, lse = reference.attention(**inputs, **others, return_lse=True)
    return (out * grad_out).sum() + np.where(lse == -np.inf, 0, lse * grad_lse).sum()


def slope(inputs, name, direction, step, *given):
    """Return by how much the loss rises along a direction of one input."""
    ahead, behind = ({**inputs, name: inputs[name] + sign * step * direction} for sign in (1, -1))
    return (loss(ahead, *given) - loss(behind, *given)) / (2 * step)


def expect_slopes(query, key, value, grad_out=GRAD_OUT, grad_lse=GRAD_LSE, **modifiers):
    """Check each element of each gradient."""
    modifiers = placed(modifiers)
    found = reference.attention_backward(grad_out, query, key, value, grad_lse=grad_lse, bias_grad=True, **modifiers)
    inputs = {"query": query, "key": key, "value": value}
    inputs |= {name: np.asarray(modifiers.pop(name)) for name in found._fields if name in modifiers}
    for name, gradient in found._asdict().items():
        if name not in inputs:
            assert gradient is None
            continue
        assert gradient.shape == inputs[name].shape
        for index in np.ndindex(gradient.shape):
            direction = np.zeros(gradient.shape)
            direction[index] = 1
            expected = slope(inputs, name, direction, 1e-5, grad_out, grad_lse, modifiers)
            assert abs(gradient[index] - expected) < 1e-8, (name, index)


@pytest.mark.parametrize("name", ["none", *MODIFIERS])
def test_slopes(name):
    expect_slopes(QUERY, KEY, VALUE, **MODIFIERS.get(name, {}))


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_slopes_of_pairs(pair):
    if pair.get("query_offset") is not None and "key_lengths" in pair:
        pair = pair | {"key_lengths": [3, 2]}
    expect_slopes(QUERY[:, :2], KEY[:, :1], VALUE[:, :1], GRAD_OUT[:, :2], GRAD_LSE[:, :2], **of_two_heads(pair))


def of_two_heads(modifiers):
    heads = {"bias", "alibi_slopes", "sinks"}
    return {name: x[-2:] if name in heads else x for name, x in modifiers.items()}


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_slopes_of_a_bias_that_is_broadcast(shape):
    expect_slopes(QUERY, KEY, VALUE, bias=normal(*shape, dtype=np.float64), softcap=2.0)


def test_slopes_of_what_is_broadcast():
    """One query serves two entries, and slopes differ between these."""
    slopes = normal(2, 4, dtype=np.float64) / 4
    expect_slopes(QUERY[:1], KEY, VALUE, alibi_slopes=slopes)
    expect_slopes(QUERY, KEY[0], VALUE[:1], alibi_slopes=slopes[:1])


def test_slopes_without_heads():
    options = {"alibi_slopes": [0.5], "sinks": [0.25], "bias": normal(3, 4, dtype=np.float64)}
    expect_slopes(QUERY[0, 0], KEY[0, 0], VALUE[0, 0], GRAD_OUT[0, 0], GRAD_LSE[0, 0], **options)


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_slopes_of_generated_cases(start):
    """The loss rises along a random direction of each input by as much as its gradient says."""
    for seed in range(start, start + 50):
        case = cases.case(seed, work=1500)
        case["query"] = case["query"].astype(float) / 1000
        if "bias" in case:
            case["bias"] = np.where(case["bias"] < -100, -100, case["bias"].astype(float))
        random = np.random.default_rng(seed)
        out, lse = reference.attention(**case, return_lse=True)
        grad_out, grad_lse = random.standard_normal(out.shape), random.standard_normal(lse.shape)
        found = reference.attention_backward(grad_out, **case, grad_lse=grad_lse, bias_grad=True)
        inputs = {name: np.asarray(case.pop(name)).astype(float) for name in found._fields if name in case}
        for name, x in inputs.items():
            gradient = getattr(found, name)
            assert gradient.shape == x.shape
            direction = random.standard_normal(x.shape) / 10
            expected = slope(inputs, name, direction, 1e-5, grad_out, grad_lse, case)
            size = np.abs(gradient * direction).sum() + np.abs(out * grad_out).sum()
            error = abs((gradient * direction).sum() - expected)
            assert error <= 1e-7 * size + 1e-12, f"seed {seed}, {name}: {cases.describe(inputs | case)}"


def test_two_keys():
    """With values 0 and 1 the output is the weight p of the second key, whose slope is p (1 - p)."""
    query, key, value = [[1.0]], [[0.0], [math.log(3)]], [[0.0], [1.0]]
    found = reference.attention_backward([[1.0]], query, key, value, scale=1, bias=[0.0, 0.0], bias_grad=True)
    weight = 3 / 4
    np.testing.assert_allclose(found.value, [[1 - weight], [weight]], rtol=1e-14)
    np.testing.assert_allclose(found.bias, [-weight * (1 - weight), weight * (1 - weight)], rtol=1e-14)
    np.testing.assert_allclose(found.query, [[weight * (1 - weight) * math.log(3)]], rtol=1e-14)
    np.testing.assert_allclose(found.key, [[-weight * (1 - weight)], [weight * (1 - weight)]], rtol=1e-14)


def test_out_and_lse_may_be_given():
    """out and lse count as they are: with a larger lse all weights are smaller."""
    expected = reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, sinks=MODIFIERS["sinks"]["sinks"])
    out, lse = reference.attention(QUERY, KEY, VALUE, sinks=MODIFIERS["sinks"]["sinks"], return_lse=True)
    for given in ((out, lse), (out, None), (None, lse)):
        found = reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, *given, sinks=MODIFIERS["sinks"]["sinks"])
        for x, y in zip(found, expected, strict=True):
            assert (x is None and y is None) or np.array_equal(x, y)
    halved = reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, out, lse + math.log(2))
    np.testing.assert_allclose(halved.value, expected.value / 2, rtol=1e-14)


def test_layout():
    swapped = [x.swapaxes(1, 2) for x in (GRAD_OUT, QUERY, KEY, VALUE)]
    expected = reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, grad_lse=GRAD_LSE)
    out, lse = reference.attention(*swapped[1:], layout="blhd", return_lse=True)
    for given in ((), (out, lse)):
        found = reference.attention_backward(*swapped, *given, grad_lse=GRAD_LSE.swapaxes(1, 2), layout="blhd")
        for x, y in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(x, y.swapaxes(1, 2))


def test_bias_grad_is_asked_for():
    assert reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, bias=np.zeros(4)).bias is None
    assert reference.attention_backward(GRAD_OUT, QUERY, KEY, VALUE, bias_grad=True).bias is None


def test_what_is_masked():
    """NaN in masked keys and values, and in rows that attend to nothing or do not exist, reaches nothing. What it could
    reach is exactly 0."""
    grad_out, grad_lse, query, key, value = (x.copy() for x in (GRAD_OUT, GRAD_LSE, QUERY, KEY, VALUE))
    bias = normal(3, 4, dtype=np.float64)
    mask = np.ones((3, 4), bool)
    mask[:, 1], mask[1] = False, False
    options = {"mask": mask, "query_lengths": [2, 3], "softcap": 1.5, "sinks": normal(4, dtype=np.float64)}
    options |= {"alibi_slopes": np.ones(4), "query_offset": "end", "bias": bias, "bias_grad": True}
    expected = reference.attention_backward(grad_out, query, key, value, grad_lse=grad_lse, **options)
    key[..., 1, :], value[..., 1, :] = np.nan, np.inf
    grad_out[..., 1, :] = query[..., 1, :] = bias[1] = np.nan
    grad_out[0, :, 2], grad_lse[0, :, 2], query[0, :, 2] = np.nan, np.nan, np.nan
    found = reference.attention_backward(grad_out, query, key, value, grad_lse=grad_lse, **options)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    zeros = found.key[..., 1, :], found.value[..., 1, :], found.query[..., 1, :], found.query[0, :, 2], found.bias[1]
    assert all(np.all(x == 0) for x in zeros)


def test_what_is_attended_shows():
    """A NaN reaches the row of its query, and all that the row attends to."""
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]], bool)[None]
    arrays = dict(grad_out=GRAD_OUT[0, :1], query=QUERY[0, :1], key=KEY[0, :1], value=VALUE[0, :1])

    def not_finite(name, number=np.nan):
        given = {name: x.copy() for name, x in arrays.items()}
        given[name][0, 0, 1] = number
        found = reference.attention_backward(**given, mask=mask, bias=np.zeros((3, 4)), bias_grad=True)
        return [~np.isfinite(x).all(axis=-1).ravel() for x in (found.query, found.key, found.value)]

    rows_of_first, keys_of_row = [1, 0, 0], [1, 1, 0, 0]
    for name in ("query", "key"):
        expected = rows_of_first, keys_of_row, keys_of_row
        for x, y in zip(not_finite(name), expected, strict=True):
            assert x.tolist() == y
    for name, number in itertools.product(("value", "grad_out"), (np.nan, np.inf)):
        expected = rows_of_first, keys_of_row, keys_of_row if name == "grad_out" else [0, 0, 0, 0]
        for x, y in zip(not_finite(name, number), expected, strict=True):
            assert x.tolist() == y


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble])
def test_dtype(dtype):
    arrays, options = (GRAD_OUT, QUERY, KEY, VALUE), {"softcap": 2, "query_offset": 1, "bias_grad": True}
    options |= {"alibi_slopes": np.ones(4), "bias": np.ones(4), "sinks": np.ones(4)}
    expected = reference.attention_backward(*arrays, **options)
    for x, y in zip(reference.attention_backward(*arrays, **options, dtype=dtype), expected, strict=True):
        assert x.dtype == dtype
        np.testing.assert_allclose(x.astype(float), y, rtol=1e-4, atol=1e-6)


# What errors are measured by


def test_units():
    """The unit of a sum is that of its terms without signs: two equal keys, one row, A = |scale| Σ|qk| = 2."""
    eps, tiny = 2.0**-23, 2.0**-126
    arrays = (np.array(x, np.float32) for x in ([[3]], [[2]], [[1], [1]], [[5], [-5]]))
    yardstick = _bounds.GradientYardstick(
        *arrays, scale=1.0, bias=[0, 0], alibi_slopes=[0], sinks=[-np.inf], query_offset=0
    )
    error = eps * (1 + 2 + 2 + math.log(2))  # lse is 2 + log 2
    of_out = 3 * 5  # |dO| Σ p|v|
    of_scores = error / 2 * (15 + of_out)
    expected = {
        "value": [[3 * error / 2]] * 2,
        "bias": [of_scores] * 2,
        "query": [[2 * of_scores]],
        "key": [[2 * of_scores]] * 2,
        "alibi_slopes": [of_scores],  # the distances are 0 and 1
        "sinks": [0],
    }
    for name, unit in expected.items():
        np.testing.assert_allclose(getattr(yardstick.units, name), unit, rtol=1e-12, atol=32 * tiny)


def test_units_of_softcap():
    """The derivative of the softcap is 1 - t², and both terms count."""
    arrays = (np.array(x, np.float32) for x in ([[1]], [[1]], [[2], [2]], [[5], [-5]]))
    units = _bounds.GradientYardstick(*arrays, scale=1.0, softcap=2.0, bias=[[0, 0]]).units
    np.testing.assert_allclose(units.key, units.bias.T * (1 + math.tanh(1) ** 2), rtol=1e-12)


@EVERY_TYPE
def test_kappas(dtype):
    """Plain NumPy's gradients in the same precision are within a few units, and rounded to a half type as well. What
    is off by more shows."""
    for seed in range(40):
        case = cases.case(seed, work=20_000, types=[dtype.name])
        out = reference.attention(**case)
        grad_out = np.random.default_rng(seed).standard_normal(out.shape).astype(dtype)
        yardstick = _bounds.GradientYardstick(grad_out, **case)
        numpy = reference.attention_backward(grad_out, **case, bias_grad=True, dtype=yardstick.arithmetic)
        message = f"seed {seed}: {cases.describe(case)}"
        for kappas in yardstick.kappas(numpy):
            assert kappas is None or _bounds.largest_kappa(kappas) <= 2, message
        for name, x in yardstick.expected._asdict().items():
            if x is not None:
                with np.errstate(over="ignore"):
                    stored = x.astype(dtype)
                    wrong = (x + 9 * getattr(yardstick.units, name)).astype(yardstick.arithmetic)
                for found, least, most in ((stored, 0, 1), (wrong, 8, np.inf)):
                    kappas = getattr(yardstick.kappas(yardstick.expected._replace(**{name: found})), name)
                    assert np.all((least <= kappas) & (kappas <= most)), (message, name)
