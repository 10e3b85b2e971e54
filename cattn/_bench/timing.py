"""Several engines timed side by side, on as many processors as they may have threads."""

import contextlib
import itertools
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

MIN_ROUNDS, MAX_ROUNDS = 3, 51
REST_SECONDS = 0.15  # OpenBLAS's idle workers spin for 2^28 cycles, 90 ms


def format_seconds(seconds: float) -> str:
    """With three digits, in the unit that leaves no exponent."""
    texts = (f"{seconds * count:.3g} {unit}" for unit, count in (("µs", 1e6), ("ms", 1e3), ("s", 1)))
    return next((text for text in texts if "e+" not in text), f"{seconds:.0f} s")


class Timer(Protocol):
    """What can be timed: `timeit.Timer`, or whatever else calls something that often and says how long it took."""

    def timeit(self, number: int) -> float: ...


@dataclass(frozen=True)
class Timings:
    """Seconds a call, by engine; sample i of every engine is from round i."""

    samples: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        return min(map(len, self.samples.values()), default=0)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> float:
        """How many times as long as its fast rounds, of two at least, its slow ones took: between the quartiles."""
        fast, _, slow = statistics.quantiles(self.samples[name], n=4, method="inclusive")
        return slow / fast

    def speedup(self, name: str, over: str) -> float:
        """How many times as fast `name` is as `over`: the median of the rounds' ratios."""
        return statistics.median(b / a for a, b in zip(self.samples[name], self.samples[over], strict=True))


def measure(
    timers: Mapping[str, Timer],
    *,
    rounds: int | None = None,
    seconds: float = 2.0,
    sample_seconds: float = 0.01,
) -> Timings:
    """Time several engines in interleaved rounds, so that a busy minute meets them all alike.

    A sample repeats a call for about `sample_seconds` and takes the mean. The rounds, unless given, are as many as fit
    in `seconds`. Each engine first gets a rest, in which its neighbour's idle workers stop spinning (with one thread,
    too: behind JAX, a call that reads much memory took 1.7 times as long), and a sample that is not counted, which
    wakes its own and the processor: loops of many short instructions take 10 ms to get up to speed after a rest.
    """
    numbers = {name: _calls_per_sample(timer, sample_seconds) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in timers}
    started = time.perf_counter()
    for done in itertools.count():
        elapsed = time.perf_counter() - started
        if done >= MIN_ROUNDS and rounds is None and (done == MAX_ROUNDS or elapsed * (1 + 1 / done) > seconds):
            break
        if done == rounds:
            break
        for name in _shuffled(list(timers), done):
            time.sleep(REST_SECONDS)
            timers[name].timeit(numbers[name])
            samples[name].append(timers[name].timeit(numbers[name]) / numbers[name])
    return Timings({name: tuple(values) for name, values in samples.items()})


def _calls_per_sample(timer: Timer, sample_seconds: float) -> int:
    """Calls that take about `sample_seconds`; trying them warms the engine up."""
    timer.timeit(1)
    number = 1
    while (taken := timer.timeit(number)) < sample_seconds / 2:
        number = max(2 * number, int(number * min(10.0, sample_seconds / max(taken, 1e-9))))
    return max(1, round(number * sample_seconds / taken))


def _shuffled(names: list[str], round_number: int) -> list[str]:
    """Another order in each round: who runs beside whose idle workers should not always be the same."""
    return random.Random(round_number).sample(names, len(names))


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """Keep this process on `threads` processors and the libraries it has loaded to as many threads.

    Libraries imported inside the block see the processors; whoever starts its workers early must be started in it.
    """
    with contextlib.ExitStack() as stack:
        if hasattr(os, "sched_setaffinity"):
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, sorted(before)[-threads:])
            stack.callback(os.sched_setaffinity, 0, before)
        with contextlib.suppress(ImportError):
            import threadpoolctl

            stack.enter_context(threadpoolctl.threadpool_limits(threads))
        yield
