"""Attention over parts of the keys, joined, is attention over all of them."""

import itertools

import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits, normal, problem
from kappa import Yardstick

import cattn
from cattn import merge_attention


def parts(case, edges, **modifiers):
    """Outputs and lses over the keys between neighbouring edges."""
    results = []
    for start, stop in itertools.pairwise(edges):
        part = {"key": case["key"][..., start:stop, :], "value": case["value"][..., start:stop, :]}
        results.append(cattn.attention(**case | part, **modifiers, return_lse=True))
    return [out for out, _ in results], [lse for _, lse in results]


@EVERY_TYPE
@pytest.mark.parametrize("edges", [[0, 50], [0, 20, 50], [0, 0, 1, 17, 17, 30, 50], list(range(51))], ids=len)
def test_parts_make_the_whole(dtype, edges):
    case = problem(9, 50, dtype)
    out, lse = merge_attention(*parts(case, edges))
    yardstick = Yardstick(case)
    assert out.dtype == dtype and lse.dtype == yardstick.arithmetic
    if dtype in (np.float32, np.float64):
        assert yardstick.kappa(out) <= 4
        assert yardstick.kappa_lse(lse) <= 4
    else:
        error = np.abs(out.astype(float) - yardstick.out)
        assert np.all(error <= 0.01 * (1 + np.abs(yardstick.out)))


@EVERY_TYPE
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (1, 2, 5), (2, 30, 3)], ids=str)
def test_pieces_change_no_bit(dtype, shape, monkeypatch):
    """Wherever the arrays are cut, and however they lie in memory."""
    outs = [normal(*shape, 10, dtype=dtype, seed=n).swapaxes(0, -1)[::-1].swapaxes(0, -1) for n in range(3)]
    lses = [normal(*shape, seed=n).T[::-1].T if shape else normal(seed=n) for n in range(3)]
    whole = merge_attention(outs, lses)
    for elements in (1, 40, 100):
        monkeypatch.setattr("cattn._merge._PIECE", elements)
        assert_same_bits(merge_attention(outs, lses), whole)


def test_sinks_in_one_part():
    case, sinks = problem(9, 50), np.array([1.0, -np.inf, 0.0, 3.0])
    outputs, lses = parts(case, [0, 20, 50])
    with_sinks, with_sinks_lse = parts(case, [0, 20], sinks=sinks)
    out, lse = merge_attention(with_sinks + outputs[1:], with_sinks_lse + lses[1:])
    expected, expected_lse = cattn.attention(**case, sinks=sinks, return_lse=True)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)


def test_by_hand():
    out, lse = merge_attention([[[1.0]], [[4.0]]], [[np.log(1)], [np.log(2)]])
    np.testing.assert_allclose(out, [[3]], rtol=1e-15)
    np.testing.assert_allclose(lse, [np.log(3)], rtol=1e-15)


def test_empty_parts():
    """A part of lse -inf counts nothing, whatever stands in it; nothing but empty parts is an empty row."""
    outputs = [np.array([[np.nan], [np.inf], [1.0]]), np.array([[2.0], [np.nan], [3.0]])]
    lses = [np.array([-np.inf, -np.inf, 0.0]), np.array([5.0, -np.inf, -np.inf])]
    out, lse = merge_attention(outputs, lses)
    assert out.tolist() == [[2], [0], [1]]
    assert lse.tolist() == [5, -np.inf, 0]


def test_far_apart():
    out, lse = merge_attention([[[1.0]], [[2.0]], [[3.0]]], [[-1e4], [1e4], [-1e300]])
    assert out.tolist() == [[2]] and lse.tolist() == [1e4]


def test_not_finite():
    """As in attention: NaN stays, and an infinity counts even when its weight underflows."""
    out, lse = merge_attention([[[np.inf, np.nan, 1.0]], [[2.0, 2.0, 2.0]]], [[-1e4], [1e4]])
    np.testing.assert_array_equal(out, [[np.inf, np.nan, 2]])
    out, lse = merge_attention([[[1.0]], [[2.0]]], [[np.nan], [0.0]])
    assert np.isnan(out).all() and np.isnan(lse).all()


def test_order_does_not_matter():
    outputs, lses = parts(problem(9, 50), [0, 3, 20, 50])
    out, lse = merge_attention(outputs, lses)
    out_reversed, lse_reversed = merge_attention(outputs[::-1], lses[::-1])
    np.testing.assert_allclose(out, out_reversed, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(lse, lse_reversed, rtol=1e-6)


def test_inputs_stay_as_they_are():
    outputs, lses = parts(problem(9, 50), [0, 3, 20, 50])
    copies = [x.copy() for x in outputs + lses]
    for x in outputs + lses:
        x.flags.writeable = False
    out, lse = merge_attention(outputs, lses)
    for x, copy in zip(outputs + lses, copies, strict=True):
        np.testing.assert_array_equal(x, copy)
        assert not np.shares_memory(out, x) and not np.shares_memory(lse, x)


def test_stacked_arrays_and_other_byte_orders():
    outputs, lses = parts(problem(9, 50), [0, 3, 20, 50])
    expected = merge_attention(outputs, lses)
    stacked = merge_attention(np.stack(outputs).astype(">f4"), np.stack(lses).astype(">f4"))
    for x, y in zip(stacked, expected, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_without_rows():
    out, lse = merge_attention([np.zeros((0, 3)), np.zeros((0, 3))], [np.zeros(0), np.zeros(0)])
    assert out.shape == (0, 3) and lse.shape == (0,)


ONE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "message"),
    [
        ([], [], ValueError, "outputs: expected at least one part"),
        ([ONE], [], ValueError, "lses: expected 1 parts"),
        ([ONE, ONE[:1]], [ONE[:, 0], ONE[:1, 0]], ValueError, r"outputs\[1\]: expected shape \(2, 3\)"),
        ([ONE, ONE], [ONE[:, 0], ONE], ValueError, r"lses\[1\]: expected shape \(2,\)"),
        ([ONE, ONE.astype(float)], [ONE[:, 0]] * 2, TypeError, r"outputs\[1\]: expected type float32 like .*float64"),
        ([ONE.astype(complex)], [ONE[:, 0]], TypeError, r"outputs\[0\].*complex"),
        ([ONE], [ONE[:, 0].astype(object)], TypeError, r"lses\[0\].*object"),
        ([np.ma.masked_array(ONE)], [ONE[:, 0]], TypeError, r"outputs\[0\].*masked array"),
        ([1.0], [1.0], ValueError, r"outputs\[0\].*scalar"),
        (memoryview(ONE), [ONE[:, 0]], TypeError, r"outputs: expected a list of arrays, one a part, got memoryview"),
        ([ONE], memoryview(ONE), TypeError, r"lses: expected a list of arrays, one a part, got memoryview"),
        (3, [ONE[:, 0]], TypeError, r"outputs: expected a list of arrays, one a part, got int"),
        ([ONE, None], [ONE[:, 0]] * 2, TypeError, r"outputs\[1\]: expected an array, got None"),
        ([ONE.astype(np.uint16)], [ONE[:, 0]], TypeError, r"outputs\[0\]: .*uint16; write .*view\(ml_dtypes"),
    ],
)
def test_errors_name_the_argument(outputs, lses, error, message):
    with pytest.raises(error, match=message):
        merge_attention(outputs, lses)
