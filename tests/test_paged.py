"""Keys and values in pages: the bits of the same keys one after the other, and nothing else is read."""

import tracemalloc

import cases
import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits
from kappa import assert_accurate

import cattn
from cattn import reference

PAGE_SIZES = pytest.mark.parametrize("page_size", [1, 3, 16, 17, 64, 256])
# The queries of each sequence, and their keys: few and many rows, one block and several chunks, and nothing at all.
QUERIES, KEYS = [1, 3, 40, 1, 0, 2], [700, 35, 320, 1, 20, 2500]
MODIFIERS = {
    "none": {},
    "causal": {"causal": True, "query_offset": "end"},
    "window": {"window": (50, None), "query_offset": "end"},
    "narrow window": {"causal": True, "window": (5, 2), "query_offset": "end"},
    "window beyond": {"window": (3, 3), "query_offset": 5000},
    "softcap and sinks": {"softcap": 2.0, "sinks": [0.5, 0.0, -np.inf, 2.0]},
    "alibi": {"alibi_slopes": np.arange(24).reshape(6, 4) / 90, "query_offset": "end", "scale": 0.2},
}
UNREAD = 10**9


class Paged:
    """Hold sequences whose keys lie in pages in random order, and the same keys one after the other."""

    def __init__(self, page_size, dtype, key_type=None, *, size=40, value_size=20, queries=QUERIES, keys=KEYS):
        random = np.random.default_rng([page_size, size])
        key_type = dtype if key_type is None else key_type
        self.page_size, self.queries, self.keys = page_size, queries, keys
        counts = [-(-n // page_size) for n in keys]
        pages = sum(counts) + 3
        self.key_cache = random.standard_normal((pages, page_size, 2, size)).astype(key_type)
        self.value_cache = random.standard_normal((pages, page_size, 2, value_size)).astype(key_type)
        self.query = random.standard_normal((sum(queries), 4, size)).astype(dtype)
        self.query_indptr = np.cumsum([0, *queries])
        self.table = np.full((len(keys), max(counts) + 1), UNREAD)
        order = iter(random.permutation(pages))
        for n, count in enumerate(counts):
            self.table[n, :count] = [next(order) for _ in range(count)]

    def in_order(self, cache, n):
        count = -(-self.keys[n] // self.page_size)
        return cache[self.table[n, :count]].reshape(-1, *cache.shape[2:])[: self.keys[n]]

    def call(self, table=None, **options):
        given = self.query, self.key_cache, self.value_cache, self.table if table is None else table, self.keys
        return cattn.attention_paged(*given, query_indptr=self.query_indptr, return_lse=True, **options)

    def alone(self, n, **modifiers):
        """Return the arguments of `attention` for one sequence."""
        case = {"query": self.query[slice(*self.query_indptr[n : n + 2])], "layout": "blhd"}
        case |= {"key": self.in_order(self.key_cache, n), "value": self.in_order(self.value_cache, n)}
        if np.ndim(modifiers.get("alibi_slopes")) == 2:
            modifiers["alibi_slopes"] = modifiers["alibi_slopes"][n]
        return case | modifiers

    def unread(self, modifiers):
        """Return the table with numbers that do not exist wherever a page is wholly before the window."""
        table = self.table.copy()
        offset, left = modifiers.get("query_offset"), modifiers.get("window", (None,))[0]
        for n, (queries, keys) in enumerate(zip(self.queries, self.keys, strict=True)):
            first = (keys - queries if offset == "end" else offset or 0) - left if left is not None else 0
            table[n, : min(max(first, 0), keys) // self.page_size] = -UNREAD
        return table

    def check(self, found, **modifiers):
        out, lse = found
        for n in range(len(self.keys)):
            rows = slice(*self.query_indptr[n : n + 2])
            expected = cattn.attention(**self.alone(n, **modifiers), return_lse=True)
            assert_same_bits((out[rows], lse[rows]), expected)


@EVERY_TYPE
@PAGE_SIZES
@pytest.mark.parametrize("modifiers", MODIFIERS.values(), ids=MODIFIERS)
def test_bits_of_keys_in_order(dtype, page_size, modifiers):
    paged = Paged(page_size, dtype)
    paged.check(paged.call(**modifiers), **modifiers)
    paged.check(paged.call(paged.unread(modifiers), num_threads=3, **modifiers), **modifiers)


@PAGE_SIZES
@pytest.mark.parametrize("key_type", ["float16", "bfloat16"])
def test_halves_beside_float32(page_size, key_type):
    paged = Paged(page_size, np.float32, cases.TYPES[key_type])
    paged.check(paged.call())


SCALES = {
    "of tokens": lambda pages, size, columns: (pages, size, 2, 1),
    "of channels": lambda pages, size, columns: (1, 1, 2, columns),
    "of pages": lambda pages, size, columns: (pages, 1, 1, 1),
    "of slots": lambda pages, size, columns: (size, 1, 1),
    "of all": lambda pages, size, columns: (1, 1, 1, 1),
}


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SCALES)
def test_int8(kind, dtype, page_size):
    random = np.random.default_rng(page_size)
    # Of a single key, the scale would count as one of channels.
    paged = Paged(page_size, cases.TYPES[dtype], queries=[1, 3, 40, 0, 2], keys=[700, 35, 320, 20, 2500])
    scales, shown = {}, {}
    for name in ("key", "value"):
        cache = getattr(paged, name + "_cache")
        setattr(paged, name + "_cache", random.integers(-128, 128, cache.shape).astype(np.int8))
        scale = random.uniform(0.001, 0.02, SCALES[kind](*cache.shape[:2], cache.shape[-1])).astype(np.float32)
        scales[name + "_scale"], shown[name] = scale, np.broadcast_to(scale, (*cache.shape[:3], scale.shape[-1]))
    out, lse = paged.call(**scales)
    varies = max(scales["key_scale"].shape[:-2]) > 1
    for n in range(len(paged.keys)):
        own = {f"{name}_scale": paged.in_order(scale, n) for name, scale in shown.items()}
        if not varies:
            own = {name: scale[:1] for name, scale in own.items()}
        rows = slice(*paged.query_indptr[n : n + 2])
        expected = cattn.attention(**paged.alone(n, **own), return_lse=True)
        assert_same_bits((out[rows], lse[rows]), expected)
    given = paged.query, paged.key_cache, paged.value_cache, paged.table, paged.keys
    wide = reference.attention_paged(*given, query_indptr=paged.query_indptr, **scales)
    assert np.abs(out.astype(np.float64) - wide).max() < (1e-4 if dtype == "float32" else 2e-2)


@EVERY_TYPE
@pytest.mark.parametrize("sizes", [(1, 1), (64, 64), (128, 128), (130, 7), (33, 300)])
def test_sizes_of_heads(dtype, sizes):
    for page_size in (16, 17):
        paged = Paged(page_size, dtype, size=sizes[0], value_size=sizes[1])
        paged.check(paged.call())


@EVERY_TYPE
@pytest.mark.parametrize("page_size", [3, 16])
def test_any_strides(dtype, page_size):
    paged = Paged(page_size, dtype)
    key, value = paged.key_cache, paged.value_cache
    expected = paged.call()
    paged.key_cache = np.ascontiguousarray(key.swapaxes(1, 2)).swapaxes(1, 2)  # heads outside
    paged.value_cache = np.ascontiguousarray(value[::-1].T).T[::-1]
    assert_same_bits(paged.call(), expected)
    paged.key_cache = key.astype(key.dtype.newbyteorder("S"))
    paged.value_cache = np.repeat(value, 2, axis=1)[:, ::2]
    assert_same_bits(paged.call(), expected)


def test_scores_without_values():
    paged = Paged(16, np.float32)
    _, expected = paged.call()
    paged.value_cache = paged.value_cache[..., :0]
    out, lse = paged.call()
    assert out.shape == (*paged.query.shape[:2], 0)
    given = paged.query, paged.key_cache, paged.value_cache, paged.table, paged.keys
    wide, wide_lse = reference.attention_paged(*given, query_indptr=paged.query_indptr, return_lse=True)
    assert wide.shape == out.shape
    assert np.allclose(lse, expected, rtol=1e-6) and np.allclose(lse, wide_lse, rtol=1e-6)


def test_tables_of_any_strides():
    paged = Paged(16, np.float32, queries=[1, 2, 12], keys=[40, 48, 33])  # each of which has three pages
    expected = paged.call()
    spread = np.repeat(paged.table, 2, axis=1)
    tables = [np.asfortranarray(paged.table), paged.table[::-1].copy()[::-1], spread[:, ::2], spread.T.copy().T[:, ::2]]
    for table in tables:
        assert_same_bits(paged.call(table), expected)
        assert_same_bits(paged.call(table.astype(np.int32)), expected)


@EVERY_TYPE
def test_results(dtype):
    for modifiers in MODIFIERS.values():
        paged = Paged(16, dtype, queries=[1, 3, 9], keys=[40, 35, 50])
        if np.ndim(modifiers.get("alibi_slopes")) == 2:
            modifiers = modifiers | {"alibi_slopes": modifiers["alibi_slopes"][:3]}
        out, lse = paged.call(**modifiers)
        assert (out.shape, out.dtype) == ((13, 4, 20), dtype)
        given = paged.query, paged.key_cache, paged.value_cache, paged.table, paged.keys
        expected = reference.attention_paged(*given, query_indptr=paged.query_indptr, return_lse=True, **modifiers)
        for n in range(3):
            rows = slice(*paged.query_indptr[n : n + 2])
            case = paged.alone(n, **modifiers)
            assert_accurate(out[rows], case, lse[rows])
            alone = reference.attention(**case, return_lse=True)
            assert_same_bits((expected[0][rows], expected[1][rows]), alone)


def test_one_query_a_sequence_is_the_default():
    paged = Paged(16, np.float32, queries=[1, 1], keys=[40, 35])
    given = paged.query, paged.key_cache, paged.value_cache, paged.table, paged.keys
    assert_same_bits(cattn.attention_paged(*given), paged.call()[0])
    assert_same_bits(reference.attention_paged(*given), reference.attention_paged(*given, query_indptr=[0, 1, 2]))
    out = np.full((2, 4, 20), np.nan, np.float32)
    assert cattn.attention_paged(*given, out=out) is out
    assert_same_bits(out, paged.call()[0])


def test_a_page_in_many_tables():
    paged = Paged(16, np.float32, queries=[1, 2, 1], keys=[40, 40, 48])
    paged.table[:, 0] = paged.table[0, 0]
    paged.table[2, 1] = paged.table[2, 2]  # and twice in one
    paged.check(paged.call())


@EVERY_TYPE
@pytest.mark.parametrize("page_size", [3, 16, 64])
@pytest.mark.parametrize("name", ["none", "causal", "narrow window"])
def test_what_is_not_attended_to_never_leaks(dtype, page_size, name):
    modifiers = MODIFIERS[name]
    paged = Paged(page_size, dtype)
    expected, read = paged.call(**modifiers), np.zeros((len(paged.key_cache), page_size), bool)
    for n, (queries, keys) in enumerate(zip(QUERIES, KEYS, strict=True)):
        left = modifiers.get("window", (keys,))[0]
        for j in range(max(0, keys - queries - left) if queries else keys, keys):
            read[paged.table[n, j // page_size], j % page_size] = True
    for cache in (paged.key_cache, paged.value_cache):
        cache[~read] = np.nan
    assert_same_bits(paged.call(**modifiers), expected)
    assert_same_bits(paged.call(paged.unread(modifiers), **modifiers), expected)


@EVERY_TYPE
def test_what_is_attended_to_shows(dtype):
    paged = Paged(16, dtype)
    out, _ = paged.call()
    paged.value_cache[paged.table[0, 7], 3, 0, 5] = np.inf
    found, _ = paged.call()
    assert np.all(found[0, :2, 5] == np.inf)
    where = np.ones(out.shape, bool)
    where[0, :2, 5] = False
    assert_same_bits(found, out, where)


def test_keys_are_never_copied_together():
    paged = Paged(16, np.float32, queries=[1], keys=[100_000], size=64, value_size=64)
    tracemalloc.start()
    try:
        paged.call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * paged.table.nbytes < paged.key_cache.nbytes / 20


def test_nothing_there():
    none = np.zeros((0, 4, 8), np.float32)
    cache = np.zeros((3, 16, 2, 8), np.float32)
    assert cattn.attention_paged(none, cache, cache, np.zeros((0, 5), int), []).shape == (0, 4, 8)
    assert cattn.attention_paged(none, cache, cache, [[UNREAD]], [0], query_indptr=[0, 0]).shape == (0, 4, 8)
    assert cattn.attention_paged(none, cache[:0], cache[:0], [[1]], [0], query_indptr=[0, 0]).shape == (0, 4, 8)
    assert cattn.attention_paged(none, cache[:, :0], cache[:, :0], [[1]], [0], query_indptr=[0, 0]).shape == (0, 4, 8)
    out, lse = cattn.attention_paged(
        np.ones((1, 4, 8), np.float32), cache, cache, [[-5]], [3], window=(1, 1), query_offset=100, return_lse=True
    )
    assert np.all(out == 0) and np.all(lse == -np.inf)


QUERY, CACHE = np.ones((3, 4, 8), np.float32), np.ones((10, 16, 2, 8), np.float32)
TABLE, LENGTHS = np.arange(9).reshape(3, 3), np.array([48, 20, 5])
ERRORS = [
    ({"block_table": [[0, 1, 2], [3, 10, 5], [6, 7, 8]]}, ValueError,
     "block_table: expected page numbers from 0 to 9, got 10 (sequence 1, position 1)"),
    ({"block_table": [[0, 1, 2], [3, 4, 5], [-1, 7, 8]]}, ValueError,
     "block_table: expected page numbers from 0 to 9, got -1 (sequence 2, position 0)"),
    ({"block_table": TABLE[0]}, ValueError, "block_table: expected shape (sequences, most pages), got (3,)"),
    ({"block_table": TABLE / 2}, TypeError, "block_table: expected integers, got float64"),
    ({"block_table": TABLE[:2]}, ValueError,
     "query: expected 2 tokens, one for each sequence of block_table, got 3; pass query_indptr= for sequences with "
     "more tokens or none"),
    ({"key_lengths": [48, 49, 5]}, ValueError,
     "key_lengths: expected 0 to 48, the room in 3 pages of 16 keys (the shape of block_table and key_cache), got 49 "
     "(sequence 1)"),
    ({"key_lengths": [48, 20, -1]}, ValueError, "key_lengths: expected 0 to 48, the room in 3 pages"),
    ({"key_lengths": [48, 0, 5]}, ValueError,
     "key_lengths: expected at least 1, the number of queries of sequence 1, whose keys are counted too, got 0"),
    ({"key_lengths": [48, 5]}, ValueError,
     "key_lengths: expected shape (3,), one length for each sequence of block_table, got (2,)"),
    ({"key_lengths": 5}, ValueError, "key_lengths: expected shape (3,), one length for each"),
    ({"key_lengths": LENGTHS / 2}, TypeError, "key_lengths: expected integers, got float64"),
    ({"query_indptr": [0, 3]}, ValueError,
     "query_indptr: expected 4 entries, one more than block_table has sequences, got 2"),
    ({"query_indptr": [0, 1, 2, 4]}, ValueError, "query_indptr: expected to end with 3, the total length of query"),
    ({"query": QUERY[0]}, ValueError, "query: expected 3 axes (total length, heads, size), got shape (4, 8)"),
    ({"key_cache": CACHE[0]}, ValueError,
     "key_cache: expected 4 axes (pages, page size, heads, size), got shape (16, 2, 8)"),
    ({"value_cache": CACHE[0]}, ValueError, "value_cache: expected 4 axes (pages, page size, heads, size)"),
    ({"key_cache": CACHE[..., :7]}, ValueError, "key_cache: expected head size 8 like query, got 7"),
    ({"key_cache": CACHE[:, :, [0, 0, 0]]}, ValueError,
     "key_cache: expected a number of heads that divides the 4 of query, got 3"),
    ({"value_cache": CACHE[:, :, :1]}, ValueError, "value_cache: expected 2 heads like key_cache, got 1"),
    ({"value_cache": CACHE[:, :8]}, ValueError, "value_cache: expected page size 16 like key_cache, got 8"),
    ({"value_cache": CACHE[:8]}, ValueError, "value_cache: expected 10 pages like key_cache, got 8"),
    ({"key_cache": CACHE.astype(np.float64)}, TypeError, "key_cache: expected type float32 like query"),
    ({"value_cache": CACHE.astype(np.float16)}, TypeError, "value_cache: expected type float32 like query"),
    ({"key_cache": CACHE.astype(np.int8)}, TypeError, "key_scale: expected an array beside key_cache of type int8"),
    ({"key_scale": 0.1}, TypeError, "key_scale: expected None beside key_cache of type float32, got 0.1"),
    ({"key_cache": CACHE.astype(np.int8), "value_cache": CACHE.astype(np.int8), "value_scale": 0.1,
      "key_scale": np.ones((10, 1, 1, 8))}, ValueError,
     "key_scale: expected size 1 along the keys (a scale for each column) or along the last axis (a scale for each "
     "token), got shape (10, 1, 1, 8)"),
    ({"key_cache": CACHE.astype(np.int8), "value_cache": CACHE.astype(np.int8), "value_scale": 0.1,
      "key_scale": np.ones((9, 1, 1, 1))}, ValueError, "key_scale: expected a shape that broadcasts to (10, 16, 2, 8)"),
    ({"causal": True}, ValueError, 'query_offset: expected "start"'),
    ({"out": np.ones((3, 4, 7), np.float32)}, ValueError, "out: expected shape (3, 4, 8), got (3, 4, 7)"),
    ({"mask": None}, TypeError, "mask: not an argument of attention_paged; expected one of query, key_cache, "),
]  # fmt: skip


@pytest.mark.parametrize("given, error, message", ERRORS)
def test_errors(given, error, message):
    case = {"query": QUERY, "key_cache": CACHE, "value_cache": CACHE, "block_table": TABLE, "key_lengths": LENGTHS}
    cattn.attention_paged(**case)
    with pytest.raises(error) as raised:
        cattn.attention_paged(**case | given)
    assert str(raised.value).startswith(message)


def test_a_ragged_table_gets_advice():
    with pytest.raises(TypeError, match=r"^block_table: expected an array, .*; fill shorter rows up with -1"):
        cattn.attention_paged(QUERY, CACHE, CACHE, [[0, 1, 2], [3], [4]], LENGTHS)


def test_out_overlaps():
    cache = np.ones((10, 16, 4, 8), np.float32)
    for name in ("query", "key_cache", "value_cache"):
        case = {"query": QUERY.copy(), "key_cache": cache.copy(), "value_cache": cache.copy()}
        out = case[name] if name == "query" else case[name][0, :3]
        with pytest.raises(ValueError, match=f"out: expected memory of its own, got an array that overlaps {name}"):
            cattn.attention_paged(**case, block_table=TABLE, key_lengths=LENGTHS, out=out)
