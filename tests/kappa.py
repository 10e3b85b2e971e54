"""How wrong a result is, in units of what rounding excuses: `cattn.reference.error_bound` has the formula.

`USUAL` is what nearly all results stay below. Those beyond it have values of one sign in a column under nearly flat
weights: the terms of a sum are then alike, and may round the same way each time.
"""

import functools

import numpy as np

from cattn import reference
from cattn.reference._bounds import LSE_KAPPA, allowed, largest_kappa
from cattn.reference._bounds import Yardstick as Measure

USUAL = 2  # in the place of the promised 4


def attended(case):
    """Return who attends to whom as (..., Hq, Lq, Lk), or less where it broadcasts."""
    without_value = {name: x for name, x in case.items() if name not in ("value", "value_scale")}
    return reference.attention_weights(**without_value, stage="biased") != -np.inf


def kappa(out, case):
    """Return the largest κ of an output. It is infinity if a row that attends to nothing is not exactly 0."""
    return Yardstick(case).kappa(out)


class Yardstick(Measure):
    """Hold the reference result of a case, a dict of the arguments of `attention`, and what errors are measured by."""

    def __init__(self, case):
        with np.errstate(all="ignore"):
            super().__init__(**case)
        self.case = case
        empty = ~attended(case).any(axis=-1)
        if self.lse.ndim == 1:
            empty = empty.reshape(-1)
        elif case.get("layout") == "blhd" and empty.ndim > 1:
            empty = empty.swapaxes(-1, -2)
        self.empty = np.broadcast_to(empty, self.lse.shape)

    def kappa(self, out):
        """Return the largest κ of an output."""
        return largest_kappa(self.each(out))

    def each(self, out):
        """Return the κ of each output. It is infinity where a row that attends to nothing is not exactly 0."""
        assert out.shape == self.out.shape
        with np.errstate(all="ignore"):
            return np.where(self.empty[..., None] & (out != 0), np.inf, self.kappas(out))

    def kappa_lse(self, lse):
        """Return the largest κ of logarithms of sums."""
        assert lse.shape == self.lse.shape
        with np.errstate(all="ignore"):
            return largest_kappa(self.lse_kappas(lse))

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
        """The largest κ that is promised for out."""
        return allowed(self.kappa(self.numpy[0]))

    @functools.cached_property
    def lse_bound(self):
        """The largest κ that is promised for lse."""
        return allowed(self.kappa_lse(self.numpy[1]), LSE_KAPPA)


def assert_accurate(out, case, lse=None):
    """Check the promise of accuracy, and the result's shape and type with it."""
    yardstick = Yardstick(case)
    assert out.dtype == yardstick.stored
    yardstick.check(out, lse)
