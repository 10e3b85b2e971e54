"""KVCache keeps what was appended, attends to it as a plain call does, and copies a token a few times at most."""

import math
import tracemalloc

import cases
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, bits, normal, same_memory, zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from kappa import assert_accurate

import cattn
from cattn import _cache

HEADS, KEY_HEADS, SIZE, VALUE_SIZE = 4, 2, 5, 3
TYPES = [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32")]
SLOPES = 2.0 ** -np.arange(1.0, HEADS + 1)
MODIFIERS = [{}, {"alibi_slopes": SLOPES, "return_lse": True}, {"softcap": 3.0, "scale": 0.7, "sinks": -SLOPES}]


class Model:
    """Model a cache by lists: each sequence has all its keys and values, and the shortest length it may be cut to."""

    def __init__(self, batch, dtype, window):
        self.dtype, self.window = cases.TYPES[dtype], window
        self.keys = [np.zeros((KEY_HEADS, 0, SIZE), self.dtype)] * batch
        self.values = [np.zeros((KEY_HEADS, 0, VALUE_SIZE), self.dtype)] * batch
        self.least = [0] * batch

    @property
    def lengths(self):
        return [key.shape[1] for key in self.keys]

    def append(self, key, value, counts):
        for n, count in enumerate(counts):
            before = self.lengths[n]
            self.least[n] = before if self.window is not None and before >= self.window else 0
            for kept, new in ((self.keys, key), (self.values, value)):
                kept[n] = np.concatenate([kept[n], new[n, :, :count].astype(self.dtype)], axis=1)

    def truncate(self, lengths):
        for kept in (self.keys, self.values):
            kept[:] = [x[:, :length] for x, length in zip(kept, lengths, strict=True)]

    def reorder(self, index):
        for kept in (self.keys, self.values, self.least):
            kept[:] = [kept[n] for n in index]

    def padded(self):
        """Return all keys and values as arrays, with NaN behind each sequence."""
        longest = max(self.lengths, default=0)
        arrays = []
        for kept in (self.keys, self.values):
            size = SIZE if kept is self.keys else VALUE_SIZE
            array = np.full((len(kept), KEY_HEADS, longest, size), np.nan, self.dtype)
            for n, x in enumerate(kept):
                array[n, :, : x.shape[1]] = x
            arrays.append(array)
        return arrays


def check_contents(cache, model):
    """The cache shows the newest tokens of each sequence, as they were appended."""
    assert cache.lengths.tolist() == model.lengths
    starts, longest = cache.starts.tolist(), int((cache.lengths - cache.starts).max(initial=0))
    assert cache.key.shape == (len(model.keys), KEY_HEADS, longest, SIZE)
    assert cache.value.shape == (len(model.keys), KEY_HEADS, longest, VALUE_SIZE)
    for n, (key, value) in enumerate(zip(model.keys, model.values, strict=True)):
        count = key.shape[1] - starts[n]
        assert starts[n] == 0 or count >= model.window - 1
        assert_same_bits(cache.key[n, :, :count], key[:, starts[n] :])
        assert_same_bits(cache.value[n, :, :count], value[:, starts[n] :])


def check_attention(cache, model, query, counts, modifiers):
    """Attention has the bits of a plain call: on all tokens while none was dropped, else on those that are kept. Then
    it is as exact as attention on all tokens, too."""
    out = cache.attend(query, counts, **modifiers)
    plain = modifiers | {"causal": True, "query_offset": "end", "query_lengths": counts}
    if model.window is not None:
        plain["window"] = (model.window - 1, 0)
    key, value = model.padded()
    whole = plain | {"query": query, "key": key, "value": value, "key_lengths": np.array(model.lengths)}
    if not cache.starts.any():
        assert_same_bits(out, cattn.attention(**whole))
        return
    kept = plain | {"query": query, "key": cache.key.copy(), "value": cache.value.copy()}
    kept["key_lengths"] = cache.lengths - cache.starts
    assert_same_bits(out, cattn.attention(**kept))
    accurate = {name: x for name, x in whole.items() if name != "return_lse"}
    for name in ("key", "value"):
        accurate[name] = np.where(np.isnan(whole[name]), whole[name].dtype.type(0), whole[name])
    assert_accurate(*((out[0], accurate, out[1]) if isinstance(out, tuple) else (out, accurate)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_program(data):
    """Appending, truncating, reordering and attending in any order agrees with the model. Calls that must be refused
    are refused, and change nothing."""
    batch, (dtype, query_type) = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(TYPES))
    window = data.draw(st.none() | st.integers(1, 12))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    cache = cattn.KVCache(
        *(batch, KEY_HEADS, SIZE),
        **{"value_size": VALUE_SIZE, "dtype": dtype, "window": window},
        capacity=data.draw(st.sampled_from([0, 1, 30])),
    )
    model = Model(batch, dtype, window)
    for _ in range(data.draw(st.integers(1, 12))):
        batch, lengths = len(model.keys), model.lengths
        step = data.draw(st.sampled_from(["append"] * 4 + ["truncate", "reorder"]))
        if step == "append":
            new = data.draw(st.integers(0, 9) | st.integers(0, 70))
            counts = np.array(data.draw(st.lists(st.integers(0, new), min_size=batch, max_size=batch)), int)
            counts = data.draw(st.sampled_from([counts, None]))
            key = random.standard_normal((batch, KEY_HEADS, new, SIZE)).astype(query_type)
            value = random.standard_normal((batch, KEY_HEADS, new, VALUE_SIZE)).astype(query_type)
            cache.append(key, value, counts)
            counts = np.full(batch, new) if counts is None else counts
            model.append(key, value, counts.tolist())
            query = random.standard_normal((batch, HEADS, new, SIZE)).astype(query_type)
            check_attention(cache, model, query, counts, data.draw(st.sampled_from(MODIFIERS)))
        elif step == "truncate":
            shorter = [data.draw(st.integers(0, length)) for length in lengths]
            if any(length < least for length, least in zip(shorter, model.least, strict=True)):
                with pytest.raises(ValueError, match=r"^lengths: expected .* were dropped"):
                    cache.truncate(shorter)
            else:
                cache.truncate(shorter)
                model.truncate(shorter)
        else:
            index = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3))
            cache.reorder(index)
            model.reorder(index)
        check_contents(cache, model)
        have = [length - least for length, least in zip(model.lengths, model.least, strict=True)]
        with pytest.raises(ValueError, match=r"^query: expected at most"):  # one query more than there are keys for
            cache.attend(zeros(len(have), HEADS, min(have) + 1, SIZE, dtype=query_type))


def test_drafts():
    """The newest append can be taken back at any time, also when a window has dropped what was before it."""
    cache = cattn.KVCache(2, KEY_HEADS, SIZE, value_size=VALUE_SIZE, window=4, capacity=12)
    model = Model(2, "float32", 4)
    for n in range(40):
        key, value = normal(2, KEY_HEADS, 5, SIZE, seed=n), normal(2, KEY_HEADS, 5, VALUE_SIZE, seed=n)
        cache.append(key, value)
        model.append(key, value, [5, 5])
        accepted = [n % 6, (n + 2) % 6]
        shorter = [length - 5 + count for length, count in zip(model.lengths, accepted, strict=True)]
        cache.truncate(shorter)
        model.truncate(shorter)
        check_contents(cache, model)
    assert cache.starts.min() > 50


# What it costs


def copies(cache, steps, new, read=lambda cache: cache.key):
    """Append so many tokens in each step. Return how many rows of keys were moved, by their addresses."""
    moved, before, address, start = 0, 0, None, 0
    for _ in range(steps):
        cache.append(zeros(1, 1, new, 8), zeros(1, 1, new, 8))
        view = read(cache)
        here, first = view.__array_interface__["data"][0], int(cache.starts[0])
        if address is not None and here != address + (first - start) * 32:
            moved += before - first
        address, start, before = here, first, int(cache.lengths[0])
    return moved


@pytest.mark.parametrize("capacity", [0, 100])
def test_appending_copies_each_token_once_or_twice(capacity):
    """Few tokens are moved for a new one. If all were, it would be 2,000 times as many."""
    assert copies(cattn.KVCache(1, 1, 8, capacity=capacity), 4000, 1) <= 2 * 4000


def test_nothing_moves_within_the_capacity():
    cache = cattn.KVCache(1, 1, 8, capacity=4000)
    assert copies(cache, 4000, 1) == 0
    assert cache.nbytes == 2 * 4000 * 8 * 4


@pytest.mark.parametrize("new", [1, 7])
def test_a_window_is_small_and_seldom_moves(new):
    cache = cattn.KVCache(1, 1, 8, window=256)
    assert copies(cache, 4000, new) <= 10 * 4000 * new
    assert cache.nbytes <= 1.25 * 256 * 2 * 8 * 4


def test_a_long_prompt_before_a_window_is_let_go():
    cache = cattn.KVCache(1, 1, 8, window=16)
    cache.append(zeros(1, 1, 5000, 8), zeros(1, 1, 5000, 8))
    cache.append(zeros(1, 1, 1, 8), zeros(1, 1, 1, 8))
    assert (cache.lengths[0], cache.starts[0]) == (5001, 5000 - 15)
    assert cache.nbytes < 100 * 2 * 8 * 4


def test_a_step_allocates_nothing_that_grows():
    """Neither appending nor attending makes a copy of the cache."""
    cache = cattn.KVCache(1, 2, 64, capacity=20_001)
    cache.append(normal(1, 2, 20_000, 64), normal(1, 2, 20_000, 64))
    query, new = normal(1, 4, 1, 64), normal(1, 2, 1, 64)
    cattn.attention(query, cache.key, cache.value)
    tracemalloc.start()
    cache.append(new, new)
    cache.attend(query)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000 < cache.nbytes / 100


def test_views():
    cache = cattn.KVCache(2, 1, 4, capacity=9)
    key, value = normal(2, 2, 1, 3, 4)
    cache.append(key, value)
    before, lengths = cache.key, cache.lengths
    cache.append(value, key)
    assert same_memory(before, cache.key[:, :, :3])
    assert lengths.tolist() == [3, 3]
    assert not cache.lengths.flags.writeable and not cache.starts.flags.writeable
    cache.key[...] = 0  # a model may change its keys in place
    assert not cache.key.any()


def test_reorder_to_itself_copies_nothing():
    cache = cattn.KVCache(3, 1, 4, capacity=9)
    cache.append(normal(3, 1, 2, 4), normal(3, 1, 2, 4))
    before = cache.key
    cache.reorder([0, 1, 2])
    assert same_memory(before, cache.key)
    cache.reorder([2, 2, 0, 1])
    assert cache.key.shape == (4, 1, 2, 4) and cache.nbytes == 2 * 4 * 9 * 4 * 4
    cache.reorder([])
    assert cache.key.shape == (0, 1, 0, 4)


def test_beyond_the_range_of_a_type():
    """It becomes infinite without a warning, and shows."""
    cache = cattn.KVCache(1, 1, 2, dtype=np.float16)
    cache.append([[[[1.0, 1.0], [1.0, 1.0]]]], [[[[70_000.0, 1.0], [1.0, -70_000.0]]]])
    assert cache.attend(zeros(1, 1, 1, 2)).tolist() == [[[[np.inf, -np.inf]]]]


# Errors

KEY, VALUE, QUERY = zeros(2, 2, 3, 5), zeros(2, 2, 3, 4), zeros(2, 4, 1, 5)
MADE = {"batch": 2, "num_kv_heads": 2, "head_size": 5, "value_size": 4}
NEW = [
    ("batch: expected an integer of 1 or more, got 0", ValueError, {"batch": 0}),
    ("num_kv_heads: expected an integer of 1 or more, got 2.0", TypeError, {"num_kv_heads": 2.0}),
    ("head_size: expected an integer of 1 or more, got True", TypeError, {"head_size": True}),
    ("value_size: expected an integer of 1 or more, or None, got -1", ValueError, {"value_size": -1}),
    ("window: expected an integer of 1 or more, or None, got 0", ValueError, {"window": 0}),
    ("window: expected an integer of 1 or more, or None, got (3, 0)", TypeError, {"window": (3, 0)}),
    ("capacity: expected an integer of 0 or more, got -1", ValueError, {"capacity": -1}),
    ("capacity: expected an integer of 0 or more, got None", TypeError, {"capacity": None}),
    ("capacity: cannot allocate 1152921504606846976 tokens of 2 sequences, 2 heads and sizes 5 and 4, of type float32",
     MemoryError, {"capacity": 2**60}),
    ("dtype: expected float16, bfloat16, float32, float64 or int8, got uint8", TypeError, {"dtype": "uint8"}),
    ("dtype: expected float16, bfloat16, float32, float64 or int8, got 'double trouble'", TypeError,
     {"dtype": "double trouble"}),
    ("dtype: expected float16, bfloat16, float32, float64 or int8, got None", TypeError, {"dtype": None}),
    ("dtype: expected float16, bfloat16, float32, float64 or int8, got complex64", TypeError, {"dtype": np.complex64}),
]  # fmt: skip
CALLS = [
    ("key: expected shape (2, 2, 3, 5), as the cache has it, got (2, 1, 3, 5)", ValueError, "append",
     (KEY[:, :1], VALUE)),
    ("key: expected shape (2, 2, n, 5), as the cache has it, got (2, 3, 5)", ValueError, "append", (KEY[0], VALUE)),
    ("value: expected shape (2, 2, 3, 4), as the cache has it, got (2, 2, 2, 4)", ValueError, "append",
     (KEY, VALUE[:, :, 1:])),
    ("value: expected shape (2, 2, 3, 4), as the cache has it, got (2, 2, 3, 5)", ValueError, "append", (KEY, KEY)),
    ("value: expected an array, got None", TypeError, "append", (KEY, None)),
    ("key: expected type float16, bfloat16, float32 or float64, got int8", TypeError, "append",
     (KEY.astype(np.int8), VALUE)),
    ("lengths: expected 0 to 3, the number of new tokens, got 4 for sequence 1", ValueError, "append",
     (KEY, VALUE, [3, 4])),
    ("lengths: expected shape (2,) or (), one number for each sequence, got (3,)", ValueError, "append",
     (KEY, VALUE, [1, 1, 1])),
    ("lengths: expected integers, got float64", TypeError, "append", (KEY, VALUE, [1.0, 2.0])),
    ("query: expected shape (2, heads, n, 5), one entry for each of the cache, got (4, 1, 5)", ValueError, "attend",
     (QUERY[0],)),
    ("query: expected shape (2, heads, n, 5), one entry for each of the cache, got (1, 4, 1, 5)", ValueError, "attend",
     (QUERY[:1],)),
    ("query: expected type float32 like the cache, got float64", TypeError, "attend", (QUERY.astype(np.float64),)),
    ("query: expected at most 3 queries of sequence 0, as many as it has tokens, got 4; append keys and values first",
     ValueError, "attend", (zeros(2, 4, 4, 5),)),
    ("query_lengths: expected 0 to 1, the length of query, got 2 for sequence 0", ValueError, "attend", (QUERY, 2)),
    ("lengths: expected 0 to 3, what the sequence has, got 4 for sequence 0", ValueError, "truncate", (4,)),
    ("lengths: expected 0 to 2, what the sequence has, got 3 for sequence 1", ValueError, "truncate", ([3, 3],)),
    ("lengths: expected integers, got None", TypeError, "truncate", (None,)),
    ("index: expected 0 to 1, the entries of the batch, got 2", ValueError, "reorder", ([0, 2],)),
    ("index: expected 0 to 1, the entries of the batch, got -1", ValueError, "reorder", ([-1],)),
    ("index: expected shape (new batch,), got ()", ValueError, "reorder", (0,)),
    ("index: expected integers, got bool", TypeError, "reorder", ([True, False],)),
]  # fmt: skip


@pytest.mark.parametrize("message, error, changes", NEW, ids=[message for message, *_ in NEW])
def test_bad_sizes(message, error, changes):
    with pytest.raises(error) as caught:
        cattn.KVCache(**MADE | changes)
    assert str(caught.value).startswith(message)


def snapshot(cache):
    key, value = (bits(x[:, :, :2]) for x in (cache.key, cache.value))
    return cache.lengths.tolist(), cache.starts.tolist(), cache.nbytes, key.tolist(), value.tolist()


@pytest.mark.parametrize("message, error, method, given", CALLS, ids=[message for message, *_ in CALLS])
def test_bad_calls(message, error, method, given):
    cache = cattn.KVCache(**MADE)
    cache.append(normal(2, 2, 3, 5), normal(2, 2, 3, 4), [3, 2])
    before = snapshot(cache)
    with pytest.raises(error) as caught:
        getattr(cache, method)(*given)
    assert str(caught.value).startswith(message)
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", ["causal", "query_offset", "key_lengths", "layout", "window"])
def test_what_the_cache_sets(name):
    cache = cattn.KVCache(1, 1, 2, window=3)
    with pytest.raises(TypeError, match=rf"^{name}: expected no such argument, because the cache sets it"):
        cache.attend(zeros(1, 1, 0, 2), **{name: None})


def test_other_modifiers_are_those_of_attention():
    cache = cattn.KVCache(1, 1, 2)
    cache.append(normal(1, 1, 3, 2), normal(1, 1, 3, 2))
    query = normal(1, 1, 2, 2)
    plain = {"query": query, "key": cache.key, "value": cache.value, "causal": True, "query_offset": "end"}
    assert_same_bits(cache.attend(query, window=(1, 0)), cattn.attention(**plain, window=(1, 0)))
    mask = np.array([True, False, True])
    out = np.empty_like(query)
    assert cache.attend(query, mask=mask, out=out) is out
    assert_same_bits(out, cattn.attention(**plain, mask=mask))
    with pytest.raises(TypeError, match=r"^is_causal: not an argument of attention"):
        cache.attend(query, is_causal=True)


@pytest.mark.parametrize("window", [None, 3])
def test_memory_that_does_not_suffice(window, monkeypatch):
    """A cache that cannot grow stays what it was, and can be used."""
    cache = cattn.KVCache(**MADE, window=window, capacity=4)
    for n in range(2):
        cache.append(normal(2, 2, 2, 5, seed=n), normal(2, 2, 2, 4, seed=n))
    before = snapshot(cache)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(_cache.np, "empty", fail)
    for call in (lambda: cache.append(KEY, VALUE), lambda: cache.reorder([1, 0])):
        with pytest.raises(MemoryError, match=r"^capacity: cannot allocate"):
            call()
    monkeypatch.undo()
    assert snapshot(cache) == before
    cache.truncate(3 if window is None else 2)
    cache.append(KEY, VALUE)
    assert math.prod(cache.attend(QUERY).shape) == 2 * 4 * 1 * 4


@pytest.mark.parametrize("method", ["append", "reorder"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_call_that_is_interrupted(window, method, monkeypatch):
    """Wherever Ctrl-C ends it, the cache is what it was: it can be taken back, appended to, and attended to."""
    copy, left = _cache._copy, 0

    def interrupted(*arrays):
        nonlocal left
        copy(*arrays)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for step in range(1, 20):
        cache = cattn.KVCache(**MADE, window=window, capacity=6)
        for n in range(2):
            cache.append(normal(2, 2, 3, 5, seed=n), normal(2, 2, 3, 4, seed=n))
        before, left = snapshot(cache), step
        monkeypatch.setattr(_cache, "_copy", interrupted)
        try:
            cache.append(KEY, VALUE) if method == "append" else cache.reorder([1, 0])
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            monkeypatch.undo()
        assert snapshot(cache) == before
        cache.truncate(3)
        cache.append(KEY, VALUE)
        assert cache.attend(QUERY).shape == (2, 4, 1, 4)
    assert step > 4


def test_bfloat16_by_name_and_by_type():
    for dtype in ("bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert cattn.KVCache(1, 1, 2, dtype=dtype).key.dtype == ml_dtypes.bfloat16


def test_swapped_bytes_are_kept_in_the_machines_order():
    assert cattn.KVCache(1, 1, 2, dtype=np.dtype(np.float32).newbyteorder("S")).key.dtype == np.float32
