"""Attention in plain NumPy: this is the specification that every other result is checked against.

The functions here compute whole matrices in float64, one step a line. They are not fast, and they check no arguments:
the functions of the package itself say what is wrong with an argument. Masked keys are replaced, never multiplied by
zero, so that nothing they hold can reach a result.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from ._calls import forwarding
from ._gradients import Gradients

__all__ = [
    "attention",
    "attention_backward",
    "attention_paged",
    "attention_varlen",
    "attention_weights",
    "error_bound",
    "maxsim",
    "maxsim_error_bound",
]

# The numbers of the promise, which `error_bound` explains.
_KAPPA, _LSE_KAPPA = 4, 8
_TIMES_NUMPY, _PLUS = 1.5, 0.5
_ROUNDED_WEIGHTS = (1 + 2.0**-6) * 2.0**-8


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
    key, value = _times(key, key_scale), _times(value, value_scale)
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
    out, lse = _as_given(out, -3, without_heads, layout), _as_given(lse, -2, without_heads, layout)
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
    key = _times(key, key_scale)
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
    query, key, value = np.asarray(query), _times(key, key_scale), _times(value, value_scale)
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


@forwarding(attention, without=("key_scale", "value_scale", "return_lse"))
def attention_backward(
    grad_out, query, key, value, out=None, lse=None, *, grad_lse=None, bias_grad=False, layout="bhld", dtype=None,
    **modifiers,
):  # fmt: skip
    r"""Compute the gradients of a loss with respect to the inputs of `attention`.

    Parameters
    ----------
    grad_out : array_like, (..., Hq, Lq, Dv)
        The gradient of the loss with respect to the output.
    query : array_like, (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    value : array_like, (..., Hkv, Lk, Dv)
        As in `attention`.
    out : array_like, (..., Hq, Lq, Dv), optional
        The output of `attention`. It is computed if it is None.
    lse : array_like, ``out.shape[:-1]``, optional
        The lse of `attention`. It is computed if it is None.
    grad_lse : array_like, ``out.shape[:-1]``, optional
        The gradient of the loss with respect to lse. None stands for zeros.
    bias_grad : bool
        Also compute the gradient of bias.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, layout : optional
        As in `attention`.
    dtype : dtype, optional
        The type to compute in and to return. The default is float64, or longdouble if an input has that type.

    Returns
    -------
    Gradients
        A tuple of the gradients of query, key, value, bias, alibi_slopes and sinks. Each has the shape of its input. It
        is None if there is no such input, and for bias also without `bias_grad`. The gradient of what is masked, and of
        rows that attend to nothing, is exactly 0.

    See Also
    --------
    attention : Compute the output that the gradients belong to.

    Notes
    -----
    With :math:`P_{ij} = e^{S_{ij} - lse_i}`, where :math:`S` are the final scores, and :math:`t` the scores after the
    softcap [1]_ [2]_:

    .. math::

        \Delta_i &= \sum_c dO_{ic}\,O_{ic} - dlse_i \\
        G &= P \circ (dO\,V^\top - \Delta) \\
        dS &= G \circ (1 - (t / softcap)^2) \\
        dQ &= scale \cdot dS\,K, \quad dK = scale \cdot dS^\top Q, \quad dV = P^\top dO \\
        dbias &= G, \quad dslope = -\sum_{ij} G_{ij} |p_i - j|,
        \quad dsink = -\sum_i e^{sink - lse_i} \Delta_i

    A key head gets the sum over the query heads that read it. An input that was broadcast gets the sum over the axes
    along which it was.

    A NaN or an infinity that is attended to gives NaN or infinities. One that is masked reaches no gradient.

    References
    ----------
    .. [1] Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, appendix B.
       https://arxiv.org/abs/2205.14135
    .. [2] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2, for the softcap.
       https://arxiv.org/abs/2408.00118

    Examples
    --------
    The loss is half the sum of the squared outputs, so that its gradient with respect to the output is the output:

    >>> import numpy as np
    >>> import cattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 4, 100, 16))
    >>> out = cattn.reference.attention(query, key, value)
    >>> gradients = cattn.reference.attention_backward(out, query, key, value)
    >>> value[1, 2, 3] += 1e-6
    >>> later = cattn.reference.attention(query, key, value)
    >>> slope = ((later**2).sum() - (out**2).sum()) / 2 / 1e-6
    >>> np.allclose(slope, gradients.value[1, 2, 3], rtol=1e-4)
    True
    """
    dtype = _arithmetic(dtype, grad_out, query, key, value)
    with np.errstate(all="ignore"):
        terms = _backward_terms(dtype, layout, grad_out, query, key, value, out, lse, grad_lse, **modifiers)
        return _of_inputs(terms.gradients(), layout, query, key, value, bias_grad, **modifiers)


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
        none = cache.reshape(-1, *cache.shape[2:])[:0]
        pages = [cache.take(numbers, axis=0, mode="clip") for numbers in block_table] if cache.size else []
        return np.concatenate(
            [none, *(x.reshape(-1, *x.shape[2:])[:n] for x, n in zip(pages, key_lengths, strict=False))]
        )

    key, value = in_order(_times(key_cache, key_scale)), in_order(_times(value_cache, value_scale))
    return attention_varlen(query, key, value, query_indptr, np.cumsum([0, *key_lengths]), **options)


@forwarding(attention, without=("dtype",))
def error_bound(query, key, value, *, return_lse=False, **modifiers):
    r"""Compute how far each output of `cattn.attention` may be from that of `attention`.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        As in `attention`. Its type is that of the output.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    value : array_like, (..., Hkv, Lk, Dv)
        As in `attention`.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, key_scale, value_scale, layout : optional
        As in `attention`.
    return_lse : bool
        Also return the bound of lse.

    Returns
    -------
    bound : ndarray, (..., Hq, Lq, Dv)
        The largest difference that is allowed, for each output.
    lse_bound : ndarray, ``bound.shape[:-1]``
        The same for lse. It is returned only with `return_lse`.

    See Also
    --------
    attention : Compute the result that the bound is about.

    Notes
    -----
    An output differs from that of `attention` by at most

    .. math:: \kappa\,(\varepsilon\,(1 + A_i) \sum_j p_j |v_j| + \text{the smallest normal number})

    Here :math:`p_j` are the weights, :math:`\varepsilon` is that of the type that is computed in (float64 or float32),
    and :math:`A_i = \max_j |scale| \sum_c |q_c k_{jc}| + |bias_{ij}| + slope\,|p_i - j|`, at least :math:`|sink|`, over
    the keys whose weight is at least the smallest normal number. :math:`\kappa` is 4, or 1.5 times that of plain NumPy
    in the same type plus 0.5 if that is more, for head sizes up to 4096. Plain NumPy has its largest :math:`\kappa`
    where nearly equal terms are summed, which may all round the same way. These results may differ by more:

    - A float16 or bfloat16 output may be off by one more unit in its last place.
    - Where query, key and value are bfloat16, :math:`(1 + 2^{-6})\,u \sum_j p_j |v_j - out|` over the keys is added to
      the bound, with :math:`u = 2^{-8}`, half of bfloat16's epsilon. The reason is that weights may be rounded to
      bfloat16, to nearest. They are then divided by the sum of the rounded weights, so that what all values share
      cancels. Equal values come out as they are, unless there is a sink or something underflows.
    - Weights, and products of weight and value, are lost where they are below the smallest normal number.

    lse differs by at most :math:`\kappa\,\varepsilon\,(1 + A_i + |lse|)`, with 8 in the place of 4. Its bound is wider
    because an error that all scores of a row share cancels in the output only.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 4, 100, 16), dtype=np.float32)
    >>> error = cattn.attention(query, key, value) - cattn.reference.attention(query, key, value)
    >>> bool(np.all(np.abs(error) <= cattn.reference.error_bound(query, key, value)))
    True
    """
    with np.errstate(all="ignore"):
        yardstick = _Yardstick(query, key, value, **modifiers)
        numpy = attention(query, key, value, **modifiers, return_lse=True, dtype=yardstick.arithmetic)
        kappa, lse_kappa = _largest(yardstick.kappas(numpy[0])), _largest(yardstick.lse_kappas(numpy[1]))
        bound = _allowed(kappa) * yardstick.unit + yardstick.excused(yardstick.stored)
        lse_bound = _allowed(lse_kappa, _LSE_KAPPA) * yardstick.lse_unit
    return (bound, lse_bound) if return_lse else bound


def maxsim(
    query, document, *, document_lengths=None, document_indptr=None, query_lengths=None, return_index=False, dtype=None
):
    r"""Compute late interaction scores, :math:`\sum_i \max_j q_i \cdot d_j`.

    Parameters
    ----------
    query : array_like, (Lq, D) or (Q, Lq, D)
        The token embeddings of one query, or of several.
    document : array_like, (N, Ld, D) or (all tokens, D)
        The token embeddings of N documents, padded or packed.
    document_lengths : int array, (N,), optional
        The number of tokens of each padded document.
    document_indptr : int array, (N + 1,), optional
        Packed document n owns rows ``document_indptr[n]:document_indptr[n + 1]``.
    query_lengths : int array, (Q,), optional
        The number of tokens of each query.
    return_index : bool
        Also return the first token of a document that has the largest product, for each token of a query.
    dtype : dtype, optional
        The type to compute in and to return. The default is float64, or longdouble if an input has that type.

    Returns
    -------
    scores : ndarray, (N,) or (Q, N)
        An empty document scores -inf, and an empty query 0.
    index : ndarray of int64, (N, Lq) or (Q, N, Lq)
        It is returned only with `return_index`. It is -1 for empty documents, and past the length of a query.

    See Also
    --------
    attention : Compute a weighted sum in the place of the maximum.
    maxsim_error_bound : Compute how far `cattn.maxsim` may be from this.

    Notes
    -----
    This is the late interaction of ColBERT [1]_. A score of `cattn.maxsim` differs from this one by at most the
    `maxsim_error_bound`. Where products come that close, another token may win than here.

    References
    ----------
    .. [1] Khattab, Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over
       BERT", 2020, section 3.2. https://arxiv.org/abs/2004.12832

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> cattn.reference.maxsim(query, [[[0.5, 0.0], [0.0, 0.25]]])
    array([0.75])
    """
    dtype = _arithmetic(dtype, query, document)
    with np.errstate(all="ignore"):
        query, document = np.asarray(query).astype(dtype), np.asarray(document).astype(dtype)
        queries = query if query.ndim == 3 else query[None]
        if document_indptr is not None:
            documents = [document[start:stop] for start, stop in itertools.pairwise(document_indptr)]
        else:
            lengths = np.broadcast_to(
                document.shape[1] if document_lengths is None else document_lengths, len(document)
            )
            documents = [tokens[:length] for tokens, length in zip(document, lengths, strict=True)]
        scores = np.zeros((len(queries), len(documents)), dtype)
        index = np.full((*scores.shape, queries.shape[1]), -1)
        lengths = np.broadcast_to(queries.shape[1] if query_lengths is None else query_lengths, len(queries))
        for q, length in enumerate(lengths):
            for n, tokens in enumerate(documents):
                products = queries[q, :length] @ tokens.T
                scores[q, n] = products.max(axis=1, initial=-np.inf).sum()
                if len(tokens):
                    index[q, n, :length] = products.argmax(axis=1)
    if query.ndim == 2:
        scores, index = scores[0], index[0]
    return (scores, index) if return_index else scores


def maxsim_error_bound(query, document, *, document_lengths=None, document_indptr=None, query_lengths=None):
    r"""Compute how far each score of `cattn.maxsim` may be from that of `maxsim`.

    Parameters
    ----------
    query : array_like, (Lq, D) or (Q, Lq, D)
        As in `maxsim`. Its type decides which type is computed in.
    document : array_like, (N, Ld, D) or (all tokens, D)
        As in `maxsim`.
    document_lengths, document_indptr, query_lengths : optional
        As in `maxsim`.

    Returns
    -------
    ndarray, (N,) or (Q, N)
        The largest difference that is allowed, for each score.

    See Also
    --------
    maxsim : Compute the scores that the bound is about.

    Notes
    -----
    A score differs from that of `maxsim` by at most

    .. math:: \kappa\,\sum_i (\varepsilon \max_j \sum_c |q_{ic} d_{jc}| + D \cdot \text{the smallest normal number})

    Here :math:`\varepsilon` is that of the type that is computed in (float64 or float32), and :math:`\kappa` is 4, or
    1.5 times that of plain NumPy in the same type plus 0.5 if that is more. The products of half types are exact.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((5, 16), dtype=np.float32)
    >>> documents = rng.standard_normal((3, 40, 16), dtype=np.float32)
    >>> error = cattn.maxsim(query, documents) - cattn.reference.maxsim(query, documents)
    >>> bool(np.all(np.abs(error) <= cattn.reference.maxsim_error_bound(query, documents)))
    True
    """
    lengths = {"document_lengths": document_lengths, "document_indptr": document_indptr, "query_lengths": query_lengths}
    query, document = np.asarray(query), np.asarray(document)
    arithmetic = np.dtype(np.float64 if query.dtype.newbyteorder("=") == np.float64 else np.float32)
    wide = np.longdouble if arithmetic == np.float64 else np.float64
    info = np.finfo(arithmetic)
    tokens = np.asarray(query.shape[-2] if query_lengths is None else query_lengths)[..., None]
    with np.errstate(all="ignore"):
        expected = maxsim(query, document, **lengths, dtype=wide)
        magnitude = maxsim(np.abs(query.astype(wide)), np.abs(document.astype(wide)), **lengths, dtype=wide)
        unit = info.eps * np.maximum(magnitude, 0) + tokens * query.shape[-1] * info.smallest_normal
        error = _distance(maxsim(query, document, **lengths, dtype=arithmetic), expected)
        kappas = np.where(error == 0, 0, error / unit)
    return _allowed(_largest(kappas)) * unit


def _allowed(kappa_of_numpy, least=_KAPPA):
    """Return the largest κ that is promised where plain NumPy has this one."""
    return max(least, _TIMES_NUMPY * kappa_of_numpy + _PLUS)


class _Backward(NamedTuple):
    """Hold what the gradients of one call are made of. The arrays have their heads first, and those of query's."""

    grad_out: np.ndarray  # (..., Hq, Lq, Dv)
    query: np.ndarray  # (..., Hq, Lq, D)
    key: np.ndarray  # (..., Hq, Lk, D)
    value: np.ndarray  # (..., Hq, Lk, Dv)
    attended: np.ndarray  # (..., Hq, Lq, Lk): who attends to whom
    weights: np.ndarray  # (..., Hq, Lq, Lk): P
    lse: np.ndarray  # (..., Hq, Lq)
    sink_weights: np.ndarray  # (..., Hq, Lq)
    delta: np.ndarray  # (..., Hq, Lq)
    scale: np.floating
    capped: np.ndarray  # (..., Hq, Lq, Lk): the derivative of the softcap
    distance: np.ndarray  # (..., Lq, Lk): |p - j|

    def gradients(self):
        """Return the gradients of the elements of query, key, value, final scores, slopes and sinks, for each query
        head."""
        of_weights = self.grad_out @ self.value.swapaxes(-1, -2) - self.delta[..., None]
        of_scores = np.where(self.attended, self.weights * of_weights, 0)
        of_products = np.where(self.attended, of_scores * self.capped, 0) * self.scale
        backwards = self.attended.swapaxes(-1, -2)
        return Gradients(
            query=_over_attended(of_products, self.attended, self.key),
            key=_over_attended(of_products.swapaxes(-1, -2), backwards, self.query),
            value=_over_attended(self.weights.swapaxes(-1, -2), backwards, self.grad_out),
            bias=of_scores,
            alibi_slopes=-(of_scores * self.distance).sum(axis=(-1, -2)),
            sinks=-(self.sink_weights * self.delta).sum(axis=-1),
        )


def _backward_terms(dtype, layout, grad_out, query, key, value, out, lse, grad_lse, *, sinks=None, **modifiers):
    """Return what the gradients are made of. out and lse are computed if they are None."""
    grad_out, query, key, value, _ = _heads_first(dtype, layout, grad_out, query, key, value)
    if out is None or lse is None:
        computed = attention(query, key, value, **modifiers, sinks=sinks, return_lse=True, dtype=dtype)
    out = computed[0] if out is None else _heads_first(dtype, layout, out)[0]
    lse = computed[1] if lse is None else _lse_heads_first(dtype, layout, lse, out)
    grad_lse = np.zeros_like(lse) if grad_lse is None else _lse_heads_first(dtype, layout, grad_lse, out)

    scores = attention_weights(query, key, stage="biased", **modifiers, dtype=dtype)
    attended, empty = scores != -np.inf, lse == -np.inf
    scale, softcap = modifiers.get("scale"), modifiers.get("softcap")
    capped, distance, sink_weights = 1, 0, np.zeros_like(lse)
    if softcap is not None:
        t = attention_weights(query, key, stage="softcapped", **modifiers, dtype=dtype)
        capped = 1 - (t / dtype.type(softcap)) ** 2
    if modifiers.get("alibi_slopes") is not None:
        position, _, _ = _positions(
            *scores.shape[-2:], *map(modifiers.get, ("query_offset", "query_lengths", "key_lengths"))
        )
        distance = np.abs(position - np.arange(scores.shape[-1])).astype(dtype)
    if sinks is not None:
        sink_weights = np.where(empty, 0, np.exp(np.asarray(sinks).astype(dtype)[:, None] - lse))
    return _Backward(
        grad_out, query, _repeat_heads(key, query), _repeat_heads(value, query), attended,
        weights=np.where(attended, np.exp(scores - lse[..., None]), 0),
        lse=lse,
        sink_weights=sink_weights,
        delta=np.where(attended.any(axis=-1), (grad_out * out).sum(axis=-1), 0) - np.where(empty, 0, grad_lse),
        scale=1 / np.sqrt(dtype.type(query.shape[-1])) if scale is None else dtype.type(scale),
        capped=capped,
        distance=distance,
    )  # fmt: skip


def _of_inputs(gradients, layout, query, key, value, bias_grad, *, bias=None, alibi_slopes=None, sinks=None, **_):
    """Return the gradients of the caller's arrays, which may have fewer heads, and be broadcast."""
    without_heads = all(np.ndim(x) == 2 for x in (query, key, value))
    found = []
    for x, given in zip(gradients[:3], (query, key, value), strict=True):
        heads = 1 if without_heads else np.shape(given)[-2 if layout == "blhd" else -3]
        grouped = x.reshape(*x.shape[:-3], heads, x.shape[-3] // heads, *x.shape[-2:])
        found.append(_sum_to(np.shape(given), _as_given(grouped.sum(axis=-3), -3, without_heads, layout)))
    for x, given in zip(gradients[3:], (bias if bias_grad else None, alibi_slopes, sinks), strict=True):
        found.append(None if given is None else _sum_to(np.shape(given), x))
    return Gradients(*found)


def _sum_to(shape, x):
    """Return x, summed over the axes along which an array of this shape was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(axis for axis, n in enumerate(shape) if n == 1), keepdims=True)


class _Yardstick:
    """Hold the results of one call, `out` and `lse`, and what their errors are measured by.

    `magnitude` is Σ_j p_j |v_j|. `unit` and `lse_unit` are the units of κ. `rounded_weights` and `lost` are what an
    output may be off by besides: the weights of bfloat16 queries may be rounded, and what is below the smallest normal
    number may be lost.
    """

    def __init__(
        self, query, key, value, *, layout="bhld", scale=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
        key_scale=None, value_scale=None, **masks,
    ):  # fmt: skip
        key, value = _times(key, key_scale), _times(value, value_scale)
        self.stored = np.asarray(query).dtype.newbyteorder("=")
        self.arithmetic = np.dtype(np.float64 if self.stored == np.float64 else np.float32)
        wide = np.longdouble if self.stored == np.float64 else np.float64
        rounds_weights = {np.asarray(x).dtype.name for x in (query, key)} == {"bfloat16"}
        eps, tiny = np.finfo(self.arithmetic).eps, np.finfo(self.arithmetic).smallest_normal
        query, key, value, without_heads = _heads_first(wide, layout, query, key, value)
        modifiers = dict(scale=scale, bias=bias, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, **masks)
        out, lse = attention(query, key, value, **modifiers, return_lse=True)
        weights = attention_weights(query, key, **modifiers, dtype=np.float64)

        attended, largest = _largest_terms(query, key, weights, tiny, sinks, scale, bias, alibi_slopes, masks)
        magnitude = _weighted_sum(weights, attended, _repeat_heads(np.abs(value), query))
        unit = eps * (1 + largest[..., None]) * magnitude + tiny
        lse_unit = eps * (1 + largest + np.where(np.isfinite(lse), np.abs(lse), 0))
        rounded = lost = np.zeros_like(out)
        if rounds_weights:
            rounded = _ROUNDED_WEIGHTS * _over_keys(lambda p, v, o: p * np.abs(v - o), weights, value, out)
        most = weights.shape[-1] * tiny * np.abs(value).max(initial=1, where=np.isfinite(value))
        if not np.all((unit > most) | (unit == tiny)):  # otherwise there is next to nothing to lose
            lost = _over_keys(
                lambda p, v, _: np.where((p < tiny) | (p * np.abs(v) < tiny), p * np.abs(v), 0), weights, value, out
            )
        of_outputs = (_as_given(x, -3, without_heads, layout) for x in (out, magnitude, unit, rounded, lost))
        self.out, self.magnitude, self.unit, self.rounded_weights, self.lost = of_outputs
        self.lse, self.lse_unit = (_as_given(x, -2, without_heads, layout) for x in (lse, lse_unit))

    def excused(self, stored):
        """Return what an output of this type may be off by, beyond κ units."""
        last_place = 0
        if stored.itemsize == 2:
            last_place = np.abs(np.spacing(self.out.astype(stored)).astype(self.out.dtype))
        return self.rounded_weights + self.lost + last_place

    def kappas(self, out):
        """Return the κ of each output."""
        error = _distance(out, self.out)
        return np.where(error == 0, 0, np.maximum(error - self.excused(out.dtype), 0) / self.unit)

    def lse_kappas(self, lse):
        """Return the κ of each lse."""
        return _distance(lse, self.lse) / self.lse_unit


class _GradientYardstick:
    """Hold the gradients of one call, and what their errors are measured by.

    `expected` are the gradients. Where `out` and `lse` are given, the formulas are exact for these. `units` are the
    units of κ: the sums of the absolute terms of the same formulas, with the error of a weight in the place of each
    weight. That error is ε (1 + A_i + |lse_i|) P_ij + the smallest normal number, with the A_i of `error_bound`.
    """

    def __init__(
        self, grad_out, query, key, value, out=None, lse=None, *, grad_lse=None, layout="bhld", scale=None, bias=None,
        alibi_slopes=None, softcap=None, sinks=None, **masks,
    ):  # fmt: skip
        stored = np.asarray(query).dtype.newbyteorder("=")
        self.arithmetic = np.dtype(np.float64 if stored == np.float64 else np.float32)
        wide = np.dtype(np.longdouble if stored == np.float64 else np.float64)
        eps, tiny = np.finfo(self.arithmetic).eps, np.finfo(self.arithmetic).smallest_normal
        modifiers = dict(scale=scale, bias=bias, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, **masks)
        of_inputs = functools.partial(_of_inputs, layout=layout, query=query, key=key, value=value, bias_grad=True)
        with np.errstate(all="ignore"):
            terms = _backward_terms(wide, layout, grad_out, query, key, value, out, lse, grad_lse, **modifiers)
            self.expected = of_inputs(terms.gradients(), **modifiers)

            _, largest = _largest_terms(
                terms.query, terms.key, terms.weights, tiny, sinks, scale, bias, alibi_slopes, masks
            )
            error = eps * (1 + largest + np.where(np.isfinite(terms.lse), np.abs(terms.lse), 0))
            grad_out, value = np.abs(terms.grad_out), np.abs(terms.value)
            of_out = grad_out * _over_attended(terms.weights, terms.attended, value)
            grad_lse = 0 if grad_lse is None else _lse_heads_first(wide, layout, np.abs(grad_lse), of_out)
            errors = terms._replace(
                grad_out=grad_out,
                query=np.abs(terms.query),
                key=np.abs(terms.key),
                value=value,
                weights=np.where(terms.attended, error[..., None] * terms.weights + tiny, 0),
                sink_weights=error * terms.sink_weights + tiny,
                delta=-of_out.sum(axis=-1) - grad_lse,
                scale=np.abs(terms.scale),
                capped=2 - terms.capped,  # the terms of 1 - (t / softcap)², both of them positive
            )
            units = of_inputs(errors.gradients(), **modifiers)
        self.units = Gradients(*(None if unit is None else np.abs(unit) + tiny for unit in units))

    def kappas(self, found):
        """Return the κ of each gradient. One more unit in the last place of a half type is excused."""
        return Gradients(*map(self._kappas, found, self.expected, self.units))

    @staticmethod
    def _kappas(found, expected, unit):
        if found is None or expected is None:
            return None
        with np.errstate(all="ignore"):
            rounded = expected.astype(found.dtype)
            same = (found == rounded) | ~(np.isfinite(found) | np.isfinite(expected))
            excused = np.abs(np.spacing(rounded).astype(expected.dtype)) if found.dtype.itemsize == 2 else 0
            error = np.abs(found.astype(expected.dtype) - expected)
            return np.where(same, 0, np.maximum(error - excused, 0) / unit)


def _largest_terms(query, key, weights, tiny, sinks, scale, bias, alibi_slopes, masks):
    """Return who attends to whom, and the largest sum of the absolute terms of a score in each row, over the keys whose
    weight is at least the smallest normal number."""
    # ALiBi's terms are negative, and -inf still masks.
    scale, bias, slopes = (None if x is None else np.asarray(x) for x in (scale, bias, alibi_slopes))
    modifiers = masks | {
        "scale": None if scale is None else np.abs(scale),
        "bias": None if bias is None else np.where(bias == -np.inf, bias, np.abs(bias)),
        "alibi_slopes": None if slopes is None else -np.abs(slopes),
    }
    terms = attention_weights(np.abs(query), np.abs(key), stage="biased", **modifiers, dtype=np.float64)
    largest = np.where(weights >= tiny, terms, 0).max(axis=-1, initial=0)
    if sinks is not None:
        sinks = np.abs(np.asarray(sinks, np.float64))[:, None]
        largest = np.maximum(largest, np.where(np.isfinite(sinks), sinks, 0))
    return terms != -np.inf, largest


def _largest(kappas):
    """Return the largest κ, which is infinity if a number is NaN and should not be."""
    largest = kappas.max(initial=0)
    return np.inf if np.isnan(largest) else float(largest)


def _distance(found, expected):
    """Return how far the numbers are from those expected. It is 0 where both are NaN, or the same infinity."""
    found = found.astype(expected.dtype)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return np.where(same, 0, np.abs(found - expected))


def _over_keys(term, weights, value, out):
    """Return the sum of term(weight, value, out) over the keys, for each output. All arrays have their heads first."""
    value, total = _repeat_heads(value, out), np.zeros_like(out)
    for column in range(out.shape[-1]):
        terms = term(weights, value[..., None, :, column], out[..., column, None])
        total[..., column] = np.where(weights > 0, terms, 0).sum(axis=-1)
    return total


def _over_attended(x, attended, rows):
    """Return x @ rows, where x is 0 for what is not attended. What is not finite makes NaN of all that it reaches."""
    found = x @ np.where(np.isfinite(rows), rows, 0)
    if np.isfinite(rows).all():
        return found
    return np.where(attended.astype(x.dtype) @ (~np.isfinite(rows)).astype(x.dtype) > 0, np.nan, found)


def _arithmetic(dtype, *arrays):
    return np.dtype(dtype) if dtype is not None else np.result_type(np.float64, *(np.asarray(x).dtype for x in arrays))


def _times(x, scale):
    """Return what int8 keys or values stand for, or those of floating types as they are."""
    return np.asarray(x) if scale is None else np.asarray(x, np.float64) * np.asarray(scale).astype(np.float64)


def _heads_first(dtype, layout, *arrays):
    """Return the arrays as (..., H, L, D), and whether they came without a head axis."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        arrays = [np.asarray(x).astype(dtype) for x in arrays]
    if all(x.ndim == 2 for x in arrays):
        return *(x[None] for x in arrays), True
    if layout == "blhd":
        arrays = [x.swapaxes(-2, -3) for x in arrays]
    return *arrays, False


def _as_given(x, heads, without_heads, layout):
    """Return (..., H, L) or (..., H, L, D) in the caller's layout. `heads` is the axis of heads, from the end."""
    if without_heads:
        return x[0]
    return x.swapaxes(heads, heads + 1) if layout == "blhd" else x


def _repeat_heads(x, query):
    return np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3)


def _per_entry(x):
    """Return an array of shape (...) as (..., 1, 1, 1), which broadcasts with (..., Hq, Lq, Lk)."""
    return np.asarray(x, np.int64)[..., None, None, None]


def _lse_heads_first(dtype, layout, lse, out):
    """Return an lse in the caller's layout as (..., H, L), which `out` has already."""
    lse = np.asarray(lse).astype(dtype)
    return lse.reshape(out.shape[:-1]) if lse.ndim == 1 or layout == "bhld" else lse.swapaxes(-1, -2)


def _positions(rows, keys, query_offset, query_lengths, key_lengths):
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
    position, query_lengths, key_lengths = _positions(rows, keys, query_offset, query_lengths, key_lengths)
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


def _weighted_sum(weights, attended, value):
    """Return weights @ value. A NaN or infinity reaches every row that attends to it, however small its weight."""

    def meets(special):
        return attended.astype(weights.dtype) @ special.astype(weights.dtype) > 0

    out = weights @ np.where(np.isfinite(value), value, 0)
    if np.isfinite(value).all():
        return out
    for special, found in ((np.inf, value == np.inf), (-np.inf, value == -np.inf), (np.nan, np.isnan(value))):
        out = out + np.where(meets(found), special, 0)
    return out
