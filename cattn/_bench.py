"""The cases that cattn is measured at, and the way it is measured.

A `Case` is a problem as data; `make_inputs` draws its arrays. `measure` times several engines side by side.
"""

import contextlib
import functools
import itertools
import os
import random
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

SOFTCAP = 30.0
WINDOW = 256
MIN_ROUNDS, MAX_ROUNDS = 3, 51
REST_SECONDS = 0.15  # OpenBLAS's idle workers spin for 2^28 cycles, 90 ms

Modifier = Literal["causal", "window", "mask", "bias", "alibi", "softcap", "sinks"]
MODIFIERS: tuple[Modifier, ...] = ("causal", "window", "mask", "bias", "alibi", "softcap", "sinks")


@dataclass(frozen=True)
class Case:
    """One problem: (batch, heads, queries, head_size) against (batch, kv_heads, keys, head_size).

    `lengths` are the key lengths of the batch entries, or the sequence lengths where `kind` is "packed".
    A "window" is causal and lets a query see the last `WINDOW` keys, its own included.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    dtype: str = "float32"
    modifiers: frozenset[Modifier] = frozenset()
    lengths: tuple[int, ...] = ()
    kind: Literal["attention", "packed", "self_attention"] = "attention"

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    @property
    def causal(self) -> bool:
        return bool(self.modifiers & {"causal", "window"})

    @property
    def is_plain(self) -> bool:
        """Plain attention over whole arrays, at most causal: what every engine has an operation for."""
        return self.kind == "attention" and not self.lengths and self.modifiers <= {"causal"}

    @property
    def pairs(self) -> int:
        """The (query, key) pairs that attend, over all heads; half of all when causal."""
        if self.kind == "packed":
            return self.heads * sum(length * length for length in self.lengths)
        if self.lengths:
            return self.heads * self.queries * sum(self.lengths)
        if "window" in self.modifiers:
            return self.batch * self.heads * sum(min(row + 1, WINDOW) for row in range(self.queries))
        pairs = self.batch * self.heads * self.queries * self.keys
        return pairs // 2 if self.causal else pairs

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products; exponentials are not counted."""
        flops = 4 * self.pairs * self.head_size
        if self.kind == "self_attention":
            flops += 4 * 2 * self.batch * self.queries * (self.heads * self.head_size) ** 2
        return flops

    @property
    def counts_time(self) -> bool:
        """Whether people ask for its time rather than its rate: tiny problems and decoding."""
        return self.queries == 1 or self.flops < 1_000_000


def _case(name: str, batch: int, heads: str, queries: int, keys: int, head_size: int, *modifiers: Modifier, **fields):
    query_heads, kv_heads = map(int, heads.split("/"))
    return Case(name, batch, query_heads, kv_heads, queries, keys, head_size, modifiers=frozenset(modifiers), **fields)


def _seeded_lengths(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Seeded lengths; the longest one is there."""
    lengths = np.random.default_rng(count).integers(shortest, longest + 1, count)
    return (*map(int, lengths[1:]), longest)


CORE_CASES = (
    _case("seed", 1, "1/1", 3, 3, 3),
    _case("tiny", 1, "1/1", 16, 16, 64),
    _case("minilm", 1, "12/12", 32, 32, 32),
    _case("bert-128", 1, "12/12", 128, 128, 64),
    _case("vit", 1, "12/12", 197, 197, 64),
    _case("batch", 8, "12/12", 128, 128, 64),
    _case("bert-512", 1, "12/12", 512, 512, 64),
    _case("long-2k-d64", 1, "8/8", 2048, 2048, 64),
    _case("long-2k-d128", 1, "8/8", 2048, 2048, 128),
    _case("long-2k-d128-causal", 1, "8/8", 2048, 2048, 128, "causal"),
    _case("long-8k", 1, "1/1", 8192, 8192, 64),
    _case("odd", 2, "5/5", 77, 333, 80),
    _case("decode-4k", 1, "32/32", 1, 4096, 128),
    _case("decode-gqa-4k", 1, "32/8", 1, 4096, 128),
    _case("decode-gqa-32k", 1, "32/8", 1, 32768, 128),
    _case("cross", 1, "8/8", 1, 1500, 64),
)

EXTRA_CASES = (
    *(
        _case(f"{name}-{dtype}", 1, heads, queries, keys, head_size, dtype=dtype)
        for (name, heads, queries, keys, head_size), dtype in itertools.product(
            (("bert-128", "12/12", 128, 128, 64), ("bert-512", "12/12", 512, 512, 64)),
            ("float16", "bfloat16", "float64"),
        )
    ),
    *(
        _case(f"{name}-{dtype}", 1, heads, queries, keys, head_size, dtype=dtype)
        for (name, heads, queries, keys, head_size), dtype in itertools.product(
            (("long-2k-d128", "8/8", 2048, 2048, 128), ("decode-gqa-4k", "32/8", 1, 4096, 128)),
            ("float16", "bfloat16"),
        )
    ),
    _case("decode-batch-128", 16, "32/8", 1, 128, 128),
    _case("decode-batch-512", 16, "32/8", 1, 512, 128),
    _case("decode-batch-ragged", 16, "32/8", 1, 512, 128, lengths=_seeded_lengths(16, 128, 512)),
    _case("packed", 64, "12/12", 128, 128, 64, lengths=_seeded_lengths(64, 8, 128), kind="packed"),
    _case("self-attention", 1, "12/12", 128, 128, 64, kind="self_attention"),
    *(
        _case(f"{name}-{modifier}", 1, heads, length, length, head_size, modifier)
        for (name, heads, length, head_size), modifier in itertools.product(
            (("minilm", "12/12", 32, 32), ("bert-512", "12/12", 512, 64), ("long-2k-d64", "8/8", 2048, 64)), MODIFIERS
        )
    ),
    _case("long-16k-window", 1, "1/1", 16384, 16384, 64, "window"),
)

CASES: Mapping[str, Case] = {case.name: case for case in CORE_CASES + EXTRA_CASES}


# Inputs


@dataclass(frozen=True)
class Inputs:
    """The arrays of a case and what else cattn's function takes.

    "attention": query, key and value (B, H, L, D). "packed": (total, H, D), with `indptr`. "self_attention": query, key
    and value are all the embeddings (L, H·D), with `weights` for query, key, value and output.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    options: Mapping[str, object] = field(default_factory=dict)
    indptr: np.ndarray | None = None
    weights: tuple[np.ndarray, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that an engine cannot avoid reading."""
        extras = (value for value in self.options.values() if isinstance(value, np.ndarray))
        if self.weights:
            return sum(array.nbytes for array in (self.query, *self.weights))
        keys = self.options.get("key_lengths")
        attended = 1.0 if keys is None else float(np.mean(keys)) / self.key.shape[-2]
        return self.query.nbytes + int(attended * (self.key.nbytes + self.value.nbytes)) + sum(x.nbytes for x in extras)


def numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Standard normal arrays for a case, the same for the same seed."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(numpy_dtype(case.dtype), copy=False)

    if case.kind == "packed":
        indptr = np.concatenate(([0], np.cumsum(case.lengths)))
        total = int(indptr[-1])
        query = normal(total, case.heads, case.head_size)
        key, value = (normal(total, case.kv_heads, case.head_size) for _ in range(2))
        return Inputs(query, key, value, indptr=indptr)
    if case.kind == "self_attention":
        size = case.heads * case.head_size
        x = normal(case.queries, size)
        return Inputs(x, x, x, weights=tuple(normal(size, size) / x.dtype.type(size**0.5) for _ in range(4)))
    query = normal(case.batch, case.heads, case.queries, case.head_size)
    key, value = (normal(case.batch, case.kv_heads, case.keys, case.head_size) for _ in range(2))
    return Inputs(query, key, value, _options(case, rng))


def _options(case: Case, rng: np.random.Generator) -> dict[str, object]:
    options: dict[str, object] = {}
    if "causal" in case.modifiers:
        options["causal"] = True
    if "window" in case.modifiers:
        options["window"] = (WINDOW - 1, 0)
    if "mask" in case.modifiers:
        mask = rng.random((case.queries, case.keys)) < 0.75
        mask[:, 0] = True
        options["mask"] = mask
    if "bias" in case.modifiers:
        options["bias"] = rng.standard_normal((case.queries, case.keys), np.float32)
    if "alibi" in case.modifiers:
        options["alibi_slopes"] = np.exp2(-8.0 * np.arange(1, case.heads + 1) / case.heads).astype(np.float32)
    if "softcap" in case.modifiers:
        options["softcap"] = SOFTCAP
    if "sinks" in case.modifiers:
        options["sinks"] = rng.standard_normal(case.heads, np.float32)
    if case.lengths:
        options["key_lengths"] = np.array(case.lengths)
    return options


def mask_block(case: Case, inputs: Inputs, rows: slice, keys: slice) -> np.ndarray | None:
    """Which keys each row may attend to, as booleans that broadcast to (B, H, rows, keys); None for all of them."""
    row, key = np.arange(case.queries)[rows, None], np.arange(case.keys)[keys]
    parts = []
    if case.causal:
        parts.append(key <= row)
    if "window" in case.modifiers:
        parts.append(key > row - WINDOW)
    if "mask" in inputs.options:
        parts.append(inputs.options["mask"][rows, keys])
    if "key_lengths" in inputs.options:
        parts.append(key < inputs.options["key_lengths"][:, None, None, None])
    return functools.reduce(np.logical_and, parts) if parts else None


def bias_block(case: Case, inputs: Inputs, rows: slice, keys: slice) -> np.ndarray | None:
    """What is added to the scores, as an array that broadcasts to (B, H, rows, keys); None for nothing."""
    if "bias" in inputs.options:
        return inputs.options["bias"][rows, keys]
    if "alibi_slopes" in inputs.options:
        distance = np.abs(np.arange(case.queries)[rows, None] - np.arange(case.keys)[keys])
        return -inputs.options["alibi_slopes"][:, None, None] * distance.astype(np.float32)
    return None


def additive_block(case: Case, inputs: Inputs, rows: slice = slice(None), keys: slice = slice(None)):
    """Bias and mask as one float32 array, -inf where masked; None for neither."""
    bias, mask = bias_block(case, inputs, rows, keys), mask_block(case, inputs, rows, keys)
    if mask is None:
        return bias
    return np.where(mask, np.float32(0) if bias is None else bias, np.float32(-np.inf))


def split_heads(array: np.ndarray, heads: int) -> np.ndarray:
    return array.reshape(len(array), heads, -1).swapaxes(0, 1)


def join_heads(array: np.ndarray) -> np.ndarray:
    return array.swapaxes(0, 1).reshape(array.shape[1], -1)


def row_blocks(case: Case, queries: int, keys: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, each with the keys that a causal mask or a window leaves to it."""
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first = max(0, start - WINDOW + 1) if "window" in case.modifiers else 0
        yield slice(start, stop), slice(first, stop if case.causal else keys)


def cattn_call(case: Case, inputs: Inputs, num_threads: int) -> Callable[[], np.ndarray]:
    """cattn's answer to a case. The thread count is set for the process, as a user's program would."""
    import cattn

    cattn.set_num_threads(num_threads)
    arrays = (inputs.query, inputs.key, inputs.value)
    if case.kind == "packed":
        return functools.partial(cattn.attention_varlen, *arrays, inputs.indptr, inputs.indptr)
    if case.kind == "self_attention":
        return functools.partial(cattn.self_attention, inputs.query, *inputs.weights, num_heads=case.heads)
    return functools.partial(cattn.attention, *arrays, **inputs.options)


# Timing


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


def measure_calls(calls: Mapping[str, Callable[[], object]], **options) -> Timings:
    """`measure` for functions of no arguments."""
    return measure({name: timeit.Timer(call) for name, call in calls.items()}, **options)


# Threads


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
