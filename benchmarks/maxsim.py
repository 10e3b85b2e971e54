"""Time MaxSim beside NumPy, PyTorch's einsum, sentence-transformers, JAX and NumKong.

    pip install 'cattn[bench]' sentence-transformers jax numkong && python benchmarks/maxsim.py --write

Engines that are not installed are left out. All take turns in one process for each number of threads, and the figures
are medians of rounds. Each answer is compared with float64 first, and cattn's must stay within its bound. Vectors have
length 1, as those of models have, because NumKong computes cosines.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DOCUMENTS = 1000
REST = 0.1  # seconds, in which the threads of the engine before stop spinning


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
        """Return the scores of the first documents in float64, and how far cattn's may be from them."""
        from cattn import reference

        arrays, indptr = (self.query, self.packed[: self.indptr[count]]), self.indptr[: count + 1]
        functions = reference.maxsim, reference.maxsim_error_bound
        return [function(*arrays, document_indptr=indptr) for function in functions]


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
    queries = [nk.maxsim_pack(query) for query in case.query]
    documents = [nk.maxsim_pack(case.packed[a:b]) for a, b in zip(case.indptr[:-1], case.indptr[1:], strict=True)]
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
    few, slow = 5, 0.5
    expected, bound = case.expected(few)
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
            error = np.abs(found[:, :few] - expected)
            if name == "cattn" and np.any(error > bound):
                raise SystemExit(f"{case.name}: cattn is off by {error.max():.1e}, which is beyond its bound")
            ready[name], errors[name] = call, error.max()
    samples = {name: [] for name in ready}
    for number in range(rounds):
        for name in list(ready) if number % 2 else reversed(ready):
            time.sleep(REST)
            if not samples[name] or samples[name][0] < slow:  # a slow call fills the caches itself
                ready[name]()
            start = time.perf_counter()
            ready[name]()
            samples[name].append(time.perf_counter() - start)
    return {name: (statistics.median(times), errors[name]) for name, times in samples.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", help="one of the cases; all by default")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/MAXSIM.md")
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)  # this is the process that measures
    options = parser.parse_args()
    names = [name for name in ENGINES if name not in MODULES or importlib.util.find_spec(MODULES[name])]
    if options.rows:
        print(*rows(options, options.threads[0], names), sep="\n")
        return
    from cattn import _kernel
    from cattn._bench.record import processor_name

    head = [f"| threads | case | limit | {' | '.join(names)} |", f"| --: | --- | --: |{' --: |' * len(names)}"]
    page = PAGE.format(
        table="\n".join([*head, *(line for threads in options.threads for line in measured_apart(threads))]),
        processor=processor_name(),
        isa=_kernel.isa(),
        month=time.strftime("%B %Y"),
    )
    print(page)
    if options.write:
        (HERE / "MAXSIM.md").write_text(page, encoding="utf-8")


def measured_apart(threads):
    """Return the lines of the table that a process of its own measures: libraries read the variables when loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CATTN_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    command = [sys.executable, *sys.argv, "--rows", "--threads", str(threads)]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return found.stdout.splitlines()


PAGE = """\
# MaxSim

`python benchmarks/maxsim.py --write` wrote this page in {month}. The processor is
{processor} (kernel table {isa}). A figure is the
median time of a call, and in parentheses the largest error of a score. All engines take
turns in one process. Vectors have 128 numbers and length 1. *limit* is how long the multiply-adds (f), or reading the
documents (m), would take at the machine's full speed, whichever is longer. NumKong quantises vectors when it packs
them, which is not timed, and has no threads. The cases are

- `colpali`: a query of 32 tokens, 1,000 documents of 666 tokens; `colpali-bfloat16` is the same in bfloat16;
- `packed`: the same query, 2,000 documents of 20 to 300 tokens; packed for cattn, NumPy and NumKong, else padded;
- `queries`: 32 queries of 32 tokens at once, 50 documents of 666 tokens;
- `neighbour`: one query token, 1,000 documents of 666 tokens.

{table}
"""


def rows(options, threads, names):
    """Return the lines of the table for a number of threads."""
    from limits import Limits

    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    limits, bandwidth, measurements = Limits(threads), 0.0, []
    for case in cases(options.case):
        measurements.append((case.name, case.packed.nbytes, case.flops, case.query.dtype.name,
                             measured(case, options.rounds, threads, names)))  # fmt: skip
        bandwidth = max(bandwidth, limits.read_bandwidth())  # other programs only make it slower
        print(case.name, file=sys.stderr)
    lines = []
    for name, size, flops, dtype, found in measurements:
        of_memory, of_arithmetic = size / bandwidth, flops / limits.peak_flops(dtype)
        limit = f"{1e3 * max(of_memory, of_arithmetic):.1f} ms {'m' if of_memory > of_arithmetic else 'f'}"
        cells = [f"{1e3 * found[n][0]:.1f} ms ({found[n][1]:.0e})" if n in found else "-" for n in names]
        lines.append(f"| {threads} | {name} | {limit} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
