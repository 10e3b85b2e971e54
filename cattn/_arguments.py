"""Turn the arguments of one call into a Problem: every conversion, every check and every error message.

_read.py reads one argument, whatever it is for. _modifiers.py checks the modifiers. _calls.py says what is wrong with
names that a function does not take.

The compiled functions take plain calls themselves, and hand all others over to the function of the same name here. It
returns a Problem, which needs no further check, and the arrays that the caller gets. Nothing is written before every
argument has been accepted.

The canonical order of axes is (*batch, heads, length, size), whatever the layout. Query, key, value, mask and bias
become views of what was given, whatever its strides and byte order.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from ._calls import explain_call as explain_call
from ._calls import renamed
from ._modifiers import FAR, Modifiers, Sizes, modifiers
from ._read import (
    HALF_TYPES,
    arithmetic,
    as_array,
    as_even,
    as_flag,
    as_floats,
    as_integers,
    as_text,
    broadcast,
    check_same_type,
    check_type_beside,
    class_shown,
    native,
    shown,
    type_name,
    type_shown,
)
from ._threads import resolve

LARGEST_HEAD, _LARGEST_VALUE = 16384, 2**40  # CATTN_LARGEST_HEAD and CATTN_LARGEST_VALUE in problem.h

_STAGES = ("scores", "softcapped", "biased", "weights")

# An error about heads adds how 3 axes were read, because the usual slip is a batch without heads.
_READINGS = {
    "bhld": "; 3 axes are read as (heads, length, size): for (batch, length, size) write query[:, None] and so on",
    "blhd": "; 3 axes are read as (length, heads, size): for (batch, length, size) write query[:, :, None] and so on",
}

# All overlap checks of one call together may look at so many pairs of elements, so that they end soon. The checks share
# the number: there is one for each axis of `out`, and one for each array that is read. A share is far more than slices
# of one array usually need.
_OVERLAP_WORK = 200_000


class Problem(NamedTuple):
    """Hold one checked attention call as data."""

    query: np.ndarray  # (*batch, Hq, Lq, D)
    key: np.ndarray  # (*batch, Hkv, Lk, D)
    value: np.ndarray | None  # (*batch, Hkv, Lk, Dv); None for attention_weights
    out: np.ndarray  # (*batch, Hq, Lq, Dv), or (*batch, Hq, Lq, Lk) for attention_weights
    lse: np.ndarray | None  # (*batch, Hq, Lq)
    modifiers: Modifiers
    num_threads: int  # 0: not given
    # Only attention_varlen and attention_paged have these, as contiguous int64. Their sequences are the batch, for
    # which the arrays have no axis: they are (heads, total, size), and lse is (Hq, total).
    query_indptr: np.ndarray | None = None
    key_indptr: np.ndarray | None = None
    # Only int8 keys and values have these: (*batch, Hkv, Lk or 1, D or 1) and (*batch, Hkv, Lk or 1, Dv or 1).
    key_scale: np.ndarray | None = None
    value_scale: np.ndarray | None = None
    # Only attention_paged has these instead of key_indptr. Its key and value are (pages, heads, page size, size).
    block_table: np.ndarray | None = None  # (B, most pages), contiguous; what is not read holds a page that is
    key_lengths: np.ndarray | None = None  # (B,)


def attention(
    query, key, value, *, key_scale=None, value_scale=None, layout="bhld", out=None, return_lse=False, num_threads=None,
    **given,
):  # fmt: skip
    """Return (Problem, out, lse or None) for a call of `cattn.attention`."""
    return_lse = as_flag("return_lse", return_lse)
    layout = _layout(layout)
    inputs, sizes = _inputs(layout, (key_scale, value_scale), query=query, key=key, value=value)
    checked = modifiers(sizes, **given)
    count = threads(num_threads)

    dtype = inputs["query"].dtype
    rows = sizes.rows
    if layout == "blhd" and not sizes.headless:
        rows = (*sizes.batch, sizes.query_length, sizes.query_heads)
    shape = (*rows, inputs["value"].shape[-1])
    out, written, lse = _results(out, shape, dtype, return_lse, {**inputs, **checked._asdict()})
    problem = Problem(
        **inputs, out=_canonical(written, layout), lse=_canonical_lse(lse, layout), modifiers=checked, num_threads=count
    )
    return problem, out, lse


def attention_weights(
    query, key, *, stage="weights", key_scale=None, layout="bhld", num_threads=None, **given
):  # fmt: skip
    """Return (Problem, stage, out) for a call of `cattn.attention_weights`. The layout does not concern out."""
    name = as_text(stage)
    if name not in _STAGES:
        raise ValueError(f"stage: expected one of {', '.join(map(repr, _STAGES))}, got {shown(stage)}")
    layout = _layout(layout)
    inputs, sizes = _inputs(layout, (key_scale,), query=query, key=key)
    checked = modifiers(sizes, **given)
    count = threads(num_threads)

    shape = (*sizes.rows, sizes.key_length)
    rows = "i:i + n, :, :" if layout == "blhd" and not sizes.headless else "i:i + n, :"
    advice = (
        f"; go over the queries in pieces: query[..., {rows}] with query_offset=i (more where it is given), and the "
        "same rows of mask, bias and key_range"
    )
    weights = empty("out", shape, arithmetic(inputs["query"].dtype), advice)
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
    query, key, value, query_indptr, key_indptr, *, key_scale=None, value_scale=None, out=None, return_lse=False,
    num_threads=None, **given,
):  # fmt: skip
    """Return (Problem, out, lse or None) for a call of `cattn.attention_varlen`."""
    return_lse = as_flag("return_lse", return_lse)
    inputs, sizes = _inputs("packed", (key_scale, value_scale), query=query, key=key, value=value)
    query_indptr = as_indptr("query_indptr", query_indptr, "query", sizes.query_length)
    key_indptr = as_indptr("key_indptr", key_indptr, "key", sizes.key_length)
    if len(key_indptr) != len(query_indptr):
        raise ValueError(
            f"key_indptr: expected {len(query_indptr)} entries like query_indptr, one more than there are sequences, "
            f"got {len(key_indptr)}"
        )
    lengths = query_indptr[1:] - query_indptr[:-1], key_indptr[1:] - key_indptr[:-1]
    sequences = Sizes((len(lengths[0]),), sizes.query_heads, *lengths, sizes.head_size, sizes.arithmetic, packed=True)
    checked = modifiers(sequences, **given)
    count = threads(num_threads)

    dtype = inputs["query"].dtype
    shape = (sizes.query_length, sizes.query_heads, inputs["value"].shape[-1])
    out, written, lse = _results(out, shape, dtype, return_lse, inputs)
    problem = Problem(
        **inputs,
        out=_canonical(written, "packed"),
        lse=_canonical_lse(lse, "packed"),
        modifiers=checked,
        num_threads=count,
        query_indptr=query_indptr,
        key_indptr=key_indptr,
    )
    return problem, out, lse


def attention_paged(
    query, key_cache, value_cache, block_table, key_lengths, *, query_indptr=None, key_scale=None, value_scale=None,
    out=None, return_lse=False, num_threads=None, may_be_longer=False, **given,
):  # fmt: skip
    """Return (Problem, out, lse or None) for a call of `cattn.attention_paged`.

    Sequences that have more queries than keys are refused, unless they `may_be_longer`.
    """
    return_lse = as_flag("return_lse", return_lse)
    try:
        inputs, sizes = _inputs("paged", (key_scale, value_scale), query=query, key=key_cache, value=value_cache)
    except (TypeError, ValueError, MemoryError) as error:
        raise renamed(error, {"key": "key_cache", "value": "value_cache"}) from None
    table = as_even(
        "block_table", block_table, "fill shorter rows up with -1, because numbers behind a length are never read"
    )
    if table.ndim != 2:
        raise ValueError(f"block_table: expected shape (sequences, most pages), got {table.shape}")
    batch, most = table.shape
    if query_indptr is not None:
        query_indptr = as_indptr("query_indptr", query_indptr, "query", sizes.query_length)
        if len(query_indptr) != batch + 1:
            raise ValueError(
                f"query_indptr: expected {batch + 1} entries, one more than block_table has sequences, "
                f"got {len(query_indptr)}"
            )
    elif sizes.query_length == batch:
        query_indptr = np.arange(batch + 1)
    else:
        raise ValueError(
            f"query: expected {batch} tokens, one for each sequence of block_table, got {sizes.query_length}; pass "
            "query_indptr= for sequences with more tokens or none"
        )
    query_lengths = query_indptr[1:] - query_indptr[:-1]
    least = np.zeros_like(query_lengths) if may_be_longer else query_lengths
    key_lengths = _paged_lengths(key_lengths, least, most, sizes.key_length)
    sequences = Sizes(
        (batch,), sizes.query_heads, query_lengths, key_lengths, sizes.head_size, sizes.arithmetic, packed=True
    )
    checked = modifiers(sequences, **given)
    block_table = _read_pages(table, key_lengths, checked, len(inputs["key"]), sizes.key_length)
    count = threads(num_threads)

    shape = (sizes.query_length, sizes.query_heads, inputs["value"].shape[-1])
    read = {{"key": "key_cache", "value": "value_cache"}.get(name, name): array for name, array in inputs.items()}
    out, written, lse = _results(out, shape, inputs["query"].dtype, return_lse, read)
    problem = Problem(
        **inputs,
        out=_canonical(written, "packed"),
        lse=_canonical_lse(lse, "packed"),
        modifiers=checked,
        num_threads=count,
        query_indptr=query_indptr,
        block_table=np.ascontiguousarray(block_table),
        key_lengths=key_lengths,
    )
    return problem, out, lse


def plain_modifiers(batch, query_heads, query_length, key_length, head_size, dtype, headless, given):
    """Return the checked modifiers of a call of `attention` whose plain arrays have these sizes and this type."""
    sizes = Sizes(batch, query_heads, query_length, key_length, head_size, arithmetic(dtype), headless)
    return modifiers(sizes, **given)


def threads(num_threads):
    return 0 if num_threads is None else resolve(num_threads)


# Inputs


def _inputs(layout, scales=(), **given):
    """Return query, key and, if it was given, value as canonical views, broadcast over the batch; and their sizes.

    `scales` are those of key and value. They join the views if they are given.
    """
    given = {name: as_array(name, argument) for name, argument in given.items()}
    scales = {name: scale for name, scale in zip(("key", "value"), scales, strict=False) if scale is not None}
    quantised = [name for name in given if name in scales or (name != "query" and given[name].dtype.char == "b")]
    for name in quantised:
        _check_quantised(name, given[name].dtype, scales.get(name))
    arrays = {name: array if name in quantised else as_floats(name, array) for name, array in given.items()}
    query, key, value = arrays["query"], arrays["key"], arrays.get("value")
    axes = {"bhld": "(..., heads, length, size)", "blhd": "(..., length, heads, size)"}.get(layout)
    for name, array in arrays.items():
        if layout == "paged" and array is not query:
            if array.ndim != 4:
                raise ValueError(f"{name}: expected 4 axes (pages, page size, heads, size), got shape {array.shape}")
        elif layout in ("packed", "paged"):
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
    _check_types({name: array.dtype for name, array in given.items()})

    views = {name: _canonical(array, layout) for name, array in arrays.items()}
    query_heads, query_length, head_size = views["query"].shape[-3:]
    key_heads, key_length, key_size = views["key"].shape[-3:]
    if head_size == 0:
        raise ValueError(f"query: expected a head size of 1 or more, got 0 (shape {query.shape})")
    if head_size > LARGEST_HEAD:
        raise ValueError(
            f"query: expected a head size of at most {LARGEST_HEAD}, got {head_size} (shape {query.shape}); "
            "pass the scores of the other columns as bias="
        )
    if value is not None and views["value"].shape[-1] > _LARGEST_VALUE:
        raise MemoryError(f"value: no workspace holds rows of size {value.shape[-1]} (shape {value.shape})")
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
            length = "page size" if layout == "paged" else "length"
            raise ValueError(
                f"value: expected {length} {key_length} like key, got {value_length} (shape {value.shape})"
            )

    sizes = Sizes((), query_heads, query_length, key_length, head_size, arithmetic(query.dtype), query.ndim == 2)
    if layout == "paged" and len(value) != len(key):
        raise ValueError(f"value: expected {len(key)} pages like key, got {len(value)} (shape {value.shape})")

    batch = views["query"].shape[:-3]
    for name, view in views.items() if layout != "paged" else ():  # pages are no axis of a batch
        leading = view.shape[:-3]
        if leading != batch:
            pairs = list(itertools.zip_longest(reversed(batch), reversed(leading), fillvalue=1))
            if any(one != other and 1 not in (one, other) for one, other in pairs):
                raise ValueError(
                    f"{name}: expected leading axes that broadcast with {batch}, got {leading} "
                    f"(shape {arrays[name].shape})"
                )
            batch = tuple(other if one == 1 else one for one, other in reversed(pairs))
    for name, view in views.items() if layout != "paged" else ():
        views[name] = broadcast(name, view, batch + view.shape[-3:], "the leading axes of all inputs")
    for name in quantised:
        scale = _as_scale(f"{name}_scale", scales[name], name, arrays[name].shape, layout)
        leading = batch if layout != "paged" else key.shape[:1]
        views[f"{name}_scale"] = np.broadcast_to(scale, (*leading, key_heads, *scale.shape[-2:]))
    return views, sizes._replace(batch=batch)


def _check_quantised(name, dtype, scale):
    """Raise TypeError unless these are int8 keys or values with a scale."""
    if type_name(dtype):
        raise TypeError(f"{name}_scale: expected None beside {name} of type {type_shown(dtype)}, got {shown(scale)}")
    if dtype != np.int8:
        raise TypeError(f"{name}: expected type int8 beside {name}_scale, got {type_shown(dtype)}")
    if scale is None:
        raise TypeError(
            f"{name}_scale: expected an array beside {name} of type int8, got None; "
            f"write {name}.astype(np.float32) for integers without a scale"
        )


def _as_scale(name, scale, of, shape, layout):
    """Return a scale as a canonical view. Its axes of length and size are as they came, or 1."""
    scale = as_floats(name, scale)
    keys = -2 if layout == "bhld" or len(shape) == 2 else -3
    given = (1,) * (len(shape) - scale.ndim) + scale.shape
    if len(given) != len(shape) or any(one not in (1, size) for one, size in zip(given, shape, strict=True)):
        raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, that of {of}, got {scale.shape}")
    varies = given[keys] != 1 or (layout == "paged" and given[0] != 1)
    if varies and given[-1] != 1:
        raise ValueError(
            f"{name}: expected size 1 along the keys (a scale for each column) or along the last axis (a scale for "
            f"each token), got shape {scale.shape}"
        )
    return _canonical(scale.reshape(given), layout)


def _check_types(came):
    """Raise TypeError unless key and value share one type, which may stand beside that of query.

    The types are those of the arguments as they came.
    """
    query, key, value = came["query"], came["key"], came.get("value")
    if query is key and (value is None or value is key):
        return
    if key.char == "b" or (value is not None and value.char == "b"):
        if type_name(query) not in ("float32", *HALF_TYPES):
            raise TypeError(
                f"query: expected type float32, float16 or bfloat16 beside int8 keys, got {type_shown(query)}; "
                "write query.astype(np.float32)"
            )
        if value is not None and value != key:
            name, dtype, other = ("value", value, "key") if key == np.int8 else ("key", key, "value")
            raise TypeError(f"{name}: expected type int8 like {other}, got {type_shown(dtype)}")
        return
    first, expected = ("key", key) if check_type_beside("key", key, "query", query) else ("query", query)
    if value is not None:
        check_same_type("value", value, first, expected)


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


def as_lengths(name, argument, batch, longest, each, array):
    """Return checked lengths as an int64 array of shape (batch,): one for each `each`, up to the length of `array`."""
    given = as_array(name, argument)
    if given.shape != (batch,):
        advice = "; for a mask of what is a token, pass its sum(axis=1)" if given.shape == (batch, longest) else ""
        raise ValueError(f"{name}: expected shape {(batch,)}, one length for each {each}, got {given.shape}{advice}")
    if batch == 0:  # an empty list has no type of its own
        return np.zeros(0, np.int64)
    lengths = as_integers(name, given, -1, longest + 1)
    wrong = (lengths < 0) | (lengths > longest)
    if wrong.any():
        raise ValueError(f"{name}: expected 0 to {longest}, the length of {array}, got {given[wrong][0]}")
    return lengths


def _paged_lengths(argument, least, most_pages, page_size):
    """Return the checked numbers of keys, of at least so many in each sequence, as an int64 array of shape (B,)."""
    batch = len(least)
    given = as_array("key_lengths", argument)
    if given.shape != (batch,):
        raise ValueError(
            f"key_lengths: expected shape {(batch,)}, one length for each sequence of block_table, got {given.shape}"
        )
    if batch == 0:  # an empty list has no type of its own
        return np.zeros(0, np.int64)
    room = most_pages * page_size
    lengths = as_integers("key_lengths", given, -FAR, FAR)
    (wrong,) = ((lengths < 0) | (lengths > room)).nonzero()
    if wrong.size:
        n = wrong[0]
        raise ValueError(
            f"key_lengths: expected 0 to {room}, the room in {most_pages} pages of {page_size} keys (the shape of "
            f"block_table and key_cache), got {lengths[n]} (sequence {n})"
        )
    (wrong,) = (lengths < least).nonzero()
    if wrong.size:
        n = wrong[0]
        raise ValueError(
            f"key_lengths: expected at least {least[n]}, the number of queries of sequence {n}, whose keys are "
            f"counted too, got {lengths[n]}"
        )
    return lengths


def _read_pages(table, key_lengths, modifiers, pages, page_size):
    """Return a checked copy of the page numbers that are read. Those before the window are replaced by the first that
    is read, because blocks of keys may begin before the window does."""
    seen = np.zeros_like(key_lengths)
    if modifiers.window_left >= 0:
        offset = 0 if modifiers.query_offset is None else modifiers.query_offset
        seen = np.clip(offset - modifiers.window_left, 0, key_lengths)
    page_size = max(page_size, 1)
    stop = (key_lengths + page_size - 1) // page_size
    first = np.where(seen < key_lengths, seen // page_size, stop)
    most = int(stop.max(initial=0))
    if table.size == 0:  # an empty list has no type of its own
        return np.zeros((len(table), 0), np.int64)
    numbers = as_integers("block_table", table[:, :most], -FAR, FAR)
    is_read = check_pages(numbers, first, stop, pages)
    if is_read.all():
        return numbers
    some = numbers[np.arange(len(table)), np.minimum(first, most - 1)]
    some[first >= stop] = 0  # none is read
    return np.where(is_read, numbers, some[:, None])


def check_pages(numbers, first, stop, pages):
    """Raise ValueError unless numbers first to stop of each sequence are those of pages. Return which these are."""
    column = np.arange(numbers.shape[1])
    checked = (first[:, None] <= column) & (column < stop[:, None])
    wrong = checked & ((numbers < 0) | (numbers >= pages))
    if wrong.any():
        sequence, position = (x[0] for x in wrong.nonzero())
        raise ValueError(
            f"block_table: expected page numbers from 0 to {pages - 1}, got {numbers[sequence, position]} "
            f"(sequence {sequence}, position {position})"
        )
    return checked


def as_indptr(name, argument, of, total):
    indptr = as_integers(name, argument, -FAR, FAR)
    if indptr.ndim != 1 or indptr.size == 0:
        raise ValueError(f"{name}: expected shape (sequences + 1,), got {indptr.shape}")
    if indptr[0] != 0:
        raise ValueError(f"{name}: expected to begin with 0, got {indptr[0]}")
    (falls,) = (indptr[1:] < indptr[:-1]).nonzero()
    if falls.size:
        first = falls[0]
        raise ValueError(
            f"{name}: expected ascending values, got {indptr[first]} before {indptr[first + 1]} (entry {first + 1})"
        )
    if indptr[-1] != total:
        raise ValueError(f"{name}: expected to end with {total}, the total length of {of}, got {indptr[-1]}")
    return indptr


# Results


def _results(out, shape, dtype, return_lse, read):
    """Return out (the caller's or a new one), the view of it that is written to, and a new lse or None."""
    out, written = result(out, shape, native(dtype), read)
    lse = empty("lse", shape[:-1], arithmetic(dtype)) if return_lse else None
    return out, written, lse


def result(out, shape, dtype, read):
    """Return out (the caller's or a new one) and the view of it that is written to."""
    if out is None:
        out = empty("out", shape, dtype)
        return out, out
    if not issubclass(type(out), np.ndarray) or issubclass(type(out), np.ma.MaskedArray):
        advice = "; write out.numpy()" if hasattr(type(out), "numpy") else ""
        raise TypeError(f"out: expected a NumPy array, got {class_shown(out)}{advice}")
    written = as_array("out", out)
    _check_out(written, shape, dtype, read)
    return out, written


def empty(name, shape, dtype, advice=""):
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # NumPy raises ValueError for more bytes than addresses can count
        size = math.prod(shape) * dtype.itemsize
        raise MemoryError(f"{name}: cannot allocate {size} bytes, shape {shape} of type {dtype}{advice}") from None


def _check_out(out, shape, dtype, read):
    """Refuse an `out` of the wrong type or shape, one that cannot be written, or one that overlaps something in `read`.

    Half types may also be written as float32.
    """
    types = [dtype, arithmetic(dtype)] if type_name(dtype) in HALF_TYPES else [dtype]
    if out.dtype not in types:
        raise TypeError(f"out: expected type {' or '.join(map(str, types))}, got {type_shown(out.dtype)}")
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
    # If two elements share bytes, let their indices differ along this axis first. Both may be moved through the array
    # together and still share bytes, so one has index 0 up to and including the axis, and the other up to the axis.
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
