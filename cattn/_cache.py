"""A cache of keys and values, to which each step of generating a text appends its own."""

import itertools
from typing import NamedTuple

import numpy as np

from ._arithmetic import in_usual_arithmetic
from ._kernel import attention
from ._modifiers import FAR
from ._quantize import quantized
from ._read import (
    KEY_TYPES_BESIDE,
    TYPES,
    as_array,
    as_count,
    as_floats,
    as_index,
    as_integers,
    as_text,
    native,
    shown,
    type_name,
    type_shown,
)

__all__ = ["KVCache"]

_PIECE = 2**20  # the elements that are copied at a time, because signal handlers run in between
# What `attend` itself passes to `attention`.
_OWN = ("causal", "query_offset", "key_lengths", "key_scale", "value_scale", "layout")
_TYPES = TYPES.replace(" or ", ", ") + " or int8"
_SCALE = 1, np.dtype(np.float32)  # a token's scale: a number of this type


class _State(NamedTuple):
    """Hold what the cache knows. Each method replaces it as a whole at its end, so that a call that fails changes
    nothing. Until then, a method writes only where no token lies."""

    arrays: tuple  # keys and values, each (batch, heads, capacity, size), and the scales of int8
    starts: np.ndarray  # (batch,): the token in the first column of the arrays
    lengths: np.ndarray  # (batch,): the tokens that were appended, also those in front of the first column
    least: np.ndarray  # (batch,): from this token on, all tokens that a query may attend to are still there

    @property
    def capacity(self):
        return self.arrays[0].shape[2]


class KVCache:
    """Keep the keys and values of the tokens so far, and attend to them.

    Create one for each layer of a model. `append` the keys and values of new tokens, then `attend` with their queries.
    Tokens are written in place. When the arrays are full, their contents move to arrays of twice the size. The entries
    of the batch may have come differently far.

    Parameters
    ----------
    batch : int
        The number of sequences.
    num_kv_heads : int
        The number of heads of keys and values. Queries may have a multiple of them.
    head_size : int
        The size of a key.
    value_size : int, optional
        The size of a value. By default it is `head_size`.
    dtype : {"float32", "float64", "float16", "bfloat16", "int8"} or dtype
        The type in which keys and values are kept. Others are rounded to it. Half types may stand beside float32
        queries. "bfloat16" needs the package ml_dtypes. "int8" keeps a scale for each token of each head, as `quantize`
        computes it with ``axis=-1``, and stands beside queries of float32, float16 or bfloat16.
    window : int, optional
        The number of tokens that a query sees, itself included. The cache then keeps the newest append and the
        ``window - 1`` tokens before it. Older tokens are dropped when the room is needed. By default, it keeps all.
    capacity : int
        The number of tokens of a sequence to make room for at once. If you know the longest sequence, nothing is ever
        moved, and no memory is left over.

    Attributes
    ----------
    lengths : ndarray of int64, shape (batch,)
        The number of tokens of each sequence so far, also those that were dropped.
    starts : ndarray of int64, shape (batch,)
        The number of the token that ``key`` and ``value`` begin with. Without a window it is 0.
    key, value : ndarray, shape (batch, num_kv_heads, length, size)
        Views of the keys and values that are kept. They end with the longest sequence. Of sequence n, the first
        ``lengths[n] - starts[n]`` rows count. They hold until the next call that changes the cache.
    key_scale, value_scale : ndarray of float32, shape (batch, num_kv_heads, length, 1), or None
        Views of the scales of int8 keys and values. Other types have none.
    nbytes : int
        The number of bytes that the arrays take, with the room for tokens to come.

    Raises
    ------
    TypeError, ValueError, MemoryError
        An argument is not what is described above, or the memory does not suffice.

    See Also
    --------
    attention : What `attend` calls.

    Notes
    -----
    A call that fails leaves the cache as it was. One thread may use a cache at a time.

    Examples
    --------
    Read a prompt of five tokens, then a token more:

    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((1, 8, 6, 16), dtype=np.float32)
    >>> key, value = rng.standard_normal((2, 1, 2, 6, 16), dtype=np.float32)
    >>> cache = cattn.KVCache(1, 2, 16)
    >>> cache.append(key[:, :, :5], value[:, :, :5])
    >>> prompt = cache.attend(query[:, :, :5])
    >>> cache.append(key[:, :, 5:], value[:, :, 5:])
    >>> step = cache.attend(query[:, :, 5:])
    >>> whole = cattn.attention(query, key, value, causal=True)
    >>> np.allclose(np.concatenate([prompt, step], axis=2), whole, atol=1e-6)
    True
    """

    def __init__(self, batch, num_kv_heads, head_size, *, value_size=None, dtype="float32", window=None, capacity=0):
        batch, heads = as_count("batch", batch), as_count("num_kv_heads", num_kv_heads)
        size = as_count("head_size", head_size)
        value_size = size if value_size is None else as_count("value_size", value_size, optional=True)
        self._window = None if window is None else min(as_count("window", window, optional=True), FAR)
        self._capacity = as_capacity(capacity)
        dtype = _as_type(dtype)
        rows = [(size, dtype), (value_size, dtype), *([_SCALE, _SCALE] if dtype == np.int8 else [])]
        arrays = _new_arrays((batch, heads), rows, self._capacity)
        self._state = _State(arrays, *_fixed(np.zeros((3, batch), np.int64)))

    @property
    def lengths(self):
        return self._state.lengths

    @property
    def starts(self):
        return self._state.starts

    @property
    def key(self):
        return self._filled()[0]

    @property
    def value(self):
        return self._filled()[1]

    @property
    def key_scale(self):
        return self._scales().get("key_scale")

    @property
    def value_scale(self):
        return self._scales().get("value_scale")

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self._state.arrays)

    def _filled(self):
        state = self._state
        stop = int((state.lengths - state.starts).max(initial=0))
        return [array[:, :, :stop] for array in state.arrays]

    def _scales(self):
        return dict(zip(("key_scale", "value_scale"), self._filled()[2:], strict=False))

    @in_usual_arithmetic  # numbers are rounded to nearest, whatever the caller's mode is
    def append(self, key, value, lengths=None):
        """Append the keys and values of new tokens, one after the other.

        Parameters
        ----------
        key : array_like, shape (batch, num_kv_heads, n, head_size)
            The keys of up to n new tokens. They are converted to the type of the cache. Numbers beyond its range become
            infinite.
        value : array_like, shape (batch, num_kv_heads, n, value_size)
            Their values.
        lengths : int array_like, shape (batch,) or (), optional
            The number of tokens that each sequence takes, its first ones, from 0 to n. By default, it takes all n.

        Raises
        ------
        TypeError, ValueError, MemoryError
            An argument is not of the type or shape above, or the memory for a larger array does not suffice. The cache
            is then as it was.

        See Also
        --------
        attend : Compute the attention of these tokens next.
        truncate : Take tokens back.

        Examples
        --------
        Two sequences, of three tokens and of one:

        >>> import numpy as np
        >>> import cattn
        >>> cache = cattn.KVCache(2, 1, 4)
        >>> key, value = np.ones((2, 2, 1, 3, 4), np.float32)
        >>> cache.append(key, value, [3, 1])
        >>> cache.lengths
        array([3, 1])
        """
        state = self._state
        given = {"key": as_floats("key", key), "value": as_floats("value", value)}
        batch, heads, _, _ = state.arrays[0].shape
        tokens = given["key"].shape[2] if given["key"].ndim == 4 else "n"
        for (name, new), array in zip(given.items(), state.arrays, strict=False):
            expected = batch, heads, tokens, array.shape[3]
            if new.shape != expected:
                shape = str(expected).replace("'", "")
                raise ValueError(f"{name}: expected shape {shape}, as the cache has it, got {new.shape}")
        counts = _per_entry("lengths", lengths, batch, tokens, "the number of new tokens")

        # The oldest token that a new one may attend to.
        needed = state.starts if self._window is None else np.maximum(0, state.lengths - (self._window - 1))
        if (state.lengths - state.starts + counts).max(initial=0) > state.capacity:
            room = self._room((state.lengths - needed + counts).max(initial=0))
            state = _moved(state, np.arange(batch), needed, room)
        ends = state.lengths - state.starts
        for n, (first, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
            new = [x[n, :, :count] for x in given.values()]
            if state.arrays[0].dtype == np.int8:
                pairs = [quantized(name, x, -1) for name, x in zip(given, new, strict=True)]
                new = itertools.chain(*zip(*pairs, strict=True))  # keys, values, and their scales
            for array, x in zip(state.arrays, new, strict=True):
                _copy(array[n, :, first : first + count], x)
        least = np.where(needed > 0, state.lengths, 0)
        self._state = state._replace(lengths=_fixed(state.lengths + counts), least=_fixed(least))

    def attend(self, query, query_lengths=None, **modifiers):
        """Compute the attention of the newest tokens over all that their sequence has, or over the window.

        It is causal: the last query stands at the last token of its sequence, and the others before it. `append` the
        keys and values of these tokens first. The result has the bits of ``cattn.attention`` on ``key`` and ``value``
        with ``causal=True, query_offset="end", key_lengths=cache.lengths - cache.starts``, the window and the scales.

        Parameters
        ----------
        query : array_like, shape (batch, heads, n, head_size)
            The queries of the newest n tokens. They have the type of the cache, or float32 beside a half type. An int8
            cache takes all but float64.
        query_lengths : int array_like, shape (batch,) or (), optional
            The number of queries of each sequence, its first ones: the ``lengths`` of the last `append`.
        **modifiers
            Further arguments of `attention`, such as `scale`, `alibi_slopes`, `softcap`, `sinks`, `out`, `return_lse`
            and `num_threads`. Those with an element for each key count them as ``key`` shows them. `causal`,
            `query_offset`, `key_lengths` and `layout` are set here, and so is `window` if the cache has one.

        Returns
        -------
        ndarray, shape (batch, heads, n, value_size)
            The output, or (out, lse) with ``return_lse=True``.

        Raises
        ------
        TypeError, ValueError, MemoryError
            An argument is not of the type or shape above, a query would stand before the first token or see tokens that
            were dropped, or `attention` refuses a modifier.

        See Also
        --------
        attention : The function that this calls.

        Examples
        --------
        Four query heads, two of them for each key head, and ALiBi:

        >>> import numpy as np
        >>> import cattn
        >>> cache = cattn.KVCache(1, 2, 8)
        >>> cache.append(np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.attend(np.ones((1, 4, 3, 8), np.float32), alibi_slopes=[0.5, 0.25, 0.125, 0.0625]).shape
        (1, 4, 3, 8)
        """
        state = self._state
        own = _OWN if self._window is None else (*_OWN, "window")
        for name in own:
            if name in modifiers:
                raise TypeError(f"{name}: expected no such argument, because the cache sets it, got one")
        query = as_array("query", query)
        batch = len(state.lengths)
        if query.ndim != 4 or len(query) != batch:
            raise ValueError(
                f"query: expected shape ({batch}, heads, n, {state.arrays[0].shape[3]}), one entry for each of the "
                f"cache, got {query.shape}"
            )
        key, value, *_ = self._filled()
        _check_query_type(query.dtype, key.dtype)
        counts = _per_entry("query_lengths", query_lengths, batch, query.shape[2], "the length of query")
        first = state.lengths - counts
        if (first < state.least).any():
            n = int((first < state.least).argmax())
            have = state.lengths[n] - state.least[n]
            reason = "the newest append" if state.least[n] else "as many as it has tokens"
            raise ValueError(
                f"query: expected at most {have} queries of sequence {n}, {reason}, got {counts[n]}; append keys and "
                "values first"
            )
        if query_lengths is not None:
            modifiers["query_lengths"] = counts
        stored = state.lengths - state.starts
        if (stored != key.shape[2]).any():
            modifiers["key_lengths"] = stored
        if self._window is not None:
            modifiers["window"] = (self._window - 1, 0)
        return attention(query, key, value, causal=True, query_offset="end", **self._scales(), **modifiers)

    def truncate(self, lengths):
        """Take back the last tokens of each sequence, as for a draft that was refused.

        Parameters
        ----------
        lengths : int array_like, shape (batch,) or ()
            The number of tokens that each sequence is to have, from 0 to what it has. With a window, tokens before the
            newest append cannot be taken back once older ones were dropped.

        Raises
        ------
        TypeError, ValueError
            A length is more than the sequence has, or so small that dropped tokens would be needed again.

        See Also
        --------
        append : Append others in their place.

        Examples
        --------
        >>> import numpy as np
        >>> import cattn
        >>> cache = cattn.KVCache(2, 1, 4)
        >>> cache.append(np.ones((2, 1, 5, 4)), np.ones((2, 1, 5, 4)))
        >>> cache.truncate([3, 4])
        >>> cache.lengths
        array([3, 4])
        """
        state = self._state
        if lengths is None:
            raise TypeError("lengths: expected integers, got None")
        new = _per_entry("lengths", lengths, len(state.lengths), state.lengths, "what the sequence has")
        if (new < state.least).any():
            n = int((new < state.least).argmax())
            raise ValueError(
                f"lengths: expected {state.least[n]} or more for sequence {n}, because the tokens that a shorter one "
                f"would see were dropped, got {new[n]}"
            )
        self._state = state._replace(lengths=_fixed(new))

    def reorder(self, index):
        """Let each entry of the batch go on as a copy of another one, as beams do.

        Parameters
        ----------
        index : int array_like, shape (new batch,)
            The entries to go on with: entry n becomes what entry ``index[n]`` was. The batch may become smaller or
            larger.

        Raises
        ------
        TypeError, ValueError, MemoryError
            An index is no entry of the batch, or the memory for another array does not suffice.

        See Also
        --------
        truncate : Take tokens back.

        Examples
        --------
        The second beam goes on twice, and the first ends:

        >>> import numpy as np
        >>> import cattn
        >>> cache = cattn.KVCache(2, 1, 4)
        >>> cache.append(np.ones((2, 1, 5, 4)), np.ones((2, 1, 5, 4)), [5, 3])
        >>> cache.reorder([1, 1])
        >>> cache.lengths
        array([3, 3])
        """
        state = self._state
        batch = len(state.lengths)
        given = as_array("index", index)
        if given.ndim != 1:
            raise ValueError(f"index: expected shape (new batch,), got {given.shape}")
        index = as_integers("index", given, -1, batch) if given.size else np.zeros(0, np.int64)
        wrong = (index < 0) | (index >= batch)
        if wrong.any():
            raise ValueError(f"index: expected 0 to {batch - 1}, the entries of the batch, got {given[wrong][0]}")
        if not np.array_equal(index, np.arange(batch)):
            self._state = _moved(state, index, state.starts[index], state.capacity)

    def _room(self, needed):
        """Return how many tokens to make room for where so many must fit."""
        if needed <= self._capacity:
            return self._capacity
        more = max(with_spare_room(needed), 2 * self._state.capacity)
        if self._window is None:
            return more
        # A window may be longer than any sequence. A long prompt gets no more than it needs for a moment.
        return max(needed, min(more, with_spare_room(self._window)))


def with_spare_room(needed):
    """Return a number of tokens above `needed`, so that what is copied now is copied a few times at most."""
    return needed + needed // 8 + 16


def _moved(state, index, first, capacity):
    """Return a state with these entries, whose tokens from `first` on lie at the front of new arrays."""
    lengths, starts = state.lengths[index], state.starts[index]
    rows = [(array.shape[3], array.dtype) for array in state.arrays]
    arrays = _new_arrays((len(index), state.arrays[0].shape[1]), rows, capacity)
    spans = np.stack([index, first - starts, lengths - starts], axis=1).tolist()
    for new, old in zip(arrays, state.arrays, strict=True):
        for n, (entry, start, stop) in enumerate(spans):
            _copy(new[n, :, : stop - start], old[entry, :, start:stop])
    return _State(arrays, _fixed(first), _fixed(lengths), _fixed(state.least[index]))


def _copy(target, source):
    """Copy rows (heads, length, size)."""
    heads, length, size = target.shape
    step = max(1, _PIECE // max(1, heads * size))
    for first in range(0, length, step):
        target[:, first : first + step] = source[:, first : first + step]


def _new_arrays(leading, rows, capacity):
    """Return an array for each (size, type) of the rows of a token: key, value and, if they are int8, their scales."""
    try:
        return tuple(np.empty((*leading, capacity, size), dtype) for size, dtype in rows)
    except (MemoryError, ValueError, OverflowError):  # the last two mean more bytes than addresses can count
        (size, dtype), (value_size, _), *_ = rows
        raise MemoryError(
            f"capacity: cannot allocate {shown(capacity)} tokens of {shown(leading[0])} sequences, {shown(leading[1])} "
            f"heads and sizes {shown(size)} and {shown(value_size)}, of type {dtype}"
        ) from None


def _fixed(array):
    """Return an array that nobody changes any more, because callers see it."""
    array.flags.writeable = False
    return array


# Arguments


def _as_type(argument):
    name = as_text(argument)
    kind = argument if name is None else name
    try:
        if name == "bfloat16":
            from ml_dtypes import bfloat16 as kind
        dtype = native(np.dtype(kind))
    except ModuleNotFoundError:
        raise ImportError("dtype: bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    except Exception:  # whatever a foreign object or a name raises
        raise TypeError(f"dtype: expected {_TYPES}, got {shown(argument)}") from None
    if argument is None or not (type_name(dtype) or dtype == np.int8):
        raise TypeError(f"dtype: expected {_TYPES}, got {'None' if argument is None else type_shown(dtype)}")
    return dtype


def as_capacity(argument):
    return as_index("capacity: expected an integer of 0 or more", argument, 0)


def _per_entry(name, argument, batch, most, what):
    """Return one integer for each entry, from 0 to `most`, which is `what`. None stands for `most`."""
    if argument is None:
        return np.full(batch, most, np.int64)
    given = as_array(name, argument)
    if given.shape not in ((), (batch,)):
        raise ValueError(f"{name}: expected shape {(batch,)} or (), one number for each sequence, got {given.shape}")
    numbers = np.broadcast_to(as_integers(name, given, -1, FAR), (batch,))
    wrong = (numbers < 0) | (numbers > most)
    if wrong.any():
        n = int(wrong.argmax())
        came, limit = np.broadcast_to(given, (batch,))[n], np.broadcast_to(most, (batch,))[n]
        raise ValueError(f"{name}: expected 0 to {limit}, {what}, got {came} for sequence {n}")
    return numbers


def _check_query_type(came, kept):
    query, cache = type_name(came) or "float64", type_name(kept)
    if kept == np.int8:
        if query == "float64":
            raise TypeError(
                f"query: expected type float32, float16 or bfloat16 beside int8 keys, got {type_shown(came)}; "
                "write query.astype(np.float32)"
            )
        return
    if query == cache or cache in KEY_TYPES_BESIDE.get(query, ()):
        return
    or_else = "".join(f" or {name}" for name, others in KEY_TYPES_BESIDE.items() if cache in others)
    raise TypeError(f"query: expected type {cache} like the cache{or_else}, got {type_shown(came)}")
