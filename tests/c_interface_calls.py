"""Calls of cattn as C and Cython make them, for the tests of what cattn.h promises.

ctypes calls the function at the address in its capsule. In the long tests, two extension modules call it too, one in C
and one in Cython. They are compiled against the package, wherever it is installed.
"""

import ctypes
import importlib.util
import itertools
import sysconfig
from pathlib import Path

import cases
import numpy as np
from helpers import assert_same_bits, problem

import cattn
from cattn import _kernel

HEADER = Path(cattn.get_include(), "cattn.h")

# This is what cattn.h declares. The numbers and their order stay as they are, because programs were compiled with them.

BOOL, INT64, INT8 = 4, 5, 6
TYPES = {
    dtype: number
    for number, dtype in enumerate(cases.TYPES[name] for name in ("float32", "float64", "float16", "bfloat16"))
} | {np.dtype(bool): BOOL, np.dtype(np.int64): INT64, np.dtype(np.int8): INT8}
CAUSAL, HAS_SCALE, HAS_WINDOW, OFFSET_START, OFFSET_END = 1, 2, 4, 8, 16
DONE, STOPPED, NO_MEMORY, TOO_MANY_TASKS, NOT_IMPORTED = range(5)
ARGUMENTS = (
    *("args", "flags", "num_threads", "scale", "softcap", "window", "query", "key", "value", "out", "lse"),
    *("query_offset", "query_lengths", "key_lengths", "key_start", "key_stop", "mask", "bias", "alibi_slopes", "sinks"),
    *("key_scale", "value_scale"),
)
SCALES = ARGUMENTS[-2:]  # only int8 keys and values have them
ARRAYS = ARGUMENTS[6:-2]
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
        *((name, Array) for name in SCALES),
    ]


class Functions(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_int),
        ("version", ctypes.c_int),
        ("attention", ctypes.c_void_p),
        ("message", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
        ("explain", ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)),
        ("maxsim", ctypes.c_void_p),
    ]


def functions():
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Functions.from_address(pointer(_kernel.c_api, b"cattn._kernel.c_api"))


def message(status):
    return functions().message(status).decode()


def explained(args, status, size=2000):
    """Return what cattn_explain says of a call, in at most `size` bytes."""
    text = ctypes.create_string_buffer(size)
    length = functions().explain(None if args is None else ctypes.addressof(args), status, text, size)
    assert length == len(text.value) if length < size else len(text.value) == size - 1
    return text.value.decode()


def args_of(arguments):
    """Return the arguments as a struct."""
    args = Args(struct_size=ctypes.sizeof(Args))
    for name, given in arguments.items():
        setattr(args, name, Array(*given) if isinstance(given, tuple) else given)
    return args


def capsule(arguments, kind=ctypes.CFUNCTYPE):
    """Return the status and the explanation of a call through the capsule, without the GIL."""
    args = args_of(arguments)
    status = kind(ctypes.c_int, ctypes.c_void_p)(functions().attention)(ctypes.addressof(args))
    return status, explained(args, status)


def status_and_errno(arguments, before):
    """Return the status of a call through the capsule, and errno after it."""
    args = args_of(arguments)
    attention = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, use_errno=True)(functions().attention)
    ctypes.set_errno(before)
    return attention(ctypes.addressof(args)), ctypes.get_errno()


def capsule_with_gil(arguments):
    return capsule(arguments, ctypes.PYFUNCTYPE)


# Calls by extension modules


def load(built, name):
    (path,) = built.glob(f"{name}.*{sysconfig.get_config_var('SHLIB_SUFFIX')}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Arguments


def described(array, **changes):
    """Return the fields of cattn_ndarray for an array, and what must live as long as the fields are used."""
    axes = ctypes.c_ssize_t * array.ndim
    shape, strides = axes(*changes.get("shape", array.shape)), axes(*array.strides)
    addresses = ctypes.addressof(shape), ctypes.addressof(strides)
    return (array.ctypes.data, TYPES[array.dtype], array.ndim, *addresses), (array, shape, strides)


def broadcast(*shapes):
    """Return the shape that these broadcast to. NumPy's own function takes only 32 axes."""
    sizes = itertools.zip_longest(*map(reversed, shapes), fillvalue=1)
    return tuple(min(axis) if 0 in axis else max(axis) for axis in sizes)[::-1]


class Call:
    """A call of `attention` in Python, as arguments for C.

    `arguments` is a dict by the names of the struct's fields, in which arrays are described. `arrays` has the arrays
    themselves, by the same names.
    """

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
        """Return an array that is full of NaN. With `spread`, it has gaps between its elements."""
        if not spread or not shape:
            return np.full(shape, np.nan, dtype)
        return np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)[..., ::-2]

    @staticmethod
    def converted(given):
        """Return the arrays in the types and the order of axes that C wants."""
        arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
        if given.get("layout") == "blhd":
            names = arrays.keys() & {"query", "key", "value", *SCALES}
            arrays |= {name: arrays[name].swapaxes(-2, -3) for name in names}
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


def big(**changes):
    """Return a call with so much work that several threads share it."""
    return problem(150, 150, batch=(), heads=3, key_heads=3, size=64, value_size=64, **changes)


def check(door, case, num_threads=0, **options):
    """Make a call, and compare its results with Python's, bit for bit."""
    call = Call(**case, **options)
    call.numbers["num_threads"] = num_threads
    assert door(call.arguments) == (DONE, "done"), cases.describe(case)
    expected = cattn.attention(**case, return_lse=True, num_threads=1)
    if case.get("layout") == "blhd":
        expected = expected[0].swapaxes(-2, -3), expected[1].swapaxes(-1, -2)
    assert_same_bits(call.results, expected[: len(call.results)])
    return call


def assert_wrong(found, call, argument, reason, begins):
    """Check the status and the message of a refused call, and that it has written nothing."""
    number = ARGUMENTS.index(argument) + 1
    assert (found[0] >> 8, found[0] & 255) == (number, reason), found
    assert found[1].startswith(begins), found[1]
    assert all(np.isnan(result.astype(np.float64)).all() for result in call.results)
