"""The gradients of attention in float64."""

from typing import NamedTuple

import numpy as np

from .._calls import forwarding
from .._gradients import Gradients
from ._forward import arithmetic_type, as_given, attention, attention_weights, heads_first, positions_of, repeat_heads


@forwarding(attention, without=("key_scale", "value_scale", "return_lse"))
def attention_backward(
    grad_out, query, key, value, out=None, lse=None, *, grad_lse=None, bias_grad=False, layout="bhld", dtype=None,
    **modifiers,
):  # fmt: skip
    r"""Compute the gradients of a loss with respect to the inputs of `attention`.

    Parameters
    ----------
    grad_out : array_like, (..., Hq, Lq, Dv)
        The gradient of the loss with respect to the output.
    query : array_like, (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    value : array_like, (..., Hkv, Lk, Dv)
        As in `attention`.
    out : array_like, (..., Hq, Lq, Dv), optional
        The output of `attention`. It is computed if it is None.
    lse : array_like, ``out.shape[:-1]``, optional
        The lse of `attention`. It is computed if it is None.
    grad_lse : array_like, ``out.shape[:-1]``, optional
        The gradient of the loss with respect to lse. None stands for zeros.
    bias_grad : bool
        Also compute the gradient of bias.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, layout : optional
        As in `attention`.
    dtype : dtype, optional
        The type to compute in and to return. The default is float64, or longdouble if an input has that type.

    Returns
    -------
    Gradients
        A tuple of the gradients of query, key, value, bias, alibi_slopes and sinks. Each has the shape of its input. It
        is None if there is no such input, and for bias also without `bias_grad`. The gradient of what is masked, and of
        rows that attend to nothing, is exactly 0.

    See Also
    --------
    attention : Compute the output that the gradients belong to.

    Notes
    -----
    With :math:`P_{ij} = e^{S_{ij} - lse_i}`, where :math:`S` are the final scores, and :math:`t` the scores after the
    softcap [1]_ [2]_:

    .. math::

        \Delta_i &= \sum_c dO_{ic}\,O_{ic} - dlse_i \\
        G &= P \circ (dO\,V^\top - \Delta) \\
        dS &= G \circ (1 - (t / softcap)^2) \\
        dQ &= scale \cdot dS\,K, \quad dK = scale \cdot dS^\top Q, \quad dV = P^\top dO \\
        dbias &= G, \quad dslope = -\sum_{ij} G_{ij} |p_i - j|,
        \quad dsink = -\sum_i e^{sink - lse_i} \Delta_i

    A key head gets the sum over the query heads that read it. An input that was broadcast gets the sum over the axes
    along which it was.

    A NaN or an infinity that is attended to gives NaN or infinities. One that is masked reaches no gradient.

    References
    ----------
    .. [1] Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, appendix B.
       https://arxiv.org/abs/2205.14135
    .. [2] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2, for the softcap.
       https://arxiv.org/abs/2408.00118

    Examples
    --------
    The loss is half the sum of the squared outputs, so that its gradient with respect to the output is the output:

    >>> import numpy as np
    >>> import cattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 4, 100, 16))
    >>> out = cattn.reference.attention(query, key, value)
    >>> gradients = cattn.reference.attention_backward(out, query, key, value)
    >>> value[1, 2, 3] += 1e-6
    >>> later = cattn.reference.attention(query, key, value)
    >>> slope = ((later**2).sum() - (out**2).sum()) / 2 / 1e-6
    >>> np.allclose(slope, gradients.value[1, 2, 3], rtol=1e-4)
    True
    """
    dtype = arithmetic_type(dtype, grad_out, query, key, value)
    with np.errstate(all="ignore"):
        terms = backward_terms(dtype, layout, grad_out, query, key, value, out, lse, grad_lse, **modifiers)
        return in_given_shapes(terms.gradients(), layout, query, key, value, bias_grad, **modifiers)


class _Backward(NamedTuple):
    """Hold what the gradients of one call are made of. The arrays have their heads first, and those of query's."""

    grad_out: np.ndarray  # (..., Hq, Lq, Dv)
    query: np.ndarray  # (..., Hq, Lq, D)
    key: np.ndarray  # (..., Hq, Lk, D)
    value: np.ndarray  # (..., Hq, Lk, Dv)
    attended: np.ndarray  # (..., Hq, Lq, Lk): who attends to whom
    weights: np.ndarray  # (..., Hq, Lq, Lk): P
    lse: np.ndarray  # (..., Hq, Lq)
    sink_weights: np.ndarray  # (..., Hq, Lq)
    delta: np.ndarray  # (..., Hq, Lq)
    scale: np.floating
    capped: np.ndarray  # (..., Hq, Lq, Lk): the derivative of the softcap
    distance: np.ndarray  # (..., Lq, Lk): |p - j|

    def gradients(self):
        """Return the gradients of the elements of query, key, value, final scores, slopes and sinks, for each query
        head."""
        of_weights = self.grad_out @ self.value.swapaxes(-1, -2) - self.delta[..., None]
        of_scores = np.where(self.attended, self.weights * of_weights, 0)
        of_products = np.where(self.attended, of_scores * self.capped, 0) * self.scale
        backwards = self.attended.swapaxes(-1, -2)
        return Gradients(
            query=over_attended(of_products, self.attended, self.key),
            key=over_attended(of_products.swapaxes(-1, -2), backwards, self.query),
            value=over_attended(self.weights.swapaxes(-1, -2), backwards, self.grad_out),
            bias=of_scores,
            alibi_slopes=-(of_scores * self.distance).sum(axis=(-1, -2)),
            sinks=-(self.sink_weights * self.delta).sum(axis=-1),
        )


def backward_terms(dtype, layout, grad_out, query, key, value, out, lse, grad_lse, *, sinks=None, **modifiers):
    """Return what the gradients are made of. out and lse are computed if they are None."""
    grad_out, query, key, value, _ = heads_first(dtype, layout, grad_out, query, key, value)
    if out is None or lse is None:
        computed = attention(query, key, value, **modifiers, sinks=sinks, return_lse=True, dtype=dtype)
    out = computed[0] if out is None else heads_first(dtype, layout, out)[0]
    lse = computed[1] if lse is None else lse_heads_first(dtype, layout, lse, out)
    grad_lse = np.zeros_like(lse) if grad_lse is None else lse_heads_first(dtype, layout, grad_lse, out)

    scores = attention_weights(query, key, stage="biased", **modifiers, dtype=dtype)
    attended, empty = scores != -np.inf, lse == -np.inf
    scale, softcap = modifiers.get("scale"), modifiers.get("softcap")
    capped, distance, sink_weights = 1, 0, np.zeros_like(lse)
    if softcap is not None:
        t = attention_weights(query, key, stage="softcapped", **modifiers, dtype=dtype)
        capped = 1 - (t / dtype.type(softcap)) ** 2
    if modifiers.get("alibi_slopes") is not None:
        position, _, _ = positions_of(
            *scores.shape[-2:], *map(modifiers.get, ("query_offset", "query_lengths", "key_lengths"))
        )
        distance = np.abs(position - np.arange(scores.shape[-1])).astype(dtype)
    if sinks is not None:
        sink_weights = np.where(empty, 0, np.exp(np.asarray(sinks).astype(dtype)[:, None] - lse))
    return _Backward(
        grad_out, query, repeat_heads(key, query), repeat_heads(value, query), attended,
        weights=np.where(attended, np.exp(scores - lse[..., None]), 0),
        lse=lse,
        sink_weights=sink_weights,
        delta=np.where(attended.any(axis=-1), (grad_out * out).sum(axis=-1), 0) - np.where(empty, 0, grad_lse),
        scale=1 / np.sqrt(dtype.type(query.shape[-1])) if scale is None else dtype.type(scale),
        capped=capped,
        distance=distance,
    )  # fmt: skip


def in_given_shapes(gradients, layout, query, key, value, bias_grad, *, bias=None, alibi_slopes=None, sinks=None, **_):
    """Return the gradients of the caller's arrays, which may have fewer heads, and be broadcast."""
    without_heads = all(np.ndim(x) == 2 for x in (query, key, value))
    found = []
    for x, given in zip(gradients[:3], (query, key, value), strict=True):
        heads = 1 if without_heads else np.shape(given)[-2 if layout == "blhd" else -3]
        grouped = x.reshape(*x.shape[:-3], heads, x.shape[-3] // heads, *x.shape[-2:])
        found.append(_sum_to(np.shape(given), as_given(grouped.sum(axis=-3), -3, without_heads, layout)))
    for x, given in zip(gradients[3:], (bias if bias_grad else None, alibi_slopes, sinks), strict=True):
        found.append(None if given is None else _sum_to(np.shape(given), x))
    return Gradients(*found)


def _sum_to(shape, x):
    """Return x, summed over the axes along which an array of this shape was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(axis for axis, n in enumerate(shape) if n == 1), keepdims=True)


def over_attended(x, attended, rows):
    """Return x @ rows, where x is 0 for what is not attended. What is not finite makes NaN of all that it reaches."""
    found = x @ np.where(np.isfinite(rows), rows, 0)
    if np.isfinite(rows).all():
        return found
    return np.where(attended.astype(x.dtype) @ (~np.isfinite(rows)).astype(x.dtype) > 0, np.nan, found)


def lse_heads_first(dtype, layout, lse, out):
    """Return an lse in the caller's layout as (..., H, L), which `out` has already."""
    lse = np.asarray(lse).astype(dtype)
    return lse.reshape(out.shape[:-1]) if lse.ndim == 1 or layout == "bhld" else lse.swapaxes(-1, -2)
