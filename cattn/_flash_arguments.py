"""The arguments that the functions of cattn.flash_attn share, read as those of `cattn.attention`."""

import sys

import numpy as np

from ._modifiers import names_in
from ._read import (
    as_array,
    as_flag,
    as_floats,
    as_items,
    as_number,
    check_same_type,
    class_shown,
    shown,
)

UNLIMITED = (-1, -1)
INPUTS = ("q", "k", "v")
# The words of cattn's errors, and flash_attn's. The colons keep a name apart from the same word in a sentence.
WORDS = {"query": "q", "key": "k", "value": "v", "query_indptr": "cu_seqlens_q", "key_indptr": "cu_seqlens_k"}
WORDS |= {f"{name}:": f"{theirs}:" for name, theirs in names_in("flash_attn").items()}


class Arrays:
    """Do for arrays what the module _tensors does for tensors."""

    read = staticmethod(as_array)

    @staticmethod
    def read_inputs(names, *given):
        arrays = [as_floats(name, argument) for name, argument in zip(names, given, strict=True)]
        for name, array in zip(names, arrays, strict=True):
            if array.dtype != arrays[0].dtype:
                check_same_type(name, array.dtype, names[0], arrays[0].dtype)
        return arrays

    @staticmethod
    def check_writable(name, given, array):
        # A cast made an array of its own. Nothing is asked of the argument, whose class may be anyone's.
        if not issubclass(type(given), np.ndarray) or array.base is None:
            raise TypeError(
                f"{name}: expected a NumPy array that new tokens can be written to, got {class_shown(given)}"
            )
        if not array.flags.writeable:
            raise TypeError(f"{name}: expected a NumPy array that new tokens can be written to, got a read-only one")

    @staticmethod
    def uncompiled(function, *given):
        return function(*given)

    @staticmethod
    def num_threads():
        return None

    @staticmethod
    def to_tensor(array):
        return array


def house_of(q):
    """Return what reads the caller's arguments: the module _tensors for tensors, Arrays for all others."""
    torch = sys.modules.get("torch")
    if not isinstance(q, getattr(torch, "Tensor", ())):
        return Arrays
    from . import _tensors

    return _tensors


def recording(house, *given):
    """Return the module _autograd if a gradient of something that was given is wanted, else the house itself."""
    if house is Arrays or not house.is_recorded(*given):
        return house
    from . import _autograd

    return _autograd


def read_inputs(house, ndim, axes, *given, names=INPUTS):
    arrays = [*house.read_inputs(names, *given)]
    for name, array, of_this in zip(names, arrays, axes if isinstance(axes, tuple) else [axes] * 3, strict=True):
        if array.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} axes {of_this}, got shape {tuple(array.shape)}")
    return arrays


def options_of(
    house, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
):
    """Return flash_attn's options as the arguments of `cattn.attention`."""
    if _number("dropout_p", dropout_p) != 0:
        raise ValueError(f"dropout_p: expected 0, since cattn has no dropout, got {shown(dropout_p)}")
    options = {
        "scale": softmax_scale,
        "causal": causal,
        "return_lse": return_lse,
        "num_threads": house.num_threads(),
    }
    if return_attn_probs is not False:
        options["return_lse"] = as_flag("return_attn_probs", return_attn_probs) | as_flag("return_lse", return_lse)
    if window_size is not UNLIMITED:  # what else is given may be an array, which == would compare by elements
        options["window"] = _window(window_size)
    softcap = _number("softcap", softcap)
    if softcap != 0:
        options["softcap"] = softcap
    if alibi_slopes is not None:
        options["alibi_slopes"] = house.read("alibi_slopes", alibi_slopes)
    return options


def _number(name, argument):
    """Return a float as it is, NaN included, and quickly. Anything else goes through `as_number`."""
    return argument if type(argument) is float else as_number(name, argument)


def _window(window_size):
    """Return a tuple of Python's numbers, whatever holds them. cattn.attention says whether they are a window."""

    def unpacked(argument):
        return as_array("window_size", argument).tolist() if hasattr(argument, "dtype") else argument

    window = unpacked(window_size)
    sides = as_items(window)
    return window if sides is None else tuple(map(unpacked, sides))


def flash_lse(lse):
    """Return an lse (..., length, heads) as flash_attn has it: (..., heads, length), +inf where a row sees nothing."""
    lse = lse.swapaxes(-1, -2)
    if not isinstance(lse, np.ndarray):
        return lse.contiguous().masked_fill(lse == -np.inf, np.inf)
    lse = np.ascontiguousarray(lse)
    lse[lse == -np.inf] = np.inf
    return lse
