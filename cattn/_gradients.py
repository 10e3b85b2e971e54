"""The result of `attention_backward`, both of the package and of its specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Gradients(NamedTuple):
    """Hold the gradients of a loss with respect to the inputs of one call of `attention`.

    Each has the shape of its input, summed over the axes along which the input was broadcast.

    Parameters
    ----------
    query : ndarray
        The gradient of query.
    key : ndarray
        The gradient of key.
    value : ndarray
        The gradient of value.
    bias : ndarray or None
        The gradient of bias. It is None unless it was asked for.
    alibi_slopes : ndarray or None
        The gradient of alibi_slopes. It is None if there were none.
    sinks : ndarray or None
        The gradient of sinks. It is None if there were none.

    See Also
    --------
    attention_backward : Compute the gradients.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.ones((2, 4))
    >>> out, lse = cattn.attention(x, x, x, sinks=[0.0], return_lse=True)
    >>> gradients = cattn.attention_backward(x, x, x, x, out, lse, sinks=[0.0])
    >>> gradients.query.shape, gradients.sinks.shape, gradients.bias is None
    ((2, 4), (1,), True)
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    bias: NDArray[Any] | None
    alibi_slopes: NDArray[Any] | None
    sinks: NDArray[Any] | None
