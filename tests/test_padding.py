"""A padded batch becomes a packed one and back: each element exactly, of any type, wherever it lies in memory."""

import inspect

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, normal, problem, zeros
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cattn

X, LENGTHS = normal(4, 5, 2), [3, 0, 5, 1]
PACKED, INDPTR = normal(9, 2), [0, 3, 3, 8, 9]
DTYPES = hnp.scalar_dtypes() | st.sampled_from([np.dtype(ml_dtypes.bfloat16), np.dtype("u2,f4")])


@st.composite
def batches(draw):
    """Draw a read-only batch of any type and any strides, and the length of each entry."""
    batch, longest = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    shape = (batch, longest, *draw(st.lists(st.integers(0, 3), max_size=2)))
    dtype = draw(DTYPES)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = np.frombuffer(random.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    order = draw(st.permutations(range(x.ndim)))
    x = x.transpose(order).copy().transpose(np.argsort(order))
    x = x[:, ::-1] if draw(st.booleans()) else x
    x.flags.writeable = False
    return x, np.array(draw(st.lists(st.integers(0, longest), min_size=batch, max_size=batch)), int)


@given(batches(), st.integers(0, 2))
def test_round_trip(case, more):
    x, lengths = case
    packed, indptr = cattn.unpad(x, lengths)
    assert (packed.dtype, packed.shape[1:]) == (x.dtype, x.shape[2:])
    assert packed.flags.c_contiguous and packed.flags.writeable and not np.shares_memory(packed, x)
    assert indptr.dtype == np.int64 and indptr.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    tokens = [x[n, m] for n, length in enumerate(lengths) for m in range(length)]
    assert [row.tobytes() for row in packed] == [token.tobytes() for token in tokens]

    length = max(lengths, default=0)
    expected = np.zeros((len(x), length + more, *x.shape[2:]), x.dtype)
    for n, own in enumerate(lengths):
        expected[n, :own] = x[n, :own]
    packed = np.lib.stride_tricks.as_strided(np.repeat(packed, 2, axis=0)[::2], writeable=False)
    for padded in [cattn.pad(packed, indptr, length + more), *([] if more else [cattn.pad(packed, indptr)])]:
        assert (padded.dtype, padded.shape, padded.tobytes()) == (x.dtype, expected.shape, expected.tobytes())
        assert padded.flags.c_contiguous and padded.flags.writeable


@pytest.mark.parametrize("texts", [["a", "bc", "d", "e"], [b"a", b"bc", b"d", b"e"], [[1], "b", None, 0.5]], ids=str)
def test_strings_and_objects(texts):
    x = np.array([*texts, None], object)[:4] if None in texts else np.array(texts)
    packed, indptr = cattn.unpad(x.reshape(2, 2), [1, 2])
    assert packed.dtype == x.dtype and packed.tolist() == [x[0], x[2], x[3]]
    assert cattn.pad(packed, indptr).tolist() == [[x[0], np.zeros(1, x.dtype)[0]], [x[2], x[3]]]


def test_lists_and_what_else_numpy_reads():
    packed, indptr = cattn.unpad([[1, 2], [3, 4]], (np.int32(1), 2))
    assert packed.tolist() == [1, 3, 4] and indptr.tolist() == [0, 1, 3]
    assert cattn.pad((1, 3, 4), indptr.astype(np.uint8), np.int16(3)).tolist() == [[1, 0, 0], [3, 4, 0]]
    packed, indptr = cattn.unpad(np.zeros((0, 3, 2)), [])
    assert packed.shape == (0, 2) and indptr.tolist() == [0]
    assert cattn.pad(packed, indptr).shape == (0, 0, 2)


def test_what_is_padding_never_shows():
    x = normal(3, 4, 2)
    x[[0, 1], [3, 1]] = np.nan, np.inf
    packed, indptr = cattn.unpad(x, [3, 1, 4])
    assert np.isfinite(packed).all() and np.isfinite(cattn.pad(packed, indptr)).all()


def test_attention_without_padding_gives_the_same_bits():
    """`attention` with key_lengths, where there is a token, is `attention_varlen` between unpad and pad."""
    lengths = np.array([7, 0, 20, 5])  # more than 8 rows a key head, as in the padded call: the same strategy
    padded = [x.swapaxes(1, 2) for x in problem(20, 20, batch=(4,)).values()]
    expected = cattn.attention(*padded, layout="blhd", query_lengths=lengths, key_lengths=lengths)
    (query, indptr), (key, _), (value, _) = (cattn.unpad(x, lengths) for x in padded)
    out = cattn.attention_varlen(query, key, value, indptr, indptr)
    assert_same_bits(cattn.pad(out, indptr, 20), expected)


UNPAD = [
    ("x: expected an array, got None", TypeError, {"x": None}),
    ("x: expected an array, got a masked array", TypeError, {"x": np.ma.array(X)}),
    ("x: expected axes (batch, length, ...), got shape (4,)", ValueError, {"x": zeros(4)}),
    ("lengths: expected an array, got None", TypeError, {"lengths": None}),
    ("lengths: expected integers, got float64", TypeError, {"lengths": [3.0, 0.0, 5.0, 1.0]}),
    ("lengths: expected integers, got bool", TypeError, {"lengths": np.ones(4, bool)}),
    ("lengths: expected shape (4,), one length for each sequence of x, got ()", ValueError, {"lengths": 3}),
    ("lengths: expected shape (4,), one length for each sequence of x, got (1,)", ValueError, {"lengths": [3]}),
    ("lengths: expected shape (4,), one length for each sequence of x, got (4, 5); for a mask of what is a token, pass "
     "its sum(axis=1)", ValueError, {"lengths": np.ones((4, 5), bool)}),
    ("lengths: expected 0 to 5, the length of x, got 6", ValueError, {"lengths": [3, 0, 6, 1]}),
    ("lengths: expected 0 to 5, the length of x, got -1", ValueError, {"lengths": [3, -1, 5, 1]}),
    ("lengths: expected 0 to 5, the length of x, got 18446744073709551615", ValueError,
     {"lengths": np.array([3, 0, 5, 2**64 - 1], np.uint64)}),
]  # fmt: skip
LENGTH = "length: expected None or an integer of 5 or more, the length of the longest sequence, got "
PAD = [
    ("packed: expected an array, got None", TypeError, {"packed": None}),
    ("packed: expected axes (total length, ...), got a scalar", ValueError, {"packed": 3.0}),
    ("packed: expected at most 63 axes, because the batch takes one more, got 64", ValueError,
     {"packed": np.zeros((9, *[1] * 63))}),
    ("indptr: expected an array, got None", TypeError, {"indptr": None}),
    ("indptr: expected integers, got float64", TypeError, {"indptr": [0.0, 9.0]}),
    ("indptr: expected shape (sequences + 1,), got (0,)", ValueError, {"indptr": np.zeros(0, int)}),
    ("indptr: expected to begin with 0, got 1", ValueError, {"indptr": [1, 9]}),
    ("indptr: expected ascending values, got 5 before 3 (entry 2)", ValueError, {"indptr": [0, 5, 3, 9]}),
    ("indptr: expected to end with 9, the total length of packed, got 8", ValueError, {"indptr": [0, 3, 8]}),
    (f"{LENGTH}4", ValueError, {"length": 4}),
    (f"{LENGTH}-1", ValueError, {"length": -1}),
    (f"{LENGTH}5.0", TypeError, {"length": 5.0}),
    (f"{LENGTH}True", TypeError, {"length": True}),
    (f"{LENGTH}'5'", TypeError, {"length": "5"}),
    ("length: cannot allocate 4 sequences of 4611686018427387904 rows of shape (2,) and type float32", MemoryError,
     {"length": 2**62}),
    ("length: cannot allocate 4 sequences of 1180591620717411303424 rows", MemoryError, {"length": 2**70}),
    ("length: cannot allocate 4 sequences of a very long int rows", MemoryError, {"length": 10**5000}),
]  # fmt: skip


@pytest.mark.parametrize(
    "function, arguments, message, kind, wrong",
    [(cattn.unpad, {"x": X, "lengths": LENGTHS}, *case) for case in UNPAD]
    + [(cattn.pad, {"packed": PACKED, "indptr": INDPTR}, *case) for case in PAD],
    ids=[f"{name} {case[0]}"[:70] for name, cases in (("unpad", UNPAD), ("pad", PAD)) for case in cases],
)
def test_errors(function, arguments, message, kind, wrong):
    function(**arguments)
    with pytest.raises(kind) as caught:
        function(**(arguments | wrong))
    assert type(caught.value) is kind and str(caught.value).startswith(message)


def test_signatures():
    assert str(inspect.signature(cattn.unpad)) == "(x, lengths)"
    assert str(inspect.signature(cattn.pad)) == "(packed, indptr, length=None)"
