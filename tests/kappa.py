"""How wrong a result is, in units of what rounding excuses.

    κ = |out - reference| / (eps · Σ_j p_j|v_j| · (1 + A_i) + smallest normal)
    A_i = max over j of |scale|·Σ_c |q_c k_jc| + |bias_ij| + slope·|p_i - j|, and at least |sink|

over the keys j whose weight p_j is at least the smallest normal number: others have no influence on the row. The
bound, whose numbers stand in cattn/_accuracy.py, is what the same formulas in NumPy reach in the same precision, with
half as much again, and at least 4: where the values of a column have one sign under nearly flat weights, the terms of
a sum are alike, and may round the same way each time. Few other results are beyond USUAL. Results stored in a half
type may be one unit in the last place further off, and those of bfloat16 queries by (1 + 2⁻⁶)·2⁻⁸·Σ_j p_j |v_j - out|
besides: their weights may be rounded.
A weight, or a product of weight and value, that is below the smallest normal number may be missing.
Logarithms of sums are held to a bound of their own: an error that all scores of a row share cancels in the output only.
"""

import functools

import numpy as np

from cattn import reference
from cattn._accuracy import LSE_KAPPA, ROUNDED_WEIGHTS, allowed

USUAL = 2  # in the place of the promised 4


def attended(case):
    """(..., Hq, Lq, Lk), or less where it broadcasts: who attends to whom."""
    return reference.attention_weights(**_without_value(case), stage="biased") != -np.inf


def kappa(out, case):
    """The largest κ of an output; infinity where a row that attends to nothing is not exactly 0."""
    return Yardstick(case).kappa(out)


def bound(case):
    """The largest κ that is promised for a case, a dict of the arguments of `attention`."""
    return Yardstick(case).bound


class Yardstick:
    """The reference result of a case, and the unit in which to state the distance of another one from it."""

    def __init__(self, case):
        self.case = case
        self.stored = np.asarray(case["query"]).dtype.newbyteorder("=")
        self.arithmetic = np.dtype(np.float64 if self.stored == np.float64 else np.float32)
        self.eps, self.tiny = np.finfo(self.arithmetic).eps, np.finfo(self.arithmetic).smallest_normal
        wider = np.longdouble if self.arithmetic == np.float64 else np.float64

        self.out, self.lse = reference.attention(**case, dtype=wider, return_lse=True)
        magnitude, _ = reference.attention(**{**case, "value": np.abs(case["value"])}, return_lse=True)
        condition = self._condition()
        with np.errstate(over="ignore"):
            self.unit = self.eps * magnitude * (1 + condition[..., None]) + self.tiny
            self.lse_unit = self.eps * (1 + condition + np.where(np.isfinite(self.lse), np.abs(self.lse), 0))
        who = attended(case)
        self.keys = who.shape[-1]
        self.empty = np.broadcast_to(self._rows(~who.any(axis=-1)), self.lse.shape)

    def kappa(self, out):
        """The largest κ of an output."""
        return self._largest(self.each(out))

    def each(self, out):
        """κ of each output beyond what half types and underflow excuse; infinity where a row that attends to nothing is
        not exactly 0."""
        assert out.shape == self.out.shape
        error = np.abs(out.astype(self.out.dtype) - self.out) - self._last_place(out.dtype) - self.lost
        if self.stored.name == "bfloat16":
            error -= self.rounded_weights
        return np.where(self.empty[..., None] & (out != 0), np.inf, np.maximum(error, 0) / self.unit)

    def kappa_lse(self, lse):
        """The same for the logarithms of the sums, in units of eps · (1 + A_i + |lse|)."""
        assert lse.shape == self.lse.shape
        infinite = np.isinf(self.lse)
        if np.any(lse[infinite] != self.lse[infinite]):
            return np.inf
        finite = ~infinite
        return self._largest(np.abs(lse[finite] - self.lse[finite]) / self.lse_unit[finite])

    def _last_place(self, dtype):
        """One unit of it, for each output, in a half type."""
        if dtype.itemsize != 2:
            return 0
        with np.errstate(all="ignore"):
            return np.abs(np.spacing(self.out.astype(dtype)).astype(self.out.dtype))

    @functools.cached_property
    def rounded_weights(self):
        """How far off weights that are rounded to bfloat16, and divided by their own sum, may put each output: each is
        off by at most 2⁻⁸ of itself, and what all values share cancels."""
        return ROUNDED_WEIGHTS * self._over_keys(lambda weights, value, out: weights * np.abs(value - out))

    @functools.cached_property
    def lost(self):
        """What lies below the smallest normal number counts as 0: a weight, its product with a value."""
        most = self.keys * self.tiny * np.abs(self.case["value"]).astype(self.out.dtype).max(initial=1)
        if np.all((self.unit > most) | (self.unit == self.tiny)):  # there is next to nothing to lose
            return 0

        def product(weights, value, _):
            products = weights * np.abs(value)
            return np.where((weights < self.tiny) | (products < self.tiny), products, 0)

        return self._over_keys(product)

    def _over_keys(self, term):
        """Σ_j term(p_j, v_j, out) for each output, a column at a time."""
        weights, value, out = reference.attention_weights(**_without_value(self.case)), self.case["value"], self.out
        is_blhd = self.case.get("layout") == "blhd" and out.ndim > 2
        if is_blhd:
            value, out = value.swapaxes(-2, -3), out.swapaxes(-2, -3)
        value = value.astype(out.dtype)
        if out.ndim > 2:
            value = np.repeat(value, out.shape[-3] // value.shape[-3], axis=-3)
        total = np.empty_like(out)
        for column in range(out.shape[-1]):
            total[..., column] = term(weights, value[..., None, :, column], out[..., column, None]).sum(axis=-1)
        return total.swapaxes(-2, -3) if is_blhd else total

    def check(self, out, lse=None):
        """Fail unless out, in query's type or in float32, and lse are as accurate as is promised. Return whether out is
        beyond what is usual."""
        found = self.kappa(out)
        assert found <= self.bound, f"κ {found:.3g} exceeds {self.bound:.3g}"
        if lse is not None:
            assert lse.dtype == self.arithmetic
            found_lse = self.kappa_lse(lse)
            assert found_lse <= self.lse_bound, f"κ {found_lse:.3g} of lse exceeds {self.lse_bound:.3g}"
        return found > USUAL and found > allowed(self.kappa(self.numpy[0]), USUAL)

    @functools.cached_property
    def numpy(self):
        """out and lse of the same formulas in plain NumPy, in the same precision."""
        out, lse = reference.attention(**self.case, dtype=self.arithmetic, return_lse=True)
        assert out.dtype == lse.dtype == self.arithmetic
        return out, lse

    @functools.cached_property
    def bound(self):
        return allowed(self.kappa(self.numpy[0]))

    @functools.cached_property
    def lse_bound(self):
        return allowed(self.kappa_lse(self.numpy[1]), LSE_KAPPA)

    @staticmethod
    def _largest(errors):
        largest = errors.max(initial=0)
        return np.inf if np.isnan(largest) else float(largest)

    def _condition(self):
        """A_i, in the shape of lse."""
        case = _without_value(self.case)
        query, key = np.abs(case["query"]).astype(np.float64), np.abs(case["key"]).astype(np.float64)
        scale = None if case.get("scale") is None else abs(case["scale"])
        terms = reference.attention_weights(query, key, layout=case.get("layout", "bhld"), scale=scale, stage="scores")
        if case.get("alibi_slopes") is not None:
            only_alibi = {**case, "query": 0 * query, "key": 0 * key, "bias": None, "softcap": None}
            distances = reference.attention_weights(**only_alibi, stage="biased")
            terms = terms + np.where(np.isfinite(distances), np.abs(distances), 0)
        if case.get("bias") is not None:
            terms = terms + np.abs(np.asarray(case["bias"]).astype(np.float64))
        counts = reference.attention_weights(**case) >= self.tiny
        condition = np.where(counts, terms, 0).max(axis=-1, initial=0)
        if case.get("sinks") is not None:
            sinks = np.abs(np.asarray(case["sinks"]).astype(np.float64))
            condition = np.maximum(condition, np.where(np.isfinite(sinks), sinks, 0)[:, None])
        return np.broadcast_to(self._rows(condition), self.lse.shape)

    def _rows(self, x):
        """(..., Hq, Lq) in the layout of lse."""
        if self.lse.ndim == 1:
            return x.reshape(-1)
        return x.swapaxes(-1, -2) if self.case.get("layout") == "blhd" and x.ndim > 1 else x


def _without_value(case):
    return {name: x for name, x in case.items() if name != "value"}


def assert_accurate(out, case, lse=None):
    """The promise of accuracy, and the result's shape and type with it."""
    yardstick = Yardstick(case)
    assert out.dtype == yardstick.stored
    yardstick.check(out, lse)
