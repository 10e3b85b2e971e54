"""One argument, whatever came: the array, number or flag that it stands for, or an error that names it."""

import math
import reprlib

import numpy as np

TYPES = "float16, bfloat16, float32 or float64"
# By character: longdouble has one of its own even where it is no wider than float64.
_NUMPY_TYPES = {"e": "float16", "f": "float32", "d": "float64"}


def as_array(name, argument):
    if type(argument) is np.ndarray:
        return argument
    parts = argument if isinstance(argument, (list, tuple)) else ()
    if isinstance(argument, np.ma.MaskedArray) or any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise TypeError(f"{name}: expected an array, got a masked array; fill it, and pass mask= for what it hid")
    try:
        return np.asarray(argument)
    except MemoryError:
        raise
    except Exception as error:  # whatever the conversion of a foreign object may raise
        raise TypeError(f"{name}: expected an array, got {shown(argument)}, which NumPy refuses: {error}") from error


def as_floats(name, argument):
    array = as_array(name, argument)
    if type_name(array.dtype):
        return array
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    raise TypeError(f"{name}: expected type {TYPES}, got {type_shown(array.dtype)}")


def as_integers(name, argument, low, high):
    """A native int64 array, cut off at low and high; always a copy."""
    if type(argument) is int:  # of any size
        return np.array(min(max(argument, low), high), np.int64)
    array = as_array(name, argument)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {type_shown(array.dtype)}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        array = np.minimum(array, np.uint64(2**63 - 1))
    return np.asarray(np.minimum(np.maximum(array, low, dtype=np.int64), high))


def as_number(name, argument, positive=False):
    expected = f"{name}: expected a finite number{' above 0' if positive else ''}"
    array = as_array(name, argument)
    if array.ndim or not (array.dtype.kind in "fiu" or type_name(array.dtype)):
        raise TypeError(f"{expected}, got {shown(argument)}")
    number = float(array)
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{expected}, got {shown(argument)}")
    return number


def as_flag(name, argument):
    if not isinstance(argument, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(argument)}")
    return bool(argument)


def is_integer(argument):
    return isinstance(argument, (int, np.integer)) and not isinstance(argument, bool)


# Types


def type_name(dtype):
    """Which of the four types this is, in either byte order; None for all others."""
    return _NUMPY_TYPES.get(dtype.char) or ("bfloat16" if dtype.name == "bfloat16" else None)


def native(dtype):
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def arithmetic(dtype):
    return np.dtype(np.float64 if dtype.char == "d" else np.float32)


def type_shown(dtype):
    return dtype.name if dtype.isnative else f"{dtype.name} with swapped bytes"


def shown(argument):
    if isinstance(argument, (np.ndarray, np.generic)) and np.ndim(argument):
        return f"{type(argument).__name__} of shape {argument.shape} and type {argument.dtype}"
    try:
        return reprlib.repr(argument)
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a very long {type(argument).__name__}"
