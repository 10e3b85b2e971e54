"""Calls of every public function whose results are known, bit for bit.

Tests make them at the same time, again and again, or while signals arrive.
"""

import dataclasses
import random
import time
from typing import Any

import numpy as np
from registry import FUNCTIONS, SMALLER, Function, arrays_of, fingerprint, with_arrays

import cattn

SHARED_WORK = (2_200_000, 10_000_000)  # multiplications: more than one thread is given alone


@dataclasses.dataclass(frozen=True)
class KnownCall:
    """A call of `function`, which took `seconds` alone and on one thread, and gave `expected` then."""

    function: Function
    seed: int
    arguments: dict[str, Any]
    expected: Any
    seconds: float

    def __str__(self):
        return f"{self.function.name}, seed {self.seed}"

    def is_right(self):
        """Make the call, and return whether its result has the expected bits. Several threads may do so at once: they
        read the same arrays, and what is written to is new each time."""
        return _fingerprint(self.function, self.arguments) == self.expected

    def refuses(self):
        """Make the call with an array of no axes in the place of its first one, and return whether that is an error."""
        place, array = next(arrays_of(self.arguments))
        try:
            _fingerprint(self.function, with_arrays(self.arguments, {place: np.zeros((), array.dtype)}))
        except (TypeError, ValueError, RuntimeError, IndexError):  # transformers' models always give four axes
            return True
        return False


def _fingerprint(function, arguments):
    written = {place: x.copy() for place, x in arrays_of(arguments) if place[0] in function.outputs}
    return fingerprint(function.call(**with_arrays(arguments, written)))


def known_calls(seeds, work=SMALLER):
    """Return a list of calls: one for each seed and each of the functions that is there."""
    calls = []
    for function in FUNCTIONS.values():
        for seed in seeds if function.is_there else ():
            arguments = function.arguments(seed, work=work)
            with cattn.num_threads(1):
                _fingerprint(function, arguments)  # the first call of a function may have to import a module
                began = time.perf_counter()
                expected = _fingerprint(function, arguments)
                seconds = time.perf_counter() - began
            calls.append(KnownCall(function, seed, arguments, expected, seconds))
    return calls


def endless(calls, seed):
    """Yield calls at random for ever. Each takes about as much of the time as any other, but those of less than 0.1 ms
    are equally likely."""
    weights = [1 / max(call.seconds, 1e-4) for call in calls]
    draw = random.Random(seed)
    while True:
        yield from draw.choices(calls, weights, k=100)
