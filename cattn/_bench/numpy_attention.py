"""Attention as a good NumPy programmer writes it: what every speed-up is counted against."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cattn._bench.cases import HALF_TYPES, WINDOW, Case
from cattn._bench.inputs import Inputs, additive_block, row_blocks, split_heads


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
    if case.dtype in HALF_TYPES:
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
        blocks = list(row_blocks(case, case.queries, case.keys, WINDOW))
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
    heads = [split_heads(array, case.heads) for array in (*projected, context)]
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
    halves = (inputs.query, inputs.key, inputs.value, *inputs.weights)
    query, key, value, *weights = wide = [np.empty(array.shape, np.float32) for array in halves]
    wider = replace(inputs, query=query, key=key, value=value, weights=tuple(weights))
    compute = numpy_call(replace(case, dtype="float32"), wider)

    def call() -> np.ndarray:
        for array, half in zip(wide, halves, strict=True):
            array[...] = half
        return compute().astype(inputs.query.dtype)

    return call
