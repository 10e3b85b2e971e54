"""Show how well the tasks of a call keep many cores busy: `python benchmarks/cores.py`, on a machine with few of them.

One thread does the tasks that a call makes for so many threads, and measures each. A thread of the pool begins with the
tasks that are `threads` apart, and goes on with those that others have not come to. The one thread does what the first
would begin with, then what the second would, so that caches hold about what they would hold there. After that, the
pool's order is played through. The result is the share of the time in which threads wait for the last one.

Nothing here is a measurement of many cores. Left out are the bandwidth of the memory, which cores share, their clocks,
which are lower if all compute, NUMA, and the time it takes to wake threads. Where a core would have to read keys and
values faster than 4 GB/s, the case is marked, because the memory may then be the limit instead.
"""

import argparse
import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rich
from rich.table import Table

import cattn
from cattn import _kernel

THREADS = 2, 4, 8, 16, 32, 64, 128, 192
READING = 4.0  # GB/s a core
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """Describe a call: its name, (B, Hq, Hkv, Lq, Lk, D, Dv), and its modifiers."""

    name: str
    shape: tuple[int, int, int, int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> list[np.ndarray]:
        """Return random query, key and value."""
        batch, heads, kv_heads, queries, keys, size, value_size = self.shape
        random = np.random.default_rng(0)
        shapes = (heads, queries, size), (kv_heads, keys, size), (kv_heads, keys, value_size)
        return [random.standard_normal((batch, *shape), np.float32) for shape in shapes]

    @property
    def bytes(self) -> int:
        """Return the bytes of all keys and values."""
        batch, _, kv_heads, _, keys, size, value_size = self.shape
        return 4 * batch * kv_heads * keys * (size + value_size)


CAUSAL = {"causal": True, "query_offset": "end"}
CASES = [
    Case("bert-128", (1, 12, 12, 128, 128, 64, 64)),
    Case("bert-512", (1, 12, 12, 512, 512, 64, 64)),
    Case("bert-512 × 8", (8, 12, 12, 512, 512, 64, 64)),
    Case("1k, 8 heads", (1, 8, 8, 1024, 1024, 64, 64)),
    Case("2k, 8 heads", (1, 8, 8, 2048, 2048, 64, 64)),
    Case("2k, 8 heads, D 128", (1, 8, 8, 2048, 2048, 128, 128)),
    Case("2k, 8 heads, causal", (1, 8, 8, 2048, 2048, 64, 64), CAUSAL),
    Case("2k, 32 heads over 8, causal", (1, 32, 8, 2048, 2048, 128, 128), CAUSAL),
    Case("2k, 1 head", (1, 1, 1, 2048, 2048, 64, 64)),
    Case("4k, 4 heads, window", (1, 4, 4, 4096, 4096, 64, 64), {"window": (511, 0)}),
    Case("8k, 1 head", (1, 1, 1, 8192, 8192, 64, 64)),
    Case("8k, 1 head, causal", (1, 1, 1, 8192, 8192, 64, 64), CAUSAL),
    Case("8k, 2 heads, D 256", (1, 2, 2, 8192, 8192, 256, 256)),
    Case("prefill of 512 at 8k", (1, 8, 8, 512, 8192, 128, 128), CAUSAL),
    Case("prefill of 512 at 32k, 8 over 1", (1, 8, 1, 512, 32768, 128, 128), CAUSAL),
    Case("cross, 64 on 16k", (1, 4, 4, 64, 16384, 64, 64)),
    Case("cross, 300 on 1,500", (1, 6, 6, 300, 1500, 64, 64)),
    Case("multi-query 32k", (1, 32, 1, 1, 32768, 128, 128)),
    Case("multi-query 128k", (1, 32, 1, 1, 131072, 128, 128)),
    Case("16 over 1 at 32k", (1, 16, 1, 1, 32768, 128, 128)),
    Case("64 over 4 at 16k", (1, 64, 4, 1, 16384, 128, 128)),
    Case("96 over 8 at 8k", (1, 96, 8, 1, 8192, 128, 128)),
    Case("draft of 16 at 32k", (1, 8, 1, 16, 32768, 128, 128), CAUSAL),
    Case("draft of 4 at 32k, 32 over 8", (1, 32, 8, 4, 32768, 128, 128), CAUSAL),
    Case("latent at 8k", (1, 128, 1, 1, 8192, 576, 512)),
    Case("latent at 32k", (1, 128, 1, 1, 32768, 576, 512)),
    Case("decode-gqa-4k", (1, 32, 8, 1, 4096, 128, 128)),
    Case("decode-gqa-32k", (1, 32, 8, 1, 32768, 128, 128)),
    Case("decode-mha-4k", (1, 32, 32, 1, 4096, 128, 128)),
    Case("decode, batch of 16", (16, 32, 8, 1, 2048, 128, 128)),
    Case("decode, one head at 128k", (1, 1, 1, 1, 131072, 128, 128)),
]


def task_times(case: Case, threads: int, rounds: int = ROUNDS) -> list[np.ndarray]:
    """Return the seconds of each task, and of each joining of partial results: the least of some rounds."""
    arrays, measured = case.arrays(), []
    for _ in range(rounds):
        measured.append(_kernel.task_times(*arrays, num_threads=threads, **case.options))
    return [np.min(times, axis=0) * 1e-9 for times in zip(*measured, strict=True)]


def makespan(times: np.ndarray, threads: int) -> float:
    """Return when the last of these tasks is done, if threads take them in the pool's order."""
    threads = min(threads, len(times))
    left = [list(range(seat, len(times), threads))[::-1] for seat in range(threads)]
    free = [(0.0, seat) for seat in range(threads)]
    end = 0.0
    while free:
        now, thread = heapq.heappop(free)
        seats = (left[(thread + i) % threads] for i in range(threads))
        seat = next((tasks for tasks in seats if tasks), None)
        if seat is None:
            end = max(end, now)
        else:
            heapq.heappush(free, (now + times[seat.pop()], thread))
    return end


def idle_share(times: list[np.ndarray], threads: int) -> float:
    """Return the share of the time of `threads` threads in which they have nothing to do."""
    ends = sum(makespan(part, threads) for part in times if len(part))
    return 1 - sum(part.sum() for part in times) / (threads * ends)


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--case", help="only cases with this in their name", default="")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    table = Table("case", "ms on one thread", *map(str, options.threads))
    table.title = "tasks, idle share; * = over 4 GB/s a core"
    with cattn.num_threads(1):
        for case in (case for case in CASES if options.case in case.name):
            cells, total = [], 0.0
            for threads in options.threads:
                times = task_times(case, threads, options.rounds)
                total = sum(part.sum() for part in times)
                idle = idle_share(times, threads)
                speed = case.bytes / (total / (1 - idle)) * 1e-9
                cells.append(f"{len(times[0])}, {idle:.0%}{'*' if speed > READING else ''}")
            table.add_row(case.name, f"{total * 1e3:.2f}", *cells)
    rich.print(table)


if __name__ == "__main__":
    main()
