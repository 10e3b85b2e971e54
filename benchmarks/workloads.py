"""The cases that `compare.py` measures: those of `cattn bench`, and with modifiers, ragged, packed and whole layers."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cattn._bench import cases
from cattn._bench.cases import Answer, Case, Inputs, answer_of, normal, widened

SOFTCAP = 30.0
WINDOW = 256
ALL = slice(None)

Modifier = Literal["window", "mask", "bias", "alibi", "softcap", "sinks"]
MODIFIERS: tuple[Modifier, ...] = ("window", "mask", "bias", "alibi", "softcap", "sinks")


@dataclass(frozen=True)
class Workload(Case):
    """Describe a case with one of the modifiers, or with key lengths of its batch entries.

    A "window" is causal and lets a query see the last `WINDOW` keys, its own included.
    """

    modifier: Modifier | None = None
    lengths: tuple[int, ...] = ()

    @property
    def pairs(self) -> int:
        if self.lengths:
            return self.heads * self.queries * sum(self.lengths)
        if self.modifier == "window":
            return self.batch * self.heads * sum(min(row + 1, WINDOW) for row in range(self.queries))
        return super().pairs

    def make_options(self, rng: np.random.Generator) -> dict[str, Any]:
        options = {} if self.modifier == "window" else super().make_options(rng)
        if self.lengths:
            options["key_lengths"] = np.array(self.lengths)
        if self.modifier == "window":
            options["window"] = (WINDOW - 1, 0)
        elif self.modifier == "mask":
            options["mask"] = rng.random((self.queries, self.keys)) < 0.75
            options["mask"][:, 0] = True
        elif self.modifier == "bias":
            options["bias"] = rng.standard_normal((self.queries, self.keys), np.float32)
        elif self.modifier == "alibi":
            options["alibi_slopes"] = np.exp2(-8.0 * np.arange(1, self.heads + 1) / self.heads).astype(np.float32)
        elif self.modifier == "softcap":
            options["softcap"] = SOFTCAP
        elif self.modifier == "sinks":
            options["sinks"] = rng.standard_normal(self.heads, np.float32)
        return options

    def answer(self, inputs: Inputs) -> Answer:
        def part(entry: int, heads: slice, rows: slice) -> tuple[slice, dict[str, Any]]:
            windowed = self.modifier == "window"
            keys = slice(max(0, rows.start - WINDOW + 1), rows.stop) if windowed else slice(0, self.keys)
            options = {"query_offset": rows.start - keys.start}
            places = {"mask": rows, "bias": rows, "alibi_slopes": heads, "sinks": heads, "key_lengths": entry}
            for name, given in inputs.options.items():
                options[name] = given[places[name]] if name in places else given
            return keys, options

        return answer_of(self.dtype, *inputs.arrays, part)


@dataclass(frozen=True)
class Packed(Case):
    """Describe sequences of these lengths, one after the other: (total, H, D)."""

    lengths: tuple[int, ...] = ()

    @property
    def pairs(self) -> int:
        return self.heads * sum(length * length for length in self.lengths)

    def make_inputs(self) -> Inputs:
        rng = np.random.default_rng(0)
        indptr = np.concatenate(([0], np.cumsum(self.lengths)))
        heads = self.heads, self.kv_heads, self.kv_heads
        arrays = (normal(rng, self.dtype, int(indptr[-1]), count, self.head_size) for count in heads)
        return Inputs((*arrays, indptr, indptr), function="attention_varlen")

    def answer(self, inputs: Inputs) -> Answer:
        answers = []
        for arrays in sequences(inputs):
            arrays = (array.swapaxes(0, 1)[None] for array in arrays)
            answers.append(answer_of(self.dtype, *arrays, lambda entry, heads, rows: (ALL, {})))
        parts = ([getattr(x, name)[0].swapaxes(0, 1) for x in answers] for name in ("out", "size", "unit"))
        return Answer(self.dtype, *map(np.concatenate, parts))


@dataclass(frozen=True)
class Layer(Case):
    """Describe a layer of self-attention: embeddings (L, H·D), and weights for query, key, value and output."""

    @property
    def flops(self) -> int:
        return super().flops + 4 * 2 * self.batch * self.queries * (self.heads * self.head_size) ** 2

    def make_inputs(self) -> Inputs:
        rng, size = np.random.default_rng(0), self.heads * self.head_size
        x = normal(rng, self.dtype, self.queries, size)
        weights = (normal(rng, self.dtype, size, size) / x.dtype.type(size**0.5) for _ in range(4))
        return Inputs((x, *weights), {"num_heads": self.heads}, "self_attention")

    def answer(self, inputs: Inputs) -> Answer:
        x, *weights = (widened(array).astype(np.float64) for array in inputs.arrays)
        heads = (split_heads(x @ weight, self.heads)[None] for weight in weights[:3])
        # What is in between is computed in the type of the arrays, or in float32.
        heads = (array.astype(widened(inputs.arrays[0]).dtype) for array in heads)
        answer = answer_of(self.dtype, *heads, lambda entry, heads, rows: (ALL, {}))
        out, size, unit = (join_heads(array[0]) for array in (answer.out, answer.size, answer.unit))
        return Answer(self.dtype, out @ weights[3], size @ np.abs(weights[3]), unit @ np.abs(weights[3]))


def sequences(inputs: Inputs) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield query, key and value of each packed sequence."""
    *arrays, indptr, _ = inputs.arrays
    for start, stop in itertools.pairwise(indptr.tolist()):
        yield tuple(array[start:stop] for array in arrays)


def split_heads(array: np.ndarray, heads: int) -> np.ndarray:
    """Return (L, H·D) as (H, L, D)."""
    return array.reshape(len(array), heads, -1).swapaxes(0, 1)


def join_heads(array: np.ndarray) -> np.ndarray:
    """Return (H, L, D) as (L, H·D)."""
    return array.swapaxes(0, 1).reshape(array.shape[1], -1)


# The modifiers in the forms that engines take


def mask_of(case: Case, inputs: Inputs, rows: slice = ALL, keys: slice = ALL) -> np.ndarray | None:
    """Return which keys each row may attend to, as booleans that broadcast to (B, H, rows, keys); None: all of them."""
    row, key = np.arange(case.queries)[rows, None], np.arange(case.keys)[keys]
    parts = []
    if case.causal:
        parts.append(key <= row)
    if "window" in inputs.options:
        parts.append(key > row - WINDOW)
    if "mask" in inputs.options:
        parts.append(inputs.options["mask"][rows, keys])
    if "key_lengths" in inputs.options:
        parts.append(key < inputs.options["key_lengths"][:, None, None, None])
    return functools.reduce(np.logical_and, parts) if parts else None


def bias_of(case: Case, inputs: Inputs, rows: slice = ALL, keys: slice = ALL) -> np.ndarray | None:
    """Return what is added to the scores, as an array that broadcasts to (B, H, rows, keys); None: nothing."""
    if "bias" in inputs.options:
        return inputs.options["bias"][rows, keys]
    if "alibi_slopes" in inputs.options:
        distance = np.abs(np.arange(case.queries)[rows, None] - np.arange(case.keys)[keys])
        return -inputs.options["alibi_slopes"][:, None, None] * distance.astype(np.float32)
    return None


def additive_of(case: Case, inputs: Inputs, rows: slice = ALL, keys: slice = ALL) -> np.ndarray | None:
    """Return bias and mask as one float32 array, -inf where masked; None: neither."""
    bias, mask = bias_of(case, inputs, rows, keys), mask_of(case, inputs, rows, keys)
    if mask is None:
        return bias
    return np.where(mask, np.float32(0) if bias is None else bias, np.float32(-np.inf))


def four_axes(array: np.ndarray) -> np.ndarray:
    """Return an array that broadcasts to (B, H, rows, keys) with all four axes."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


# The cases


def _seeded_lengths(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Return seeded lengths, the longest one among them."""
    lengths = np.random.default_rng(count).integers(shortest, longest + 1, count)
    return (*map(int, lengths[1:]), longest)


def _modified(name: str, heads: int, length: int, head_size: int) -> Iterator[Case]:
    """Yield a case with each modifier."""
    sizes = 1, heads, heads, length, length, head_size
    yield Case(f"{name}-causal", *sizes, causal=True)
    for modifier in MODIFIERS:
        yield Workload(f"{name}-{modifier}", *sizes, causal=modifier == "window", modifier=modifier)


_OTHERS = (
    *(replace(cases.CASES[name], dtype="float64") for name in ("bert-128", "bert-512")),
    Case("decode-batch-128", 16, 32, 8, 1, 128, 128),
    Case("multi-query-32k", 1, 32, 1, 1, 32768, 128),
    Case("group-of-16-32k", 1, 16, 1, 1, 32768, 128),
    Case("groups-of-16-16k", 1, 64, 4, 1, 16384, 128),
    Case("draft-32k", 1, 8, 1, 16, 32768, 128),
    Case("decode-batch-512", 16, 32, 8, 1, 512, 128),
    Workload("decode-batch-ragged", 16, 32, 8, 1, 512, 128, lengths=_seeded_lengths(16, 128, 512)),
    Packed("packed", 64, 12, 12, 128, 128, 64, lengths=_seeded_lengths(64, 8, 128)),
    Layer("self-attention", 1, 12, 12, 128, 128, 64),
    *_modified("minilm", 12, 32, 32),
    *_modified("bert-512", 12, 512, 64),
    *_modified("long-2k-d64", 8, 2048, 64),
    Workload("long-16k-window", 1, 1, 1, 16384, 16384, 64, causal=True, modifier="window"),
)

CASES: Mapping[str, Case] = {
    case.title: case
    for case in (*cases.CORE_CASES, *cases.core_cases("bfloat16"), *cases.core_cases("float16"), *_OTHERS)
}
