"""Checks of what turns stored numbers into those that kernels compute with, and back, for kernel_checks.py."""

import functools

import numpy as np
from kernel_cases import (
    assert_same,
)
from kernel_memory import (
    address,
    interleaved,
    listed,
)
from kernel_tables import (
    BFLOAT16,
    FLOAT16,
    INT8,
    TYPES,
    table_of,
)

HALF_TYPES = {type: TYPES[type] for type in (FLOAT16, BFLOAT16)}


def convert(case, memory, name, type, array, out):
    """Convert contiguous elements, which are aligned to their own type only."""
    source, to = memory.span.place(0, array, case.at_end), memory.converted.allocate(0, array.shape, out, case.at_end)
    getattr(table_of(case.isa), name)(address(to), address(source), type, array.size)
    return to


def some_of(numbers, case, random):
    """Return all of the numbers now and then, else a piece."""
    start = 0 if case.number % 40 == 0 else int(random.integers(len(numbers) - case.size))
    return numbers if case.number % 40 == 0 else numbers[start : start + case.size]


def check_widen(case, memory, random):
    """Every number of a half type, and every int8, becomes the float that it is."""
    integers = np.arange(-128, 128, dtype=np.int8)[: case.size]
    found = convert(case, memory, "widen", INT8, random.permutation(integers), np.float32)
    assert_same("int8", np.sort(found), integers.astype(np.float32))
    memory.check()
    for type, half in HALF_TYPES.items():
        some = some_of(np.arange(1 << 16, dtype=np.uint16), case, random)
        with np.errstate(invalid="ignore"):
            expected = some.view(half).astype(np.float32)
        assert_same(f"{half}", convert(case, memory, "widen", type, some, np.float32), expected)
        memory.check()


@functools.cache
def near(half):
    """Return every number of this type, what lies halfway to the next, and what lies just beside that."""
    with np.errstate(invalid="ignore"):
        numbers = np.arange(1 << 15, dtype=np.uint16).view(half).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    ties = np.append(numbers[1:] + numbers[:-1], 3 * numbers[-1] - numbers[-2]) / 2
    with np.errstate(over="ignore"):
        numbers, ties = numbers.astype(np.float32), ties.astype(np.float32)
    bits = np.array([0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0x7F7FFFFF, 1, 0x00800000, 0x33000000], np.uint32)
    beside = [np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))]
    numbers = np.concatenate([numbers, ties, *beside, bits.view(np.float32)])
    return np.random.default_rng(0).permutation(np.concatenate([numbers, -numbers]))


def check_narrow(case, memory, random):
    """Floats become the nearest number of a half type, and of two the even one."""
    for type, half in HALF_TYPES.items():
        some = some_of(near(half), case, random)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = some.astype(half).view(np.uint16)
        found = convert(case, memory, "narrow", type, some, np.uint16)
        nan = np.isnan(some)
        good = np.where(nan, np.isnan(found.view(half).astype(np.float32)), found == expected)
        assert good.all(), f"{half}({some[~good][0]!r}): expected {expected[~good][0]:#x}, got {found[~good][0]:#x}"
        memory.check()


@functools.cache
def around_float32():
    """Return doubles of every size, ties between float32 numbers, and what is or is not beyond the largest."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 1 << 63, 4000, dtype=np.uint64).view(np.float64)
    floats = random.integers(0, 0x7F7FFFFF, 4000, dtype=np.uint32).view(np.float32)
    ties = (floats.astype(np.float64) + np.nextafter(floats, np.float32(np.inf))) / 2
    largest = float(np.finfo(np.float32).max)
    edges = [0, 1, np.inf, np.nan, largest, np.nextafter(largest, np.inf), 2.0**128, np.finfo(np.float64).max]
    numbers = np.concatenate([numbers, floats, ties, np.repeat(edges, 100)])
    return random.permutation(np.concatenate([numbers, -numbers]))


def check_round_to_float(case, memory, random):
    """Doubles become the nearest float, and no finite number becomes infinite."""
    some, largest = some_of(around_float32(), case, random), np.finfo(np.float32).max
    source = memory.span.place(0, some, case.at_end)
    to = memory.converted.allocate(0, some.shape, np.float32, case.at_end)
    table_of(case.isa).round_to_float(address(to), address(source), some.size)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        expected = np.where(np.isfinite(some), np.clip(some, -largest, largest), some).astype(np.float32)
    assert_same("floats", to, expected)


def check_interleave(case, memory, random):
    """Rows, whose numbers are aligned to their own type only, become groups of interleaved keys."""
    bundle = case.kernels.interleaves
    rows = random.integers(0, 1 << 16, (case.count, case.size), dtype=np.uint16)
    block = memory.block(rows, case.type, case.placement, case.at_end)
    if case.placement == "repeated":
        rows = np.repeat(rows[-1:], case.count, axis=0)
    expected = interleaved(np.pad(rows, ((0, -case.count % bundle), (0, 0))), bundle)
    to = memory.converted.allocate(0, expected.shape, np.uint16, case.at_end)
    by_list, _addresses = listed(block)
    table_of(case.isa).interleave(address(to), by_list.list, case.count, case.size)
    assert_same("numbers", to, expected)


def check_multiply(case, memory, random):
    """Floats are multiplied by as many factors, or by one."""
    numbers, factors = random.standard_normal((2, case.size), np.float32)
    for step in (0, 1):
        to = memory.converted.allocate(0, numbers.shape, np.float32, case.at_end)
        to[...] = numbers
        given = memory.span.place(0, factors[: case.size if step else 1], case.at_end)
        table_of(case.isa).multiply(address(to), address(given), step, case.size)
        assert_same(f"step {step}", to, numbers * (factors if step else factors[0]))
        memory.check()
