"""cattn from C and Cython: what cattn.h promises.

The function is called where its capsule says, by ctypes; and, in the long tests, by an extension module in C and one in
Cython that are compiled against the package, wherever it is installed.
"""

import concurrent.futures
import ctypes
import importlib.util
import itertools
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from pathlib import Path

import cases
import numpy as np
import pytest
from helpers import EVERY_TYPE, HERE, PACKAGE, assert_same_bits, problem, python, run_python, zeros

import cattn
from cattn import _kernel

HEADER = Path(cattn.get_include(), "cattn.h")

# What cattn.h declares. These numbers and this order stay as they are: programs were compiled with them.

BOOL, INT64 = 4, 5
TYPES = {
    dtype: number
    for number, dtype in enumerate(cases.TYPES[name] for name in ("float32", "float64", "float16", "bfloat16"))
} | {np.dtype(bool): BOOL, np.dtype(np.int64): INT64}
CAUSAL, HAS_SCALE, HAS_WINDOW, OFFSET_START, OFFSET_END = 1, 2, 4, 8, 16
DONE, STOPPED, NO_MEMORY, TOO_MANY_TASKS, NOT_IMPORTED = range(5)
ARGUMENTS = (
    *("args", "flags", "num_threads", "scale", "softcap", "window", "query", "key", "value", "out", "lse"),
    *("query_offset", "query_lengths", "key_lengths", "key_start", "key_stop", "mask", "bias", "alibi_slopes", "sinks"),
)
ARRAYS = ARGUMENTS[6:]
NULL, SHAPE, TYPE, VALUE, MISALIGNED, OVERLAPS, MISSING, UNKNOWN = range(1, 9)


class Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
    ]


WantsToStop = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class Args(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("flags", ctypes.c_uint),
        ("num_threads", ctypes.c_int),
        *((name, Array) for name in ("query", "key", "value", "out", "lse")),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        *((name, Array) for name in ARRAYS[5:]),
        ("wants_to_stop", WantsToStop),
        ("context", ctypes.c_void_p),
    ]


class Functions(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_int),
        ("version", ctypes.c_int),
        ("attention", ctypes.c_void_p),
        ("message", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
    ]


def functions():
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Functions.from_address(pointer(_kernel.c_api, b"cattn._kernel.c_api"))


def message(status):
    return functions().message(status).decode()


def args_of(arguments):
    """As a struct."""
    args = Args(struct_size=ctypes.sizeof(Args))
    for name, given in arguments.items():
        setattr(args, name, Array(*given) if isinstance(given, tuple) else given)
    return args


def capsule(arguments, kind=ctypes.CFUNCTYPE):
    """(status, message) of a call through the capsule, without the GIL."""
    args = args_of(arguments)
    status = kind(ctypes.c_int, ctypes.c_void_p)(functions().attention)(ctypes.addressof(args))
    return status, message(status)


def capsule_with_gil(arguments):
    return capsule(arguments, ctypes.PYFUNCTYPE)


# The same by extension modules


def examples():
    """The examples of the header, in C and in Cython."""
    comment = HEADER.read_text(encoding="utf-8").partition("*/")[0]
    lines = [line.removeprefix(" *") for line in comment.splitlines()[1:]]
    found = [[], []]
    for line in lines:
        if line.startswith(" In C:"):
            language = 0
        elif line.startswith(" In Cython"):
            language = 1
        elif line.startswith("     ") or (not line.strip() and "language" in locals()):
            found[language].append(line)
    return [textwrap.dedent("\n".join(lines)) for lines in found]


SETUP = """
import os
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
import cattn

strict = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
in_c = {"include_dirs": [cattn.get_include()], "extra_compile_args": strict, "extra_link_args": ["-pthread"]}
sources = ["in_c.c", "without_import.c", "without_python.c"]
setup(
    name="callers",
    ext_modules=[
        Extension("in_c", sources, **in_c),
        Extension("example_in_c", ["example_in_c.c"], **in_c),
        *cythonize(["in_cython.pyx", "example_in_cython.pyx"], language_level=3),
    ],
)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the modules, which Python finds."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    if sys.platform == "win32":
        pytest.skip("the modules have POSIX threads")
    folder = tmp_path_factory.mktemp("callers")
    for file in (HERE / "c_interface").iterdir():
        shutil.copy(file, folder)
    for name, text in zip(("example_in_c.c", "example_in_cython.pyx", "setup.py"), (*examples(), SETUP), strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    done = run_python("setup.py", "build_ext", "--inplace", cwd=folder, CFLAGS="-O1")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def load(built, name):
    (path,) = built.glob(f"{name}.*{sysconfig.get_config_var('SHLIB_SUFFIX')}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOORS = ["capsule", *(pytest.param(name, marks=pytest.mark.slow) for name in ("in_c", "in_cython"))]


@pytest.fixture(params=DOORS)
def door(request):
    """What takes a dict of arguments, by the names of the struct's fields, and answers (status, message)."""
    if request.param == "capsule":
        return capsule
    return load(request.getfixturevalue("built"), request.param).attention


# Arguments


def described(array, **changes):
    """An array as the fields of cattn_ndarray, and what must live as long as they are used."""
    axes = ctypes.c_ssize_t * array.ndim
    shape, strides = axes(*changes.get("shape", array.shape)), axes(*array.strides)
    addresses = ctypes.addressof(shape), ctypes.addressof(strides)
    return (array.ctypes.data, TYPES[array.dtype], array.ndim, *addresses), (array, shape, strides)


def broadcast(*shapes):
    """NumPy's own takes 32 axes."""
    sizes = itertools.zip_longest(*map(reversed, shapes), fillvalue=1)
    return tuple(min(axis) if 0 in axis else max(axis) for axis in sizes)[::-1]


class Call:
    """A call of `attention` in Python as arguments for C: `arguments`, by the names of the struct's fields, arrays
    described; and the arrays themselves, by the same names."""

    def __init__(self, out_dtype=None, with_lse=True, spread=False, **given):
        self.arrays, self.numbers = self.converted(given), {}
        query, key, value = (self.arrays[name] for name in ("query", "key", "value"))
        self.set_numbers(given)
        batch = broadcast(*(x.shape[:-3] for x in (query, key, value)))
        shape = (*batch, *query.shape[-3:-1], value.shape[-1])
        self.arrays["out"] = self.new(shape, out_dtype or query.dtype, spread)
        if with_lse:
            dtype = np.float64 if query.dtype == np.float64 else np.float32
            self.arrays["lse"] = self.new(shape[:-1], np.dtype(dtype), spread)

    @staticmethod
    def new(shape, dtype, spread):
        """Memory that is full of NaN, with gaps if asked for."""
        if not spread or not shape:
            return np.full(shape, np.nan, dtype)
        return np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)[..., ::-2]

    @staticmethod
    def converted(given):
        """In the types and the order of axes that C wants."""
        arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
        if given.get("layout") == "blhd":
            arrays |= {name: arrays[name].swapaxes(-2, -3) for name in ("query", "key", "value")}
        for name in ("query_lengths", "key_lengths", "query_offset"):
            if given.get(name) is not None and not isinstance(given[name], str):
                arrays[name] = np.array(given[name], np.int64)
        for name, bound in zip(("key_start", "key_stop"), given.get("key_range") or (None, None), strict=True):
            if bound is not None:
                arrays[name] = np.array(bound, np.int64)
        return {name: x if x.dtype.isnative else x.astype(x.dtype.newbyteorder()) for name, x in arrays.items()}

    def set_numbers(self, given):
        flags = 0
        if given.get("causal"):
            flags |= CAUSAL
        if given.get("scale") is not None:
            flags |= HAS_SCALE
            self.numbers["scale"] = given["scale"]
        if given.get("window") is not None:
            flags |= HAS_WINDOW
            left, right = (-1 if side is None else side for side in given["window"])
            self.numbers |= {"window_left": left, "window_right": right}
        flags |= {"start": OFFSET_START, "end": OFFSET_END}.get(str(given.get("query_offset")), 0)
        self.numbers |= {"flags": flags, "softcap": given.get("softcap") or 0}

    @property
    def arguments(self):
        self.alive = []
        found = dict(self.numbers)
        for name, array in self.arrays.items():
            found[name], alive = described(array)
            self.alive.append(alive)
        return found

    @property
    def results(self):
        return tuple(self.arrays[name] for name in ("out", "lse") if name in self.arrays)


def check(door, case, num_threads=0, **options):
    """Against Python, bit for bit."""
    call = Call(**case, **options)
    call.numbers["num_threads"] = num_threads
    assert door(call.arguments) == (DONE, "done"), cases.describe(case)
    expected = cattn.attention(**case, return_lse=True, num_threads=1)
    if case.get("layout") == "blhd":
        expected = expected[0].swapaxes(-2, -3), expected[1].swapaxes(-1, -2)
    assert_same_bits(call.results, expected[: len(call.results)])
    return call


# The same as in Python


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_cases(door, first):
    """Of all types and strides, with any modifiers, that broadcast; out and lse with gaps in every other one."""
    for seed in range(first, first + 50):
        check(door, cases.case(seed), num_threads=seed % 4, spread=seed % 2 == 1)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_keys_beside_float32(door, name):
    for seed in range(20):
        check(door, cases.case(seed, types=("float32",), key_type=name))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_float32_out(door, name):
    case = problem(20, 33, cases.TYPES[name])
    call = Call(**case, out_dtype=np.dtype(np.float32))
    assert door(call.arguments) == (DONE, "done")
    assert_same_bits(call.arrays["out"], cattn.attention(**case, out=np.empty(call.arrays["out"].shape, np.float32)))


@EVERY_TYPE
def test_without_lse(door, dtype):
    check(door, problem(20, 33, dtype), with_lse=False)


def test_contiguous_by_default(door):
    """Strides that are NULL."""
    case = problem(9, 17) | {"mask": np.random.default_rng(0).random((2, 4, 9, 17)) < 0.5}
    call = Call(**case)
    arguments = call.arguments
    for name in call.arrays:
        arguments[name] = (*arguments[name][:4], 0)
    assert door(arguments) == (DONE, "done")
    assert_same_bits(call.results, cattn.attention(**case, return_lse=True))


@pytest.mark.parametrize("name", cases.TYPES)
def test_slopes_and_sinks_of_every_type(door, name):
    """Which are copied."""
    random = np.random.default_rng(0)
    slopes, sinks = (random.uniform(0.1, 1, shape).astype(cases.TYPES[name]) for shape in ((3, 1, 4), (4,)))
    case = problem(5, 9, batch=(3, 2)) | {"alibi_slopes": slopes, "sinks": sinks, "query_offset": "end"}
    check(door, case)
    check(door, case | {"alibi_slopes": np.repeat(slopes, 2, -1)[..., ::2], "sinks": sinks[::-1]})


@pytest.mark.parametrize("lengths", [(), ("query_lengths",), ("key_lengths",), ("query_lengths", "key_lengths")])
def test_offset_from_the_end(door, lengths):
    values = {"query_lengths": np.array([[0], [3]]), "key_lengths": np.array([2, 9, 5])}
    modifiers = {name: values[name] for name in lengths} | {"causal": True, "query_offset": "end"}
    check(door, problem(4, 9, batch=(2, 3)) | modifiers)
    check(door, problem(4, 9, batch=(2, 3)) | modifiers | {name: np.array(1) for name in lengths})


def test_mask_bytes(door):
    """Any but 0 is true."""
    case = problem(20, 70)
    mask = np.random.default_rng(0).integers(0, 256, (20, 70)).astype(np.uint8) * (np.arange(70) % 3 != 0)
    call = Call(**case, mask=mask.astype(np.uint8).view(bool))
    assert door(call.arguments)[0] == DONE
    assert_same_bits(call.results, cattn.attention(**case, mask=mask != 0, return_lse=True))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 0, 6), (2, 5, 6), (2, 5, 3)),
        ((2, 4, 6), (2, 0, 6), (2, 0, 3)),
        ((2, 4, 6), (2, 5, 6), (2, 5, 0)),
        ((0, 4, 6), (0, 5, 6), (0, 5, 3)),
        ((0, 2, 4, 6), (2, 5, 6), (1, 2, 5, 3)),
    ],
    ids=str,
)
def test_empty_arrays(door, shapes):
    """Without elements, data may be NULL."""
    case = {name: np.zeros(shape, np.float32) for name, shape in zip(("query", "key", "value"), shapes, strict=True)}
    check(door, case)
    call = Call(**case)
    arguments = call.arguments
    arguments |= {name: (0, *arguments[name][1:]) for name, x in call.arrays.items() if x.size == 0}
    assert door(arguments) == (DONE, "done")
    assert_same_bits(call.arrays["out"], cattn.attention(**case))


def test_many_axes(door):
    check(door, problem(3, 5, batch=(1,) * 58 + (2, 1, 3)))


def test_huge_positions(door):
    """Where a sum of them would not fit an int64, nothing overflows."""
    case = problem(4, 9)
    for offset in (-(2**60), 2**60):
        check(door, case | {"causal": True, "query_offset": offset})
        check(door, case | {"window": (2**63 - 1, 2**63 - 1), "query_offset": offset})
    far = np.array([2**63 - 1, -(2**63), 0, 3])
    check(door, case | {"key_range": (far, far[::-1].copy())})


# Threads, processes, signals


def big(**changes):
    """More work than one thread is given alone."""
    return problem(150, 150, batch=(), heads=3, key_heads=3, size=64, value_size=64, **changes)


def test_under_the_gil():
    for threads in (0, 1, 3):
        check(capsule_with_gil, big(), num_threads=threads)
    for seed in range(20):
        check(capsule_with_gil, cases.case(seed))


def test_num_threads(door):
    for threads in (0, 1, 2, 3, 2000, 2**31 - 1):
        check(door, big(), num_threads=threads)


def test_calls_at_once(door):
    def works(seed):
        return check(door, big(seed=seed), num_threads=1 + seed % 3) is not None

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(works, range(40)))


IN_THREADS = """
import sys
import tracemalloc
import in_c
import cattn
import test_c_interface as test

given = [test.big(seed=seed) for seed in range(8)] + [test.cases.case(seed) for seed in range(8)]
calls = [test.Call(**case) for case in given]
for number, call in enumerate(calls):
    call.numbers["num_threads"] = 1 + number % 3
if sys.argv[1] == "traced":
    tracemalloc.start()
assert in_c.attention_in_threads([call.arguments for call in calls]) == (test.DONE, "done")
tracemalloc.stop()
for call, case in zip(calls, given):
    if "layout" not in case:
        test.assert_same_bits(call.results, cattn.attention(**case, return_lse=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["traced", "not traced"])
def test_threads_unknown_to_python(built, memory):
    """Beside one that holds the GIL and waits for them. Python's allocators take it where allocations are traced."""
    python(IN_THREADS, memory, cwd=built, seconds=60)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_fork(door):
    def works(threads):
        return check(door, big(), num_threads=threads) is not None

    assert works(3)
    with warnings.catch_warnings():  # Python >= 3.12 warns of a fork beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            status = 0 if works(3) and works(1) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert works(3)


def long_call():
    """A quarter of a second or more, with one thread."""
    one = problem(1024, 1024, batch=(), heads=1, key_heads=1, size=64, value_size=64)
    return Call(**{name: np.broadcast_to(array, (96, 1024, 64)) for name, array in one.items()})


@pytest.mark.parametrize("num_threads", [1, 2])
def test_stops_when_asked(num_threads):
    """The callback gets its context, is called by the thread that called, and ends the call."""
    asked = []
    caller = ctypes.pythonapi.PyThread_get_thread_ident

    @WantsToStop
    def wants_to_stop(context):
        asked.append((context, caller()))
        return len(asked) == 2

    call = long_call()
    arguments = call.arguments | {"wants_to_stop": wants_to_stop, "context": 4711, "num_threads": num_threads}
    assert capsule(arguments) == (STOPPED, "wants_to_stop said so")
    assert asked == [(4711, caller())] * 2
    assert np.isnan(call.arrays["out"]).any()


def test_goes_on_when_asked():
    asked = []
    call = long_call()
    arguments = call.arguments | {"wants_to_stop": WantsToStop(lambda context: asked.append(context) is not None)}
    assert capsule(arguments) == (DONE, "done")
    assert asked
    assert not np.isnan(call.arrays["out"]).any()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_signals_wait():
    """Nobody handles them before the call has returned."""
    call = long_call()
    missing = []
    before = signal.signal(signal.SIGALRM, lambda *_: missing.append(np.isnan(call.arrays["out"]).any()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        assert capsule(call.arguments) == (DONE, "done")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert missing == [False]


# Older and newer versions


def test_struct_of_an_older_version():
    """One that ends before some of the fields, whatever lies behind it."""
    case = problem(9, 17)
    for field, *_ in Args._fields_[7:]:
        call = Call(**case, with_lse=False)
        args = args_of(call.arguments)
        end = getattr(Args, field).offset
        ctypes.memset(ctypes.addressof(args) + end, 0xFF, ctypes.sizeof(Args) - end)
        args.struct_size = end
        assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().attention)(ctypes.addressof(args)) == DONE
        assert_same_bits(call.arrays["out"], cattn.attention(**case))


@pytest.mark.parametrize("beyond", [1, 8, 1000])
def test_struct_of_a_newer_version(beyond):
    """One whose further fields are zero, or not."""
    case, size = problem(9, 17), ctypes.sizeof(Args)
    attention = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().attention)
    for at, value in ((0, 0), (0, 1), (beyond - 1, 255)):
        call = Call(**case)
        args = args_of(call.arguments)
        args.struct_size = size + beyond
        memory = ctypes.create_string_buffer(bytes(args), size + beyond + 1)
        memory[size + beyond] = b"\xff"
        memory[size + at] = bytes([value])
        status = attention(ctypes.addressof(memory))
        if value == 0:
            assert status == DONE
            assert_same_bits(call.results, cattn.attention(**case, return_lse=True))
        else:
            assert_wrong((status, message(status)), call, "args", UNKNOWN, "args: this version of cattn does not know")


@pytest.mark.parametrize("size", [0, 1, 7, Args.lse.offset - 1, 65_537, 2**40])
def test_struct_of_no_version(door, size):
    call = Call(**problem())
    found = door(call.arguments | {"struct_size": size})
    assert_wrong(found, call, "args", VALUE, "struct_size: expected sizeof(cattn_attention_args)")


def test_no_struct():
    status = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().attention)(None)
    assert (status, message(status)) == (1 << 8 | NULL, "args: expected a cattn_attention_args, got NULL")


def test_sizes_of_structs():
    """Those that programs were compiled with."""
    if sys.maxsize > 2**32:
        assert (ctypes.sizeof(Array), Args.lse.offset, ctypes.sizeof(Args)) == (32, 144, 512)


REPLACE = """
import ctypes
import sys
import cattn._kernel

class Functions(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_int), ("version", ctypes.c_int), ("others", ctypes.c_void_p * 2)]

abi, version = map(int, sys.argv[1:3])
functions, name = Functions(abi, version), sys.argv[3].encode()
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
if abi:
    cattn._kernel.c_api = new(ctypes.addressof(functions), name, None)
else:
    del cattn._kernel.c_api
try:
    __import__(sys.argv[4])
except ImportError as error:
    print(error)
"""
NAME = "cattn._kernel.c_api"
FOR = "cattn: expected version 1.1 of the interface for C, for which this module was compiled, found"
WITHOUT = "cattn: expected a version with an interface for C, found one without it; update cattn"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["in_c", "in_cython"])
@pytest.mark.parametrize(
    "abi, version, name, expected",
    [
        (1, 1, NAME, ""),
        (1, 2, NAME, ""),
        (1, 0, NAME, f"{FOR} 1.0; update cattn"),
        (2, 1, NAME, f"{FOR} 2.1; compile this module anew"),
        (0, 0, NAME, WITHOUT),
        (1, 1, "another", WITHOUT),
    ],
)
def test_capsules_of_other_versions(built, module, abi, version, name, expected):
    done = run_python("-W", "error", "-c", REPLACE, abi, version, name, module, cwd=built)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")


@pytest.mark.slow
def test_file_without_import(built):
    assert load(built, "in_c").attention_without_import() == (
        NOT_IMPORTED,
        "cattn_import() has not been called in this source file",
    )


@pytest.mark.slow
def test_file_without_python(built):
    check(load(built, "in_c").attention_without_python, big())


# Wrong arguments


def assert_wrong(found, call, argument, reason, begins):
    """And nothing has been written."""
    number = ARGUMENTS.index(argument) + 1
    assert (found[0] >> 8, found[0] & 255) == (number, reason), found
    assert found[1].startswith(begins), found[1]
    assert all(np.isnan(result.astype(np.float64)).all() for result in call.results)


def everything():
    """All arguments, of batch (2, 3), 4 and 2 heads, 5 queries and 9 keys of size 6, values of size 3."""
    random = np.random.default_rng(0)
    case = problem(5, 9, batch=(2, 3)) | {
        "scale": 0.5,
        "causal": True,
        "window": (4, 2),
        "query_offset": np.array([[1], [2]]),
        "query_lengths": np.array([5, 4, 3]),
        "key_lengths": np.array([9, 8, 7]),
        "key_range": (np.zeros((4, 5), int), np.full((3, 4, 5), 8)),
        "mask": random.random((5, 9)) < 0.8,
        "bias": random.standard_normal((4, 1, 9)).astype(np.float32),
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625]),
        "softcap": 20.0,
        "sinks": np.array([0.5, -np.inf, 1, 0]),
    }
    return Call(**case)


def test_everything(door):
    """What is made wrong below is right."""
    call = everything()
    assert door(call.arguments) == (DONE, "done")
    assert not np.isnan(call.arrays["out"]).any()


NUMBERS = [
    ("flags", "flags", 32, UNKNOWN, "flags: this version of cattn does not know"),
    ("flags", "flags", 2**31, UNKNOWN, "flags: this version of cattn does not know"),
    ("flags", "flags", 7 | OFFSET_START, VALUE, "flags: expected one of CATTN_OFFSET_START"),
    ("flags", "flags", 7 | OFFSET_END, VALUE, "flags: expected one of CATTN_OFFSET_START"),
    ("num_threads", "num_threads", -1, VALUE, "num_threads: expected 1 or more, or 0"),
    ("num_threads", "num_threads", -(2**31), VALUE, "num_threads: expected 1 or more, or 0"),
    *(
        ("scale", "scale", scale, VALUE, "scale: expected 0, or a finite number")
        for scale in (math.nan, math.inf, -math.inf, 1e-39, -1e39)
    ),
    ("scale", "flags", CAUSAL | HAS_WINDOW, MISSING, "scale: expected CATTN_HAS_SCALE"),
    *(
        ("softcap", "softcap", softcap, VALUE, "softcap: expected a finite number above 0, or 0")
        for softcap in (-1.0, -1e-300, math.nan, math.inf)
    ),
    ("window", "window_left", -2, VALUE, "window_left, window_right: expected 0 or more, or -1"),
    ("window", "window_right", -(2**63), VALUE, "window_left, window_right: expected 0 or more, or -1"),
    ("window", "flags", CAUSAL | HAS_SCALE, MISSING, "window_left, window_right: expected CATTN_HAS_WINDOW"),
]


@pytest.mark.parametrize("argument, field, value, reason, begins", NUMBERS)
def test_wrong_numbers(door, argument, field, value, reason, begins):
    call = everything()
    assert_wrong(door(call.arguments | {field: value}), call, argument, reason, begins)


def test_both_words_for_the_offset(door):
    call = everything()
    del call.arrays["query_offset"]
    call.numbers["flags"] |= OFFSET_START | OFFSET_END
    assert_wrong(door(call.arguments), call, "flags", VALUE, "flags: expected one of CATTN_OFFSET_START")


@pytest.mark.parametrize("scale, works", [(1e-310, False), (1e-300, True), (1e300, True)])
def test_scales_of_float64(door, scale, works):
    call = Call(**problem(dtype=np.float64), scale=scale)
    found = door(call.arguments)
    if works:
        assert found == (DONE, "done")
    else:
        assert_wrong(found, call, "scale", VALUE, "scale: expected 0, or a finite number")


@pytest.mark.parametrize(
    "modifier", [{"causal": True}, {"window": (-1, 0)}, {"window": (3, None)}, {"alibi_slopes": np.ones(4)}], ids=str
)
def test_missing_offset(door, modifier):
    call = Call(**problem(5, 9), **modifier)
    begins = "query_offset: expected CATTN_OFFSET_START (row 0 of the queries stands at key 0) or CATTN_OFFSET_END"
    assert_wrong(door(call.arguments), call, "query_offset", MISSING, begins)


@pytest.mark.parametrize("modifier", [{}, {"window": (-1, None)}, {"softcap": 1.0}], ids=str)
def test_offset_that_is_not_needed(door, modifier):
    check(door, problem(5, 9) | modifier)
    check(door, problem(9, 9) | modifier | {"causal": True})


NEEDED = ("query", "key", "value", "out")


@pytest.mark.parametrize("name", NEEDED)
def test_arrays_that_are_needed(door, name):
    call = everything()
    arguments = call.arguments
    begins = f"{name}: expected data and a shape, got NULL"
    assert_wrong(door(arguments | {name: (0, *arguments[name][1:])}), call, name, NULL, begins)
    del arguments[name]
    assert_wrong(door(arguments), call, name, NULL, begins)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_without_a_shape(door, name):
    call = everything()
    data, type, ndim, _, strides = call.arguments[name]
    if ndim == 0:
        pytest.skip("it has none")
    begins = f"{name}: expected {'data and a shape' if name in NEEDED else 'a shape beside the data'}, got NULL"
    assert_wrong(door(call.arguments | {name: (data, type, ndim, 0, strides)}), call, name, NULL, begins)


@pytest.mark.parametrize("name", ARRAYS)
def test_types(door, name):
    """Each array with each type that it may not have."""
    right = [0]
    if name in ("bias", "alibi_slopes", "sinks"):
        right = range(4)
    elif name == "mask":
        right = [BOOL]
    elif name.startswith(("key_", "query_")):
        right = [INT64]
    for type in {-1, *range(7), 2**31 - 1}.difference(right):
        call = everything()
        arguments = call.arguments
        data, _, *rest = arguments[name]
        wrong = name
        if name == "query" and 0 < type < 4:
            wrong = "key"  # which is to have the type of query
        elif name == "key" and type in (2, 3):
            wrong = "value"  # which is to have the type of key
        found = door(arguments | {name: (data, type, *rest)})
        assert_wrong(found, call, wrong, TYPE, f"{wrong}: expected type ")


@pytest.mark.parametrize(
    "types",
    [
        (1, 0, 0, 1),
        (0, 1, 1, 0),
        (2, 3, 3, 2),
        (2, 0, 0, 2),
        (1, 2, 2, 1),
        (0, 2, 3, 0),
        (2, 2, 2, 1),
        (0, 0, 0, 2),
        (1, 1, 1, 0),
        (2, 2, 2, 3),
    ],
    ids=str,
)
def test_types_together(door, types):
    """Of query, key, value and out."""
    call = Call(**problem(), with_lse=False)
    arguments = call.arguments
    for name, type in zip(ARRAYS[:4], types, strict=True):
        arguments[name] = (arguments[name][0], type, *arguments[name][2:])
    query, key, value, _ = types
    wrong = "key" if key != query and not (query == 0 and key > 1) else "value" if value != key else "out"
    assert_wrong(door(arguments), call, wrong, TYPE, f"{wrong}: expected type ")


SHAPES = [
    ("query", (6,)),
    ("query", (5, 6)),  # the others have more axes
    ("query", (2, 3, 4, 5, 0)),
    ("query", (2, 3, 3, 5, 6)),  # of two key heads
    ("query", (2, 2, 4, 5, 6)),
    ("query", (2, 3, 0, 5, 6)),
    ("key", (6,)),
    ("key", (9, 6)),
    ("key", (2, 3, 2, 9, 5)),
    ("key", (2, 3, 2, 8, 6)),
    ("key", (2, 3, 0, 9, 6)),
    ("key", (2, 3, 3, 9, 6)),
    ("key", (3, 3, 2, 9, 6)),
    ("value", (3,)),
    ("value", (9, 3)),
    ("value", (2, 3, 1, 9, 3)),
    ("value", (2, 3, 2, 8, 3)),
    ("value", (2, 4, 2, 9, 3)),
    ("out", (2, 3, 4, 5, 4)),
    ("out", (2, 3, 4, 4, 3)),
    ("out", (2, 3, 2, 5, 3)),
    ("out", (1, 3, 4, 5, 3)),
    ("out", (3, 4, 5, 3)),
    ("out", (1, 2, 3, 4, 5, 3)),
    ("lse", (2, 3, 4, 1)),
    ("lse", (2, 3, 1, 5)),
    ("lse", (2, 1, 4, 5)),
    ("lse", (2, 3, 4, 5, 1)),
    ("lse", (3, 4, 5)),
    *(
        (name, shape)
        for name in ("query_offset", "query_lengths", "key_lengths")
        for shape in ((2,), (3, 3), (2, 3, 1), (1, 2, 3))
    ),
    *(
        (name, shape)
        for name in ("key_start", "key_stop")
        for shape in ((4,), (3, 5), (2, 4, 5), (2, 2, 4, 5), (2, 3, 4, 5, 1), (1, 2, 3, 4, 5))
    ),
    *(
        (name, shape)
        for name in ("mask", "bias")
        for shape in ((8,), (4, 9), (2, 5, 9), (2, 4, 5, 9), (3, 3, 4, 5, 9), (1, 2, 3, 4, 5, 9))
    ),
    *(("alibi_slopes", shape) for shape in ((), (1,), (3,), (4, 1), (2, 4), (1, 2, 3, 4))),
    *(("sinks", shape) for shape in ((), (1,), (3,), (1, 4), (3, 4))),
    *((name, shape) for name in ARRAYS for shape in ((-1,), (2, 3, -4, 5, 6), (2**62, 4, 2), (0, 2**62, 2**62))),
]


@pytest.mark.parametrize("name, shape", SHAPES, ids=str)
def test_shapes(door, name, shape):
    call = everything()
    axes = (ctypes.c_ssize_t * len(shape))(*shape)
    data, type, *_ = call.arguments[name]
    wrong = name
    if name == "query" and len(shape) > 1 and shape[-1:] != (0,) and min(shape) >= 0 and max(shape) < 2**60:
        wrong = "key"  # which does not go with the query then
    elif name == "key" and shape == (2, 3, 2, 8, 6):
        wrong = "value"
    found = door(call.arguments | {name: (data, type, len(shape), ctypes.addressof(axes), 0)})
    assert_wrong(found, call, wrong, SHAPE, f"{wrong}: expected ")


def changed(random, array):
    """The array in another shape: an axis more, one less, or one of another size."""
    axis = int(random.integers(max(array.ndim, 1)))
    kind = random.choice(["more", "less", "one", "longer", "shorter"]) if array.ndim else "more"
    sizes = list(array.shape)
    if kind == "more":
        sizes.insert(0 if random.random() < 0.7 else axis, int(random.integers(1, 4)))
    elif kind == "less":
        del sizes[0 if random.random() < 0.7 else axis]
    else:
        sizes[axis] = {"one": 1, "longer": sizes[axis] + 1, "shorter": max(0, sizes[axis] - 1)}[kind]
    return np.resize(array, sizes).astype(array.dtype)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_refuses_what_python_refuses(door, first):
    """Some array of a random call, or two, in another shape: both say no, or give the same bits."""
    refused = 0
    for seed in range(first, first + 100):
        random = np.random.default_rng([seed, 17])
        case = cases.case(seed + 1000, modifiers=cases.MODIFIERS - {"layout"}, work=50_000)
        arrays = [name for name, given in case.items() if isinstance(given, np.ndarray)]
        for name in random.choice(arrays, random.integers(1, 3)):
            case[name] = changed(random, case[name])
        try:
            expected = cattn.attention(**case, return_lse=True)
        except ValueError:
            expected = None
        if min(case[name].ndim for name in ("query", "key", "value")) < 2:
            continue  # Call cannot tell the shape of out; test_shapes does
        call = Call(**case)
        status, _ = door(call.arguments)
        assert (status == DONE) == (expected is not None), cases.describe(case)
        if expected is None:
            refused += 1
        else:
            assert_same_bits(call.results, expected)
    assert 20 < refused < 80


@pytest.mark.parametrize("ndim", [-1, 65, 2**31 - 1])
@pytest.mark.parametrize("name", ARRAYS)
def test_numbers_of_axes(door, name, ndim):
    call = everything()
    data, type, _, *addresses = call.arguments[name]
    found = door(call.arguments | {name: (data, type, ndim, *addresses)})
    assert_wrong(found, call, name, SHAPE, f"{name}: expected ")


@pytest.mark.parametrize("name", ["out", "lse", "alibi_slopes", "sinks"])
def test_axes_of_one_that_are_missing(door, name):
    """What does not broadcast has all of its axes."""
    case = problem(5, 5, batch=(1, 2), heads=1, key_heads=1) | {"alibi_slopes": np.ones(1), "sinks": np.ones(1)}
    check(door, case)
    call = Call(**case)
    call.arrays[name] = call.arrays[name][0, ...]
    assert_wrong(door(call.arguments), call, name, SHAPE, f"{name}: expected ")


def test_two_axes(door):
    """Of all inputs or of none; what stands beside them has no axis for heads then."""
    random = np.random.default_rng(0)
    case = {
        name: random.standard_normal(shape)
        for name, shape in zip(("query", "key", "value"), ((5, 6), (9, 6), (9, 3)), strict=True)
    }
    modifiers = {
        "mask": random.random((5, 9)) < 0.7,
        "bias": random.standard_normal((5, 1)),
        "key_range": (np.arange(5), None),
        "sinks": np.zeros(1),
        "alibi_slopes": np.ones(1),
        "query_offset": np.array(2),
    }
    check(door, case | modifiers)
    for name, shape in (("mask", (1, 5, 9)), ("bias", (1, 5, 9)), ("key_start", (1, 5)), ("query_offset", (1,))):
        call = Call(**case)
        array = np.zeros(shape, {"mask": bool, "bias": float}.get(name, np.int64))
        call.arrays[name] = array
        assert_wrong(door(call.arguments), call, name, SHAPE, f"{name}: expected a shape that broadcasts")


VALUES = [
    *(("query_offset", value, "query_offset: expected integers from -2^60 to 2^60") for value in (2**60 + 1, -(2**63))),
    *(("query_lengths", value, "query_lengths: expected integers from 0 to Lq") for value in (-1, 6, 2**63 - 1)),
    *(("key_lengths", value, "key_lengths: expected integers from 0 to Lk") for value in (-1, 10, -(2**63))),
    *(("sinks", value, "sinks: expected finite numbers, or -infinity") for value in (math.inf, math.nan)),
]


@pytest.mark.parametrize("name, value, begins", VALUES)
def test_wrong_values(door, name, value, begins):
    """In the last element, behind a stride."""
    call = everything()
    array = np.repeat(call.arrays[name], 2, axis=-1)[..., ::2]
    array[(-1,) * array.ndim] = value
    call.arrays[name] = array
    assert_wrong(door(call.arguments), call, name, VALUE, begins)


@pytest.mark.parametrize("name", ["lse", "query_offset", "query_lengths", "key_lengths", "key_start", "key_stop"])
def test_misaligned(door, name):
    """The data, or a stride. All others may lie anywhere: test_cases."""
    call = everything()
    array = call.arrays[name]
    memory = np.zeros(array.nbytes * 2 + 8, np.uint8)
    memory[:] = 255 if name == "lse" else 0
    for start, step in ((1, 0), (0, 1)):
        strides = [stride + step for stride in array.strides]
        call.arrays[name] = np.ndarray(array.shape, array.dtype, memory, start, strides)
        assert_wrong(
            door(call.arguments), call, name, MISALIGNED, f"{name}: expected data and strides that are multiples"
        )


@pytest.mark.parametrize("spread, at", [(1, 8), (2, 0)], ids=["contiguous", "the same first element"])
@pytest.mark.parametrize("written", ["out", "lse"])
@pytest.mark.parametrize("name", [name for name in ARRAYS if name not in ("out", "lse")])
def test_overlaps(door, name, written, spread, at):
    call = everything()
    read, result = call.arrays[name], call.arrays[written]
    memory = np.full(spread * read.nbytes + result.nbytes + at, 255, np.uint8)
    strides = [spread * stride for stride in np.ascontiguousarray(read).strides]
    call.arrays[name] = np.ndarray(read.shape, read.dtype, memory, 0, strides)
    call.arrays[name][...] = read
    call.arrays[written] = np.ndarray(result.shape, result.dtype, memory, at)
    before = memory.copy()
    found = door(call.arguments)
    expected = ARGUMENTS.index(written) + 1 << 8 | OVERLAPS
    assert found == (
        expected,
        f"{written}: expected memory of its own, got an array that overlaps itself or another argument",
    )
    np.testing.assert_array_equal(memory, before)


def test_results_that_overlap(door):
    """Each other, or themselves."""
    call = everything()
    call.arrays["lse"] = call.arrays["out"][..., 0]
    assert_wrong(door(call.arguments), call, "out", OVERLAPS, "out: expected memory of its own")
    for name in ("out", "lse"):
        call = everything()
        array = call.arrays[name]
        call.arrays[name] = np.lib.stride_tricks.as_strided(array, array.shape, (0, *array.strides[1:]))
        assert_wrong(door(call.arguments), call, name, OVERLAPS, f"{name}: expected memory of its own")


def test_what_lies_apart(door):
    """Between the rows of an input, which overlap nothing."""
    random = np.random.default_rng(0)
    memory = random.standard_normal((2, 5, 4, 6)).astype(np.float32)
    query, key, value, out = (memory[..., number, :] for number in range(4))
    call = Call(query=query, key=key, value=value)
    call.arrays["out"] = out
    expected = cattn.attention(query.copy(), key.copy(), value.copy())
    assert door(call.arguments)[0] == DONE
    assert_same_bits(out.copy(), expected)


def test_sizes_beyond_memory(door):
    zero = np.zeros(1, np.float32)
    wide = np.lib.stride_tricks.as_strided(zero, (1, 1, 2**40 + 1), (0, 0, 0))
    call = Call(query=wide, key=wide, value=zero.reshape(1, 1, 1))
    assert door(call.arguments) == (NO_MEMORY, "there is no memory for the workspace; fewer threads take less")
    many = np.lib.stride_tricks.as_strided(zero, (2**30, 2**29, 1, 1, 1), (0,) * 5)
    out = (ctypes.c_ssize_t * 5)(2**30, 2**29, 1, 1, 0)
    call = Call(query=zero.reshape(1, 1, 1), key=zero.reshape(1, 1, 1), value=zeros(1, 1, 0), with_lse=False)
    call.arrays["query"] = many
    arguments = call.arguments
    arguments["out"] = (*arguments["out"][:2], 5, ctypes.addressof(out), 0)
    assert door(arguments) == (TOO_MANY_TASKS, "query, key: expected a batch of at most 2^48 tasks")


def test_every_status_has_a_message():
    """And what is none says so."""
    nothing = message(-1)
    assert nothing == "this is not a status of cattn"
    named = {name: 0 for name in ARGUMENTS}
    for status in range(5, 1 << 14):
        found = message(status)
        number, reason = status >> 8, status & 255
        if found == nothing:
            continue
        assert 1 <= number <= len(ARGUMENTS) and 1 <= reason <= UNKNOWN
        named[ARGUMENTS[number - 1]] += 1
    assert min(named.values()) >= 1
    assert nothing not in {message(status) for status in range(5)}
    assert all(message(status) == nothing for status in (5, 255, 256, 2**31 - 1, -(2**31)))


# The header


COMPILERS = ["gcc", "clang", "clang-14", "clang-19", "g++", "clang++", "clang++-14", "clang++-19"]
STANDARDS = {"c": ["gnu11", "c99", "c11", "c17"], "c++": ["c++11", "c++17"]}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_header_compiles(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    language = "c++" if "++" in compiler else "c"
    source = tmp_path / "program"
    for standard in STANDARDS[language]:
        for no_import in (True, False):
            begin = "#define CATTN_NO_IMPORT\n" if no_import else ""
            call = "(void)args;" if no_import else "cattn_import(); cattn_message(cattn_attention(&args));"
            source.write_text(
                f"{begin}#include <cattn.h>\n#include <cattn.h>\nint main(void)\n{{\n"
                f"    cattn_attention_args args = cattn_attention_defaults();\n"
                f"    args.query = cattn_ndarray_of(NULL, CATTN_FLOAT32, 0, NULL, NULL);\n"
                f"    {call}\n    return 0;\n}}\n"
            )
            folders = [] if no_import else ["-isystem", sysconfig.get_path("include")]
            command = [
                compiler,
                "-x",
                language,
                f"-std={standard}",
                "-pedantic",
                "-Wall",
                "-Wextra",
                "-Werror",
                *folders,
                f"-I{cattn.get_include()}",
                "-fsyntax-only",
                str(source),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_example_in_c(built):
    query, key, value = (np.zeros(shape, np.float32) for shape in ((2, 3, 8), (2, 4, 8), (2, 4, 5)))
    for array in (query, key, value):
        array[0, 0, 0] = 1
    expected = cattn.attention(query, key, value, causal=True, query_offset="end")[0, 0, 0]
    assert load(built, "example_in_c").attend() == expected


@pytest.mark.slow
def test_example_in_cython(built):
    query, key, value = problem(5, 9, batch=(), size=6, value_size=3).values()
    expected = cattn.attention(query, key, value, causal=True, query_offset="end")
    out = np.empty((4, 5, 6), np.float32)[..., ::2]
    attend = load(built, "example_in_cython").attend
    attend(query, np.ascontiguousarray(key[..., ::-1])[..., ::-1], value, out)
    assert_same_bits(out.copy(), expected)
    with pytest.raises(ValueError, match=r"^out: expected memory of its own"):
        attend(query[..., :3], key[..., :3], value, query[..., :3])


@pytest.mark.slow
def test_python_and_cython_names_live_together(built):
    assert load(built, "in_cython").both_names() == (cattn.attention, cattn.get_include())


def test_declarations_for_cython_are_those_of_the_header():
    """Each name that the header defines, and no other."""
    header = re.sub(r"/\*.*?\*/|//.*", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    declarations = re.sub(r"#.*", "", (PACKAGE / "__init__.pxd").read_text(encoding="utf-8"))
    own = {"CATTN_H", "CATTN_NO_IMPORT", "CATTN_C_API_H"}

    def names(text):
        return set(re.findall(r"\b(?:CATTN_[A-Z0-9_]+|cattn_[a-z_]+)\b", text)) - own

    assert names(header) == names(declarations)


def test_get_include():
    assert [path.name for path in Path(cattn.get_include()).glob("*.h")] == ["cattn.h"]
