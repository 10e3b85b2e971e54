"""The arithmetic of NumPy, whatever the caller has made of it."""

import functools

import numpy as np

from ._kernel import change_float_mode


def in_usual_arithmetic(function):
    """`function`, in which NumPy rounds to nearest, keeps subnormal numbers, traps nothing and warns of nothing."""

    @functools.wraps(function)
    def inner(*given, **named):
        callers_mode = change_float_mode()
        try:
            with np.errstate(all="ignore"):
                return function(*given, **named)
        finally:
            change_float_mode(callers_mode)

    return inner
