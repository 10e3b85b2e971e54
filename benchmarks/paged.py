"""Measure what pages cost: `attention_paged` beside `attention` on the same keys, one after the other.

    python benchmarks/paged.py                 # pages of 16 keys
    python benchmarks/paged.py --page-size 64 --threads 2

Both calls take turns in one process, and a ratio is the median over pairs of successive calls. The pages of a
sequence lie in random order. Both caches have the layout (tokens, heads, head size) of a serving engine, so that the
keys of one head are as far apart here as there. The results must have the same bits.
"""

import argparse
import statistics
import time

import ml_dtypes
import numpy as np

import cattn

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SIZE = 128
CASES = {
    # sequences, queries of each, keys, key heads, query heads of each, types of query and key, whether keys are shared
    "decoding from memory, 1 row": (1, 1, 32_768, 8, 1, "float32", "float32", False),
    "decoding from memory, 4 rows": (1, 1, 32_768, 8, 4, "float32", "float32", False),
    "decoding from memory, 4 rows, float16": (1, 1, 32_768, 8, 4, "float32", "float16", False),
    "decoding from memory, 4 rows, bfloat16": (1, 1, 32_768, 8, 4, "bfloat16", "bfloat16", False),
    "decoding from L2, 1 row": (512, 1, 512, 1, 1, "float32", "float32", True),
    "decoding from L2, 4 rows": (512, 1, 512, 1, 4, "float32", "float32", True),
    "decoding from L2, 4 rows, float16": (512, 1, 1024, 1, 4, "float32", "float16", True),
    "decoding from L2, 4 rows, bfloat16": (512, 1, 1024, 1, 4, "bfloat16", "bfloat16", True),
    "a prompt of 512 tokens after 3,584": (1, 512, 4096, 2, 4, "float32", "float32", False),
    "a prompt of 512 tokens after 3,584, bfloat16": (1, 512, 4096, 2, 4, "bfloat16", "bfloat16", False),
}  # fmt: skip


def aligned(x):
    """Return a copy that begins at a line of the processor's cache: from elsewhere, reading may take longer."""
    room = np.empty(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def calls(case, page_size, threads):
    """Return both calls of a case, the contiguous one first."""
    batch, queries, keys, key_heads, group, query_type, key_type, shared = case
    random = np.random.default_rng(0)
    own = 1 if shared else batch
    query = random.standard_normal((batch, queries, key_heads * group, SIZE), np.float32).astype(TYPES[query_type])
    contiguous = [
        random.standard_normal((own, keys, key_heads, SIZE), np.float32).astype(TYPES[key_type]) for _ in range(2)
    ]
    pages = -(-keys // page_size)
    table = random.permutation(own * pages).reshape(own, pages)
    caches = []
    for x in contiguous:
        cache = np.zeros((own * pages, page_size, key_heads, SIZE), x.dtype)
        for entry, numbers in zip(x, table, strict=True):
            room = np.zeros((pages * page_size, key_heads, SIZE), x.dtype)
            room[:keys] = entry
            cache[numbers] = room.reshape(pages, page_size, key_heads, SIZE)
        caches.append(aligned(cache))
    contiguous = [np.broadcast_to(aligned(x), (batch, *x.shape[1:])) for x in contiguous]
    given = query.reshape(-1, key_heads * group, SIZE), *caches, np.repeat(table, batch // own, axis=0)
    indptr, lengths, options = np.arange(batch + 1) * queries, np.full(batch, keys), {"num_threads": threads}
    if queries > 1:
        options |= {"causal": True, "query_offset": "end"}
    return (
        lambda: cattn.attention(query, *contiguous, layout="blhd", **options),
        lambda: cattn.attention_paged(*given, lengths, query_indptr=indptr, **options),
    )


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3, help="for each case (3)")
    parser.add_argument("cases", nargs="*", help="parts of names of cases (all)")
    options = parser.parse_args()
    print(f"table {cattn._kernel.isa()}, pages of {options.page_size}, threads: {options.threads}")
    for name, case in CASES.items():
        if options.cases and not any(part in name for part in options.cases):
            continue
        contiguous, paged = calls(case, options.page_size, options.threads)
        assert contiguous().tobytes() == paged().tobytes()
        end, times = time.monotonic() + options.seconds, []
        while time.monotonic() < end or len(times) < 5:
            times.append((seconds(contiguous), seconds(paged)))
        ratio = statistics.median(two / one for one, two in times)
        print(f"{name:46} {statistics.median(one for one, _ in times) * 1e3:9.3f} ms  pages × {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
