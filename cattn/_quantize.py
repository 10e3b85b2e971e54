"""Quantise keys and values to int8 and a scale."""

import numpy as np

from ._arithmetic import in_usual_arithmetic
from ._read import TYPES, arithmetic, as_array, as_index, cast, native, type_name, type_shown

__all__ = ["quantize"]

_LARGEST = 127
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
        cache needs. -2 gives each channel its own, (..., 1, D).

    Returns
    -------
    quantised : ndarray of int8, the shape of `x`
        Numbers from -127 to 127.
    scale : ndarray of float32, the shape of `x` with 1 element along `axis`
        ``quantised * scale`` is `x`, rounded.

    Raises
    ------
    TypeError
        `x` is of another type.
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
    x = as_array("x", x)
    if type_name(x.dtype) is None:
        raise TypeError(f"x: expected type {TYPES}, got {type_shown(x.dtype)}")
    expected = f"axis: expected an axis of x, which has shape {x.shape}"
    axis = as_index(expected, axis, -x.ndim)
    if axis >= x.ndim:
        raise ValueError(f"{expected}, got {axis}")
    return quantized("x", x, axis)


def quantized(name, x, axis):
    """Return an array of one of the four types in int8, and its scale. An error calls it by `name`."""
    x = cast(name, x, arithmetic(native(x.dtype)))
    largest = np.abs(x).max(axis=axis, keepdims=True, initial=0)
    scale = cast("scale", largest / x.dtype.type(_LARGEST), np.float32)
    if not np.isfinite(scale).all():
        found = largest[~np.isfinite(scale)][0]
        expected = "finite numbers" if not np.isfinite(found) else f"numbers up to {_LARGEST * float(_FLOAT32.max):.3g}"
        raise ValueError(f"{name}: expected {expected}, got {found}")
    scale[scale < _FLOAT32.smallest_normal] = 0
    x /= np.where(scale == 0, x.dtype.type(np.inf), scale)
    return np.rint(x, out=x).clip(-_LARGEST, _LARGEST, out=x).astype(np.int8), scale
