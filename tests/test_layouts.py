"""The layout matrix: each array argument of each function in every kind of memory, type and class, sharing memory with
others, and changed during the call. A call gives what it gives for plain copies of its arguments, or an error that
names an argument."""

import contextlib
import itertools
import re
import warnings

import cases
import numpy as np
import pytest
from helpers import python
from numpy.lib.stride_tricks import as_strided
from registry import FUNCTIONS, OUTPUTS, arrays_of, copied, fingerprint, with_arrays

# Plans depend on strides, and so do the bits of NumPy's products of matrices.
ANY_BITS = {"plan", "self_attention", "trace"}
TAKES_LONG = {"dask.attention", "torch.scaled_dot_product_attention", "trace", "transformers.register"}
ANY_TYPE = {("unpad", "x"), ("pad", "packed")}
OF_ARRAYS = [name for name, function in FUNCTIONS.items() if function.needs in (None, "dask") and name != "cattn.h"]


def each_of(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.slow if name in TAKES_LONG else ()) for name in names]
    )


EVERY_FUNCTION, OF_ANY_ARRAYS = each_of(FUNCTIONS), each_of(OF_ARRAYS)


def function_of(name):
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    return FUNCTIONS[name]


def outcome(function, arguments, *meant):
    """Return the bits of a result, or the class and the words of an error, which must be ours. Where bits may differ,
    the result must be right for one of the arguments that may be `meant`."""
    if "out" in function.outputs and isinstance(arguments.get("out"), np.ndarray) and arguments["out"].flags.writeable:
        arguments["out"][...] = 7
    try:
        result = function.call(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        assert not isinstance(error, RuntimeError) or function.name.startswith("torch"), error  # as PyTorch has it
        words = re.sub(r"\b(Plain|matrix|memmap) of shape", "ndarray of shape", str(error))
        named = re.match(r"[a-z_]+", words)
        assert named and named[0] in {*arguments, "query_offset"}, error
        return type(error).__name__, words
    if function.name in ANY_BITS:
        return "right" if function.name == "plan" or is_right(function, meant or (arguments,), result) else "wrong"
    return fingerprint(result)


def is_right(function, meant, result):
    for arguments in meant:
        with contextlib.suppress(AssertionError):
            function.check(copied(arguments), result)
            return True
    return False


def assert_refused(function, arguments, place):
    found = outcome(function, arguments)
    assert found[0] in ("TypeError", "ValueError") and found[1].startswith(place[0]), found


# The same numbers elsewhere


class Plain(np.ndarray):
    pass


def in_any_memory(x, folder):
    """Yield (what it is, array). The numbers differ where an array has another shape, or elements that share memory."""
    yield "Fortran's order", np.asfortranarray(x)
    yield "reversed", np.flip(np.ascontiguousarray(np.flip(x)))
    yield "subclass", x.view(Plain)
    yield "64 axes", x.reshape((1,) * (64 - x.ndim) + x.shape)
    yield "no axis", x.ravel()[:1].reshape(()) if x.size else x
    for axis in range(x.ndim):
        rest = (slice(None),) * axis
        yield f"gaps in axis {axis}", np.repeat(x, 3, axis)[(*rest, slice(1, None, 3))]
        yield f"axis {axis} reversed", np.flip(np.ascontiguousarray(np.flip(x, axis)), axis)
        yield f"stride 0 of axis {axis}", np.broadcast_to(x[(*rest, slice(0, 1))], x.shape) if x.size else x
        yield f"nothing in axis {axis}", x[(*rest, slice(0, 0))]
        yield f"one less in axis {axis}", x[(*rest, slice(1, None))]
    if x.ndim > 1:
        yield "last axes swapped", np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
        if x.ravel().size >= sum(x.shape[-2:]):
            yield "rows that overlap", as_strided(x, x.shape, (0,) * (x.ndim - 2) + (x.itemsize,) * 2)
    if x.dtype.kind in "fi":
        yield "swapped bytes", x.astype(x.dtype.newbyteorder("S"))
    if x.ndim == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            yield "matrix", np.matrix(x)
    new = np.ndarray(x.shape, x.dtype, np.zeros(x.nbytes + 1, np.uint8)[1:])
    new[...] = x
    yield "misaligned", new
    new = x.copy()
    new.flags.writeable = False
    yield "read-only", new
    if x.size:
        new = np.memmap(folder / "mapped", x.dtype, "w+", shape=x.shape)
        new[...] = x
        yield "memory-mapped", new


def can_be_passed(function, place, x, axes):
    if function.name == "cattn.h":  # which sees some results only that overlap themselves
        is_seen = place[0] not in function.outputs or (x.flags.writeable and (is_repeated(x) or not is_dense(x)))
        return x.dtype.isnative and is_seen
    if function.name == "transformers.register" and x.ndim != axes:  # models give four
        return False
    return function.needs in (None, "dask") or x.dtype.isnative


def must_be_refused(function, place, x):
    """Return whether a result cannot be written or overlaps itself, or C finds integers or lse misaligned."""
    if function.name == "cattn.h" and not x.flags.aligned and (x.dtype.kind == "i" or place[0] == "lse"):
        return True
    is_result = place[0] in function.outputs
    return is_result and (not x.flags.writeable or not x.dtype.isnative or is_repeated(x) or is_dense(x))


def is_repeated(x):
    return x.size > 0 and any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.strides, strict=True))


def is_dense(x):
    """Return whether all elements lie in fewer bytes than they have."""
    low, high = np.lib.array_utils.byte_bounds(x)
    return x.size > 0 and high - low < x.nbytes


def check_memory(name, seeds, folder):
    function = function_of(name)
    for seed in seeds:
        plain = copied(function.arguments(seed))
        for place, x in arrays_of(plain):
            for kind, new in in_any_memory(x, folder):
                if can_be_passed(function, place, new, x.ndim):
                    arguments = with_arrays(plain, {place: new})
                    try:
                        if must_be_refused(function, place, new):
                            assert_refused(function, arguments, place)
                        else:
                            expected = outcome(function, copied(arguments))
                            assert outcome(function, arguments) == expected != "wrong"
                    except Exception as error:
                        raise AssertionError(f"seed {seed}, {place} {x.dtype}{list(x.shape)}: {kind}") from error


@EVERY_FUNCTION
def test_any_memory(name, tmp_path):
    check_memory(name, range(1 if name in TAKES_LONG else 3), tmp_path)


@pytest.mark.slow
@EVERY_FUNCTION
def test_any_memory_thoroughly(name, tmp_path):
    check_memory(name, range(3, 4 if name in TAKES_LONG else 12), tmp_path)


# Types and classes that are no numbers


WRONG = {
    "objects": lambda x: x.astype(object),
    "a structure": lambda x: np.zeros(x.shape, [("a", x.dtype)]),
    "complex numbers": lambda x: np.zeros(x.shape, complex),
    "strings": lambda x: np.zeros(x.shape, "U3"),
    "dates": lambda x: np.zeros(x.shape, "M8[s]"),
    "a masked array": np.ma.masked_array,
}


@pytest.mark.parametrize("kind", WRONG)
@OF_ANY_ARRAYS
def test_wrong_types(name, kind):
    function = function_of(name)
    for seed in range(2 if name in TAKES_LONG else 8):
        arguments = function.arguments(seed)
        for place, x in arrays_of(arguments):
            if x.size and ((name, *place) not in ANY_TYPE or kind == "a masked array"):
                assert_refused(function, with_arrays(arguments, {place: WRONG[kind](x)}), place)


def never(*_, **__):
    raise ZeroDivisionError


def another(*_, **__):
    return np.zeros((3, 4), np.float32)


LIES = {
    **dict.fromkeys(("__array_ufunc__", "__array_function__", "__array_wrap__", "__eq__", "__ne__"), never),
    **dict.fromkeys(("__getitem__", "__iter__", "__len__", "__bool__", "__float__", "__index__", "__reduce__"), never),
    **dict.fromkeys(("__array__", "view", "astype", "copy", "reshape"), another),
    **{"shape": (2**20, 2**20), "strides": (1, 1), "dtype": np.dtype(np.int64), "ndim": 7, "size": 10**9},
}


@OF_ANY_ARRAYS
def test_a_subclass_that_lies(name):
    """An array is what there is in memory, whatever its attributes and methods say."""
    function = function_of(name)
    lying = type("Lying", (np.ndarray,), LIES)
    for seed in range(1 if name in TAKES_LONG else 8):
        arguments = copied(function.arguments(seed))
        expected = outcome(function, arguments)
        for place, x in arrays_of(arguments):
            if place[0] != "out" and not (name == "dask.attention" and place[0] in ("query", "key", "value")):
                memory = np.zeros(x.nbytes + 1, np.uint8)
                np.ndarray(x.shape, x.dtype, memory)[...] = x
                new = np.ndarray.__new__(lying, x.shape, x.dtype, memory)
                assert outcome(function, with_arrays(arguments, {place: new})) == expected, (seed, place)


# Memory that arguments share


@EVERY_FUNCTION
def test_inputs_that_overlap(name):
    function = function_of(name)
    for seed in range(2 if name in TAKES_LONG else 12):
        arguments = copied(function.arguments(seed))
        places = [
            (place, x) for place, x in arrays_of(arguments) if x.dtype.kind in "fV" and place[0] not in function.outputs
        ]
        for n, (place, x) in enumerate(places):
            for other, y in places[:n]:
                if x.dtype == y.dtype:
                    size = max(x.size, y.size + 3)
                    pool = np.random.default_rng(seed).standard_normal(size).astype(x.dtype)
                    shared = {place: pool[: x.size].reshape(x.shape), other: pool[3 : 3 + y.size].reshape(y.shape)}
                    sharing = with_arrays(arguments, shared)
                    expected = outcome(function, copied(sharing))
                    assert outcome(function, sharing) == expected, (seed, place, other)


@pytest.mark.parametrize("name", ["attention", "cattn.h"])
def test_results_that_overlap_an_input(name):
    """They are refused, unless the input is copied before anything is written."""
    function, refused = FUNCTIONS[name], 0
    for seed in range(60):
        plain = copied(function.arguments(seed))
        arrays = {place: x for place, x in arrays_of(plain) if x.size}
        for written, place in itertools.product([(name,) for name in OUTPUTS], arrays):
            if written in arrays and place[0] not in OUTPUTS:
                out, x = arrays[written], arrays[place]
                start = (x.nbytes - 1) // 8 * 8
                memory = np.zeros(start + out.nbytes, np.uint8)
                near = np.ndarray(x.shape, x.dtype, memory), np.ndarray(out.shape, out.dtype, memory, start)
                near[0][...], near[1][...] = x, 7
                before, arguments = memory.copy(), with_arrays(plain, dict(zip((place, written), near, strict=True)))
                expected = outcome(function, copied(arguments))
                found = outcome(function, arguments)
                if found != expected:
                    assert found[0] == "ValueError" and found[1].startswith(written), (seed, place, found)
                    assert np.array_equal(memory, before)
                    refused += 1
    assert refused > 30


class Fickle:
    """Another array each time."""

    def __init__(self, *arrays):
        self.arrays = iter(arrays)

    def __array__(self, dtype=None, copy=None):
        return next(self.arrays)


@OF_ANY_ARRAYS
def test_conversions_that_differ(name):
    """An argument is converted once."""
    function = function_of(name)
    for seed in range(1 if name in TAKES_LONG else 8):
        arguments = copied(function.arguments(seed))
        expected = outcome(function, arguments)
        for place, x in arrays_of(arguments):
            if place[0] != "out" and not (name == "dask.attention" and place[0] in ("query", "key", "value")):
                fickle = Fickle(x, np.zeros((3, 4)), np.zeros(5, int))
                found = outcome(function, with_arrays(arguments, {place: fickle}), arguments)
                assert found == expected, (seed, place)


# Arguments that change others while they are converted


def changes(x):
    """Return what may be done to an array while somebody looks at it. None of it moves its memory."""

    def reshape():
        x.shape = (x.size,) if x.ndim != 1 else (1, x.size)

    def retype():
        x.dtype = f"u{x.itemsize}"

    def protect():
        x.flags.writeable = False

    def refill():
        x[...] = np.flip(x).copy()

    return {change.__name__: change for change in (reshape, retype, protect, refill)}


class Array:
    """Answer what NumPy asks for an array."""

    def __init__(self, x, change):
        self.x, self.change = x, change

    def __array__(self, dtype=None, copy=None):
        self.change()
        return self.x


class Index:
    def __init__(self, number, change):
        self.number, self.change = number, change

    def __index__(self):
        self.change()
        return self.number


class Word(str):
    def __new__(cls, word, change):
        self = super().__new__(cls, word)
        self.change = change
        return self

    def __eq__(self, other):
        self.change()
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def meddling(arguments):
    """Yield (place, what makes an argument of it that calls a function while it is converted)."""
    for place, x in arrays_of(arguments):
        if place[0] not in OUTPUTS:
            yield place, lambda change, x=x: Array(x.copy(), change)  # a cache is written to
    for name, given in arguments.items():
        if type(given) in (int, str):
            kind = Index if type(given) is int else Word
            yield (name,), lambda change, given=given, kind=kind: kind(given, change)


def meddled(plain):
    """Yield (place, change, arguments after it, arguments that make it) for each array, each change to it, and each
    other argument, which makes it while it is converted."""
    for place, change in itertools.product([place for place, _ in arrays_of(plain)], changes(np.zeros(1))):
        after = copied(plain)
        changes(dict(arrays_of(after))[place])[change]()
        for other, make in meddling(plain):
            if other != place:
                arguments = copied(plain)
                function = changes(dict(arrays_of(arguments))[place])[change]
                yield place, change, after, with_arrays(arguments, {other: make(function)})


def is_allowed(found, allowed, is_result):
    """Return whether a call was refused, or gave one of these outcomes. `out` is returned in the shape that it has by
    then."""
    if is_result and isinstance(found, list):
        return [part[2] for part in found] == [part[2] for part in allowed[0]]
    return isinstance(found, tuple) or (found in allowed and found != "wrong")


def check_meddling(name, seeds):
    function, right = function_of(name), 0
    for seed in seeds:
        plain = copied(function.arguments(seed))
        if name in ("attention", "attention_weights", "attention_varlen", "attention_paged"):
            plain["num_threads"] = 2
        before = outcome(function, copied(plain))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy would rather have nobody set a shape
            for place, change, after, arguments in meddled(plain):
                found = outcome(function, arguments, plain, after)
                allowed = before, outcome(function, after)
                is_result = place[0] == "out" and "out" in function.outputs
                assert is_allowed(found, allowed, is_result), (seed, place, change, cases.describe(arguments))
                right += not isinstance(found, tuple)
    return right


OF_ARRAYS_IN_MEMORY = [name for name in OF_ARRAYS if name not in TAKES_LONG]


@pytest.mark.parametrize("name", OF_ARRAYS_IN_MEMORY)
def test_arguments_that_change_others(name):
    assert check_meddling(name, range(2)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ARRAYS_IN_MEMORY)
def test_arguments_that_change_others_thoroughly(name):
    check_meddling(name, range(2, 8))


# Threads that change arguments


CHANGED = """
import itertools, sys, threading, time, warnings
import numpy as np
import test_layouts
from registry import FUNCTIONS, arrays_of, copied
warnings.simplefilter("ignore")  # NumPy would rather have nobody set a shape
sys.setswitchinterval(1e-6)
name, seconds = sys.argv[1], float(sys.argv[2])
function, refused, right, random = FUNCTIONS[name], 0, 0, np.random.default_rng(0)
for seed, fills in itertools.product(range(2), (False, True)):
    plain = copied(function.arguments(seed))
    for place, x in arrays_of(plain):
        if fills and x.dtype.kind != "i":  # other numbers change no address
            continue
        shapes = x.shape, (x.size,) if x.ndim != 1 else (1, x.size)
        meant, allowed = [], []
        for shape in shapes:
            meant.append(copied(plain))
            dict(arrays_of(meant[-1]))[place].shape = shape
            allowed.append(test_layouts.outcome(function, meant[-1]))
        done = threading.Event()
        def change():
            for shape in itertools.cycle(shapes):
                x.shape = shape
                if fills:
                    x[...] = random.integers(-3, 99, x.shape)
                if done.is_set():
                    break
        thread = threading.Thread(target=change)
        thread.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                found = test_layouts.outcome(function, plain, *meant)
                is_result = place == ("out",) and "out" in function.outputs
                if not (fills or test_layouts.is_allowed(found, allowed, is_result)):
                    sys.exit(f"{name}, seed {seed}, {place}: {found}")
                refused += isinstance(found, tuple)
                right += not isinstance(found, tuple)
        finally:
            done.set()
            thread.join()
print(right > 0, refused > 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ARRAYS_IN_MEMORY)
def test_threads_that_reshape_arguments(name):
    """Each call sees one of the shapes: it is refused, or right. Of integers that change it sees some."""
    assert python(CHANGED, name, "0.1") == "True True\n"
