"""The same row gets the same bits whatever surrounds it."""

import functools

import cases
import helpers
import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits

import cattn

ROWS = pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 16, 17, 50, 130])


problem = functools.partial(helpers.problem, batch=(3,), heads=6, key_heads=2, size=20, value_size=13)


def attention(**case):
    return cattn.attention(**case, return_lse=True)


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("modifiers", [{}, {"causal": True, "query_offset": 9}, {"softcap": 3.0}], ids=str)
def test_alone_or_in_a_batch(dtype, rows, modifiers):
    case = problem(rows, 100, dtype)
    out, lse = attention(**case, **modifiers)
    for b in range(3):
        assert_same_bits(attention(**{name: x[b] for name, x in case.items()}, **modifiers), (out[b], lse[b]))
        for h in range(2):
            group = slice(3 * h, 3 * h + 3)
            alone = {"query": case["query"][b, group], "key": case["key"][b, h : h + 1],
                     "value": case["value"][b, h : h + 1]}  # fmt: skip
            assert_same_bits(attention(**alone, **modifiers), (out[b, group], lse[b, group]))


@pytest.mark.parametrize("rows", [20, 40, 77])
def test_a_larger_batch_moves_no_row_to_another_tile(rows):
    """A negative sum that underflows is -0 where its tile begins, and 0 where another row had seen a block before."""

    def attend(batch):
        query, (key, value) = np.ones((batch, 1, rows, 1), np.float32), np.zeros((2, batch, 1, 192, 1), np.float32)
        key[..., 145:147, 0], value[..., 145:147, 0] = -60, -1e-30
        start, stop = np.full(rows, 144), np.full(rows, 147)
        start[0], stop[0] = 0, 3
        return cattn.attention(query, key, value, scale=1.0, key_range=(start, stop), return_lse=True)

    out, lse = attend(1)
    for batch in (17, 40, 100):
        assert_same_bits([part[:1] for part in attend(batch)], (out, lse))


@EVERY_TYPE
@ROWS
def test_broadcast_or_copied(dtype, rows):
    case = problem(rows, 100, dtype)
    case["key"], case["value"] = case["key"][:1], case["value"][:1]
    copied = case | {name: np.repeat(case[name], 3, axis=0) for name in ("key", "value")}
    assert_same_bits(attention(**case), attention(**copied))


def in_another_memory(x):
    """Return the same numbers: reversed, with gaps, transposed, misaligned and, if possible, with swapped bytes."""
    yield np.flip(np.ascontiguousarray(np.flip(x)))
    for axis in range(x.ndim):
        yield np.repeat(x, 3, axis)[(*[slice(None)] * axis, slice(1, None, 3))]
    yield np.ascontiguousarray(x.T).T
    yield np.asfortranarray(x[..., ::-1])[..., ::-1]
    buffer = np.zeros(x.nbytes + 1, np.uint8)[1:]
    misaligned = np.ndarray(x.shape, x.dtype, buffer)
    misaligned[...] = x
    yield misaligned
    if x.dtype.kind == "f":
        yield x.astype(x.dtype.newbyteorder("S"))


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("which", ["query", "key", "value", "mask", "bias"])
def test_any_memory(dtype, rows, which):
    random = np.random.default_rng(0)
    case = problem(rows, 60, dtype)
    case["mask"] = random.random((6, rows, 60)) < 0.8
    case["bias"] = random.standard_normal((6, rows, 60)).astype(dtype)
    expected = attention(**case)
    for x in in_another_memory(case[which]):
        assert_same_bits(attention(**case | {which: x}), expected)


@ROWS
@pytest.mark.parametrize("dtype", [np.float64, np.float16], ids=np.dtype)
@pytest.mark.parametrize("modifiers", [{}, {"window": (40, 3), "query_offset": -5}], ids=str)
def test_bias_of_another_type(dtype, rows, modifiers):
    """It has the bits of the same numbers in the arithmetic type, whichever rows and heads share it."""
    random = np.random.default_rng(rows)
    for shape in [(3, 6, rows, 200), (6, 1, 200), (3, 1, rows, 200), (200,), (rows, 1)]:
        bias = 10 * random.standard_normal(shape)
        bias[random.random(shape) < 0.1] = -np.inf
        if dtype == np.float64:  # finite numbers stay finite
            bias[random.random(shape) < 0.05] = -1e300
        bias = bias.astype(dtype)
        same = np.where(np.isfinite(bias), np.maximum(bias, np.finfo(np.float32).min), bias).astype(np.float32)
        case = problem(rows, 200) | modifiers
        found = attention(**case, bias=bias)
        assert_same_bits(found, attention(**case, bias=np.broadcast_to(same, (3, 6, rows, 200)).copy()))


@EVERY_TYPE
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "modifiers", [{}, {"scale": 0.3}, {"key_lengths": 41}, {"window": (9, 0), "query_offset": 3}], ids=str
)
def test_plain_arrays_or_others(dtype, layout, ndim, modifiers):
    """Plain arrays are read by the compiled function itself, misaligned ones by Python code: both mean the same."""
    case = problem(20, 60, dtype, batch=(2, 3))
    case = {name: np.ascontiguousarray(x[(0,) * (5 - ndim)]) for name, x in case.items()} | modifiers
    if layout == "blhd" and ndim > 2:
        case |= {name: np.swapaxes(case[name], -3, -2).copy() for name in ("query", "key", "value")}
    others = case.copy()
    for name in ("query", "key", "value"):
        buffer = np.zeros(case[name].nbytes + 1, np.uint8)[1:]
        others[name] = np.ndarray(case[name].shape, dtype, buffer)
        others[name][...] = case[name]
    for threads in (None, 2):
        out, lse = cattn.attention(**case, layout=layout, return_lse=True, num_threads=threads)
        assert_same_bits((out, lse), cattn.attention(**others, layout=layout, return_lse=True, num_threads=threads))
        assert (out.shape, lse.shape) == ((*case["query"].shape[:-1], 13), case["query"].shape[:-1])
        given = np.zeros_like(out)
        assert cattn.attention(**case, layout=layout, out=given, num_threads=threads) is given
        assert_same_bits((out, out), (given, cattn.attention(**case, layout=layout)))


@EVERY_TYPE
@ROWS
def test_any_memory_of_the_output(dtype, rows):
    case = problem(rows, 60, dtype)
    expected = attention(**case)
    for out in in_another_memory(np.zeros_like(expected[0])):
        if out.dtype == dtype:
            found = attention(**case, out=out)
            assert found[0] is out
            assert_same_bits(found, expected)


@EVERY_TYPE
@pytest.mark.parametrize("start", range(0, 100, 50))
def test_random_cases_in_any_memory(dtype, start):
    for seed in range(start, start + 50):
        case = cases.case(seed, types=[np.dtype(dtype).name])
        plain = {
            name: np.array(x, x.dtype.newbyteorder("="), order="C") if isinstance(x, np.ndarray) else x
            for name, x in case.items()
        }
        try:
            assert_same_bits(attention(**case), attention(**plain))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {cases.describe(case)}") from error


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("keys", [1, 6, 31, 32, 64, 95, 96, 97, 200])
@pytest.mark.parametrize("causal", [False, True])
def test_padded_keys(dtype, rows, keys, causal):
    """Behind key_lengths or a mask, whatever stands in the padding."""
    case = problem(rows, keys, dtype)
    if causal:
        case |= {"causal": True, "query_offset": keys // 2}
    expected = attention(**case)
    for padding in (1, 5, 70):
        width = [(0, 0), (0, 0), (0, padding), (0, 0)]
        for content in (1e3, np.nan):
            padded = case | {name: np.pad(case[name], width, constant_values=content) for name in ("key", "value")}
            assert_same_bits(attention(**padded, key_lengths=keys), expected)
            assert_same_bits(attention(**padded, key_range=(None, np.array(keys))), expected)
            masked = attention(**padded, mask=np.arange(keys + padding) < keys)
            assert_same_bits(masked, expected)


@EVERY_TYPE
@ROWS
def test_ragged_batch(dtype, rows):
    case = problem(rows, 200, dtype)
    lengths = np.array([200, 97, 3])
    out, lse = attention(**case, key_lengths=lengths)
    for b, length in enumerate(lengths):
        alone = {"query": case["query"][b], "key": case["key"][b, :, :length], "value": case["value"][b, :, :length]}
        assert_same_bits(attention(**alone), (out[b], lse[b]))


@EVERY_TYPE
@ROWS
def test_layouts(dtype, rows):
    case = problem(rows, 100, dtype) | {"causal": True, "query_offset": 30}
    swapped = case | {name: np.ascontiguousarray(case[name].swapaxes(1, 2)) for name in ("query", "key", "value")}
    out, lse = attention(**swapped, layout="blhd")
    assert_same_bits((out.swapaxes(1, 2), lse.swapaxes(1, 2)), attention(**case))


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("keys", [100, 3000])
def test_threads(dtype, rows, keys):
    case = problem(rows, keys, dtype, batch=())
    expected = attention(**case, num_threads=1)
    for number in (2, 3, 8):
        assert_same_bits(attention(**case, num_threads=number), expected)


@EVERY_TYPE
@ROWS
def test_again(dtype, rows):
    case = problem(rows, 100, dtype)
    assert_same_bits(attention(**case), attention(**case))


@EVERY_TYPE
@pytest.mark.parametrize("rows", [3, 20, 70])
@pytest.mark.parametrize("keys", [97, 500, 4100])
@pytest.mark.parametrize("sinks", [None, [0.5, -1.0]])
def test_neighbours_that_see_other_keys(dtype, rows, keys, sinks):
    random = np.random.default_rng([rows, keys])
    query, key, value = problem(rows, keys, dtype, batch=(), heads=2, key_heads=1, value_size=20).values()
    start = random.integers(0, keys, (2, rows))
    stop = start + random.integers(0, keys, (2, rows))
    out, lse = attention(query=query, key=key, value=value, key_range=(start, stop), sinks=sinks)
    for h, i in zip(random.integers(0, 2, 10), random.integers(0, rows, 10), strict=True):
        first, last = random.integers(0, keys, (2, rows)), random.integers(0, keys, (2, rows))
        first[h, i], last[h, i] = start[h, i], stop[h, i]
        other = random.standard_normal(query.shape).astype(dtype)
        other[h, i] = query[h, i]
        found = attention(query=other, key=key, value=value, key_range=(first, last), sinks=sinks)
        assert_same_bits([x[h, i] for x in found], (out[h, i], lse[h, i]))


@EVERY_TYPE
@pytest.mark.parametrize("size", [20, 64, 128])
@pytest.mark.parametrize("start", [1, 23, 24, 25, 47, 48, 50, 71, 95])
def test_a_neighbour_that_sees_earlier_keys(dtype, size, start):
    """Its tile's sums over keys begin earlier, in the middle of a block."""
    case = problem(20, 100, dtype, batch=(), heads=2, key_heads=1, size=size)
    starts = np.zeros((2, 20), int)
    starts[1] = start
    out, lse = attention(**case, key_range=(starts, None))
    case["query"] = case["query"][1:]
    assert_same_bits(attention(**case, key_range=(starts[1:], None)), (out[1:], lse[1:]))


@EVERY_TYPE
@pytest.mark.parametrize("stage", ["scores", "softcapped", "biased", "weights"])
@pytest.mark.parametrize("rows", [1, 9, 130])
def test_weights_keep_their_bits(dtype, stage, rows):
    query, key, _ = problem(rows, 200, dtype).values()
    mask = np.random.default_rng(rows).random((rows, 200)) < 0.7
    options = {"stage": stage, "mask": mask, "softcap": 3.0}
    expected = cattn.attention_weights(query, key, **options)
    for threads in (1, 2, 3, 7):
        assert_same_bits(cattn.attention_weights(query, key, **options, num_threads=threads), expected)
    assert_same_bits(cattn.attention_weights(query[1], key[1], **options), expected[1])
    wide = np.repeat(key, 2, axis=-1)[..., ::2]
    assert_same_bits(cattn.attention_weights(query, wide, **options), expected)
    padded = np.pad(key, [(0, 0), (0, 0), (0, 70), (0, 0)], constant_values=np.nan)
    options["mask"] = np.pad(mask, [(0, 0), (0, 70)])
    found = cattn.attention_weights(query, padded, **options, key_lengths=200)
    assert_same_bits(found[..., :200], expected)
    if stage in ("biased", "weights"):
        assert np.all(found[..., 200:] == (0 if stage == "weights" else -np.inf))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nan_in_another_head_leaves_the_last_bit(dtype):
    """Outputs so small that the remainder of their division is below the smallest normal number."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((heads, 40, 8)).astype(dtype) for heads in (2, 1, 1))
    value *= np.finfo(dtype).smallest_normal * 2.0**20
    alone = cattn.attention(query, key, value)
    query[1] = np.nan
    assert_same_bits(cattn.attention(query, key, value)[0], alone[0])
