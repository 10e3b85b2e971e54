"""Checks of the kernels that gradients need, for kernel_checks.py."""

import dataclasses
import types

import numpy as np
from kernel_cases import (
    Modifiers,
    assert_close,
    assert_same,
    exponential_tolerance,
    products,
    stored,
    sum_tolerance,
    tiny,
    unit,
    wide,
)
from kernel_memory import (
    address,
)
from kernel_tables import (
    ALIGNMENT,
    MAX_LANES,
    GradientTile,
    KeyBlock,
)


def expected_gradients(modifiers, scores, products, lse, delta, real):
    """Return weights, gradients of the scores and of the bias, and the tolerance of each."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        capped = np.tanh(scores / modifiers.softcap) if "softcap" in modifiers.kinds else np.zeros_like(scores)
        final, masked, tolerance = modifiers.expect(scores, np.zeros_like(scores))
        masked = masked | (final == -np.inf)
        x = np.where(masked, -np.inf, final) - lse[:, None]
        weight = np.where(masked, 0, np.exp(x))
        off = np.where(
            masked, 0, exponential_tolerance(real, np.where(np.isfinite(x), x, 0), weight) + tolerance * weight
        )
        difference = products - delta[:, None]
        of_bias = np.where(masked, 0, weight * difference)
        sizes = np.abs(products) + np.abs(delta)[:, None]
        of_bias_off = np.where(masked, 0, off * np.abs(difference) + 4 * unit(real) * weight * sizes)
        slope = 1 - capped**2
        return (
            (weight, off),
            (of_bias * slope, of_bias_off * slope + 16 * unit(real) * np.abs(of_bias)),
            (of_bias, of_bias_off),
        )


def check_differentiate(case, memory, random):
    real, lanes = case.real, case.kernels.lanes
    rows, keys = min(case.count, MAX_LANES), case.rows
    case = dataclasses.replace(case, rows=rows, count=keys)
    # Modifiers.pass_to sets these.
    modifiers, tile = Modifiers(case, random), types.SimpleNamespace(struct=types.SimpleNamespace(score_mod=None))
    modifiers.bias = np.where(np.isfinite(modifiers.bias) | (modifiers.bias == -np.inf), modifiers.bias, 0)
    modifiers.pass_to(tile, memory)
    scores, products = (random.standard_normal((rows, keys)).astype(real) for _ in range(2))
    scores[random.random(scores.shape) < 0.05] = -np.inf
    if case.special:
        for x in (scores, products):
            x[random.random(x.shape) < 0.05] = np.nan
    lse, delta = 3 + random.standard_normal(rows).astype(real), random.standard_normal(rows).astype(real)
    arrays = [memory.tile.allocate(slot, (rows, lanes), real, case.at_end, alignment=ALIGNMENT) for slot in range(3)]
    weights, gradients, of_bias = arrays
    for array, numbers in zip(arrays, (scores, products, 0), strict=True):
        array[...] = 0
        array[:, :keys] = numbers
    slope = np.full(1, 7, real)
    has_alibi, has_bias = "alibi" in modifiers.kinds, bool(modifiers.kinds) and random.random() < 0.5
    given = [memory.source.place(slot, x, case.at_end) for slot, x in enumerate((lse, delta))]
    case.kernels.differentiate(
        GradientTile(rows, keys, tile.struct.score_mod, *map(address, given), address(weights),
                     address(gradients), address(of_bias) if has_bias else None, address(slope) if has_alibi else None)
    )  # fmt: skip
    expected = expected_gradients(modifiers, *(x.astype(wide(real)) for x in (scores, products, lse, delta)), real)
    for what, array, (numbers, tolerance) in zip(("weights", "gradients", "of bias"), arrays, expected, strict=True):
        if what != "of bias" or has_bias:
            assert_close(what, array[:, :keys], numbers, tolerance + 4 * tiny(real))
            assert not array[:, :keys][expected[0][0] == 0].any() or case.special
    numbers, tolerance = expected[2]
    if has_alibi and np.isfinite(numbers).all():
        away = np.abs(modifiers.distance[:, None] - np.arange(keys))
        sizes = 8 * sum_tolerance(case, rows * keys, (np.abs(numbers) * away).sum())
        assert_close("slope", slope[0], (numbers * away).sum(), sizes + (tolerance * away).sum())


def check_query_gradients(case, memory, random):
    real, lanes = case.real, case.kernels.lanes
    case = dataclasses.replace(case, count=min(case.count, 64), special=False)
    keys, numbers = stored(random, (case.count, case.size), case)
    block = memory.block(keys, case.own, case.placement, case.at_end)
    tiles, pitch = -(-case.count // lanes), (case.rows + int(random.integers(3))) * lanes
    room = memory.tile.allocate(0, (tiles * pitch,), real, case.at_end, alignment=ALIGNMENT)
    gradients = random.standard_normal((case.rows, case.count)).astype(real)
    for tile in range(tiles):
        part = room[tile * pitch :][: case.rows * lanes].reshape(case.rows, lanes)
        mine = gradients[:, tile * lanes : (tile + 1) * lanes]
        part[:, : mine.shape[1]] = mine
    sums = memory.converted.allocate(0, (case.rows, case.size), real, case.at_end)
    sums[...] = before = random.standard_normal(sums.shape).astype(real)
    is_new = bool(random.random() < 0.5)
    case.kernels.query_gradients(address(sums), case.rows, address(room), pitch, block, is_new)
    expected, sizes = products(gradients, numbers, real)
    if not is_new:
        expected, sizes = expected + before, sizes + np.abs(before)
    assert_close("sums", sums, expected, sum_tolerance(case, case.count, sizes))


def check_join(case, memory, random):
    """Without a carry it is one sum. With it, total and carry hold the exact sum, but for one rounding of the carry."""
    real = case.real
    total, part = (random.standard_normal(case.size).astype(real) for _ in range(2))
    carry = (unit(real) * random.standard_normal(case.size) * total / 4).astype(real)
    if case.special:
        part[random.random(case.size) < 0.2] = random.choice([np.nan, np.inf])
    arrays = [memory.source.allocate(slot, (case.size,), real, case.at_end) for slot in range(2)]
    arrays[0][...], arrays[1][...] = total, carry
    given, carries = memory.source.place(2, part, case.at_end), random.random() < 0.7
    case.kernels.join(address(arrays[0]), address(arrays[1]) if carries else None, address(given), case.size)
    if not carries:
        assert_same("total", arrays[0], total + part)
        assert_same("carry", arrays[1], carry)
        return
    finite = np.isfinite(part)
    exact = total.astype(wide(real)) + part + np.where(finite, carry, 0)
    assert_close("total", np.where(finite, arrays[0] + arrays[1].astype(wide(real)), arrays[0]), exact,
                 (2 * unit(real) ** 2 + np.finfo(wide(real)).eps)
                 * (np.abs(total) + np.abs(np.where(finite, part, 0))))  # fmt: skip
    assert_same("carry of what is not finite", arrays[1][~finite], np.zeros((~finite).sum(), real))


def check_dots(case, memory, random):
    numbers, others = (random.standard_normal((case.count, case.size)).astype(case.real) for _ in range(2))
    if case.placement == "repeated":
        numbers[:] = numbers[0]
    block = memory.block(numbers, case.own, case.placement, case.at_end)
    room = memory.converted.allocate(0, others.shape, case.real, case.at_end)
    room[...] = others
    memory.converted.freeze()
    second = KeyBlock(address(room), others.strides[0], case.count, case.size, case.own)
    sums = memory.source.allocate(0, (case.count,), case.real, case.at_end)
    case.kernels.dots(address(sums), block, second)
    terms = numbers.astype(wide(case.real)) * others
    assert_close("dots", sums, terms.sum(axis=1), sum_tolerance(case, case.size, np.abs(terms).sum(axis=1)))
