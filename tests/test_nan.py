"""What is masked never reaches the output; what is attended always does."""

import cases
import helpers
import kappa
import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits

import cattn
from cattn import reference

SIZE, VALUE_SIZE, KEYS = 7, 5, 75
# Few and many rows that share their keys, alone or as heads of a group.
ROWS = pytest.mark.parametrize(("heads", "rows"), [(1, 1), (2, 3), (1, 30), (3, 20)])
SPECIAL = pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])

PAYLOADS = {
    "float32": [0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFC00000, 0x7F800001, 0x7FBFFFFF, 0x7F80FFFF],
    "float64": [0x7FF8000000000001, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0xFFF8000000000000, 0x7FF0000000000001],
    "float16": [0x7E01, 0x7FFF, 0xFFFF, 0xFE00, 0x7C01],
    "bfloat16": [0x7FC1, 0x7FFF, 0xFFFF, 0xFFC0, 0x7F81],
}


def problem(heads, rows, dtype, keys=KEYS):
    return helpers.problem(rows, keys, dtype, heads=heads, key_heads=1, size=SIZE, value_size=VALUE_SIZE)


def constraints(heads, rows):
    """Modifiers of every kind that masks something, by name."""
    random = np.random.default_rng([heads, rows])
    mask = random.random((2, heads, rows, KEYS)) < 0.5
    mask[..., 0, :] = False
    start = random.integers(0, KEYS, (heads, rows))
    return {
        "mask": {"mask": mask},
        "key mask": {"mask": mask[:, :1, -1:]},
        "bias": {"bias": np.where(mask, 0.5, -np.inf).astype(np.float32)},
        "causal": {"causal": True, "query_offset": "start"},
        "causal end": {"causal": True, "query_offset": "end"},
        "window": {"window": (9, 4), "query_offset": [20, 3]},
        "range": {"key_range": (start, start + 17)},
        "lengths": {"key_lengths": [40, 7], "query_lengths": [rows, rows // 2]},
        "everything": {
            "mask": mask, "causal": True, "query_offset": [60, 30], "window": (50, -1), "key_range": (start // 4, None),
            "key_lengths": [70, 66], "bias": np.ones((KEYS,), np.float32), "softcap": 20.0, "sinks": np.ones(heads),
            "alibi_slopes": np.full(heads, 0.01),
        },
    }  # fmt: skip


def attended(case):
    """(2, heads, rows, KEYS): who attends to whom."""
    return np.broadcast_to(kappa.attended(case), (*case["query"].shape[:-1], case["key"].shape[-2]))


@EVERY_TYPE
@ROWS
@SPECIAL
@pytest.mark.parametrize("name", constraints(1, 1))
def test_keys_and_values_reach_only_the_rows_that_attend_to_them(dtype, heads, rows, special, name):
    """Poison in a third of the keys: rows that attend to none of them keep their bits, whoever else does."""
    case = problem(heads, rows, dtype) | constraints(heads, rows)[name]
    clean, clean_lse = cattn.attention(**case, return_lse=True)
    allowed = attended(case)
    for poisoned in (np.arange(KEYS) % 3 == 1, np.arange(KEYS) >= KEYS - 12, np.arange(KEYS) == 4):
        reached = (allowed & poisoned).any(axis=-1)
        bad = case | {"key": case["key"].copy(), "value": case["value"].copy()}
        bad["key"][..., poisoned, :] = special
        bad["value"][..., poisoned, :] = special
        out, lse = cattn.attention(**bad, return_lse=True)
        assert_same_bits(out, clean, ~reached[..., None])
        assert_same_bits(lse, clean_lse, ~reached)
        if np.isnan(special):
            assert np.all(np.isnan(out[reached])) and np.all(np.isnan(lse[reached]))


@EVERY_TYPE
@ROWS
@SPECIAL
@pytest.mark.parametrize("name", constraints(1, 1))
def test_values_reach_only_their_column(dtype, heads, rows, special, name):
    case = problem(heads, rows, dtype) | constraints(heads, rows)[name]
    clean, clean_lse = cattn.attention(**case, return_lse=True)
    allowed = attended(case)
    for poisoned in (np.arange(KEYS) % 3 == 1, np.arange(KEYS) >= KEYS - 12, np.arange(KEYS) == 4):
        reached = np.zeros(clean.shape, bool)
        reached[..., 2] = (allowed & poisoned).any(axis=-1)
        bad = case | {"value": case["value"].copy()}
        bad["value"][..., poisoned, 2] = special
        out, lse = cattn.attention(**bad, return_lse=True)
        assert_same_bits(out, clean, ~reached)
        assert_same_bits(lse, clean_lse)
        np.testing.assert_array_equal(out[reached].astype(float), special)


@EVERY_TYPE
@ROWS
@SPECIAL
def test_masked_bias(dtype, heads, rows, special):
    """A bias may hold anything where the key is masked."""
    for name, modifiers in constraints(heads, rows).items():
        if name == "bias":
            continue
        bias = np.zeros((2, heads, rows, KEYS), np.float32)
        case = problem(heads, rows, dtype) | modifiers | {"bias": bias}
        clean = cattn.attention(**case)
        bad = case | {"bias": np.where(attended(case), bias, special).astype(np.float32)}
        assert_same_bits(cattn.attention(**bad), clean)


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("slope", [np.nan, np.inf, -np.inf, -3e38])
def test_a_bias_masks_whatever_alibi_adds(dtype, heads, rows, slope):
    case = problem(heads, rows, dtype) | {"alibi_slopes": np.full(heads, slope), "query_offset": "end"}
    bias = np.zeros((rows, KEYS))
    bias[::2] = -np.inf
    out, lse = cattn.attention(**case, bias=bias, return_lse=True)
    assert np.all(out[..., ::2, :] == 0) and np.all(lse[..., ::2] == -np.inf)


@EVERY_TYPE
@ROWS
@SPECIAL
def test_padding_of_queries(dtype, heads, rows, special):
    case = problem(heads, rows, dtype) | {"query_lengths": [rows // 2, rows], "causal": True, "query_offset": "end"}
    clean = cattn.attention(**case)
    bad = case | {"query": case["query"].copy()}
    bad["query"][0, :, rows // 2 :] = special
    assert_same_bits(cattn.attention(**bad), clean)
    assert np.all(clean[0, :, rows // 2 :] == 0)


@EVERY_TYPE
def test_a_row_that_attends_to_nothing_stays_zero(dtype):
    case = {name: np.full_like(x, np.nan) for name, x in problem(2, 20, dtype).items()}
    for nothing in ({"mask": np.zeros((20, KEYS), bool)}, {"bias": np.full(KEYS, -np.inf)}, {"key_lengths": 0},
                    {"causal": True, "query_offset": -20}):  # fmt: skip
        out, lse = cattn.attention(**case, **nothing, return_lse=True)
        assert np.all(out == 0) and np.all(lse == -np.inf)


@EVERY_TYPE
@pytest.mark.parametrize("length", range(1, 71))
def test_an_attended_nan_shows_at_every_length(dtype, length):
    """In the outputs that depend on it, and in no other."""
    random = np.random.default_rng(length)
    for rows in (length, 1, 6):
        case = problem(1, rows, dtype, length)
        clean = cattn.attention(**case)
        i, j, c = random.integers(rows), random.integers(length), random.integers(SIZE)
        for name, at, reached in (
            ("query", (1, 0, i, c), np.s_[1, 0, i]),
            ("key", (1, 0, j, c), np.s_[1, 0]),
            ("key", (1, 0, -1, c), np.s_[1, 0]),
            ("value", (1, 0, j, c % VALUE_SIZE), np.s_[1, 0, :, c % VALUE_SIZE]),
            ("value", (1, 0, -1, c % VALUE_SIZE), np.s_[1, 0, :, c % VALUE_SIZE]),
        ):
            bad = case | {name: case[name].copy()}
            bad[name][at] = np.nan
            out = cattn.attention(**bad)
            expected = np.zeros(out.shape, bool)
            expected[reached] = True
            np.testing.assert_array_equal(np.isnan(out), expected, err_msg=f"{name}, {rows} rows")
            assert_same_bits(out, clean, ~expected)


@EVERY_TYPE
@ROWS
def test_an_attended_nan_in_the_score(dtype, heads, rows):
    case = problem(heads, rows, dtype)
    bias = np.zeros((2, heads, rows, KEYS), np.float32)
    clean = cattn.attention(**case, bias=bias)
    bias[1, 0, rows // 2, 40] = np.nan
    out, lse = cattn.attention(**case, bias=bias, return_lse=True)
    expected = np.zeros(lse.shape, bool)
    expected[1, 0, rows // 2] = True
    np.testing.assert_array_equal(np.isnan(lse), expected)
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(expected[..., None], out.shape))
    assert_same_bits(out, clean, ~expected[..., None])


@pytest.mark.parametrize(("name", "payload"), [(name, x) for name, payloads in PAYLOADS.items() for x in payloads])
@ROWS
def test_any_payload_is_a_nan(heads, rows, name, payload):
    for which in ("query", "key", "value"):
        case = problem(heads, rows, cases.TYPES[name])
        case[which].view(f"u{case[which].itemsize}")[1, 0, -1, -1] = payload
        for modifiers in ({}, {"causal": True, "query_offset": "start"}):
            found, expected = cattn.attention(**case, **modifiers), reference.attention(**case, **modifiers)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), which)


@EVERY_TYPE
@ROWS
@pytest.mark.parametrize("name", ["none", *constraints(1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_attended_infinities_match_the_reference(dtype, heads, rows, name, seed):
    random = np.random.default_rng(seed)
    modifiers = {"none": {}, **constraints(heads, rows)}[name]
    for which in ("query", "key", "value"):
        case = problem(heads, rows, dtype) | modifiers
        for _ in range(3):
            at = tuple(random.integers(n) for n in case[which].shape)
            case[which][at] = random.choice([np.inf, -np.inf])
        out, lse = cattn.attention(**case, return_lse=True)
        expected, expected_lse = reference.attention(**case, return_lse=True)
        tolerance = {"float16": 2e-3, "bfloat16": 1e-2}.get(np.dtype(dtype).name, 1e-5)
        np.testing.assert_allclose(out.astype(float), expected, rtol=tolerance, atol=tolerance, err_msg=which)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5, err_msg=which)


@EVERY_TYPE
@ROWS
@SPECIAL
def test_an_attended_value_counts_even_when_its_weight_underflows(dtype, heads, rows, special):
    case = problem(heads, rows, dtype)
    case["query"][...] = 1
    case["key"][..., 40, :] = -2000
    clean = cattn.attention(**case)
    case["value"][..., 40, 2] = special
    out = cattn.attention(**case)
    np.testing.assert_array_equal(out[..., 2].astype(float), special)
    assert_same_bits(out, clean, np.arange(VALUE_SIZE) != 2)


@pytest.mark.parametrize("rows", [3, 20, 100])
def test_masked_keys_without_any_value_column(rows):
    """The lse alone says then whether something masked came through."""
    rng = np.random.default_rng(rows)
    query, key = rng.standard_normal((2, rows, 8)), rng.standard_normal((2, 40, 8))
    mask = rng.random((rows, 40)) < 0.5
    mask[:, 0], mask[:, 7] = True, False
    _, expected = cattn.attention(query, key, key[..., :0], mask=mask, return_lse=True)
    key[:, 7] = np.nan
    _, lse = cattn.attention(query, key, key[..., :0], mask=mask, return_lse=True)
    np.testing.assert_array_equal(lse, expected)


@EVERY_TYPE
@ROWS
def test_attention_weights(dtype, heads, rows):
    case = problem(heads, rows, dtype) | constraints(heads, rows)["mask"]
    del case["value"]
    clean = cattn.attention_weights(**case)
    poisoned = np.arange(KEYS) % 3 == 1
    reached = (case["mask"] & poisoned).any(axis=-1)
    case["key"][..., poisoned, :] = np.nan
    weights = cattn.attention_weights(**case)
    assert_same_bits(weights, clean, ~reached[..., None])
    np.testing.assert_array_equal(np.isnan(weights), reached[..., None] & case["mask"])


@EVERY_TYPE
@ROWS
@SPECIAL
@pytest.mark.parametrize("keys", [97, 257, 4200])
def test_masked_poison_in_every_block_and_chunk(dtype, heads, rows, special, keys):
    random = np.random.default_rng([heads, rows, keys])
    query, key, value = problem(heads, rows, dtype, keys).values()
    mask = random.random((heads, rows, keys)) < 0.5
    poisoned = np.arange(keys) % 3 == 1
    mask[..., poisoned] = False
    clean = cattn.attention(query, key, value, mask=mask, return_lse=True)
    key[..., poisoned, :], value[..., poisoned, :] = special, special
    assert_same_bits(cattn.attention(query, key, value, mask=mask, return_lse=True), clean)


@EVERY_TYPE
@SPECIAL
@pytest.mark.parametrize("stop", [1, 20, 33, 74])
def test_poison_right_behind_the_last_key_that_half_a_tile_sees(dtype, special, stop):
    """And which other halves of it do: the blocks of keys are theirs, too."""
    rows, sees_all = 300, np.arange(300) >= 160
    query, key, value = problem(1, rows, dtype).values()
    stops = np.where(sees_all, KEYS, stop)
    clean, clean_lse = cattn.attention(query, key, value, key_range=(None, stops), return_lse=True)
    value[..., stop, :] = special
    out, lse = cattn.attention(query, key, value, key_range=(None, stops), return_lse=True)
    assert_same_bits(out, clean, ~sees_all[:, None])
    assert_same_bits(lse, clean_lse)
    assert not np.isfinite(out[..., sees_all, :].astype(float)).any()


@EVERY_TYPE
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("special", [np.inf, -np.inf])
@pytest.mark.parametrize(("keys", "at"), [(75, 60), (200, 150), (400, 300), (4200, 3000)])
def test_an_attended_infinity_counts_when_a_later_key_outweighs_it(dtype, rows, special, keys, at):
    query = np.ones((rows, 1), dtype)
    key, value = np.zeros((keys, 1), dtype), np.zeros((keys, 2), dtype)
    key[at], value[3, 0] = 2000, special
    out = cattn.attention(query, key, value, scale=1.0)
    np.testing.assert_array_equal(out.astype(float), np.broadcast_to([special, 0.0], out.shape))


@EVERY_TYPE
def test_a_masked_nan_key_has_weight_zero_in_every_block(dtype):
    query, key = np.ones((20, 4), dtype), np.ones((300, 4), dtype)
    mask = np.arange(300) % 3 != 0
    key[::3], query[5] = np.nan, np.nan
    weights = cattn.attention_weights(query, key, mask=mask)
    np.testing.assert_array_equal(weights[:, ::3], 0)
    assert np.isnan(weights[5, mask]).all()
