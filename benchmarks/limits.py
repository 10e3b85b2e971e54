"""Measure what the machine itself can do: its peak of floating-point arithmetic, and how fast it reads memory.

Measured by a few lines of C, compiled when they are needed; without a C compiler by NumPy, which gives lower bounds.
"""

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cattn._bench.cases import Case, Inputs

MEMORY_BYTES = 256 << 20

# One function per instruction set. Twelve independent chains hide the latency of two fused multiply-adds a cycle and
# fit sixteen registers; reading takes four streams, each prefetched.
SOURCE = r"""
#include <stddef.h>

#define PEAK(name, bytes, target)                                                                \
    typedef float name##_vector __attribute__((vector_size(bytes)));                             \
    target static double name##_peak(long steps, float x, float y) {                             \
        name##_vector scale = {0}, add = {0};                                                    \
        scale += x, add += y;                                                                    \
        name##_vector a = add, b = a + y, c = b + y, d = c + y, e = d + y, f = e + y;            \
        name##_vector g = f + y, h = g + y, i = h + y, j = i + y, k = j + y, l = k + y;          \
        for (long step = 0; step < steps; step++) {                                              \
            a = a * scale + add, b = b * scale + add, c = c * scale + add, d = d * scale + add;  \
            e = e * scale + add, f = f * scale + add, g = g * scale + add, h = h * scale + add;  \
            i = i * scale + add, j = j * scale + add, k = k * scale + add, l = l * scale + add;  \
        }                                                                                        \
        name##_vector sum = a + b + c + d + e + f + g + h + i + j + k + l;                       \
        sink = sum[0];                                                                           \
        return 2.0 * 12 * (bytes / sizeof(float)) * steps;                                       \
    }                                                                                            \
    typedef long name##_words __attribute__((vector_size(bytes), aligned(8)));                   \
    target static void name##_read(const char *data, size_t size) {                              \
        size_t quarter = size / 4 / 64 * 64;                                                     \
        name##_words a = {0}, b = {0}, c = {0}, d = {0};                                         \
        for (size_t at = 0; at < quarter; at += 64) {                                            \
            const char *from = data + at;                                                        \
            for (int stream = 0; stream < 4; stream++)                                           \
                __builtin_prefetch(from + stream * quarter + 1024);                              \
            for (int part = 0; part < 64; part += bytes) {                                       \
                a += *(const name##_words *)(from + part);                                       \
                b += *(const name##_words *)(from + quarter + part);                             \
                c += *(const name##_words *)(from + 2 * quarter + part);                         \
                d += *(const name##_words *)(from + 3 * quarter + part);                         \
            }                                                                                    \
        }                                                                                        \
        sink = (a + b + c + d)[0];                                                               \
    }

static volatile double sink;

#if defined(__x86_64__)
PEAK(avx512, 64, __attribute__((target("avx512f"))))
PEAK(avx2, 32, __attribute__((target("avx2,fma"))))
#endif
PEAK(base, 16, )

#if defined(__x86_64__)
#define BEST(call)                                                                               \
    (__builtin_cpu_supports("avx512f") ? avx512_##call                                           \
     : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2_##call             \
                                                                       : base_##call)
#else
#define BEST(call) base_##call
#endif

double peak(long steps, float x, float y) { return BEST(peak)(steps, x, y); }

/* VDPBF16PS: two multiply-adds of bfloat16 a lane. 0 where compiler or processor lack it, as below. */
#if defined(__x86_64__) && (__GNUC__ >= 11 || __clang_major__ >= 11)
#include <immintrin.h>

__attribute__((target("avx512f,avx512bf16")))
static double bfloat16_loop(long steps, float x) {
    __m512 sums[12];
    for (int chain = 0; chain < 12; chain++)
        sums[chain] = _mm512_set1_ps(x + chain);
    __m512bh factor = _mm512_cvtne2ps_pbh(sums[0], sums[0]);
    for (long step = 0; step < steps; step++) {
        _Pragma("GCC unroll 12")
        for (int chain = 0; chain < 12; chain++)
            sums[chain] = _mm512_dpbf16_ps(sums[chain], factor, factor);
    }
    for (int chain = 1; chain < 12; chain++)
        sums[0] = _mm512_add_ps(sums[0], sums[chain]);
    sink = _mm512_reduce_add_ps(sums[0]);
    return 2.0 * 2 * 12 * 16 * steps;
}

double bfloat16_peak(long steps, float x, float y) {
    (void)y;
    return __builtin_cpu_supports("avx512bf16") ? bfloat16_loop(steps, x) : 0;
}
#else
double bfloat16_peak(long steps, float x, float y) { (void)steps, (void)x, (void)y; return 0; }
#endif

/* TDPBF16PS of AMX: 16 x 16 sums of 32 products each. Six tiles of sums hide its latency. */
#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 11)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The system gives a process the tiles when it asks for them. */
static int has_amx(void) {
    const long request_permission = 0x1023, tile_data = 18;
    const unsigned bfloat16_and_tiles = 1u << 22 | 1u << 24;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bfloat16_and_tiles) == bfloat16_and_tiles
        && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

__attribute__((target("amx-tile,amx-bf16")))
static void amx_loop(long steps) {
    struct { unsigned char palette, start, zeros[14]; unsigned short bytes[16]; unsigned char rows[16]; } config = {1};
    for (int tile = 0; tile < 8; tile++)
        config.bytes[tile] = 64, config.rows[tile] = 16;
    _tile_loadconfig(&config);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
    _tile_zero(6); _tile_zero(7);
    for (long step = 0; step < steps; step += 6) {
        _tile_dpbf16ps(0, 6, 7); _tile_dpbf16ps(1, 6, 7); _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7); _tile_dpbf16ps(4, 6, 7); _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
}

double amx_peak(long steps, float x, float y) {
    (void)x, (void)y;
    if (!has_amx())
        return 0;
    amx_loop(steps);
    return 2.0 * 16 * 16 * 32 * steps;
}
#else
double amx_peak(long steps, float x, float y) { (void)steps, (void)x, (void)y; return 0; }
#endif

void read_often(const char *data, size_t size, long times) {
    while (times--)
        BEST(read)(data, size);
}
"""


class Limits:
    """Measure the limits for a number of threads, when asked for."""

    def __init__(self, threads: int = 1):
        self.threads = threads
        self._library = _compile()
        self._buffer = np.ones(MEMORY_BYTES // 8)

    def least_seconds(self, case: Case, inputs: Inputs) -> float:
        """Return the time that the machine's arithmetic and memory leave to a case."""
        arrays = [*inputs.arrays, *(x for x in inputs.options.values() if isinstance(x, np.ndarray))]
        read = sum(array.nbytes for array in arrays)
        if "key_lengths" in inputs.options:  # nobody needs what lies behind them
            attended = float(np.mean(inputs.options["key_lengths"])) / case.keys
            read -= int((1 - attended) * sum(array.nbytes for array in inputs.arrays[1:]))
        return max(case.flops / self.peak_flops(case.dtype), read / self.read_bandwidth(read))

    @property
    def method(self) -> str:
        """Return what measures the limits."""
        return "C" if self._library else "NumPy, a lower bound"

    @functools.cache  # noqa: B019 (there are as many of these objects as runs: one)
    def peak_flops(self, dtype: str) -> float:
        """Return the floating-point operations a second: multiply-adds of float32, or of half as many float64. For
        bfloat16 it returns those of AMX or VDPBF16PS if they are more. float16 is computed in float32."""
        if dtype == "bfloat16":
            own = [self._peak(function) for function in ("bfloat16_peak", "amx_peak")] if self._library else []
            return max(self.peak_flops("float32"), *own)
        if dtype != "float32":
            return self.peak_flops("float32") / (2 if dtype == "float64" else 1)
        if self._library:
            return self._peak("peak")
        a = np.ones((1024, 1024), np.float32)
        return 2 * 1024**3 / _fastest(lambda: a @ a)

    def _peak(self, function: str) -> float:
        peak, steps = getattr(self._library, function), 20_000_000
        flops = peak(1, 0.5, 0.5) * steps * self.threads
        return flops / _fastest(lambda: self._on_all_threads(lambda _: peak(steps, 0.5, 0.5)))

    def read_bandwidth(self, size: int = MEMORY_BYTES) -> float:
        """Return the bytes a second when `size` bytes are read again and again. Few bytes come from a cache."""
        size = min(max(size, 1 << 14), MEMORY_BYTES) // self.threads // 256 * 256
        parts = [self._buffer.view(np.uint8)[i * size : (i + 1) * size] for i in range(self.threads)]
        repeats = max(1, (MEMORY_BYTES // 4) // (size * self.threads))

        def read(thread: int) -> None:
            if self._library:
                self._library.read_often(parts[thread].ctypes.data, size, repeats)
            else:
                for _ in range(repeats):
                    parts[thread].view(np.float64).max()

        return size * self.threads * repeats / _fastest(lambda: self._on_all_threads(read))

    def _on_all_threads(self, work: Callable[[int], object]) -> None:
        if self.threads == 1:
            work(0)
            return
        processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []

        def work_apart(thread: int) -> None:
            if processors:  # otherwise new threads share a processor for a while
                os.sched_setaffinity(0, {processors[thread % len(processors)]})
            work(thread)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work_apart, range(self.threads)))


def _fastest(work: Callable[[], object], samples: int = 7) -> float:
    """Return the seconds, the median of the faster half: interruptions only ever make it slower."""
    taken = []
    for _ in range(samples):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(sorted(taken)[: samples // 2 + 1])


def _compile() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "limits.c"), Path(folder, "limits.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            subprocess.run([compiler, *flags, source, "-o", target], check=True, capture_output=True)
            library = ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError):
            return None
    for peak in (library.peak, library.bfloat16_peak, library.amx_peak):
        peak.argtypes = ctypes.c_long, ctypes.c_float, ctypes.c_float
        peak.restype = ctypes.c_double
    library.read_often.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long
    library.read_often.restype = None
    return library
