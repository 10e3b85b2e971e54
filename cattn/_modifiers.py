"""The table of modifiers, and the modifiers of one call.

A modifier is an argument that changes what a score becomes beyond its query and key. `MODIFIERS` lists all of them. The
functions pass them on by name, and `modifiers` checks them, one row of the table at a time.
"""

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
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
    """Hold the checked modifiers of one call, as the kernel reads them. Arrays that were not given are None."""

    scale: float
    softcap: float = 0.0  # 0.0: none
    window_left: int = _UNLIMITED
    window_right: int = _UNLIMITED  # causal is 0
    alibi_slopes: np.ndarray | None = None  # (Hq,) or (*batch, Hq), float64
    sinks: np.ndarray | None = None  # (Hq,), float64
    query_offset: np.ndarray | None = None  # batch or (), int64; None: 0
    query_lengths: np.ndarray | None = None  # batch or (), int64
    key_lengths: np.ndarray | None = None  # batch or (), int64
    key_start: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    key_stop: np.ndarray | None = None  # (*batch, Hq, Lq), int64, within [0, Lk]
    mask: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), bool
    bias: np.ndarray | None = None  # (*batch, Hq, Lq, Lk), any of the four types


class Modifier(NamedTuple):
    """Describe one modifier: a row of the table.

    tests/test_modifiers.py compares the table with all places that cannot ask it:
    signatures, stubs, docstrings, the specification and C.
    """

    name: str  # in every function of cattn, in cattn.reference and in messages
    kind: str  # what a caller gives: a number, flag, window, offset, range, integers, mask or floats
    shape: str  # what an array broadcasts to: the axes of (..., Hq, Lq, Lk) that it may have. A number has none.
    fields: tuple[str, ...]  # what it sets in Modifiers, in cattn_problem (problem.h) and in cattn_attention_args
    read: Callable  # takes (name, argument, sizes), checks the argument, and returns the fields that it sets
    default: object = None
    flags: tuple[str, ...] = ()  # the flags of cattn_attention_args that say that it is given, or how
    positional: bool = False  # whether it depends on where the queries stand
    without: tuple[str, ...] = ()  # the functions that take modifiers, but not this one
    elsewhere: Mapping[str, str] = MappingProxyType({})  # its name in each module that follows another library


class Sizes(NamedTuple):
    """Hold the sizes that modifiers must fit. Packed sequences are the batch, and have lengths of their own."""

    batch: tuple
    query_heads: int
    query_length: int | np.ndarray
    key_length: int | np.ndarray
    head_size: int
    arithmetic: np.dtype
    headless: bool = False  # 2-D inputs: the caller does not see the axis for heads
    packed: bool = False

    @property
    def rows(self):
        """Return (..., Hq, Lq) as the caller sees it."""
        heads = () if self.headless else (self.query_heads,)
        return (*self.batch, *heads, self.query_length)

    def unequal_lengths(self):
        """Return the lengths of query and key in words if they differ, else an empty text."""
        if not self.packed:
            return "" if self.query_length == self.key_length else f"{self.query_length} and {self.key_length}"
        (unequal,) = (self.query_length != self.key_length).nonzero()
        if not unequal.size:
            return ""
        first = unequal[0]
        return f"{self.query_length[first]} and {self.key_length[first]} in sequence {first}"


# The readers: each checks one argument, and returns the fields of Modifiers that it sets


def _scale(name, argument, sizes):
    scale = as_number(name, argument)
    limits = np.finfo(sizes.arithmetic)
    if scale and not float(limits.tiny) <= abs(scale) <= float(limits.max):
        raise ValueError(f"{name}: expected 0 or a number that {sizes.arithmetic} holds in full precision, got {scale}")
    return {name: scale}


def _softcap(name, argument, sizes):
    return {name: as_number(name, argument, positive=True)}


def _causal(name, argument, sizes):
    return {"window_right": 0} if as_flag(name, argument) else {}


def _window(name, window, sizes):
    expected = f"{name}: expected (left, right), each None or -1 (no limit) or an integer of 0 or more"
    if is_integer(window):
        text = shown(operator.index(window))
        raise TypeError(f"{expected}, got {text}; ({text}, 0) looks back only, ({text}, {text}) both ways")
    sides = as_items(window)
    if sides is None or not all(side is None or is_integer(side) for side in sides):
        raise TypeError(f"{expected}, got {shown(window)}")
    sides = [_UNLIMITED if side is None else min(operator.index(side), FAR) for side in sides]
    if len(sides) != 2 or min(sides) < _UNLIMITED:
        raise ValueError(f"{expected}, got {shown(window)}")
    named = zip(("window_left", "window_right"), sides, strict=True)
    return {side: limit for side, limit in named if limit != _UNLIMITED}


_OFFSETS = '"start" (query row 0 stands at key 0) or "end" (the last query row stands at the last key)'


def _query_offset(name, offset, sizes):
    """Read an offset. "end" stays a word, because it depends on the lengths: `_place_at_end` knows them."""
    word = as_text(offset)
    if word == "start":
        return {}
    if word not in ("end", None):
        raise ValueError(f"{name}: expected {_OFFSETS}, or integers, got {word!r}")
    return {name: word or _per_entry(name, as_integers(name, offset, -FAR, FAR), sizes)}


def _place_at_end(sizes, query_lengths, key_lengths):
    """Return the offset that lets the last query of each entry stand at its last key."""
    queries = sizes.query_length if query_lengths is None else query_lengths
    keys = sizes.key_length if key_lengths is None else key_lengths
    return _per_entry("query_offset", as_integers("query_offset", keys - queries, -FAR, FAR), sizes)


def _check_equal_lengths(sizes, positional):
    """Raise ValueError if the lengths of query and key differ, because then the positions of the queries are open."""
    unequal = sizes.unequal_lengths()
    if unequal:
        raise ValueError(
            f"query_offset: expected {_OFFSETS}, or integers, because {positional} is given and the lengths "
            f'of query and key differ ({unequal}), got None; decoding with a cache of keys needs "end"'
        )


def _lengths(name, lengths, sizes):
    of = "query" if name == "query_lengths" else "key"
    longest = sizes.query_length if of == "query" else sizes.key_length
    given = lengths if type(lengths) is int else as_array(name, lengths)
    array = as_integers(name, given, -FAR, FAR)
    if array.size and (array.min() < 0 or array.max() > longest):
        wrong = np.asarray(given)[(array < 0) | (array > longest)].flat[0]
        raise ValueError(f"{name}: expected 0 to {longest}, the length of {of}, got {shown(int(wrong))}")
    return {name: _per_entry(name, array, sizes)}


def _per_entry(name, array, sizes):
    """Broadcast an array over the batch. One number for all entries stays one number."""
    axes = "sequences" if sizes.packed else "leading axes"
    return array if array.ndim == 0 else broadcast(name, array, sizes.batch, axes)


def _key_range(name, key_range, sizes):
    given = as_items(key_range)
    if given is None or len(given) != 2:
        error = TypeError if given is None else ValueError
        raise error(f"{name}: expected (start, stop), each None or integers, got {shown(key_range)}")
    axes = "query length" if sizes.headless else "..., heads, query length"
    found = {}
    for side, bound in zip(("start", "stop"), given, strict=True):
        if bound is not None:
            bound = as_integers(f"{name} {side}", bound, 0, sizes.key_length)
            bound = broadcast(f"{name} {side}", bound, sizes.rows, axes)
            found[f"key_{side}"] = bound[None] if sizes.headless else bound
    return found


def _mask(name, mask, sizes):
    mask = as_array(name, mask)
    if mask.dtype != np.bool_:
        advice = ""
        if mask.dtype.kind in "iu":
            advice = f"; write {name}.astype(bool) if nonzero means may attend"
        elif type_name(mask.dtype):
            advice = "; what is added to the scores goes to bias="
        raise TypeError(f"{name}: expected type bool (True: may attend), got {type_shown(mask.dtype)}{advice}")
    return {name: _per_score(name, mask, sizes)}


def _bias(name, bias, sizes):
    bias = as_array(name, bias)
    if bias.dtype == np.bool_:
        raise TypeError(f"{name}: expected type {TYPES}, got bool; what may be attended to goes to mask=")
    return {name: _per_score(name, as_floats(name, bias), sizes)}


def _per_score(name, array, sizes):
    """Broadcast an array over the batch, heads, queries and keys."""
    axes = "query length, key length" if sizes.headless else "..., heads, query length, key length"
    shape = (*sizes.rows, sizes.key_length)
    array = broadcast(name, array, shape, axes, _missing_axes)
    return array[None] if sizes.headless else array


def _missing_axes(name, came, shape):
    """Return what to write for a mask of (batch, query length, key length) or (batch, key length)."""
    batch = ":" if len(shape) == 4 else "..."
    if len(shape) > 3 and _broadcasts((*came[:-2], 1, *came[-2:]), shape):
        return f"; without an axis for heads, write {name}[{batch}, None{'' if batch == ':' else ', :, :'}]"
    if len(shape) > 3 and _broadcasts((*came[:-1], 1, 1, *came[-1:]), shape):
        lengths = ", or pass key_lengths= for padding at the end of the keys" if name == "mask" else ""
        return f"; with axes for batch and keys only, write {name}[{batch}, None, None, :]{lengths}"
    return ""


def _broadcasts(came, shape):
    return len(came) <= len(shape) and all(map(lambda one, size: one in (1, size), reversed(came), reversed(shape)))


def _alibi_slopes(name, slopes, sizes):
    slopes = as_floats(name, slopes)
    heads = (sizes.query_heads,)
    shape = (*sizes.batch, *heads)
    if slopes.shape == heads:
        shape = heads
    elif slopes.shape[-1:] != heads or not _broadcasts(slopes.shape, shape):
        axes = "sequences" if sizes.packed else "leading axes"
        or_else = f", or one that broadcasts to {shape} ({axes}, heads)" if sizes.batch else ""
        raise ValueError(
            f"{name}: expected shape {heads}, one number for each head of query{or_else}, got {slopes.shape}"
        )
    return {name: np.broadcast_to(_doubles(slopes), shape)}


def _sinks(name, sinks, sizes):
    heads = sizes.query_heads
    sinks = as_floats(name, sinks)
    if sinks.shape != (heads,):
        raise ValueError(f"{name}: expected shape {(heads,)}, one number for each head of query, got {sinks.shape}")
    sinks = _doubles(sinks)
    if not np.all(sinks < np.inf):
        raise ValueError(f"{name}: expected finite numbers, or -inf for none, got {sinks[~(sinks < np.inf)][0]}")
    return {name: sinks}


def _doubles(array):
    with np.errstate(invalid="ignore"):  # NumPy warns of a signalling NaN
        return array.astype(np.float64)


# The table. Functions take the modifiers in this order.

# fmt: off
_TABLE = (
    Modifier("scale", "number", "", ("scale",), _scale, flags=("CATTN_HAS_SCALE",),
             elsewhere={"flash_attn": "softmax_scale", "torch": "scale", "transformers": "scaling"}),
    Modifier("causal", "flag", "", ("window_right",), _causal, default=False, flags=("CATTN_CAUSAL",), positional=True,
             elsewhere={"flash_attn": "causal", "torch": "is_causal", "transformers": "is_causal"}),
    Modifier("window", "window", "", ("window_left", "window_right"), _window, flags=("CATTN_HAS_WINDOW",),
             positional=True, elsewhere={"flash_attn": "window_size"}),
    Modifier("query_offset", "offset", "...", ("query_offset",), _query_offset,
             flags=("CATTN_OFFSET_START", "CATTN_OFFSET_END")),
    Modifier("key_range", "range", "..., Hq, Lq", ("key_start", "key_stop"), _key_range,
             without=("attention_varlen", "attention_paged", "dask.attention")),
    Modifier("query_lengths", "integers", "...", ("query_lengths",), _lengths,
             without=("attention_varlen", "attention_paged", "dask.attention")),
    Modifier("key_lengths", "integers", "...", ("key_lengths",), _lengths,
             without=("attention_varlen", "attention_paged")),
    Modifier("mask", "mask", "..., Hq, Lq, Lk", ("mask",), _mask, without=("attention_varlen", "attention_paged"),
             elsewhere={"torch": "attn_mask", "transformers": "attention_mask"}),
    Modifier("bias", "floats", "..., Hq, Lq, Lk", ("bias",), _bias, without=("attention_varlen", "attention_paged"),
             elsewhere={"torch": "attn_mask", "transformers": "attention_mask"}),
    Modifier("alibi_slopes", "floats", "..., Hq", ("alibi_slopes",), _alibi_slopes, positional=True,
             elsewhere={"flash_attn": "alibi_slopes"}),
    Modifier("softcap", "number", "", ("softcap",), _softcap,
             elsewhere={"flash_attn": "softcap", "transformers": "softcap"}),
    Modifier("sinks", "floats", "Hq", ("sinks",), _sinks, elsewhere={"transformers": "s_aux"}),
)
# fmt: on
MODIFIERS = {row.name: row for row in _TABLE}
_DEFAULTS = {name: row.default for name, row in MODIFIERS.items()}


def modifiers(sizes, **given):
    """Return the checked modifiers of one call. Those that were not given have their defaults."""
    fields = {"scale": 1.0 / math.sqrt(sizes.head_size)}
    positional = []  # those that ask where the queries stand
    for name, argument in given.items():
        if argument is not _DEFAULTS[name]:
            row = MODIFIERS[name]
            found = row.read(name, argument, sizes)
            fields.update(found)
            if row.positional and found:
                positional.append(name)
    if "causal" in positional:
        fields["window_right"] = 0  # whatever the window allows on this side
    if given.get("query_offset") is None:
        if positional:
            _check_equal_lengths(sizes, positional[0])
    elif type(fields.get("query_offset")) is str:
        fields["query_offset"] = _place_at_end(sizes, fields.get("query_lengths"), fields.get("key_lengths"))
    return Modifiers(**fields)


def names_in(module):
    """Return the modifiers that a module which follows another library takes, and the names that it has for them."""
    return {name: row.elsewhere[module] for name, row in MODIFIERS.items() if module in row.elsewhere}
