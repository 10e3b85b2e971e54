"""The answer of a case in wide arithmetic, and how far a result is from it."""

import itertools
from dataclasses import dataclass

import numpy as np

from cattn._bench.cases import HALF_TYPES, SOFTCAP, Case
from cattn._bench.inputs import Inputs, bias_block, join_heads, mask_block, row_blocks, split_heads
from cattn.reference import _ROUNDED_WEIGHTS as ROUNDED_WEIGHTS

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Check:
    """How far a result is from the answer, by the output that is furthest from it."""

    error: float  # in units of eps · Σ p|v|, with eps of the type that the inputs are stored in
    kappa: float  # in units of eps · Σ p|v| · (1 + A), with eps of the arithmetic, less what half types round
    wrong: bool  # more than the type explains


@dataclass(frozen=True)
class Expected:
    """The answer of a case in wide arithmetic, and what errors are measured by, for each output."""

    dtype: str
    out: np.ndarray
    size: np.ndarray  # Σ p|v|
    magnitude: np.ndarray  # Σ p|v| · (1 + A), where A is the largest magnitude among the row's scores
    square: np.ndarray  # Σ p v², where bfloat16 needs it

    def check(self, result: np.ndarray) -> Check:
        wide = np.asarray(result).astype(self.out.dtype)
        if wide.shape != self.out.shape or not np.isfinite(wide).all():
            return Check(np.inf, np.inf, True)
        error, storage = np.abs(wide - self.out), EPS[self.dtype]
        unit = min(storage, EPS["float32"]) * self.magnitude
        # In a half type an engine may round scores and weights, too, and may compute float16 in bfloat16.
        limit = self.size / 16 if self.dtype in HALF_TYPES else 32 * unit
        return Check(
            error=float(np.max(error / (storage * self.size))),
            kappa=float(np.max(np.maximum(error - self._rounding(), 0) / unit)),
            wrong=bool(np.any(error > limit)),
        )

    def _rounding(self) -> np.ndarray | float:
        """What a half type costs at most: one unit in the last place, and bfloat16's weights, which may be rounded, up
        to (1 + 2⁻⁶) · 2⁻⁸ of the weighted mean distance of the values from the output. No such mean is larger than
        the standard deviation, which takes a product less."""
        if self.dtype not in HALF_TYPES:
            return 0.0
        rounding = EPS[self.dtype] * np.abs(self.out)
        if self.dtype == "bfloat16":
            rounding += ROUNDED_WEIGHTS * np.sqrt(np.maximum(self.square - self.out**2, 0))
        return rounding


def expected(case: Case, inputs: Inputs) -> Expected:
    """The answer: in float64, for float64 in longdouble where that is wider."""
    wide = np.longdouble if case.dtype == "float64" else np.float64
    query, key, value = (array.astype(wide) for array in (inputs.query, inputs.key, inputs.value))
    if case.kind == "packed":
        parts = []
        for start, stop in itertools.pairwise(inputs.indptr):
            heads = (array[start:stop].swapaxes(0, 1)[None] for array in (query, key, value))
            parts.append([array[0].swapaxes(0, 1) for array in _attend(case, inputs, *heads)])
        return Expected(case.dtype, *map(np.concatenate, zip(*parts, strict=True)))
    if case.kind == "self_attention":
        weights = [array.astype(wide) for array in inputs.weights]
        heads = [split_heads(query @ weight, case.heads)[None] for weight in weights[:3]]
        sizes = [split_heads(np.abs(query) @ np.abs(weight), case.heads)[None] for weight in weights[:3]]
        context, *sizes = (join_heads(array[0]) for array in _attend(case, inputs, *heads, sizes))
        return Expected(case.dtype, context @ weights[3], *(size @ np.abs(weights[3]) for size in sizes))
    return Expected(case.dtype, *_attend(case, inputs, query, key, value))


def _attend(case: Case, inputs: Inputs, query, key, value, sizes=None) -> list[np.ndarray]:
    """The four arrays of `Expected`, head by head and in blocks of rows. `sizes` bound |query|, |key| and |value|."""
    results = [np.empty_like(query) for _ in range(4)]
    batch, heads, length, _ = query.shape
    keys_in_all = key.shape[2]
    group = heads // key.shape[1]
    sinks = inputs.options.get("sinks")
    for rows, keys in row_blocks(case, length, keys_in_all, max(1, min(512, 2**24 // keys_in_all))):
        shape = (batch, heads, rows.stop - rows.start, keys.stop - keys.start)
        bias = mask = None
        if case.kind == "attention":
            bias = bias_block(case, inputs, rows, keys, query.dtype)
            mask = mask_block(case, inputs, rows, keys)
        bias = None if bias is None else np.broadcast_to(bias, shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        for entry, head in np.ndindex(batch, heads):
            places = [(entry, head, rows), *[(entry, head // group, keys)] * 2]
            q, k, v = (array[place] for array, place in zip((query, key, value), places, strict=True))
            if sizes is None:
                q_size, k_size, v_size = np.abs(q), np.abs(k), np.abs(v)
            else:
                q_size, k_size, v_size = (array[place] for array, place in zip(sizes, places, strict=True))
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
            size = weights @ v_size
            square = weights @ v_size**2 if case.dtype == "bfloat16" else 0.0
            for result, part in zip(results, (weights @ v, size, size * (1 + largest), square), strict=True):
                result[entry, head, rows] = part
    return results
