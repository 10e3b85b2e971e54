"""The cases that cattn is measured at, and the way it is measured.

A `Case` is a problem as data; `make_inputs` draws its arrays, `expected` computes its answer in wide arithmetic and
`Expected.check` judges a result by it. `measure` times several engines side by side. `numpy_call` is attention as a
good NumPy programmer writes it: what every speed-up is counted against.
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
    *(_case(f"bert-512-{modifier}", 1, "12/12", 512, 512, 64, modifier) for modifier in MODIFIERS),
    *(_case(f"long-2k-d64-{modifier}", 1, "8/8", 2048, 2048, 64, modifier) for modifier in MODIFIERS),
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


# The answer


@dataclass(frozen=True)
class Check:
    """How far a result is from the answer."""

    kappa: float  # the promised measure: the error in units of eps · Σ p|v| · (1 + A), less half types' own rounding
    wrong: bool  # the error is beyond what the storage type's precision explains


@dataclass(frozen=True)
class Expected:
    """The answer of a case in wide arithmetic, and the magnitude Σ p|v| · (1 + A) that each error is measured by."""

    out: np.ndarray
    magnitude: np.ndarray
    dtype: np.dtype

    def check(self, result: np.ndarray) -> Check:
        wide = np.asarray(result).astype(self.out.dtype)
        if wide.shape != self.out.shape or not np.isfinite(wide).all():
            return Check(np.inf, True)
        error = np.abs(wide - self.out)
        storage = _eps(self.dtype)
        arithmetic = min(storage, float(np.finfo(np.float32).eps))
        rounding = 0.0 if storage == arithmetic else storage * np.abs(self.out)
        kappa = np.max(np.maximum(error - rounding, 0) / (arithmetic * self.magnitude), initial=0.0)
        return Check(float(kappa), bool(np.any(error > 32 * storage * self.magnitude)))


def _eps(dtype: np.dtype) -> float:
    if dtype.kind == "V":
        return 2.0**-7  # bfloat16 is no type of NumPy's own
    return float(np.finfo(dtype).eps)


def expected(case: Case, inputs: Inputs) -> Expected:
    """The answer: in float64, for float64 in longdouble where that is wider."""
    dtype = inputs.query.dtype
    wide = np.longdouble if dtype == np.float64 else np.float64
    query, key, value = (array.astype(wide) for array in (inputs.query, inputs.key, inputs.value))
    if case.kind == "packed":
        out, magnitude = np.empty_like(query), np.empty_like(query)
        for start, stop in itertools.pairwise(inputs.indptr):
            parts = (array[start:stop].swapaxes(0, 1)[None] for array in (query, key, value))
            answer = _attend(case, inputs, *parts)
            out[start:stop], magnitude[start:stop] = (array[0].swapaxes(0, 1) for array in answer)
    elif case.kind == "self_attention":
        weights = [array.astype(wide) for array in inputs.weights]
        heads = [_split_heads(query @ weight, case.heads)[None] for weight in weights[:3]]
        sizes = [_split_heads(np.abs(query) @ np.abs(weight), case.heads)[None] for weight in weights[:3]]
        context, magnitude = (_join_heads(array[0]) for array in _attend(case, inputs, *heads, sizes))
        out, magnitude = context @ weights[3], magnitude @ np.abs(weights[3])
    else:
        out, magnitude = _attend(case, inputs, query, key, value)
    return Expected(out, magnitude, dtype)


def _split_heads(array: np.ndarray, heads: int) -> np.ndarray:
    return array.reshape(len(array), heads, -1).swapaxes(0, 1)


def _join_heads(array: np.ndarray) -> np.ndarray:
    return array.swapaxes(0, 1).reshape(array.shape[1], -1)


def _attend(case: Case, inputs: Inputs, query, key, value, sizes=None) -> tuple[np.ndarray, np.ndarray]:
    """Output and magnitude, head by head and in blocks of rows. `sizes` bound |query|, |key| and |value|."""
    sizes = sizes or [np.abs(array) for array in (query, key, value)]
    out, magnitude = np.empty_like(query), np.empty_like(query)
    batch, heads, length, _ = query.shape
    group = heads // key.shape[1]
    sinks = inputs.options.get("sinks")
    for rows, keys in _blocks(case, length, key.shape[2], 512):
        shape = (batch, heads, rows.stop - rows.start, keys.stop - keys.start)
        bias = mask = None
        if case.kind == "attention":
            bias, mask = bias_block(case, inputs, rows, keys), mask_block(case, inputs, rows, keys)
        bias = None if bias is None else np.broadcast_to(bias, shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        for entry, head in np.ndindex(batch, heads):
            q, q_size = (array[entry, head, rows] for array in (query, sizes[0]))
            k, k_size = (array[entry, head // group, keys] for array in (key, sizes[1]))
            v, v_size = (array[entry, head // group, keys] for array in (value, sizes[2]))
            scores = case.scale * (q @ k.T)
            size = case.scale * (q_size @ k_size.T)
            if "softcap" in case.modifiers:
                scores = SOFTCAP * np.tanh(scores / SOFTCAP)
            if bias is not None:
                scores += bias[entry, head]
                size += np.abs(bias[entry, head])
            if mask is not None:
                scores[~mask[entry, head]] = -np.inf
                size[~mask[entry, head]] = 0
            top, largest = scores.max(-1, keepdims=True), size.max(-1, keepdims=True)
            if sinks is not None:
                top, largest = np.maximum(top, sinks[head]), np.maximum(largest, abs(sinks[head]))
            weights = np.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            if sinks is not None:
                total += np.exp(sinks[head] - top)
            weights /= total
            out[entry, head, rows] = weights @ v
            magnitude[entry, head, rows] = (weights @ v_size) * (1 + largest)
    return out, magnitude


def _blocks(case: Case, queries: int, keys: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, each with the keys that a causal mask or a window leaves to it."""
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first = max(0, start - WINDOW + 1) if "window" in case.modifiers else 0
        yield slice(start, stop), slice(first, stop if case.causal else keys)


# NumPy


class NumpyAttention:
    """Attention over (..., H, L, D) with NumPy's own operations, in place where they can be.

    The scores of all heads are one product (a group's queries share their keys), the scale goes onto the queries and
    the division onto the output. What is added to the scores is prepared. `scratch` holds the scores.
    """

    def __init__(self, query, key, value, scale, out, scratch, additive=None, softcap=None, sinks=None):
        self.query, self.key, self.value, self.out = query, key, value, out
        self.scale, self.softcap, self.additive = query.dtype.type(scale), softcap, additive
        self.sinks = None if sinks is None else sinks[:, None, None]
        heads, length, size = query.shape[-3:]
        self.folded = (*query.shape[:-3], key.shape[-3], heads // key.shape[-3] * length, size)
        shape = (*query.shape[:-1], key.shape[-2])
        self.scores = scratch[: int(np.prod(shape))].reshape(shape)
        self.folded_scores = self.scores.reshape(*self.folded[:-1], key.shape[-2])

    def __call__(self) -> np.ndarray:
        scores, out = self.scores, self.out
        query = (self.query * self.scale).reshape(self.folded)
        np.matmul(query, self.key.swapaxes(-1, -2), out=self.folded_scores)
        if self.softcap:
            scores /= self.softcap
            np.tanh(scores, out=scores)
            scores *= self.softcap
        if self.additive is not None:
            scores += self.additive
        top = scores.max(-1, keepdims=True)
        if self.sinks is not None:
            np.maximum(top, self.sinks, out=top)
        scores -= top
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        if self.sinks is not None:
            total += np.exp(self.sinks - top)
        if self.folded == self.query.shape:
            np.matmul(scores, self.value, out=out)
        else:
            np.copyto(out, np.matmul(self.folded_scores, self.value).reshape(out.shape))
        out /= total
        return out


def numpy_call(case: Case, inputs: Inputs) -> Callable[[], np.ndarray]:
    """NumPy's answer to a case. A window is worked through in blocks of rows, so that it costs what it should."""
    if inputs.query.dtype.kind != "f" or inputs.query.dtype.itemsize < 4:
        return _numpy_half(case, inputs)
    if case.kind == "packed":
        return _numpy_packed(case, inputs)
    if case.kind == "self_attention":
        return _numpy_self_attention(case, inputs)
    return _numpy_blocks(case, inputs)


def _numpy_blocks(case: Case, inputs: Inputs) -> Callable[[], np.ndarray]:
    query, key, value, options = inputs.query, inputs.key, inputs.value, inputs.options
    out = np.empty_like(query)
    blocks = [(slice(0, case.queries), slice(0, case.keys))]
    if "window" in case.modifiers:
        blocks = list(_blocks(case, case.queries, case.keys, WINDOW))
    largest = max((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in blocks)
    scratch = np.empty(case.batch * case.heads * largest, query.dtype)
    parts = [
        NumpyAttention(
            query[:, :, rows],
            key[:, :, keys],
            value[:, :, keys],
            case.scale,
            out[:, :, rows],
            scratch,
            additive_block(case, inputs, rows, keys),
            options.get("softcap"),
            options.get("sinks"),
        )
        for rows, keys in blocks
    ]
    return functools.partial(_call_all, parts, out)


def _call_all(parts: list[NumpyAttention], out: np.ndarray) -> np.ndarray:
    for part in parts:
        part()
    return out


def _numpy_packed(case: Case, inputs: Inputs) -> Callable[[], np.ndarray]:
    out = np.empty_like(inputs.query)
    scratch = np.empty(case.heads * max(case.lengths) ** 2, out.dtype)
    parts = []
    for start, stop in itertools.pairwise(inputs.indptr):
        arrays = (array[start:stop].swapaxes(0, 1) for array in (inputs.query, inputs.key, inputs.value))
        parts.append(NumpyAttention(*arrays, case.scale, out[start:stop].swapaxes(0, 1), scratch))
    return functools.partial(_call_all, parts, out)


def _numpy_self_attention(case: Case, inputs: Inputs) -> Callable[[], np.ndarray]:
    x, (*projections, w_output) = inputs.query, inputs.weights
    projected = [np.empty_like(x) for _ in projections]
    context = np.empty_like(x)
    heads = [_split_heads(array, case.heads) for array in (*projected, context)]
    scratch = np.empty(case.heads * case.queries * case.keys, x.dtype)
    attention = NumpyAttention(*heads[:3], case.scale, heads[3], scratch)

    def call() -> np.ndarray:
        for weight, array in zip(projections, projected, strict=True):
            np.matmul(x, weight, out=array)
        attention()
        return context @ w_output

    return call


def _numpy_half(case: Case, inputs: Inputs) -> Callable[[], np.ndarray]:
    """Half types are stored, not computed in: widen, compute, round."""
    halves = (inputs.query, inputs.key, inputs.value)
    wide = [np.empty(array.shape, np.float32) for array in halves]
    compute = _numpy_blocks(case, Inputs(*wide, inputs.options))

    def call() -> np.ndarray:
        for array, half in zip(wide, halves, strict=True):
            array[...] = half
        return compute().astype(halves[0].dtype)

    return call


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
    too: behind JAX, a call that reads much memory took 1.7 times as long), and a call that is not counted, which wakes
    its own.
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
            timers[name].timeit(1)
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
