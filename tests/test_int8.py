"""int8 keys and values stand for their products with a scale, and nothing else about attention changes."""

import functools

import cases
import numpy as np
import pytest
from c_interface_calls import MISSING, SCALES, SHAPE, TYPE, Call, capsule, check
from helpers import assert_same_bits, normal
from kappa import Yardstick, assert_accurate

import cattn
from cattn import reference

BATCH, KEYS, SIZE, VALUE_SIZE = 2, 150, 19, 21
# Few rows read int8 where it lies, and many rows read blocks that are widened.
ROWS = pytest.mark.parametrize(("heads", "rows"), [(1, 1), (2, 2), (4, 1), (2, 30)])
AXES = {"key": (-1,), "column": (-2,), "neither": (-1, -2)}
BY = pytest.mark.parametrize("by", AXES)


def scale_like(x, by, seed=0):
    shape = [1 if axis - x.ndim in AXES[by] else size for axis, size in enumerate(x.shape)]
    return (10 ** np.random.default_rng(seed).uniform(-4, -1, shape)).astype(np.float32)


def problem(heads, rows, by, keys=KEYS, **options):
    random = np.random.default_rng([heads, rows, keys])
    key = random.integers(-128, 128, (BATCH, 1, keys, SIZE)).astype(np.int8)
    value = random.integers(-128, 128, (BATCH, 1, keys, VALUE_SIZE)).astype(np.int8)
    return {
        "query": normal(BATCH, heads, rows, SIZE), "key": key, "value": value,
        "key_scale": scale_like(key, by), "value_scale": scale_like(value, by, 1),
    } | options  # fmt: skip


def attention(**case):
    return cattn.attention(**case, return_lse=True)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_accuracy(start):
    """The promise of float32 holds for what the integers stand for, whatever the modifiers and the memory."""
    for seed in range(start, start + 50):
        case = cases.with_int8(cases.case(seed, types=("float32", "float16", "bfloat16")), seed)
        try:
            out, lse = attention(**case)
            yardstick = Yardstick(case)
            assert out.dtype == yardstick.stored
            yardstick.check(out, lse)
            yardstick.check(cattn.attention(**case, out=np.empty(out.shape, np.float32)))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {cases.describe(case)}") from error


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 70])
@pytest.mark.parametrize("by", AXES)
def test_many_keys(rows, by):
    """Blocks, chunks and splits have scales of their own keys."""
    for keys in (511, 512, 513, 2049, 4500):
        case = problem(1, rows, by, keys)
        out, lse = attention(**case)
        assert_accurate(out, case, lse)
        assert_same_bits(attention(**case, num_threads=2), (out, lse))


@ROWS
@BY
def test_other_memory(heads, rows, by):
    """The bits depend neither on strides, nor on the batch, nor on the layout, nor on the type of a scale."""
    case = problem(heads, rows, by)
    expected = attention(**case)
    for name in ("key", "value", "key_scale", "value_scale"):
        x = case[name]
        assert_same_bits(attention(**case | {name: np.repeat(x, 2, axis=-1)[..., ::2]}), expected)
        assert_same_bits(attention(**case | {name: np.flip(np.ascontiguousarray(np.flip(x)))}), expected)
    for name in ("key_scale", "value_scale"):
        rounded = case | {name: case[name].astype(np.float16).astype(np.float32)}
        assert_same_bits(attention(**case | {name: case[name].astype(np.float16)}), attention(**rounded))
        assert_same_bits(attention(**case | {name: case[name].astype(np.float64)}), expected)
    for entry in range(BATCH):
        alone = {name: x[entry] for name, x in case.items()}
        assert_same_bits(attention(**alone), [x[entry] for x in expected])
    swapped = {name: x.swapaxes(1, 2) for name, x in case.items()}
    out, lse = attention(**swapped, layout="blhd")
    assert_same_bits((out.swapaxes(1, 2), lse.swapaxes(1, 2)), expected)


@ROWS
@BY
def test_padding_and_packing(heads, rows, by):
    case = problem(heads, rows, by)
    lengths = [40, 117]
    out, lse = attention(**case, key_lengths=lengths)
    packed = {name: case[name].swapaxes(1, 2) for name in case}
    for entry, length in enumerate(lengths):
        part = {name: x[entry] if x.shape[2] == 1 else x[entry, :, :length] for name, x in case.items()}
        part["query"] = case["query"][entry]
        assert_same_bits(attention(**part), (out[entry], lse[entry]))
    if by == "key":
        arrays = {name: np.concatenate([x[0, :40], x[1, :117]]) for name, x in packed.items()}
        arrays["query"] = packed["query"].reshape(-1, heads, SIZE)
        result = cattn.attention_varlen(**arrays, query_indptr=[0, rows, 2 * rows], key_indptr=[0, 40, 157])
        assert_same_bits(result.reshape(BATCH, rows, heads, -1).swapaxes(1, 2), out)


@ROWS
@BY
def test_plain_or_modified(heads, rows, by):
    """Plain arrays go a shorter way than those beside a modifier."""
    case = problem(heads, rows, by)
    assert_same_bits(attention(**case), attention(**case, key_lengths=KEYS))
    assert_same_bits(attention(**case), attention(**case, out=np.empty((BATCH, heads, rows, VALUE_SIZE), np.float32)))


@ROWS
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SCALES)
def test_masked_scales_never_leak(heads, rows, garbage, name):
    """A scale that was never written, behind a length or a mask, reaches no row. An attended NaN shows."""
    case = problem(heads, rows, "key")
    mask = np.random.default_rng(0).random((BATCH, 1, rows, KEYS)) < 0.6
    poisoned = np.arange(KEYS) % 7 == 2
    constraints = [
        ({"key_lengths": [60, 0]}, np.arange(KEYS) >= 60),
        ({"mask": mask & ~poisoned}, poisoned),
        ({"bias": np.where(poisoned, -np.inf, 1).astype(np.float32)}, poisoned),
        ({"mask": mask & ~poisoned, "sinks": np.ones(heads), "softcap": 5.0}, poisoned),
    ]
    for modifiers, keys in constraints:
        expected = attention(**case | modifiers)
        bad = case | modifiers | {name: case[name].copy()}
        bad[name][:, :, keys] = garbage
        assert_same_bits(attention(**bad), expected)
        assert not np.isnan(expected[0]).any()
    shown = case | {name: case[name].copy()}
    shown[name][1, :, 77] = np.nan
    out = cattn.attention(**shown)
    assert np.isnan(out[1]).all() and not np.isnan(out[0]).any()


@ROWS
def test_scales_of_columns_that_are_nan(heads, rows):
    """Such scales show in all rows that attend to something, even beside a 0, and in no others."""
    case = problem(heads, rows, "column")
    case["value"][:, :, :, 3] = 0
    case["value_scale"][..., 3] = np.nan
    out = cattn.attention(**case, query_lengths=[rows, 0])
    assert np.isnan(out[0, ..., 3]).all() and np.isfinite(np.delete(out[0], 3, axis=-1)).all()
    assert (out[1] == 0).all()
    for modifiers in ({}, {"sinks": np.ones(heads)}):
        assert (cattn.attention(**case, key_lengths=0, **modifiers) == 0).all()
        assert (cattn.attention(**case, mask=np.zeros(KEYS, bool), **modifiers) == 0).all()
        assert np.isnan(cattn.attention(**case, **modifiers)[..., 3]).all()
    case["key_scale"][0, ..., 2] = np.nan
    assert np.isnan(cattn.attention(**case)[0]).all() and not np.isnan(cattn.attention(**case)[1, ..., :3]).any()


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@BY
def test_weights(name, by):
    case = problem(2, 7, by)
    query, key = case["query"].astype(cases.TYPES[name]), case["key"]
    wide = key * case["key_scale"].astype(np.float64)
    for stage in ("scores", "weights"):
        found = cattn.attention_weights(query, key, key_scale=case["key_scale"], stage=stage)
        assert found.dtype == np.float32
        expected = reference.attention_weights(query, wide, stage=stage)
        unit = np.abs(query).astype(np.float64) @ np.abs(wide).swapaxes(-1, -2)
        assert np.all(np.abs(found - expected) <= 4 * np.finfo(np.float32).eps * (1 + unit))


def test_values_beyond_one_plan(monkeypatch):
    """The columns of wide values have their own scales."""
    random = np.random.default_rng(5)
    query, key = normal(1, 1, 4), random.integers(-9, 9, (1, 3, 4)).astype(np.int8)
    value = random.integers(-128, 128, (1, 3, 16384 + 40)).astype(np.int8)
    for by in AXES:
        scales = {"key_scale": scale_like(key, by), "value_scale": scale_like(value, by)}
        out = cattn.attention(query, key, value, **scales)
        expected = reference.attention(query, key, value, **scales)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(12))
def test_c_interface(seed):
    case = cases.with_int8(cases.case(seed, types=("float32", "bfloat16")), seed)
    for name, x in case.items():
        if name in (*SCALES, "key", "value") and not x.dtype.isnative:
            case[name] = x.astype(x.dtype.newbyteorder("="))
    check(capsule, case, num_threads=seed % 3)


@pytest.mark.parametrize("shape", [(0, 1), (0, 1, 1), (1, 0, 1)])
def test_no_keys(shape):
    """A scale of no keys is not read, and all rows are zeros."""
    rows = (*shape[:-2], 1) if len(shape) > 2 else (1,)
    query = normal(*rows, SIZE)
    key, value = np.zeros((*shape[:-1], SIZE), np.int8), np.zeros((*shape[:-1], VALUE_SIZE), np.int8)
    if shape[0] == 0 and len(shape) == 3:
        query = normal(0, 1, SIZE)
    case = {"query": query, "key": key, "value": value}
    case |= {name: np.ones(shape, np.float32) for name in SCALES}
    assert (cattn.attention(**case) == 0).all()
    check(capsule, case)


def c_call(**changes):
    return Call(**problem(2, 3, "key") | changes)


def test_errors_in_c():
    def refused(call, argument, reason):
        status, text = capsule(call.arguments)
        names = {"key": 8, "key_scale": 21, "value": 9, "value_scale": 22}
        assert (status >> 8, status & 255) == (names[argument], reason), text
        assert text.startswith(f"{argument}: expected ")
        assert np.isnan(call.arrays["out"]).all()

    for name in SCALES:
        call = c_call()
        del call.arrays[name]
        refused(call, name, MISSING)
        call = c_call()
        call.arrays[name] = np.ones((BATCH, 1, KEYS, 2), np.float32)
        refused(call, name, SHAPE)
        call = c_call()
        call.arrays[name] = np.ones((BATCH, 1, KEYS, 1), np.int64)
        refused(call, name, TYPE)
    wide = problem(2, 3, "key")
    whole = c_call()
    whole.arrays["key_scale"] = np.ones((BATCH, 1, KEYS, SIZE), np.float32)
    refused(whole, "key_scale", SHAPE)
    floats = c_call(key=wide["key"].astype(np.float32), value=wide["value"].astype(np.float32))
    refused(floats, "key_scale", TYPE)
    refused(c_call(value=wide["value"].astype(np.float32)), "value", TYPE)
    refused(c_call(query=wide["query"].astype(np.float64)), "key", TYPE)


INT8 = problem(1, 2, "key")
ERRORS = [
    ({"key_scale": None}, TypeError, "key_scale: expected an array beside key of type int8, got None; write "),
    ({"value_scale": None}, TypeError, "value_scale: expected an array beside value of type int8, got None"),
    ({"key": INT8["key"].astype(np.float32)}, TypeError, "key_scale: expected None beside key of type float32, got "),
    ({"value": INT8["value"].astype(np.float16)}, TypeError, "value_scale: expected None beside value of type float16"),
    ({"key": INT8["key"].astype(np.uint8)}, TypeError, "key: expected type int8 beside key_scale, got uint8"),
    ({"key": INT8["key"].astype(np.int64)}, TypeError, "key: expected type int8 beside key_scale, got int64"),
    (
        {"value": INT8["value"].astype(np.float32), "value_scale": None},
        TypeError, "value: expected type int8 like key, got float32",
    ),
    (
        {"key": INT8["key"].astype(np.float32), "key_scale": None},
        TypeError, "key: expected type int8 like value, got float32",
    ),
    (
        {"query": INT8["query"].astype(np.float64)},
        TypeError, "query: expected type float32, float16 or bfloat16 beside int8 keys, got float64; write ",
    ),
    ({"query": INT8["key"][..., :2, :]}, TypeError, "query: expected type float16, bfloat16, float32 or float64, got "),
    ({"key_scale": np.ones(3)}, ValueError, "key_scale: expected a shape that broadcasts to (2, 1, 150, 19), that of "),
    ({"key_scale": np.ones((KEYS, SIZE))}, ValueError, "key_scale: expected size 1 along the keys (a scale for each "),
    ({"value_scale": np.ones((1, 1, 1, 1, 1))}, ValueError, "value_scale: expected a shape that broadcasts to "),
    ({"value_scale": np.ones((2, 1, 1, 1), np.complex64)}, TypeError, "value_scale: expected type float16, bfloat16, "),
    ({"key_scale": "large"}, TypeError, "key_scale: expected type float16, bfloat16, float32 or float64, got strings"),
]  # fmt: skip


@pytest.mark.parametrize("call", [cattn.attention, functools.partial(cattn.plan)], ids=["attention", "plan"])
@pytest.mark.parametrize(("changes", "error", "message"), ERRORS, ids=[case[2][:60] for case in ERRORS])
def test_errors(call, changes, error, message):
    out = np.full((BATCH, 1, 2, VALUE_SIZE), 7, np.float32)
    with pytest.raises(error) as caught:
        call(**INT8 | {"out": out} | changes)
    assert str(caught.value).startswith(message)
    assert (out == 7).all()


def test_out_may_not_overlap_a_scale():
    case = problem(1, 1, "key")
    scale = case["value_scale"] = np.ones((BATCH, 1, KEYS, 1), np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own, got an array that overlaps value_scale"):
        cattn.attention(**case, out=scale.reshape(-1)[: BATCH * VALUE_SIZE].reshape(BATCH, 1, 1, VALUE_SIZE))


def test_nothing_is_copied():
    """Whatever the number of keys, no more than a block of them exists in float32."""
    for rows in (1, 30):
        assert cattn.plan(**problem(1, rows, "key", 50_000)).workspace_bytes < 50_000 * (SIZE + VALUE_SIZE) // 4


@pytest.mark.parametrize("sigma", [0.01, 0.3, 3])
def test_what_quantising_costs_at_most(sigma):
    """The rounding to int8 changes the output by no more than the worst case in trust.md's footnote."""
    query, key, value = normal(3, 40, 9)
    query, half, scale = sigma * query.astype(np.float64), 0.5 + 2.0**-16, 1 / 3
    (small_key, key_scale), (small_value, value_scale) = (cattn.quantize(x, axis=-1) for x in (key, value))
    out, weights = reference.attention(query, key, value), reference.attention_weights(query, key)
    found = reference.attention(query, small_key, small_value, key_scale=key_scale, value_scale=value_scale)
    e = np.max(scale * np.abs(query).sum(axis=-1, keepdims=True) * half * key_scale.T, axis=-1)
    distance = np.einsum("ij,ijc->ic", weights, np.abs(value - out[:, None]))
    bound = np.max(half * value_scale) + (np.exp(2 * e) - 1)[:, None] * distance
    assert np.all(np.abs(found - out) <= bound)


# KVCache


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cache(dtype, window):
    """A cache of int8 keeps what `quantize` gives for each token, and attends to it as a plain call does."""
    dtype, capacity = cases.TYPES[dtype], 5 if window is None else 0
    cache = cattn.KVCache(2, 2, SIZE, value_size=VALUE_SIZE, dtype="int8", window=window, capacity=capacity)
    tokens = [[], []]
    for step, counts in enumerate([[4, 6], [1, 1], [0, 3], [9, 2], [1, 0], [1, 1]]):
        key, value = (normal(2, 2, 9, size, seed=step).astype(dtype) for size in (SIZE, VALUE_SIZE))
        for n, count in enumerate(counts):
            tokens[n] += [(key[n, :, t : t + 1], value[n, :, t : t + 1]) for t in range(count)]
            key[n, :, count:] = np.nan  # never read
        cache.append(key, value, counts)
        query = normal(2, 4, max(counts), SIZE, seed=step).astype(dtype)
        out = cache.attend(query, counts)
        for n, count in enumerate(counts):
            kept = [np.concatenate(x, axis=1) for x in zip(*tokens[n][cache.starts[n] :], strict=True)]
            (key, key_scale), (value, value_scale) = (cattn.quantize(x, axis=-1) for x in kept)
            shown = cache.key[n], cache.key_scale[n], cache.value[n], cache.value_scale[n]
            expected = key, key_scale, value, value_scale
            assert_same_bits([x[:, : key.shape[1]] for x in shown], expected)
            modifiers = {"causal": True, "query_offset": "end", "key_scale": key_scale, "value_scale": value_scale}
            modifiers["window"] = None if window is None else (window - 1, 0)
            alone = cattn.attention(query[n], key, value, query_lengths=count, **modifiers)
            assert_same_bits(out[n], alone)
    before = [cache.key.copy(), cache.value_scale.copy()]
    with pytest.raises(ValueError, match="value: expected finite numbers, got nan"):
        cache.append(np.ones((2, 2, 1, SIZE)), np.full((2, 2, 1, VALUE_SIZE), np.nan))
    assert_same_bits([cache.key, cache.value_scale], before)
    with pytest.raises(TypeError, match="query: expected type float32, float16 or bfloat16 beside int8 keys, got f"):
        cache.attend(np.ones((2, 4, 1, SIZE)))
    with pytest.raises(TypeError, match="key_scale: expected no such argument, because the cache sets it"):
        cache.attend(query, key_scale=1.0)
    cache.reorder([1, 1])
    assert cache.key_scale.shape[:2] == (2, 2)
    plain = cattn.KVCache(1, 1, 64)
    assert plain.key_scale is None and plain.value_scale is None
    plain, small = (cattn.KVCache(1, 1, 64, capacity=100, dtype=name).nbytes for name in ("float32", "int8"))
    assert small <= plain * (1 / 4 + 1 / 64)


# quantize


def test_quantize_rounds_to_nearest_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5, -127]], np.float32)
    quantised, scale = cattn.quantize(x, axis=-1)
    assert scale == 1 and quantised.tolist() == [[127, 0, 2, 2, 0, -2, 126, -126, -127]]


@pytest.mark.parametrize("name", cases.TYPES)
@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_quantize(name, axis):
    x = normal(3, 4, 33, 16).astype(cases.TYPES[name])
    x[:, 1] = 0
    before = x.copy()
    quantised, scale = cattn.quantize(x, axis=axis)
    assert_same_bits(x, before)
    assert quantised.dtype == np.int8 and scale.dtype == np.float32
    assert scale.shape == tuple(1 if n == axis % 4 else size for n, size in enumerate(x.shape))
    assert np.abs(quantised.astype(int)).max() == 127
    wide = x.astype(np.float64)
    np.testing.assert_allclose(scale, np.abs(wide).max(axis, keepdims=True) / 127, rtol=2.0**-23)
    assert np.all(np.abs(quantised * scale.astype(np.float64) - wide) <= (0.5 + 2.0**-16) * scale)


def test_quantize_numbers_that_are_nearly_none():
    for x in (np.zeros((2, 3)), np.full((2, 3), 1e-39), np.full((2, 3), 1e-300), np.empty((0, 3)), np.empty((2, 0))):
        quantised, scale = cattn.quantize(x, axis=-1)
        assert (quantised == 0).all() and (scale == 0).all() and quantised.shape == x.shape


@pytest.mark.parametrize(
    ("x", "axis", "error", "message"),
    [
        (np.full((2, 2), np.nan), -1, ValueError, "x: expected finite numbers, got nan"),
        (np.array([[1, np.inf]], np.float32), -2, ValueError, "x: expected finite numbers, got inf"),
        (np.array([[1, 2], [1, -np.inf]], np.float16), -1, ValueError, "x: expected finite numbers, got -inf"),
        (np.full((2, 2), -1e300), -1, ValueError, "x: expected numbers up to 4.32e+40, got -1e+300"),
        (np.ones((2, 2), np.int8), -1, TypeError, "x: expected type float16, bfloat16, float32 or float64, got int8"),
        (np.ones((2, 2)), 2, ValueError, "axis: expected an axis of x, which has shape (2, 2), got 2"),
        (np.ones((2, 2)), -3, ValueError, "axis: expected an axis of x, which has shape (2, 2), got -3"),
        (np.ones((2, 2)), None, TypeError, "axis: expected an axis of x, which has shape (2, 2), got None"),
    ],
)
def test_quantize_errors(x, axis, error, message):
    with pytest.raises(error) as caught:
        cattn.quantize(x, axis=axis)
    assert str(caught.value).startswith(message)
