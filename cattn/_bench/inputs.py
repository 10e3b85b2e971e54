"""The arrays of a case, the same for the same seed, and its modifiers in the forms that engines take."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cattn._bench.cases import SOFTCAP, WINDOW, Case


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


def bias_block(case: Case, inputs: Inputs, rows: slice, keys: slice, dtype=np.float32) -> np.ndarray | None:
    """What is added to the scores, as an array that broadcasts to (B, H, rows, keys); None for nothing."""
    if "bias" in inputs.options:
        return inputs.options["bias"][rows, keys].astype(dtype, copy=False)
    if "alibi_slopes" in inputs.options:
        distance = np.abs(np.arange(case.queries)[rows, None] - np.arange(case.keys)[keys])
        return -inputs.options["alibi_slopes"][:, None, None].astype(dtype) * distance.astype(dtype)
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
