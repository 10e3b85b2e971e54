"""Attention in plain NumPy: the specification that every other result is checked against.

Whole matrices, one step a line, float64. Nothing is fast here and nothing is checked: the functions of the package
itself say what is wrong with an argument. Masked keys are selected away, never multiplied by zero, so that nothing
that stands in them can reach a result.
"""

import numpy as np

__all__ = ["attention", "attention_varlen", "attention_weights"]


def attention(
    query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None, query_lengths=None,
    key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None, layout="bhld",
    return_lse=False, dtype=None,
):  # fmt: skip
    r"""Scaled dot-product attention, :math:`\mathrm{softmax}(QK^\top / \sqrt{d})\,V`.

    A score goes through ``scale * (q @ k)``, softcap, bias and ALiBi, the masks, and the softmax of its row.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        Lq queries in each of Hq heads.
    key : array_like, (..., Hkv, Lk, D)
        Lk keys in each of Hkv heads.
    value : array_like, (..., Hkv, Lk, Dv)
        Leading dimensions broadcast. Query head ``h`` reads key and value head ``h // (Hq // Hkv)``. When all three
        are two-dimensional there is one head and no head axis.
    scale : float, optional
        Factor of the scores, ``1 / sqrt(D)`` by default [1]_.
    causal : bool
        Row ``i``, which stands at position ``p_i = query_offset + i``, attends to keys ``j <= p_i`` only.
    window : (left, right), optional
        Row ``i`` attends to keys ``p_i - left <= j <= p_i + right`` only; None or -1 is no limit on that side.
    query_offset : {"start", "end"}, int, or int array, optional
        Position of the first query among the keys, for each batch entry. "start" is 0, "end" the entry's key length
        less its query length. May be omitted where Lq equals Lk (0) or no position is used.
    key_range : (start, stop), optional
        Integer arrays (..., Hq, Lq) or None: row ``i`` attends to keys ``start_i <= j < stop_i`` only.
    query_lengths, key_lengths : int or int array, optional
        For each batch entry. Keys at or past the length do not exist, query rows at or past it give zeros.
    mask : bool array, optional
        Broadcasts to (..., Hq, Lq, Lk); True may attend.
    bias : array_like, optional
        Added to the scores, broadcasts to (..., Hq, Lq, Lk); -inf masks.
    alibi_slopes : array_like, (Hq,), or (..., Hq) for each batch entry, optional
        Adds ``-slope * abs(p_i - j)`` to the scores [2]_.
    softcap : float, optional
        Replaces a score ``s`` by ``softcap * tanh(s / softcap)`` [3]_.
    sinks : array_like, (Hq,), optional
        One more logit in each row of a head, which takes weight and carries no value [4]_ [5]_.
    layout : {"bhld", "blhd"}
        With "blhd", query, key, value and the output are (..., L, H, D).
    return_lse : bool
        Also return the logarithm of the sum of the exponentials of each row's scores.
    dtype : dtype, optional
        What to compute in and return: float64, or longdouble if an input is.

    Returns
    -------
    out : ndarray, (..., Hq, Lq, Dv)
        A row that attends to nothing is 0.
    lse : ndarray, ``out.shape[:-1]``
        Only if `return_lse`. A row that attends to nothing has the sink's logit, or -inf.

    See Also
    --------
    attention_weights : The matrices on the way.

    Notes
    -----
    An output of `cattn.attention` is no further from this one than

    .. math:: \kappa\,\varepsilon\,(1 + A_i) \sum_j p_j |v_j| + \text{the smallest normal number}

    with the weights :math:`p_j`, :math:`\varepsilon` of the type that is computed in, float64 or float32, and
    :math:`A_i = \max_j |scale| \sum_c |q_c k_{jc}| + |bias_{ij}| + slope\,|p_i - j|`, at least :math:`|sink|`.
    :math:`\kappa` is 4, or 1.5 times that of plain NumPy in the same type plus 0.5 if that is more, for head sizes up
    to 4096. To this come

    - where the output is float16 or bfloat16: one unit in its last place;
    - where query, key and value are bfloat16: :math:`(1 + 2^{-6})\,u \sum_j p_j |v_j - out|` over the keys, with
      :math:`u = 2^{-8}`, half of bfloat16's epsilon. Weights may be rounded to bfloat16, to nearest, and are divided by
      the sum of the rounded ones then, so that what all values share cancels: equal values come out as they are, where
      there is no sink and nothing underflows.

    Weights, and products of weight and value, that are below the smallest normal number are lost.

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
    dtype = _arithmetic(dtype, query, key, value)
    query, key, value, without_heads = _heads_first(dtype, layout, query, key, value)
    with np.errstate(all="ignore"):
        scores, exists = _scores(
            query, key, "biased", scale, causal, window, query_offset, key_range, query_lengths, key_lengths,
            mask, bias, alibi_slopes, softcap,
        )  # fmt: skip
        weights, lse = _softmax(scores, sinks)
        out = _weighted_sum(weights, scores != -np.inf, _repeat_heads(value, query))
        lse = np.where(exists, lse, -np.inf)
    lse = np.broadcast_to(lse, out.shape[:-1]).copy()
    if without_heads:
        out, lse = out[0], lse[0]
    elif layout == "blhd":
        out, lse = out.swapaxes(-2, -3), lse.swapaxes(-1, -2)
    return (out, lse) if return_lse else out


def attention_weights(
    query, key, *, stage="weights", scale=None, causal=False, window=None, query_offset=None, key_range=None,
    query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
    layout="bhld", dtype=None,
):  # fmt: skip
    """The matrix of attention weights, or of scores on the way to it.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    stage : {"weights", "scores", "softcapped", "biased"}
        "scores" are the scaled products, "softcapped" those after the softcap, both whatever is masked; "biased" are
        the final scores, -inf where masked; "weights" are the rows after the softmax, 0 where masked.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, layout, dtype : optional
        As in `attention`.

    Returns
    -------
    ndarray, (..., Hq, Lq, Lk)
        In either layout.

    See Also
    --------
    attention : The weighted sums of values.

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
    dtype = _arithmetic(dtype, query, key)
    query, key, without_heads = _heads_first(dtype, layout, query, key)
    with np.errstate(all="ignore"):
        matrix, _ = _scores(
            query, key, stage, scale, causal, window, query_offset, key_range, query_lengths, key_lengths,
            mask, bias, alibi_slopes, softcap,
        )  # fmt: skip
        if stage == "weights":
            matrix, _ = _softmax(matrix, sinks)
    return matrix[0] if without_heads else matrix


def attention_varlen(
    query, key, value, query_indptr, key_indptr, *, query_offset=None, alibi_slopes=None, return_lse=False, dtype=None,
    **modifiers,
):  # fmt: skip
    """`attention` on packed sequences: sequence ``n`` owns rows ``indptr[n]`` to ``indptr[n + 1]``.

    Parameters
    ----------
    query : array_like, (total queries, Hq, D)
        The queries of all sequences, one after the other.
    key : array_like, (total keys, Hkv, D)
        Their keys.
    value : array_like, (total keys, Hkv, Dv)
        Their values.
    query_indptr, key_indptr : int array_like, (sequences + 1,)
        Ascending, from 0 to the total.
    query_offset : {"start", "end"}, int, or int array (sequences,), optional
        Position of the first query of each sequence among its keys, as in `attention`.
    alibi_slopes : array_like, (Hq,) or (sequences, Hq), optional
        As in `attention`.
    return_lse, dtype : optional
        As in `attention`.
    **modifiers
        As in `attention`: scale, causal, window, softcap, sinks.

    Returns
    -------
    out : ndarray, (total queries, Hq, Dv)
        What `attention` gives for each sequence by itself.
    lse : ndarray, (total queries, Hq)
        Only if `return_lse`.

    See Also
    --------
    attention : One sequence, or a batch of equal lengths.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 6, 4, 8))
    >>> cattn.reference.attention_varlen(query, key, value, [0, 2, 6], [0, 2, 6]).shape
    (6, 4, 8)
    """
    query, key, value = np.asarray(query), np.asarray(key), np.asarray(value)
    dtype = _arithmetic(dtype, query, key, value)
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


def _arithmetic(dtype, *arrays):
    return np.dtype(dtype) if dtype is not None else np.result_type(np.float64, *(np.asarray(x).dtype for x in arrays))


def _heads_first(dtype, layout, *arrays):
    """The arrays as (..., H, L, D), and whether they came without a head axis."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        arrays = [np.asarray(x).astype(dtype) for x in arrays]
    if all(x.ndim == 2 for x in arrays):
        return *(x[None] for x in arrays), True
    if layout == "blhd":
        arrays = [x.swapaxes(-2, -3) for x in arrays]
    return *arrays, False


def _repeat_heads(x, query):
    return np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3)


def _per_entry(x):
    """(...) as (..., 1, 1, 1), to stand beside (..., Hq, Lq, Lk)."""
    return np.asarray(x, np.int64)[..., None, None, None]


def _scores(
    query, key, stage, scale, causal, window, query_offset, key_range, query_lengths, key_lengths, mask, bias,
    alibi_slopes, softcap,
):  # fmt: skip
    """(..., Hq, Lq, Lk): the scores at `stage`, and (..., 1 or Hq, Lq): which query rows exist."""
    dtype = query.dtype
    (rows, size), keys = query.shape[-2:], key.shape[-2]
    i, j = np.arange(rows)[:, None], np.arange(keys)
    query_lengths = _per_entry(rows if query_lengths is None else query_lengths)
    key_lengths = _per_entry(keys if key_lengths is None else key_lengths)
    exists = i < query_lengths

    scores = query @ _repeat_heads(key, query).swapaxes(-1, -2)
    scores = scores * (1 / np.sqrt(dtype.type(size)) if scale is None else dtype.type(scale))
    if stage == "scores":
        return scores, exists
    if softcap is not None:
        softcap = dtype.type(softcap)
        scores = softcap * np.tanh(scores / softcap)
    if stage == "softcapped":
        return scores, exists

    if query_offset is None:
        if rows != keys and (causal or window is not None or alibi_slopes is not None):
            raise ValueError('query_offset: required where Lq and Lk differ: "start", "end" or a number')
        query_offset = 0
    if isinstance(query_offset, str):
        position = i + {"start": 0, "end": key_lengths - query_lengths}[query_offset]
    else:
        position = i + _per_entry(query_offset)
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
    """The weights of each row and the logarithm of its sum; a score of -inf has the weight 0 whatever its row holds."""
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


def _weighted_sum(weights, attended, value):
    """weights @ value, where a NaN or infinity counts in the rows that attend to it, however small their weight."""

    def meets(special):
        return attended.astype(weights.dtype) @ special.astype(weights.dtype) > 0

    out = weights @ np.where(np.isfinite(value), value, 0)
    if np.isfinite(value).all():
        return out
    for special, found in ((np.inf, value == np.inf), (-np.inf, value == -np.inf), (np.nan, np.isnan(value))):
        out = out + np.where(meets(found), special, 0)
    return out
