"""Strange values for arguments, and hostile objects. For fuzz.py.

Each function takes a random generator, the value before, the argument's name and the valid call (fuzz_model.Base).
"""

import array
import collections
import datetime
import decimal
import enum
import fractions
import itertools
import math
import sys
import unittest.mock
import warnings
from pathlib import Path

import cases
import numpy as np
from fuzz_model import PARTS, TOKENS, TYPES, WORDS, is_array, native
from fuzz_scales import scaled_array, unread
from registry import arrays_of

ml_dtypes = cases.ml_dtypes


# Strange values: each takes a random generator, the value before (or None), the place and the base.


def memory(r, x, place, base):
    """Return the same numbers with other strides."""
    if not isinstance(x, np.ndarray):
        return foreign(r, x, place, base)
    kind = r.choice(["fortran", "reversed", "sliced", "misaligned", "swapped", "read-only", "subclass", "matrix"])
    if kind == "fortran":
        return np.asfortranarray(x)
    if kind == "reversed":
        return np.flip(np.ascontiguousarray(np.flip(x)))
    if kind == "sliced":
        wide = np.zeros((*x.shape, 2), x.dtype)
        wide[..., 1] = x
        return wide[..., 1]
    if kind == "misaligned":
        y = np.ndarray(x.shape, x.dtype, np.zeros(x.nbytes + 1, np.uint8)[1:])
        y[...] = x
        return y
    if kind == "swapped":
        return x.astype(x.dtype.newbyteorder("S"))
    y = x.view()
    if kind == "read-only":
        y.flags.writeable = False
        return y
    if kind == "matrix" and x.ndim == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return x.view(np.matrix)
    return x.view(type("Sub", (np.ndarray,), {}))


class Wrapper:
    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


class Interface:
    def __init__(self, x):
        self.__array_interface__, self.x = x.__array_interface__, x


def wrapped(r, x, place, base):
    """An object that NumPy takes for the array."""
    x = np.asarray(x)
    kind = r.choice(["__array__", "interface", "memoryview", "bytes", "buffer", "twice", "list", "tensor"])
    if kind == "interface":
        return Interface(x)
    if kind == "twice":
        return Wrapper(r.choice([x.tolist(), None, 5, "abc", Wrapper(x), x.astype(object)]))
    if kind == "list":
        return [Wrapper(part) for part in x] if x.ndim else [Wrapper(x)]
    if kind == "tensor" and "torch" in sys.modules and x.dtype.isnative:
        try:
            return sys.modules["torch"].from_numpy(x.copy())
        except TypeError:
            pass
    try:
        if kind == "memoryview":
            return memoryview(x)
        if kind == "bytes":
            return x.tobytes()
        if kind == "buffer":
            return array.array(x.dtype.char, x.ravel().tolist())
    except (ValueError, TypeError, BufferError, OverflowError):
        pass
    return Wrapper(x)


def listed(r, x, place, base):
    x = np.asarray(x)
    kind = r.choice(["list", "tuple", "of arrays", "ragged", "masked", "self", "deep", "empty", "scalars"])
    if kind == "self":
        y = []
        y.append(y)
        return y
    if kind == "deep":
        y = 0.0
        for _ in range(r.choice([64, 65, 1000])):
            y = [y]
        return y
    if kind == "empty":
        return r.choice([[], (), [[]], [[], []], [[[]]]])
    if kind == "masked":
        return r.choice([np.ma.array(x), [np.ma.array(x)], np.ma.masked])
    if kind == "ragged":
        return [[1.0], [1.0, 2.0]]
    if kind == "scalars" and x.size < 200:
        return [*x.ravel()] if x.ndim < 2 else [[*part] for part in x]
    if kind == "of arrays" and x.ndim:
        return [*x]
    if x.size > 500:
        return [*x]
    return x.tolist() if kind == "list" or not x.ndim else tuple(x.tolist())


TYPED = (
    *"?bBhHiIlLqQefdgFDGOSUMmVT",
    *("bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "structured", "sub", "M8[s]", "m8[D]", ">f4", ">i8"),
)


def typed(r, x, place, base):
    """Return an array of another type."""
    x, name = np.asarray(x), r.choice(TYPED)
    if name == "structured":
        return np.zeros(x.shape, [("a", np.float32), ("b", np.int64)])
    if name == "sub":
        return np.zeros(x.shape, np.dtype((np.float32, (2,))))
    if name == "V":
        return np.zeros(x.shape, "V2")
    if name == "T":
        return np.full(x.shape, "a", np.dtypes.StringDType())
    if name in "SUMm":
        return np.zeros(x.shape, {"S": "S3", "U": "U3"}.get(name, name + "8"))
    dtype = getattr(ml_dtypes, name, None) or name
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return native(x).astype(dtype)
        except (TypeError, ValueError):
            return native(x).astype(np.float64).astype(dtype)


def shaped(r, x, place, base):
    x = np.asarray(x)
    kind = r.choice(["less", "more", "transposed", "shorter", "longer", "nothing", "flat", "number", "axes", "one"])
    axis = r.randrange(x.ndim) if x.ndim else None
    if kind == "number" or axis is None:
        return x.ravel()[0] if x.size else np.zeros((), x.dtype)
    if kind == "less":
        return x[0] if len(x) else x.reshape(-1)
    if kind == "more":
        return x[None]
    if kind == "transposed":
        axes = list(range(x.ndim))
        r.shuffle(axes)
        return x.transpose(axes)
    if kind == "axes":
        return x.reshape(*[1] * (r.choice([33, 61, 62, 63, 64]) - x.ndim), *x.shape)
    if kind == "flat":
        return x.ravel()
    size = {"shorter": max(x.shape[axis] - 1, 0), "longer": x.shape[axis] + 1, "nothing": 0, "one": 1}[kind]
    if x.shape[axis] == 0 and size:
        return np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    return x.take(range(size), axis, mode="wrap") if size else x.take([], axis)


def huge(r, x, place, base):
    """Return an array of more elements than there is memory, all at one address."""
    x = np.asarray(x)
    if not x.ndim or not x.size:
        return x
    axis = r.randrange(x.ndim)
    size = r.choice([2**40, 2**57])
    first = x[(0,) * x.ndim]
    return np.lib.stride_tricks.as_strided(np.array(first), (*x.shape[:axis], size, *x.shape[axis + 1 :]),
                                           (0,) * x.ndim) if size * x.size < 2**60 else x  # fmt: skip


NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-38, 1e-300, 65504.0, 3e38, -3e38, 1.7e308, 5e-324)


def numbers(r, x, place, base):
    x = np.array(x)
    if x.size:
        with np.errstate(all="ignore"):
            for _ in range(r.choice([1, 3, x.size])):
                index = tuple(r.randrange(n) for n in x.shape)
                x[index] = r.choice(NUMBERS) if x.dtype != np.int8 else r.randrange(-128, 128)
    return x


def garbage(r, x, place, base):
    """Return other numbers where nobody reads them, behind the lengths of keys."""
    behind = unread(base, place)
    if behind is None:
        return numbers(r, x, place, base)
    x = np.array(x)
    x[behind] = r.choice([math.nan, math.inf, -math.inf, 6e4]) if x.dtype != np.int8 else r.randrange(-128, 128)
    return x


def scaled(r, x, place, base):
    """Return another scale of the same keys or values, along any of their axes."""
    sizes = [n if r.random() < 0.5 else 1 for n in scaled_array(base.arguments, place).shape]
    sizes = sizes[r.choice([0, 0, 0, 1, 2, len(sizes)]) :]
    random = np.random.default_rng(r.randrange(1000))
    scale = np.asarray(r.choice([-1, 1]) * 10 ** random.uniform(-4, 0, sizes))
    scale[random.random(sizes) < r.choice([0, 0.2])] = 0
    return scale.astype(r.choice([*cases.TYPES.values(), np.dtype(np.int64)]))


INTEGERS_ = (-1, 0, 1, 2, 7, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, -(10**30))


def integers(r, x, place, base):
    kinds = ["one", "all", "small", "number", "unsigned", "long", "word"]
    kind = r.choice(kinds[: 3 if base.name == "cattn.h" else None])
    if kind == "word":
        return r.choice(["start", "end", "End", "", b"end", "start\0", "\ud800"])
    if kind == "long":
        return r.choice([10**5000, -(10**5000), [10**5000], [[-(10**400)]]])
    if kind == "number":
        return r.choice(INTEGERS_)
    x = np.array(x if x is not None and not isinstance(x, str) else [0, 1], np.int64)
    if kind == "small":
        return np.asarray(x + r.choice([-1, 1, 2]), np.int64)
    if kind == "unsigned":
        return np.full(x.shape, r.choice([0, 1, 2**64 - 1, 2**63]), np.uint64)
    value = r.choice([n for n in INTEGERS_ if -(2**63) <= n < 2**63])
    if kind == "all" or not x.size:
        x[...] = value
    else:
        x[tuple(r.randrange(n) for n in x.shape)] = value
    return x


def number(r, x, place, base):
    if base.name == "cattn.h":
        if place in ("scale", "softcap"):
            return r.choice([math.nan, math.inf, 0.0, -1.0, 1e-300, 1e300, 0.5])
        if place == "flags":
            return r.choice([0, 1, 3, 31, 32, 2**31])
        return r.choice([-(2**31), -2, -1, 0, 1, 3, 2**31 - 1])
    plain = r.choice([0.25, 2, 1.0, 0.5, 3])
    return r.choice([
        plain, np.float32(plain), np.float64(plain), np.float16(plain), np.int64(plain or 1), np.uint8(3),
        ml_dtypes.bfloat16(plain), np.array(plain), np.longdouble(plain), Wrapper(np.array(plain)),
        0, 0.0, -0.0, -0.5, math.nan, math.inf, -math.inf, 1e38, 1e39, 1e-38, 1e-39, 1e308, 5e-324, 1e-320,
        10**30, 10**308, 10**400, -(10**400), 10**5000, True, False, np.True_, np.False_, "1", "0.5", b"1", 1j,
        np.complex64(1), [plain], (plain,), np.array([plain]), np.array([[plain]]), np.zeros(0),
        np.datetime64("2020-01-01"), np.timedelta64(1, "s"), np.array(plain, object), np.longdouble(2) ** 10000,
        memoryview(np.array(plain)), fractions.Fraction(1, 2), decimal.Decimal("0.5"), float.__new__(Float, plain),
        int.__new__(Int, 1), float("1e38"), np.float64(np.float32(3.4e38)), np.nextafter(np.float32(0), 1),
    ])  # fmt: skip


class Float(float):
    pass


class Int(int):
    pass


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Index:
    def __init__(self, n):
        self.n = n

    def __index__(self):
        return self.n

    __int__ = __index__


def flag(r, x, place, base):
    return r.choice([True, False, np.True_, np.False_, 0, 1, 0.0, "", "True", "no", [], [True], (), np.array(True),
                     np.array([True]), np.int8(1), math.nan, b"", {}, Number.ONE, Index(1), np.bool_])  # fmt: skip


def count(r, x, place, base):
    return r.choice([1, 2, 3, 9, 0, -1, 1024, 10**9, 10**30, 10**5000, -(10**5000), np.int64(2), np.uint8(1),
                     np.int8(-3), np.array(2), np.array([2]), np.array(2.0), True, False, np.True_, 1.0, 2.5, math.nan,
                     math.inf, "2", b"2", Index(2), Index(0), Index(10**30), Index(10**5000), Index("2"), Index(2.0),
                     Number.TWO, Int(2), [2], (2,), fractions.Fraction(2), decimal.Decimal(2), 2j,
                     np.timedelta64(2, "s")])  # fmt: skip


class Text(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


def word(r, x, place, base):
    words = [*WORDS[place]]
    return r.choice([*words, *map(Text, words), Text("no"), "", words[0].upper(), words[0] + " ", "bhdl", words[0][:-1],
                     words[0].encode(), "\ud800", "\0", "x" * 10**6, 0, True, [words[0]], np.array(words[0]),
                     np.str_(words[0])])  # fmt: skip


def type_(r, x, place, base):
    return r.choice([*TYPES, *map(Text, TYPES), *cases.TYPES.values(), np.int8, np.float32, ml_dtypes.bfloat16, float,
                     "f4", ">f2", "<i1", "b", "Float32", "float", "int16", "uint8", "", "float128", "bool", "U3", "O",
                     "f4,f4", "\ud800", int, object, np.float32(1), 4, np.zeros(2), [("a", "f4")], b"f4"])  # fmt: skip


def side(r):
    return r.choice([None, -1, 0, 1, 2, 5, 10**6, np.int32(3), np.uint64(2), Int(2), Number.TWO, 2**62, 2**63, 10**30,
                     -2, -(10**30), 10**5000, -(10**5000), 1.0, math.nan, True, np.True_, "1", [1], (), np.array(1),
                     np.array([1]), Index(1), 1j, np.float64(1)])  # fmt: skip


def window(r, x, place, base):
    pair = side(r), side(r)
    if r.random() < 0.5:
        good = (None, -1, 0, 1, 2, 3, 9, np.int64(1))
        pair = r.choice(good), r.choice(good)
    return r.choice([pair, pair, pair, [*pair], (*pair, 1), pair[:1], (), pair[0], iter(pair), set(), {0: 1, 1: 2},
                     np.array([1, 1]), np.array([-1, 0]), "ab", b"ab", 5, 10**5000, range(2), (pair, pair),
                     collections.namedtuple("Pair", "left right")(*pair)])  # fmt: skip


def range_(r, x, place, base):
    old = x or (np.array(0), np.array(2))
    sides = [r.choice([None, old[n], integers(r, old[n], place, base), r.choice(INTEGERS_)]) for n in range(2)]
    return r.choice([tuple(sides), tuple(sides), sides, (*sides, 1), sides[:1], (), iter(sides), {}, "ab", 5, 10**5000,
                     np.array([0, 1]), np.zeros((2, 3), int), range(2), (1.0, 2), (True, None), (None, None),
                     (sides, sides), ("start", "end")])  # fmt: skip


def overlap(r, x, place, base):
    """Memory that is not free for results."""
    shape, dtype = base.shapes[0] if base.shapes else ((2, 2), np.dtype(np.float32))
    kind = r.choice(["input", "itself", "read-only", "sibling", "swapped", "beside"])
    if kind == "itself" and shape:
        first = np.zeros((*shape[:-1], 1), dtype)
        return np.lib.stride_tricks.as_strided(first, shape, (*first.strides[:-1], 0))
    if kind == "input":
        inputs = [x for (name, *_), x in arrays_of(base.arguments) if name != "out" and x.flags.writeable]
        whole = [y for y in inputs if y.flags.c_contiguous and y.nbytes >= dtype.itemsize * math.prod(shape)]
        if whole:
            y = r.choice(whole).reshape(-1).view(np.uint8)
            y = y[: dtype.itemsize * math.prod(shape)]
            return y.view(dtype).reshape(shape)
    if kind == "sibling":
        return np.zeros(shape, np.float32)
    if kind == "swapped":
        return np.zeros(shape, dtype.newbyteorder("S"))
    y = np.zeros((*shape, 3), dtype)[..., 1] if kind == "beside" else np.zeros(shape, dtype)
    y.flags.writeable = kind != "read-only"
    return y


def parts(r, x, place, base):
    x = [*x]
    made = r.choice([
        lambda: tuple(x), lambda: x[:-1], lambda: [*x, x[0]], list, lambda: [None] * len(x), lambda: x[0],
        lambda: np.stack(x), lambda: dict(enumerate(x)), lambda: iter(x), lambda: (y for y in x), lambda: 5,
        lambda: memoryview(np.zeros((2, 2))), lambda: np.zeros(()), lambda: "ab", lambda: [y.tolist() for y in x],
        lambda: collections.deque(x), lambda: map(np.asarray, x), lambda: {1: 2}, lambda: np.ma.stack(x),
    ])  # fmt: skip
    return made()


def tokens(r, x, place, base):
    n = len(base.arguments["x"])
    return r.choice([["a"] * n, ("\n",) * n, ["\ud800"] * n, [b"\xff"] * n, [None] * n, range(n), ["a"] * (n + 1), [],
                     "abc", b"abc", np.array(["a"] * n), np.zeros((n, 2)), iter(["a"] * n), 5, {"a": 1}, [[]] * n,
                     np.array("a"), ["x" * 10**5] * n, dict.fromkeys(range(n))])  # fmt: skip


def none(r, x, place, base):
    return None


class array_(list):
    """Has the name of one of the standard library's classes, which reprlib takes it for."""


array_.__name__ = array_.__qualname__ = "array"


def foreign(r, x, place, base):
    """Return an object that is no argument at all, or may be one by accident."""
    endless = [lambda: np.broadcast_to(1.0, (2**40,))] if base.kind(place) not in (PARTS, TOKENS) else []
    made = r.choice([
        object, dict, set, frozenset, bytes, bytearray, lambda: b"rubbish", lambda: "rubbish", lambda: {"a": 1},
        lambda: {1, 2}, lambda: range(3), lambda: iter([1, 2]), lambda: (y for y in (1, 2)), lambda: print,
        lambda: int, lambda: sys, lambda: Ellipsis, lambda: NotImplemented, lambda: slice(1), lambda: 1j,
        lambda: decimal.Decimal(1), lambda: fractions.Fraction(1, 3), lambda: datetime.date(2020, 1, 1),
        lambda: array.array("f", [1, 2]), lambda: collections.deque([1, 2]), lambda: Number.ONE, lambda: Path("a"),
        unittest.mock.Mock, unittest.mock.MagicMock, lambda: unittest.mock.Mock(spec=int),
        lambda: unittest.mock.Mock(spec=np.ndarray), lambda: unittest.mock.NonCallableMagicMock(spec=bool),
        lambda: np.float32, lambda: np.dtype("f4"), lambda: np.datetime64("2020"), lambda: np.void(b"abcd"),
        lambda: np.array(None), lambda: np.array([None, 1], object), lambda: np.zeros(3, [("a", "f4")]),
        lambda: np.ma.array([1.0], mask=[True]), lambda: np.random.default_rng(0), lambda: np.array(["a"]),
        lambda: memoryview(b"abc"), lambda: memoryview(np.zeros((2, 2))), lambda: type("array", (), {})(),
        lambda: type("list", (), {})(), lambda: type("dict", (), {})(), lambda: type("set", (), {})(),
        lambda: type("str", (), {})(), lambda: type("int", (), {})(), lambda: array_(), lambda: 10**5000,
        lambda: [10**5000], lambda: {10**5000: [10**5000]}, lambda: -(10**400), lambda: "\ud800", lambda: "x" * 10**6,
        *endless, lambda: np.zeros((0,) * 64), lambda: True, lambda: 0, lambda: 1.5,
        lambda: math.nan, lambda: np.array(1), lambda: np.zeros(0), lambda: np.poly1d([1, 2]), lambda: 2**63,
    ])  # fmt: skip
    return made()


class Own(Exception):
    """A class that nobody here knows."""


class OwnBase(BaseException):
    """One that `except Exception` lets through."""


ERRORS = (
    *(ValueError, TypeError, RuntimeError, KeyError, IndexError, ZeroDivisionError, AttributeError, OverflowError),
    *(MemoryError, StopIteration, RecursionError, NotImplementedError, OSError, BufferError, FloatingPointError),
    *(DeprecationWarning, UnicodeError, KeyboardInterrupt, SystemExit, GeneratorExit, Own, OwnBase),
)
METHODS = (
    *("__array__", "__index__", "__float__", "__int__", "__bool__", "__len__", "__iter__", "__getitem__", "__eq__"),
    *(
        "__ne__",
        "__lt__",
        "__gt__",
        "__le__",
        "__ge__",
        "__hash__",
        "__repr__",
        "__str__",
        "__getattr__",
        "__contains__",
    ),
    *("__array_ufunc__", "__array_function__", "__array_finalize__", "__array_wrap__", "__format__", "__complex__"),
    *(
        "__next__",
        "__abs__",
        "__neg__",
        "__add__",
        "__sub__",
        "__mod__",
        "__rmod__",
        "__getattribute__",
        "__reduce_ex__",
    ),
    *("__length_hint__", "__buffer__", "__dlpack__", "__instancecheck__", "view", "astype", "tolist", "bit_length"),
)
PROPERTIES = (
    *("shape", "dtype", "ndim", "size", "strides", "flags", "__class__", "__array_interface__", "__array_struct__"),
    *("__array_priority__", "numpy", "T", "base", "data", "__dict__", "itemsize", "nbytes"),
)


def raising(r, x, place, base):
    """An object some of whose methods raise, one error object always."""
    error = r.choice(ERRORS)("its own")
    base.raised.append(error)

    def fail(*_, **__):
        raise error

    names = r.sample(METHODS, r.choice([1, 2, 5, len(METHODS)]))
    attributes = dict.fromkeys(names, fail)
    attributes |= dict.fromkeys(r.sample(PROPERTIES, r.choice([0, 0, 1, len(PROPERTIES)])), property(fail))
    return hostile(r, x, attributes)


def hostile(r, x, attributes):
    """An object of a class with these attributes, which may descend from that of the value."""
    kinds = [object, object, list, tuple, dict, int, float, str, np.ndarray]
    kind = type(x) if r.random() < 0.4 and type(x) in kinds else r.choice(kinds)
    try:
        if kind is np.ndarray:
            y = x if isinstance(x, np.ndarray) else np.zeros((2, 2), np.float32)
            return np.ndarray.view(y, type("Hostile", (np.ndarray,), attributes))
        made = type("Hostile", (kind,), attributes)
        if kind in (int, float, str) and type(x) is kind:
            return kind.__new__(made, x)
        if kind in (list, tuple) and type(x) in (list, tuple):
            return kind.__new__(made, x) if kind is tuple else list_of(made, x)
        return kind.__new__(made)
    except BaseException:  # some classes cannot even be made
        return object()


def list_of(made, x):
    y = list.__new__(made)
    list.__init__(y, x)
    return y


LIES = {
    "shape": (5, None, (), (2,), (2**40, 2**40), "abc", [1, 2], (-1,), ((1,),), 1.5),
    "dtype": (None, "float32", np.dtype(np.float64), np.float32, 5, object()),
    "ndim": (0, -1, 2, 64, None, "2"),
    "size": (0, -1, 2**70),
    "strides": (None, (), (1, 1), "a"),
    "flags": (None, 5, object()),
    "__class__": (int, bool, float, str, list, tuple, np.ndarray, dict, type, np.ma.MaskedArray, np.bool_),
    "__array_interface__": (None, {}, {"version": 3}, {"version": 3, "shape": (2**40,), "typestr": "<f4"}, 5,
                            {"version": 3, "shape": (2, 2), "typestr": "<f4", "data": b"abc"},
                            {"version": 3, "shape": (2, -2), "typestr": "<f4", "data": b"abcdefgh" * 2}),
    "__array_struct__": (None, 5, "a"),
    "__array_priority__": (10**400, "a"),
    "numpy": (5, None),
    "T": (5, None),
}  # fmt: skip
ANSWERS = {
    "__array__": (None, 5, [1, 2], "abc", np.zeros((2, 2)), np.zeros(0, object), NotImplemented),
    "__index__": (0, -1, 2, 10**30, 2.0, None, "2", True),
    "__float__": (0.5, 2, None, math.nan, "a"),
    "__int__": (2, None, 1.5),
    "__bool__": (True, 5, None),
    "__len__": (0, 2, -1, 2**70, 2**40, None, 1.5),
    "__iter__": (None, 5, iter([1, 2]), iter([])),
    "__getitem__": (0, None, 1.5),
    "__eq__": (True, None, np.zeros(3, bool)),
    "__lt__": (True, None, np.zeros(3, bool)),
    "__ne__": (True, False),
    "__hash__": (1, None, "a"),
    "__repr__": ("r" * 10**5, 5, None, "\ud800", ""),
    "__str__": ("bhld", 5, None, "\ud800"),
    "__format__": (5, ""),
    "__getattr__": (5, None, object()),
    "__contains__": (True,),
    "__array_ufunc__": (None, 5),
    "__instancecheck__": (True,),
    "bit_length": (None, -1, "a"),
    "view": (None, 5),
    "tolist": (5, None),
}


def liar(r, x, place, base):
    """An object whose answers are wrong, or are others each time."""
    if r.random() < 0.2:
        return Changing(r, x, base)
    attributes = {}
    for name in r.sample(list(ANSWERS), r.choice([1, 2, 4, len(ANSWERS)])):
        attributes[name] = answering(name, r.choice(ANSWERS[name]))
    for name in r.sample(list(LIES), r.choice([0, 1, 1, 3, len(LIES)])):
        answer = r.choice(LIES[name])
        attributes[name] = property(answering(name, answer)) if r.random() < 0.7 else answer
    return hostile(r, x, attributes)


def answering(name, answer):
    """A method that always gives this answer. Items end after three, or lists of them would go on for ever."""
    if name == "__getitem__":
        return lambda _, index: [answer, answer, answer][index]
    return lambda *_, **__: answer


class Changing:
    """Answers what it is asked for, each time another thing."""

    def __init__(self, r, x, base):
        x = x if is_array(x) else np.zeros(2)
        self.answers = itertools.cycle(r.sample([x, x, x.astype(object), x.ravel(), x[..., None], x.tolist()], 3))

    def __array__(self, *_, **__):
        return next(self.answers)

    def __index__(self):
        return 1


MAKERS = {
    "memory": memory, "wrapped": wrapped, "listed": listed, "typed": typed, "shaped": shaped, "numbers": numbers,
    "huge": huge, "foreign": foreign, "raising": raising, "liar": liar, "none": none, "integers": integers,
    "number": number, "flag": flag, "count": count, "word": word, "window": window, "range": range_,
    "overlap": overlap, "parts": parts, "tokens": tokens, "garbage": garbage, "scaled": scaled, "type": type_,
}  # fmt: skip
