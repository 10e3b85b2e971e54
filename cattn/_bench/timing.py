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

from cattn._bench.load import OutsideLoad

MIN_ROUNDS, MAX_ROUNDS = 3, 51
MAX_REFUSED = 6  # This is how many rounds of a case are measured again at most.
MAX_OUTSIDE_LOAD = 0.1  # This is in processors. Ticks of 10 ms tell no less of a round.
MAX_OVER_ONE_THREAD = 1.3
REST_SECONDS = 0.15  # OpenBLAS's idle workers spin for 2^28 cycles, which takes 90 ms.


def format_seconds(seconds: float) -> str:
    """Return the time with three digits, in the unit that leaves no exponent."""
    texts = (f"{seconds * count:.3g} {unit}" for unit, count in (("µs", 1e6), ("ms", 1e3), ("s", 1)))
    return next((text for text in texts if "e+" not in text), f"{seconds:.0f} s")


class Timer(Protocol):
    """Describe what can be timed: `timeit.Timer`, or whatever else calls something so often and returns the seconds."""

    def timeit(self, number: int) -> float: ...


@dataclass(frozen=True)
class Timings:
    """Hold the seconds of a call by engine. Sample i of every engine is from round i."""

    samples: Mapping[str, tuple[float, ...]]
    refused: int = 0  # disturbed rounds, which are not among the samples
    outside_load: float | None = None  # processors that others kept busy, the mean of the rounds; None: not known

    @property
    def rounds(self) -> int:
        return min(map(len, self.samples.values()), default=0)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> float:
        """Return the upper quartile of an engine's seconds over the lower one, of two rounds at least."""
        fast, _, slow = statistics.quantiles(self.samples[name], n=4, method="inclusive")
        return slow / fast

    def speedup(self, name: str, over: str) -> float:
        """Return how many times as fast `name` is as `over`: the median of the rounds' ratios."""
        return statistics.median(b / a for a, b in zip(self.samples[name], self.samples[over], strict=True))


def measure(
    timers: Mapping[str, Timer],
    *,
    rounds: int | None = None,
    seconds: float = 2.0,
    sample_seconds: float = 0.01,
    one_thread: Mapping[str, float] | None = None,
) -> Timings:
    """Time several engines in interleaved rounds, so that a busy minute meets them all alike.

    A sample repeats a call for about `sample_seconds` and takes the mean. The rounds, unless given, are as many as fit
    in `seconds`. Each engine first gets a rest, in which its neighbour's idle workers stop spinning (with one thread,
    too: behind JAX, a call that reads much memory took 1.7 times as long), and a sample that is not counted, which
    wakes its own and the processor: loops of many short instructions take 10 ms to get up to speed after a rest.

    A disturbed round is measured again, up to `MAX_REFUSED` times: one in which other programs were busy, or an engine
    took over `MAX_OVER_ONE_THREAD` times its seconds in `one_thread`. Threads that wait for each other by spinning do
    that where another program has one of their processors. Once no more rounds are refused, disturbed ones are kept.
    """
    one_thread = one_thread or {}
    numbers = {name: _calls_per_sample(timer, sample_seconds) for name, timer in timers.items()}
    kept: list[dict[str, float]] = []
    loads: list[float | None] = []
    started = time.perf_counter()
    for tried in itertools.count():
        done, elapsed = len(kept), time.perf_counter() - started
        if done >= MIN_ROUNDS and rounds is None and (done == MAX_ROUNDS or elapsed * (1 + 1 / tried) > seconds):
            break
        if done == rounds:
            break
        outside, taken = OutsideLoad(), {}
        for name in _shuffled(list(timers), tried):
            time.sleep(REST_SECONDS)
            timers[name].timeit(numbers[name])
            taken[name] = timers[name].timeit(numbers[name]) / numbers[name]
        load = outside.processors()
        slowed = any(is_slowed(taken[name] / one_thread[name]) for name in taken if name in one_thread)
        if tried - done < MAX_REFUSED and (is_busy(load) or slowed):
            continue
        kept.append(taken)
        loads.append(load)
    known = [load for load in loads if load is not None]
    return Timings(
        {name: tuple(taken[name] for taken in kept) for name in timers},
        refused=tried - len(kept),
        outside_load=statistics.mean(known) if known else None,
    )


def is_busy(outside_load: float | None) -> bool:
    """Return whether others used so much of the processors that a round or a case measures no engine."""
    return outside_load is not None and outside_load > MAX_OUTSIDE_LOAD


def is_slowed(over_one_thread: float | None) -> bool:
    """Return whether an engine took so much longer than with one thread that something held its threads up."""
    return over_one_thread is not None and over_one_thread > MAX_OVER_ONE_THREAD


def _calls_per_sample(timer: Timer, sample_seconds: float) -> int:
    """Return how many calls take about `sample_seconds`. Trying them warms the engine up."""
    timer.timeit(1)
    number = 1
    while (taken := timer.timeit(number)) < sample_seconds / 2:
        number = max(2 * number, int(number * min(10.0, sample_seconds / max(taken, 1e-9))))
    return max(1, round(number * sample_seconds / taken))


def _shuffled(names: list[str], round_number: int) -> list[str]:
    """Return the names in another order in each round, so that nobody always runs beside the same idle workers."""
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
