"""Remove the padding of a batch, and put it back."""

import itertools
import math

import numpy as np

from ._arguments import as_indptr, as_lengths
from ._read import as_array, as_index, shown

__all__ = ["pad", "unpad"]

_PIECE = 2**20  # the elements that are copied at a time, because signal handlers run in between


def unpad(x, lengths):
    """Pack a padded batch: put the sequences one after the other, without their padding.

    Parameters
    ----------
    x : array_like, shape (batch, length, ...)
        A padded batch of any type, such as token numbers (batch, length) or embeddings (batch, length, size). The
        padding follows each sequence.
    lengths : int array_like, shape (batch,)
        The length of each sequence, from 0 to the length of `x`. What lies past it is left out, whatever it is.

    Returns
    -------
    packed : ndarray, shape (total length, ...)
        A contiguous copy of the sequences, of the type of `x`. Sequence n owns rows ``indptr[n]:indptr[n + 1]``.
    indptr : ndarray of int64, shape (batch + 1,)
        The sums of `lengths`, from 0 to the total length, as `attention_varlen` takes them.

    Raises
    ------
    TypeError, ValueError, MemoryError
        An argument is not of the type or shape above, a length is out of range, or the memory does not suffice.

    See Also
    --------
    pad : The way back.
    attention_varlen : Attention within each sequence of a packed array.

    Examples
    --------
    Two sequences of 3 and 1 tokens:

    >>> import cattn
    >>> packed, indptr = cattn.unpad([[5, 6, 7, 0], [8, 0, 0, 0]], [3, 1])
    >>> packed
    array([5, 6, 7, 8])
    >>> indptr
    array([0, 3, 4])
    """
    x = as_array("x", x)
    if x.ndim < 2:
        raise ValueError(f"x: expected axes (batch, length, ...), got shape {x.shape}")
    lengths = as_lengths("lengths", lengths, *x.shape[:2], "sequence of x", "x")
    indptr = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=indptr[1:])
    packed = np.empty((indptr[-1], *x.shape[2:]), x.dtype)
    for n, of_packed, of_sequence in _pieces(indptr, x.shape[2:]):
        packed[of_packed] = x[n, of_sequence]
    return packed, indptr


def pad(packed, indptr, length=None):
    """Unpack into a padded batch: give each sequence an entry of its own, and fill it up with zeros.

    Parameters
    ----------
    packed : array_like, shape (total length, ...)
        Sequences of any type, one after the other: sequence n owns rows ``indptr[n]:indptr[n + 1]``.
    indptr : int array_like, shape (batch + 1,)
        Ascending, from 0 to the total length.
    length : int, optional
        The length to fill up to. By default it is that of the longest sequence.

    Returns
    -------
    ndarray, shape (batch, length, ...)
        A padded batch, of the type of `packed`. Its padding is zeros.

    Raises
    ------
    TypeError, ValueError, MemoryError
        An argument is not of the type or shape above, a sequence is longer than `length`, or the memory does not
        suffice.

    See Also
    --------
    unpad : The way back.

    Examples
    --------
    Two sequences of 3 and 1 tokens:

    >>> import cattn
    >>> cattn.pad([5, 6, 7, 8], [0, 3, 4])
    array([[5, 6, 7],
           [8, 0, 0]])
    """
    packed = as_array("packed", packed)
    if packed.ndim < 1:
        raise ValueError("packed: expected axes (total length, ...), got a scalar")
    if packed.ndim > 63:  # an array may have 64
        raise ValueError(f"packed: expected at most 63 axes, because the batch takes one more, got {packed.ndim}")
    indptr = as_indptr("indptr", indptr, "packed", len(packed))
    length = _padded_length(length, int(np.diff(indptr).max(initial=0)))
    try:
        padded = np.zeros((len(indptr) - 1, length, *packed.shape[1:]), packed.dtype)
    except (MemoryError, ValueError, OverflowError):  # the last two mean more bytes than addresses can count
        rows = f"rows of shape {packed.shape[1:]} and type {packed.dtype}"
        raise MemoryError(f"length: cannot allocate {len(indptr) - 1} sequences of {shown(length)} {rows}") from None
    for n, of_packed, of_sequence in _pieces(indptr, packed.shape[1:]):
        padded[n, of_sequence] = packed[of_packed]
    return padded


def _pieces(indptr, row_shape):
    """Yield (n, rows of the packed array, rows of sequence n), which cut long sequences into pieces."""
    step = max(1, _PIECE // max(1, math.prod(row_shape)))
    for n, (start, stop) in enumerate(itertools.pairwise(indptr.tolist())):
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield n, slice(first, last), slice(first - start, last - start)


def _padded_length(argument, longest):
    """Return the checked length to fill up to, which is at least that of the longest sequence."""
    if argument is None:
        return longest
    expected = f"length: expected None or an integer of {longest} or more, the length of the longest sequence"
    return as_index(expected, argument, longest)
