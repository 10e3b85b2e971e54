"""The modifiers of one call → Modifiers: what a score depends on beside its query and key, checked."""

import math
import operator
from typing import NamedTuple

import numpy as np

from ._read import (
    TYPES,
    as_array,
    as_flag,
    as_floats,
    as_integers,
    as_items,
    as_number,
    as_text,
    broadcast,
    is_integer,
    shown,
    type_name,
    type_shown,
)

# Positions beyond this are as good as infinite, and sums of a few of them still fit an int64.
FAR = 2**60
_UNLIMITED = -1


class Modifiers(NamedTuple):
    """Checked. Arrays that were not given are None."""

    scale: float
    softcap: float  # 0.0: none
    window_left: int  # -1: unlimited
    window_right: int  # -1: unlimited; causal is 0
    alibi_slopes: np.ndarray | None  # (Hq,) or (*batch, Hq), float64
    sinks: np.ndarray | None  # (Hq,), float64
    query_offset: np.ndarray | None  # batch or (), int64; None: 0
    query_lengths: np.ndarray | None = None  # batch or (), int64
    key_lengths: np.ndarray | None = None  # batch or (), int64
    key_start: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    key_stop: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    mask: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), bool
    bias: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), any of the four types


class Sizes(NamedTuple):
    """What the modifiers of a call have to fit. Packed sequences are the batch, each of lengths of its own."""

    batch: tuple
    query_heads: int
    query_length: int | np.ndarray
    key_length: int | np.ndarray
    head_size: int
    arithmetic: np.dtype
    headless: bool = False  # 2-D inputs: the head axis is ours, the caller never sees it
    packed: bool = False

    @property
    def rows(self):
        """(..., Hq, Lq) as the caller sees it."""
        heads = () if self.headless else (self.query_heads,)
        return (*self.batch, *heads, self.query_length)

    def unequal_lengths(self):
        """In words, the lengths of query and key where they differ; else nothing."""
        if not self.packed:
            return "" if self.query_length == self.key_length else f"{self.query_length} and {self.key_length}"
        (unequal,) = (self.query_length != self.key_length).nonzero()
        if not unequal.size:
            return ""
        first = unequal[0]
        return f"{self.query_length[first]} and {self.key_length[first]} in sequence {first}"


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
    """Of one call. Whatever lists them elsewhere has these names, in this order, with these defaults."""
    left, right = _window(window)
    scale = 1.0 / math.sqrt(sizes.head_size) if scale is None else _scale(scale, sizes.arithmetic)
    softcap = 0.0 if softcap is None else as_number("softcap", softcap, positive=True)
    causal = as_flag("causal", causal)
    alibi_slopes = _alibi_slopes(alibi_slopes, sizes)
    sinks = _sinks(sinks, sizes.query_heads)
    query_lengths = _lengths("query_lengths", query_lengths, sizes.batch, "query", sizes.query_length)
    key_lengths = _lengths("key_lengths", key_lengths, sizes.batch, "key", sizes.key_length)
    start, stop = _key_range(key_range, sizes)

    positional = None  # a given modifier that asks where the queries stand
    if causal:
        positional = "causal"
    elif left != _UNLIMITED or right != _UNLIMITED:
        positional = "window"
    elif alibi_slopes is not None:
        positional = "alibi_slopes"
    return Modifiers(
        scale=scale,
        softcap=softcap,
        window_left=left,
        window_right=0 if causal else right,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        query_offset=_query_offset(query_offset, sizes, query_lengths, key_lengths, positional),
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        key_start=start,
        key_stop=stop,
        mask=None if mask is None else _mask(mask, sizes),
        bias=None if bias is None else _bias(bias, sizes),
    )


def _scale(argument, arithmetic):
    scale = as_number("scale", argument)
    limits = np.finfo(arithmetic)
    if scale and not float(limits.tiny) <= abs(scale) <= float(limits.max):
        raise ValueError(f"scale: expected 0 or a number that {arithmetic} holds in full precision, got {scale}")
    return scale


def _window(window):
    if window is None:
        return _UNLIMITED, _UNLIMITED
    expected = "window: expected (left, right), each None or -1 (no limit) or an integer of 0 or more"
    if is_integer(window):
        text = shown(operator.index(window))
        raise TypeError(f"{expected}, got {text}; ({text}, 0) looks back only, ({text}, {text}) both ways")
    sides = as_items(window)
    if sides is None or not all(side is None or is_integer(side) for side in sides):
        raise TypeError(f"{expected}, got {shown(window)}")
    sides = [_UNLIMITED if side is None else min(operator.index(side), FAR) for side in sides]
    if len(sides) != 2 or min(sides) < _UNLIMITED:
        raise ValueError(f"{expected}, got {shown(window)}")
    return tuple(sides)


def _query_offset(offset, sizes, query_lengths, key_lengths, positional):
    """int64 per batch entry, or None for 0."""
    words = '"start" (query row 0 stands at key 0) or "end" (the last query row stands at the last key)'
    if offset is None:
        if positional and (unequal := sizes.unequal_lengths()):
            raise ValueError(
                f"query_offset: expected {words}, or integers, because {positional} is given and the lengths "
                f'of query and key differ ({unequal}), got None; decoding with a cache of keys needs "end"'
            )
        return None
    if (word := as_text(offset)) is not None:
        if word == "start":
            return None
        if word != "end":
            raise ValueError(f"query_offset: expected {words}, or integers, got {word!r}")
        offset = (sizes.key_length if key_lengths is None else key_lengths) - (
            sizes.query_length if query_lengths is None else query_lengths
        )
    axes = "sequences" if sizes.packed else "leading axes"
    return _per_entry("query_offset", as_integers("query_offset", offset, -FAR, FAR), sizes.batch, axes)


def _lengths(name, lengths, batch, of, longest):
    if lengths is None:
        return None
    given = lengths if type(lengths) is int else as_array(name, lengths)
    array = as_integers(name, given, -FAR, FAR)
    if array.size and (array.min() < 0 or array.max() > longest):
        wrong = np.asarray(given)[(array < 0) | (array > longest)].flat[0]
        raise ValueError(f"{name}: expected 0 to {longest}, the length of {of}, got {shown(int(wrong))}")
    return _per_entry(name, array, batch, "leading axes")


def _per_entry(name, array, batch, axes):
    return array if array.ndim == 0 else broadcast(name, array, batch, axes)


def _key_range(key_range, sizes):
    if key_range is None:
        return None, None
    given = as_items(key_range)
    if given is None or len(given) != 2:
        error = TypeError if given is None else ValueError
        raise error(f"key_range: expected (start, stop), each None or integers, got {shown(key_range)}")
    bounds = []
    for side, bound in zip(("start", "stop"), given, strict=True):
        if bound is not None:
            name = f"key_range {side}"
            bound = as_integers(name, bound, 0, sizes.key_length)
            bound = broadcast(name, bound, sizes.rows, "query length" if sizes.headless else "..., heads, query length")
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


def _scores_like(name, array, sizes):
    axes = "query length, key length" if sizes.headless else "..., heads, query length, key length"
    shape = (*sizes.rows, sizes.key_length)
    array = broadcast(name, array, shape, axes, _missing_axes)
    return array[None] if sizes.headless else array


def _missing_axes(name, came, shape):
    """What to write for a mask of (batch, query length, key length) or (batch, key length)."""
    batch = ":" if len(shape) == 4 else "..."
    if len(shape) > 3 and _broadcasts((*came[:-2], 1, *came[-2:]), shape):
        return f"; without an axis for heads, write {name}[{batch}, None{'' if batch == ':' else ', :, :'}]"
    if len(shape) > 3 and _broadcasts((*came[:-1], 1, 1, *came[-1:]), shape):
        lengths = ", or pass key_lengths= for padding at the end of the keys" if name == "mask" else ""
        return f"; with axes for batch and keys only, write {name}[{batch}, None, None, :]{lengths}"
    return ""


def _broadcasts(came, shape):
    return len(came) <= len(shape) and all(map(lambda one, size: one in (1, size), reversed(came), reversed(shape)))


def _alibi_slopes(slopes, sizes):
    if slopes is None:
        return None
    slopes = as_floats("alibi_slopes", slopes)
    heads = (sizes.query_heads,)
    shape = (*sizes.batch, *heads)
    if slopes.shape == heads:
        shape = heads
    elif slopes.shape[-1:] != heads or not _broadcasts(slopes.shape, shape):
        axes = "sequences" if sizes.packed else "leading axes"
        or_else = f", or one that broadcasts to {shape} ({axes}, heads)" if sizes.batch else ""
        raise ValueError(
            f"alibi_slopes: expected shape {heads}, one number for each head of query{or_else}, got {slopes.shape}"
        )
    return np.broadcast_to(_doubles(slopes), shape)


def _sinks(sinks, heads):
    if sinks is None:
        return None
    sinks = as_floats("sinks", sinks)
    if sinks.shape != (heads,):
        raise ValueError(f"sinks: expected shape {(heads,)}, one number for each head of query, got {sinks.shape}")
    sinks = _doubles(sinks)
    if not np.all(sinks < np.inf):
        raise ValueError(f"sinks: expected finite numbers, or -inf for none, got {sinks[~(sinks < np.inf)][0]}")
    return sinks


def _doubles(array):
    with np.errstate(invalid="ignore"):  # NumPy warns of a signalling NaN
        return array.astype(np.float64)
