"""Whole calls between pages that cannot be read: every array argument, what a call allocates, and its workspace.

`python tests/guarded_calls.py 30000` makes so many problems of all functions in registry.py, shared among the kernel
tables that run here. Each is computed three times: in ordinary memory, with everything flush against an unreadable page
with its end, and with its beginning. All three must have the same bits. What lies between the elements of an array,
and around it, is full of bytes that must stay. Memory is new and full of other bytes each time.

Arguments lie in a `Fence` of kernel_memory.py. NumPy's arrays, and what the module asks malloc for, are placed by
guard_pages.c, which needs Linux and a C compiler. Without these, arguments alone are guarded. Workspaces of up to
16 KiB are on the stack. After `CFLAGS=-D__builtin_alloca=malloc pip install -e .` they are guarded as well.

A stray access ends the process, so that each table is checked in one of its own, which says what it is about to do.
"""

import contextlib
import ctypes
import faulthandler
import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import cases
import numpy as np
from helpers import HERE, environment
from kernel_memory import Fence
from registry import FUNCTIONS, Function, arrays_of, fingerprint, with_arrays

import cattn
from cattn import _kernel

LARGEST = 2**20  # bytes of an argument, gaps included
ROWS, ROW_BYTES = 700, 4096  # of arrays whose rows have pages of their own
FILLS = {True: 0xFF, False: 0x55}  # of new memory, by where it is guarded: NaN, and about 1e13
SLACK = 64  # bytes that execute.pxd asks for beside the workspace, to align it


# Problems beside those of the registry


def _many_keys(seed, types=tuple(cases.TYPES)):
    """Return a problem with up to 20,000 keys, which has partial results and may have several threads."""
    dtype = cases.TYPES[str(np.random.default_rng([seed, 9]).choice(list(types)))]
    arguments, _ = cases.flat_case(seed, dtype, work=4_000_000)
    return arguments | {"return_lse": seed % 2 == 0, "num_threads": 1 + seed % 3}


def _wide_values(seed, types=tuple(cases.TYPES)):
    """Return a problem whose values are computed some columns at a time, with keys up to the largest head size."""
    random = np.random.default_rng([seed, 10])
    dtype = cases.TYPES[str(random.choice(list(types)))]
    rows, keys, heads = (int(random.integers(1, most)) for most in (12, 6, 3))
    size, value_size = int(random.choice([3, 64, 16383, 16384])), 16384 + int(random.integers(2100))
    shapes = (heads, rows, size), (1, keys, size), (1, keys, value_size)
    arrays = [(random.standard_normal(shape) / 100).astype(dtype) for shape in shapes]
    return dict(zip(("query", "key", "value"), arrays, strict=True)) | {"causal": rows == keys}


def _many_sequences(seed, types=tuple(cases.TYPES)):
    """Return sequences of the registry and 1,100 empty ones. Such a call never has its workspace on the stack."""
    arguments = FUNCTIONS["attention_varlen"].arguments(seed, types)
    for name in ("query_indptr", "key_indptr"):
        indptr = arguments[name]
        arguments[name] = np.concatenate([indptr, np.full(1100, indptr[-1], indptr.dtype)])
    return arguments


MORE = (
    Function("attention over many keys", _many_keys, cattn.attention, FUNCTIONS["attention"].check),
    Function("attention of wide values", _wide_values, cattn.attention, FUNCTIONS["attention"].check),
    Function(
        "attention_varlen of many sequences",
        _many_sequences,
        cattn.attention_varlen,
        FUNCTIONS["attention_varlen"].check,
    ),
)
ANY_BITS = {"plan", "self_attention", "trace"}  # NumPy's products of matrices depend on strides, and so do plans
SHARES = {
    "attention": 10,
    "cattn.h": 6,
    "attention_weights": 5,
    "attention_varlen": 4,
    "attention_paged": 4,
    "attention_varlen of many sequences": 2,
    "flash_attn.flash_attn_func": 2,
}


def functions(everything):
    """Return the functions that are there. Those that need PyTorch or Dask, which take long to import, come only if
    everything is wanted."""
    found = [function for function in (*FUNCTIONS.values(), *MORE) if not function.needs]
    return found + [x for x in FUNCTIONS.values() if everything and x.needs and x.is_there]


# Arguments


class Arguments:
    """Memory for the arguments of a call."""

    def __init__(self):
        self.whole = Fence(24, LARGEST)
        self.rows = Fence(ROWS, ROW_BYTES)

    def place(self, arguments, outputs, at_end, random):
        """Return the arguments with each array at the edge of a page, in its own strides or in others."""
        arrays, self.results = {}, []
        for place, x in arrays_of(arguments):
            is_result = place[0] in outputs
            new = self._apart(x, at_end) if random.random() < 0.3 else None
            if new is None:
                new = self._whole(x, x.strides if random.random() < 0.5 else spread(x, is_result, random), at_end)
            if is_result:
                self.results.append(new)
                clear(new)
            else:
                new[...] = x
            arrays[place] = new
        for fence in (self.whole, self.rows):
            fence.freeze(len(fence.used))
        return with_arrays(arguments, arrays)

    def _whole(self, x, strides, at_end):
        first, bytes = extent(x, strides)
        room = self.whole.allocate(len(self.whole.used), [bytes], np.uint8, at_end)
        return np.ndarray(x.shape, x.dtype, room, first, strides)

    def _apart(self, x, at_end):
        """Return memory in which each row lies between pages of its own, or None if rows are too many or too long."""
        if x.ndim < 2 or x.size == 0:
            return None
        slot, rows, bytes = len(self.rows.used), x.size // x.shape[-1], x.shape[-1] * x.itemsize
        if slot + rows > ROWS or bytes > ROW_BYTES:
            return None
        first, *_ = [self.rows.allocate(slot + n, [bytes], np.uint8, at_end) for n in range(rows)]
        steps = np.cumprod((1, *x.shape[-2:0:-1]))[::-1]
        strides = *(int(step) * self.rows.pitch for step in steps), x.itemsize
        return np.ndarray(x.shape, x.dtype, self.rows.bytes, first.ctypes.data - self.rows.address, strides)

    def settle(self):
        """Raise AssertionError if an input has changed, or anything around the elements of a result."""
        for x in self.results:
            clear(x)
        for fence in (self.whole, self.rows):
            fence.check()


def clear(x):
    """Fill an array with what a fence is full of."""
    unsigned = np.dtype(f"u{x.itemsize}")
    x.view(unsigned)[...] = np.iinfo(unsigned).max


def extent(x, strides):
    """Return how many bytes lie before the first element, and how many all elements span."""
    if x.size == 0:
        return 0, 0
    steps = [(n - 1) * stride for n, stride in zip(x.shape, strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    return before, before + sum(step for step in steps if step > 0) + x.itemsize


def spread(x, is_result, random):
    """Return other strides: the axes have any order and either direction, and gaps that may be no whole elements.
    Elements that share memory still do."""
    may_misalign = not is_result and x.dtype.kind != "i"  # C wants integers and results aligned
    strides, stride = [0] * x.ndim, x.itemsize
    for axis in random.permutation(x.ndim):
        if x.strides[axis] or x.shape[axis] < 2 or is_result:
            gap = int(random.integers(0, 4)) * (1 if may_misalign and random.random() < 0.1 else x.itemsize)
            stride += gap if random.random() < 0.5 else 0
            strides[axis] = stride * int(random.choice([1, -1]))
            stride *= max(1, x.shape[axis])
    return strides


# Blocks


class Blocks:
    """Redirect what NumPy and the module allocate, so that guard_pages.c places it. Without it, nothing is guarded."""

    def __init__(self):
        self.library = None
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        if not hasattr(library, "guard_open"):
            return
        self.library = library
        with open("/proc/self/maps", encoding="utf-8") as file:
            code = [line.split()[0] for line in file if " r-xp " in line and line.strip().endswith(_kernel.__file__)]
        low, high = (ctypes.c_void_p(int(address, 16)) for address in code[0].split("-"))
        library.guard_open(low, high)
        for name in ("workspaces", "others", "live"):
            getattr(library, "guard_" + name).restype = ctypes.c_ssize_t
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        handler = ctypes.c_char.in_dll(library, "guard_handler")
        self.handler = new(ctypes.addressof(handler), b"mem_handler", None)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        numpy = pointer(np._core._multiarray_umath._ARRAY_API, None)
        address = ctypes.cast(numpy, ctypes.POINTER(ctypes.c_void_p))[304]  # numpy/__multiarray_api.h
        self.set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)

    @contextlib.contextmanager
    def guarded(self, at_end):
        if self.library is None:
            yield
            return
        before = self.set_handler(self.handler)
        self.library.guard_begin(at_end, FILLS[at_end], ctypes.c_size_t(SLACK))
        try:
            yield
        finally:
            self.library.guard_end()
            self.set_handler(before)

    def counted(self, what):
        return 0 if self.library is None else getattr(self.library, "guard_" + what)()


# One process


def say(kind, what):
    print(json.dumps([kind, what]), flush=True)


def check(function, seed, arguments, memory, blocks):
    """Compute a problem three times, and compare the results."""
    expected = fingerprint(function.call(**arguments))
    for at_end in (True, False):
        placed = memory.place(arguments, function.outputs, at_end, np.random.default_rng([seed, 11]))
        try:
            with blocks.guarded(at_end):
                result = function.call(**placed)
            if function.name in ANY_BITS:
                function.check(placed, result)
            else:
                assert fingerprint(result) == expected, "other bits"
        finally:
            placed = result = None
            memory.settle()


def check_all(first, count, everything):
    """Make so many problems from seeds first, first + 1, ..., and say what came of them."""
    faulthandler.enable()
    known, begin = functions(everything), time.monotonic()
    shares = np.array([SHARES.get(function.name, 0.3 if function.needs else 1) for function in known])
    names = [function.name for function in known]
    for function in known:
        function.call(**function.arguments(0))  # which imports what there is to import
    memory, blocks, counts = Arguments(), Blocks(), dict.fromkeys(names, 0)
    for seed in itertools.count(first):
        function = known[np.random.default_rng([seed, 12]).choice(len(known), p=shares / shares.sum())]
        arguments = function.arguments(seed)
        if any(extent(x, x.strides)[1] > LARGEST // 8 for _, x in arrays_of(arguments)):
            continue
        if sum(counts.values()) == count:
            break
        say("problem", f"{function.name}, seed {seed}: {cases.describe(arguments)}")
        try:
            check(function, seed, arguments, memory, blocks)
        except Exception as error:
            say("failure", f"{type(error).__name__}: {error}")
        counts[function.name] += 1
        if seed % 1000 == 0:
            gc.collect()
    blocks_of = {name: blocks.counted(name) for name in ("workspaces", "others")}
    say("end", {"table": _kernel.isa(), "problems": counts, "seconds": time.monotonic() - begin, **blocks_of})


# All processes


def library(folder):
    """Compile guard_pages.c in a folder. Return its path, or None where it cannot be compiled."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        return None
    path = Path(folder, "guard_pages.so")
    command = [*compiler.split(), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, HERE / "guard_pages.c", "-o", path, "-ldl"], check=True)
    return path


def run(isa, count, preload, *, first=None, everything=True):
    """Check a table in a process of its own. Return its summary and its failures."""
    first = zlib.crc32(isa.encode()) % 10**6 if first is None else first
    changes = {"CATTN_ISA": isa, "LD_PRELOAD": str(preload)} if preload else {"CATTN_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--", str(first), str(count), str(int(everything))],
        env=environment(**changes), cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    problem, failures, summary = None, [], None
    for kind, what in map(json.loads, done.stdout.splitlines()):
        if kind == "problem":
            problem = what
        elif kind == "failure":
            failures.append(f"{isa}, {problem}: {what}")
        else:
            summary = what
    if summary is None:
        failures.append(f"{isa}, {problem}: the process ended with {done.returncode}. {done.stderr}")
    return summary, failures


def main(count):
    isas, wrong = _kernel.runnable_isas(), 0
    total = {"problems": 0, "workspaces": 0, "others": 0, "seconds": 0}
    with tempfile.TemporaryDirectory() as folder:
        preload = library(folder)
        for isa in isas:
            summary, failures = run(isa, -(-count // len(isas)), preload)
            wrong += len(failures)
            print(*failures, sep="\n", end="\n" if failures else "")
            if summary:
                summary["problems"] = sum(summary["problems"].values())
                total = {name: total[name] + summary[name] for name in total}
                print("{table}: {problems:,} problems in {seconds:.0f} s, {workspaces:,} workspaces".format(**summary))
    print("{problems:,} problems, {workspaces:,} guarded workspaces, {seconds:.0f} s".format(**total), end="; ")
    print(f"{wrong} failures")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1] == "--":
        check_all(*map(int, sys.argv[2:]))
    else:
        sys.exit(main(int(sys.argv[1])))
