"""What the arguments mean, one test a sentence."""

import itertools

import cases
import ml_dtypes
import numpy as np
import pytest
from helpers import normal, problem, same_bits
from kappa import assert_accurate

import cattn
from cattn import reference

TYPES = list(cases.TYPES.values())
MANY_AND_FEW = pytest.mark.parametrize("rows", [2, 20])


def check(**case):
    """The result, after it was found to match the reference."""
    out, lse = cattn.attention(**case, return_lse=True)
    assert_accurate(out, case, lse)
    return out, lse


@pytest.mark.parametrize("ndim", [2, 3, 4, 5, 6])
def test_dimensions(ndim):
    shape = (2, 1, 2, 3, 5, 4)[-ndim:]
    query, key, value = (normal(*shape, seed=seed) for seed in range(3))
    out, lse = check(query=query, key=key, value=value)
    assert out.shape == shape and lse.shape == shape[:-1]


def test_leading_dimensions_broadcast():
    query, key, value = normal(3, 1, 2, 5, 4), normal(4, 2, 6, 4), normal(1, 1, 2, 6, 7)
    out, lse = check(query=query, key=key, value=value)
    assert out.shape == (3, 4, 2, 5, 7) and lse.shape == (3, 4, 2, 5)


def test_value_alone_has_a_batch():
    query, key, value = normal(2, 5, 4), normal(2, 6, 4), normal(3, 2, 6, 4)
    lengths = np.array([6, 4, 0])
    out, lse = check(query=query, key=key, value=value, key_lengths=lengths)
    assert out.shape == (3, 2, 5, 4) and lse.shape == (3, 2, 5)


@MANY_AND_FEW
def test_query_head_reads_its_group(rows):
    query, key = normal(6, rows, 4), normal(2, 3, 4)
    value = np.repeat([[[10.0]], [[20.0]]], 3, axis=1).astype(np.float32)
    out = cattn.attention(query, key, value)
    np.testing.assert_allclose(out[:3], 10, rtol=1e-6)
    np.testing.assert_allclose(out[3:], 20, rtol=1e-6)


@MANY_AND_FEW
def test_layout_blhd(rows):
    case = problem(rows, 7)
    mask = np.random.default_rng(0).random((2, 4, rows, 7)) < 0.7
    start = np.random.default_rng(1).integers(0, 3, (2, 4, rows))
    modifiers = {"mask": mask, "key_range": (start, None), "causal": True, "query_offset": "end"}
    out, lse = cattn.attention(**case, **modifiers, return_lse=True)
    swapped = {name: np.ascontiguousarray(x.swapaxes(1, 2)) for name, x in case.items()}
    out_swapped, lse_swapped = check(**swapped, **modifiers, layout="blhd")
    assert out_swapped.shape == (2, rows, 4, 3) and lse_swapped.shape == (2, rows, 4)
    np.testing.assert_array_equal(out_swapped, out.swapaxes(1, 2))
    np.testing.assert_array_equal(lse_swapped, lse.swapaxes(1, 2))


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_strides(rows, dtype):
    """0 and negative strides, and a last axis that is not contiguous."""
    key = normal(1, 9, 6, dtype=dtype)
    for query, value in itertools.product(
        (normal(4, rows, 6, dtype=dtype)[:, ::-1], np.broadcast_to(normal(1, 1, 6, dtype=dtype), (4, rows, 6))),
        (normal(1, 9, 10, dtype=dtype)[..., ::-2], np.broadcast_to(normal(1, 1, 1, dtype=dtype), (1, 9, 4))),
    ):
        check(query=query, key=key[:, ::-1], value=value)
        check(query=query, key=np.broadcast_to(key, (2, *key.shape)), value=value)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(rows, dtype):
    out, lse = check(**problem(rows, 9, dtype=dtype))
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_lists_and_integers_are_float64():
    out = cattn.attention([[1, 0]], [[1, 0], [0, 1]], [[1], [2]])
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, reference.attention([[1, 0]], [[1, 0], [0, 1]], [[1], [2]]), rtol=1e-14)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_modifiers_of_any_type(dtype):
    bias, slopes, sinks = normal(5, 5, dtype=dtype), normal(4, dtype=dtype), normal(4, dtype=dtype)
    for own in TYPES:
        check(**problem(dtype=own), bias=bias, alibi_slopes=abs(slopes), sinks=sinks)


def test_inputs_may_be_read_only_and_stay_as_they_are():
    case = problem() | {"mask": np.eye(5, dtype=bool), "bias": normal(5, 5), "sinks": normal(4)}
    before = {name: x.copy() for name, x in case.items()}
    for x in case.values():
        x.flags.writeable = False
    cattn.attention(**case)
    for name, x in case.items():
        assert same_bits(x, before[name]), name


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_out_is_filled_and_returned(rows, dtype):
    case = problem(rows, 9, dtype=dtype)
    expected, expected_lse = cattn.attention(**case, return_lse=True)
    wide = np.full((2, 4, rows, 7), 9, dtype)
    for out in (np.full_like(expected, np.nan), np.full_like(expected, 7)[..., ::-1], wide[..., ::3]):
        assert cattn.attention(**case, out=out) is out
        np.testing.assert_array_equal(out, expected)
    assert np.all(wide[..., [1, 2, 4, 5]] == 9)
    result = cattn.attention(**case, out=out, return_lse=True)
    assert result[0] is out
    np.testing.assert_array_equal(result[1], expected_lse)


def test_out_of_empty_rows_is_zero():
    out = np.full((2, 4, 5, 3), np.nan, np.float32)
    cattn.attention(**problem(), key_lengths=0, out=out)
    assert np.all(out == 0)
    out[...] = np.nan
    cattn.attention(**problem(), query_lengths=0, out=out)
    assert np.all(out == 0)


def test_out_may_not_overlap():
    store = np.zeros((2, 2, 5, 12), np.float32)
    query = store[..., ::2]
    query[...] = normal(2, 2, 5, 6)
    key = normal(2, 2, 5, 6, seed=1)
    case = {"query": query, "key": key, "value": key}
    expected = cattn.attention(query.copy(), key, key)
    for bad in (query, query[..., ::-1], key):
        with pytest.raises(ValueError, match="out"):
            cattn.attention(**case, out=bad)
    overlapping_itself = np.lib.stride_tricks.as_strided(store, (2, 2, 5, 6), (240, 120, 4, 4))
    with pytest.raises(ValueError, match="out"):
        cattn.attention(key, key, key, out=overlapping_itself)
    out = store[..., 1::2]
    assert cattn.attention(**case, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_lse_is_the_logarithm_of_the_sum():
    case = problem(1, 1) | {"scale": 1.0}
    _, lse = check(**case)
    score = (case["query"].reshape(2, 2, 2, 6) * case["key"]).sum(-1).reshape(2, 4, 1)
    np.testing.assert_allclose(lse, score, rtol=1e-5)
    _, lse = check(query=np.zeros((1, 4), np.float32), key=normal(50, 4), value=normal(50, 2))
    np.testing.assert_allclose(lse, np.log(50), rtol=1e-6)


def test_out_is_the_same_with_and_without_lse():
    case = problem(20, 30)
    assert same_bits(cattn.attention(**case), cattn.attention(**case, return_lse=True)[0])


@MANY_AND_FEW
@pytest.mark.parametrize("scale", [1, 0.25, 0, -0.5, np.float32(0.5), 1e-30])
def test_scale(rows, scale):
    check(**problem(rows, 9), scale=scale)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_softcap(rows, dtype):
    case = problem(rows, 9, dtype=dtype)
    for softcap in (0.1, 1, 30.0):
        check(**case, scale=10.0, softcap=softcap, bias=normal(9, seed=5))


@MANY_AND_FEW
@pytest.mark.parametrize("shape", [(9,), (-1, 9), (-1, 1), (4, 1, 9), (4, -1, 9), (2, 1, -1, 9), (2, 4, -1, 9), (1, 1)])
def test_bias_and_mask_broadcast(rows, shape):
    """A three-dimensional one is (Hq, Lq, Lk)."""
    shape = tuple(rows if n == -1 else n for n in shape)
    check(**problem(rows, 9), bias=normal(*shape))
    check(**problem(rows, 9), mask=normal(*shape) > -0.5)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bias_of_minus_infinity_masks(rows, dtype):
    mask = np.random.default_rng(0).random((rows, 40)) < 0.5
    mask[0] = False
    bias = np.where(mask, 0, -np.inf).astype(dtype)
    case = problem(rows, 40, dtype=dtype)
    np.testing.assert_array_equal(check(**case, bias=bias)[0][..., 0, :], 0)
    check(**case, bias=bias, scale=3.0)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_lowest_finite_bias_gives_uniform_weights(rows, dtype):
    case = problem(rows, 40, dtype=dtype)
    lowest = np.full((rows, 40), np.finfo(dtype).min)
    out, lse = cattn.attention(**case, bias=lowest, return_lse=True)
    mean = np.repeat(case["value"].mean(axis=-2, keepdims=True), 2, axis=1)
    np.testing.assert_allclose(out, np.broadcast_to(mean, out.shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lse, np.finfo(dtype).min)
    weights = cattn.attention_weights(case["query"], case["key"], bias=lowest)
    np.testing.assert_allclose(weights, 1 / 40, rtol=1e-6)


@MANY_AND_FEW
def test_the_lowest_finite_bias_beside_others_takes_all_weight(rows):
    bias = np.zeros((rows, 40), np.float32)
    bias[:, 7:] = np.finfo(np.float32).min
    bias[-1] = np.finfo(np.float32).min
    case = problem(rows, 40)
    out, _ = check(**case, bias=bias)
    trimmed = case | {"key": case["key"][..., :7, :], "value": case["value"][..., :7, :]}
    expected = reference.attention(**trimmed)
    np.testing.assert_allclose(out[..., :-1, :], expected[..., :-1, :], rtol=1e-4, atol=1e-6)
    check(**case, bias=bias.astype(ml_dtypes.bfloat16))
    check(**problem(rows, 40, dtype=np.float64), bias=bias)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_alibi(rows, dtype):
    case = problem(rows, 30, dtype=dtype)
    for offset in ("start", "end", 11, -40):
        check(**case, alibi_slopes=[0.5, 0.25, 0, -0.125], query_offset=offset)
        check(**case, alibi_slopes=[0.5, 0.25, 0, -0.125], query_offset=offset, causal=True)


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    "shape, keys",
    [((2, 3, 4), 2100), *((shape, 30) for shape in [(2, 3, 4), (3, 4), (2, 1, 4), (1, 1, 4), (1, 4)])],
    ids=str,
)
def test_alibi_slopes_of_each_entry(rows, dtype, shape, keys):
    case = problem(rows, keys, batch=(2, 3), dtype=dtype)
    slopes = np.random.default_rng(len(shape)).uniform(0, 1, shape).astype(dtype)
    out, lse = check(**case, alibi_slopes=slopes, query_offset=[3, -2, 9])
    query, key, _ = case.values()
    weights = cattn.attention_weights(query, key, alibi_slopes=slopes, query_offset=[3, -2, 9])
    for entry in np.ndindex(2, 3):
        alone = {name: x[entry] for name, x in case.items()}
        own = {"alibi_slopes": np.broadcast_to(slopes, (2, 3, 4))[entry], "query_offset": [3, -2, 9][entry[1]]}
        found, found_lse = cattn.attention(**alone, **own, return_lse=True)
        assert same_bits(found, out[entry]) and same_bits(found_lse, lse[entry])
        assert same_bits(cattn.attention_weights(query[entry], key[entry], **own), weights[entry])


def test_alibi_slopes_never_enlarge_the_result():
    for batch, shape in (((1,), (3, 4)), ((), (1, 4)), ((3,), (1, 3, 4)), ((2, 3), (3, 1, 4))):
        with pytest.raises(ValueError, match="alibi_slopes: expected shape"):
            cattn.attention(**problem(batch=batch), alibi_slopes=np.ones(shape))


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sinks(rows, dtype):
    case = problem(rows, 30, dtype=dtype)
    check(**case, sinks=[0.5, -3.0, 40.0, -np.inf])
    check(**case, sinks=[0.5, -3.0, 4.0, -np.inf], causal=True, query_offset="start")


def test_a_sink_of_minus_infinity_is_none():
    case = problem(20, 30)
    np.testing.assert_array_equal(cattn.attention(**case, sinks=np.full(4, -np.inf)), cattn.attention(**case))


@MANY_AND_FEW
@pytest.mark.parametrize("keys", [1, 2, 20, 97, 200])
@pytest.mark.parametrize("offset", ["start", "end", 0, 3, -1, 500, -500, [4, -1]])
def test_causal(rows, keys, offset):
    check(**problem(rows, keys), causal=True, query_offset=offset)


def test_start_is_top_left_and_end_is_bottom_right():
    query, key = np.zeros((2, 1)), np.zeros((5, 1))
    weights = cattn.attention_weights(query, key, causal=True, query_offset="start")
    np.testing.assert_allclose(weights, [[1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0]], rtol=1e-15)
    weights = cattn.attention_weights(query, key, causal=True, query_offset="end")
    np.testing.assert_allclose(weights, [[0.25, 0.25, 0.25, 0.25, 0], [0.2, 0.2, 0.2, 0.2, 0.2]], rtol=1e-15)


@pytest.mark.parametrize("modifier", [{"causal": True}, {"window": (2, 2)}, {"alibi_slopes": [1.0, 1, 1, 1]}])
def test_the_offset_is_required_where_lengths_differ(modifier):
    with pytest.raises(ValueError, match=r"(?s)query_offset.*start.*end"):
        cattn.attention(**problem(4, 5), **modifier)
    check(**problem(5, 5), **modifier)


def test_without_positions_no_offset_is_needed():
    check(**problem(4, 5), key_lengths=3, mask=np.ones((4, 5), bool))


@MANY_AND_FEW
def test_end_uses_the_lengths_of_the_entry(rows):
    case = problem(rows, 30)
    lengths = {"key_lengths": np.array([30, 11]), "query_lengths": np.array([rows - 1, rows])}
    out, _ = check(**case, **lengths, causal=True, query_offset="end")
    number = lengths["key_lengths"] - lengths["query_lengths"]
    assert same_bits(out, cattn.attention(**case, **lengths, causal=True, query_offset=number))


@MANY_AND_FEW
@pytest.mark.parametrize("left", [None, -1, 0, 2, 50])
@pytest.mark.parametrize("right", [None, -1, 0, 3, 70])
def test_window(rows, left, right):
    window = (left, right)
    for offset in ("start", "end", 13, [-3, 90]):
        check(**problem(rows, 100), window=window, query_offset=offset)
        check(**problem(rows, 100), window=window, query_offset=offset, causal=True)


def test_no_limit_on_a_side_of_the_window():
    case = problem(20, 100) | {"query_offset": 5}
    assert same_bits(cattn.attention(**case, window=(None, -1)), cattn.attention(**case))
    assert same_bits(cattn.attention(**case, window=(None, 0)), cattn.attention(**case, causal=True))


@MANY_AND_FEW
def test_key_range(rows):
    random = np.random.default_rng(0)
    for shape in ((2, 4, rows), (4, rows), (4, 1), (rows,), (1,), ()):
        start, stop = random.integers(-3, 80, shape), random.integers(20, 110, shape)
        for pair in ((start, stop), (start, None), (None, stop), (None, None)):
            check(**problem(rows, 100), key_range=pair)
        check(**problem(rows, 100), key_range=(start, stop), causal=True, query_offset="end", key_lengths=[90, 30])


def test_key_range_is_clipped():
    case = problem(20, 50)
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    expected = cattn.attention(**case)
    assert same_bits(cattn.attention(**case, key_range=(np.array(low), np.array(high))), expected)
    assert same_bits(cattn.attention(**case, key_range=(np.array(0), np.array(51))), expected)
    assert np.all(cattn.attention(**case, key_range=(np.array(high), np.array(low))) == 0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_of_any_type(dtype):
    numbers = np.array([3, 7], dtype)
    check(**problem(5, 20), key_lengths=numbers, query_lengths=numbers.clip(None, 5))
    check(**problem(5, 20), query_offset=numbers, causal=True)
    check(**problem(5, 20), key_range=(np.ones((), dtype), np.full((4, 5), 9, dtype)))


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_lengths(rows, dtype):
    case = problem(rows, 30, dtype=dtype)
    for keys, queries in itertools.product((0, 7, 30, [30, 0], [[1], [29]]), (0, 1, rows, [rows, 0])):
        if np.ndim(keys) < 2:
            check(**case, key_lengths=keys, query_lengths=queries)
    nested = problem(rows, 30, batch=(2, 3), dtype=dtype)
    check(**nested, key_lengths=[[1], [29]], query_lengths=[1, 0, rows])


def test_rows_past_the_query_length_are_zero():
    out, lse = cattn.attention(**problem(20, 30), query_lengths=[3, 20], return_lse=True)
    assert np.all(out[0, :, 3:] == 0) and np.all(lse[0, :, 3:] == -np.inf)
    assert np.all(out[1] != 0) and np.all(np.isfinite(lse[1]))


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_constraints_intersect(rows, dtype):
    random = np.random.default_rng(0)
    check(
        **problem(rows, 100, dtype=dtype), causal=True, window=(60, 5), query_offset=[70, 20],
        key_range=(random.integers(0, 50, (4, rows)), None), key_lengths=[100, 40],
        mask=random.random((rows, 100)) < 0.8, bias=normal(4, rows, 100), alibi_slopes=[0.1, 0.2, 0.3, 0.4],
        softcap=5.0, sinks=normal(4),
    )  # fmt: skip


@MANY_AND_FEW
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_row_that_attends_to_nothing(rows, dtype):
    mask = np.ones((rows, 30), bool)
    mask[rows // 2] = False
    case = problem(rows, 30, dtype=dtype) | {"mask": mask}
    out, lse = check(**case)
    assert np.all(out[..., rows // 2, :] == 0) and np.all(lse[..., rows // 2] == -np.inf)
    weights = cattn.attention_weights(case["query"], case["key"], mask=mask)
    assert np.all(weights[..., rows // 2, :] == 0)
    out, lse = check(**case, sinks=[1.0, 2.0, 3.0, -np.inf])
    assert np.all(out[..., rows // 2, :] == 0)
    np.testing.assert_array_equal(lse[..., rows // 2], np.broadcast_to([1, 2, 3, -np.inf], (2, 4)))


@MANY_AND_FEW
def test_no_keys(rows):
    out, lse = check(**problem(rows, 0))
    assert np.all(out == 0) and np.all(lse == -np.inf)
    out, lse = check(**problem(rows, 0), sinks=[1.0, 2.0, 3.0, -np.inf])
    assert np.all(out == 0)
    np.testing.assert_array_equal(lse[..., 0], np.broadcast_to([1, 2, 3, -np.inf], (2, 4)))


@pytest.mark.parametrize("empty", [{"rows": 0}, {"batch": (0,)}, {"batch": (2, 0)}, {"value_size": 0}])
def test_empty_outputs(empty):
    case = problem(**{"rows": 5, **empty})
    out, lse = cattn.attention(**case, return_lse=True)
    expected, expected_lse = reference.attention(**case, return_lse=True)
    assert out.shape == expected.shape and out.size == 0
    assert lse.shape == expected_lse.shape


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_weights_of_a_row_sum_to_one(dtype):
    case = problem(20, 30, dtype=dtype)
    weights = cattn.attention_weights(case["query"], case["key"])
    assert weights.shape == (2, 4, 20, 30) and weights.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert np.all(weights >= 0)


@pytest.mark.parametrize("stage", ["scores", "softcapped", "biased", "weights"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_stages_match_the_reference(stage, dtype, layout):
    case = problem(20, 30, dtype=dtype)
    query, key = case["query"], case["key"]
    if layout == "blhd":
        query, key = query.swapaxes(1, 2), key.swapaxes(1, 2)
    modifiers = {
        "causal": True, "window": (12, 3), "query_offset": [3, 10], "key_range": (np.array(2), None),
        "key_lengths": [30, 20], "query_lengths": [20, 12], "mask": normal(20, 30) > -1, "bias": normal(4, 20, 30),
        "alibi_slopes": [0.5, 0.25, 0.125, 0], "softcap": 2.0, "sinks": normal(4), "layout": layout,
    }  # fmt: skip
    found = cattn.attention_weights(query, key, stage=stage, **modifiers)
    expected = reference.attention_weights(query, key, stage=stage, **modifiers)
    assert found.shape == expected.shape == (2, 4, 20, 30)
    tolerance = 100 * np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    if stage == "weights":
        assert np.all(found[expected == 0] == 0)


def test_weights_of_the_seed_example():
    query = np.array([[0.0], [np.log(2)], [2 * np.log(2)]])
    weights = cattn.attention_weights(query, np.array([[0.0], [1.0], [2.0]]), scale=1)
    np.testing.assert_allclose(weights * [[3], [7], [21]], [[1, 1, 1], [1, 2, 4], [1, 4, 16]], rtol=1e-14)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("keys", [2049, 4100])
def test_modifiers_beyond_one_chunk(dtype, rows, keys):
    """Chunks of keys are merged: each modifier knows where it is."""
    random = np.random.default_rng([rows, keys])
    case = problem(rows, keys, dtype)
    start = random.integers(0, keys, (2, 4, rows))
    for modifiers in (
        {"sinks": [8.0, 7.0, -np.inf, 0.0]},
        {"key_range": (start, start + 1500)},
        {"alibi_slopes": [0.01, 0.001, 0.0, -0.001], "query_offset": "end"},
        {"causal": True, "query_offset": [keys - 3, keys // 2]},
        {"window": (1500, 100), "query_offset": [2100, keys - rows]},
        {"key_lengths": [keys - 1, 2047]},
        {"mask": random.random((rows, keys)) < 0.5, "softcap": 2.0},
        {"bias": np.where(random.random((4, rows, keys)) < 0.5, -np.inf, 1.0).astype(dtype)},
    ):
        check(**case, **modifiers)


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_even_a_subnormal_softcap_is_one(rows, dtype):
    rng = np.random.default_rng(rows)
    query, key, value = (rng.standard_normal((1, length, 8)).astype(dtype) for length in (rows, 9, 9))
    out = cattn.attention(query, key, value, softcap=1e-310)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(axis=1, keepdims=True), out.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("scores, best", [((0.88, 0), 0), ((-0.88, -0.94), 0), ((0.88, 0.94), 1), ((0.88, -0.88), 0)])
def test_scores_next_to_the_largest_number_are_finite(dtype, rows, scores, best):
    """Also where a factor of log2(e) would make them infinite."""
    query = np.ones((rows, 1), dtype)
    key = (np.array(scores) * np.finfo(dtype).max).astype(dtype)[:, None]
    value = np.array([[1.0], [2.0]], dtype)
    out, lse = cattn.attention(query, key, value, scale=1.0, return_lse=True)
    assert np.all(out == value[best]) and np.all(lse == key[best])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("sink", [1e9, -1e9])
def test_lse_of_a_score_that_outweighs_a_large_sink(dtype, rows, sink):
    score = dtype(sink) + dtype(1000)
    ones = np.ones((1, rows, 1), dtype)
    lse = cattn.attention(ones, score * ones[:, :1], ones[:, :1], scale=1.0, sinks=[sink], return_lse=True)[1]
    assert np.all(lse == score)
