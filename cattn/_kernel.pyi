"""Stubs of the compiled functions.

tools/fill_stubs.py fills in the modifiers, and the docstrings of the compiled functions, because editors read only this
file.
"""

from typing import Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from ._argument_types import (
    _T,
    _Array,
    _Exact,
    _Flag,
    _Integers,
    _KeyRange,
    _Layout,
    _Number,
    _Offset,
    _Stage,
    _Window,
)
from ._gradients import Gradients
from ._plan import Plan

__test__: dict[str, str]  # Cython makes this for doctest

@overload
def attention(
    query: NDArray[_T],
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[_T] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]:
    """Compute exact scaled dot-product attention: softmax(scale · query · keyᵀ) · value, in one fused and stable pass.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
        Hq heads of Lq queries. D is at most 16384. A 3-D array is (H, L, D). If all three inputs are 2-D, there is one
        head, and no axis for it. float32 and float64 are computed in their own precision. float16 and bfloat16 are read
        and written as they are, and computed in float32. Arrays may have any strides and byte order. int32 and int64
        count as float64.
    key : array_like, shape (..., Hkv, Lk, D)
        Hq must be a multiple of Hkv. Query head h reads key/value head ``h // (Hq // Hkv)``. Leading axes broadcast.
        Keys have the type of the queries. With float32 queries, they may also be float16 or bfloat16. With float32,
        float16 and bfloat16 queries, they may be int8 with a `key_scale`.
    value : array_like, shape (..., Hkv, Lk, Dv)
        Values have the type of the keys. int8 values need a `value_scale`.
    scale : float, optional
        The factor of each product q·k. The default is ``1 / sqrt(D)``.
    causal : bool
        If True, query i attends only to keys ``j <= p_i``, where ``p_i = query_offset + i`` is its position.
    window : (left, right), optional
        Query i attends only to keys ``p_i - left <= j <= p_i + right``. None or -1 means no limit on that side.
    query_offset : {"start", "end"}, int, or int array over the leading axes, optional
        The position of query 0 among the keys. "start" means 0. "end" means key length - query length, which is what a
        cache of keys needs. You must pass it if positions matter (causal, window, alibi_slopes) and the lengths differ.
    key_range : (start, stop), optional
        Two integer arrays (or None) that broadcast to (..., Hq, Lq). Row i attends only to keys ``start <= j < stop``.
    query_lengths, key_lengths : int or int array over the leading axes, optional
        The numbers of queries and keys that exist. No query attends to a key at or past its length. Queries at or past
        theirs give zeros, and an lse of -inf.
    mask : bool array_like, broadcastable to (..., Hq, Lq, Lk), optional
        True where a query may attend to a key.
    bias : array_like, broadcastable to (..., Hq, Lq, Lk), optional
        A number that is added to each score. -inf masks the key; a finite bias never does.
    alibi_slopes : array_like, shape (Hq,), or (..., Hq) over the leading axes, optional
        Each head's slope of ALiBi, which adds ``-slope · |p_i - j|`` to the scores (Press et al. 2022, section 3).
    softcap : float, optional
        Each score becomes ``softcap · tanh(score / softcap)``, before bias and ALiBi are added (Gemma 2, section 2).
    sinks : array_like, shape (Hq,), optional
        One more logit for each head. It takes weight and carries no value. -inf means that there is none.
    key_scale, value_scale : array_like, optional
        The scales of int8 keys and values, which stand for ``key * key_scale`` and ``value * value_scale``. A scale
        broadcasts to `key` or `value` as it is passed, and has size 1 along the keys (a scale for each column) or along
        the last axis (a scale for each key), or both. Keep these axes of size 1. It may have any of the four types.
        `quantize` makes such numbers.
    layout : {"bhld", "blhd"}
        With "blhd", query, key, value and out are (..., L, H, D), and lse is (..., L, H). Modifiers keep their shapes.
    out : ndarray, optional
        The array to write the output to. It must have the shape and type of the output, and must not overlap with an
        input or with itself. For float16 and bfloat16 queries it may be float32. The result is then not rounded, which
        is best for parts that you will merge.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    num_threads : int, optional
        The number of threads of this call. It takes precedence over `set_num_threads`. The result is the same, bit for
        bit, for any number.

    Returns
    -------
    out : ndarray, shape (..., Hq, Lq, Dv), type of query, unless `out` was given
        Rows that may attend to nothing are zeros.
    lse : ndarray, shape ``out.shape[:-1]``
        It is returned only with `return_lse`. Its type is float64 for float64 inputs, else float32. Rows that may
        attend to nothing have -inf, or the logit of their head's sink.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given. Nothing has been written.
    MemoryError
        There is no memory for the output or the workspace.

    See Also
    --------
    attention_varlen : Attend over packed sequences, without padding.
    attention_weights : Compute the matrix of weights or scores, which `attention` never holds.
    merge_attention : Join the results of disjoint sets of keys.
    self_attention : Compute everything from the embeddings on, projections included.

    Notes
    -----
    This is the attention of Vaswani et al. 2017, section 3.2.1, with the online softmax of Milakov and Gimelshein 2018.
    No array of size Lq × Lk exists at any time. Whatever is masked never reaches the output, NaN and infinity included.

    Weights, values, and their products count as 0 where they are below the smallest normal number. Weighted values
    are summed first, and the sum is then divided by the sum of weights, which is at most Lk. Values beyond the type's
    largest number / Lk may therefore give infinity.

    The notes of `cattn.reference.attention` say how accurate the result is.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 1, 12, 128, 64), dtype=np.float32)
    >>> context = cattn.attention(query, key, value, causal=True)
    >>> context.shape, context.dtype
    ((1, 12, 128, 64), dtype('float32'))

    When decoding, one query stands at the end of a cache of keys:

    >>> newest = cattn.attention(query[:, :, -1:], key, value, causal=True, query_offset="end")
    >>> np.allclose(newest, context[:, :, -1:], atol=1e-6)
    True

    In this padded batch, the second entry has 77 keys:

    >>> batch = [np.concatenate([x, x]) for x in (query, key, value)]
    >>> padded = cattn.attention(*batch, key_lengths=[128, 77])
    >>> np.array_equal(padded[1], cattn.attention(query, key[:, :, :77], value[:, :, :77])[0])
    True
    """

@overload
def attention(
    query: NDArray[_T],
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[_T] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def attention_weights(
    query: NDArray[_Exact],
    key: _Array,
    *,
    stage: _Stage = "weights",
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    layout: _Layout = "bhld",
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Exact]:
    """Compute the matrix of attention weights, or of scores at one stage, which `attention` never holds at once.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, shape (..., Hkv, Lk, D)
        As in `attention`.
    stage : {"weights", "scores", "softcapped", "biased"}
        "scores" are scale · q·k. "softcapped" are the scores after the softcap. "biased" are the final scores, which
        are -inf where masked. "weights" are the softmax of each row of these.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`. A stage does not need the modifiers that come after it.
    mask, bias, alibi_slopes, softcap, sinks, key_scale : optional
        As in `attention`.
    layout : {"bhld", "blhd"}
        The layout of query and key.
    num_threads : int, optional
        As in `attention`.

    Returns
    -------
    ndarray, shape (..., Hq, Lq, Lk), in either layout
        Its type is float64 for float64 inputs, else float32. A row of weights sums to 1, less what a sink takes. In
        rows that may attend to nothing, all weights are 0.

    Raises
    ------
    TypeError, ValueError, MemoryError
        They have the same causes as in `attention`.

    See Also
    --------
    attention : Compute the weighted sums of values, without this matrix.
    trace : Compute every matrix of one head, from the embeddings on.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    >>> cattn.attention_weights(x, x, causal=True).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.056, 0.944, 0.   ],
           [0.198, 0.401, 0.401]])
    >>> cattn.attention_weights(x, x, stage="scores", scale=1.0)
    array([[1., 0., 1.],
           [0., 4., 2.],
           [1., 2., 2.]])
    """

@overload
def attention_weights(
    query: _Array,
    key: _Array,
    *,
    stage: _Stage = "weights",
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    layout: _Layout = "bhld",
    num_threads: SupportsIndex | None = None,
) -> NDArray[np.floating[Any]]: ...
@overload
def attention_varlen(
    query: NDArray[_T],
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[_T] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]:
    """Attend over packed sequences: sequence n owns rows ``indptr[n]:indptr[n + 1]`` of each array.

    Parameters
    ----------
    query : array_like, shape (total queries, Hq, D)
        The queries of all sequences, one sequence after the other.
    key : array_like, shape (total keys, Hkv, D)
        The keys of all sequences. A sequence may have more or fewer keys than queries.
    value : array_like, shape (total keys, Hkv, Dv)
        The values of all sequences.
    query_indptr, key_indptr : int array_like, shape (sequences + 1,)
        The row at which each sequence begins, and then the total number of rows. The numbers ascend from 0.
    scale, causal, window : optional
        As in `attention`.
    query_offset : {"start", "end"}, int, or int array of shape (sequences,), optional
        The position of query 0 of each sequence among its keys, as in `attention`.
    alibi_slopes : array_like, shape (Hq,), or (sequences, Hq), optional
        As in `attention`.
    softcap, sinks : optional
        As in `attention`.
    key_scale, value_scale : array_like, optional
        As in `attention`. They broadcast to (total keys, Hkv, D) and (total keys, Hkv, Dv).
    out, return_lse, num_threads : optional
        As in `attention`.

    Returns
    -------
    out : ndarray, shape (total queries, Hq, Dv)
        Each sequence has the same bits as if `attention` had been called for it alone.
    lse : ndarray, shape (total queries, Hq)
        It is returned only with `return_lse`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        They have the same causes as in `attention`.

    See Also
    --------
    attention : Attend over arrays with an axis for the batch.

    Examples
    --------
    These three sequences have 2, 1 and 3 tokens:

    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 6, 4, 8))  # (total, heads, head size)
    >>> indptr = [0, 2, 3, 6]
    >>> context = cattn.attention_varlen(query, key, value, indptr, indptr, causal=True)
    >>> context.shape
    (6, 4, 8)
    >>> alone = cattn.attention(query[3:], key[3:], value[3:], layout="blhd", causal=True)
    >>> np.array_equal(context[3:], alone)
    True
    """

@overload
def attention_varlen(
    query: NDArray[_T],
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[_T] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
def attention_backward(
    grad_out: _Array,
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array,
    *,
    grad_lse: _Array | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    layout: _Layout = "bhld",
    bias_grad: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> Gradients:
    """Compute the gradients of a loss with respect to the inputs of `attention`, without a matrix of weights.

    Parameters
    ----------
    grad_out : array_like, shape (..., Hq, Lq, Dv)
        The gradient of the loss with respect to the output. Its type is that of `query`, or float32 beside half types.
    query : array_like, shape (..., Hq, Lq, D)
        As in `attention`, but integers are refused.
    key : array_like, shape (..., Hkv, Lk, D)
        As in `attention`.
    value : array_like, shape (..., Hkv, Lk, Dv)
        As in `attention`. Dv is at most 16384.
    out : array_like, shape (..., Hq, Lq, Dv)
        The output of `attention`. Beside half types it may be float32, which makes the gradients more exact.
    lse : array_like, shape ``out.shape[:-1]``
        The lse of the same call, which `return_lse` gives.
    grad_lse : array_like, shape ``out.shape[:-1]``, optional
        The gradient of the loss with respect to lse. None stands for zeros.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`, and as in the call that `out` comes from. If one differs, the gradients are wrong, and no
        error says so.
    mask, bias, alibi_slopes, softcap, sinks, layout : optional
        As in `attention`, and as in the call that `out` comes from.
    bias_grad : bool
        Also compute the gradient of `bias`, which may take as much memory as a matrix of weights.
    num_threads : int, optional
        As in `attention`. The result is the same, bit for bit, for any number.

    Returns
    -------
    Gradients
        A named tuple of the gradients of query, key, value, bias, alibi_slopes and sinks. Each has the shape and type
        of its argument, and is rounded once to that type. It is None if there is no such argument, and for bias also
        without `bias_grad`. What is masked, and rows that attend to nothing, get exactly 0.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given.
    MemoryError
        There is no memory for the gradients or the workspace.

    See Also
    --------
    attention : Compute the output and lse that the gradients belong to.

    Notes
    -----
    These are the gradients of FlashAttention (Dao et al. 2022, appendix B). With the scores S after all modifiers, and
    t those after the softcap, P = exp(S - lse), Δ = Σ grad_out · out - grad_lse, and G = P · (grad_out · valueᵀ - Δ):

    - value gets Pᵀ · grad_out.
    - bias gets G, summed over the axes along which it was broadcast. alibi_slopes get -Σ G · abs(p_i - j).
    - With dS = G · (1 - (t / softcap)²), query gets scale · dS · key, and key gets scale · dSᵀ · query.
    - sinks get -Σ exp(sink - lse) · Δ.

    Half types are computed in float32. An input that was broadcast over the leading axes gets the sum over them. The
    page on trust says how accurate the result is.

    Examples
    --------
    The loss is half the sum of the squared outputs, so that its gradient with respect to the output is the output:

    >>> import numpy as np
    >>> import cattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 5, 8))
    >>> out, lse = cattn.attention(query, key, value, causal=True, return_lse=True)
    >>> gradients = cattn.attention_backward(out, query, key, value, out, lse, causal=True)
    >>> gradients.query.shape
    (2, 5, 8)
    >>> value[1, 2, 3] += 1e-6
    >>> later = cattn.attention(query, key, value, causal=True)
    >>> slope = ((later**2).sum() - (out**2).sum()) / 2 / 1e-6
    >>> np.allclose(slope, gradients.value[1, 2, 3], rtol=1e-4)
    True
    """

@overload
def attention_paged(
    query: NDArray[_T],
    key_cache: _Array,
    value_cache: _Array,
    block_table: _Integers,
    key_lengths: _Integers,
    *,
    query_indptr: _Integers | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[_T] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]:
    """Attend to keys and values that lie in pages, where a table says which pages each sequence has.

    Parameters
    ----------
    query : array_like, shape (total queries, Hq, D)
        The queries of all sequences, one sequence after the other: the newest tokens, whose keys are in the cache.
    key_cache : array_like, shape (pages, page size, Hkv, D)
        The keys. A page holds consecutive keys of a sequence. It may have any size and any strides.
    value_cache : array_like, shape (pages, page size, Hkv, Dv)
        The values, in the same pages.
    block_table : int array_like, shape (sequences, most pages)
        The pages of each sequence, in order. A page may appear more than once, so that sequences can share a prefix.
        Numbers past a length are never read, so they may be -1. Neither are those of pages that lie wholly before every
        query's window.
    key_lengths : int array_like, shape (sequences,)
        The number of keys of each sequence. It must be at least the number of its queries.
    query_indptr : int array_like, shape (sequences + 1,), optional
        The row of `query` at which each sequence begins, and then the total number of rows. The numbers ascend from 0.
        By default each sequence has one query.
    scale, causal, window : optional
        As in `attention`.
    query_offset : {"start", "end"}, int, or int array of shape (sequences,), optional
        The position of query 0 of each sequence among its keys, as in `attention`. "end" is what a cache needs.
    alibi_slopes : array_like, shape (Hq,), or (sequences, Hq), optional
        As in `attention`.
    softcap, sinks : optional
        As in `attention`.
    key_scale, value_scale : array_like, optional
        As in `attention`, for int8 caches. They broadcast to the shapes of the caches.
    out, return_lse, num_threads : optional
        As in `attention`.

    Returns
    -------
    out : ndarray, shape (total queries, Hq, Dv)
        Each sequence has the same bits as if `attention` had been called for it alone, with the keys and values of its
        pages one after the other. They are not copied together, except for a block at a time.
    lse : ndarray, shape (total queries, Hq)
        It is returned only with `return_lse`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given: a page number that does not
        exist, with its sequence and position, or a length that the pages cannot hold. No page has been read.
    MemoryError
        It has the same causes as in `attention`.

    See Also
    --------
    attention_varlen : Attend over packed sequences whose keys lie one after the other.
    KVCache : Keep keys and values in arrays that grow in place.

    Notes
    -----
    Paged caches were proposed by Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
    PagedAttention", section 4.

    Examples
    --------
    Two sequences of 5 and 7 tokens share their first page, which holds 4 tokens:

    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> key_cache, value_cache = rng.standard_normal((2, 9, 4, 2, 8))  # (pages, page size, heads, head size)
    >>> query = rng.standard_normal((2, 6, 8))  # the newest token of each
    >>> block_table = [[3, 8], [3, 0]]
    >>> context = cattn.attention_paged(query, key_cache, value_cache, block_table, [5, 7])
    >>> context.shape
    (2, 6, 8)
    >>> key, value = (cache[[3, 0]].reshape(8, 2, 8)[:7] for cache in (key_cache, value_cache))
    >>> np.array_equal(context[1:], cattn.attention(query[1:], key, value, layout="blhd"))
    True
    """

@overload
def attention_paged(
    query: NDArray[_T],
    key_cache: _Array,
    value_cache: _Array,
    block_table: _Integers,
    key_lengths: _Integers,
    *,
    query_indptr: _Integers | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[_T] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
@overload
def attention_paged(
    query: _Array,
    key_cache: _Array,
    value_cache: _Array,
    block_table: _Integers,
    key_lengths: _Integers,
    *,
    query_indptr: _Integers | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention_paged(
    query: _Array,
    key_cache: _Array,
    value_cache: _Array,
    block_table: _Integers,
    key_lengths: _Integers,
    *,
    query_indptr: _Integers | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def attention_paged(
    query: _Array,
    key_cache: _Array,
    value_cache: _Array,
    block_table: _Integers,
    key_lengths: _Integers,
    *,
    query_indptr: _Integers | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    out: NDArray[Any] | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def maxsim(
    query: _Array,
    document: _Array,
    *,
    document_lengths: _Integers | None = None,
    document_indptr: _Integers | None = None,
    query_lengths: _Integers | None = None,
    return_index: Literal[False] = False,
    out: NDArray[np.floating[Any]] | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[np.floating[Any]]:
    """Score documents for queries by late interaction: the sum of each query token's largest dot product.

    Parameters
    ----------
    query : array_like, shape (Lq, D) or (Q, Lq, D)
        The token embeddings of one query, or of several. Nothing is normalised or scaled.
    document : array_like, shape (N, Ld, D) or (all tokens, D)
        The token embeddings of N documents: padded to one length, or packed one after the other. Their type is that of
        `query`. Beside a query of float32 they may also be float16 or bfloat16.
    document_lengths : int array_like, shape (N,), optional
        The number of tokens of each padded document. What lies past it is never read. By default it is Ld.
    document_indptr : int array_like, shape (N + 1,), optional
        The row at which each packed document begins, and then the total number of tokens. The numbers ascend from 0.
        Packed documents need it.
    query_lengths : int array_like, shape (Q,), optional
        The number of tokens of each query. By default it is Lq.
    return_index : bool
        Also return which token of a document had the largest product.
    out : ndarray, optional
        The array to write the scores to. It must have the shape and type of the scores, and must not overlap with an
        input or with itself.
    num_threads : int, optional
        As in `attention`.

    Returns
    -------
    scores : ndarray, shape (N,) or (Q, N)
        float64 for float64 inputs, else float32. An empty document scores -inf, and an empty query scores 0. A NaN that
        is not padding shows.
    index : ndarray of int64, shape (N, Lq) or (Q, N, Lq)
        It is returned only with `return_index`. The first of equal tokens wins, and so does the first NaN. It is -1
        where a document has no tokens, and past the length of a query.

    Raises
    ------
    TypeError, ValueError, MemoryError
        They have the same causes as in `attention`.

    See Also
    --------
    attention : With values of size 0 and `return_lse`, a sum of exponentials takes the place of the maximum.
    unpad : Pack padded documents.

    Notes
    -----
    This is the late interaction of ColBERT (Khattab and Zaharia 2020, section 3.2). The products of all tokens are
    never held at once. A score has the same bits whatever the other queries and documents are, whether documents are
    padded or packed, and for any number of threads. The notes of `cattn.reference.maxsim` say how accurate it is.

    Examples
    --------
    A query of two tokens, and two documents, of which the second has a single token:

    >>> import numpy as np
    >>> import cattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> documents = np.array([[[0.5, 0.0], [0.0, 0.25]], [[1.0, -1.0], [9.0, 9.0]]])
    >>> cattn.maxsim(query, documents, document_lengths=[2, 1])
    array([0.75, 0.  ])
    >>> packed, indptr = cattn.unpad(documents, [2, 1])
    >>> scores, index = cattn.maxsim(query, packed, document_indptr=indptr, return_index=True)
    >>> index
    array([[0, 1],
           [0, 0]])
    """

@overload
def maxsim(
    query: _Array,
    document: _Array,
    *,
    document_lengths: _Integers | None = None,
    document_indptr: _Integers | None = None,
    query_lengths: _Integers | None = None,
    return_index: Literal[True],
    out: NDArray[np.floating[Any]] | None = None,
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]: ...
@overload
def maxsim(
    query: _Array,
    document: _Array,
    *,
    document_lengths: _Integers | None = None,
    document_indptr: _Integers | None = None,
    query_lengths: _Integers | None = None,
    return_index: _Flag,
    out: NDArray[np.floating[Any]] | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[np.floating[Any]] | tuple[NDArray[np.floating[Any]], NDArray[np.int64]]: ...
def plan(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> Plan:
    """Return how `attention` would go about a call with the same arguments: strategy, tiles, tasks, workspace.

    Parameters
    ----------
    query, key, value : array_like
        As in `attention`.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, key_scale, value_scale, layout, out, return_lse : optional
        As in `attention`. Nothing is computed, and `out` is not written.
    num_threads : int, optional
        As in `attention`, but it may be more than this machine would run.

    Returns
    -------
    Plan
        It depends on shapes, types, the machine and the number of threads, not on the data.

    Raises
    ------
    TypeError, ValueError, MemoryError
        They have the same causes as in `attention`.

    See Also
    --------
    attention : Make the call itself.
    show_config : Print what is known of the machine.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.ones((1, 12, 128, 64), np.float32)
    >>> cattn.plan(x, x, x).strategy
    'many rows'
    >>> cattn.plan(x[:, :, :1], x, x).strategy  # decoding: one query a head
    'few rows'
    """

def change_float_mode(mode: int | None = None) -> int:
    """Change the floating-point mode of this thread, by default to the usual one. Return the mode before."""

def isa() -> str:
    """Return the name of the kernel table in use."""

def attend(given: Any) -> None:
    """Compute what a Problem of `_arguments` says. Its outputs are the arrays that came with it."""

def task_times(
    query: object, key: object, value: object, *, num_threads: int, **modifiers: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how long the tasks take that `attention` would share among so many threads, in nanoseconds.

    One thread does them here: those that the first thread would begin with, then those of the second, and so on. The
    result is two int64 arrays. The first has an item for each task, and the second for each joining of partial results,
    which begins when all tasks are done. It is empty if there are none.
    """

def runnable_isas() -> list[str]:
    """Return the names of the kernel tables that this build has and this processor runs, best first."""

def table_address(name: str) -> int:
    """Return the address of the complete kernel table of this name, for tests that call its kernels one by one.

    The table is never freed.
    """

def l2_bytes() -> int:
    """Return the size in bytes of the second-level cache of one core that plans are made for."""

c_api: object
