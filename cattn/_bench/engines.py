"""Engines that compute attention on the CPU, behind one face.

An engine imports its library when it is made (ImportError: not installed) and is limited to a number of threads.
Arrays are brought into its own layout and memory before the clock runs.
"""

import functools
import importlib
import re
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import cattn
from cattn._bench.cases import HALF_TYPES, Case, Inputs, widened
from cattn._bench.timing import Timer


@dataclass(frozen=True)
class Prepared:
    """Hold a case that is ready to run: what is timed, and what returns its result in cattn's layout."""

    timer: Timer
    result: Callable[[], np.ndarray]


def prepared(call: Callable[[], Any], read: Callable[[Any], np.ndarray] = np.asarray) -> Prepared:
    """Return what times a call. `read` makes an array of its result."""
    return Prepared(timeit.Timer(call), lambda: read(call()))


class Engine:
    """Describe one way to compute attention."""

    name: str
    label: str
    package: str
    keeps_scores = False  # in memory, queries × keys of all heads

    def __init__(self, threads: int):
        self.threads = threads

    @property
    def version(self) -> str:
        """Return the version of its package, without what a build adds to it."""
        return importlib.import_module(self.package).__version__.partition("-")[0]

    def supports(self, case: Case) -> bool:
        """Return whether it has an operation for the case."""
        return True

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        """Bring the arrays into its own form."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what the engine has started."""


class Cattn(Engine):
    """Measure cattn, with the number of threads set for the process as a user's program would."""

    name, label, package = "cattn", "cattn", "cattn"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        cattn.set_num_threads(self.threads)
        return prepared(functools.partial(getattr(cattn, inputs.function), *inputs.arrays, **inputs.options))


class CattnFloat32(Cattn):
    """Measure cattn on the same numbers in float32, which shows what a half type is worth."""

    name, label = "cattn-float32", "cattn float32"

    def supports(self, case: Case) -> bool:
        return case.dtype in HALF_TYPES

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return super().prepare(case, replace(inputs, arrays=tuple(map(widened, inputs.arrays))))


class NumPy(Engine):
    """Measure attention as a good NumPy programmer writes it. Every speed-up is counted against it."""

    name, label, package = "numpy", "NumPy", "numpy"
    keeps_scores = True

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        if case.dtype in HALF_TYPES:
            return self._prepare_half(case, inputs)
        additive = None
        if case.causal:
            additive = np.where(np.tri(case.queries, case.keys, dtype=bool), np.float32(0), np.float32(-np.inf))
        return prepared(NumpyAttention(*inputs.arrays, additive=additive))

    def _prepare_half(self, case: Case, inputs: Inputs) -> Prepared:
        """Widen, compute and round: NumPy computes slowly in half types."""
        wide = tuple(map(widened, inputs.arrays))
        compute = self.prepare(replace(case, dtype="float32"), replace(inputs, arrays=wide)).result

        def call() -> np.ndarray:
            for array, half in zip(wide, inputs.arrays, strict=True):
                if array is not half:
                    array[...] = half
            return compute().astype(inputs.arrays[0].dtype)

        return prepared(call)


class NumpyAttention:
    """Compute attention over (..., H, L, D) with NumPy's own operations, in place where they can be.

    The scores of all heads are one product (a group's queries share their keys), the scale goes onto the queries and
    the division onto the output. What is added to the scores is prepared. `out` and `scratch`, which holds the scores,
    are made if they are not given.
    """

    def __init__(self, query, key, value, *, additive=None, softcap=None, sinks=None, out=None, scratch=None):
        heads, length, size = query.shape[-3:]
        shape = (*query.shape[:-1], key.shape[-2])
        self.query, self.key, self.value = query, key, value
        self.scale, self.softcap, self.additive = query.dtype.type(size**-0.5), softcap, additive
        self.sinks = None if sinks is None else sinks[:, None, None]
        self.out = np.empty_like(query) if out is None else out
        scratch = np.empty(int(np.prod(shape)), query.dtype) if scratch is None else scratch
        self.folded = (*query.shape[:-3], key.shape[-3], heads // key.shape[-3] * length, size)
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


class PyTorch(Engine):
    """Measure PyTorch's own function."""

    name, label, package = "pytorch", "PyTorch", "torch"

    def __init__(self, threads: int):
        super().__init__(threads)
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self._mode = self.torch.inference_mode()
        self._mode.__enter__()  # It stays for the rest of the process: entering it each time would be timed.

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return self.attend(case, inputs, is_causal=case.causal)

    def attend(self, case: Case, inputs: Inputs, **options) -> Prepared:
        """Prepare one call of the function."""
        if case.kv_heads != case.heads:
            options["enable_gqa"] = True
        attend = self.torch.nn.functional.scaled_dot_product_attention
        return prepared(functools.partial(attend, *map(self.tensor, inputs.arrays), **options), self.array)

    def tensor(self, array: np.ndarray):
        """Return a tensor in the array's memory."""
        if array.dtype.kind == "V":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def array(self, tensor) -> np.ndarray:
        """Return a tensor's numbers as an array."""
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()


class Function(Engine):
    """Measure a function of the user's, module:function, which takes query, key, value and causal."""

    def __init__(self, threads: int, name: str):
        super().__init__(threads)
        self.name = self.label = name
        self.package, _, function = name.partition(":")
        self.function = getattr(importlib.import_module(self.package), function)

    @property
    def version(self) -> str:
        return getattr(importlib.import_module(self.package), "__version__", "")

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return prepared(functools.partial(self.function, *inputs.arrays, causal=case.causal))


ENGINES: Mapping[str, type[Engine]] = {engine.name: engine for engine in (Cattn, CattnFloat32, NumPy, PyTorch)}
# These are measured always, each at the cases that it supports.
ALWAYS = ("cattn", "cattn-float32", "numpy")


def find_engine(name: str) -> Callable[[int], Engine]:
    """Return what makes the engine of that name with a number of threads. ValueError: there is none."""
    if name in ENGINES:
        return ENGINES[name]
    if re.fullmatch(r"[\w.]+:\w+", name):
        return functools.partial(Function, name=name)
    raise ValueError(f"expected {', '.join(ENGINES)}, or a function as module:function; got {name!r}")
