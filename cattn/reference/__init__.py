"""Attention in plain NumPy: this is the specification that every other result is checked against.

The functions here compute whole matrices in float64, one step a line. They are not fast, and they check no arguments:
the functions of the package itself say what is wrong with an argument. Masked keys are replaced, never multiplied by
zero, so that nothing they hold can reach a result.
"""

from ._backward import attention_backward
from ._bounds import error_bound, maxsim_error_bound
from ._forward import attention, attention_paged, attention_varlen, attention_weights
from ._maxsim import maxsim

__all__ = [
    "attention",
    "attention_backward",
    "attention_paged",
    "attention_varlen",
    "attention_weights",
    "error_bound",
    "maxsim",
    "maxsim_error_bound",
]
