"""Measure a million keys over worker processes of dask: peak memory, time, and how far the result is from one call's.

    pip install 'cattn[dask]' && python benchmarks/dask_keys.py

Keys and values lie in two files, 4 GiB with the sizes given by default. Each task maps its part of them. The result is
compared with one call of `cattn.attention` in this process, and both with the reference in float64 for a few queries.
A run takes 18 TFLOP.
"""

import argparse
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import cattn
import cattn.dask


def write(file, shape, seed):
    """Write standard normal numbers to a file, as many rows at a time as take little memory."""
    heads, length, _ = shape
    array = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    for head in range(heads):
        rng = np.random.default_rng([seed, head])
        for start in range(0, length, 2**16):
            part = array[head, start : start + 2**16]
            rng.standard_normal(out=part, dtype=np.float32)
    array.flush()


def read(file, block_info):
    """Return one chunk of the array in a file. It is opened where it is needed, and mapped, not loaded."""
    place = block_info[None]["array-location"]
    return np.load(file, mmap_mode="r")[tuple(slice(*edges) for edges in place)]


def mapped(file, shape, chunk):
    whole = da.core.normalize_chunks((-1, chunk, -1), shape)
    return da.map_blocks(read, str(file), chunks=whole, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))


def peak_memory():
    """Return the MiB that this process has had in memory at once, pages of files included."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--keys", type=int, default=2**20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=2**15, help="keys of a chunk")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    shape = options.heads, options.keys, options.size

    query = np.random.default_rng(0).standard_normal((options.heads, options.queries, options.size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "keys.npy"), Path(folder, "values.npy")]
        for seed, file in enumerate(files, 1):
            write(file, shape, seed)

        with (
            LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            idle = client.run(peak_memory)
            start = time.perf_counter()
            key, value = (mapped(file, shape, options.chunk) for file in files)
            out, lse = da.compute(*cattn.dask.attention(query, key, value, return_lse=True))
            seconds = time.perf_counter() - start
            peaks = client.run(peak_memory)
        print(f"{options.heads} heads × {options.keys} keys × {options.size}, {options.queries} queries, chunks of "
              f"{options.chunk} keys, {options.workers} worker processes: {seconds:.1f} s")  # fmt: skip
        for (worker, peak), before in zip(peaks.items(), idle.values(), strict=True):
            print(f"  {worker}: at most {peak} MiB in memory, {before} MiB of them before")

        key, value = (np.load(file, mmap_mode="r") for file in files)
        start = time.perf_counter()
        expected, expected_lse = cattn.attention(query, key, value, return_lse=True, num_threads=options.workers)
        print(f"one call, {options.workers} threads: {time.perf_counter() - start:.1f} s")
        apart, lse_apart = (np.abs(x - y).max() for x, y in ((out, expected), (lse, expected_lse)))
        print(f"  farthest apart: outputs {apart:.2e} (mean size {np.abs(expected).mean():.2e}), lse {lse_apart:.2e}")
        rows = np.s_[0, :2]
        exact = cattn.reference.attention(query[rows], key[0], value[0])
        bound = cattn.reference.error_bound(query[rows], key[0], value[0])
        for name, found in (("chunks", out), ("one call", expected)):
            print(f"  {name}: {(np.abs(found[rows] - exact) / bound).max():.3f} of the error bound, in two queries")


if __name__ == "__main__":
    main()
