"""cattn.flash_attn.flash_attn_with_kvcache, after the documentation of flash_attn, on arrays and on tensors."""

import inspect
import tracemalloc

import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits, normal

from cattn import _kernel, reference
from cattn.flash_attn import flash_attn_func, flash_attn_with_kvcache

BATCH, QUERIES, SLOTS, HEADS, KEY_HEADS, SIZE, VALUE_SIZE = 3, 4, 40, 4, 2, 16, 12
LENGTHS = np.array([9, 30, 2], np.int32)


def arrays(dtype=np.float32, entries=BATCH, new=None):
    shapes = (BATCH, QUERIES, HEADS, SIZE), (entries, SLOTS, KEY_HEADS, SIZE), (entries, SLOTS, KEY_HEADS, VALUE_SIZE)
    found = dict(zip(("q", "k_cache", "v_cache"), (normal(*shape, dtype=dtype) for shape in shapes), strict=True))
    if new is not None:
        found["k"] = normal(BATCH, new, KEY_HEADS, SIZE, dtype=dtype, seed=1)
        found["v"] = normal(BATCH, new, KEY_HEADS, VALUE_SIZE, dtype=dtype, seed=1)
    return found


def rotated(x, cos, sin, positions, interleaved):
    """Rotate (length, heads, size), column by column, as the documentation has it; rounded once."""
    wide = np.float64 if x.dtype == np.float64 else np.float32
    out, half = x.copy(), cos.shape[1]
    for i, position in enumerate(positions):
        for c in range(half):
            one, other = (2 * c, 2 * c + 1) if interleaved else (c, c + half)
            a, b = x[i, :, one].astype(wide), x[i, :, other].astype(wide)
            angle = cos[position, c].astype(wide), sin[position, c].astype(wide)
            out[i, :, one] = (a * angle[0] - b * angle[1]).astype(x.dtype)
            out[i, :, other] = (a * angle[1] + b * angle[0]).astype(x.dtype)
    return out


def expected_of(given):
    """Return out, lse and both caches after the call, from copies of everything, sequence by sequence."""
    given = {name: np.array(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    q, table, new = given["q"], given.get("block_table"), given.get("k")
    caches = given["k_cache"], given["v_cache"]
    options = {name: given[name] for name in ("causal", "window_size", "softcap", "softmax_scale") if name in given}
    outs, lses = [], []
    for n in range(len(q)):
        if table is not None:
            page = caches[0].shape[1]
            places = [(table[n, at // page], at % page) for at in range(table.shape[1] * page)]
        else:
            entry = n if given.get("cache_batch_idx") is None else given["cache_batch_idx"][n]
            places = [(entry, at) for at in range(caches[0].shape[1])]
        before = given.get("cache_seqlens")
        before = len(places) if before is None else int(np.broadcast_to(before, len(q))[n])
        query, stop = q[n], before
        if new is not None:
            key, stop = new[n], before + new.shape[1]
            if "rotary_cos" in given:
                angles = given["rotary_cos"], given["rotary_sin"]
                how = given.get("rotary_interleaved", True)
                moves = given.get("causal", False) or tuple(given.get("window_size", (-1, -1))) != (-1, -1)
                key = rotated(key, *angles, range(before, stop), how)
                query = rotated(query, *angles, [before + i * moves for i in range(len(query))], how)
            for i, at in enumerate(range(before, stop)):
                caches[0][places[at]], caches[1][places[at]] = key[i], given["v"][n, i]
        start = 0 if given.get("cache_leftpad") is None else given["cache_leftpad"][n]
        keys, values = (
            np.concatenate([x[0, :0], *(x[page, None, slot] for page, slot in places[start:stop])]) for x in caches
        )
        slopes = given.get("alibi_slopes")
        own = {} if slopes is None else {"alibi_slopes": slopes if slopes.ndim == 1 else slopes[n]}
        out, lse = flash_attn_func(query[None], keys[None], values[None], **options, **own, return_lse=True)
        outs.append(out[0])
        lses.append(lse[0])
    return np.stack(outs), np.stack(lses), caches


def check(**given):
    """Compare everything, bit by bit, with the same sequences alone, which other tests compare with the formula."""
    out, lse, (k_cache, v_cache) = expected_of(given)
    found = flash_attn_with_kvcache(**given, return_softmax_lse=True)
    assert_same_bits(found, (out, lse))
    assert_same_bits((given["k_cache"], given["v_cache"]), (k_cache, v_cache))
    assert np.all(np.isinf(lse) <= (np.abs(out).max(axis=-1).swapaxes(1, 2) == 0))


def angles(dtype, size=SIZE, positions=SLOTS + QUERIES):
    angle = 6 * np.random.default_rng(7).random((positions, size // 2))
    return {"rotary_cos": np.cos(angle).astype(dtype), "rotary_sin": np.sin(angle).astype(dtype)}


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "causal window": {"causal": True, "window_size": (7, -1)},
    "scale and softcap": {"softmax_scale": 0.3, "softcap": 0.7},
    "alibi": {"alibi_slopes": np.array([0.5, 0.1, 0.0, 0.3], np.float32), "causal": True},
    "alibi of each": {"alibi_slopes": np.arange(12, dtype=np.float32).reshape(3, 4) / 20},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
PLACES = {
    "whole": {},
    "lengths": {"cache_seqlens": LENGTHS},
    "one length": {"cache_seqlens": 11},
    "leftpad": {"cache_seqlens": LENGTHS, "cache_leftpad": np.array([3, 0, 2], np.int32)},
    "entries": {"cache_seqlens": LENGTHS, "cache_batch_idx": np.array([4, 0, 2], np.int32)},
    "entries and leftpad": {
        "cache_seqlens": LENGTHS,
        "cache_batch_idx": np.array([4, 0, 2], np.int32),
        "cache_leftpad": np.array([3, 1, 0], np.int32),
    },
}


@EVERY_OPTION
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_without_new_tokens(places, options):
    check(**arrays(entries=5), **places, **options)


@EVERY_TYPE
@EVERY_OPTION
@pytest.mark.parametrize("places", [x for x in PLACES if x != "whole"])
def test_new_tokens(dtype, places, options):
    for new in (1, QUERIES, 6):
        check(**arrays(dtype, entries=5, new=new), **PLACES[places], **options)


@EVERY_TYPE
@EVERY_OPTION
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_pages(dtype, page_size, options):
    for new in (None, 1, 5):
        given = arrays(dtype, new=new)
        pages = -(-SLOTS // page_size)
        table = np.random.default_rng(page_size).permutation(BATCH * pages).reshape(BATCH, pages).astype(np.int32)
        for name in ("k_cache", "v_cache"):
            given[name] = normal(BATCH * pages, page_size, *given[name].shape[2:], dtype=dtype)
        check(**given, block_table=table, cache_seqlens=LENGTHS, **options)


@EVERY_TYPE
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (5, -1)}], ids=str)
@pytest.mark.parametrize("size", [2, SIZE // 2, SIZE])
def test_rotary(dtype, interleaved, options, size):
    for places in ("lengths", "leftpad", "entries"):
        check(
            **arrays(dtype, entries=5, new=QUERIES), **PLACES[places], **angles(dtype, size), **options,
            rotary_interleaved=interleaved,
        )  # fmt: skip


def test_a_text_token_by_token_is_the_text_at_once():
    q, k, v = (normal(1, 20, heads, SIZE, dtype=np.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    k_cache, v_cache = np.zeros((2, 1, SLOTS, KEY_HEADS, SIZE))
    steps = [
        flash_attn_with_kvcache(
            *(x[:, n : n + 1] if x is q else x for x in (q, k_cache, v_cache)), k[:, n : n + 1], v[:, n : n + 1],
            cache_seqlens=n,
        )
        for n in range(20)
    ]  # fmt: skip
    expected = reference.attention(q, k, v, layout="blhd", causal=True)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected, atol=1e-12)


@EVERY_TYPE
def test_what_is_not_attended_to_never_leaks(dtype):
    given = arrays(dtype, new=2)
    places = {"cache_seqlens": LENGTHS, "cache_leftpad": np.array([3, 0, 2], np.int32)}
    expected = flash_attn_with_kvcache(**{name: x.copy() for name, x in given.items()}, **places)
    for n in range(BATCH):
        for name in ("k_cache", "v_cache"):
            given[name][n, : places["cache_leftpad"][n]] = np.nan
            given[name][n, LENGTHS[n] :] = np.nan
    assert_same_bits(flash_attn_with_kvcache(**given, **places), expected)


@pytest.mark.parametrize("places", ["lengths", "leftpad", "entries", "pages"])
def test_nothing_is_copied_together(places, monkeypatch):
    """Every problem reads keys and values where the caller has them, and little memory is allocated."""
    given = arrays(entries=5, new=1)
    for name in ("k_cache", "v_cache"):
        given[name] = np.ones((5, 5000, *given[name].shape[2:]), np.float32)
    own = PLACES[places] if places in PLACES else {"block_table": np.array([[4], [0], [1]]), "cache_seqlens": LENGTHS}
    read, attend = [], _kernel.attend

    def note(problem):
        read.append(problem)
        attend(problem)

    monkeypatch.setattr(_kernel, "attend", note)
    tracemalloc.start()
    try:
        flash_attn_with_kvcache(**given, **own)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < given["k_cache"].nbytes / 50 and read
    for problem in read:
        for x, cache in ((problem.key, given["k_cache"]), (problem.value, given["v_cache"])):
            first = cache.ctypes.data
            assert first <= x.ctypes.data < first + cache.nbytes
            assert x.strides[-2:] == (cache.strides[1], cache.strides[3])


def test_names_order_and_defaults():
    expected = """q k_cache v_cache k=None v=None rotary_cos=None rotary_sin=None cache_seqlens=None
        cache_batch_idx=None cache_leftpad=None block_table=None softmax_scale=None causal=False window_size=(-1, -1)
        softcap=0.0 rotary_interleaved=True alibi_slopes=None num_splits=0 return_softmax_lse=False"""
    found = str(inspect.signature(flash_attn_with_kvcache)).strip("()").split(", ")
    assert ", ".join(found) == ", ".join(expected.split()).replace("(-1,, 1)", "(-1, -1)").replace(
        "(-1,, -1)", "(-1, -1)"
    )


ERRORS = {
    "table and entries": ({"block_table": [[0], [1], [2]], "cache_batch_idx": [0, 1, 2]}, ValueError,
                          "cache_batch_idx: expected None beside block_table, got "),
    "table and leftpad": ({"block_table": [[0], [1], [2]], "cache_leftpad": [0, 1, 2]}, ValueError,
                          "cache_leftpad: expected None beside block_table, got "),
    "no lengths": ({"cache_seqlens": None}, ValueError, "cache_seqlens: expected the lengths before k is written"),
    "k alone": ({"v": None}, ValueError, "v: expected an array, because k is given, got None"),
    "v alone": ({"k": None}, ValueError, "k: expected an array, because v is given, got None"),
    "too long": ({"cache_seqlens": [9, 39, 2]}, ValueError,
                 "cache_seqlens: expected 0 to 38, the slots of k_cache beside the 2 new tokens of k, got 39 "
                 "(sequence 1)"),
    "shape of lengths": ({"cache_seqlens": [9, 3]}, ValueError, "cache_seqlens: expected shape (3,)"),
    "type of lengths": ({"cache_seqlens": [9.0, 3.0, 1.0]}, TypeError, "cache_seqlens: expected integers"),
    "leftpad": ({"cache_leftpad": [0, 31, 0]}, ValueError,
                "cache_leftpad: expected 0 to 30, its cache_seqlens, got 31 (sequence 1)"),
    "entry": ({"cache_batch_idx": [0, 5, 1]}, ValueError,
              "cache_batch_idx: expected 0 to 2, the entries of k_cache, got 5 (sequence 1)"),
    "page": ({"block_table": [[0], [3], [1]]}, ValueError,
             "block_table: expected page numbers from 0 to 2, got 3 (sequence 1, position 0)"),
    "page before the window": ({"block_table": [[0], [-1], [1]], "window_size": (0, 0)}, ValueError,
                               "block_table: expected page numbers from 0 to 2, got -1 (sequence 1, position 0)"),
    "table": ({"block_table": [0, 1, 2]}, ValueError, "block_table: expected shape (3, most pages), got (3,)"),
    "shape of k": ({"k": np.zeros((3, 2, 2, 15), np.float32)}, ValueError, "k: expected shape (3, 2, 2, 16), got "),
    "shape of v": ({"v": np.zeros((3, 1, 2, 12), np.float32)}, ValueError, "v: expected shape (3, 2, 2, 12), got "),
    "type of k": ({"k": np.zeros((3, 2, 2, 16))}, TypeError, "k: expected type float32 like q, got float64"),
    "type of the cache": ({"v_cache": np.zeros((3, 40, 2, 12))}, TypeError, "v_cache: expected type float32 like q"),
    "axes": ({"k_cache": np.zeros((40, 2, 16), np.float32)}, ValueError, "k_cache: expected 4 axes (batch, slots,"),
    "size": ({"k_cache": np.zeros((3, 40, 2, 15), np.float32), "k": np.zeros((3, 2, 2, 15), np.float32)}, ValueError,
             "k_cache: expected head size 16 like q, got 15"),
    "heads": ({"v_cache": np.zeros((3, 40, 1, 12), np.float32)}, ValueError, "v_cache: expected 2 heads like k_cache"),
    "entries": ({"k_cache": np.zeros((2, 40, 2, 16), np.float32), "v_cache": np.zeros((2, 40, 2, 12), np.float32)},
                ValueError, "k_cache: expected an entry for each of 3 sequences, got shape (2, 40, 2, 16)"),
    "other entries": ({"v_cache": np.zeros((2, 40, 2, 12), np.float32)}, ValueError,
                      "v_cache: expected 2 heads like k_cache, and axes (3, 40) before, got shape (2, 40, 2, 12)"),
    "a list": ({"k_cache": np.zeros((3, 40, 2, 16), np.float32).tolist()}, TypeError, "k_cache: expected type"),
    "one rotary": ({"rotary_cos": np.zeros((50, 4), np.float32)}, ValueError, "rotary_sin: expected an array"),
    "rotary size": ({"rotary_cos": np.zeros((50, 9)), "rotary_sin": np.zeros((50, 9))}, ValueError,
                    "rotary_cos: expected shape (positions, rotary size / 2)"),
    "positions": ({"rotary_cos": np.zeros((31, 4)), "rotary_sin": np.zeros((31, 4))}, ValueError,
                  "rotary_cos: expected at least 32 positions, got shape (31, 4)"),
    "rotary without k": ({"k": None, "v": None, **angles(np.float32)}, ValueError,
                         "rotary_cos: expected None without k, got an array; rotate q before the call"),
    "window": ({"window_size": (1, 2, 3)}, ValueError, "window_size: expected (left, right)"),
    "slopes": ({"alibi_slopes": np.ones(3)}, ValueError, "alibi_slopes: expected shape (4,)"),
    "more new tokens than slots": ({"k": np.zeros((3, 41, 2, 16), np.float32),
                                    "v": np.zeros((3, 41, 2, 12), np.float32)}, ValueError,
                                   "k: expected 40 new tokens at most, the slots of k_cache, got 41"),
    "one place for all": ({"k_cache": np.lib.stride_tricks.as_strided(
        np.zeros((1, 40, 2, 16), np.float32), (3, 40, 2, 16), (0, 128, 64, 4))}, ValueError,
        "k_cache: expected memory of its own for each slot, because k and v are written, got strides (0, 128, 64, 4)"),
    "one memory": (dict.fromkeys(("k_cache", "v_cache"), np.zeros((3, 40, 2, 12), np.float32)) | {
        "q": np.zeros((3, 1, 4, 12), np.float32), "k": np.zeros((3, 2, 2, 12), np.float32)}, ValueError,
        "v_cache: expected memory of its own, because k and v are written, got that of k_cache"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    """Nothing is written by a call that is refused."""
    change, error, message = ERRORS[name]
    given = arrays(new=2) | {"cache_seqlens": LENGTHS} | change
    before = [np.array(given[name]) for name in ("k_cache", "v_cache")]
    with pytest.raises(error) as raised:
        flash_attn_with_kvcache(**given)
    assert str(raised.value).startswith(message)
    assert_same_bits([np.array(given[name]) for name in ("k_cache", "v_cache")], before)


def test_pages_that_are_only_written_are_checked():
    """New tokens before every window are written, too."""
    given = arrays(new=6)
    for name in ("k_cache", "v_cache"):
        given[name] = np.zeros((BATCH * SLOTS, 1, *given[name].shape[2:]), np.float32)
    table = np.arange(BATCH * SLOTS).reshape(BATCH, SLOTS)
    table[1, 30] = -1
    with pytest.raises(ValueError, match=r"block_table: expected page numbers from 0 to 119, got -1 \(sequence 1, pos"):
        flash_attn_with_kvcache(**given, cache_seqlens=LENGTHS, block_table=table, window_size=(0, 0))
    assert not given["k_cache"].any() and not given["v_cache"].any()


def test_read_only_caches():
    given = arrays(new=2) | {"cache_seqlens": LENGTHS}
    given["v_cache"].flags.writeable = False
    with pytest.raises(
        TypeError, match="v_cache: expected a NumPy array that new tokens can be written to, got a read"
    ):
        flash_attn_with_kvcache(**given)
    del given["k"], given["v"]
    flash_attn_with_kvcache(**given)


# Tensors


def tensors(given):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    from cattn import _tensors

    def tensor(x):
        if not isinstance(x, np.ndarray):
            return x
        return _tensors.to_tensor(x) if x.dtype.kind != "i" else torch.from_numpy(x)

    return {name: tensor(x) for name, x in given.items()}


@EVERY_TYPE
@pytest.mark.parametrize("places", ["one length", "entries and leftpad"])
def test_tensors(dtype, places):
    given = arrays(dtype, entries=5, new=QUERIES) | PLACES[places] | angles(dtype) | {"causal": True}
    expected = {name: np.array(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    out, lse = flash_attn_with_kvcache(**expected, return_softmax_lse=True)
    as_tensors = tensors(given)
    addresses = as_tensors["k_cache"].data_ptr(), as_tensors["v_cache"].data_ptr()
    found = flash_attn_with_kvcache(**as_tensors, return_softmax_lse=True)
    from cattn import _tensors

    assert_same_bits([_tensors.to_numpy(x) for x in found], (out, lse))
    assert addresses == (as_tensors["k_cache"].data_ptr(), as_tensors["v_cache"].data_ptr())
    assert_same_bits((given["k_cache"], given["v_cache"]), (expected["k_cache"], expected["v_cache"]))


def test_tensors_that_cannot_be_written_to():
    torch = pytest.importorskip("torch")
    given = tensors(arrays(new=2) | {"cache_seqlens": LENGTHS})
    given["k_cache"] = torch._neg_view(given["k_cache"])
    with pytest.raises(TypeError, match="k_cache: expected a tensor that new tokens can be written to"):
        flash_attn_with_kvcache(**given)
