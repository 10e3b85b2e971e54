"""Calls compute in floating-point modes of their own: to nearest, without traps, and with subnormal numbers as 0."""

import platform
import signal
import sys

import numpy as np
import pytest
from helpers import EVERY_TABLE, HERE, run_python
from registry import FUNCTIONS, IMPORT_MORE

import cattn

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
X86_64 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="sets the mode of x86-64 by its own instructions"
)


def counts_subnormals():
    """Return whether this thread's arithmetic does. Calls compute in a mode in which it does not."""
    return np.float32(1e-38) * np.float32(0.5) > 0


@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floating_point_mode_is_the_callers_after_a_call(rows, threads):
    query, keys = np.ones((8, rows, 64), np.float32), np.ones((8, 4096, 64), np.float32)
    cattn.attention(query, keys, keys, num_threads=threads)
    cattn.attention_weights(query, keys)
    assert counts_subnormals()


def call_in_modes(seeds, traps, names, **changes):
    done = run_python(HERE / "float_modes.py", seeds, traps, *names, seconds=600, **changes)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@X86_64
def test_all_modes():
    """The mode changes no bit, traps nothing, and is what it was after each call."""
    call_in_modes(2, "all", [name for name in FUNCTIONS if name not in IMPORT_MORE])


@X86_64
@pytest.mark.parametrize(
    "seeds, traps", [pytest.param(6, "all", marks=SLOW), pytest.param(4, "every", marks=EXHAUSTIVE)]
)
@EVERY_TABLE
def test_all_modes_of_all_tables(isa, seeds, traps):
    call_in_modes(seeds, traps, [name for name in FUNCTIONS if name not in IMPORT_MORE], CATTN_ISA=isa)


@X86_64
@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORT_MORE)
def test_all_modes_beside_other_libraries(name):
    """These compute a little themselves, and would trap."""
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    call_in_modes(4, "none", [name])


class Stop(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floating_point_mode_is_the_callers_in_signal_handlers(threads):
    seen = []

    def look(*_):
        seen.append(counts_subnormals())
        raise Stop

    query = np.zeros((8, 512, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 10**8, 64))
    before = signal.signal(signal.SIGPROF, look)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.03)
        with pytest.raises(Stop):
            cattn.attention(query, keys, keys, num_threads=threads)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert seen == [True]
    assert counts_subnormals()


def test_subnormal_values_come_within_the_smallest_normal_number():
    """They count as 0, in every type that has them."""
    for dtype in np.float32, np.float64:
        tiny = np.finfo(dtype).smallest_normal
        ones = np.ones((1, 20, 8), dtype)
        for rows in 1, 20:
            out = cattn.attention(ones[:, :rows], ones, ones * (tiny / 8))
            assert np.all(np.abs(out - tiny / 8) <= tiny)
            out = cattn.attention(ones[:, :rows], ones, ones * (tiny * 8))
            np.testing.assert_allclose(out, tiny * 8, rtol=1e-5)
