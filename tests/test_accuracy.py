"""Every result is as close to the float64 reference as the bound on κ promises."""

import cases
import numpy as np
import pytest
from kappa import Yardstick, assert_accurate, bound, kappa

import cattn

CHUNK = 50
DEFAULT = range(0, 1500, CHUNK)
SLOW = range(1500, 8000, CHUNK)
BFLOAT16 = range(0, 10_000, CHUNK)


def check(seed, **options):
    case = cases.case(seed, **options)
    try:
        out, lse = cattn.attention(**case, return_lse=True)
        yardstick = Yardstick(case)
        assert out.dtype == yardstick.stored
        yardstick.check(out, lse)
        if out.dtype.itemsize == 2:  # and before it is rounded
            yardstick.check(cattn.attention(**case, out=np.empty(out.shape, np.float32)))
    except Exception as error:
        raise AssertionError(f"seed {seed}: {cases.describe(case)}") from error


@pytest.mark.parametrize("start", DEFAULT)
def test_core_modifiers(start):
    for seed in range(start, start + CHUNK):
        check(seed, modifiers=cases.CORE)


@pytest.mark.parametrize("start", DEFAULT)
def test_all_modifiers(start):
    for seed in range(start, start + CHUNK):
        check(seed)


@pytest.mark.parametrize("key_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("start", DEFAULT[::5])
def test_float32_queries_over_half_types(start, key_type):
    for seed in range(start, start + CHUNK):
        check(seed, types=["float32"], key_type=key_type)


@pytest.mark.parametrize("start", BFLOAT16[::40])
def test_bfloat16(start):
    for seed in range(start, start + CHUNK):
        check(seed, types=["bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("start", SLOW)
def test_more_core_modifiers(start):
    for seed in range(start, start + CHUNK):
        check(seed, modifiers=cases.CORE)


@pytest.mark.slow
@pytest.mark.parametrize("start", SLOW)
def test_more_of_all_modifiers(start):
    for seed in range(start, start + CHUNK):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("key_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("start", SLOW[::5])
def test_more_float32_queries_over_half_types(start, key_type):
    for seed in range(start, start + CHUNK):
        check(seed, types=["float32"], key_type=key_type)


@pytest.mark.slow
@pytest.mark.parametrize("start", BFLOAT16[::8])
def test_more_bfloat16(start):
    for seed in range(start, start + CHUNK):
        check(seed, types=["bfloat16"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", BFLOAT16)
def test_all_bfloat16(start):
    for seed in range(start, start + CHUNK):
        check(seed, types=["bfloat16"])


@pytest.mark.parametrize("name", cases.TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_larger(seed, name):
    """Several tiles and blocks in every direction."""
    check(seed, types=[name], work=3_000_000 if name == "float64" else 20_000_000)


@pytest.mark.parametrize("name", cases.TYPES)
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("equal", [True, False])
def test_long_flat_rows(name, rows, equal):
    """Equal weights over many keys: what plain running sums get wrong."""
    random = np.random.default_rng(rows)
    value = random.uniform(0.5, 1, (1, 1 if equal else 16384, 3))
    case = {
        "query": np.zeros((1, rows, 8), cases.TYPES[name]),
        "key": random.standard_normal((1, 16384, 8)).astype(cases.TYPES[name]),
        "value": np.broadcast_to(value, (1, 16384, 3)).astype(cases.TYPES[name]),
    }
    out, lse = cattn.attention(**case, return_lse=True)
    assert_accurate(out, case, lse)


@pytest.mark.parametrize("rows, size", [(8, 4096), (8, 8192), (40, 1024)])
@pytest.mark.parametrize("seed", range(4))
def test_long_equal_products(rows, size, seed):
    """Scores that are sums of thousands of equal terms: in one chain each rounds the same way."""
    random = np.random.default_rng(seed)
    case = {
        "query": np.repeat(random.uniform(0.5, 1, (1, rows, 1)), size, axis=2).astype(np.float32),
        "key": np.repeat(random.uniform(0.5, 1, (1, 20, 1)), size, axis=2).astype(np.float32),
        "value": random.uniform(-1, 1, (1, 20, 3)).astype(np.float32),
        "scale": 8 / size,
    }
    out, lse = cattn.attention(**case, return_lse=True)
    assert_accurate(out, case, lse)


@pytest.mark.parametrize("start", range(8, 100, 23))
def test_short_rows_of_equal_values(start):
    """A sum of weighted values over a sum of weights: what both round, nothing cancels. The general bound holds for all
    but one head in a hundred, too."""
    beyond = []
    for keys in range(start, start + 23):
        random = np.random.default_rng(keys)
        case = {
            "query": random.standard_normal((32, 16, 2)).astype(np.float32),
            "key": random.standard_normal((32, keys, 2)).astype(np.float32),
            "value": np.repeat(random.uniform(0.5, 1, (32, 1, 1)), keys, axis=1).astype(np.float32),
        }
        out = cattn.attention(**case)
        assert_accurate(out, case, equal_values=True)
        for head in range(32):
            one = {name: array[head : head + 1] for name, array in case.items()}
            beyond.append(kappa(out[head : head + 1], one) > bound(one))
    assert np.mean(beyond) <= 0.01


def check_flat(seed, dtype):
    case, kind = cases.flat_case(seed, dtype)
    try:
        out, lse = cattn.attention(**case, return_lse=True)
        assert_accurate(out, case, lse, equal_values=kind == "equal")
    except Exception as error:
        raise AssertionError(f"seed {seed}: {kind} values, {cases.describe(case)}") from error


FLAT = range(0, 2000, CHUNK)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flat_rows(dtype):
    for seed in range(40):
        check_flat(seed, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", FLAT[::8])
def test_more_flat_rows(start, dtype):
    for seed in range(start, start + CHUNK):
        check_flat(seed, dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", FLAT)
def test_all_flat_rows(start, dtype):
    for seed in range(start, start + CHUNK):
        check_flat(seed, dtype)
