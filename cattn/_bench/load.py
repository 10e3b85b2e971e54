"""The load of other programs: how much of the processors they use while this one measures."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

PROC = Path("/proc")


class OutsideLoad:
    """Measure what others use from the moment that this object is made. Only Linux tells it."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), _seconds_of_others()

    def processors(self) -> float | None:
        """Return how many processors others have kept busy since, on average, among those that this process may use;
        None where the system does not say."""
        after, elapsed = _seconds_of_others(), time.perf_counter() - self._started
        if self._before is None or after is None:
            return None
        return max(0.0, (after - self._before) / elapsed)


def _seconds_of_others() -> float | None:
    """Return the processor time, spent on the processors that this process may use, that neither this process nor its
    workers took. Time that a hypervisor gave to its other guests counts too."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        lines = (line.split() for line in (PROC / "stat").read_text(encoding="utf-8").splitlines())
        ticks = [list(map(int, words[1:9])) for words in lines if words and words[0] in usable]
    except (OSError, ValueError):
        return None
    if len(ticks) < len(usable) or not any(map(any, ticks)):  # Some containers have other numbers, or zeros.
        return None
    # The columns are user, nice, system, idle, iowait, irq, softirq and steal.
    busy = sum(sum(columns) - sum(columns[3:5]) for columns in ticks)
    return (busy - _ticks_of_workers()) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _ticks_of_workers() -> int:
    """Return the processor time of the processes that this one has started and that still run."""
    ticks = 0
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            words = (PROC / str(worker.pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])  # utime and stime
    return ticks
