"""The compiled half of cattn: its public functions."""

import atexit
import os

from . import _arguments, _backward, _maxsim
from ._threads import get_num_threads, most_threads

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport sqrt
from libc.stdint cimport int64_t
cimport numpy as cnp

from arrays cimport (
    set_gradients, set_maxsim, set_modifiers, set_plain_inputs, set_plain_lse, set_plain_out, set_problem,
    set_unmodified)
from c_api cimport attend_for_c, explain_for_c
from c_arguments cimport cattn_status_message
from c_maxsim cimport compare_for_c
from caller cimport Caller
from calls cimport explain_calls
from execute cimport Cost, execute, prepare, Prepared
from gradients.gradient_problem cimport GradientProblem
from machine cimport all_runnable_isas, Machine, new_table, open_machine
from maxsim cimport Maxsim
from plan cimport STAGE_BIASED, STAGE_OUTPUT, STAGE_SCORES, STAGE_SOFTCAPPED, STAGE_WEIGHTS, Plan, Strategy
from problem cimport CATTN_LARGEST_HEAD, cattn_problem
from python_api cimport check, compute, compute_gradients, compute_maxsim, note_ending_thread, wants_to_stop
from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode, cattn_float_mode
from work cimport gains_by_threads, work_of
from worker cimport TaskTimes
from cattn cimport CATTN_C_ABI, CATTN_C_VERSION, cattn_attention_args, cattn_c_api, cattn_maxsim_args

cdef extern from *:
    """
    /* threadpoolctl knows this module by the symbol, since others may be called _kernel too (cattn/threadpoolctl.py). */
    Py_EXPORTED_SYMBOL const int cattn_is_here = 1;
    """
    pass

cnp.import_array()
atexit.register(lambda: note_ending_thread())

cdef Machine machine   # opened at import
open_machine(&machine, os.environ.get("CATTN_ISA") or None, most_threads())


def runnable_isas():
    """Return the names of the kernel tables that this build has and this processor runs, best first."""
    return all_runnable_isas()


def table_address(name):
    """Return the address of the complete kernel table of this name, for tests that call its kernels one by one.

    The table is never freed.
    """
    return new_table(name)


def isa():
    """Return the name of the kernel table in use."""
    return (<bytes>machine.table.name).decode()


def l2_bytes():
    """Return the size in bytes of the second-level cache of one core that plans are made for."""
    return machine.l2_bytes


def change_float_mode(mode=None):
    """Change the floating-point mode of this thread, by default to the usual one. Return the mode before."""
    return cattn_change_float_mode(CATTN_USUAL_MODE if mode is None else <unsigned int>mode)


cdef Py_ssize_t default_threads() except -1:
    return get_num_threads()


cdef inline bint is_plain_scale(object scale) noexcept:
    """Return whether a scale is None, or a float that every type holds in full precision."""
    return scale is None or (type(scale) is float and 1e-37 < <double>scale < 1e38)


cdef object attend_plain(cattn_problem *problem, object query, object key, object value, object key_scale,
                         object value_scale, object scale, bint causal, dict modifiers, bint is_blhd, object given_out,
                         bint return_lse, object num_threads):
    """Return what `attention` returns for three plain arrays of matching shapes. Return None where there is anything to
    look at more closely. Without modifiers nothing is asked of _arguments."""
    cdef Py_ssize_t threads = 0
    if given_out is not None and not (modifiers is None and key_scale is None and value_scale is None):
        return None   # it may overlap one of them
    # To convert other arguments may run anyone's code, which may reshape these arrays: they are looked at only before.
    if not (cnp.PyArray_CheckExact(query) and cnp.PyArray_CheckExact(key) and cnp.PyArray_CheckExact(value)
            and set_plain_inputs(problem, <cnp.ndarray>query, <cnp.ndarray>key, <cnp.ndarray>value, key_scale,
                                 value_scale, is_blhd)):
        return None
    if modifiers is None and causal and problem.query_length != problem.key_length:
        return None
    out = set_plain_out(
        problem, <cnp.ndarray>query, <cnp.ndarray>key, <cnp.ndarray>value, is_blhd, given_out)
    if out is None:
        return None
    problem.lse.data = NULL
    lse = set_plain_lse(problem, <cnp.ndarray>out, is_blhd) if return_lse else None
    if modifiers is None:
        set_unmodified(problem, 1 / sqrt(<double>problem.head_size) if scale is None else <double>scale, causal)
    else:   # out is new, and nobody else's
        checked = _arguments.plain_modifiers(
            out.shape[:problem.batch_ndim], problem.query_heads, problem.query_length, problem.key_length,
            problem.head_size, out.dtype, out.ndim == 2, modifiers)   # it owns its arrays
        set_modifiers(problem, checked)
    if num_threads is not None:
        threads = _arguments.threads(num_threads)
    compute(problem, STAGE_OUTPUT, threads, &machine, default_threads)
    return (out, lse) if return_lse else out


def attention(query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None,
              query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
              key_scale=None, value_scale=None, layout="bhld", out=None, return_lse=False, num_threads=None):
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
    cdef cattn_problem problem
    cdef dict modifiers = None
    if not ((causal is False or causal is True) and is_plain_scale(scale) and window is None and query_offset is None
            and key_range is None and query_lengths is None and key_lengths is None and mask is None and bias is None
            and alibi_slopes is None and softcap is None and sinks is None):
        modifiers = dict(
            scale=scale, causal=causal, window=window, query_offset=query_offset, key_range=key_range,
            query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
            softcap=softcap, sinks=sinks)
    if type(layout) is str and layout in ("bhld", "blhd") and (return_lse is False or return_lse is True):
        result = attend_plain(&problem, query, key, value, key_scale, value_scale, scale, causal is True, modifiers,
                              layout == "blhd", out, return_lse, num_threads)
        if result is not None:
            return result
    if modifiers is None:
        modifiers = dict(scale=scale, causal=causal)
    given, result, lse = _arguments.attention(
        query, key, value, key_scale=key_scale, value_scale=value_scale, layout=layout, out=out, return_lse=return_lse,
        num_threads=num_threads, **modifiers)
    set_problem(&problem, given)
    compute(&problem, STAGE_OUTPUT, given.num_threads, &machine, default_threads)
    return (result, lse) if return_lse else result


def attention_varlen(query, key, value, query_indptr, key_indptr, *, scale=None, causal=False, window=None,
                     query_offset=None, alibi_slopes=None, softcap=None, sinks=None, key_scale=None, value_scale=None,
                     out=None, return_lse=False, num_threads=None):
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
    given, result, lse = _arguments.attention_varlen(
        query, key, value, query_indptr, key_indptr, scale=scale, causal=causal, window=window,
        query_offset=query_offset, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, key_scale=key_scale,
        value_scale=value_scale, out=out, return_lse=return_lse, num_threads=num_threads)
    attend(given)
    return (result, lse) if return_lse else result


def attention_paged(query, key_cache, value_cache, block_table, key_lengths, *, query_indptr=None, scale=None,
                    causal=False, window=None, query_offset=None, alibi_slopes=None, softcap=None, sinks=None,
                    key_scale=None, value_scale=None, out=None, return_lse=False, num_threads=None):
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
    given, result, lse = _arguments.attention_paged(
        query, key_cache, value_cache, block_table, key_lengths, query_indptr=query_indptr, scale=scale, causal=causal,
        window=window, query_offset=query_offset, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks,
        key_scale=key_scale, value_scale=value_scale, out=out, return_lse=return_lse, num_threads=num_threads)
    attend(given)
    return (result, lse) if return_lse else result


def attend(given):
    """Compute what a Problem of `_arguments` says. Its outputs are the arrays that came with it."""
    cdef cattn_problem problem
    set_problem(&problem, given)
    compute(&problem, STAGE_OUTPUT, given.num_threads, &machine, default_threads)


cdef dict STAGES = {"scores": STAGE_SCORES, "softcapped": STAGE_SOFTCAPPED, "biased": STAGE_BIASED,
                    "weights": STAGE_WEIGHTS}


def attention_weights(query, key, *, stage="weights", scale=None, causal=False, window=None, query_offset=None,
                      key_range=None, query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None,
                      softcap=None, sinks=None, key_scale=None, layout="bhld", num_threads=None):
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
    cdef cattn_problem problem
    given, stage, result = _arguments.attention_weights(
        query, key, stage=stage, scale=scale, causal=causal, window=window, query_offset=query_offset,
        key_range=key_range, query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias,
        alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, key_scale=key_scale, layout=layout,
        num_threads=num_threads)
    set_problem(&problem, given)
    compute(&problem, STAGES[stage], given.num_threads, &machine, default_threads)
    return result


def attention_backward(grad_out, query, key, value, out, lse, *, grad_lse=None, scale=None, causal=False, window=None,
                       query_offset=None, key_range=None, query_lengths=None, key_lengths=None, mask=None, bias=None,
                       alibi_slopes=None, softcap=None, sinks=None, layout="bhld", bias_grad=False, num_threads=None):
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
    cdef GradientProblem problem
    given, finished = _backward.attention_backward(
        grad_out, query, key, value, out, lse, grad_lse=grad_lse, scale=scale, causal=causal, window=window,
        query_offset=query_offset, key_range=key_range, query_lengths=query_lengths, key_lengths=key_lengths, mask=mask,
        bias=bias, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, layout=layout, bias_grad=bias_grad,
        num_threads=num_threads)
    set_gradients(&problem, given)
    compute_gradients(&problem, given.num_threads, &machine, default_threads)
    return finished()


def maxsim(query, document, *, document_lengths=None, document_indptr=None, query_lengths=None, return_index=False,
           out=None, num_threads=None):
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
    cdef Maxsim problem
    given, scores, index = _maxsim.maxsim(
        query, document, document_lengths=document_lengths, document_indptr=document_indptr,
        query_lengths=query_lengths, return_index=return_index, out=out, num_threads=num_threads)
    set_maxsim(&problem, given)
    compute_maxsim(&problem, given.num_threads, &machine, default_threads)
    return (scores, index) if return_index else scores


from . import _plan


def plan(query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None,
         query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
         key_scale=None, value_scale=None, layout="bhld", out=None, return_lse=False, num_threads=None):
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
    cdef cattn_problem problem
    cdef const Strategy *strategy
    cdef Caller caller = Caller(wants_to_stop, NULL, cattn_float_mode())
    cdef Prepared prepared
    cdef const Plan *found = &prepared.plan
    cdef Cost none = Cost(0, 0, NULL)
    cdef Py_ssize_t threads
    given, _, _ = _arguments.attention(
        query, key, value, scale=scale, causal=causal, window=window, query_offset=query_offset, key_range=key_range,
        query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
        softcap=softcap, sinks=sinks, key_scale=key_scale, value_scale=value_scale, layout=layout, out=out,
        return_lse=return_lse, num_threads=num_threads)
    set_problem(&problem, given)
    problem.value_size = min(problem.value_size, CATTN_LARGEST_HEAD)   # so many columns are computed at a time
    threads = (given.num_threads or default_threads()) if gains_by_threads(&problem, work_of(&problem)) else 1
    check(prepare(&prepared, &problem, &machine, STAGE_OUTPUT, threads, &caller), &none)
    strategy = &found.many if found.has_many else &found.few
    lanes = strategy.kernels.lanes
    return _plan.Plan(
        strategy="many rows" if found.has_many else "few rows", isa=isa(),
        lanes=lanes if found.has_many else min(problem.query_length * found.group, lanes),
        key_block=strategy.key_block, chunk=strategy.chunk, split=strategy.split,
        tiles_per_task=strategy.tiles_per_task, tasks=prepared.schedule.tasks, workspace_bytes=prepared.workspace.bytes,
        partial_bytes=<object>prepared.schedule.partial_rows * found.partial_row_bytes)


def task_times(query, key, value, *, num_threads, **modifiers):
    """Return how long the tasks take that `attention` would share among so many threads, in nanoseconds.

    One thread does them here: those that the first thread would begin with, then those of the second, and so on. The
    result is two int64 arrays. The first has an item for each task, and the second for each joining of partial results,
    which begins when all tasks are done. It is empty if there are none.
    """
    cdef cattn_problem problem
    cdef Caller caller = Caller(wants_to_stop, NULL, cattn_float_mode())
    cdef Prepared prepared
    cdef Cost cost = Cost(1, 0, NULL)
    cdef TaskTimes times
    cdef cnp.npy_intp tasks, joins, items
    cdef cnp.ndarray result
    given, _, _ = _arguments.attention(query, key, value, num_threads=num_threads, **modifiers)
    set_problem(&problem, given)
    problem.value_size = min(problem.value_size, CATTN_LARGEST_HEAD)
    check(prepare(&prepared, &problem, &machine, STAGE_OUTPUT, given.num_threads, &caller), &cost)
    tasks = prepared.schedule.tasks
    joins = tasks if prepared.schedule.partial_rows > 0 else 0
    items = tasks + joins
    result = cnp.PyArray_ZEROS(1, &items, cnp.NPY_INT64, 0)
    if tasks > 0:
        times = TaskTimes(<int64_t *>cnp.PyArray_DATA(result), min(<Py_ssize_t>given.num_threads, tasks))
        cost.task_times = &times
        check(execute(&prepared, &problem, &caller, &cost), &cost)
    return result[:tasks], result[tasks:]


for _function in (attend, attention, attention_backward, attention_paged, attention_varlen, attention_weights, maxsim,
                  plan):
    explain_calls(_function, _arguments.explain_call)


cdef int attention_for_c(const cattn_attention_args *args) noexcept nogil:
    return attend_for_c(args, &machine)


cdef size_t explanation_for_c(const cattn_attention_args *args, int status, char *text, size_t size) noexcept nogil:
    return explain_for_c(args, status, text, size)


cdef int maxsim_for_c(const cattn_maxsim_args *args) noexcept nogil:
    return compare_for_c(args, &machine)


cdef cattn_c_api c_functions
c_functions.abi = CATTN_C_ABI
c_functions.version = CATTN_C_VERSION
c_functions.attention = attention_for_c
c_functions.message = cattn_status_message
c_functions.explain = explanation_for_c
c_functions.maxsim = maxsim_for_c
c_api = PyCapsule_New(&c_functions, "cattn._kernel.c_api", NULL)   # what cattn_import() of cattn.h looks for
