"""Tests of what cattn.h refuses: each argument is wrong in turn, and the status and the message say so."""

import ctypes
import math

import cases
import numpy as np
import pytest
from c_interface_calls import (
    ARGUMENTS,
    ARRAYS,
    BOOL,
    CAUSAL,
    DONE,
    HAS_SCALE,
    HAS_WINDOW,
    INT64,
    MISALIGNED,
    MISSING,
    NO_MEMORY,
    NULL,
    OFFSET_END,
    OFFSET_START,
    OVERLAPS,
    SHAPE,
    TOO_MANY_TASKS,
    TYPE,
    UNKNOWN,
    VALUE,
    Call,
    args_of,
    assert_wrong,
    check,
    explained,
    message,
)
from helpers import assert_same_bits, problem, zeros

import cattn

pytest_plugins = "c_interface_doors"


def everything():
    """Return a call with all arguments. It has batch (2, 3), 4 and 2 heads, 5 queries, 9 keys, and sizes 6 and 3."""
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
    """The call that the tests below make wrong is right as it is."""
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
    """Each array is refused with each type that it may not have."""
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
            wrong = "key"  # the key must have the type of query
        elif name == "key" and type in (2, 3, 6):
            wrong = "value"  # the value must have the type of key
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
    """Types of query, key, value and out that do not go together are refused."""
    call = Call(**problem(), with_lse=False)
    arguments = call.arguments
    for name, type in zip(ARRAYS[:4], types, strict=True):
        arguments[name] = (arguments[name][0], type, *arguments[name][2:])
    query, key, value, _ = types
    wrong = "key" if key != query and not (query == 0 and key > 1) else "value" if value != key else "out"
    assert_wrong(door(arguments), call, wrong, TYPE, f"{wrong}: expected type ")


SHAPES = [
    ("query", (6,)),
    ("query", (5, 6)),  # the other inputs have more axes
    ("query", (2, 3, 4, 5, 0)),
    ("query", (2, 3, 3, 5, 6)),  # 3 heads cannot share 2 key heads
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
        wrong = "key"  # the key no longer goes with this query
    elif name == "key" and shape == (2, 3, 2, 8, 6):
        wrong = "value"
    found = door(call.arguments | {name: (data, type, len(shape), ctypes.addressof(axes), 0)})
    assert_wrong(found, call, wrong, SHAPE, f"{wrong}: expected ")


def changed(random, array):
    """Return the array with one axis more, one axis less, or one axis of another size."""
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
    """If one or two arrays of a random call have another shape, C and Python both refuse it or give the same bits."""
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
    """An array that does not broadcast must have all of its axes."""
    case = problem(5, 5, batch=(1, 2), heads=1, key_heads=1) | {"alibi_slopes": np.ones(1), "sinks": np.ones(1)}
    check(door, case)
    call = Call(**case)
    call.arrays[name] = call.arrays[name][0, ...]
    assert_wrong(door(call.arguments), call, name, SHAPE, f"{name}: expected ")


def test_two_axes(door):
    """If one input has 2 axes, all have, and the modifiers that broadcast have no axis for heads."""
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
    """A wrong number is found in the last element of an array with strides."""
    call = everything()
    array = np.repeat(call.arrays[name], 2, axis=-1)[..., ::2]
    array[(-1,) * array.ndim] = value
    call.arrays[name] = array
    assert_wrong(door(call.arguments), call, name, VALUE, begins)


@pytest.mark.parametrize("name", ["lse", "query_offset", "query_lengths", "key_lengths", "key_start", "key_stop"])
def test_misaligned(door, name):
    """Integers and lse are refused if their data or a stride is not aligned. test_cases has other arrays anywhere."""
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
    """Results that overlap each other or themselves are refused."""
    call = everything()
    call.arrays["lse"] = call.arrays["out"][..., 0]
    assert_wrong(door(call.arguments), call, "out", OVERLAPS, "out: expected memory of its own")
    for name in ("out", "lse"):
        call = everything()
        array = call.arrays[name]
        call.arrays[name] = np.lib.stride_tricks.as_strided(array, array.shape, (0, *array.strides[1:]))
        assert_wrong(door(call.arguments), call, name, OVERLAPS, f"{name}: expected memory of its own")


def test_what_lies_apart(door):
    """A result may lie between the rows of an input."""
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
    call = Call(query=zero.reshape(1, 1, 1), key=zero.reshape(1, 1, 1), value=zero.reshape(1, 1, 1))
    shape, strides = (ctypes.c_ssize_t * 3)(1, 1, 2**40 + 1), (ctypes.c_ssize_t * 3)()
    wide = (zero.ctypes.data, 0, 3, ctypes.addressof(shape), ctypes.addressof(strides))
    assert door(call.arguments | {"value": wide}) == (
        NO_MEMORY,
        "there is no memory for the workspace; fewer threads take less",
    )
    large = np.lib.stride_tricks.as_strided(zero, (1, 1, 16385), (0, 0, 0))
    call = Call(query=large, key=large, value=zero.reshape(1, 1, 1))
    assert_wrong(
        door(call.arguments), call, "query", SHAPE, "query: expected shape (..., Hq, Lq, D) or (Lq, D), with D"
    )
    many = np.lib.stride_tricks.as_strided(zero, (2**30, 2**29, 1, 1, 1), (0,) * 5)
    out = (ctypes.c_ssize_t * 5)(2**30, 2**29, 1, 1, 0)
    call = Call(query=zero.reshape(1, 1, 1), key=zero.reshape(1, 1, 1), value=zeros(1, 1, 0), with_lse=False)
    call.arrays["query"] = many
    arguments = call.arguments
    arguments["out"] = (*arguments["out"][:2], 5, ctypes.addressof(out), 0)
    assert door(arguments) == (TOO_MANY_TASKS, "query, key: expected a batch of at most 2^48 tasks")


@pytest.mark.parametrize(
    "change, given",
    [
        ({"num_threads": -3}, "; got -3"),
        ({"scale": -1e-320}, "; got -9.99989e-321"),
        ({"softcap": -1.5}, "; got -1.5"),
        ({"window_left": -7}, "; got -7, 2"),
        ({"flags": 7 | OFFSET_START}, "; got 0xf"),
        ({"key": zeros(2, 9, 7)}, "; got (2, 9, 7); query has (2, 3, 4, 5, 6); value has (2, 3, 2, 9, 3)"),
        (
            {"sinks": zeros(5)},
            "; got (5,); query has (2, 3, 4, 5, 6); key has (2, 3, 2, 9, 6); value has (2, 3, 2, 9, 3)",
        ),
        ({"mask": zeros(5, 9)}, "; got CATTN_FLOAT32"),
        ({"mask": np.zeros((5, 9), np.int8)}, "; got CATTN_INT8"),
        ({"query_lengths": np.array([[5, -4, 3], [2, 6, 0]])[:, ::-1]}, "; got -4 to 6"),
        ({"key_lengths": np.array(10)}, "; got 10"),
    ],
)
def test_explanations_say_what_came(door, change, given):
    call = everything()
    call.arrays |= {name: x for name, x in change.items() if isinstance(x, np.ndarray)}
    numbers = {name: x for name, x in change.items() if not isinstance(x, np.ndarray)}
    status, found = door(call.arguments | numbers)
    assert found == message(status) + given


def test_explanations_of_what_has_no_shape(door):
    call = Call(query=zeros(1, 3, 8), key=zeros(1, 5, 8), value=zeros(1, 5, 8), causal=True)
    status, found = door(call.arguments)
    assert (status & 255, found) == (MISSING, message(status) + "; got 3 and 5")
    status, found = door({**call.arguments, "mask": (1, 4, 65, 0, 0)})
    assert (status & 255, found) == (SHAPE, message(status) + "; got ndim 65")
    shape = (ctypes.c_ssize_t * 3)(1, -3, 8)
    changes = {"query": (1, 0, 3, ctypes.addressof(shape), 0), "key": (*call.arguments["key"][:2], 2**31 - 1, 1, 0)}
    status, found = door(call.arguments | changes)
    given = "; got (1, -3, 8); key has ndim 2147483647; value has (1, 5, 8)"
    assert (status & 255, found) == (SHAPE, message(status) + given)
    status, found = door({**call.arguments, "struct_size": 8})
    assert (status & 255, found) == (VALUE, message(status) + "; got 8")
    assert explained(None, status) == message(status)


def test_explanations_fit():
    """An explanation that does not fit the caller's memory is cut."""
    call = everything()
    call.arrays["bias"] = zeros(*[1] * 59, 7)
    args = args_of(call.arguments)
    status = ARGUMENTS.index("bias") + 1 << 8 | SHAPE
    whole = explained(args, status)
    assert whole.startswith(message(status) + "; got (1, 1, 1,") and whole.endswith("; value has (2, 3, 2, 9, 3)")
    for size in (1, 2, len(message(status)), len(whole), len(whole) + 1):
        assert explained(args, status, size) == whole[: size - 1]


def test_explanations_of_other_statuses():
    """An explanation begins with the message, also if the status is none, or not that of this call."""
    call = everything()
    args = args_of(call.arguments)
    nothing = message(-1)
    for status in (-1, *range(1 << 14)):
        found = explained(args, status)
        assert found.startswith(message(status))
        assert message(status) != nothing or found == nothing


def test_every_status_has_a_message():
    """Every status has a message, and the message of any other number says that it is no status."""
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
