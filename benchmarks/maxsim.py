"""Time MaxSim beside NumPy, PyTorch's einsum, sentence-transformers, JAX and NumKong.

    pip install 'cattn[bench]' sentence-transformers jax numkong && python benchmarks/maxsim.py --write

Engines that are not installed are left out. All take turns in one process, and the figures are medians of rounds. Each
answer is compared with float64 first. Vectors have length 1, as those of models have, because NumKong computes cosines.
"""

import argparse
import importlib
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ONE, DOCUMENTS = 32, 1000


def unit_vectors(*shape):
    """Return random vectors of length 1."""
    x = np.random.default_rng([7, *shape]).standard_normal(shape, dtype=np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


class Case:
    """Hold a query or several, documents of certain lengths, and how many of them every engine gets."""

    def __init__(self, name, queries, tokens, lengths, type="float32"):
        import ml_dtypes

        self.name, self.lengths = name, lengths
        dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[type]
        self.query = unit_vectors(queries, tokens, 128).astype(dtype)
        self.indptr = np.cumsum([0, *lengths])
        self.packed = unit_vectors(self.indptr[-1], 128).astype(dtype)
        self.is_padded = len(set(lengths)) == 1
        self.padded = self.packed.reshape(len(lengths), -1, 128) if self.is_padded else None

    @property
    def flops(self):
        return 2 * self.query.shape[0] * self.query.shape[1] * len(self.packed) * 128

    def expected(self, count):
        """Return the scores of the first documents in float64."""
        import cattn

        stop = self.indptr[count]
        indptr = self.indptr[: count + 1]
        return cattn.reference.maxsim(self.query, self.packed[:stop], document_indptr=indptr)


def cases(chosen):
    """Return the cases, or those of some names."""
    random = np.random.default_rng(1)
    every = {
        "colpali": lambda: Case("colpali", 1, 32, [666] * DOCUMENTS),
        "colpali-bfloat16": lambda: Case("colpali-bfloat16", 1, 32, [666] * DOCUMENTS, "bfloat16"),
        "packed": lambda: Case("packed", 1, 32, random.integers(20, 301, 2 * DOCUMENTS).tolist()),
        "queries": lambda: Case("queries", 32, 32, [666] * 50),
        "neighbour": lambda: Case("neighbour", 1, 1, [666] * DOCUMENTS),
    }
    return [every[name]() for name in chosen or every]


# Engines. Each is given a case, and returns a function that computes its scores, (queries, documents), or None.


def cattn(case):
    import cattn

    if case.is_padded:
        return lambda: cattn.maxsim(case.query, case.padded)
    return lambda: cattn.maxsim(case.query, case.packed, document_indptr=case.indptr)


def numpy(case):
    if case.query.dtype != np.float32:
        return None
    rows = case.query.reshape(-1, 128)
    if not case.is_padded:

        def packed():
            products = rows @ case.packed.T
            largest = np.maximum.reduceat(products, case.indptr[:-1], axis=1)
            return largest.reshape(*case.query.shape[:2], -1).sum(axis=1)

        return packed

    def padded():
        products = case.padded @ rows.T
        return products.max(axis=1).reshape(-1, *case.query.shape[:2]).sum(axis=2).T

    return padded


def _tensors(case):
    import torch

    def tensor(x):
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype != np.float32 else torch.from_numpy(x)

    if case.is_padded:
        return tensor(case.query), tensor(case.padded), None
    import cattn

    lengths = np.array(case.lengths)
    mask = np.arange(lengths.max()) < lengths[:, None]
    return tensor(case.query), tensor(cattn.pad(case.packed, case.indptr)), torch.from_numpy(mask)


def pytorch(case):
    import torch

    query, document, mask = _tensors(case)

    def scores():
        with torch.inference_mode():
            products = torch.einsum("qid,njd->qnij", query, document)
            if mask is not None:
                products.masked_fill_(~mask[None, :, None], -torch.inf)
            return products.amax(dim=3).sum(dim=2).float().numpy()

    return scores


def sentence_transformers(case):
    import torch
    from sentence_transformers.util import maxsim

    query, document, mask = _tensors(case)

    def scores():
        with torch.inference_mode():
            return maxsim(query, document, b_mask=mask, device="cpu").float().numpy()

    return scores


def jax(case):
    import jax
    import jax.numpy as jnp

    if case.query.dtype != np.float32 or not case.is_padded:
        return None

    @jax.jit
    def scores(query, document):
        return jnp.einsum("qid,njd->qnij", query, document).max(axis=3).sum(axis=2)

    query, document = jnp.asarray(case.query), jnp.asarray(case.padded)
    return lambda: np.asarray(scores(query, document))


def numkong(case):
    import numkong as nk

    tokens = case.query.shape[1]
    type = {"float32": "f32", "bfloat16": "bf16"}[case.query.dtype.name]
    numbers = case.packed.view(np.uint16) if type == "bf16" else case.packed
    queries = [nk.maxsim_pack(q.view(numbers.dtype), type) for q in case.query]
    documents = [nk.maxsim_pack(numbers[a:b], type) for a, b in zip(case.indptr[:-1], case.indptr[1:], strict=True)]
    return lambda: np.array([[tokens - nk.maxsim_packed(q, d) for d in documents] for q in queries])


ENGINES = {
    "cattn": cattn,
    "NumPy": numpy,
    "PyTorch": pytorch,
    "sentence-transformers": sentence_transformers,
    "JAX": jax,
    "NumKong": numkong,
}
MODULES = {"PyTorch": "torch", "sentence-transformers": "sentence_transformers", "JAX": "jax", "NumKong": "numkong"}


def measured(case, rounds, threads, names):
    """Return (seconds, largest error) of each engine: the median of its samples."""
    ready, errors = {}, {}
    few = 5
    expected = case.expected(few)
    for name in names:
        if name == "NumKong" and threads > 1:
            continue
        try:
            call = ENGINES[name](case)
            found = None if call is None else call()
        except Exception as error:
            print(f"{case.name}: {name} fails: {type(error).__name__}: {error}"[:150], file=sys.stderr)
            continue
        if found is not None:
            ready[name], errors[name] = call, np.abs(found[:, :few] - expected).max()
    samples = {name: [] for name in ready}
    for number in range(rounds):
        for name in list(ready) if number % 2 else reversed(ready):
            ready[name]()
            start = time.perf_counter()
            ready[name]()
            samples[name].append(time.perf_counter() - start)
    return {name: (statistics.median(times), errors[name]) for name, times in samples.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", help="one of the cases; all by default")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/MAXSIM.md")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CATTN_NUM_THREADS"):
        if os.environ.get(variable) != str(options.threads):  # libraries read them when they are loaded
            os.environ |= {
                name: str(options.threads)
                for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CATTN_NUM_THREADS")
            }
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false" if options.threads == 1 else ""
            if options.threads == 1 and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            os.execv(sys.executable, [sys.executable, *sys.argv])
    names = [name for name in ENGINES if name not in MODULES or importlib.util.find_spec(MODULES[name])]
    threads = "one thread" if options.threads == 1 else f"{options.threads} threads"
    from cattn import _kernel
    from cattn._bench.record import processor_name

    page = PAGE.format(
        table=table(options, names),
        processor=processor_name(),
        threads=threads,
        isa=_kernel.isa(),
        month=time.strftime("%B %Y"),
    )
    print(page)
    if options.write:
        (HERE / "MAXSIM.md").write_text(page, encoding="utf-8")


PAGE = """\
# MaxSim

`python benchmarks/maxsim.py --write` wrote this page in {month}, with {threads}. The processor is
{processor} (kernel table {isa}). A figure is the median time of a call, and in parentheses the largest error of a
score. All engines take turns in one process. Vectors have 128 numbers and length 1. *limit* is the time that the
machine's multiply-adds or its memory leave. NumKong quantises vectors when it packs them, which is not timed. The cases
are

- `colpali`: a query of 32 tokens, 1,000 documents of 666 tokens; `colpali-bfloat16` is the same in bfloat16;
- `packed`: the same query, 2,000 documents of 20 to 300 tokens; packed for cattn, NumPy and NumKong, else padded;
- `queries`: 32 queries of 32 tokens at once, 50 documents of 666 tokens;
- `neighbour`: one query token, 1,000 documents of 666 tokens.

{table}
"""


def table(options, names):
    from limits import Limits

    limits = Limits(options.threads)
    lines = [f"| case | limit | {' | '.join(names)} |", f"| --- | --: |{' --: |' * len(names)}"]
    for case in cases(options.case):
        found = measured(case, options.rounds, options.threads, names)
        of_memory = case.packed.nbytes / limits.read_bandwidth()
        limit = max(of_memory, case.flops / limits.peak_flops(case.query.dtype.name))
        row = [f"{1e3 * found[name][0]:.1f} ms ({found[name][1]:.0e})" if name in found else "-" for name in names]
        lines.append(f"| {case.name} | {1e3 * limit:.1f} ms | {' | '.join(row)} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
