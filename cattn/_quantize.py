"""Quantise keys and values to int8 and a scale."""

import numpy as np

from ._arguments import empty
from ._arithmetic import in_usual_arithmetic
from ._read import arithmetic, as_floats, as_index, native, shown

__all__ = ["quantize"]

_LARGEST = 127
_PIECE = 2**20  # the elements that are computed at a time
_FLOAT32 = np.finfo(np.float32)


@in_usual_arithmetic
def quantize(x, *, axis):
    """Round keys or values to int8, with a scale for each token or for each channel.

    Parameters
    ----------
    x : array_like, shape (..., L, D)
        Finite numbers of one of the four floating types.
    axis : int
        The axis whose numbers share a scale. -1 gives each token its own scale, (..., L, 1), which is what a growing
        cache needs. -2 gives each channel its own, (..., 1, D). For arrays (..., L, H, D), that is -3.

    Returns
    -------
    quantised : ndarray of int8, the shape of `x`
        Numbers from -127 to 127.
    scale : ndarray of float32, the shape of `x` with 1 element along `axis`
        ``quantised * scale`` is `x`, rounded.

    Raises
    ------
    TypeError
        `x` has another type, or `axis` is no integer.
    ValueError
        A number is NaN, infinite or larger than ``127 * np.finfo(np.float32).max``, or `x` has no such axis.

    See Also
    --------
    attention : It takes int8 keys and values with `key_scale` and `value_scale`.
    KVCache : With ``dtype="int8"``, it keeps its tokens like this.

    Notes
    -----
    The scale is ``max(abs(x)) / 127`` along the axis. Numbers are rounded to the nearest integer, ties to even, so that
    each is off by at most ``(1/2 + 2**-16) * scale``. If the scale is below float32's smallest normal number, it
    is 0, and so are the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> quantised, scale = cattn.quantize(np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]), axis=-1)
    >>> quantised
    array([[  64, -127,   32],
           [   0,    0,    0]], dtype=int8)
    >>> scale.round(4)
    array([[0.0157],
           [0.    ]], dtype=float32)
    """
    x = as_floats("x", x, integers=False)
    expected = f"axis: expected an axis of x, which has shape {x.shape}"
    axis = as_index(expected, axis, -x.ndim)
    if axis >= x.ndim:
        raise ValueError(f"{expected}, got {shown(axis)}")
    return quantized("x", x, axis)


def quantized(name, x, axis):
    """Return an array of one of the four types in int8, and its scale. An error calls it by `name`.

    NumPy gets pieces of the longest axis, so that signal handlers run in between.
    """
    result = empty(name, x.shape, np.dtype(np.int8))  # before anything is read: if it does not fit, x may be endless
    axis, cut = axis % x.ndim, int(np.argmax(x.shape))
    dtype, step = arithmetic(native(x.dtype)), max(1, _PIECE * x.shape[cut] // max(1, x.size))
    pieces = [(slice(None),) * cut + (slice(n, n + step),) for n in range(0, x.shape[cut], step)]

    def of(array, piece):
        return array if cut == axis else array[piece]

    largest = np.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), dtype)
    for piece in pieces:
        here = of(largest, piece)
        np.maximum(here, np.abs(x[piece].astype(dtype)).max(axis=axis, keepdims=True, initial=0), out=here)
    scale = (largest / dtype.type(_LARGEST)).astype(np.float32)
    if not np.isfinite(scale).all():
        place = np.unravel_index(np.isfinite(scale).argmin(), scale.shape)
        line = x[(*place[:axis], slice(None), *place[axis + 1 :])].astype(dtype)
        found = line[np.abs(line).argmax()]
        expected = "finite numbers" if not np.isfinite(found) else f"numbers up to {_LARGEST * float(_FLOAT32.max):.3g}"
        raise ValueError(f"{name}: expected {expected}, got {found}")
    scale[scale < _FLOAT32.smallest_normal] = 0
    divisor = np.where(scale == 0, dtype.type(np.inf), scale)
    for piece in pieces:
        part = x[piece].astype(dtype)
        part /= of(divisor, piece)
        result[piece] = np.rint(part, out=part).clip(-_LARGEST, _LARGEST, out=part)
    return result, scale
