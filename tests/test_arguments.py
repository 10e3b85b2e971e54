"""Legal arguments: what becomes of them, in the Problem that the kernel gets and the arrays that the caller gets.

A Problem holds views: nothing that is as large as an input is copied on the way.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from helpers import same_memory, zeros

import cattn
from cattn import _arguments

FAR = 2**60
TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def problem(query=(2, 4, 5, 8), key=(2, 2, 7, 8), value=(2, 2, 7, 3), **arguments):
    return _arguments.attention(zeros(*query), zeros(*key), zeros(*value), **arguments)[0]


# Shapes and views


def test_plain():
    query, key, value = zeros(2, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 2, 7, 3)
    p, out, lse = _arguments.attention(query, key, value)
    assert same_memory(p.query, query)
    assert same_memory(p.key, key)
    assert same_memory(p.value, value)
    assert same_memory(p.out, out)
    assert out.shape == (2, 4, 5, 3)
    assert out.flags.c_contiguous
    assert lse is None
    assert p.modifiers == (1 / math.sqrt(8), 0.0, -1, -1, *(None,) * 9)
    assert p[4:] == (None, p.modifiers, 0, *(None,) * 6)


def test_lse():
    p, _, lse = _arguments.attention(zeros(2, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 2, 7, 3), return_lse=np.True_)
    assert lse.shape == (2, 4, 5)
    assert same_memory(p.lse, lse)


def test_one_head():
    query, key, value = zeros(5, 8), zeros(7, 8), zeros(7, 3)
    mask, bias, start = np.ones((5, 7), bool), np.ones(7), np.arange(5)
    p, out, lse = _arguments.attention(query, key, value, mask=mask, bias=bias, key_range=(start, 3), return_lse=True)
    assert out.shape == (5, 3)
    assert lse.shape == (5,)
    for ours, theirs in (
        (p.query, query),
        (p.key, key),
        (p.value, value),
        (p.out, out),
        (p.lse, lse),
        (p.modifiers.mask, mask),
    ):
        assert same_memory(ours, theirs[None])
    assert p.modifiers.bias.shape == (1, 5, 7)
    assert p.modifiers.key_start.tolist() == [[0, 1, 2, 3, 4]]
    assert p.modifiers.key_stop.tolist() == [[3] * 5]


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_one_head_has_one_layout(layout):
    p, out, lse = _arguments.attention(zeros(5, 8), zeros(7, 8), zeros(7, 3), layout=layout, return_lse=True)
    assert (out.shape, lse.shape) == ((5, 3), (5,))
    assert (p.query.shape, p.out.shape, p.lse.shape) == ((1, 5, 8), (1, 5, 3), (1, 5))


def test_layout():
    query, key, value = zeros(2, 5, 4, 8), zeros(2, 7, 2, 8), zeros(2, 7, 2, 3)
    mask = np.ones((2, 4, 5, 7), bool)
    p, out, lse = _arguments.attention(query, key, value, mask=mask, layout="blhd", return_lse=True)
    assert out.shape == (2, 5, 4, 3)
    assert lse.shape == (2, 5, 4)
    assert out.flags.c_contiguous
    assert lse.flags.c_contiguous
    for ours, theirs in ((p.query, query), (p.key, key), (p.value, value), (p.out, out)):
        assert same_memory(ours, theirs.transpose(0, 2, 1, 3))
    assert same_memory(p.lse, lse.transpose(0, 2, 1))
    assert same_memory(p.modifiers.mask, mask)


def test_leading_axes_broadcast():
    query, key, value = zeros(3, 1, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 7, 3)
    p, out, _ = _arguments.attention(query, key, value)
    assert out.shape == (3, 2, 4, 5, 3)
    assert p.query.shape == (3, 2, 4, 5, 8)
    assert p.key.shape == (3, 2, 2, 7, 8)
    assert p.value.shape == (3, 2, 2, 7, 3)
    assert p.query.strides[:2] == (query.strides[0], 0)
    assert p.key.strides[:2] == (0, key.strides[0])
    assert p.value.strides[:2] == (0, 0)
    for ours, theirs in ((p.query, query), (p.key, key), (p.value, value)):
        assert np.shares_memory(ours, theirs)


@pytest.mark.parametrize(
    ("query", "key", "value", "out"),
    [
        ((3, 0, 8), (3, 7, 8), (3, 7, 2), (3, 0, 2)),  # no queries
        ((3, 5, 8), (3, 0, 8), (3, 0, 2), (3, 5, 2)),  # no keys
        ((3, 5, 8), (3, 7, 8), (3, 7, 0), (3, 5, 0)),  # no values
        ((0, 5, 8), (0, 7, 8), (0, 7, 2), (0, 5, 2)),  # no heads
        ((0, 3, 5, 8), (1, 3, 7, 8), (3, 7, 2), (0, 3, 5, 2)),  # no batch
        ((0, 8), (7, 8), (7, 2), (0, 2)),
        ((6, 5, 8), (2, 7, 8), (2, 7, 2), (6, 5, 2)),
        ((5, 8), (7, 8), (7, 2), (5, 2)),
    ],
)
def test_shapes(query, key, value, out):
    query, key, value = zeros(*query), zeros(*key), zeros(*value)
    p, result, lse = _arguments.attention(query, key, value, return_lse=True)
    assert result.shape == out
    assert lse.shape == out[:-1]
    assert p.out.shape == (*p.query.shape[:-1], value.shape[-1])
    result = cattn.attention(query, key, value)
    assert result.shape == out
    assert not result.any()


def test_leading_axes_without_number():
    one, two = zeros(*(1,) * 40, 4, 5, 8), zeros(2, *(1,) * 39, 4, 5, 8)
    for query, key in ((one, two), (two, one), (one[(0,) * 40], two), (two, one[(0,) * 40])):
        assert cattn.attention(query, key, key).shape == (2, *(1,) * 39, 4, 5, 8)
        assert cattn.attention_weights(query, key, mask=np.ones((5, 5), bool)).shape == (2, *(1,) * 39, 4, 5, 5)


def test_any_strides():
    memory = zeros(50_000)
    query = memory[:4000].reshape(5, 4, 10, 20)[::-1, ::2, 1::3, ::-2]
    key = np.broadcast_to(memory[:10], (5, 1, 7, 10))
    value = memory[5:75].reshape(10, 7).T
    p = _arguments.attention(query, key, value[None])[0]
    assert same_memory(p.query, query)
    assert same_memory(p.key, key)
    assert p.value.strides == (0, 0, 4, 28)


# Types


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("swapped", [False, True])
def test_types(dtype, swapped):
    dtype = np.dtype(dtype)
    arrays = zeros(2, 5, 8, dtype=dtype), zeros(2, 7, 8, dtype=dtype), zeros(2, 7, 3, dtype=dtype)
    if swapped:
        arrays = [array.view(dtype.newbyteorder("S")) for array in arrays]
    p, out, lse = _arguments.attention(*arrays, return_lse=True)
    assert same_memory(p.query, arrays[0])
    assert p.query.dtype.isnative != swapped
    assert out.dtype == dtype
    assert out.dtype.isnative
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    weights = _arguments.attention_weights(*arrays[:2])[2]
    assert weights.dtype == lse.dtype


def test_byte_orders_mix():
    query = zeros(2, 5, 8)
    swapped = query.view(query.dtype.newbyteorder("S"))
    p, out, _ = _arguments.attention(query, swapped, query)
    assert same_memory(p.key, swapped)
    assert out.dtype == np.float32


def test_misaligned():
    query = np.zeros(2 * 5 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(2, 5, 8)
    p = _arguments.attention(query, query, query, bias=query[0, :, :5])[0]
    assert not query.flags.aligned
    assert same_memory(p.query, query)
    assert p.modifiers.bias.strides == (0, *query.strides[1:])
    assert np.shares_memory(p.modifiers.bias, query)


@pytest.mark.parametrize("dtype", ["int32", "int64", "i", "l", "q", ">i4", ">i8"])
def test_integers_count_as_float64(dtype):
    if np.dtype(dtype).itemsize not in (4, 8):
        pytest.skip("neither int32 nor int64 here")
    integers = np.array([[1, 2]], dtype)
    p, out, _ = _arguments.attention([[1, 2]], integers, np.zeros((1, 1)), bias=integers[:, :1], sinks=integers[0, :1])
    assert p.query.dtype == p.key.dtype == out.dtype == p.modifiers.bias.dtype == p.modifiers.sinks.dtype == np.float64
    assert p.query.tolist() == p.key.tolist() == [[[1.0, 2.0]]]
    result = cattn.attention([[1, 2]], [[3, 4]], [[5, 6]])
    assert result.dtype == np.float64
    assert result.tolist() == [[5.0, 6.0]]


def test_subclasses_and_read_only_inputs():
    query = np.ones((3, 4), np.float32).view(type("Subclass", (np.ndarray,), {}))
    query.flags.writeable = False
    result = cattn.attention(query, query, query)
    assert type(result) is np.ndarray
    assert result.shape == (3, 4)


def test_modifiers_of_plain_arrays():
    """The modifiers of a call whose arrays are plain are those of any other call."""
    given = {"scale": 3, "causal": True, "query_offset": "end", "key_lengths": [7, 3], "sinks": [1, 2, 3, 4]}
    for shapes, batch, headless in (
        (((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3)), (2,), False),
        (((5, 8), (7, 8), (7, 3)), (), True),
    ):
        if headless:
            given |= {"scale": None, "key_lengths": 3, "sinks": [1], "key_range": (2, None), "mask": [True] * 7}
        heads = 1 if headless else 4
        found = _arguments.plain_modifiers(batch, heads, 5, 7, 8, np.dtype(np.float32), headless, given)
        for name, expected in problem(*shapes, **given).modifiers._asdict().items():
            np.testing.assert_array_equal(getattr(found, name), expected)
            assert np.shape(getattr(found, name)) == np.shape(expected)
    for wrong, message in (
        ({"scale": 1e-100}, r"^scale: .*float32"),
        ({"mask": [True] * 6}, r"^mask: .*\(5, 7\) \(query length, key length\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _arguments.plain_modifiers((), 1, 5, 7, 8, np.dtype(np.float32), True, wrong)


# Numbers


@pytest.mark.parametrize("number_type", [float, np.longdouble, np.array, *TYPES])
def test_scale_and_softcap(number_type):
    number = number_type(0.5)
    p = problem(scale=number, softcap=number)
    assert (p.modifiers.scale, p.modifiers.softcap) == (0.5, 0.5)
    assert type(p.modifiers.scale) is type(p.modifiers.softcap) is float


def test_scale_of_any_sign():
    assert problem(scale=-3).modifiers.scale == -3.0
    assert problem(scale=0).modifiers.scale == 0.0


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
@pytest.mark.parametrize("dtype", [*TYPES, np.int32, np.int64])
def test_per_head(name, dtype):
    given = np.array([1, 2, 3, 4]).astype(dtype)[::-1]
    result = getattr(problem(**{name: given}, query_offset=0).modifiers, name)
    assert result.dtype == np.float64
    assert result.flags.c_contiguous
    assert result.tolist() == [4.0, 3.0, 2.0, 1.0]
    result = getattr(problem(**{name: [1.0, 2.0, -np.inf, 0]}, query_offset=0).modifiers, name)
    assert result.tolist() == [1.0, 2.0, -np.inf, 0]


def test_num_threads():
    assert problem().num_threads == 0
    assert problem(num_threads=3).num_threads == 3


# Positions


@pytest.mark.parametrize(
    ("causal", "window", "expected"),
    [
        (False, None, (-1, -1)),
        (True, None, (-1, 0)),
        (np.True_, (3, 5), (3, 0)),
        (False, (3, 5), (3, 5)),
        (False, (None, 5), (-1, 5)),
        (False, [3, -1], (3, -1)),
        (False, (np.int8(3), np.uint64(2**63)), (3, FAR)),
        (False, (2**70, 0), (FAR, 0)),
        (True, (-1, None), (-1, 0)),
        (False, (None, -1), (-1, -1)),
    ],
)
def test_window(causal, window, expected):
    p = problem(causal=causal, window=window, query_offset=0)
    assert (p.modifiers.window_left, p.modifiers.window_right) == expected
    assert type(p.modifiers.window_left) is type(p.modifiers.window_right) is int


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (3, [3, 3]),
        (-3, [-3, -3]),
        (np.int8(3), [3, 3]),
        (np.array(3), [3, 3]),
        ([3], [3, 3]),
        ([3, -4], [3, -4]),
        (np.array([3, 4], np.uint8), [3, 4]),
        (np.array([3, -4], np.dtype(np.int16).newbyteorder("S")), [3, -4]),
        (2**70, [FAR, FAR]),
        (-(2**70), [-FAR, -FAR]),
        (np.array([2**64 - 1, 5], np.uint64), [FAR, 5]),
        (np.array([-(2**63), 2**63 - 1]), [-FAR, FAR]),
        ("end", [2, 2]),
    ],
)
def test_query_offset(offset, expected):
    offsets = problem(query_offset=offset).modifiers.query_offset
    assert offsets.dtype == np.int64
    assert offsets.dtype.isnative
    assert np.broadcast_to(offsets, (2,)).tolist() == expected


def test_query_offset_start_is_none():
    assert problem(query_offset="start", causal=True).modifiers.query_offset is None


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({"key_lengths": [7, 3]}, [2, -2]),
        ({"query_lengths": [5, 1]}, [2, 6]),
        ({"key_lengths": [7, 3], "query_lengths": 1}, [6, 2]),
        ({"key_lengths": 3, "query_lengths": [[4, 3], [0, 1]]}, [[-1, 0], [3, 2]]),
    ],
)
def test_query_offset_end_counts_lengths(lengths, expected):
    batch = np.shape(expected)
    p = problem((*batch, 4, 5, 8), (1, 2, 7, 8), query_offset="end", **lengths)
    assert np.broadcast_to(p.modifiers.query_offset, batch).tolist() == expected
    for name in lengths:
        assert getattr(p.modifiers, name).dtype == np.int64
        assert np.array_equal(np.broadcast_to(getattr(p.modifiers, name), batch), np.broadcast_to(lengths[name], batch))


def test_query_offset_of_equal_lengths_is_0():
    p = problem(key=(2, 2, 5, 8), value=(2, 2, 5, 3), causal=True, key_lengths=[3, 4])
    assert p.modifiers.query_offset is None


@pytest.mark.parametrize("idle", [{}, {"window": (None, -1)}, {"window": (-1, None)}, {"key_lengths": 3}])
def test_query_offset_is_needed_by_positions_only(idle):
    assert problem(**idle).modifiers.query_offset is None


def test_per_entry_without_batch():
    p = problem((4, 5, 8), (2, 7, 8), (2, 7, 3), query_offset=2, key_lengths=np.int32(4), query_lengths=np.array(3))
    assert [p.modifiers.query_offset, p.modifiers.key_lengths, p.modifiers.query_lengths] == [2, 4, 3]
    assert p.modifiers.query_offset.shape == p.modifiers.key_lengths.shape == p.modifiers.query_lengths.shape == ()


def test_key_range():
    start, stop = np.array([[-5], [0], [7], [2**40]]), np.array([0, 1, 7, 8, 2**64 - 1], np.uint64)
    p = problem(key_range=(start, stop))
    assert p.modifiers.key_start.shape == p.modifiers.key_stop.shape == (2, 4, 5)
    assert p.modifiers.key_start[1, :, 2].tolist() == [0, 0, 7, 7]
    assert p.modifiers.key_stop[1, 3].tolist() == [0, 1, 7, 7, 7]
    assert p.modifiers.key_start.dtype == p.modifiers.key_stop.dtype == np.int64
    p = problem(key_range=[None, 2**70])
    assert p.modifiers.key_start is None
    assert (p.modifiers.key_stop == 7).all()


# Scores


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (4, 5, 7), (5, 7), (7,), (), (1, 1, 1, 7), (2, 1, 5, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_scores_broadcast(shape, name):
    given = np.zeros(shape, bool if name == "mask" else np.float16)
    result = getattr(problem(**{name: given}).modifiers, name)
    assert result.shape == (2, 4, 5, 7)
    assert result.dtype == given.dtype
    assert np.shares_memory(result, given)
    assert result.strides == np.broadcast_to(given, (2, 4, 5, 7)).strides


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("input_dtype", TYPES)
def test_bias_has_a_type_of_its_own(dtype, input_dtype):
    query = zeros(2, 5, 8, dtype=input_dtype)
    bias = zeros(2, 5, 5, dtype=dtype)
    assert same_memory(_arguments.attention(query, query, query, bias=bias)[0].modifiers.bias, bias)


def test_lists():
    p = problem((1, 2, 8), (1, 3, 8), (1, 3, 1), mask=[[True, False, True]], bias=[[1], [2]])
    assert p.modifiers.mask.tolist() == [[[True, False, True]] * 2]
    assert p.modifiers.bias.dtype == np.float64
    assert p.modifiers.bias.tolist() == [[[1.0] * 3, [2.0] * 3]]


# attention_weights


@pytest.mark.parametrize("stage", ["scores", "softcapped", "biased", "weights"])
def test_weights(stage):
    p, checked, out = _arguments.attention_weights(zeros(3, 1, 4, 5, 8), zeros(2, 2, 7, 8), stage=stage)
    assert checked == stage
    assert out.shape == (3, 2, 4, 5, 7)
    assert same_memory(p.out, out)
    assert p.value is None
    assert p.lse is None


def test_weights_keep_their_layout():
    p, _, out = _arguments.attention_weights(zeros(2, 5, 4, 8), zeros(2, 7, 2, 8), layout="blhd", sinks=[0] * 4)
    assert p.query.shape == (2, 4, 5, 8)
    assert out.shape == p.out.shape == (2, 4, 5, 7)
    assert p.modifiers.sinks.tolist() == [0.0] * 4


def test_weights_of_one_head():
    p, _, out = _arguments.attention_weights(zeros(5, 8), zeros(7, 8), mask=np.ones((5, 7), bool))
    assert out.shape == (5, 7)
    assert same_memory(p.out, out[None])
    assert p.modifiers.mask.shape == (1, 5, 7)


# attention_varlen


def varlen(query_indptr, key_indptr, **arguments):
    inputs = zeros(6, 4, 8), zeros(9, 2, 8), zeros(9, 2, 3)
    return _arguments.attention_varlen(*inputs, query_indptr, key_indptr, **arguments)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint64, np.dtype(np.int32).newbyteorder("S")])
def test_varlen(dtype):
    query, key, value = zeros(6, 4, 8), zeros(9, 2, 8), zeros(9, 2, 3)
    query_indptr, key_indptr = np.array([0, 2, 2, 6], dtype), np.array([9, 9, 2, 0], dtype)[::-1]
    p, out, lse = _arguments.attention_varlen(query, key, value, query_indptr, key_indptr, return_lse=True)
    assert out.shape == (6, 4, 3)
    assert lse.shape == (6, 4)
    assert same_memory(p.out, out.swapaxes(0, 1))
    assert same_memory(p.lse, lse.T)
    for ours, theirs in ((p.query, query), (p.key, key), (p.value, value)):
        assert same_memory(ours, theirs.swapaxes(0, 1))
    for indptr, expected in ((p.query_indptr, [0, 2, 2, 6]), (p.key_indptr, [0, 2, 9, 9])):
        assert indptr.dtype == np.int64
        assert indptr.flags.c_contiguous
        assert indptr.flags.aligned
        assert indptr.tolist() == expected


@pytest.mark.parametrize(
    ("offset", "expected"), [("start", None), ("end", [0, 3]), (1, [1, 1]), ([2], [2, 2]), ([-1, 2**62], [-1, FAR])]
)
def test_varlen_query_offset(offset, expected):
    p = varlen([0, 2, 6], [0, 2, 9], query_offset=offset, causal=True)[0]
    assert p.modifiers.window_right == 0
    offsets = p.modifiers.query_offset
    assert (None if offsets is None else np.broadcast_to(offsets, (2,)).tolist()) == expected


def test_varlen_query_offset_of_equal_lengths_is_0():
    query = zeros(6, 4, 8)
    p = _arguments.attention_varlen(query, query, query, [0, 2, 6], [0, 2, 6], window=(1, 1))[0]
    assert p.modifiers.query_offset is None


def test_varlen_without_sequences():
    p, out, lse = _arguments.attention_varlen(zeros(0, 4, 8), zeros(0, 2, 8), zeros(0, 2, 3), [0], [0], return_lse=True)
    assert p.query.shape == (4, 0, 8)
    assert (out.shape, lse.shape) == ((0, 4, 3), (0, 4))


def test_varlen_out_and_modifiers():
    out = np.zeros((4, 6, 3), np.float32).swapaxes(0, 1)
    p, result, _ = varlen([0, 6], [0, 9], out=out, sinks=[1, 2, 3, 4], softcap=2, scale=3, num_threads=2)
    assert result is out
    assert p.out.flags.c_contiguous
    assert (p.modifiers.sinks.tolist(), p.modifiers.softcap, p.modifiers.scale, p.num_threads) == (
        [1, 2, 3, 4],
        2.0,
        3.0,
        2,
    )
