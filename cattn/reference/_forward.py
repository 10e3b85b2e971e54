"""Attention in float64: whole matrices, one step a line."""

import numpy as np


def attention(
    query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None, query_lengths=None,
    key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None, key_scale=None,
    value_scale=None, layout="bhld", return_lse=False, dtype=None,
):  # fmt: skip
    r"""Compute scaled dot-product attention, :math:`\mathrm{softmax}(QK^\top / \sqrt{d})\,V`.

    A score goes through these steps in this order: ``scale * (q @ k)``, softcap, bias and ALiBi, the masks, and the
    softmax of its row.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        Lq queries in each of Hq heads.
    key : array_like, (..., Hkv, Lk, D)
        Lk keys in each of Hkv heads.
    value : array_like, (..., Hkv, Lk, Dv)
        Leading dimensions broadcast. Query head ``h`` reads key and value head ``h // (Hq // Hkv)``. If all three
        arrays are two-dimensional, there is one head, and no head axis.
    scale : float, optional
        The factor of the scores. The default is ``1 / sqrt(D)`` [1]_.
    causal : bool
        If True, row ``i`` attends only to keys ``j <= p_i``, where ``p_i = query_offset + i`` is its position.
    window : (left, right), optional
        Row ``i`` attends only to keys ``p_i - left <= j <= p_i + right``. None or -1 means no limit on that side.
    query_offset : {"start", "end"}, int, or int array, optional
        The position of the first query among the keys, for each batch entry. "start" means 0. "end" means the entry's
        key length less its query length. It may be omitted where Lq equals Lk (it is then 0), or where no position is
        used.
    key_range : (start, stop), optional
        Two integer arrays (..., Hq, Lq), or None. Row ``i`` attends only to keys ``start_i <= j < stop_i``.
    query_lengths, key_lengths : int or int array, optional
        The numbers of queries and keys of each batch entry. Keys at or past the length do not exist. Query rows at or
        past it give zeros.
    mask : bool array, optional
        It broadcasts to (..., Hq, Lq, Lk), and is True where a query may attend to a key.
    bias : array_like, optional
        It broadcasts to (..., Hq, Lq, Lk) and is added to the scores. -inf masks the key.
    alibi_slopes : array_like, (Hq,), or (..., Hq) for each batch entry, optional
        The slopes of ALiBi, which adds ``-slope * abs(p_i - j)`` to the scores [2]_.
    softcap : float, optional
        A score ``s`` becomes ``softcap * tanh(s / softcap)`` [3]_.
    sinks : array_like, (Hq,), optional
        One more logit in each row of a head. It takes weight and carries no value [4]_ [5]_.
    key_scale, value_scale : array_like, optional
        They broadcast to key and to value, in their layout. The keys are ``key * key_scale``, and likewise the values.
    layout : {"bhld", "blhd"}
        With "blhd", query, key, value and the output are (..., L, H, D).
    return_lse : bool
        Also return the logarithm of the sum of the exponentials of each row's scores.
    dtype : dtype, optional
        The type to compute in and to return. The default is float64, or longdouble if an input has that type.

    Returns
    -------
    out : ndarray, (..., Hq, Lq, Dv)
        A row that attends to nothing is 0.
    lse : ndarray, ``out.shape[:-1]``
        It is returned only with `return_lse`. A row that attends to nothing has the sink's logit, or -inf.

    See Also
    --------
    attention_weights : Compute the matrices on the way.
    attention_backward : Compute the gradients.
    error_bound : Compute how far `cattn.attention` may be from this.

    Notes
    -----
    An output of `cattn.attention` differs from this one by at most the `error_bound`.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1. https://arxiv.org/abs/1706.03762
    .. [2] Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", 2022. https://arxiv.org/abs/2108.12409
    .. [3] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2.
       https://arxiv.org/abs/2408.00118
    .. [4] Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023.
       https://arxiv.org/abs/2309.17453
    .. [5] OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025: a learned logit for each head in the denominator.
       https://arxiv.org/abs/2508.10925

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 4, 100, 16), dtype=np.float32)
    >>> expected = cattn.reference.attention(query, key, value)
    >>> expected.dtype
    dtype('float64')
    >>> np.allclose(cattn.attention(query, key, value), expected, atol=1e-5)
    True
    """
    key, value = times(key, key_scale), times(value, value_scale)
    dtype = arithmetic_type(dtype, query, key, value)
    query, key, value, without_heads = heads_first(dtype, layout, query, key, value)
    with np.errstate(all="ignore"):
        scores, exists = _scores(
            query, key, "biased", scale, causal, window, query_offset, key_range, query_lengths, key_lengths,
            mask, bias, alibi_slopes, softcap,
        )  # fmt: skip
        weights, lse = _softmax(scores, sinks)
        out = weighted_sum(weights, scores != -np.inf, repeat_heads(value, query))
        lse = np.where(exists, lse, -np.inf)
    lse = np.broadcast_to(lse, out.shape[:-1]).copy()
    out, lse = as_given(out, -3, without_heads, layout), as_given(lse, -2, without_heads, layout)
    return (out, lse) if return_lse else out


def attention_weights(
    query, key, *, stage="weights", scale=None, causal=False, window=None, query_offset=None, key_range=None,
    query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
    key_scale=None, layout="bhld", dtype=None,
):  # fmt: skip
    """Compute the matrix of attention weights, or of the scores that lead to it.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    stage : {"weights", "scores", "softcapped", "biased"}
        "scores" are the scaled products, and "softcapped" those after the softcap. Masks change neither. "biased" are
        the final scores, which are -inf where masked. "weights" are the rows after the softmax, which are 0 where
        masked.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, key_scale, layout, dtype : optional
        As in `attention`.

    Returns
    -------
    ndarray, (..., Hq, Lq, Lk)
        The shape is the same in either layout.

    See Also
    --------
    attention : Compute the weighted sums of values.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    >>> cattn.reference.attention_weights(x, x, causal=True).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.056, 0.944, 0.   ],
           [0.198, 0.401, 0.401]])
    """
    key = times(key, key_scale)
    dtype = arithmetic_type(dtype, query, key)
    query, key, without_heads = heads_first(dtype, layout, query, key)
    with np.errstate(all="ignore"):
        matrix, _ = _scores(
            query, key, stage, scale, causal, window, query_offset, key_range, query_lengths, key_lengths,
            mask, bias, alibi_slopes, softcap,
        )  # fmt: skip
        if stage == "weights":
            matrix, _ = _softmax(matrix, sinks)
    return matrix[0] if without_heads else matrix


def attention_varlen(
    query, key, value, query_indptr, key_indptr, *, query_offset=None, alibi_slopes=None, key_scale=None,
    value_scale=None, return_lse=False, dtype=None, **modifiers,
):  # fmt: skip
    """Compute `attention` on packed sequences: sequence ``n`` owns rows ``indptr[n]`` to ``indptr[n + 1]``.

    Parameters
    ----------
    query : array_like, (total queries, Hq, D)
        The queries of all sequences, one sequence after the other.
    key : array_like, (total keys, Hkv, D)
        The keys of all sequences.
    value : array_like, (total keys, Hkv, Dv)
        The values of all sequences.
    query_indptr, key_indptr : int array_like, (sequences + 1,)
        The row at which each sequence begins, and then the total number of rows. The numbers ascend from 0.
    query_offset : {"start", "end"}, int, or int array (sequences,), optional
        The position of the first query of each sequence among its keys, as in `attention`.
    alibi_slopes : array_like, (Hq,) or (sequences, Hq), optional
        As in `attention`.
    key_scale, value_scale, return_lse, dtype : optional
        As in `attention`.
    **modifiers
        As in `attention`: scale, causal, window, softcap, sinks.

    Returns
    -------
    out : ndarray, (total queries, Hq, Dv)
        Each sequence has the result that `attention` gives for it alone.
    lse : ndarray, (total queries, Hq)
        It is returned only with `return_lse`.

    See Also
    --------
    attention : Compute one sequence, or a batch of equal lengths.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 6, 4, 8))
    >>> cattn.reference.attention_varlen(query, key, value, [0, 2, 6], [0, 2, 6]).shape
    (6, 4, 8)
    """
    query, key, value = np.asarray(query), times(key, key_scale), times(value, value_scale)
    dtype = arithmetic_type(dtype, query, key, value)
    sequences = len(query_indptr) - 1
    if query_offset is None or isinstance(query_offset, str):
        offsets = [query_offset] * sequences
    else:
        offsets = np.broadcast_to(query_offset, sequences)
    slopes = [None] * sequences
    if alibi_slopes is not None:
        slopes = np.broadcast_to(alibi_slopes, (sequences, query.shape[1]))
    out = np.empty((*query.shape[:2], value.shape[-1]), dtype)
    lse = np.empty(query.shape[:2], dtype)
    for n in range(sequences):
        rows, keys = slice(*query_indptr[n : n + 2]), slice(*key_indptr[n : n + 2])
        out[rows], lse[rows] = attention(
            query[rows], key[keys], value[keys],
            query_offset=offsets[n], alibi_slopes=slopes[n], layout="blhd", return_lse=True, dtype=dtype, **modifiers,
        )  # fmt: skip
    return (out, lse) if return_lse else out


def attention_paged(
    query, key_cache, value_cache, block_table, key_lengths, *, query_indptr=None, key_scale=None, value_scale=None,
    **options,
):  # fmt: skip
    """Compute `attention_varlen` on keys and values that lie in pages.

    Parameters
    ----------
    query : array_like, (total queries, Hq, D)
        The queries of all sequences, one sequence after the other.
    key_cache : array_like, (pages, page size, Hkv, D)
        The keys.
    value_cache : array_like, (pages, page size, Hkv, Dv)
        The values.
    block_table : int array_like, (sequences, most pages)
        The pages of each sequence, in order. Numbers that do not exist count as the nearest ones that do. They may
        stand behind a length, and where nothing is attended to.
    key_lengths : int array_like, (sequences,)
        The number of keys of each sequence.
    query_indptr : int array_like, (sequences + 1,), optional
        As in `attention_varlen`. By default each sequence has one query.
    key_scale, value_scale : array_like, optional
        As in `attention`: they broadcast to the caches.
    **options
        As in `attention_varlen`: scale, causal, window, query_offset, alibi_slopes, softcap, sinks, return_lse, dtype.

    Returns
    -------
    out : ndarray, (total queries, Hq, Dv)
        Each sequence has the result that `attention` gives for it alone.
    lse : ndarray, (total queries, Hq)
        It is returned only with `return_lse`.

    See Also
    --------
    attention_varlen : Compute the same on keys that lie one after the other.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> key_cache, value_cache = rng.standard_normal((2, 9, 4, 2, 8))
    >>> query = rng.standard_normal((2, 6, 8))
    >>> cattn.reference.attention_paged(query, key_cache, value_cache, [[3, 8], [3, 0]], [5, 7]).shape
    (2, 6, 8)
    """
    block_table, key_lengths = np.asarray(block_table), np.asarray(key_lengths)
    if query_indptr is None:
        query_indptr = np.arange(len(block_table) + 1)

    def in_order(cache):
        pages, page_size, *row = cache.shape
        places = np.clip(block_table, 0, max(0, pages - 1))[..., None] * page_size + np.arange(page_size)
        keys = [of_sequence.ravel()[:n] for of_sequence, n in zip(places, key_lengths, strict=True)]
        return cache.reshape(pages * page_size, *row)[np.concatenate([np.zeros(0, int), *keys])]

    key, value = in_order(times(key_cache, key_scale)), in_order(times(value_cache, value_scale))
    return attention_varlen(query, key, value, query_indptr, np.cumsum([0, *key_lengths]), **options)


def arithmetic_type(dtype, *arrays):
    return np.dtype(dtype) if dtype is not None else np.result_type(np.float64, *(np.asarray(x).dtype for x in arrays))


def times(x, scale):
    """Return what int8 keys or values stand for, or those of floating types as they are."""
    return np.asarray(x) if scale is None else np.asarray(x, np.float64) * np.asarray(scale).astype(np.float64)


def heads_first(dtype, layout, *arrays):
    """Return the arrays as (..., H, L, D), and whether they came without a head axis."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        arrays = [np.asarray(x).astype(dtype) for x in arrays]
    if all(x.ndim == 2 for x in arrays):
        return *(x[None] for x in arrays), True
    if layout == "blhd":
        arrays = [x.swapaxes(-2, -3) for x in arrays]
    return *arrays, False


def as_given(x, heads, without_heads, layout):
    """Return (..., H, L) or (..., H, L, D) in the caller's layout. `heads` is the axis of heads, from the end."""
    if without_heads:
        return x[0]
    return x.swapaxes(heads, heads + 1) if layout == "blhd" else x


def repeat_heads(x, query):
    return np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3)


def _per_entry(x):
    """Return an array of shape (...) as (..., 1, 1, 1), which broadcasts with (..., Hq, Lq, Lk)."""
    return np.asarray(x, np.int64)[..., None, None, None]


def positions_of(rows, keys, query_offset, query_lengths, key_lengths):
    """Return where the queries stand among the keys, and the numbers of both, all of them (..., 1, rows or 1, 1)."""
    query_lengths = _per_entry(rows if query_lengths is None else query_lengths)
    key_lengths = _per_entry(keys if key_lengths is None else key_lengths)
    if isinstance(query_offset, str):
        first = {"start": 0, "end": key_lengths - query_lengths}[query_offset]
    else:
        first = _per_entry(0 if query_offset is None else query_offset)
    return np.arange(rows)[:, None] + first, query_lengths, key_lengths


def _scores(
    query, key, stage, scale, causal, window, query_offset, key_range, query_lengths, key_lengths, mask, bias,
    alibi_slopes, softcap,
):  # fmt: skip
    """Return the scores at `stage` (..., Hq, Lq, Lk), and which query rows exist (..., 1 or Hq, Lq)."""
    dtype = query.dtype
    (rows, size), keys = query.shape[-2:], key.shape[-2]
    i, j = np.arange(rows)[:, None], np.arange(keys)
    position, query_lengths, key_lengths = positions_of(rows, keys, query_offset, query_lengths, key_lengths)
    exists = i < query_lengths

    scores = query @ repeat_heads(key, query).swapaxes(-1, -2)
    scores = scores * (1 / np.sqrt(dtype.type(size)) if scale is None else dtype.type(scale))
    if stage == "scores":
        return scores, exists
    if softcap is not None:
        softcap = dtype.type(softcap)
        scores = softcap * np.tanh(scores / softcap)
    if stage == "softcapped":
        return scores, exists

    if query_offset is None and rows != keys and (causal or window is not None or alibi_slopes is not None):
        raise ValueError('query_offset: required where Lq and Lk differ: "start", "end" or a number')
    left, right = (-1, -1) if window is None else window

    allowed = exists & (j < key_lengths)
    if causal:
        allowed = allowed & (j <= position)
    if left not in (None, -1):
        allowed = allowed & (position - left <= j)
    if right not in (None, -1):
        allowed = allowed & (j <= position + right)
    start, stop = (None, None) if key_range is None else key_range
    if start is not None:
        allowed = allowed & (np.asarray(start)[..., None] <= j)
    if stop is not None:
        allowed = allowed & (j < np.asarray(stop)[..., None])
    if mask is not None:
        allowed = allowed & mask
    if bias is not None:
        bias = np.asarray(bias).astype(dtype)
        allowed = allowed & (bias != -np.inf)
        scores = scores + bias
    if alibi_slopes is not None:
        slopes = np.asarray(alibi_slopes).astype(dtype)[..., None, None]
        scores = scores - slopes * np.abs(position - j).astype(dtype)
    return np.where(allowed, scores, dtype.type(-np.inf)), exists[..., 0]


def _softmax(scores, sinks):
    """Return the weights and the lse of each row. A score of -inf has the weight 0, whatever else its row holds."""
    maximum = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    sink = None if sinks is None else np.asarray(sinks).astype(scores.dtype)[:, None, None]
    if sink is not None:
        maximum = np.maximum(maximum, sink)
    shift = np.where(maximum == -np.inf, 0, maximum)
    exponentials = np.exp(scores - shift)
    total = exponentials.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - shift)
    weights = np.where(scores == -np.inf, 0, exponentials / total)
    return weights, (maximum + np.log(total))[..., 0]


def weighted_sum(weights, attended, value):
    """Return weights @ value. A NaN or infinity reaches every row that attends to it, however small its weight."""

    def meets(special):
        return attended.astype(weights.dtype) @ special.astype(weights.dtype) > 0

    out = weights @ np.where(np.isfinite(value), value, 0)
    if np.isfinite(value).all():
        return out
    for special, found in ((np.inf, value == np.inf), (-np.inf, value == -np.inf), (np.nan, np.isnan(value))):
        out = out + np.where(meets(found), special, 0)
    return out
