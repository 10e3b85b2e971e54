"""The result of `attention_backward`, both of the package and of its specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Gradients(NamedTuple):
    """Hold the gradients of a loss with respect to the inputs of one call of attention.

    Each has the shape of its input, summed over the axes along which the input was broadcast. It is None where there
    was no such input. The gradient of a bias is None unless it was asked for.
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    bias: NDArray[Any] | None
    alibi_slopes: NDArray[Any] | None
    sinks: NDArray[Any] | None
