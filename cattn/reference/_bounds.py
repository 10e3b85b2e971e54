"""This file says how far a result may be from the specification, and what errors are measured by."""

import functools

import numpy as np

from .._calls import forwarding
from .._gradients import Gradients
from ._backward import backward_terms, in_given_shapes, lse_heads_first, over_attended
from ._forward import as_given, attention, attention_weights, heads_first, repeat_heads, times, weighted_sum
from ._maxsim import maxsim

# The numbers of the promise, which `error_bound` explains.
KAPPA, LSE_KAPPA = 4, 8
TIMES_NUMPY, PLUS = 1.5, 0.5
ROUNDED_WEIGHTS = (1 + 2.0**-6) * 2.0**-8


@forwarding(attention, without=("dtype",))
def error_bound(query, key, value, *, return_lse=False, **modifiers):
    r"""Compute how far each output of `cattn.attention` may be from that of `attention`.

    Parameters
    ----------
    query : array_like, (..., Hq, Lq, D)
        As in `attention`. Its type is that of the output.
    key : array_like, (..., Hkv, Lk, D)
        As in `attention`.
    value : array_like, (..., Hkv, Lk, Dv)
        As in `attention`.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, key_scale, value_scale, layout : optional
        As in `attention`.
    return_lse : bool
        Also return the bound of lse.

    Returns
    -------
    bound : ndarray, (..., Hq, Lq, Dv)
        The largest difference that is allowed, for each output.
    lse_bound : ndarray, ``bound.shape[:-1]``
        The same for lse. It is returned only with `return_lse`.

    See Also
    --------
    attention : Compute the result that the bound is about.

    Notes
    -----
    An output differs from that of `attention` by at most

    .. math:: \kappa\,(\varepsilon\,(1 + A_i) \sum_j p_j |v_j| + \text{the smallest normal number})

    Here :math:`p_j` are the weights, :math:`\varepsilon` is that of the type that is computed in (float64 or float32),
    and :math:`A_i = \max_j |scale| \sum_c |q_c k_{jc}| + |bias_{ij}| + slope\,|p_i - j|`, at least :math:`|sink|`, over
    the keys whose weight is at least the smallest normal number. :math:`\kappa` is 4, or 1.5 times that of plain NumPy
    in the same type plus 0.5 if that is more. Plain NumPy has its largest :math:`\kappa` where nearly equal terms are
    summed, which may all round the same way. These results may differ by more:

    - A float16 or bfloat16 output may be off by one more unit in its last place.
    - Where query, key and value are bfloat16, :math:`(1 + 2^{-6})\,u \sum_j p_j |v_j - out|` over the keys is added to
      the bound, with :math:`u = 2^{-8}`, half of bfloat16's epsilon. The reason is that weights may be rounded to
      bfloat16, to nearest. They are then divided by the sum of the rounded weights, so that what all values share
      cancels. Equal values come out as they are, unless there is a sink or something underflows.
    - Weights, and products of weight and value, are lost where they are below the smallest normal number.

    lse differs by at most :math:`\kappa\,\varepsilon\,(1 + A_i + |lse|)`, with 8 in the place of 4. Its bound is wider
    because an error that all scores of a row share cancels in the output only.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 4, 100, 16), dtype=np.float32)
    >>> error = cattn.attention(query, key, value) - cattn.reference.attention(query, key, value)
    >>> bool(np.all(np.abs(error) <= cattn.reference.error_bound(query, key, value)))
    True
    """
    with np.errstate(all="ignore"):
        yardstick = Yardstick(query, key, value, **modifiers)
        numpy = attention(query, key, value, **modifiers, return_lse=True, dtype=yardstick.arithmetic)
        kappa, lse_kappa = largest_kappa(yardstick.kappas(numpy[0])), largest_kappa(yardstick.lse_kappas(numpy[1]))
        bound = allowed(kappa) * yardstick.unit + yardstick.excused(yardstick.stored)
        lse_bound = allowed(lse_kappa, LSE_KAPPA) * yardstick.lse_unit
    return (bound, lse_bound) if return_lse else bound


def maxsim_error_bound(query, document, *, document_lengths=None, document_indptr=None, query_lengths=None):
    r"""Compute how far each score of `cattn.maxsim` may be from that of `maxsim`.

    Parameters
    ----------
    query : array_like, (Lq, D) or (Q, Lq, D)
        As in `maxsim`. Its type decides which type is computed in.
    document : array_like, (N, Ld, D) or (all tokens, D)
        As in `maxsim`.
    document_lengths, document_indptr, query_lengths : optional
        As in `maxsim`.

    Returns
    -------
    ndarray, (N,) or (Q, N)
        The largest difference that is allowed, for each score.

    See Also
    --------
    maxsim : Compute the scores that the bound is about.

    Notes
    -----
    A score differs from that of `maxsim` by at most

    .. math:: \kappa\,\sum_i (\varepsilon \max_j \sum_c |q_{ic} d_{jc}| + D \cdot \text{the smallest normal number})

    Here :math:`\varepsilon` is that of the type that is computed in (float64 or float32), and :math:`\kappa` is 4, or
    1.5 times that of plain NumPy in the same type plus 0.5 if that is more. The products of half types are exact.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((5, 16), dtype=np.float32)
    >>> documents = rng.standard_normal((3, 40, 16), dtype=np.float32)
    >>> error = cattn.maxsim(query, documents) - cattn.reference.maxsim(query, documents)
    >>> bool(np.all(np.abs(error) <= cattn.reference.maxsim_error_bound(query, documents)))
    True
    """
    lengths = {"document_lengths": document_lengths, "document_indptr": document_indptr, "query_lengths": query_lengths}
    query, document = np.asarray(query), np.asarray(document)
    arithmetic = np.dtype(np.float64 if query.dtype.newbyteorder("=") == np.float64 else np.float32)
    wide = np.longdouble if arithmetic == np.float64 else np.float64
    info = np.finfo(arithmetic)
    tokens = query.shape[-2] if query_lengths is None else query_lengths
    tokens = np.broadcast_to(tokens, query.shape[:-2] or 1).reshape(*query.shape[:-2], 1)
    with np.errstate(all="ignore"):
        expected = maxsim(query, document, **lengths, dtype=wide)
        magnitude = maxsim(np.abs(query.astype(wide)), np.abs(document.astype(wide)), **lengths, dtype=wide)
        unit = info.eps * np.maximum(magnitude, 0) + tokens * query.shape[-1] * info.smallest_normal
        error = distance_between(maxsim(query, document, **lengths, dtype=arithmetic), expected)
        kappas = np.where(error == 0, 0, error / unit)
    return allowed(largest_kappa(kappas)) * unit


def allowed(kappa_of_numpy, least=KAPPA):
    """Return the largest κ that is promised where plain NumPy has this one."""
    return max(least, TIMES_NUMPY * kappa_of_numpy + PLUS)


class Yardstick:
    """Hold the results of one call, `out` and `lse`, and what their errors are measured by.

    `magnitude` is Σ_j p_j |v_j|. `unit` and `lse_unit` are the units of κ. `rounded_weights` and `lost` are what an
    output may be off by besides: the weights of bfloat16 queries may be rounded, and what is below the smallest normal
    number may be lost.
    """

    def __init__(
        self, query, key, value, *, layout="bhld", scale=None, bias=None, alibi_slopes=None, softcap=None, sinks=None,
        key_scale=None, value_scale=None, **masks,
    ):  # fmt: skip
        key, value = times(key, key_scale), times(value, value_scale)
        self.stored = np.asarray(query).dtype.newbyteorder("=")
        self.arithmetic = np.dtype(np.float64 if self.stored == np.float64 else np.float32)
        wide = np.longdouble if self.stored == np.float64 else np.float64
        rounds_weights = {np.asarray(x).dtype.name for x in (query, key)} == {"bfloat16"}
        eps, tiny = np.finfo(self.arithmetic).eps, np.finfo(self.arithmetic).smallest_normal
        query, key, value, without_heads = heads_first(wide, layout, query, key, value)
        modifiers = dict(scale=scale, bias=bias, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, **masks)
        out, lse = attention(query, key, value, **modifiers, return_lse=True)
        weights = attention_weights(query, key, **modifiers, dtype=np.float64)

        attended, largest = _largest_terms(query, key, weights, tiny, sinks, scale, bias, alibi_slopes, masks)
        magnitude = weighted_sum(weights, attended, repeat_heads(np.abs(value), query))
        unit = eps * (1 + largest[..., None]) * magnitude + tiny
        lse_unit = eps * (1 + largest + np.where(np.isfinite(lse), np.abs(lse), 0))
        rounded = lost = np.zeros_like(out)
        if rounds_weights:
            rounded = ROUNDED_WEIGHTS * _over_keys(lambda p, v, o: p * np.abs(v - o), weights, value, out)
        most = weights.shape[-1] * tiny * np.abs(value).max(initial=1, where=np.isfinite(value))
        if not np.all((unit > most) | (unit == tiny)):  # otherwise there is next to nothing to lose
            lost = _over_keys(
                lambda p, v, _: np.where((p < tiny) | (p * np.abs(v) < tiny), p * np.abs(v), 0), weights, value, out
            )
        of_outputs = (as_given(x, -3, without_heads, layout) for x in (out, magnitude, unit, rounded, lost))
        self.out, self.magnitude, self.unit, self.rounded_weights, self.lost = of_outputs
        self.lse, self.lse_unit = (as_given(x, -2, without_heads, layout) for x in (lse, lse_unit))

    def excused(self, stored):
        """Return what an output of this type may be off by, beyond κ units."""
        last_place = 0
        if stored.itemsize == 2:
            last_place = np.abs(np.spacing(self.out.astype(stored)).astype(self.out.dtype))
        return self.rounded_weights + self.lost + last_place

    def kappas(self, out):
        """Return the κ of each output."""
        error = distance_between(out, self.out)
        return np.where(error == 0, 0, np.maximum(error - self.excused(out.dtype), 0) / self.unit)

    def lse_kappas(self, lse):
        """Return the κ of each lse."""
        return distance_between(lse, self.lse) / self.lse_unit


class GradientYardstick:
    """Hold the gradients of one call, and what their errors are measured by.

    `expected` are the gradients. Where `out` and `lse` are given, the formulas are exact for these. `units` are the
    units of κ: the sums of the absolute terms of the same formulas, with the error of a weight in the place of each
    weight. That error is ε (1 + A_i + |lse_i|) P_ij + the smallest normal number, with the A_i of `error_bound`.
    """

    def __init__(
        self, grad_out, query, key, value, out=None, lse=None, *, grad_lse=None, layout="bhld", scale=None, bias=None,
        alibi_slopes=None, softcap=None, sinks=None, **masks,
    ):  # fmt: skip
        stored = np.asarray(query).dtype.newbyteorder("=")
        self.arithmetic = np.dtype(np.float64 if stored == np.float64 else np.float32)
        wide = np.dtype(np.longdouble if stored == np.float64 else np.float64)
        eps, tiny = np.finfo(self.arithmetic).eps, np.finfo(self.arithmetic).smallest_normal
        modifiers = dict(scale=scale, bias=bias, alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, **masks)
        of_inputs = functools.partial(in_given_shapes, layout=layout, query=query, key=key, value=value, bias_grad=True)
        with np.errstate(all="ignore"):
            terms = backward_terms(wide, layout, grad_out, query, key, value, out, lse, grad_lse, **modifiers)
            self.expected = of_inputs(terms.gradients(), **modifiers)

            _, largest = _largest_terms(
                terms.query, terms.key, terms.weights, tiny, sinks, scale, bias, alibi_slopes, masks
            )
            error = eps * (1 + largest + np.where(np.isfinite(terms.lse), np.abs(terms.lse), 0))
            grad_out, value = np.abs(terms.grad_out), np.abs(terms.value)
            of_out = grad_out * over_attended(terms.weights, terms.attended, value)
            grad_lse = 0 if grad_lse is None else lse_heads_first(wide, layout, np.abs(grad_lse), of_out)
            errors = terms._replace(
                grad_out=grad_out,
                query=np.abs(terms.query),
                key=np.abs(terms.key),
                value=value,
                weights=np.where(terms.attended, error[..., None] * terms.weights + tiny, 0),
                sink_weights=error * terms.sink_weights + tiny,
                delta=-of_out.sum(axis=-1) - grad_lse,
                scale=np.abs(terms.scale),
                capped=2 - terms.capped,  # the terms of 1 - (t / softcap)², both of them positive
            )
            units = of_inputs(errors.gradients(), **modifiers)
        self.units = Gradients(*(None if unit is None else np.abs(unit) + tiny for unit in units))

    def kappas(self, found):
        """Return the κ of each gradient. One more unit in the last place of a half type is excused."""
        return Gradients(*map(self._kappas, found, self.expected, self.units))

    @staticmethod
    def _kappas(found, expected, unit):
        if found is None or expected is None:
            return None
        with np.errstate(all="ignore"):
            rounded = expected.astype(found.dtype)
            same = (found == rounded) | ~(np.isfinite(found) | np.isfinite(expected))
            excused = np.abs(np.spacing(rounded).astype(expected.dtype)) if found.dtype.itemsize == 2 else 0
            error = np.abs(found.astype(expected.dtype) - expected)
            return np.where(same, 0, np.maximum(error - excused, 0) / unit)


def _largest_terms(query, key, weights, tiny, sinks, scale, bias, alibi_slopes, masks):
    """Return who attends to whom, and the largest sum of the absolute terms of a score in each row, over the keys whose
    weight is at least the smallest normal number."""
    # ALiBi's terms are negative, and -inf still masks.
    scale, bias, slopes = (None if x is None else np.asarray(x) for x in (scale, bias, alibi_slopes))
    modifiers = masks | {
        "scale": None if scale is None else np.abs(scale),
        "bias": None if bias is None else np.where(bias == -np.inf, bias, np.abs(bias)),
        "alibi_slopes": None if slopes is None else -np.abs(slopes),
    }
    terms = attention_weights(np.abs(query), np.abs(key), stage="biased", **modifiers, dtype=np.float64)
    largest = np.where(weights >= tiny, terms, 0).max(axis=-1, initial=0)
    if sinks is not None:
        sinks = np.abs(np.asarray(sinks, np.float64))[:, None]
        largest = np.maximum(largest, np.where(np.isfinite(sinks), sinks, 0))
    return terms != -np.inf, largest


def largest_kappa(kappas):
    """Return the largest κ, which is infinity if a number is NaN and should not be."""
    largest = kappas.max(initial=0)
    return np.inf if np.isnan(largest) else float(largest)


def distance_between(found, expected):
    """Return how far the numbers are from those expected. It is 0 where both are NaN, or the same infinity."""
    found = found.astype(expected.dtype)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return np.where(same, 0, np.abs(found - expected))


def _over_keys(term, weights, value, out):
    """Return the sum of term(weight, value, out) over the keys, for each output. All arrays have their heads first."""
    value, total = repeat_heads(value, out), np.zeros_like(out)
    for column in range(out.shape[-1]):
        terms = term(weights, value[..., None, :, column], out[..., column, None])
        total[..., column] = np.where(weights > 0, terms, 0).sum(axis=-1)
    return total
