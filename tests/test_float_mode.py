"""Calls compute in a floating-point mode of their own: what is below the smallest normal number counts as 0."""

import signal

import numpy as np
import pytest

import cattn


def counts_subnormals():
    """Whether this thread's arithmetic does: calls compute in a mode in which it does not."""
    return np.float32(1e-38) * np.float32(0.5) > 0


@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floating_point_mode_is_the_callers_after_a_call(rows, threads):
    query, keys = np.ones((8, rows, 64), np.float32), np.ones((8, 4096, 64), np.float32)
    cattn.attention(query, keys, keys, num_threads=threads)
    cattn.attention_weights(query, keys)
    assert counts_subnormals()


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
