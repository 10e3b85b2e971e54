"""Every result is as close to the float64 reference as the bound on κ promises."""

from pathlib import Path

import cases
import numpy as np
import pytest
from kappa import USUAL, Yardstick, assert_accurate, kappa

import cattn
from cattn import reference
from cattn.reference._bounds import KAPPA, PLUS, TIMES_NUMPY, allowed

CHUNK = 50
DEFAULT = range(0, 1000, CHUNK)
MORE = range(1000, 8000, CHUNK)
BFLOAT16 = range(0, 10_000, CHUNK)


@pytest.mark.parametrize(
    "page, promise",
    [
        ("docs/trust.md", r"$$\kappa \le \max({},\; {}\,\kappa_{{\text{{NumPy}}}} + {})$$"),
        (None, r":math:`\kappa` is {}, or {} times that of plain NumPy in the same type plus {} if that is more"),
    ],
)
def test_documents(page, promise):
    """They promise what is tested here."""
    path = Path(__file__).parents[1] / (page or "")
    if not path.exists():
        pytest.skip("not in a checkout")
    text = path.read_text(encoding="utf-8") if page else reference.error_bound.__doc__
    assert promise.format(KAPPA, TIMES_NUMPY, PLUS) in " ".join(text.split())


def check(seed, **options):
    """Fail unless this case is as accurate as is promised. Return whether it is beyond what is usual."""
    case = cases.case(seed, **options)
    try:
        out, lse = cattn.attention(**case, return_lse=True)
        yardstick = Yardstick(case)
        assert out.dtype == yardstick.stored
        beyond = yardstick.check(out, lse)
        if out.dtype.itemsize == 2:  # and before it is rounded
            beyond |= yardstick.check(cattn.attention(**case, out=np.empty(out.shape, np.float32)))
        return beyond
    except Exception as error:
        raise AssertionError(f"seed {seed}: {cases.describe(case)}") from error


def check_chunk(start, **options):
    """The cases of a chunk, of which one at most may be beyond what is usual."""
    assert sum(check(seed, **options) for seed in range(start, start + CHUNK)) <= 1


@pytest.mark.parametrize("start", DEFAULT)
def test_core_modifiers(start):
    check_chunk(start, modifiers=cases.CORE)


@pytest.mark.parametrize("start", DEFAULT)
def test_all_modifiers(start):
    check_chunk(start)


@pytest.mark.parametrize("key_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("start", DEFAULT[::5])
def test_float32_queries_over_half_types(start, key_type):
    check_chunk(start, types=["float32"], key_type=key_type)


@pytest.mark.parametrize("start", BFLOAT16[::40])
def test_bfloat16(start):
    check_chunk(start, types=["bfloat16"])


# A third is for -m slow, and the rest for -m exhaustive.
EACH_OF_MORE = pytest.mark.parametrize(
    "start",
    [pytest.param(start, marks=pytest.mark.exhaustive if n % 3 else pytest.mark.slow) for n, start in enumerate(MORE)],
)


@EACH_OF_MORE
def test_more_core_modifiers(start):
    check_chunk(start, modifiers=cases.CORE)


@EACH_OF_MORE
def test_more_of_all_modifiers(start):
    check_chunk(start)


@pytest.mark.slow
@pytest.mark.parametrize("key_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("start", MORE[::5])
def test_more_float32_queries_over_half_types(start, key_type):
    check_chunk(start, types=["float32"], key_type=key_type)


@pytest.mark.slow
@pytest.mark.parametrize("start", BFLOAT16[::8])
def test_more_bfloat16(start):
    check_chunk(start, types=["bfloat16"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", BFLOAT16)
def test_all_bfloat16(start):
    check_chunk(start, types=["bfloat16"])


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


@pytest.mark.parametrize("rows, size", [(1, 16384), (8, 4096), (8, 8192), (9, 2048), (40, 1024), (40, 16384)])
@pytest.mark.parametrize("dtype", cases.TYPES.values(), ids=cases.TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_long_equal_products(rows, size, dtype, seed):
    """Scores that are sums of thousands of equal terms: in one chain each rounds the same way. In every second case all
    scores are equal, so that NumPy's errors are no larger than its error of one of them."""
    random = np.random.default_rng(seed)
    queries, keys = (1, 1) if seed % 2 else (rows, 20)
    case = {
        "query": np.broadcast_to(random.uniform(0.5, 1, (1, queries, 1)), (1, rows, size)).astype(dtype),
        "key": np.broadcast_to(random.uniform(0.5, 1, (1, keys, 1)), (1, 20, size)).astype(dtype),
        "value": random.uniform(-1, 1, (1, 20, 3)).astype(dtype),
        "scale": 8 / size,
    }
    out, lse = cattn.attention(**case, return_lse=True)
    assert_accurate(out, case, lse)


@pytest.mark.parametrize("start", range(8, 100, 23))
def test_short_rows_of_equal_values(start):
    """A sum of weighted values over a sum of weights: what both round, nothing cancels. All but one head in a hundred
    are within what is usual."""
    beyond = []
    for keys in range(start, start + 23):
        random = np.random.default_rng(keys)
        case = {
            "query": random.standard_normal((32, 16, 2)).astype(np.float32),
            "key": random.standard_normal((32, keys, 2)).astype(np.float32),
            "value": np.repeat(random.uniform(0.5, 1, (32, 1, 1)), keys, axis=1).astype(np.float32),
        }
        out = cattn.attention(**case)
        assert_accurate(out, case)
        yardstick = Yardstick(case)
        heads, heads_of_numpy = (yardstick.each(x).max(axis=(1, 2)) for x in (out, yardstick.numpy[0]))
        beyond += [found > allowed(of_numpy, USUAL) for found, of_numpy in zip(heads, heads_of_numpy, strict=True)]
    assert np.mean(beyond) <= 0.01


def check_alike(seed, name, entries):
    """Each entry of the batch is a case of its own."""
    case = cases.alike_case(seed, cases.TYPES[name], entries)
    yardstick = Yardstick(case)
    out = cattn.attention(**case, out=np.empty(yardstick.out.shape, yardstick.arithmetic))  # before it is rounded
    found, of_numpy = (yardstick.each(x).max(axis=(1, 2, 3)) for x in (out, yardstick.numpy[0]))
    for entry in range(entries):
        assert found[entry] <= allowed(of_numpy[entry]), f"seed {seed}, entry {entry}: κ {found[entry]:.3g}"


@pytest.mark.parametrize("name", cases.TYPES)
def test_sums_of_terms_that_are_alike(name):
    """Over one to four runs of keys and a rest."""
    for seed in range(18, 34):
        check_alike(seed, name, 100)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", cases.TYPES)
@pytest.mark.parametrize("start", range(0, 100, 10))
def test_all_sums_of_terms_that_are_alike(start, name):
    for seed in range(start, start + 10):
        check_alike(seed, name, 1000)


def test_a_lost_weight_beside_a_large_value():
    """The yardstick excuses what lies below the smallest normal number, and nothing else."""
    case = {
        "query": np.ones((1, 1), np.float32),
        "key": np.array([[0], [-89.5]], np.float32),  # a weight of 1.3e-39
        "value": np.array([[1], [1e37]], np.float32),
        "scale": 1.0,
    }
    assert_accurate(np.ones((1, 1), np.float32), case)
    assert_accurate(cattn.attention(**case), case)
    assert kappa(np.full((1, 1), 1.04, np.float32), case) > 1000 < kappa(np.full((1, 1), 0.99, np.float32), case)


def check_flat(seed, dtype):
    case, kind = cases.flat_case(seed, dtype)
    try:
        out, lse = cattn.attention(**case, return_lse=True)
        assert_accurate(out, case, lse)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {kind} values, {cases.describe(case)}") from error


FLAT = range(0, 2000, CHUNK)


@pytest.mark.parametrize("dtype, count", [(np.float32, 40), (np.float64, 15)])  # products of longdouble take long
def test_flat_rows(dtype, count):
    for seed in range(count):
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
