"""Read one argument, whatever came.

A reader returns the array, number or flag that the argument stands for, or raises an error that names it.
"""

import math
import operator
import reprlib

import numpy as np

TYPES = "float16, bfloat16, float32 or float64"
HALF_TYPES = ("float16", "bfloat16")
# Keys and values share one type: that of the queries, or one of these beside queries of the type named first. C's own
# table, in c_arguments.h, says the same.
KEY_TYPES_BESIDE = {"float32": HALF_TYPES}
_PIECE = 2**17  # the elements of a long list that are converted at a time
_NUMBERS = {int, float, np.int32, np.int64, np.float32, np.float64}
# The keys are NumPy's characters, because longdouble has its own even where it is no wider than float64.
_NUMPY_TYPES = {"e": "float16", "f": "float32", "d": "float64"}


def as_array(name, argument):
    """Return a view of our own, of NumPy's base class.

    What has been checked then stays true, whatever another thread does to the argument's shape and type. It is also
    what lies in memory, whatever the attributes of a subclass say.
    """
    if type(argument) is np.ndarray:
        return argument.view()
    if argument is None:
        raise TypeError(f"{name}: expected an array, got None")
    if type(argument) is float or type(argument) is int:  # only a signal handler can raise an error here
        return np.asarray(argument).view()
    numbers = _long_list_of_numbers(argument)
    if numbers is not None:
        return numbers
    try:
        is_masked = issubclass(type(argument), np.ma.MaskedArray) or (
            issubclass(type(argument), (list, tuple))
            and any(issubclass(type(part), np.ma.MaskedArray) for part in as_items(argument))
        )
        array = None if is_masked else np.asarray(argument).view()
    except MemoryError:
        raise
    except Exception as error:  # the conversion of a foreign object may raise anything
        raise TypeError(f"{name}: expected an array, got {shown(argument)}, which NumPy refuses: {error}") from error
    if is_masked:
        raise TypeError(f"{name}: expected an array, got a masked array; fill it, and pass mask= for what it hid")
    return array


def _long_list_of_numbers(argument):
    """Return a long list of nothing but numbers as an array, or None for anything else. Signal handlers run between its
    pieces. Their exceptions reach the caller, because no conversion of such a piece can fail."""
    if type(argument) not in (list, tuple) or len(argument) <= _PIECE:
        return None
    arrays = []
    for start in range(0, len(argument), _PIECE):
        piece = argument[start : start + _PIECE]
        if not _NUMBERS.issuperset(map(type, piece)):
            return None
        arrays.append(np.asarray(piece))
    return np.concatenate(arrays) if len({array.dtype for array in arrays}) == 1 else None


def as_even(name, argument, advice):
    """Return an array. A list whose parts have different lengths is none, and gets advice."""
    try:
        return as_array(name, argument)
    except TypeError as error:
        if as_items(argument) is None:
            raise
        raise TypeError(f"{error}; {advice}") from None


def as_floats(name, argument, integers=True):
    """Return an array of one of the four types. int32 and int64 are converted, unless integers make no sense here."""
    array = as_array(name, argument)
    if type_name(array.dtype):
        return array
    if integers and array.dtype.kind == "i" and array.dtype.itemsize in (4, 8):  # whatever C calls these types here
        return cast(name, array, np.float64)
    advice = _conversion(name, array.dtype)
    raise TypeError(f"{name}: expected type {TYPES}, got {type_shown(array.dtype)}{advice}")


def _conversion(name, dtype):
    """Return what to write for a type that is not read: longdouble, or one whose numbers may stand for anything."""
    if dtype.char == "g":
        return f"; write {_cast(name, 'float64')}"
    if dtype.kind == "b":
        return f"; write {_cast(name, 'float32')} if True counts as 1"
    if dtype.kind not in "iu":
        return ""
    if dtype.itemsize == 1:
        return f"; write {_cast(name, 'float32')}, and multiply quantised numbers by their scale"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return f"; write {name}.view(ml_dtypes.bfloat16) for the bits of bfloat16, {_cast(name, 'float32')} for numbers"
    return f"; write {_cast(name, 'float32' if dtype.itemsize == 2 else 'float64')}"


def as_integers(name, argument, low, high):
    """Return a new int64 array in the machine's byte order, whose numbers are clipped to low and high."""
    if type(argument) is int:  # it may be of any size
        return np.array(min(max(argument, low), high), np.int64)
    array = as_array(name, argument)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {type_shown(array.dtype)}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        array = np.asarray(np.minimum(array, np.uint64(2**63 - 1)))
    array = cast(name, array, np.int64)
    return array.clip(low, high, out=array)


def cast(name, array, dtype):
    """Return a copy in another type, or raise a MemoryError that names the argument."""
    try:
        return array.astype(dtype)
    except (MemoryError, ValueError):  # NumPy raises ValueError for more bytes than addresses can count
        raise MemoryError(f"{name}: cannot allocate {array.size} numbers of type {np.dtype(dtype)}") from None


def as_number(name, argument, positive=False):
    expected = f"{name}: expected a finite number{' above 0' if positive else ''}"
    array = as_array(name, argument)
    if array.ndim or not (array.dtype.kind in "fiu" or type_name(array.dtype)):
        raise TypeError(f"{expected}, got {shown(argument)}")
    number = float(array)
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{expected}, got {shown(argument)}")
    return number


def as_count(name, argument, optional=False):
    if type(argument) is int and argument >= 1:  # num_threads of a short call, where each step shows
        return argument
    return as_index(f"{name}: expected an integer of 1 or more{', or None' if optional else ''}", argument, 1)


def as_index(expected, argument, least):
    """Return an integer that is not below `least`, or raise an error that says what was expected."""
    try:
        if is_flag(argument):
            raise TypeError
        index = operator.index(argument)
    except TypeError:
        raise TypeError(f"{expected}, got {shown(argument)}") from None
    if index < least:
        raise ValueError(f"{expected}, got {shown(index)}")
    return index


def as_flag(name, argument):
    if not is_flag(argument):
        raise TypeError(f"{name}: expected True or False, got {shown(argument)}")
    return bool(argument)


def as_text(argument):
    """Return a text as a plain str, without any method of a subclass, or None for anything else."""
    return str.__str__(argument) if issubclass(type(argument), str) else None


def as_items(argument):
    """Return the items of a tuple or list, without calling a method of a subclass, or None for anything else."""
    for kind in (tuple, list):
        if issubclass(type(argument), kind):
            return tuple(kind.__getitem__(argument, slice(None)))
    return None


def broadcast(name, array, shape, axes, advise=None):
    if array.shape == shape:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        advice = "" if advise is None else advise(name, array.shape, shape)
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {shape} ({axes}), got {array.shape}{advice}"
        ) from None


# These ask for the type of an argument, because an object may say that its class is another one.


def is_integer(argument):
    return issubclass(type(argument), (int, np.integer)) and not is_flag(argument)


def is_flag(argument):
    return type(argument) in (bool, np.bool_)


# Types


def type_name(dtype):
    """Return the name of one of the four types, in either byte order, or None for all others."""
    return _NUMPY_TYPES.get(dtype.char) or ("bfloat16" if dtype.name == "bfloat16" else None)


def native(dtype):
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def arithmetic(dtype):
    return np.dtype(np.float64 if dtype.char == "d" else np.float32)


def check_type_beside(name, dtype, first, of_first):
    """Raise TypeError unless an array has the type of the first one, or one that may stand beside it. Return whether it
    is another type."""
    others = KEY_TYPES_BESIDE.get(type_name(of_first), ())
    if type_name(dtype) in others:
        return True
    check_same_type(name, dtype, first, of_first, f", {' or '.join(others)}" if others else "")
    return False


def check_same_type(name, dtype, first, expected, or_else=""):
    """Raise TypeError unless an array has the type of the first one.

    The types are those of the arguments as they came. Integers count as float64. `or_else` says what else the caller
    takes.
    """
    counts, expected_counts = (type_name(came) or "float64" for came in (dtype, expected))
    if counts == expected_counts:
        return
    message = f"{name}: expected type {expected_counts} like {first}{or_else}, got {type_shown(dtype)}"
    if type_name(expected) is None:
        raise TypeError(f"{message}; {type_shown(expected)} counts as float64: write {_cast(first, counts)}")
    if type_name(dtype) is None:
        message += ", which counts as float64"
    raise TypeError(f"{message}; write {_cast(name, expected_counts)}")


def _cast(name, known):
    return f"{name}.astype({'ml_dtypes' if known == 'bfloat16' else 'np'}.{known})"


def type_shown(dtype):
    if dtype.kind in "UST":
        return "strings"
    return dtype.name if dtype.isnative else f"{dtype.name} with swapped bytes"


def class_shown(argument):
    kind = type(argument)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shown(argument):
    """Return an argument in a few words, whatever its own methods would do."""
    kind = type(argument)
    try:
        # It is an array, or a tensor of another library.
        if hasattr(kind, "shape") and hasattr(kind, "dtype") and argument.shape != ():
            return f"{kind.__name__} of shape {tuple(argument.shape)} and type {argument.dtype}"
        # Python may have been set to print as few as 640 digits.
        if issubclass(kind, int) and int.bit_length(argument) > 2000:
            return f"a very long {kind.__name__}"
        return reprlib.repr(argument)
    except ValueError:  # such an integer is inside
        return f"a very long {kind.__name__}"
    except Exception:
        return f"an object of {class_shown(argument)}"
