# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The compiled half of cattn: the entry from Python, the plan, the loop nests and the portable kernel table."""

import os

from . import _arguments
from ._threads import get_num_threads

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.float cimport DBL_MIN
from libc.math cimport sqrt
from libc.string cimport memcmp
cimport numpy as cnp

cdef extern from "Python.h":
    enum:
        PY_SSIZE_T_MAX

include "declarations.pxi"
include "tiles_portable.pxi"
include "tiles_portable_few.pxi"
include "storage.pxi"
include "plan.pxi"
include "rows.pxi"
include "prefetch.pxi"
include "attend.pxi"

cnp.import_array()

cdef enum:
    # Multiply-adds below which letting go of the GIL, or waking a worker, costs more than it brings: about 2 and 50 µs.
    GIL_WORK = 65536
    THREADS_WORK = 2097152
    SMALL_WORKSPACE = 16384   # bytes, taken from the stack


# The kernel table of this process, chosen at import.
cdef cattn_table table


def _choose_table(name):
    fill_portable[float](&table.float32, NULL)
    fill_portable[double](&table.float64, NULL)
    table.name = "portable"
    chosen = cattn_best_isa() if name is None else name.encode()
    status = cattn_override(&table, chosen)
    if status == -1:
        raise ImportError(f"CATTN_ISA: expected portable, vec128, avx2 or avx512, got {name!r}")
    if status == -2:
        raise ImportError(f"CATTN_ISA: this processor or build cannot run {name!r}")


_choose_table(os.environ.get("CATTN_ISA") or None)


def isa():
    """Name of the kernel table in use: portable, vec128, avx2 or avx512."""
    return (<bytes>table.name).decode()


cdef void do_task(void *context, Py_ssize_t number, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    cdef const Task *task = &run.tasks[number]
    cdef char *workspace = run.workspaces + worker * run.plan.workspace_bytes
    cdef unsigned int mode
    if stopped(run, worker, TASK_WORK + task.rows * (ROW_WORK + run.problem.head_size + run.problem.value_size)):
        return
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    if run.stage != STAGE_OUTPUT:
        weigh_many(run, task, workspace, worker)
    elif is_few(task.rows) and task.rows == entry_query_length(run.problem, task.entry) * run.plan.group:
        attend_few(run, task, workspace, worker)
    else:
        attend_many(run, task, workspace, worker)
    cattn_change_float_mode(mode)


cdef void do_merge(void *context, Py_ssize_t number, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    cdef unsigned int mode
    if run.tasks[number].partial >= 0 and run.tasks[number].first_key == 0 and not run.stopped:
        mode = cattn_change_float_mode(CATTN_TASK_MODE)
        merge_few(run, number, run.workspaces + worker * run.plan.workspace_bytes)
        cattn_change_float_mode(mode)


cdef void run_tasks(Run *run, int threads) noexcept nogil:
    cattn_pool_run(do_task, run, run.plan.tasks, threads, poll)
    if run.plan.partials > 0:
        cattn_pool_run(do_merge, run, run.plan.tasks, threads, poll)


cdef int raise_pending() except -1:
    """The exception that a signal handler raised while the tasks ran is already set."""
    return -1


cdef int run_problem(const cattn_problem *problem, int stage, Py_ssize_t threads) except -1:
    cdef char[SMALL_WORKSPACE + CATTN_ALIGNMENT] small
    cdef char *memory = small
    cdef char *aligned
    cdef Py_ssize_t bytes = 0, tasks_at, partials_at, workspaces_at
    cdef double work
    cdef Plan plan
    cdef Run run
    make_plan(&plan, problem, &table, stage != STAGE_OUTPUT)
    if plan.tasks == 0:
        return 0
    work = <double>plan.entries * problem.query_heads * problem.query_length * problem.key_length \
        * (problem.head_size + problem.value_size)
    if work < THREADS_WORK:
        threads = 1
    elif threads == 0:
        threads = get_num_threads()
    threads = min(threads, plan.tasks)

    tasks_at = reserve(&bytes, plan.tasks * sizeof(Task))
    partials_at = reserve(&bytes, plan.partials * plan.partial_bytes)
    workspaces_at = reserve(&bytes, threads * plan.workspace_bytes)
    if bytes > SMALL_WORKSPACE:
        memory = <char *>PyMem_RawMalloc(bytes + CATTN_ALIGNMENT)
        if memory == NULL:
            raise MemoryError(f"a workspace of {bytes} bytes for {threads} threads")
    aligned = <char *>((<Py_ssize_t>memory + CATTN_ALIGNMENT - 1) // CATTN_ALIGNMENT * CATTN_ALIGNMENT)
    run.problem = problem
    run.plan = &plan
    run.tasks = <Task *>(aligned + tasks_at)
    run.partials = aligned + partials_at
    run.workspaces = aligned + workspaces_at
    run.stage = stage
    run.threads = <int>threads
    run.stopped = False
    run.work = 0
    run.polled = 0
    run.callers_mode = cattn_float_mode()
    list_tasks(&plan, problem, stage != STAGE_OUTPUT, <Task *>run.tasks)
    if work < GIL_WORK:
        run_tasks(&run, 1)
    else:
        with nogil:
            run_tasks(&run, <int>threads)
    if memory != small:
        PyMem_RawFree(memory)
    if run.stopped:
        raise_pending()
    return 0


cdef int set_array(cattn_array *array, object given, int batch_ndim, int own_ndim) except -1:
    """`given`, whose last own_ndim axes are those of (head, row, column) that it has, as an array of the problem. Those
    before are the batch; without any it is shared by all entries."""
    cdef cnp.ndarray view
    cdef Py_ssize_t strides[3]
    cdef int axis, shared
    array.data = NULL
    if given is None:
        return 0
    view = given
    shared = cnp.PyArray_NDIM(view) - own_ndim == 0
    array.data = cnp.PyArray_BYTES(view)
    array.type = storage_type(view)
    array.swapped = not cnp.PyArray_ISNOTSWAPPED(view)
    for axis in range(batch_ndim):
        array.batch[axis] = 0 if shared else cnp.PyArray_STRIDE(view, axis)
    for axis in range(3):
        strides[axis] = cnp.PyArray_STRIDE(view, (0 if shared else batch_ndim) + axis) if axis < own_ndim else 0
    array.head = strides[0]
    array.row = strides[1]
    array.column = strides[2]
    return 0


cdef cattn_type storage_type(cnp.ndarray array) except *:
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT:
        return CATTN_FLOAT32
    if number == cnp.NPY_DOUBLE:
        return CATTN_FLOAT64
    if number == cnp.NPY_FLOAT16:
        return CATTN_FLOAT16
    if number == cnp.NPY_BOOL:
        return CATTN_BOOL
    return CATTN_INT64 if array.dtype.kind == "i" else CATTN_BFLOAT16


cdef int set_problem(cattn_problem *problem, object given) except -1:
    """What _arguments.Problem says, in C."""
    cdef int axis, batch_ndim = given.query.ndim - 3
    problem.struct_size = sizeof(cattn_problem)
    problem.batch_ndim = batch_ndim
    for axis in range(batch_ndim):
        problem.batch_shape[axis] = given.query.shape[axis]
    set_array(&problem.query, given.query, batch_ndim, 3)
    set_array(&problem.key, given.key, batch_ndim, 3)
    set_array(&problem.value, given.value, batch_ndim, 3)
    set_array(&problem.out, given.out, batch_ndim, 3)
    set_array(&problem.lse, given.lse, batch_ndim, 2)
    set_array(&problem.mask, given.mask, batch_ndim, 3)
    set_array(&problem.bias, given.bias, batch_ndim, 3)
    set_array(&problem.key_start, given.key_start, batch_ndim, 2)
    set_array(&problem.key_stop, given.key_stop, batch_ndim, 2)
    set_array(&problem.query_offset, given.query_offset, batch_ndim, 0)
    set_array(&problem.query_lengths, given.query_lengths, batch_ndim, 0)
    set_array(&problem.key_lengths, given.key_lengths, batch_ndim, 0)
    set_array(&problem.alibi_slopes, given.alibi_slopes, 0, 1)
    set_array(&problem.sinks, given.sinks, 0, 1)
    *_, problem.query_heads, problem.query_length, problem.head_size = given.query.shape
    *_, problem.key_heads, problem.key_length, _ = given.key.shape
    *_, problem.value_size = (0,) if given.value is None else given.value.shape
    problem.scale = given.scale
    # A subnormal one would count as 0, none, in the tasks' floating-point mode.
    problem.softcap = max(<double>given.softcap, DBL_MIN) if given.softcap else 0
    problem.window_left = given.window_left
    problem.window_right = given.window_right
    problem.query_indptr = problem.key_indptr = NULL
    if given.query_indptr is not None:
        problem.query_indptr = <const int64_t *>cnp.PyArray_DATA(given.query_indptr)
        problem.key_indptr = <const int64_t *>cnp.PyArray_DATA(given.key_indptr)
    return 0


cdef inline bint is_plain(object array) noexcept:
    """An array as most are: what else there is goes through _arguments."""
    return (cnp.PyArray_CheckExact(array) and cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray>array)
            and cnp.PyArray_TYPE(<cnp.ndarray>array) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE, cnp.NPY_FLOAT16))


cdef inline void set_plain(cattn_array *array, cnp.ndarray given, cattn_type type, int batch_ndim) noexcept:
    cdef int axis
    array.data = cnp.PyArray_BYTES(given)
    array.type = type
    array.swapped = False
    for axis in range(batch_ndim):
        array.batch[axis] = cnp.PyArray_STRIDE(given, axis)
    array.head = cnp.PyArray_STRIDE(given, batch_ndim) if cnp.PyArray_NDIM(given) > 2 else 0
    array.row = cnp.PyArray_STRIDE(given, cnp.PyArray_NDIM(given) - 2)
    array.column = cnp.PyArray_STRIDE(given, cnp.PyArray_NDIM(given) - 1)


cdef inline bint is_apart(cnp.ndarray out, cnp.ndarray other) noexcept:
    """Whether two contiguous arrays share no memory."""
    return (cnp.PyArray_ISCARRAY_RO(other)
            and (cnp.PyArray_BYTES(out) + cnp.PyArray_NBYTES(out) <= cnp.PyArray_BYTES(other)
                 or cnp.PyArray_BYTES(other) + cnp.PyArray_NBYTES(other) <= cnp.PyArray_BYTES(out)))


cdef inline bint is_plain_out(object out, object query, object key, object value, int ndim,
                              const cnp.npy_intp *shape) noexcept:
    return (cnp.PyArray_CheckExact(out) and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
            and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(<cnp.ndarray>query)
            and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim
            and memcmp(cnp.PyArray_DIMS(<cnp.ndarray>out), shape, ndim * sizeof(cnp.npy_intp)) == 0
            and is_apart(out, query) and is_apart(out, key) and is_apart(out, value))


cdef inline bint is_plain_scale(object scale) noexcept:
    """None, or a float that every type holds in full precision."""
    return scale is None or (type(scale) is float and 1e-37 < <double>scale < 1e38)


cdef object attend_plain(object query, object key, object value, object scale, bint causal, object given_out):
    """The output for three plain arrays of matching shapes; None where there is anything to look at more closely."""
    cdef cattn_problem problem
    cdef int ndim, axis, batch_ndim
    cdef cattn_type type
    cdef const cnp.npy_intp *query_shape
    cdef const cnp.npy_intp *key_shape
    cdef const cnp.npy_intp *value_shape
    cdef cnp.npy_intp out_shape[CATTN_MAX_BATCH_NDIM + 3]
    cdef cnp.ndarray out
    if not (is_plain(query) and is_plain(key) and is_plain(value)):
        return None
    ndim = cnp.PyArray_NDIM(query)
    if (ndim < 2 or cnp.PyArray_NDIM(key) != ndim or cnp.PyArray_NDIM(value) != ndim
            or cnp.PyArray_TYPE(key) != cnp.PyArray_TYPE(query) or cnp.PyArray_TYPE(value) != cnp.PyArray_TYPE(query)):
        return None
    batch_ndim = ndim - 3 if ndim > 2 else 0
    query_shape = cnp.PyArray_DIMS(query)
    key_shape = cnp.PyArray_DIMS(key)
    value_shape = cnp.PyArray_DIMS(value)
    problem.struct_size = sizeof(cattn_problem)
    problem.batch_ndim = batch_ndim
    for axis in range(batch_ndim):
        if key_shape[axis] != query_shape[axis] or value_shape[axis] != query_shape[axis] or query_shape[axis] == 0:
            return None
        problem.batch_shape[axis] = out_shape[axis] = query_shape[axis]
    problem.query_heads = query_shape[batch_ndim] if ndim > 2 else 1
    problem.key_heads = key_shape[batch_ndim] if ndim > 2 else 1
    problem.query_length = query_shape[ndim - 2]
    problem.key_length = key_shape[ndim - 2]
    problem.head_size = query_shape[ndim - 1]
    problem.value_size = value_shape[ndim - 1]
    if (problem.query_heads == 0 or problem.key_heads == 0 or problem.query_heads % problem.key_heads
            or (ndim > 2 and value_shape[batch_ndim] != problem.key_heads) or problem.query_length == 0
            or problem.key_length == 0 or value_shape[ndim - 2] != problem.key_length or problem.head_size == 0
            or key_shape[ndim - 1] != problem.head_size or problem.value_size == 0
            or max(problem.head_size, problem.value_size) > CATTN_LARGEST_SIZE
            or (causal and problem.query_length != problem.key_length)):
        return None
    if ndim > 2:
        out_shape[batch_ndim] = problem.query_heads
    out_shape[ndim - 2] = problem.query_length
    out_shape[ndim - 1] = problem.value_size
    if given_out is None:
        try:
            out = cnp.PyArray_EMPTY(ndim, out_shape, cnp.PyArray_TYPE(query), 0)
        except (MemoryError, ValueError):   # too large: _arguments says it in words
            return None
    elif is_plain_out(given_out, query, key, value, ndim, out_shape):
        out = given_out
    else:
        return None

    type = storage_type(query)
    set_plain(&problem.query, query, type, batch_ndim)
    set_plain(&problem.key, key, type, batch_ndim)
    set_plain(&problem.value, value, type, batch_ndim)
    set_plain(&problem.out, out, type, batch_ndim)
    problem.lse.data = problem.mask.data = problem.bias.data = problem.key_start.data = problem.key_stop.data = NULL
    problem.query_offset.data = problem.query_lengths.data = problem.key_lengths.data = NULL
    problem.alibi_slopes.data = problem.sinks.data = NULL
    problem.query_indptr = problem.key_indptr = NULL
    problem.scale = 1 / sqrt(<double>problem.head_size) if scale is None else <double>scale
    problem.softcap = 0
    problem.window_left = CATTN_UNLIMITED
    problem.window_right = 0 if causal else CATTN_UNLIMITED
    run_problem(&problem, STAGE_OUTPUT, 0)
    return out


def attention(query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None,
              query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
              layout="bhld", out=None, return_lse=False, num_threads=None):
    """Exact scaled dot-product attention: softmax(scale · query · keyᵀ) · value, fused, row by row stable.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
        Hq heads of Lq queries. 3-D is (H, L, D); if all three inputs are 2-D there is one head, and no axis for it.
        float32 and float64 compute in their own precision; float16 and bfloat16 are read and written, and float32 is
        computed. Any strides and byte order; integers count as float64.
    key : array_like, shape (..., Hkv, Lk, D)
        Hq is a multiple of Hkv, and query head h reads key/value head ``h // (Hq // Hkv)``. Leading axes broadcast.
    value : array_like, shape (..., Hkv, Lk, Dv)
    scale : float, optional
        Factor of each q·k. Default ``1 / sqrt(D)``.
    causal : bool
        Query i attends to keys ``j <= p_i`` only, where its position is ``p_i = query_offset + i``.
    window : (left, right), optional
        ``p_i - left <= j <= p_i + right`` only; None or -1 is no limit on that side.
    query_offset : {"start", "end"}, int, or int array over the leading axes, optional
        Where query 0 stands among the keys. "start" is 0; "end" is key length - query length, as a cache of keys wants
        it. Must be given where positions matter (causal, window, alibi_slopes) and the lengths differ.
    key_range : (start, stop), optional
        Integer arrays (or None) that broadcast to (..., Hq, Lq): row i attends to ``start <= j < stop`` only.
    query_lengths, key_lengths : int or int array over the leading axes, optional
        What lies at or past them does not exist: keys are not seen, queries give zeros and an lse of -inf.
    mask : bool array_like, broadcastable to (..., Hq, Lq, Lk), optional
        True where a query may attend to a key.
    bias : array_like, broadcastable to (..., Hq, Lq, Lk), optional
        Added to the scores. -inf masks; a finite bias never does.
    alibi_slopes : array_like, shape (Hq,), optional
        Adds ``-slope · |p_i - j|`` (Press et al. 2022, section 3).
    softcap : float, optional
        Scores become ``softcap · tanh(score / softcap)`` before bias and ALiBi (Gemma 2, section 2).
    sinks : array_like, shape (Hq,), optional
        One more logit a head, which takes weight and carries no value; -inf is none.
    layout : {"bhld", "blhd"}
        "blhd": query, key, value and out are (..., L, H, D), lse is (..., L, H). Modifiers keep their shapes.
    out : ndarray, optional
        Where to write the output: its shape and type, no overlap with an input or with itself.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    num_threads : int, optional
        Beats `set_num_threads`. The result is the same, bit for bit, for any number.

    Returns
    -------
    out : ndarray, shape (..., Hq, Lq, Dv), type of query
        Zeros in rows that may attend to nothing.
    lse : ndarray, shape ``out.shape[:-1]``
        Only with return_lse; float64 for float64 inputs, else float32; -inf in rows that may attend to nothing.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came. Nothing has been written then.
    MemoryError

    Notes
    -----
    Vaswani et al. 2017, section 3.2.1, with the online softmax of Milakov and Gimelshein 2018. No array of size
    Lq × Lk exists at any time. What is masked never reaches the output, NaN and infinity included.

    Whatever is below the smallest normal number counts as 0: weights, values, and their products. Weighted values are
    summed before the division by the sum of weights, which is at most Lk: values beyond the type's largest number / Lk
    may give infinity.
    """
    cdef cattn_problem problem
    if (type(layout) is str and layout == "bhld" and (causal is False or causal is True) and return_lse is False
            and is_plain_scale(scale) and window is None and query_offset is None and key_range is None
            and query_lengths is None and key_lengths is None and mask is None and bias is None
            and alibi_slopes is None and softcap is None and sinks is None and num_threads is None):
        result = attend_plain(query, key, value, scale, causal, out)
        if result is not None:
            return result
    given, result, lse = _arguments.attention(
        query, key, value, scale=scale, causal=causal, window=window, query_offset=query_offset, key_range=key_range,
        query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
        softcap=softcap, sinks=sinks, layout=layout, out=out, return_lse=return_lse, num_threads=num_threads)
    set_problem(&problem, given)
    run_problem(&problem, STAGE_OUTPUT, given.num_threads)
    return (result, lse) if return_lse else result


def attention_varlen(query, key, value, query_indptr, key_indptr, *, scale=None, causal=False, window=None,
                     query_offset=None, alibi_slopes=None, softcap=None, sinks=None, out=None, return_lse=False,
                     num_threads=None):
    """Attention over packed sequences: sequence n owns rows ``indptr[n]:indptr[n + 1]`` of each array.

    Parameters
    ----------
    query : array_like, shape (total queries, Hq, D)
    key : array_like, shape (total keys, Hkv, D)
    value : array_like, shape (total keys, Hkv, Dv)
    query_indptr, key_indptr : int array_like, shape (sequences + 1,)
        Ascending, from 0 to the total.
    query_offset : {"start", "end"}, int, or int array of shape (sequences,), optional
    scale, causal, window, alibi_slopes, softcap, sinks, out, return_lse, num_threads
        As in `attention`.

    Returns
    -------
    out : ndarray, shape (total queries, Hq, Dv)
        The bits that `attention` gives for each sequence by itself.
    lse : ndarray, shape (total queries, Hq)
        Only with return_lse.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.
    """
    cdef cattn_problem problem
    given, result, lse = _arguments.attention_varlen(
        query, key, value, query_indptr, key_indptr, scale=scale, causal=causal, window=window,
        query_offset=query_offset, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, out=out,
        return_lse=return_lse, num_threads=num_threads)
    set_problem(&problem, given)
    run_problem(&problem, STAGE_OUTPUT, given.num_threads)
    return (result, lse) if return_lse else result


cdef dict STAGES = {"scores": STAGE_SCORES, "softcapped": STAGE_SOFTCAPPED, "biased": STAGE_BIASED,
                    "weights": STAGE_WEIGHTS}


def attention_weights(query, key, *, stage="weights", scale=None, causal=False, window=None, query_offset=None,
                      key_range=None, query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None,
                      softcap=None, sinks=None, layout="bhld", num_threads=None):
    """The scores of attention at one stage, or its weights: what `attention` never holds at once.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
    key : array_like, shape (..., Hkv, Lk, D)
    stage : {"weights", "scores", "softcapped", "biased"}
        "scores" are scale · q·k; "softcapped" follow the softcap; "biased" are final, -inf where masked; "weights" are
        their softmax by row.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths, mask, bias, alibi_slopes, softcap, sinks
        As in `attention`. A stage does not need what comes after it.
    layout : {"bhld", "blhd"}
        Of query and key.
    num_threads : int, optional

    Returns
    -------
    ndarray, shape (..., Hq, Lq, Lk), in either layout
        float64 for float64 inputs, else float32. Rows of weights sum to 1, less what a sink takes; rows that may attend
        to nothing are zeros.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.
    """
    cdef cattn_problem problem
    given, stage, result = _arguments.attention_weights(
        query, key, stage=stage, scale=scale, causal=causal, window=window, query_offset=query_offset,
        key_range=key_range, query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias,
        alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, layout=layout, num_threads=num_threads)
    set_problem(&problem, given)
    run_problem(&problem, STAGES[stage], given.num_threads)
    return result


from . import _plan


def plan(query, key, value, *, scale=None, causal=False, window=None, query_offset=None, key_range=None,
         query_lengths=None, key_lengths=None, mask=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
         layout="bhld", out=None, return_lse=False, num_threads=None):
    """How `attention` would go about a call with the same arguments: strategy, tiles, tasks, workspace.

    Parameters
    ----------
    query, key, value, ...
        As in `attention`. Nothing is computed, and `out` is not written.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.
    """
    cdef cattn_problem problem
    cdef Plan found
    cdef bint few
    given, _, _ = _arguments.attention(
        query, key, value, scale=scale, causal=causal, window=window, query_offset=query_offset, key_range=key_range,
        query_lengths=query_lengths, key_lengths=key_lengths, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
        softcap=softcap, sinks=sinks, layout=layout, out=out, return_lse=return_lse, num_threads=num_threads)
    set_problem(&problem, given)
    make_plan(&found, &problem, &table, False)
    few = not found.has_many
    return _plan.Plan(
        strategy="few rows" if few else "many rows", isa=isa(),
        lanes=problem.query_length * found.group if few else found.tiles.lanes,
        key_block=found.few_block if few else found.key_block, chunk=CHUNK,
        tiles_per_task=1 if few else found.tiles_per_task, tasks=found.tasks,
        workspace_bytes=found.workspace_bytes, partial_bytes=found.partials * found.partial_bytes)


def runnable_isas():
    """Names of the kernel tables that this build has and this processor runs, best first."""
    cdef cattn_table unused
    names = []
    for name in (b"avx512", b"avx2", b"vec128", b"portable"):
        if cattn_override(&unused, name) == 0:
            names.append(name.decode())
    return names
