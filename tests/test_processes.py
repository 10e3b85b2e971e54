"""Processes that end, and that fork, while calls are under way."""

import multiprocessing
import os
import signal
import threading
import warnings

import pytest
from helpers import python, same_bits, work

import cattn

NO_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
NO_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")

BEGINNING = """
import os, signal, sys, threading, time, warnings
import numpy as np
import cattn
warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12 warns of a fork beside threads
"""


# Python ends


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("callers", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8192, 64), (8, 12, 512, 64)], ids=str)
def test_daemon_threads_in_a_call(shape, callers, threads):
    """Each of them is ended, or held for ever, wherever it asks for the GIL; its workers are not."""
    code = f"""
x = np.ones({shape}, "f")
def call():
    while True:
        cattn.attention(x, x, x, num_threads={threads})
for _ in range({callers}):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(2):
        assert python(BEGINNING + code) == ""


def test_calls_after_python_began_to_end():
    """By functions of atexit, which run before and after our own, they heed signals; by a finalizer, they compute."""
    code = """
import atexit
atexit.register(lambda: call("earlier"))
import cattn
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
def call(name):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        cattn.attention(x, keys, keys, num_threads=3)
    except Stop:
        print(name)
signal.signal(signal.SIGALRM, stop)
x, keys = np.ones((2, 300, 64), "f"), np.broadcast_to(np.float32(1), (2, 10**8, 64))
class Last:
    def __del__(self, call=cattn.attention, x=x):
        print("finalizer", float(call(x, x, x, num_threads=3)[0, 0, 0]))
last = Last()
atexit.register(call, "later")
"""
    assert python(BEGINNING.replace("import cattn\n", "") + code) == "later\nearlier\nfinalizer 1.0\n"


# Signal handlers that fork during a call

CALLS = {
    "many rows": "x = normal((4, 3000, 64)); return dict(query=x, key=x, value=x)",
    "causal": "x = normal((30, 1000, 64)); return dict(query=x, key=x, value=x, causal=True)",
    "few rows": "x = windows(6_000_000); return dict(query=x[:, :4], key=x, value=x)",
    # The caller has done its part and waits for a worker.
    "waiting": "x = windows(2_000_000); y = np.broadcast_to(x, (2, *x.shape));"
    "return dict(query=y[:, :, :64], key=y, value=y, key_lengths=[200_000, 2_000_000])",
}
CALLING = """
def normal(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)
def windows(count):
    return np.lib.stride_tricks.sliding_window_view(normal(count + 63), 64)[None]
def call(threads):
    return cattn.attention(**arguments, return_lse=True, num_threads=threads)
def same(result):
    return all(x.tobytes() == y.tobytes() for x, y in zip(result, expected))
def fork(number, frame):
    global child
    if frame.f_code is not call.__code__:
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)
        in_child()
arguments = arguments()
expected = call(1)
child = None
signal.signal(signal.SIGALRM, fork)
"""
GOING_ON = """
result = None
try:
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    while child is None:
        result = call(THREADS)
except RuntimeError as error:
    result = error
if child == 0:
    result = repr(result) if isinstance(result, RuntimeError) else same(result)
    print(result, same(call(THREADS)), same(call(1)), flush=True)
    os._exit(0)
ended = os.waitpid(child, 0)[1]
print(ended, same(result), same(call(THREADS)))
"""


def fork_during(name, in_child="pass", threads=3):
    """What the child prints, and then its parent: the result of the interrupted call, and of others after it."""
    arguments = f"def arguments():\n    {CALLS[name]}\n"
    in_child = f"def in_child():\n    {in_child}\n"
    return python(BEGINNING + arguments + in_child + CALLING + GOING_ON.replace("THREADS", str(threads)))


@NO_FORK
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("name", CALLS)
def test_both_processes_end_the_call(name, threads):
    assert fork_during(name, threads=threads) == "True True True\n0 True True\n"


@NO_FORK
@pytest.mark.parametrize("name", ["many rows", "few rows"])
def test_the_child_calls_in_the_handler(name):
    assert fork_during(name, "assert same(call(3)) and same(call(2))") == "True True True\n0 True True\n"


@NO_FORK
@pytest.mark.parametrize("name", ["many rows", "few rows"])
def test_the_child_leaves_the_call(name):
    assert fork_during(name, "raise RuntimeError(1)") == "RuntimeError(1) True True\n0 True True\n"


@NO_FORK
def test_the_child_forks_in_the_handler():
    """Three processes end the call."""
    grandchild = "grandchild = os.fork(); assert grandchild == 0 or os.waitpid(grandchild, 0)[1] == 0"
    assert fork_during("few rows", grandchild) == "True True True\n" * 2 + "0 True True\n"


# Children forked between calls, and during calls of other threads


def in_a_fork(function):
    """Whether it returns something true in a forked child, in time."""
    with warnings.catch_warnings():  # Python >= 3.12 warns of a fork beside threads, which is what is tested here
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@NO_FORK
def test_fork_after_use():
    arrays = work()
    expected = cattn.attention(*arrays, num_threads=3)

    def works():
        return all(same_bits(cattn.attention(*arrays, num_threads=n), expected) for n in (3, 2, 4, 1))

    assert in_a_fork(works)
    assert in_a_fork(lambda: in_a_fork(works))
    assert in_a_fork(lambda: works() and in_a_fork(works) and works())
    assert works()


@NO_FORK
def test_fork_during_calls_of_others():
    arrays = work()
    expected = cattn.attention(*arrays, num_threads=3)
    ended = threading.Event()

    def works():
        return same_bits(cattn.attention(*arrays, num_threads=3), expected)

    def call():
        while not ended.is_set():
            works()

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        assert all(in_a_fork(works) for _ in range(30))
    finally:
        ended.set()
        for caller in callers:
            caller.join()


@NO_FORK
@NO_PROC
def test_fork_has_threads_of_its_own():
    cattn.attention(*work(), num_threads=3)

    def started():
        before = len(os.listdir("/proc/self/task"))
        cattn.attention(*work(), num_threads=3)
        return (before, len(os.listdir("/proc/self/task"))) == (1, 3)

    assert in_a_fork(started)


def called_by_multiprocessing(seed):
    return cattn.attention(*work(seed), num_threads=2)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_multiprocessing():
    expected = [called_by_multiprocessing(seed) for seed in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(called_by_multiprocessing, range(4)).get(60)
    assert all(map(same_bits, found, expected))
