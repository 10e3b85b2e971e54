"""Calls every function of tests/registry.py, for sanitize.sh: `python tools/sanitized_calls.py calls SEEDS`.

calls SEEDS : each function on so many seeds, and on an eighth as many larger problems, which threads share. Results are
    checked.
twice SEEDS : the same, but each call is made twice, and its results are compared byte by byte, so that memcheck sees
    bytes that nobody wrote. They are not checked, because memcheck computes long doubles as doubles. The types take
    turns.
threads SECONDS : 6 threads make calls, small and larger, and compare the bits with those of one thread alone. Meanwhile
    the main thread makes larger calls that signals interrupt, whose handlers make calls, too.

The functions that take tensors are left out: they compute by the same calls, and would bring PyTorch along.
"""

import itertools
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import cases
import numpy as np
from registry import FUNCTIONS, copied, fingerprint

import cattn

CALLERS = 6
LARGER = {"work": (1 << 21, 1 << 25)}  # multiplications: threads share such a call
CALLED = [function for function in FUNCTIONS.values() if function.needs in (None, "dask") and function.is_there]


def call_all(seeds, each, **size):
    """Let `each` call every function once for each seed, and return how many calls that were."""
    return sum(each(function, seed, **size) for function in CALLED for seed in seeds)


def checked(function, seed, **size):
    with cattn.num_threads(1 + seed % 3):
        arguments = function.arguments(seed, **size)
        function.check(arguments, function.call(**arguments))
    return 1


def twice(function, seed, **size):
    arguments = function.arguments(seed, **size, types=(list(cases.TYPES)[seed % len(cases.TYPES)],))
    with cattn.num_threads(1 + seed % 3):
        once, again = (fingerprint(function.call(**copied(arguments))) for _ in range(2))
    assert once == again, f"{function.name}, seed {seed}"
    return 2


class Interrupted(Exception):
    pass


def interrupted_calls(until):
    """Make calls until then. Return how many, and how many of them a signal ended."""
    random, small = np.random.default_rng(0), FUNCTIONS["attention"].arguments(2)

    def interrupt(*_):
        cattn.attention(**small)
        raise Interrupted

    query, key = random.standard_normal((2, 1, 8, 1, 64), dtype=np.float32)
    keys = np.broadcast_to(key, (1, 8, 1_000_000, 64))
    calls = interrupts = 0
    signal.signal(signal.SIGALRM, interrupt)
    while time.monotonic() < until:
        rows = np.broadcast_to(query, (1, 8, int(random.choice([1, 40])), 64))
        calls += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.05))
            cattn.attention(rows, keys, keys, num_threads=3)
        except Interrupted:
            interrupts += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return calls, interrupts


def concurrent_calls(seconds):
    """Make calls from many threads at once, each of which must give the bits that one thread gave. Return how many, and
    what interrupted_calls returns. A failure in one of them ends the program."""
    problems, calls, failures = [], itertools.count(), []
    for function, size in itertools.product(CALLED, ({}, LARGER)):
        arguments = function.arguments(1, **size)
        alone = copied(arguments)
        with cattn.num_threads(1):
            result = function.call(**alone)
        function.check(alone, result)
        problems.append((function, arguments, fingerprint(result)))
    until = time.monotonic() + seconds

    def make_calls(number):
        random = np.random.default_rng(number)
        try:
            while time.monotonic() < until:
                function, arguments, expected = problems[random.integers(len(problems))]
                with cattn.num_threads(int(random.integers(1, 5))):
                    found = fingerprint(function.call(**copied(arguments)))
                assert found == expected, function.name
                next(calls)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=make_calls, args=[number]) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    interrupted = interrupted_calls(until)
    for thread in threads:
        thread.join()
    assert not failures
    assert interrupted[1] > 0
    return next(calls), *interrupted


def main(what, number):
    began, number = time.monotonic(), int(number)
    isa = cattn._kernel.isa()
    if what == "threads":
        calls, interrupted, interrupts = concurrent_calls(number)
        done = f"{calls} calls by {CALLERS} threads, and {interrupted} of which {interrupts} were interrupted"
    else:
        each = {"calls": checked, "twice": twice}[what]
        calls = call_all(range(number), each)
        calls += call_all(range(max(1, number // 8)), each, **LARGER)
        done = f"{calls} calls of {len(CALLED)} functions"
    print(f"{isa}: {done}, {time.monotonic() - began:.0f} s", flush=True)


main(*sys.argv[1:])
