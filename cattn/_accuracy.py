"""The promise of accuracy in numbers. `cattn.reference.attention` says what they mean.

The selftest, the benchmark and the tests read them here, and a test holds the documents to them.
"""

KAPPA = 4  # the largest error, in units of what rounding excuses, unless it is larger in plain NumPy
TIMES_NUMPY, PLUS = 1.5, 0.5  # then so many times NumPy's, and this
LSE_KAPPA = 8  # the same of logarithms of sums
# What rounded weights may cost with bfloat16 queries, of the weighted mean distance of the values from the output.
ROUNDED_WEIGHTS = (1 + 2.0**-6) * 2.0**-8


def allowed(kappa_of_numpy, least=KAPPA):
    """Return the largest κ that is promised where plain NumPy has this one."""
    return max(least, TIMES_NUMPY * kappa_of_numpy + PLUS)
