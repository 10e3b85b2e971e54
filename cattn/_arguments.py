"""The arguments of one call → Problem: every conversion, every check and every error message.

The compiled functions take plain calls themselves and hand all others over to the function of their name here.
What comes back is a Problem, which needs no further check, and the arrays that the caller gets. Nothing is written
before every argument has been accepted.

Canonical axis order is (*batch, heads, length, size), whatever the layout. Query, key, value, mask and bias become
views of what was given, whatever its strides and byte order.
"""

import functools
import inspect
import itertools
import math
import operator
from typing import NamedTuple

import numpy as np

from ._read import (
    TYPES,
    arithmetic,
    as_array,
    as_flag,
    as_floats,
    as_integers,
    as_number,
    as_text,
    check_same_type,
    class_shown,
    is_integer,
    native,
    shown,
    type_name,
    type_shown,
)
from ._threads import resolve

# Positions beyond this are as good as infinite, and sums of a few of them still fit an int64.
_FAR = 2**60
_LARGEST_SIZE = 2**40  # CATTN_LARGEST_SIZE in problem.h
_UNLIMITED = -1

_STAGES = ("scores", "softcapped", "biased", "weights")

# What 3 axes were taken for: the usual slip is a batch without heads.
_READINGS = {
    "bhld": "; 3 axes are read as (heads, length, size): for (batch, length, size) write query[:, None] and so on",
    "blhd": "; 3 axes are read as (length, heads, size): for (batch, length, size) write query[:, :, None] and so on",
}

# Pairs of elements that NumPy may look at in all overlap checks of one call: it looks at ten million a second and more,
# so that they take 20 ms at most. An array has at most 64 axes, and 13 others are read: each check gets 2,600 or more.
# Slices of one array that fit a call need one, as a rule, and were seen to need up to 1,000.
_OVERLAP_WORK = 200_000


class Modifiers(NamedTuple):
    """What a score depends on beside its query and key, checked. Arrays that were not given are None."""

    scale: float
    softcap: float  # 0.0: none
    window_left: int  # -1: unlimited
    window_right: int  # -1: unlimited; causal is 0
    alibi_slopes: np.ndarray | None  # (Hq,), contiguous float64
    sinks: np.ndarray | None  # (Hq,), contiguous float64
    query_offset: np.ndarray | None  # batch or (), int64; None: 0
    query_lengths: np.ndarray | None = None  # batch or (), int64
    key_lengths: np.ndarray | None = None  # batch or (), int64
    key_start: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    key_stop: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    mask: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), bool
    bias: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), any of the four types


class Problem(NamedTuple):
    """One attention call as data, checked."""

    query: np.ndarray  # (*batch, Hq, Lq, D)
    key: np.ndarray  # (*batch, Hkv, Lk, D)
    value: np.ndarray | None  # (*batch, Hkv, Lk, Dv); None for attention_weights
    out: np.ndarray  # (*batch, Hq, Lq, Dv), or (*batch, Hq, Lq, Lk) for attention_weights
    lse: np.ndarray | None  # (*batch, Hq, Lq)
    modifiers: Modifiers
    num_threads: int  # 0: not given
    # attention_varlen only, contiguous int64. The batch is then the sequences, and the arrays have no axis for it:
    # (heads, total, size), lse (Hq, total).
    query_indptr: np.ndarray | None = None
    key_indptr: np.ndarray | None = None


class Sizes(NamedTuple):
    batch: tuple
    query_heads: int
    query_length: int
    key_length: int
    head_size: int
    arithmetic: np.dtype
    headless: bool  # 2-D inputs: the head axis is ours, the caller never sees it


def attention(query, key, value, *, layout="bhld", out=None, return_lse=False, num_threads=None, **given):
    """→ (Problem, out, lse or None)"""
    return_lse = as_flag("return_lse", return_lse)
    layout = _layout(layout)
    inputs, sizes = _inputs(layout, query=query, key=key, value=value)
    checked = modifiers(sizes, **given)
    count = threads(num_threads)

    dtype = inputs["query"].dtype
    rows = _rows_shape(sizes)
    if layout == "blhd" and not sizes.headless:
        rows = (*sizes.batch, sizes.query_length, sizes.query_heads)
    shape = (*rows, inputs["value"].shape[-1])
    out, written, lse = _results(out, shape, dtype, return_lse, {**inputs, **checked._asdict()})
    problem = Problem(
        **inputs, out=_canonical(written, layout), lse=_canonical_lse(lse, layout), modifiers=checked, num_threads=count
    )
    return problem, out, lse


def attention_weights(query, key, *, stage="weights", layout="bhld", num_threads=None, **given):
    """→ (Problem, stage, out); out is (..., Hq, Lq, Lk) in either layout, like mask and bias"""
    name = as_text(stage)
    if name not in _STAGES:
        raise ValueError(f"stage: expected one of {', '.join(map(repr, _STAGES))}, got {shown(stage)}")
    layout = _layout(layout)
    inputs, sizes = _inputs(layout, query=query, key=key)
    checked = modifiers(sizes, **given)
    count = threads(num_threads)

    shape = (*_rows_shape(sizes), sizes.key_length)
    rows = "i:i + n, :, :" if layout == "blhd" and not sizes.headless else "i:i + n, :"
    advice = (
        f"; go over the queries in pieces: query[..., {rows}] with query_offset=i (more where it is given), and the "
        "same rows of mask, bias and key_range"
    )
    weights = _empty("out", shape, arithmetic(inputs["query"].dtype), advice)
    problem = Problem(
        **inputs,
        value=None,
        out=weights[None] if sizes.headless else weights,
        lse=None,
        modifiers=checked,
        num_threads=count,
    )
    return problem, name, weights


def attention_varlen(
    query,
    key,
    value,
    query_indptr,
    key_indptr,
    *,
    scale=None,
    causal=False,
    window=None,
    query_offset=None,
    alibi_slopes=None,
    softcap=None,
    sinks=None,
    out=None,
    return_lse=False,
    num_threads=None,
):
    """→ (Problem, out, lse or None)"""
    return_lse = as_flag("return_lse", return_lse)
    inputs, sizes = _inputs("packed", query=query, key=key, value=value)
    query_indptr = _indptr("query_indptr", query_indptr, "query", sizes.query_length)
    key_indptr = _indptr("key_indptr", key_indptr, "key", sizes.key_length)
    if len(key_indptr) != len(query_indptr):
        raise ValueError(
            f"key_indptr: expected {len(query_indptr)} entries like query_indptr, one more than there are sequences, "
            f"got {len(key_indptr)}"
        )
    sequences = (len(query_indptr) - 1,)

    everywhere = _everywhere(sizes, scale, softcap, causal, window, alibi_slopes, sinks)
    query_lengths = query_indptr[1:] - query_indptr[:-1]
    key_lengths = key_indptr[1:] - key_indptr[:-1]
    ends = key_lengths - query_lengths
    unequal = np.flatnonzero(ends)
    lengths = ""
    if unequal.size:
        first = unequal[0]
        lengths = f"{query_lengths[first]} and {key_lengths[first]} in sequence {first}"
    offset = _query_offset(query_offset, sequences, ends, _positional(causal, everywhere), lengths, "sequences")
    count = threads(num_threads)

    dtype = inputs["query"].dtype
    shape = (sizes.query_length, sizes.query_heads, inputs["value"].shape[-1])
    out, written, lse = _results(out, shape, dtype, return_lse, inputs)
    problem = Problem(
        **inputs,
        out=_canonical(written, "packed"),
        lse=_canonical_lse(lse, "packed"),
        modifiers=Modifiers(**everywhere, query_offset=offset),
        num_threads=count,
        query_indptr=query_indptr,
        key_indptr=key_indptr,
    )
    return problem, out, lse


# Inputs and outputs


def _inputs(layout, **given):
    """query, key and, for attention, value: canonical views, broadcast over the batch; and their sizes."""
    given = {name: as_array(name, argument) for name, argument in given.items()}
    arrays = {name: as_floats(name, array) for name, array in given.items()}
    query, key, value = arrays["query"], arrays["key"], arrays.get("value")
    axes = {"bhld": "(..., heads, length, size)", "blhd": "(..., length, heads, size)"}.get(layout)
    for name, array in arrays.items():
        if layout == "packed":
            if array.ndim != 3:
                raise ValueError(f"{name}: expected 3 axes (total length, heads, size), got shape {array.shape}")
        elif array.ndim < 2:
            raise ValueError(f"{name}: expected axes {axes}, or (length, size), got shape {array.shape}")
        elif (array.ndim == 2) != (query.ndim == 2):
            expected = "2 axes (length, size)" if query.ndim == 2 else f"3 axes or more {axes}"
            raise ValueError(
                f"{name}: expected {expected} like query of shape {query.shape}, got shape {array.shape} "
                "(either all inputs are 2-D, or none)"
            )
        if array.dtype is not query.dtype:
            check_same_type(name, given[name].dtype, "query", given["query"].dtype)

    views = {name: _canonical(array, layout) for name, array in arrays.items()}
    query_heads, query_length, head_size = views["query"].shape[-3:]
    key_heads, key_length, key_size = views["key"].shape[-3:]
    if head_size == 0:
        raise ValueError(f"query: expected a head size of 1 or more, got 0 (shape {query.shape})")
    for name, size in (("query", head_size), ("value", 0 if value is None else views["value"].shape[-1])):
        if size > _LARGEST_SIZE:
            raise MemoryError(f"{name}: no workspace holds rows of size {size} (shape {arrays[name].shape})")
    if key_size != head_size:
        raise ValueError(f"key: expected head size {head_size} like query, got {key_size} (shape {key.shape})")
    reading = _READINGS.get(layout, "") if query.ndim == 3 else ""
    if query_heads != key_heads and (query_heads == 0 or key_heads == 0 or query_heads % key_heads):
        raise ValueError(
            f"key: expected a number of heads that divides the {query_heads} of query, "
            f"got {key_heads} (shape {key.shape}){reading}"
        )
    if value is not None:
        value_heads, value_length, _ = views["value"].shape[-3:]
        if value_heads != key_heads:
            raise ValueError(
                f"value: expected {key_heads} heads like key, got {value_heads} (shape {value.shape}){reading}"
            )
        if value_length != key_length:
            raise ValueError(f"value: expected length {key_length} like key, got {value_length} (shape {value.shape})")

    batch = views["query"].shape[:-3]
    for name, view in views.items():
        leading = view.shape[:-3]
        if leading != batch:
            pairs = list(itertools.zip_longest(reversed(batch), reversed(leading), fillvalue=1))
            if any(one != other and 1 not in (one, other) for one, other in pairs):
                raise ValueError(
                    f"{name}: expected leading axes that broadcast with {batch}, got {leading} "
                    f"(shape {arrays[name].shape})"
                )
            batch = tuple(other if one == 1 else one for one, other in reversed(pairs))
    for name, view in views.items():
        views[name] = _broadcast(name, view, batch + view.shape[-3:], "the leading axes of all inputs")
    return views, Sizes(
        batch, query_heads, query_length, key_length, head_size, arithmetic(query.dtype), query.ndim == 2
    )


def _layout(layout):
    name = as_text(layout)
    if name not in ("bhld", "blhd"):
        raise ValueError(f"layout: expected 'bhld' or 'blhd', got {shown(layout)}")
    return name


def _canonical(array, layout):
    if array.ndim == 2:
        return array[None]
    return array if layout == "bhld" else array.swapaxes(-3, -2)


def _canonical_lse(lse, layout):
    if lse is None:
        return None
    if lse.ndim == 1:
        return lse[None]
    return lse if layout == "bhld" else lse.swapaxes(-2, -1)


def _results(out, shape, dtype, return_lse, read):
    """What the caller gets for inputs of this type, and where it is written: out, given or not, a view of it that is
    ours, and lse or None."""
    if out is None:
        out = written = _empty("out", shape, native(dtype))
    else:
        if not issubclass(type(out), np.ndarray) or issubclass(type(out), np.ma.MaskedArray):
            advice = "; write out.numpy()" if hasattr(type(out), "numpy") else ""
            raise TypeError(f"out: expected a NumPy array, got {class_shown(out)}{advice}")
        written = as_array("out", out)
        _check_out(written, shape, native(dtype), read)
    lse = _empty("lse", shape[:-1], arithmetic(dtype)) if return_lse else None
    return out, written, lse


def _empty(name, shape, dtype, advice=""):
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # ValueError: it does not even fit the addresses
        size = math.prod(shape) * dtype.itemsize
        raise MemoryError(f"{name}: cannot allocate {size} bytes, shape {shape} of type {dtype}{advice}") from None


def _check_out(out, shape, dtype, read):
    """Refuse an `out` that is not what would have been allocated, or that shares memory with one of `read`."""
    if out.dtype != dtype:
        raise TypeError(f"out: expected type {dtype}, got {type_shown(out.dtype)}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    read = {name: array for name, array in read.items() if isinstance(array, np.ndarray)}
    work = _OVERLAP_WORK // (len(read) + out.ndim)
    for name, array in read.items():
        if _overlap(out, array, work, name):
            raise ValueError(f"out: expected memory of its own, got an array that overlaps {name}")
    if _overlaps_itself(out, work):
        raise ValueError(
            f"out: expected elements that do not overlap, got an array that overlaps itself "
            f"(shape {out.shape}, strides {out.strides})"
        )


def _overlaps_itself(array, work):
    # Let two elements that share bytes differ along this axis first. Where both are moved along the array together
    # they still share, so one may be taken from index 0 up to and with the axis, the other from 0 up to it.
    if array.flags.c_contiguous:
        return False
    return any(
        _overlap(array[(0,) * axis + (slice(0, 1),)], array[(0,) * axis + (slice(1, None),)], work, "itself")
        for axis in range(array.ndim)
    )


def _overlap(out, other, work, name):
    try:
        return np.shares_memory(out, other, max_work=work)
    except (np.exceptions.TooHardError, OverflowError):
        raise ValueError(
            f"out: expected memory of its own, got strides {out.strides} of which it cannot be told in bounded time "
            f"whether they overlap {name}; pass a contiguous array"
        ) from None


# Modifiers


def modifiers(
    sizes,
    *,
    scale=None,
    causal=False,
    window=None,
    query_offset=None,
    key_range=None,
    query_lengths=None,
    key_lengths=None,
    mask=None,
    bias=None,
    alibi_slopes=None,
    softcap=None,
    sinks=None,
):
    everywhere = _everywhere(sizes, scale, softcap, causal, window, alibi_slopes, sinks)
    batch, query_length, key_length = sizes.batch, sizes.query_length, sizes.key_length
    query_lengths = _lengths("query_lengths", query_lengths, batch, "query", query_length)
    key_lengths = _lengths("key_lengths", key_lengths, batch, "key", key_length)
    end = None
    if as_text(query_offset):
        end = (key_length if key_lengths is None else key_lengths) - (
            query_length if query_lengths is None else query_lengths
        )
    unequal = f"{query_length} and {key_length}" if query_length != key_length else ""
    start, stop = _key_range(key_range, sizes)
    return Modifiers(
        **everywhere,
        query_offset=_query_offset(query_offset, batch, end, _positional(causal, everywhere), unequal),
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        key_start=start,
        key_stop=stop,
        mask=None if mask is None else _mask(mask, sizes),
        bias=None if bias is None else _bias(bias, sizes),
    )


def _everywhere(sizes, scale, softcap, causal, window, alibi_slopes, sinks):
    """The modifiers that are the same for every batch entry, by name."""
    left, right = _window(window)
    return {
        "scale": 1.0 / math.sqrt(sizes.head_size) if scale is None else _scale(scale, sizes.arithmetic),
        "softcap": 0.0 if softcap is None else as_number("softcap", softcap, positive=True),
        "window_left": left,
        "window_right": 0 if as_flag("causal", causal) else right,
        "alibi_slopes": _per_head("alibi_slopes", alibi_slopes, sizes.query_heads),
        "sinks": _sinks(sinks, sizes.query_heads),
    }


def _positional(causal, everywhere):
    """The name of a given modifier that asks where the queries stand, or None."""
    if causal:
        return "causal"
    if everywhere["window_left"] != _UNLIMITED or everywhere["window_right"] != _UNLIMITED:
        return "window"
    return None if everywhere["alibi_slopes"] is None else "alibi_slopes"


def _window(window):
    if window is None:
        return _UNLIMITED, _UNLIMITED
    expected = "window: expected (left, right), each None or -1 (no limit) or an integer of 0 or more"
    if is_integer(window):
        raise TypeError(f"{expected}, got {window}; ({window}, 0) looks back only, ({window}, {window}) both ways")
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window,)
    if not all(side is None or is_integer(side) for side in sides):
        raise TypeError(f"{expected}, got {shown(window)}")
    sides = [_UNLIMITED if side is None else min(operator.index(side), _FAR) for side in sides]
    if len(sides) != 2 or min(sides) < _UNLIMITED:
        raise ValueError(f"{expected}, got {shown(window)}")
    return tuple(sides)


def _query_offset(offset, batch, end, positional, unequal, axes="leading axes"):
    """int64 per batch entry, or None for 0. `unequal` tells which lengths differ, empty where all are equal."""
    words = '"start" (query row 0 stands at key 0) or "end" (the last query row stands at the last key)'
    if offset is None:
        if positional and unequal:
            raise ValueError(
                f"query_offset: expected {words}, or integers, because {positional} is given and the lengths "
                f'of query and key differ ({unequal}), got None; decoding with a cache of keys wants "end"'
            )
        return None
    if (word := as_text(offset)) is not None:
        if word == "start":
            return None
        if word != "end":
            raise ValueError(f"query_offset: expected {words}, or integers, got {word!r}")
        offset = end
    return _per_entry("query_offset", as_integers("query_offset", offset, -_FAR, _FAR), batch, axes)


def _lengths(name, lengths, batch, of, longest):
    if lengths is None:
        return None
    given = lengths if type(lengths) is int else as_array(name, lengths)
    array = as_integers(name, given, -_FAR, _FAR)
    if array.size and (array.min() < 0 or array.max() > longest):
        wrong = np.asarray(given)[(array < 0) | (array > longest)].flat[0]
        raise ValueError(f"{name}: expected 0 to {longest}, the length of {of}, got {wrong}")
    return _per_entry(name, array, batch, "leading axes")


def _per_entry(name, array, batch, axes):
    return array if array.ndim == 0 else _broadcast(name, array, batch, axes)


def _key_range(key_range, sizes):
    if key_range is None:
        return None, None
    if not isinstance(key_range, (tuple, list)):
        raise TypeError(f"key_range: expected (start, stop), each None or integers, got {shown(key_range)}")
    if len(key_range) != 2:
        raise ValueError(f"key_range: expected (start, stop), each None or integers, got {shown(key_range)}")
    shape = _rows_shape(sizes)
    bounds = []
    for side, bound in zip(("start", "stop"), key_range, strict=True):
        if bound is not None:
            name = f"key_range {side}"
            bound = as_integers(name, bound, 0, sizes.key_length)
            bound = _broadcast(name, bound, shape, "query length" if sizes.headless else "..., heads, query length")
            bound = bound[None] if sizes.headless else bound
        bounds.append(bound)
    return bounds


def _mask(mask, sizes):
    mask = as_array("mask", mask)
    if mask.dtype != np.bool_:
        advice = ""
        if mask.dtype.kind in "iu":
            advice = "; write mask.astype(bool) if nonzero means may attend"
        elif type_name(mask.dtype):
            advice = "; what is added to the scores goes to bias="
        raise TypeError(f"mask: expected type bool (True: may attend), got {type_shown(mask.dtype)}{advice}")
    return _scores_like("mask", mask, sizes)


def _bias(bias, sizes):
    bias = as_array("bias", bias)
    if bias.dtype == np.bool_:
        raise TypeError(f"bias: expected type {TYPES}, got bool; what may be attended to goes to mask=")
    return _scores_like("bias", as_floats("bias", bias), sizes)


def _per_head(name, argument, heads):
    if argument is None:
        return None
    array = as_floats(name, argument)
    if array.shape != (heads,):
        raise ValueError(f"{name}: expected shape {(heads,)}, one number for each head of query, got {array.shape}")
    return array.astype(np.float64, order="C")


def _sinks(sinks, heads):
    sinks = _per_head("sinks", sinks, heads)
    if sinks is not None and not np.all(sinks < np.inf):
        raise ValueError(f"sinks: expected finite numbers, or -inf for none, got {sinks[~(sinks < np.inf)][0]}")
    return sinks


def _indptr(name, argument, of, total):
    indptr = as_integers(name, argument, -_FAR, _FAR)
    if indptr.ndim != 1 or indptr.size == 0:
        raise ValueError(f"{name}: expected shape (sequences + 1,), got {indptr.shape}")
    if indptr[0] != 0:
        raise ValueError(f"{name}: expected to begin with 0, got {indptr[0]}")
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if falls.size:
        first = falls[0]
        raise ValueError(
            f"{name}: expected ascending values, got {indptr[first]} before {indptr[first + 1]} (entry {first + 1})"
        )
    if indptr[-1] != total:
        raise ValueError(f"{name}: expected to end with {total}, the total length of {of}, got {indptr[-1]}")
    return indptr


def threads(num_threads):
    return 0 if num_threads is None else resolve(num_threads)


def _scale(argument, arithmetic):
    scale = as_number("scale", argument)
    limits = np.finfo(arithmetic)
    if scale and not float(limits.tiny) <= abs(scale) <= float(limits.max):
        raise ValueError(f"scale: expected 0 or a number that {arithmetic} holds in full precision, got {scale}")
    return scale


def _broadcast(name, array, shape, axes, advise=None):
    if array.shape == shape:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        advice = "" if advise is None else advise(name, array.shape, shape)
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {shape} ({axes}), got {array.shape}{advice}"
        ) from None


def _rows_shape(sizes):
    """(..., Hq, Lq) as the caller sees it."""
    heads = () if sizes.headless else (sizes.query_heads,)
    return (*sizes.batch, *heads, sizes.query_length)


def _scores_like(name, array, sizes):
    axes = "query length, key length" if sizes.headless else "..., heads, query length, key length"
    shape = (*_rows_shape(sizes), sizes.key_length)
    array = _broadcast(name, array, shape, axes, _missing_axes)
    return array[None] if sizes.headless else array


def _missing_axes(name, came, shape):
    """What to write for a mask of (batch, query length, key length) or (batch, key length)."""
    batch = ":" if len(shape) == 4 else "..."
    if len(shape) > 3 and _broadcasts((*came[:-2], 1, *came[-2:]), shape):
        return f"; without heads it wants {name}[{batch}, None{'' if batch == ':' else ', :, :'}]"
    if len(shape) > 3 and _broadcasts((*came[:-1], 1, 1, *came[-1:]), shape):
        lengths = ", or what is padding at the keys' end goes to key_lengths=" if name == "mask" else ""
        return f"; of batch and keys only, it wants {name}[{batch}, None, None, :]{lengths}"
    return ""


def _broadcasts(came, shape):
    return len(came) <= len(shape) and all(map(lambda one, size: one in (1, size), reversed(came), reversed(shape)))


# Calls


# Names that other houses give to what is here, or is not: what to write, where the function has it.
_ELSEWHERE = {
    "is_causal": ("causal", 'write causal=, with query_offset="start" where the lengths differ'),
    "attn_mask": ("mask", "write mask= for booleans (True: may attend), bias= for what is added to the scores"),
    "enable_gqa": (None, "leave it out: fewer heads of key and value than of query need no flag"),
    "dropout_p": (None, "leave it out: there is no dropout"),
}


def explain_call(function, positional, names):
    """What is wrong with a call that gave so many arguments by position and these by name; None: nothing that a look at
    the function's parameters tells."""
    parameters = inspect.signature(function).parameters
    title = function.__name__
    for name in names:
        if name not in parameters:
            there, advice = _ELSEWHERE.get(name, (name, ""))
            if there is not None and there not in parameters:
                advice = f"expected one of {', '.join(parameters)}"
            return f"{name}: not an argument of {title}; {advice}"
    first = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if positional > len(first):
        return (
            f"{title}: expected at most {len(first)} arguments by position ({', '.join(first)}), got {positional}; "
            "give all others by name, such as scale="
        )
    return None


def explained(function):
    """`function`, whose calls with wrong names or too many arguments are refused with advice."""

    @functools.wraps(function)
    def door(*given, **named):
        try:
            return function(*given, **named)
        except TypeError:
            message = explain_call(function, len(given), named)
            if message is None:
                raise
            raise TypeError(message) from None

    return door
