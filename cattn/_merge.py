"""Joining the results of attention over disjoint sets of keys."""

import math

import numpy as np

from ._arithmetic import in_usual_arithmetic
from ._read import arithmetic, as_floats, check_same_type, class_shown, native

__all__ = ["merge_attention"]

_PIECE = 2**20  # elements that are joined at a time: signal handlers run in between


@in_usual_arithmetic
def merge_attention(outputs, lses):
    """Join the results of attention over disjoint sets of keys.

    With ``m = max(lse)`` and ``w = exp(lse - m)`` over the parts, ``out = sum(w * out) / sum(w)`` and
    ``lse = m + log(sum(w))``. Up to rounding, attention over all keys at once gives the same.

    Parameters
    ----------
    outputs : sequence of array_like, each (..., Dv)
        One or more parts of one shape and type. Parts of float16 or bfloat16 queries are best kept in float32 (`out`
        of `attention`), so that they are not rounded twice.
    lses : sequence of array_like, each (...)
        The lse of each part, as returned with ``return_lse=True``. Where it is -inf, the part attended to nothing, and
        its output is ignored. Sinks must have been given to only one of the parts.

    Returns
    -------
    out : ndarray, (..., Dv)
        It has the type of the outputs.
    lse : ndarray, (...)
        Its type is float64 if the outputs are float64, else float32.

    Raises
    ------
    TypeError, ValueError
        There are no parts, `outputs` and `lses` differ in length, or a part's shape or type is not that of the first.

    See Also
    --------
    attention : Compute the parts, with ``return_lse=True``.

    Notes
    -----
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, section 3.1, show how the sums of one
    softmax are computed in pieces. https://arxiv.org/abs/1805.02867

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 4, 100, 16))
    >>> halves = [slice(0, 50), slice(50, 100)]
    >>> parts = [cattn.attention(query, key[:, half], value[:, half], return_lse=True) for half in halves]
    >>> out, lse = cattn.merge_attention(*zip(*parts))
    >>> np.allclose(out, cattn.attention(query, key, value))
    True
    """
    outputs, lses = _parts("outputs", outputs), _parts("lses", lses)
    if not outputs:
        raise ValueError("outputs: expected at least one part, got none")
    if len(lses) != len(outputs):
        raise ValueError(f"lses: expected {len(outputs)} parts like outputs, got {len(lses)}")
    shape, stored = outputs[0].shape, native(outputs[0].dtype)
    if not shape:
        raise ValueError("outputs[0]: expected at least one dimension, got a scalar")
    for n, (out, lse) in enumerate(zip(outputs, lses, strict=True)):
        check_same_type(f"outputs[{n}]", out.dtype, "outputs[0]", stored)
        if out.shape != shape:
            raise ValueError(f"outputs[{n}]: expected shape {shape} like outputs[0], got {out.shape}")
        if lse.shape != shape[:-1]:
            raise ValueError(f"lses[{n}]: expected shape {shape[:-1]}, that of outputs[{n}] less its last axis, "
                             f"got {lse.shape}")  # fmt: skip

    computed = arithmetic(stored)
    merged, merged_lse = np.empty(shape, stored), np.empty(shape[:-1], computed)
    for rows in _pieces(shape):
        parts = [out[rows] for out in outputs], [lse[rows] for lse in lses]
        merged[rows], merged_lse[rows] = _merged(*parts, computed)
    return merged, merged_lse


def _pieces(shape):
    """Yield indices of rows, which cut an array of this shape (..., Dv) into pieces of about `_PIECE` elements."""
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis:]) > _PIECE:
        axis += 1
    if axis == 0:
        yield ()
        return
    step = max(1, _PIECE // math.prod(shape[axis:]))
    for index in np.ndindex(shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            yield (*index, slice(start, start + step))


def _merged(outputs, lses, computed):
    """Return the merged output and lse of a piece, in the type of the arithmetic."""
    lses = [_narrowed(lse, computed)[..., None] for lse in lses]
    maximum = lses[0]
    for lse in lses[1:]:
        maximum = np.maximum(maximum, lse)
    shift = np.where(maximum == -np.inf, 0, maximum)
    merged, total = np.zeros(outputs[0].shape, computed), np.zeros_like(maximum)
    for out, lse in zip(outputs, lses, strict=True):
        weight = np.exp(lse - shift)
        total += weight
        out = out.astype(computed)
        # What is not finite stays what it is, even when its weight came out as 0.
        merged += np.where(lse == -np.inf, 0, np.where(np.isfinite(out), weight * out, out))
    merged /= np.where(total == 0, 1, total)
    return merged, (maximum + np.log(total))[..., 0]


def _parts(name, parts):
    try:
        parts = list(parts)
    # Memoryviews of several axes raise NotImplementedError, and an object that lies about its length the last two.
    except (TypeError, NotImplementedError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected a list of arrays, one a part, got {class_shown(parts)}") from error
    return [as_floats(f"{name}[{n}]", part) for n, part in enumerate(parts)]


def _narrowed(lse, dtype):
    """Return lse in the given type. Numbers beyond its range become its largest, so that finite stays finite."""
    largest = np.finfo(dtype).max
    return np.where(np.isfinite(lse), np.clip(lse, -largest, largest), lse).astype(dtype)
