"""Turn the arguments of one call of `attention_backward` into arrays that need no further check, and the arrays that
were computed into the gradients that the caller gets."""

import math
from typing import NamedTuple

import numpy as np

from ._arguments import _canonical, _canonical_lse, _inputs, _layout, empty, threads
from ._gradients import Gradients
from ._modifiers import Modifiers, modifiers
from ._read import (
    HALF_TYPES,
    arithmetic,
    as_array,
    as_flag,
    as_floats,
    native,
    type_name,
    type_shown,
)

_LARGEST_VALUE = 16384  # the number of a row's values that is computed at a time: CATTN_LARGEST_HEAD in problem.h


class Problem(NamedTuple):
    """Hold one checked call as data. The axes are those of _arguments.Problem."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    out: np.ndarray
    lse: np.ndarray
    grad_out: np.ndarray
    grad_lse: np.ndarray | None
    modifiers: Modifiers
    num_threads: int  # 0: not given
    # What is written: like query, key and value. That of a bias has the stride 0 where the bias was broadcast.
    grad_query: np.ndarray
    grad_key: np.ndarray
    grad_value: np.ndarray
    grad_bias: np.ndarray | None
    grad_slopes: np.ndarray | None  # (*batch, Hq), float64
    grad_sinks: np.ndarray | None  # (*batch, Hq), float64
    # The kernel looks for these, too: sequences are not packed, keys are not in pages, and they are not int8.
    query_indptr: None = None
    key_indptr: None = None
    block_table: None = None
    key_scale: None = None
    value_scale: None = None


class _Result(NamedTuple):
    """Hold the gradient of one argument: an array that is written, which may have to be summed over broadcast axes."""

    written: np.ndarray
    shape: tuple
    dtype: np.dtype

    def finished(self):
        """Return the gradient in the argument's shape and type."""
        if self.written.shape == self.shape and self.written.dtype == self.dtype:
            return self.written
        with np.errstate(all="ignore"):
            return _sum_to(self.shape, self.written).astype(self.dtype)


def attention_backward(
    grad_out, query, key, value, out, lse, *, grad_lse=None, bias_grad=False, layout="bhld", num_threads=None, **given
):
    """Return (Problem, a function that returns the Gradients once the problem has been computed)."""
    bias_grad = as_flag("bias_grad", bias_grad)
    layout = _layout(layout)
    arrays = {"query": query, "key": key, "value": value}
    arrays = {name: as_floats(name, x, integers=False) for name, x in arrays.items()}
    inputs, sizes = _inputs(layout, **arrays)
    value_size = inputs["value"].shape[-1]
    if value_size > _LARGEST_VALUE:
        raise ValueError(
            f"value: expected a size of at most {_LARGEST_VALUE} for gradients, got {value_size} "
            f"(shape {arrays['value'].shape})"
        )
    dtype = arrays["query"].dtype
    rows = sizes.rows
    if layout == "blhd" and not sizes.headless:
        rows = (*sizes.batch, sizes.query_length, sizes.query_heads)
    of_out = {
        name: _like_out(name, x, (*rows, value_size), dtype) for name, x in (("grad_out", grad_out), ("out", out))
    }
    of_lse = {"lse": _like_lse("lse", lse, rows, dtype)}
    if grad_lse is not None:
        of_lse["grad_lse"] = _like_lse("grad_lse", grad_lse, rows, dtype)
    for name in ("bias", "alibi_slopes", "sinks"):  # whose shapes and types are those of their gradients
        if given.get(name) is not None:
            given[name] = as_array(name, given[name])
    checked = modifiers(sizes, **given)
    if bias_grad and checked.bias is None:
        raise ValueError("bias_grad: expected False without a bias, got True")
    count = threads(num_threads)

    results = {name: _like(name, x, inputs[name], layout) for name, x in arrays.items()}
    written = {f"grad_{name}": _canonical(result.written, layout) for name, result in results.items()}
    grad_bias = None
    if bias_grad:
        results["bias"], grad_bias = _of_bias(given["bias"], checked.bias, sizes)
    per_head = {}
    for name, field in (("alibi_slopes", "grad_slopes"), ("sinks", "grad_sinks")):
        per_head[field] = None
        if getattr(checked, name) is not None:
            per_head[field] = np.zeros((*sizes.batch, sizes.query_heads))
            array = given[name]
            own = array.dtype if type_name(array.dtype) else np.dtype(np.float64)
            results[name] = _Result(per_head[field], array.shape, native(own))
    problem = Problem(
        **inputs,
        **{name: _canonical(x, layout) for name, x in of_out.items()},
        lse=_canonical_lse(of_lse["lse"], layout),
        grad_lse=_canonical_lse(of_lse.get("grad_lse"), layout),
        modifiers=checked,
        num_threads=count,
        **written,
        grad_bias=grad_bias,
        **per_head,
    )

    def finished():
        return Gradients(*(results[name].finished() if name in results else None for name in Gradients._fields))

    return problem, finished


def _like_out(name, argument, shape, dtype):
    """Return a checked array like the output of queries of this type."""
    array = as_floats(name, argument, integers=False)
    types = [type_name(dtype), "float32"] if type_name(dtype) in HALF_TYPES else [type_name(dtype)]
    if type_name(array.dtype) not in types:
        raise TypeError(
            f"{name}: expected type {' or '.join(types)}, got {type_shown(array.dtype)}; "
            f"write {name}.astype(np.{types[-1]})"
        )
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} like the output of attention, got {array.shape}")
    return array


def _like_lse(name, argument, shape, dtype):
    """Return a checked array like the lse of queries of this type, in native byte order and aligned."""
    array = as_array(name, argument)
    expected = arithmetic(dtype)
    if type_name(array.dtype) != expected.name:
        raise TypeError(
            f"{name}: expected type {expected}, got {type_shown(array.dtype)}; write {name}.astype(np.{expected})"
        )
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} like the lse of attention, got {array.shape}")
    return np.require(array, expected, "A")


def _like(name, array, view, layout):
    """Return the result for an array whose view is broadcast over the batch."""
    dtype = native(array.dtype)
    if view.shape[:-3] == _canonical(array, layout).shape[:-3]:
        return _Result(empty(f"gradient of {name}", array.shape, dtype), array.shape, dtype)
    shape = view.shape[:-3] + array.shape[-3:]
    return _Result(empty(f"gradient of {name}", shape, arithmetic(dtype)), array.shape, dtype)


def _of_bias(given, checked, sizes):
    """Return the result for a bias, and the view of it that is written: it repeats itself where the bias does."""
    shape = given.shape
    dtype = native(checked.dtype)
    array = empty("gradient of bias", shape, dtype)
    view = np.broadcast_to(array, (*sizes.rows, sizes.key_length))
    if view.size == 0:  # nothing is computed
        array[...] = 0
    return _Result(array, shape, dtype), view[None] if sizes.headless else view


def _sum_to(shape, x):
    """Return x, summed over the axes along which an array of this shape was broadcast to it, in float64."""
    lead = x.ndim - len(shape)
    axes = [*range(lead), *(lead + n for n, size in enumerate(shape) if size != x.shape[lead + n])]
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    # NumPy adds up pairs of numbers along a contiguous last axis only, and pairs are more exact than one long chain.
    flat = np.ascontiguousarray(x.transpose(rest + axes), np.float64)
    count = math.prod(x.shape[axis] for axis in axes)
    return flat.reshape(*(x.shape[axis] for axis in rest), count).sum(axis=-1).reshape(shape)
