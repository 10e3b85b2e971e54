"""Keys beyond one split give the same bits for any number of threads and any padding, and results as exact as promised.

A split of many rows is a constant number of keys. Whether one thread computes all splits of a row, or each split is a
task and leaves a partial result, must not show.
"""

import cases
import helpers
import numpy as np
import pytest
from helpers import EVERY_TABLE, TWO_TABLES, assert_same_bits, python
from kappa import USUAL, Yardstick

import cattn
from cattn.reference._bounds import KAPPA, LSE_KAPPA

THREADS = (1, 2, 3, 7, 16, 64)
GROUPS = [(1, 1, 1), (4, 1, 1), (8, 1, 3), (32, 1, 1), (10, 2, 3), (1, 1, 70)]  # heads, key heads, rows
SIZES = [(16, 16), (33, 17), (64, 1), (8, 80), (5, 0)]


def modifiers(random, heads, rows, keys):
    """Return some modifiers of a call."""
    given = {"query_offset": int(random.integers(0, keys))}
    if random.random() < 0.4:
        given["causal"] = True
    if random.random() < 0.3:
        given["window"] = tuple(int(random.integers(0, keys)) for _ in range(2))
    if random.random() < 0.3:
        given["sinks"] = random.standard_normal(heads).astype(np.float32)
    if random.random() < 0.3:
        given["mask"] = random.random((rows, keys)) < 0.7
    if random.random() < 0.3:
        given["alibi_slopes"] = random.random(heads).astype(np.float32)
    if random.random() < 0.2:
        given["key_lengths"] = int(random.integers(0, keys + 1))
    return given


def poison(random, case):
    """Put infinities and NaN into some keys and values."""
    for name in ("key", "value"):
        some = random.random(case[name].shape[:-1]) < 0.002
        case[name][some] = random.choice([np.nan, np.inf, -np.inf])


def generated(seed):
    """Return a case of several splits."""
    random = np.random.default_rng(seed)
    heads, key_heads, rows = GROUPS[seed % len(GROUPS)]
    size, value_size = SIZES[int(random.integers(len(SIZES)))]
    dtype = list(cases.TYPES.values())[int(random.integers(4))]
    keys = int(random.choice([2049, 2400, 2401, 4801, 6601]))
    case = helpers.problem(rows, keys, dtype, batch=(), heads=heads, key_heads=key_heads, size=size,
                           value_size=value_size, seed=seed)  # fmt: skip
    if seed % 3 == 0:
        poison(random, case)
    return case | modifiers(random, heads, rows, keys)


def check_generated(seeds):
    """Compare the numbers of threads with each other, and one of them with the reference."""
    for seed in seeds:
        case = generated(seed)
        results = [cattn.attention(**case, return_lse=True, num_threads=threads) for threads in THREADS]
        for result in results[1:]:
            assert_same_bits(result, results[0])
        yardstick = Yardstick(case)
        if np.isfinite(case["key"].astype(float)).all() and np.isfinite(case["value"].astype(float)).all():
            yardstick.check(*results[0])
        else:  # NumPy's own error, which the promise refers to, would be NaN
            assert yardstick.kappa(results[0][0]) <= KAPPA
            assert yardstick.kappa_lse(results[0][1]) <= LSE_KAPPA


@TWO_TABLES
def test_any_number_of_threads(isa):
    python("import test_splits; test_splits.check_generated(range(6))", CATTN_ISA=isa)


@pytest.mark.slow
@EVERY_TABLE
def test_any_number_of_threads_in_more_cases(isa):
    python("import test_splits; test_splits.check_generated(range(6, 40))", CATTN_ISA=isa)


@pytest.mark.parametrize("rows", [1, 5, 17, 70])
@pytest.mark.parametrize("keys", [1, 2000, 2400, 2401, 5000])
@pytest.mark.parametrize("threads", [1, 8])
def test_padding_behind_the_keys(rows, keys, threads):
    """Splits are cut from key 0, and never as a function of the number of keys."""
    case = helpers.problem(rows, keys, batch=(), heads=4, key_heads=1, size=16)
    expected = cattn.attention(**case, return_lse=True, num_threads=threads)
    for padding in (1, 2500, 10_000):
        padded = {name: np.pad(case[name], ((0, 0), (0, padding), (0, 0)), constant_values=np.nan)
                  for name in ("key", "value")}  # fmt: skip
        assert_same_bits(
            cattn.attention(**case | padded, key_lengths=keys, return_lse=True, num_threads=threads), expected
        )


@pytest.mark.parametrize(
    ("rows", "keys", "threads", "sign"),
    [(1, 100_000, 1, 1), (1, 100_000, 1, -1), (20, 100_000, 4, 1), (20, 100_000, 4, -1), (1, 2_000_000, 4, 1)],
)
def test_flat_weights_of_one_sign(rows, keys, threads, sign):
    """Terms that are alike may round the same way each time. Splits are joined with compensation."""
    random = np.random.default_rng(rows)
    query, key = np.zeros((rows, 1), np.float32), random.random((keys, 1), np.float32)
    value = sign * (1 + random.random((keys, 6), np.float32))
    case = {"query": query, "key": key, "value": value}
    assert Yardstick(case).kappa(cattn.attention(**case, num_threads=threads)) <= USUAL


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_packed_sequences(threads):
    """Each sequence is split as if it were alone."""
    lengths, queries = [0, 5000, 10, 2401, 9000, 1], [3, 40, 20, 1, 25, 30]
    key_indptr, query_indptr = np.cumsum([0, *lengths]), np.cumsum([0, *queries])
    query = helpers.normal(query_indptr[-1], 4, 16)
    key, value = helpers.normal(key_indptr[-1], 2, 16, seed=1), helpers.normal(key_indptr[-1], 2, 8, seed=2)
    out, lse = cattn.attention_varlen(query, key, value, query_indptr, key_indptr, return_lse=True, num_threads=threads)
    for i in range(len(lengths)):
        rows, keys = slice(*query_indptr[i : i + 2]), slice(*key_indptr[i : i + 2])
        alone = cattn.attention(query[rows].swapaxes(0, 1), key[keys].swapaxes(0, 1), value[keys].swapaxes(0, 1),
                                return_lse=True, num_threads=1)  # fmt: skip
        assert_same_bits((out[rows].swapaxes(0, 1), lse[:, rows] if lse.shape[0] == 4 else lse[rows].T), alone)


ONE_IN_EACH_SPLIT = [10, 2500, 4990]


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["key", "value"])
def test_what_is_masked_never_leaks(rows, threads, special, name):
    case = helpers.problem(rows, 5000, batch=(), heads=4, key_heads=1, size=16, value_size=5)
    case["mask"] = np.ones(5000, bool)
    case["mask"][ONE_IN_EACH_SPLIT] = False
    expected = cattn.attention(**case, return_lse=True, num_threads=threads)
    case[name][0, ONE_IN_EACH_SPLIT] = special
    assert_same_bits(cattn.attention(**case, return_lse=True, num_threads=threads), expected)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("key", ONE_IN_EACH_SPLIT)
def test_an_attended_infinity_stays_one(rows, threads, key):
    case = helpers.problem(rows, 5000, batch=(), heads=4, key_heads=1, size=16, value_size=5)
    expected = cattn.attention(**case, num_threads=threads)
    case["value"][0, key, 2] = -np.inf
    expected[..., 2] = -np.inf
    assert_same_bits([cattn.attention(**case, num_threads=threads)], [expected])
