"""Tests of cattn from C and Cython: results, threads, versions and the header. test_c_errors.py has the errors."""

import concurrent.futures
import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from pathlib import Path

import cases
import numpy as np
import pytest
from c_interface_calls import (
    DONE,
    HEADER,
    NOT_IMPORTED,
    NULL,
    STOPPED,
    UNKNOWN,
    VALUE,
    Args,
    Array,
    Call,
    WantsToStop,
    args_of,
    assert_wrong,
    big,
    capsule,
    capsule_with_gil,
    check,
    described,
    functions,
    load,
    message,
)
from helpers import EVERY_TYPE, PACKAGE, assert_same_bits, normal, problem, python, run_python, zeros

import cattn

pytest_plugins = "c_interface_doors"

# A call from C gives the same bits as one from Python.


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_cases(door, first):
    """Generated calls of all types, strides and modifiers have Python's bits. Every other one has results with gaps."""
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
    """Arrays whose strides are NULL are contiguous."""
    case = problem(9, 17) | {"mask": np.random.default_rng(0).random((2, 4, 9, 17)) < 0.5}
    call = Call(**case)
    arguments = call.arguments
    for name in call.arrays:
        arguments[name] = (*arguments[name][:4], 0)
    assert door(arguments) == (DONE, "done")
    assert_same_bits(call.results, cattn.attention(**case, return_lse=True))


@pytest.mark.parametrize("name", cases.TYPES)
def test_slopes_and_sinks_of_every_type(door, name):
    """Slopes and sinks may have any floating type and strides. cattn reads a copy of them."""
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
    """Every byte of a mask except 0 counts as true."""
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
    """An array without elements may have NULL for its data."""
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
    """Positions whose sum does not fit an int64 do not overflow."""
    case = problem(4, 9)
    for offset in (-(2**60), 2**60):
        check(door, case | {"causal": True, "query_offset": offset})
        check(door, case | {"window": (2**63 - 1, 2**63 - 1), "query_offset": offset})
    far = np.array([2**63 - 1, -(2**63), 0, 3])
    check(door, case | {"key_range": (far, far[::-1].copy())})


# Threads, processes, signals


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
import c_interface_calls as test

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
    """Threads that Python does not know finish their calls while another holds the GIL and waits for them.

    Python's allocators would take the GIL while allocations are traced."""
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
    """Return a call that takes one thread a quarter of a second or more."""
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


ENTRIES = 2**28
READ = {
    "query_offset": {"query_offset": np.int64(0)},
    "query_lengths": {"query_lengths": np.int64(1)},
    "key_lengths": {"key_lengths": np.int64(1)},
    "offsets from the end": {"key_lengths": np.array(1, np.int64), "query_offset": "end"},
    "slopes of each entry": {"alibi_slopes": np.zeros(1)},
    "slopes of many heads": {"alibi_slopes": np.zeros(1)},
    "sinks": {"sinks": np.zeros(1)},
}


@pytest.mark.parametrize("name", READ)
def test_stops_while_arguments_are_read(name):
    """A call stops while it reads one number for each entry of a large batch, or for each of many heads.

    Strides of 0 repeat the number, so that it is in memory once."""
    heads, entries = (ENTRIES, 1) if name in ("slopes of many heads", "sinks") else (1, ENTRIES)
    one = np.zeros(1, np.float32)
    asked = []
    call = Call(query=one[None, None], key=one[None, None], value=zeros(1, 1, 0), with_lse=False, **READ[name])
    call.arrays["query"] = np.broadcast_to(one, (entries, heads, 1, 1))
    for of_each, array in call.arrays.items():
        if of_each in ("sinks", "alibi_slopes"):
            call.arrays[of_each] = np.broadcast_to(array, (heads,) if of_each == "sinks" else (entries, heads))
        elif of_each == name:
            call.arrays[of_each] = np.broadcast_to(array, entries)
    arguments = call.arguments | {"wants_to_stop": WantsToStop(lambda context: asked.append(context) is None)}
    shape = (ctypes.c_ssize_t * 4)(entries, heads, 1, 0)
    arguments["out"] = (*arguments["out"][:2], 4, ctypes.addressof(shape), 0)
    began = time.thread_time()
    assert capsule(arguments) == (STOPPED, "wants_to_stop said so")
    assert time.thread_time() - began < 0.2
    assert len(asked) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_signals_wait():
    """Python handles a signal after the call has returned, not before."""
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
    """A struct may end before some of the fields, whatever lies behind it."""
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
    """A longer struct is accepted if all of its further fields are zero."""
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


def test_struct_that_ends_within_a_field():
    """A struct that ends within a field is refused, also where all of its fields are given."""
    attention = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().attention)
    ends = {getattr(Args, field).offset for field, *_ in Args._fields_}
    lengths = {"query_lengths": np.full(2, 9), "key_lengths": np.full(2, 17), "query_offset": np.full(2, 8)}
    ranges = {"key_range": (np.zeros((4, 9), int), np.full((4, 9), 17))}
    scores = {"mask": np.ones((9, 17), bool), "bias": normal(4, 9, 17), "alibi_slopes": np.ones(4), "sinks": np.ones(4)}
    for size in range(Args.lse.offset, ctypes.sizeof(Args)):
        call = Call(**problem(9, 17), **lengths, **ranges, **scores)
        args = args_of(call.arguments)
        args.struct_size = size
        status = attention(ctypes.addressof(args))
        if size in ends:
            assert status == DONE
        else:
            begins = "struct_size: expected sizeof(cattn_attention_args)"
            assert_wrong((status, message(status)), call, "args", VALUE, begins)


def test_no_struct():
    status = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().attention)(None)
    assert (status, message(status)) == (1 << 8 | NULL, "args: expected a cattn_attention_args, got NULL")


def test_sizes_of_structs():
    """The structs keep the sizes that programs were compiled with."""
    if sys.maxsize > 2**32:
        sizes = ctypes.sizeof(Array), Args.lse.offset, Args.key_scale.offset, ctypes.sizeof(Args)
        assert sizes == (32, 144, 512, 576)


REPLACE = """
import ctypes
import sys
import cattn._kernel

class Functions(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_int), ("version", ctypes.c_int), ("others", ctypes.c_void_p * 4)]

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
FOR = "cattn: expected version 1.3 of the interface for C, for which this module was compiled, found"
WITHOUT = "cattn: expected a version with an interface for C, found one without it; update cattn"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["in_c", "in_cython"])
@pytest.mark.parametrize(
    "abi, version, name, expected",
    [
        (1, 3, NAME, ""),
        (1, 4, NAME, ""),
        (1, 2, NAME, f"{FOR} 1.2; update cattn"),
        (2, 1, NAME, f"{FOR} 2.1; compile this module again"),
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
    """The declarations for Cython have every name that the header defines, and no other."""
    header = re.sub(r"/\*.*?\*/|//.*", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    declarations = re.sub(r"#.*", "", (PACKAGE / "__init__.pxd").read_text(encoding="utf-8"))
    own = {"CATTN_H", "CATTN_NO_IMPORT", "CATTN_C_API_H"}

    def names(text):
        return set(re.findall(r"\b(?:CATTN_[A-Z0-9_]+|cattn_[a-z_]+)\b", text)) - own

    assert names(header) == names(declarations)


def test_get_include():
    assert [path.name for path in Path(cattn.get_include()).glob("*.h")] == ["cattn.h"]


# MaxSim


class MaxsimArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("num_threads", ctypes.c_int),
        *((name, Array) for name in ("query", "document", "out")),
        *((name, Array) for name in ("query_lengths", "document_lengths", "document_indptr", "index")),
        ("wants_to_stop", WantsToStop),
        ("context", ctypes.c_void_p),
    ]


def maxsim(num_threads=0, struct_size=None, **arrays):
    """Call cattn_maxsim, and return its message."""
    args, alive = MaxsimArgs(struct_size=struct_size or ctypes.sizeof(MaxsimArgs), num_threads=num_threads), []
    for name, array in arrays.items():
        field, memory = described(array)
        setattr(args, name, Array(*field))
        alive.append(memory)
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(functions().maxsim)
    return functions().message(call(ctypes.addressof(args))).decode()


@EVERY_TYPE
def test_maxsim(dtype):
    query, document = normal(2, 9, 20, dtype=dtype), normal(5, 30, 20, dtype=dtype)
    lengths = np.array([30, 0, 7, 12, 1])
    expected = cattn.maxsim(query, document, document_lengths=lengths, return_index=True)
    out, index = np.zeros_like(expected[0]), np.zeros_like(expected[1])
    assert maxsim(query=query, document=document, document_lengths=lengths, out=out, index=index) == "done"
    assert_same_bits((out, index), expected)
    packed, indptr = cattn.unpad(document, lengths)
    alone = np.zeros_like(out[0])
    case = {"document": packed, "document_indptr": indptr, "out": alone}
    assert maxsim(query=np.asfortranarray(query[0]), **case, num_threads=2) == "done"
    assert_same_bits(alone, expected[0][0])


def test_errors_of_maxsim():
    query, document, out = normal(9, 20), normal(5, 30, 20), np.zeros(5, np.float32)
    right = {"query": query, "document": document, "out": out}
    packed = right | {"document": document[0], "document_indptr": np.array([0, 4, 9, 9, 20, 30])}
    assert maxsim(**right) == maxsim(**packed) == "done"
    for name, wrong in {
        "query": right | {"query": query[:, :3]},
        "document": right | {"document": document.astype(np.float64)},
        "out": right | {"out": np.zeros(4, np.float32)},
        "out ": right | {"out": query[0, :5]},
        "document_lengths": right | {"document_lengths": np.array([31, 0, 0, 0, 0])},
        "query_lengths": right | {"query_lengths": np.array([10])},
        "document_indptr": right | {"document": document[0]},
        "document_indptr ": packed | {"document_indptr": np.array([0, 4, 3, 9, 20, 30])},
        "index": right | {"index": np.zeros((5, 8), np.int64)},
        "num_threads": right | {"num_threads": -1},
        "args": right | {"struct_size": 8},
    }.items():
        message = maxsim(**wrong)
        assert message.startswith({"query": "document"}.get(name, name.strip()) + ": expected"), message
