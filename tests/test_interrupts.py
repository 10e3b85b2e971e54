"""Signal handlers run within 0.2 s, whatever the work is; one that raises ends the call and leaves nothing behind."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from helpers import python, start_python

import cattn

BEGINNING = """
import signal
import numpy as np
import cattn
x = np.ones((3, 150, 64), np.float32)
"""
TIMERS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one process")
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupt(threads, rows):
    # Keys of stride 0 make minutes of work from no memory.
    code = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)   # whoever started this may have it ignored
query, key = np.ones((3, {rows}, 64), "f"), np.ones(64, "f")
keys = np.broadcast_to(key, (3, 10**8 if {rows} > 1 else 10**9, 64))
try:
    print("calling", flush=True)
    cattn.attention(query, keys, keys, num_threads={threads})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(cattn.attention(x, x, x, num_threads={threads}).mean())
"""
    with start_python(BEGINNING + code) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            assert process.stdout.readline() == "calling\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"  # not the end of the call
            assert process.stdout.readline() == "1.0\n"
        finally:
            watch.cancel()
            process.kill()


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


@pytest.fixture
def lateness():
    """How long after so many seconds of work of this process a call ends by Stop, in seconds of work too."""
    before = signal.signal(signal.SIGPROF, stop)

    def lateness(call, seconds):
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with pytest.raises(Stop):
            call()
        return time.process_time() - began - seconds

    yield lateness
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def in_time(lateness):
    """Whether a call ends in time in one of three tries: others at work on this processor may slow any of them, but a
    call that does not look for signals is late in each."""
    return lambda call, seconds, limit=0.06: any(lateness(call, seconds) < limit for _ in range(3))


@TIMERS
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupts_come_in_time_and_leave_nothing_behind(rows, lateness):
    query = np.zeros((8, rows, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 10**8, 64))
    late, sizes = 0, []
    for _ in range(20):
        late += lateness(lambda: cattn.attention(query, keys, keys, num_threads=1), 0.03) > 0.06
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    assert late <= 2
    assert sizes[-1] - sizes[4] < 2**20


@TIMERS
@pytest.mark.parametrize("call", ["tiny", "empty", "varlen", "weights", "worker"])
def test_interrupts_reach_many_small_tasks(call, in_time):
    many = np.broadcast_to(np.float32(1), (3_000_000, 1, 1, 1))
    one, none = np.ones((1, 1, 1), np.float32), np.ones((1, 0, 1), np.float32)
    indptr = np.arange(2_000_001)
    keys = np.broadcast_to(np.float32(1), (2, 1, 8_000_000, 64))
    functions = {
        "tiny": lambda: cattn.attention(many, one, one, num_threads=1),
        "empty": lambda: cattn.attention(np.broadcast_to(np.float32(1), (1, 30_000_000, 1)), none, none, num_threads=1),
        "varlen": lambda: cattn.attention_varlen(*[many[:2_000_000, ..., 0]] * 3, indptr, indptr, num_threads=1),
        "weights": lambda: cattn.attention_weights(many, one, num_threads=1),
        # The caller has done its part and waits for a worker.
        "worker": lambda: cattn.attention(keys[:, :, :64], keys, keys, key_lengths=[1000, 8_000_000], num_threads=2),
    }
    assert in_time(functions[call], 0.15)


@TIMERS
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["attention", "weights"])
def test_interrupts_reach_millions_of_tasks(call, threads, in_time):
    """However far the call has come: nothing is listed, nor left to be freed."""
    many = np.broadcast_to(np.float32(1), (30_000_000, 1, 1, 1))
    functions = {
        "attention": lambda: cattn.attention(many, many, many, num_threads=threads),
        "weights": lambda: cattn.attention_weights(many, many, num_threads=threads),
    }
    assert in_time(functions[call], 1.5, 0.06 * threads)


@TIMERS
@pytest.mark.parametrize("call", ["many rows", "few rows", "swapped bytes", "weights"])
def test_interrupts_reach_wide_values_and_large_heads(call, in_time):
    row = np.ones(4_000_000, np.float32)
    query, keys = np.broadcast_to(row[:16384], (1, 40, 16384)), np.broadcast_to(row[:16384], (1, 10_000, 16384))
    values = np.broadcast_to(row, (1, 10_000, row.size))
    swapped = np.broadcast_to(row.astype(">f4"), values.shape)
    functions = {
        "many rows": lambda: cattn.attention(query, keys, values, num_threads=1),
        "few rows": lambda: cattn.attention(query[:, :5], keys, values, num_threads=1),
        "swapped bytes": lambda: cattn.attention(swapped[:, :40, :16384], swapped[..., :16384], swapped, num_threads=1),
        "weights": lambda: cattn.attention_weights(query, keys, num_threads=1),
    }
    for seconds in (0.05, 0.3, 0.5):
        assert in_time(functions[call], seconds, 0.15)  # 128 MB of memory are freed


@TIMERS
@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("call", ["self_attention", "merge_attention", "list"])
def test_interrupts_reach_what_numpy_computes(call, seconds, in_time):
    x, weights = np.broadcast_to(np.float32(1), (20_000, 2048)), np.ones((2048, 2048), np.float32)
    outs, lses = [np.broadcast_to(np.float32(1), (40, 4_000_000))] * 8, [np.zeros(40)] * 8
    none, zeros = np.ones((0, 1, 1), np.float32), [0] * 8_000_000
    functions = {
        "self_attention": lambda: cattn.self_attention(x, weights, weights, weights, num_heads=16),
        "merge_attention": lambda: cattn.merge_attention(outs, lses),
        "list": lambda: cattn.attention_varlen(none, none, none, zeros, zeros),
    }
    # A product takes a block's time on each processor that NumPy uses: these are seconds of them all.
    assert in_time(functions[call], seconds, 0.4 if call == "self_attention" else 0.06)


@TIMERS
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 64])
def test_signal_handlers_that_call_again_and_again(rows, threads):
    code = f"""
query, keys = np.ones((2, {rows}, 64), np.float32), np.broadcast_to(np.ones(64, np.float32), (2, 10**8, 64))
def call(*_):
    try:
        cattn.attention(query, keys, keys, num_threads={threads})
    except RecursionError:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        raise
signal.signal(signal.SIGALRM, call)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
try:
    call()
except RecursionError as error:
    print(error)
print(cattn.attention(x, x, x, num_threads={threads}).mean())
"""
    assert python(BEGINNING + code) == "cattn: signal handlers that call cattn are nested too deeply\n1.0\n"
