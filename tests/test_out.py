"""`out` is written and returned, and nothing beside it; what overlaps is told from what only lies close."""

import numpy as np
import pytest
from helpers import same_memory, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

import cattn
from cattn import _arguments


def test_out_is_returned():
    out = np.full((2, 4, 5, 3), np.nan, np.float32)
    p, result, _ = _arguments.attention(zeros(2, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 2, 7, 3), out=out)
    assert result is out
    assert same_memory(p.out, out)
    result, lse = cattn.attention(zeros(2, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 2, 7, 3), out=out, return_lse=True)
    assert result is out
    assert not out.any()
    assert lse.shape == (2, 4, 5)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_out_between_other_elements(layout):
    memory = np.full((6, 20, 12, 7), 7, np.float32)
    out = memory[4::-2, 1::3, ::-3, 1::2]
    random = np.random.default_rng(1)
    query, key, value = (random.standard_normal((3, 7, 4, size), np.float32) for size in (8, 8, 3))
    expected = cattn.attention(query, key, value, layout=layout)
    result = cattn.attention(query, key, value, layout=layout, out=out)
    assert result is out
    assert np.array_equal(out, expected)
    out[...] = 7
    assert (memory == 7).all()


def test_out_beside_an_input():
    memory = np.random.default_rng(2).standard_normal((2, 3, 2, 5, 8), np.float32)
    query, out = memory[:, :, 0], memory[:, :, 1]
    key = query.copy()
    expected = cattn.attention(query, key, key)
    cattn.attention(query, key, key, out=out)
    assert np.array_equal(out, expected)
    assert np.array_equal(query, key)
    # one column of the output beside each column of the query
    memory = np.random.default_rng(3).standard_normal((2, 3, 5, 8, 2), np.float32)
    query, out = memory[..., 0], memory[..., 1]
    cattn.attention(query.copy(), query, query, out=out)
    assert np.array_equal(out, cattn.attention(query, query, query))


def test_out_may_be_a_subclass(tmp_path):
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(3, 5, 8))
    query = np.ones((3, 5, 8), np.float32)
    assert cattn.attention(query, query, query, out=out) is out
    assert np.allclose(out, 1)


def test_empty_out():
    out = zeros(0, 4, 5, 3)
    assert cattn.attention(zeros(0, 4, 5, 8), zeros(0, 2, 7, 8), zeros(0, 2, 7, 3), out=out) is out


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-24, 24)), min_size=1, max_size=4),
    st.sampled_from([np.uint8, np.float16, np.float32]),
)
def test_self_overlap_is_exact(axes, dtype):
    shape, strides = zip(*axes, strict=True)
    size = np.dtype(dtype).itemsize
    memory = np.zeros(1024, np.uint8)
    array = np.ndarray(shape, dtype, memory, 512, strides)
    starts = [int(np.dot(index, strides)) for index in np.ndindex(*shape)]
    touched = [start + byte for start in starts for byte in range(size)]
    assert _arguments._overlaps_itself(array, 1000) == (len(set(touched)) < len(touched))


def test_self_overlap_of_interleaved_rows():
    memory = np.zeros(100, np.float32)
    brick = np.lib.stride_tricks.as_strided(memory, (3, 4), (4 * 4, 3 * 4))  # 0 3 6 9, 4 7 10 13, 8 11 14 17
    assert not _arguments._overlaps_itself(brick, 1000)
    brick = np.lib.stride_tricks.as_strided(memory, (4, 4), (4 * 4, 3 * 4))  # and 12 15 18 21
    assert not _arguments._overlaps_itself(brick, 1000)
    brick = np.lib.stride_tricks.as_strided(memory, (4, 5), (4 * 4, 3 * 4))  # 12 twice
    assert _arguments._overlaps_itself(brick, 1000)


def test_interleaved_views_are_told_apart():
    """Every second, sixth or seventh of some axes: NumPy looks at hundreds of pairs of elements before it knows."""
    random = np.random.default_rng(4)
    memory = random.standard_normal((28, 35, 30, 5), np.float32)
    before = memory.copy()
    rows = memory.transpose(3, 0, 1, 2)
    key, out = rows[:, 5::6, :, ::2], rows[:, 1::7, ::2, :]
    query, value = (random.standard_normal(shape, np.float32) for shape in ((5, 4, 18, 15), (5, 4, 35, 30)))
    expected = cattn.attention(query, key, value)
    assert cattn.attention(query, key, value, out=out) is out
    np.testing.assert_array_equal(out, expected)
    out[...] = before.transpose(3, 0, 1, 2)[:, 1::7, ::2, :]
    np.testing.assert_array_equal(memory, before)
