"""Attention on CPUs with the names and semantics of the package flash_attn, 2.x.

The functions take NumPy arrays, which need nothing else to be installed, and PyTorch's CPU tensors, which have
gradients. Not affiliated with, nor endorsed by, the authors of FlashAttention.
"""

import sys

import numpy as np

import cattn

from . import _arguments, _kernel
from ._arithmetic import in_usual_arithmetic
from ._calls import renamed
from ._modifiers import FAR, names_in
from ._read import (
    arithmetic,
    as_array,
    as_flag,
    as_floats,
    as_index,
    as_integers,
    as_items,
    as_number,
    check_same_type,
    class_shown,
    native,
    shown,
)

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]

_UNLIMITED = (-1, -1)
_INPUTS = ("q", "k", "v")
_OF_CACHES = "(batch, slots, heads, size) or, with block_table, (pages, page size, heads, size)"
# The words of cattn's errors, and flash_attn's. The colons keep a name apart from the same word in a sentence.
_WORDS = {"query": "q", "key": "k", "value": "v", "query_indptr": "cu_seqlens_q", "key_indptr": "cu_seqlens_k"}
_WORDS |= {f"{name}:": f"{theirs}:" for name, theirs in names_in("flash_attn").items()}
_WORDS_OF_CACHE = _WORDS | {name: "k_cache" for name in ("key", "key_cache")}
_WORDS_OF_CACHE |= {"value": "v_cache", "value_cache": "v_cache", "key_lengths": "cache_seqlens"}


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=_UNLIMITED, softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, *, return_lse=False,
):  # fmt: skip
    """Compute attention over a batch of sequences of one length.

    Not affiliated with, nor endorsed by, the authors of FlashAttention.

    Parameters
    ----------
    q : Tensor or ndarray, shape (batch, Lq, H, D)
        The inputs are CPU tensors, or arrays, of float16, bfloat16, float32 or float64, with any strides. They are not
        copied.
    k : Tensor or ndarray, shape (batch, Lk, Hk, D)
        H must be a multiple of Hk. Head h of q reads head ``h // (H // Hk)``.
    v : Tensor or ndarray, shape (batch, Lk, Hk, Dv)
        It has the heads of k.
    dropout_p : float
        It must be 0, in training too, since cattn has no dropout.
    softmax_scale : float, optional
        The factor of the scores. The default is ``1 / sqrt(D)``.
    causal : bool
        If True, row i attends only to keys ``j <= p_i``, where ``p_i = i + Lk - Lq`` is its position (the bottom right
        corner).
    window_size : (left, right)
        Row i attends only to keys ``p_i - left <= j <= p_i + right``. -1 means no limit on that side. It may be a
        tuple, list, array or tensor of two integers.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)``. 0 leaves them as they are.
    alibi_slopes : Tensor or ndarray, shape (H,) or (batch, H), optional
        The slopes of ALiBi, which adds ``-slope * |p_i - j|`` to the scores.
    deterministic : bool
        It has no effect. Results and gradients always have the same bits here.
    return_attn_probs : bool
        Return (out, lse, None). flash_attn returns three results, the third of which serves its tests of dropout. For
        the weights, call `cattn.attention_weights`.
    return_lse : bool
        Return (out, lse).

    Returns
    -------
    out : Tensor or ndarray, shape (batch, Lq, H, Dv), type of q
        Rows that may attend to nothing are zeros.
    lse : Tensor or ndarray, shape (batch, H, Lq)
        The logarithms of the softmax's denominators, which are returned only with return_lse or return_attn_probs. The
        type is float64 for float64 inputs, else float32. As in flash_attn, rows that may attend to nothing have
        **+inf**, where `cattn.attention` and `cattn.merge_attention` have -inf.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given.
    NotImplementedError
        A gradient is needed within a transform of torch.func or in forward mode, or, in a backward pass, the derivative
        of a gradient.

    Notes
    -----
    Tensors have gradients: those of q, k, v and alibi_slopes, and those of lse as well as of out. `attention_backward`
    of cattn computes them.

    The function follows Dao 2024, "FlashAttention-2", https://arxiv.org/abs/2307.08691, and the documentation of
    flash_attn, version 2.8.

    For tensors, the number of threads is that of `torch.get_num_threads`, unless `cattn.num_threads`,
    `cattn.set_num_threads` or CATTN_NUM_THREADS says another.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.flash_attn import flash_attn_func
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 128, 12, 64), np.float32)
    >>> flash_attn_func(q, k, v, causal=True).shape
    (1, 128, 12, 64)
    """
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
    house = _house(q)
    found = house.uncompiled(_batched, house, q, k, v, *given)
    return (*found, None) if return_attn_probs else found


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=_UNLIMITED, softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None, *, return_lse=False,
):  # fmt: skip
    """Compute attention over packed sequences: sequence n owns rows ``cu_seqlens[n]`` to ``cu_seqlens[n + 1]``.

    Not affiliated with, nor endorsed by, the authors of FlashAttention.

    Parameters
    ----------
    q : Tensor or ndarray, shape (total queries, H, D)
        The queries of all sequences, one sequence after the other.
    k : Tensor or ndarray, shape (total keys, Hk, D)
        The keys of all sequences.
    v : Tensor or ndarray, shape (total keys, Hk, Dv)
        The values of all sequences.
    cu_seqlens_q, cu_seqlens_k : Tensor or ndarray, shape (batch + 1,), of int32 or int64
        The row at which each sequence begins, and then the total number of rows. The numbers ascend from 0.
    max_seqlen_q, max_seqlen_k : int
        They must be at least the length of the longest sequence. The result does not depend on them.
    block_table
        It must be None. `flash_attn_with_kvcache` takes one.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, return_lse
        As in `flash_attn_func`, with the lengths of each sequence.

    Returns
    -------
    out : Tensor or ndarray, shape (total queries, H, Dv)
        The rows of all sequences, as `flash_attn_func` gives them for each sequence alone.
    lse : Tensor or ndarray, shape (H, total queries)
        It is returned only with return_lse or return_attn_probs.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        They have the same causes as in `flash_attn_func`.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.flash_attn import flash_attn_varlen_func
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 128, 12, 64), np.float32)
    >>> indptr = np.array([0, 50, 51, 128], np.int32)
    >>> flash_attn_varlen_func(q, k, v, indptr, indptr, 77, 77, causal=True).shape
    (128, 12, 64)
    """
    if block_table is not None:
        raise ValueError(
            f"block_table: expected None, got {shown(block_table)}; flash_attn_with_kvcache and cattn.attention_paged "
            "take one"
        )
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
    lengths = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    house = _house(q)
    found = house.uncompiled(_packed, house, q, k, v, *lengths, *given)
    return (*found, None) if return_attn_probs else found


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=_UNLIMITED, softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    """Compute attention over a cache of keys and values, after new ones were written into it.

    Not affiliated with, nor endorsed by, the authors of FlashAttention.

    Parameters
    ----------
    q : Tensor or ndarray, shape (batch, Lq, H, D)
        The queries, of float16, bfloat16, float32 or float64. All other tensors or arrays of numbers have their type.
    k_cache : Tensor or ndarray, shape (batch of the cache, slots, Hk, D), or (pages, page size, Hk, D)
        The keys so far. With `block_table` they lie in pages, which may have any size. The cache is read in place.
    v_cache : Tensor or ndarray, shape (batch of the cache, slots, Hk, Dv), or (pages, page size, Hk, Dv)
        The values so far.
    k : Tensor or ndarray, shape (batch, new, Hk, D), optional
        New keys, which are written **into** `k_cache`, behind the first `cache_seqlens` tokens of each sequence.
    v : Tensor or ndarray, shape (batch, new, Hk, Dv), optional
        New values, which are written into `v_cache`. They are given if and only if `k` is.
    rotary_cos, rotary_sin : Tensor or ndarray, shape (positions, rotary size / 2), optional
        Rotate k and q, as in RoFormer (Su et al. 2021, section 3.4), before k is written. They need `k`. New key i of a
        sequence has the position ``cache_seqlens + i``, and so has query i if there is a causal mask or a window.
        Otherwise all its queries have the position `cache_seqlens`. What is rotated is computed in float32 (in float64
        for float64) and rounded once.
    cache_seqlens : int, or Tensor or ndarray of integers, shape (batch,), optional
        The number of tokens that the cache holds for each sequence **before** k is written, with those of
        `cache_leftpad`. `k` needs it. By default all slots are filled.
    cache_batch_idx : Tensor or ndarray of integers, shape (batch,), optional
        The entry of the cache that each sequence has. By default, sequence n has entry n.
    cache_leftpad : Tensor or ndarray of integers, shape (batch,), optional
        The slot at which each sequence begins. Slots before it are not attended to.
    block_table : Tensor or ndarray of integers, shape (batch, most pages), optional
        The pages of each sequence, in order. As in flash_attn, it cannot stand beside `cache_batch_idx` or
        `cache_leftpad`.
    softmax_scale : float, optional
        The factor of the scores. The default is ``1 / sqrt(D)``.
    causal : bool
        If True, query i attends only to keys ``j <= p_i``, where ``p_i = i + keys - Lq`` (the bottom right corner).
    window_size : (left, right)
        Query i attends only to keys ``p_i - left <= j <= p_i + right``. -1 means no limit on that side.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)``. 0 leaves them as they are.
    rotary_interleaved : bool
        If True, columns 0 and 1, 2 and 3, ... are rotated together. Otherwise column c is rotated with column
        ``c + rotary size / 2`` (as in GPT-NeoX).
    alibi_slopes : Tensor or ndarray, shape (H,) or (batch, H), optional
        The slopes of ALiBi, which adds ``-slope * |p_i - j|`` to the scores.
    num_splits : int
        It has no effect: the results here have the same bits for any number of threads.
    return_softmax_lse : bool
        Return (out, lse).

    Returns
    -------
    out : Tensor or ndarray, shape (batch, Lq, H, Dv), type of q
        Rows that may attend to nothing are zeros.
    lse : Tensor or ndarray, shape (batch, H, Lq)
        It is returned only with return_softmax_lse, and is +inf for rows that may attend to nothing.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given. Nothing has been written.
    NotImplementedError
        A gradient would be needed: a tensor has requires_grad, and gradients are enabled.

    See Also
    --------
    cattn.attention_paged : Attend to keys in pages.
    cattn.KVCache : Keep a cache in NumPy arrays.

    Notes
    -----
    The function follows the documentation of flash_attn, version 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.flash_attn import flash_attn_with_kvcache
    >>> rng = np.random.default_rng(0)
    >>> k_cache, v_cache = np.zeros((2, 1, 64, 2, 16), np.float32)
    >>> for n in range(5):  # one token after the other
    ...     q = rng.standard_normal((1, 1, 4, 16), dtype=np.float32)
    ...     k, v = rng.standard_normal((2, 1, 1, 2, 16), dtype=np.float32)
    ...     out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=n, causal=True)
    >>> out.shape, np.array_equal(k_cache[:, 4:5], k)
    ((1, 1, 4, 16), True)
    """
    house = _house(q)
    options = 0.0, softmax_scale, causal, window_size, softcap, alibi_slopes, False, return_softmax_lse
    rotary = rotary_cos, rotary_sin, rotary_interleaved
    places = cache_seqlens, cache_batch_idx, cache_leftpad, block_table
    return house.uncompiled(_with_cache, house, (q, k_cache, v_cache), (k, v), rotary, places, options)


@in_usual_arithmetic
def _with_cache(house, inputs, new, rotary, places, options):
    names = "q", "k_cache", "v_cache"
    q, *caches = _read_inputs(house, 4, ("(batch, length, heads, size)", *[_OF_CACHES] * 2), *inputs, names=names)
    batch = len(q)
    if caches[1].shape[:3] != caches[0].shape[:3]:
        raise ValueError(
            f"v_cache: expected {caches[0].shape[2]} heads like k_cache, and axes {caches[0].shape[:2]} before, "
            f"got shape {caches[1].shape}"
        )
    options = _options(house, *options)
    new = _read_new(house, names[1:], inputs, (q, *caches), new)
    added = 0 if new is None else new[0].shape[1]
    cache_seqlens, cache_batch_idx, cache_leftpad, block_table = places
    if new is not None and cache_seqlens is None:
        raise ValueError("cache_seqlens: expected the lengths before k is written, because k is given, got None")
    for name, given in (("cache_batch_idx", cache_batch_idx), ("cache_leftpad", cache_leftpad)):
        if block_table is not None and given is not None:
            raise ValueError(f"{name}: expected None beside block_table, got {shown(given)}")

    # A cache without pages has one page for each entry.
    if block_table is not None:
        table = as_integers("block_table", house.read("block_table", block_table), -FAR, FAR)
        if table.ndim != 2 or len(table) != batch:
            raise ValueError(f"block_table: expected shape ({batch}, most pages), got {table.shape}")
    elif cache_batch_idx is not None:
        table = _per_sequence(house, "cache_batch_idx", cache_batch_idx, batch)[:, None]
        _check_numbers("cache_batch_idx", table[:, 0], 0, len(caches[0]) - 1, "the entries of k_cache")
    elif len(caches[0]) >= batch:
        table = np.arange(batch)[:, None]
    else:
        raise ValueError(f"k_cache: expected an entry for each of {batch} sequences, got shape {caches[0].shape}")
    room = table.shape[1] * caches[0].shape[1]
    if cache_seqlens is None:
        before = np.full(batch, room)
    else:
        before = _per_sequence(house, "cache_seqlens", cache_seqlens, batch)
        beside = f" beside the {added} new tokens of k" if added else ""
        _check_numbers("cache_seqlens", before, 0, room - added, f"the slots of k_cache{beside}")
    leftpad = None
    if cache_leftpad is not None:
        leftpad = _per_sequence(house, "cache_leftpad", cache_leftpad, batch)
        _check_numbers("cache_leftpad", leftpad, 0, before, "its cache_seqlens")
    if rotary[0] is not None or rotary[1] is not None:
        sides = as_items(options.get("window", ())) or ()
        moves = as_flag("causal", options["causal"]) or any(side not in (None, -1) for side in sides)
        q, new = _rotate_both(house, q, new, rotary, before, moves)

    lengths = before + added
    if added and block_table is not None:
        size = caches[0].shape[1]
        _arguments.check_pages(table, before // size, -(-lengths // size), len(caches[0]))
    try:
        problems, out, lse = _problems(q, caches, table, lengths, leftpad, block_table is not None, options)
    except (TypeError, ValueError) as error:
        raise renamed(error, _WORDS_OF_CACHE) from None
    if new is not None:
        _write(caches, new, table, before)
    for problem in problems:
        _kernel.attend(problem)
    if lse is None:
        return house.to_tensor(out)
    return house.to_tensor(out), house.to_tensor(_flash_lse(lse))


def _problems(q, caches, table, lengths, leftpad, paged, options):
    """Return the checked problems that are to be computed, and the results that they will write."""
    batch, queries = q.shape[:2]
    options = options | {"query_offset": "end"}
    if paged:
        given = q.reshape(batch * queries, *q.shape[2:]), *caches, table, lengths
        indptr = np.arange(batch + 1) * queries
        problem, out, lse = _arguments.attention_paged(*given, query_indptr=indptr, may_be_longer=True, **options)
        shape = (batch, queries, *out.shape[1:])
        return [problem], out.reshape(shape), None if lse is None else lse.reshape(shape[:-1])
    options["layout"] = "blhd"
    if leftpad is None and np.array_equal(table[:, 0], np.arange(batch)):
        given = q, *(cache[:batch] for cache in caches)
        problem, out, lse = _arguments.attention(*given, key_lengths=lengths, **options)
        return [problem], out, lse
    # Entries in another order, or with a padding at the left, are computed one by one, in place.
    problems, out = [], np.empty((*q.shape[:-1], caches[1].shape[-1]), native(q.dtype))
    lse = np.empty(q.shape[:-1], arithmetic(q.dtype)) if options["return_lse"] else None
    slopes = options.pop("alibi_slopes", None)
    for n, (entry,) in enumerate(table):
        own = {} if slopes is None else {"alibi_slopes": slopes[n] if slopes.ndim == 2 and len(slopes) > 1 else slopes}
        keys = slice(0 if leftpad is None else int(leftpad[n]), int(lengths[n]))
        given = q[n : n + 1], *(cache[entry : entry + 1, keys] for cache in caches)
        problem, _, _ = _arguments.attention(*given, out=out[n : n + 1], **options, **own)
        if lse is not None:
            problem = problem._replace(lse=lse[n : n + 1].swapaxes(-2, -1))
        problems.append(problem)
    return problems, out, lse


def _read_new(house, names, inputs, arrays, new):
    """Return the new keys and values as arrays, or None if there are none. The caches must then be writable."""
    k, v = new
    if k is None and v is None:
        return None
    for name, given, other in (("k", k, "v"), ("v", v, "k")):
        if given is None:
            raise ValueError(f"{name}: expected an array, because {other} is given, got None")
    first = arrays[0] if house is _Arrays else inputs[0]  # no argument is converted twice
    _, *found = _read_inputs(house, 4, "(batch, new, heads, size)", first, k, v)
    q, k_cache, v_cache = arrays
    expected = (len(q), found[0].shape[1], k_cache.shape[2])
    for name, x, cache in (("k", found[0], k_cache), ("v", found[1], v_cache)):
        if x.shape != (*expected, cache.shape[-1]):
            raise ValueError(f"{name}: expected shape {(*expected, cache.shape[-1])}, got {x.shape}")
    for name, given, cache in zip(names, inputs[1:], (k_cache, v_cache), strict=True):
        house.check_writable(name, given, cache)
    return found


def _write(caches, new, table, before):
    """Write new tokens behind those before them, page by page."""
    page_size = caches[0].shape[1]
    for n, start in enumerate(before.tolist()):
        stop, at = start + new[0].shape[1], start
        while at < stop:
            page, slot = table[n, at // page_size], at % page_size
            count = min(page_size - slot, stop - at)
            for cache, x in zip(caches, new, strict=True):
                cache[page, slot : slot + count] = x[n, at - start : at - start + count]
            at += count


def _rotate_both(house, q, new, rotary, before, moves):
    """Return the queries and the new keys and values, rotated at their positions."""
    names = "rotary_cos", "rotary_sin"
    if new is None:
        raise ValueError("rotary_cos: expected None without k, got an array; rotate q before the call")
    for name, given in zip(names, rotary, strict=False):
        if given is None:
            raise ValueError(f"{name}: expected an array, because its other half is given, got None")
    interleaved = as_flag("rotary_interleaved", rotary[2])
    cos, sin = (as_floats(name, house.read(name, given)) for name, given in zip(names, rotary, strict=False))
    for name, x in zip(names, (cos, sin), strict=True):
        if x.ndim != 2 or x.shape != cos.shape or 2 * x.shape[1] > q.shape[-1]:
            raise ValueError(
                f"{name}: expected shape (positions, rotary size / 2), like rotary_cos, of at most half the "
                f"{q.shape[-1]} columns of q, got {x.shape}"
            )
    k, v = new
    ends = k.shape[1], q.shape[1] if moves else min(q.shape[1], 1)
    needed = int(before.max(initial=0)) + max(ends)
    if len(before) and needed > len(cos):
        raise ValueError(f"rotary_cos: expected at least {needed} positions, got shape {cos.shape}")
    positions = before[:, None] + np.arange(k.shape[1])
    k = _rotate(k, cos[positions], sin[positions], interleaved)
    positions = before[:, None] + np.arange(q.shape[1]) * moves
    return _rotate(q, cos[positions], sin[positions], interleaved), (k, v)


def _rotate(x, cos, sin, interleaved):
    """Return the heads of x (batch, length, heads, size) rotated by angles (batch, length, size of the angles)."""
    wide, half = arithmetic(x.dtype), cos.shape[-1]
    cos, sin = (angle.astype(wide)[:, :, None] for angle in (cos, sin))
    pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    one, other = (x[..., columns].astype(wide) for columns in pairs)
    rotated = np.array(x, x.dtype.newbyteorder("="))
    rotated[..., pairs[0]] = one * cos - other * sin
    rotated[..., pairs[1]] = one * sin + other * cos
    return rotated


def _per_sequence(house, name, given, batch):
    """Return integers, one for each sequence, as an array. One number counts for all of them."""
    numbers = as_integers(name, given if type(given) is int else house.read(name, given), -FAR, FAR)
    if numbers.ndim == 0:
        return np.full(batch, numbers)
    if numbers.shape != (batch,):
        raise ValueError(f"{name}: expected shape {(batch,)}, one number for each sequence, got {numbers.shape}")
    return numbers


def _check_numbers(name, numbers, least, most, what):
    most = np.broadcast_to(most, numbers.shape)
    (wrong,) = ((numbers < least) | (numbers > most)).nonzero()
    if wrong.size:
        n = wrong[0]
        raise ValueError(f"{name}: expected {least} to {most[n]}, {what}, got {numbers[n]} (sequence {n})")


def _batched(house, q, k, v, *given):
    house = _recording(house, q, k, v, *given)
    arrays = _read_inputs(house, 4, "(batch, length, heads, size)", q, k, v)
    options = _options(house, *given)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        options["query_offset"] = "end"
    return _attend(house, "attention", *arrays, layout="blhd", **options)


def _packed(house, q, k, v, cu_seqlens, max_seqlens, *given):
    house = _recording(house, q, k, v, *given)
    arrays = _read_inputs(house, 3, "(total length, heads, size)", q, k, v)
    for side, argument, most in zip("qk", cu_seqlens, max_seqlens, strict=True):
        indptr = as_integers(f"cu_seqlens_{side}", house.read(f"cu_seqlens_{side}", argument), -FAR, FAR)
        if indptr.ndim == 1:
            _check_longest(side, most, indptr)
        arrays.append(indptr)
    return _attend(house, "attention_varlen", *arrays, query_offset="end", **_options(house, *given))


class _Arrays:
    """Do for arrays what the module _tensors does for tensors."""

    read = staticmethod(as_array)

    @staticmethod
    def read_inputs(names, *given):
        arrays = [as_floats(name, argument) for name, argument in zip(names, given, strict=True)]
        for name, array in zip(names, arrays, strict=True):
            if array.dtype != arrays[0].dtype:
                check_same_type(name, array.dtype, names[0], arrays[0].dtype)
        return arrays

    @staticmethod
    def check_writable(name, given, array):
        # A cast made an array of its own. Nothing is asked of the argument, whose class may be anyone's.
        if not issubclass(type(given), np.ndarray) or array.base is None:
            raise TypeError(
                f"{name}: expected a NumPy array that new tokens can be written to, got {class_shown(given)}"
            )
        if not array.flags.writeable:
            raise TypeError(f"{name}: expected a NumPy array that new tokens can be written to, got a read-only one")

    @staticmethod
    def uncompiled(function, *given):
        return function(*given)

    @staticmethod
    def num_threads():
        return None

    @staticmethod
    def to_tensor(array):
        return array


def _house(q):
    """Return what reads the caller's arguments: the module _tensors for tensors, _Arrays for all others."""
    torch = sys.modules.get("torch")
    if not isinstance(q, getattr(torch, "Tensor", ())):
        return _Arrays
    from . import _tensors

    return _tensors


def _recording(house, *given):
    """Return the module _autograd if a gradient of something that was given is wanted, else the house itself."""
    if house is _Arrays or not house.is_recorded(*given):
        return house
    from . import _autograd

    return _autograd


def _read_inputs(house, ndim, axes, *given, names=_INPUTS):
    arrays = [*house.read_inputs(names, *given)]
    for name, array, of_this in zip(names, arrays, axes if isinstance(axes, tuple) else [axes] * 3, strict=True):
        if array.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} axes {of_this}, got shape {tuple(array.shape)}")
    return arrays


def _options(
    house, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
):
    """Return flash_attn's options as the arguments of `cattn.attention`."""
    if _number("dropout_p", dropout_p) != 0:
        raise ValueError(f"dropout_p: expected 0, since cattn has no dropout, got {shown(dropout_p)}")
    options = {
        "scale": softmax_scale,
        "causal": causal,
        "return_lse": return_lse,
        "num_threads": house.num_threads(),
    }
    if return_attn_probs is not False:
        options["return_lse"] = as_flag("return_attn_probs", return_attn_probs) | as_flag("return_lse", return_lse)
    if window_size is not _UNLIMITED:  # what else is given may be an array, which == would compare by elements
        options["window"] = _window(window_size)
    softcap = _number("softcap", softcap)
    if softcap != 0:
        options["softcap"] = softcap
    if alibi_slopes is not None:
        options["alibi_slopes"] = house.read("alibi_slopes", alibi_slopes)
    return options


def _number(name, argument):
    """Return a float as it is, NaN included, and quickly. Anything else goes through `as_number`."""
    return argument if type(argument) is float else as_number(name, argument)


def _window(window_size):
    """Return a tuple of Python's numbers, whatever holds them. cattn.attention says whether they are a window."""

    def unpacked(argument):
        return as_array("window_size", argument).tolist() if hasattr(argument, "dtype") else argument

    window = unpacked(window_size)
    sides = as_items(window)
    return window if sides is None else tuple(map(unpacked, sides))


def _attend(house, name, *arrays, **options):
    function = getattr(house, name, None) or getattr(cattn, name)  # _autograd has functions of its own
    try:
        found = function(*arrays, **options)
    except (TypeError, ValueError) as error:
        raise renamed(error, _WORDS) from None
    if not options["return_lse"]:
        return house.to_tensor(found)
    out, lse = found
    return house.to_tensor(out), house.to_tensor(_flash_lse(lse))


def _flash_lse(lse):
    """Return an lse (..., length, heads) as flash_attn has it: (..., heads, length), +inf where a row sees nothing."""
    lse = lse.swapaxes(-1, -2)
    if not isinstance(lse, np.ndarray):
        return lse.contiguous().masked_fill(lse == -np.inf, np.inf)
    lse = np.ascontiguousarray(lse)
    lse[lse == -np.inf] = np.inf
    return lse


def _check_longest(side, most, indptr):
    longest = int((indptr[1:] - indptr[:-1]).max(initial=0))
    expected = f"an integer of {longest} or more, the length of a sequence in cu_seqlens_{side}"
    as_index(f"max_seqlen_{side}: expected {expected}", most, longest)
