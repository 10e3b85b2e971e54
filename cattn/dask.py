"""Attention on dask arrays with chunks along batch, heads, queries and keys, on dask's threads, processes or machines.

Each chunk of keys gives a partial result for each chunk of queries that may attend to it. Partial results are merged in
a tree. Chunks of keys that positions or lengths exclude have no task. The module needs ``pip install 'cattn[dask]'``
and runs on whichever scheduler dask uses.
"""

import contextlib
import functools
import itertools
import operator
import os
import platform
import reprlib
import sys
from typing import NamedTuple

import numpy as np

try:
    import dask.array as da
    from dask.base import is_dask_collection, tokenize
    from dask.highlevelgraph import HighLevelGraph
except ImportError as error:
    raise ImportError("cattn.dask needs dask with its arrays: pip install 'cattn[dask]'") from error
if getattr(da, "ARRAY_EXPR_ENABLED", False):  # experimental: its arrays cannot be made from a graph
    raise ImportError("cattn.dask needs dask's array.query-planning off: unset DASK_ARRAY__QUERY_PLANNING")

from . import _arguments, _kernel
from ._calls import explained, forwarding
from ._modifiers import Modifiers, Sizes, modifiers
from ._read import HALF_TYPES, arithmetic, as_array, as_flag, as_text, class_shown, native, shown, type_name
from ._version import __version__

__all__ = ["attention"]

_MEETING = 4  # the number of partial results that a task of the tree joins


@explained
@forwarding(_kernel.attention, without=("key_range", "query_lengths", "key_scale", "value_scale", "layout", "out"))
def attention(
    query,
    key,
    value,
    *,
    kernel_table=None,
    mask=None,
    bias=None,
    return_lse=False,
    num_threads=1,
    **small,
):
    """Compute exact scaled dot-product attention over chunks: `cattn.attention` on dask arrays, lazily.

    Parameters
    ----------
    query : dask array or array_like, shape (..., Hq, Lq, D)
        Anything that is not a dask array gets the chunks of key along the leading axes and heads.
    key : dask array, shape (..., Hkv, Lk, D)
        It may have chunks along any axis but the last. Along heads, the chunks of query are ``Hq // Hkv`` times as
        large.
    value : dask array, shape (..., Hkv, Lk, Dv)
        It has the chunks of key, and one chunk along the last axis.
    scale, causal, window, alibi_slopes, softcap, sinks
        As in `cattn.attention`.
    query_offset, key_lengths
        As in `cattn.attention`. Like slopes and sinks, they are needed at once, so pass NumPy arrays, not dask arrays.
    mask, bias : dask array or array_like, broadcastable to (..., Hq, Lq, Lk), optional
        As in `cattn.attention`. They have the chunks of query and key, except along axes of one element. Anything that
        is not a dask array gets these chunks.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    num_threads : int, optional
        The number of threads of each task. The default is 1, since the scheduler runs tasks side by side. None means
        the number that `cattn.get_num_threads` returns where the task runs.
    kernel_table : str, optional
        The kernel table (see `cattn.show_config`) that every task must run on. The default is that of this process.
        "any" allows all of them; the bits then depend on which worker computes what.

    Returns
    -------
    out : dask array, shape (..., Hq, Lq, Dv), type of query
        It has the chunks of query.
    lse : dask array, shape ``out.shape[:-1]``
        It is returned only with return_lse. Its type is float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong, or chunks do not match. The call itself raises them, before anything is computed. The
        message names the argument, what was expected and what was given, and what to write where chunks do not match.
    RuntimeError
        A worker has another kernel table than `kernel_table`. It is raised during the computation and names the worker.

    See Also
    --------
    cattn.attention, cattn.merge_attention

    Notes
    -----
    Partial results are float32 (float64 for float64 inputs), each with an lse [1]_. They are merged four at a time in a
    tree, in the order of the keys. The result is rounded to the type of query once, at the end of the tree. It is
    therefore the same, bit for bit, for any scheduler, any number of workers and threads, and after the loss of a
    worker, as long as all workers have the same version of cattn, kernel table and C library.

    The chunks of keys change the result only within the bound that `cattn.reference.attention` states for a whole call.
    Each level of the tree adds 1 to the κ of that bound. Where query, key and value are bfloat16, the term for rounded
    weights counts twice.

    For each running task, the scheduler holds a chunk of keys and values, and a partial result. This is true only if
    the chunks of keys come from files, where they can be read again, and not from memory. In one process,
    ``dask.array.from_array(numpy.memmap(...), name=False)`` reads only what a task reads. Without ``name=False``, dask
    reads all of it once to make a name. Other processes get a copy of the memory that a dask array was made from,
    memory maps included. For these, open files inside tasks, with ``dask.array.from_npy_stack``,
    ``dask.array.from_zarr`` or ``dask.array.map_blocks``.

    References
    ----------
    .. [1] Dao et al., "FlashAttention", 2022, section 3.1: softmax by blocks, joined by their statistics.
       https://arxiv.org/abs/2205.14135

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from cattn.dask import attention
    >>> key = da.random.default_rng(0).standard_normal((8, 65536, 64), chunks=(8, 8192, 64), dtype=np.float32)
    >>> query = np.ones((8, 1, 64), np.float32)
    >>> attention(query, key, key)
    dask.array<attention, shape=(8, 1, 64), dtype=float32, chunksize=(8, 1, 64), chunktype=numpy.ndarray>
    >>> attention(query, key, key, window=(8000, 0), query_offset="end").compute().shape  # reads the last chunk only
    (8, 1, 64)
    """
    return_lse = as_flag("return_lse", return_lse)
    kernel_table = _table_name(kernel_table)
    _arguments.threads(num_threads)
    for name, argument in small.items():
        if is_dask_collection(argument):
            raise TypeError(f"{name}: expected what is known already, got {class_shown(argument)}; "
                            f"write {name}.compute()")  # fmt: skip
    arrays = {
        "query": _array("query", query),
        "key": _dask_array("key", key),
        "value": _dask_array("value", value),
    }
    scores = {name: _array(name, x) for name, x in (("mask", mask), ("bias", bias)) if x is not None}

    inputs, sizes = _arguments._inputs("bhld", **{name: _stand_in(name, array) for name, array in arrays.items()})
    checked = modifiers(sizes, **small, **{name: _stand_in(name, array) for name, array in scores.items()})
    arrays, chunks = _meeting(arrays | scores, sizes)
    problem = _Problem(
        **arrays,
        sizes=sizes,
        chunks=chunks,
        modifiers=checked._replace(
            mask=None,
            bias=None,
            query_offset=np.array(0) if checked.query_offset is None else checked.query_offset,
            key_lengths=np.array(sizes.key_length) if checked.key_lengths is None else checked.key_lengths,
        ),
        num_threads=num_threads,
        kernel_table=kernel_table,
    )
    out, lse = _results(problem, native(inputs["query"].dtype))
    if sizes.headless:
        out, lse = out[0], lse[0]
    return (out, lse) if return_lse else out


# Arguments


class _Problem(NamedTuple):
    """Hold one checked attention call as data."""

    query: da.Array
    key: da.Array
    value: da.Array
    mask: da.Array | None
    bias: da.Array | None
    sizes: Sizes
    chunks: tuple  # the sizes of the chunks along (*batch, heads, query length, key length)
    modifiers: Modifiers
    num_threads: int | None
    kernel_table: str | None  # None: any


def _table_name(kernel_table):
    if kernel_table is None:
        return _kernel.isa()
    name = as_text(kernel_table)
    if name is None:
        raise TypeError(f'kernel_table: expected the name of a kernel table, "any" or None, got {shown(kernel_table)}')
    return None if name == "any" else name


def _array(name, argument):
    return _dask_array(name, argument) if is_dask_collection(argument) else as_array(name, argument)


def _dask_array(name, argument):
    if not isinstance(argument, da.Array):
        advice = "" if is_dask_collection(argument) else f"; write dask.array.from_array({name}, chunks=...)"
        raise TypeError(f"{name}: expected a dask array, got {class_shown(argument)}{advice}")
    if isinstance(argument._meta, np.ma.MaskedArray):  # like as_array, but before anything is computed
        raise TypeError(f"{name}: expected an array, got a masked array; fill it, and pass mask= for what it hid")
    if np.isnan(argument.shape).any():
        raise ValueError(f"{name}: expected chunks of known sizes, got shape {argument.shape}; "
                         f"write {name}.compute_chunk_sizes()")  # fmt: skip
    return argument


def _stand_in(name, array):
    """Return an array of this shape and type that takes no memory, for the checks of `cattn.attention`.

    Integers that count as float64 become float64 here, because the checks would convert them one by one.
    """
    dtype = array.dtype
    if name != "mask" and dtype.kind == "i" and dtype.itemsize in (4, 8):
        dtype = np.float64
    return np.broadcast_to(np.zeros((), dtype), array.shape)


def _meeting(arrays, sizes):
    """Return the arrays by name, with an axis for heads, in chunks that meet; and the sizes of these chunks."""
    if sizes.headless:
        arrays = arrays | {name: arrays[name][None] for name in ("query", "key", "value")}
    query, key, value = arrays["query"], arrays["key"], arrays["value"]

    # Each of these returns the sizes of the chunks that are expected along an axis, and what to write for them.
    def along(array, name, axis):
        return array.chunks[axis], f"{name}.chunks[{axis}]"

    def along_batch(axis):
        for name, array in (("key", key), ("value", value), ("query", query)):
            if isinstance(array, da.Array) and array.ndim >= -axis and array.shape[axis] == sizes.batch[axis + 3]:
                return along(array, name, axis)
        return (sizes.batch[axis + 3],), "-1"

    def whole(array, axis):
        return (array.shape[axis],), "-1"

    batch = [along_batch(axis) for axis in range(-3 - len(sizes.batch), -3)]
    key_heads, keys = along(key, "key", -3), along(key, "key", -2)
    group = sizes.query_heads // max(1, key.shape[-3])
    heads = key_heads
    if group != 1:
        heads = tuple(group * n for n in key_heads[0]), f"tuple({group} * n for n in {key_heads[1]})"
    rows = along(query, "query", -2) if isinstance(query, da.Array) else whole(query, -2)
    axes = {
        "key": [*batch, key_heads, keys, whole(key, -1)],
        "value": [*batch, key_heads, keys, whole(value, -1)],
        "query": [*batch, heads, rows, whole(query, -1)],
        "mask": [*batch, heads, rows, keys],
        "bias": [*batch, heads, rows, keys],
    }
    met = {name: _cut(name, arrays[name], axes[name]) if name in arrays else None for name in axes}
    return met, tuple(sizes for sizes, _ in axes["mask"])


def _cut(name, array, axes):
    """Return the array in chunks of these sizes, which belong to its last axes.

    An axis of one element is broadcast, except the heads of query, key and value: one head beside a chunk without heads
    has no meaning.
    """
    axes = axes[len(axes) - array.ndim :]
    heads = None if name in ("mask", "bias") else array.ndim - 3
    broadcast = [size == 1 and n != heads for n, size in enumerate(array.shape)]
    if not isinstance(array, da.Array):
        chunks = ((1,) if one else sizes for one, (sizes, _) in zip(broadcast, axes, strict=True))
        return da.from_array(array, tuple(chunks))
    apart = [
        n
        for n, (sizes, _) in enumerate(axes)
        if array.chunks[n] != sizes and not (broadcast[n] and array.chunks[n] == (1,))
    ]
    if apart:
        first = apart[0]
        advice = ", ".join(f"{n - array.ndim}: {axes[n][1]}" for n in apart)
        raise ValueError(
            f"{name}: expected chunks {reprlib.repr(axes[first][0])} along axis {first - array.ndim}, got "
            f"{reprlib.repr(array.chunks[first])}; write {name}.rechunk({{{advice}}})"
        )
    return array


# The graph


class _Rows(NamedTuple):
    """Hold a chunk of entries, heads and queries, and the modifiers that concern it."""

    shape: tuple  # of its output
    first: np.ndarray  # the position of its first query, for each entry or for all
    lengths: np.ndarray  # of keys, for each entry or for all
    slopes: np.ndarray | None
    sinks: np.ndarray | None


def _results(problem, dtype):
    """Return out and lse as dask arrays."""
    token = tokenize(__version__, dtype, *problem)
    tree = f"attention-part-{token}"
    tasks, tops = _trees(problem, tree)
    graph = HighLevelGraph.from_collections(tree, tasks, [x for x in problem[:5] if x is not None])

    def collected(name, function, chunks, dtype):
        layer = {(name, *index, *(0,) * (len(chunks) - len(index))): (function, top) for index, top in tops.items()}
        layers = HighLevelGraph({**graph.layers, name: layer}, {**graph.dependencies, name: {tree}})
        return da.Array(layers, name, chunks, dtype=dtype)

    rows = problem.chunks[:-1]
    out = collected(
        f"attention-{token}", functools.partial(_rounded, dtype=dtype), (*rows, problem.value.chunks[-1]), dtype
    )
    lse = collected(f"attention-lse-{token}", operator.itemgetter(1), rows, arithmetic(dtype))
    return out, lse


def _trees(problem, name):
    """Return the tasks of all trees, and the key at the top of each tree by the numbers of its chunk.

    There is a tree for each chunk of entries, heads and queries. A task gives (out, lse).
    """
    tasks, tops = {}, {}
    *outer, key_slices = [_slices(sizes) for sizes in problem.chunks]
    merge = functools.partial(_merge, num_threads=problem.num_threads, kernel_table=problem.kernel_table)
    for index in np.ndindex(*map(len, outer)):
        rows = _rows(problem, *(slices[n] for slices, n in zip(outer, index, strict=True)))
        seen = _chunks_seen(problem, rows, key_slices)
        level = [_part(problem, rows, index, n, key_slices[n], with_sinks=n == seen[0]) for n in seen]
        if not seen:
            level = [(functools.partial(_nothing, rows.shape, problem.sizes.arithmetic, rows.sinks),)]
        for height in itertools.count():
            keys = [(name, *index, height, n) for n in range(len(level))]
            tasks |= zip(keys, level, strict=True)
            if len(keys) == 1:
                break
            level = [(merge, keys[n : n + _MEETING]) for n in range(0, len(keys), _MEETING)]
        tops[index] = keys[0]
    return tasks, tops


def _slices(sizes):
    return [slice(start, stop) for start, stop in itertools.pairwise(itertools.accumulate(sizes, initial=0))]


def _rows(problem, *place):
    *entries, heads, queries = place
    entries, modifiers = tuple(entries), problem.modifiers

    def of_entries(numbers):
        return numbers[entries] if numbers.ndim else numbers

    slopes, sinks = modifiers.alibi_slopes, modifiers.sinks
    if slopes is not None:
        slopes = slopes[heads] if slopes.ndim == 1 else slopes[(*entries, heads)]
    return _Rows(
        shape=(*(part.stop - part.start for part in place), problem.value.shape[-1]),
        first=of_entries(modifiers.query_offset) + queries.start,
        lengths=of_entries(modifiers.key_lengths),
        slopes=slopes,
        sinks=None if sinks is None else sinks[heads],
    )


def _chunks_seen(problem, rows, key_slices):
    """Return the numbers of the chunks of keys that a query may attend to, as far as positions and lengths tell."""
    if not rows.shape[-2]:
        return []
    left, right = problem.modifiers.window_left, problem.modifiers.window_right
    start, stop = 0, rows.lengths  # the keys that any row of an entry attends to
    if left >= 0:
        start = rows.first - left
    if right >= 0:
        stop = np.minimum(stop, rows.first + rows.shape[-2] + right)
    return [
        n for n, keys in enumerate(key_slices) if np.any(np.maximum(start, keys.start) < np.minimum(stop, keys.stop))
    ]


def _part(problem, rows, index, chunk, keys, with_sinks):
    """Return the task for one chunk of keys."""
    *batch, head, row = index
    modifiers = problem.modifiers
    given = {"scale": modifiers.scale, "softcap": modifiers.softcap or None}
    if with_sinks:
        given["sinks"] = rows.sinks
    window = modifiers.window_left, modifiers.window_right
    if window != (-1, -1) or rows.slopes is not None:
        given |= {"window": window, "query_offset": rows.first - keys.start, "alibi_slopes": rows.slopes}
    lengths = np.clip(rows.lengths - keys.start, 0, keys.stop - keys.start)
    if np.any(lengths < keys.stop - keys.start):
        given["key_lengths"] = lengths
    attend = functools.partial(_attend, num_threads=problem.num_threads, kernel_table=problem.kernel_table, **given)
    return (
        attend,
        _block(problem.query, (*batch, head, row, 0)),
        _block(problem.key, (*batch, head, chunk, 0)),
        _block(problem.value, (*batch, head, chunk, 0)),
        _block(problem.mask, (*batch, head, row, chunk)),
        _block(problem.bias, (*batch, head, row, chunk)),
    )


def _block(array, index):
    """Return the key of a chunk. The array may have fewer axes than the index, and one chunk along an axis for all."""
    if array is None:
        return None
    index = index[len(index) - array.ndim :]
    return (array.name, *(0 if count == 1 else n for count, n in zip(array.numblocks, index, strict=True)))


# The tasks


def _attend(query, key, value, mask, bias, *, kernel_table, **given):
    """Return (out, lse) over one chunk of keys. The output is not rounded."""
    _check_kernels(kernel_table)
    out = None
    if type_name(query.dtype) in HALF_TYPES:
        _, sizes = _arguments._inputs("bhld", query=query, key=key, value=value)
        out = np.empty((*sizes.rows, value.shape[-1]), np.float32)
    return _kernel.attention(query, key, value, mask=mask, bias=bias, out=out, return_lse=True, **given)


def _nothing(shape, dtype, sinks):
    """Return (out, lse) over no keys."""
    lse = np.full(shape[:-1], -np.inf, dtype)
    if sinks is not None:
        lse[...] = sinks[:, None]
    return np.zeros(shape, dtype), lse


def _merge(parts, *, num_threads, kernel_table):
    """Return (out, lse) over the keys of all parts, by attention whose scores are the parts' lse.

    `cattn.merge_attention` does this in NumPy, whose exponentials differ between processors on one kernel table.
    """
    _check_kernels(kernel_table)
    outs, lses = zip(*parts, strict=True)
    # All rows become one axis, because an array that has all axes of the parts may have no room for another one.
    shape = outs[0].shape
    value = np.stack([out.reshape(lse.size, shape[-1]) for out, lse in parts], axis=-2)[:, None]
    bias = np.stack([lse.reshape(-1) for lse in lses], axis=-1)[:, None, None]
    nought = np.zeros((), value.dtype)
    query, key = np.broadcast_to(nought, (1, 1, 1)), np.broadcast_to(nought, (1, len(parts), 1))
    out, lse = _kernel.attention(query, key, value, bias=bias, return_lse=True, num_threads=num_threads)
    return out.reshape(shape), lse.reshape(shape[:-1])


def _rounded(result, dtype):
    out, _ = result
    return out.astype(dtype, copy=False)


def _check_kernels(expected):
    """Raise RuntimeError unless this process runs the expected kernel table."""
    found = _kernel.isa()
    if expected is None or expected == found:
        return
    worker = f"process {os.getpid()} on {platform.node()}"
    if "distributed" in sys.modules:
        with contextlib.suppress(ValueError):  # a task of another scheduler
            worker = f"worker {sys.modules['distributed'].get_worker().address}, {worker}"
    raise RuntimeError(
        f"kernel_table: expected {expected!r} wherever this is computed, got {found!r} in {worker}; set CATTN_ISA of "
        "all workers to a table that each of them runs and give kernel_table= its name, or give up the same bits with "
        'kernel_table="any"'
    )
