"""Attention on CPUs with the names and semantics of the package flash_attn, 2.x.

The functions take NumPy arrays, which need nothing else to be installed, and PyTorch's CPU tensors, which have
gradients. Not affiliated with, nor endorsed by, the authors of FlashAttention.
"""

import cattn

from ._calls import renamed
from ._flash_arguments import UNLIMITED, WORDS, flash_lse, house_of, options_of, read_inputs, recording
from ._flash_cache import attend_cache
from ._modifiers import FAR
from ._read import as_index, as_integers, shown

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=UNLIMITED, softcap=0.0, alibi_slopes=None,
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
    house = house_of(q)
    found = house.uncompiled(_batched, house, q, k, v, *given)
    return (*found, None) if return_attn_probs else found


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=UNLIMITED, softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
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
    house = house_of(q)
    found = house.uncompiled(_packed, house, q, k, v, *lengths, *given)
    return (*found, None) if return_attn_probs else found


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=UNLIMITED, softcap=0.0,
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
        The entry of the cache that each sequence has. By default, sequence n has entry n. If an entry appears twice and
        `k` is given, its new tokens may be those of either sequence, as in flash_attn.
    cache_leftpad : Tensor or ndarray of integers, shape (batch,), optional
        The slot at which each sequence begins. Slots before it are not attended to.
    block_table : Tensor or ndarray of integers, shape (batch, most pages), optional
        The pages of each sequence, in order. Sequences may share a page, but not one that is written to: copy it first.
        As in flash_attn, a table cannot stand beside `cache_batch_idx` or `cache_leftpad`.
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
    house = house_of(q)
    options = 0.0, softmax_scale, causal, window_size, softcap, alibi_slopes, False, return_softmax_lse
    rotary = rotary_cos, rotary_sin, rotary_interleaved
    places = cache_seqlens, cache_batch_idx, cache_leftpad, block_table
    return house.uncompiled(attend_cache, house, (q, k_cache, v_cache), (k, v), rotary, places, options)


def _batched(house, q, k, v, *given):
    house = recording(house, q, k, v, *given)
    arrays = read_inputs(house, 4, "(batch, length, heads, size)", q, k, v)
    options = options_of(house, *given)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        options["query_offset"] = "end"
    return _attend(house, "attention", *arrays, layout="blhd", **options)


def _packed(house, q, k, v, cu_seqlens, max_seqlens, *given):
    house = recording(house, q, k, v, *given)
    arrays = read_inputs(house, 3, "(total length, heads, size)", q, k, v)
    for side, argument, most in zip("qk", cu_seqlens, max_seqlens, strict=True):
        indptr = as_integers(f"cu_seqlens_{side}", house.read(f"cu_seqlens_{side}", argument), -FAR, FAR)
        if indptr.ndim == 1:
            _check_longest(side, most, indptr)
        arrays.append(indptr)
    return _attend(house, "attention_varlen", *arrays, query_offset="end", **options_of(house, *given))


def _attend(house, name, *arrays, **options):
    function = getattr(house, name, None) or getattr(cattn, name)  # _autograd has functions of its own
    try:
        found = function(*arrays, **options)
    except (TypeError, ValueError) as error:
        raise renamed(error, WORDS) from None
    if not options["return_lse"]:
        return house.to_tensor(found)
    out, lse = found
    return house.to_tensor(out), house.to_tensor(flash_lse(lse))


def _check_longest(side, most, indptr):
    longest = int((indptr[1:] - indptr[:-1]).max(initial=0))
    expected = f"an integer of {longest} or more, the length of a sequence in cu_seqlens_{side}"
    as_index(f"max_seqlen_{side}: expected {expected}", most, longest)
