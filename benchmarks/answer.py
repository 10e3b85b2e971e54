"""The answer of a case in wide arithmetic, and how far a result is from it."""

import itertools
from dataclasses import dataclass

import numpy as np

from cattn._bench import SOFTCAP, Case, Inputs, bias_block, join_heads, mask_block, row_blocks, split_heads


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
        heads = [split_heads(query @ weight, case.heads)[None] for weight in weights[:3]]
        sizes = [split_heads(np.abs(query) @ np.abs(weight), case.heads)[None] for weight in weights[:3]]
        context, magnitude = (join_heads(array[0]) for array in _attend(case, inputs, *heads, sizes))
        out, magnitude = context @ weights[3], magnitude @ np.abs(weights[3])
    else:
        out, magnitude = _attend(case, inputs, query, key, value)
    return Expected(out, magnitude, dtype)


def _attend(case: Case, inputs: Inputs, query, key, value, sizes=None) -> tuple[np.ndarray, np.ndarray]:
    """Output and magnitude, head by head and in blocks of rows. `sizes` bound |query|, |key| and |value|."""
    sizes = sizes or [np.abs(array) for array in (query, key, value)]
    out, magnitude = np.empty_like(query), np.empty_like(query)
    batch, heads, length, _ = query.shape
    group = heads // key.shape[1]
    sinks = inputs.options.get("sinks")
    for rows, keys in row_blocks(case, length, key.shape[2], 512):
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
