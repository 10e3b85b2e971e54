"""Compares each function of a kernel table with the formula of src/tiles/tiles.h, computed in a wider type. What is
exact by its nature (loads, marks, conversions, stores) is compared exactly.

test_kernels.py runs this file in a process of its own. By hand: `python tests/kernel_checks.py avx2 1 values merge`.
With `amx,avx512`, it leaves out what the first table shares with the others."""

import dataclasses
import functools
import itertools
import json
import math
import sys
import types
import zlib

import numpy as np
from kernel_cases import (
    Modifiers,
    assert_close,
    assert_same,
    cases,
    exponential_tolerance,
    kernel_sets,
    products,
    rounded,
    stored,
    sum_tolerance,
    tiny,
    unit,
    wide,
)
from kernel_memory import (
    PLACEMENTS,
    Memory,
    Tile,
    address,
    pack,
    round_up,
    unpack,
)
from kernel_tables import (
    ALIGNMENT,
    BFLOAT16,
    FLOAT16,
    MAX_LANES,
    TYPES,
    GradientTile,
    KeyBlock,
    Maxima,
    Softmax,
    table_of,
)


def check_modified(what, got, raw, modifiers, tolerance):
    """Check scores. A masked one may be NaN if it was NaN or +infinity before. Return which are masked."""
    expected, masked, tolerance = modifiers.expect(raw, tolerance)
    capped = "softcap" in modifiers.kinds
    wild = np.isnan(raw) | ((raw == np.inf) & (not capped))
    expected = np.where(masked, np.where(wild & np.isnan(got), np.nan, -np.inf), expected)
    assert_close(what, got, expected, tolerance)
    return masked


def largest(scores):
    """Return the largest score of each row, where a NaN does not count."""
    return np.fmax.reduce(scores, axis=1, initial=-np.inf)


def check_load(case, memory, random):
    tile = Tile(memory, case)
    rows = random.standard_normal((case.rows, case.size)).astype(TYPES[case.own])
    if case.special:
        rows[random.random(rows.shape) < 0.1] = np.inf
        rows[random.random(rows.shape) < 0.1] = np.nan
        rows[random.random(rows.shape) < 0.1] = -0.0
    tile.struct.scale = float(random.choice([1, 0.125, 1 / 3, -2.5]))
    tile.load([memory.source.place(slot, row, case.at_end) for slot, row in enumerate(rows)])
    if case.pairs:  # `scores` applies the scale
        assert_same("queries", unpack(tile.queries), unpack(pack(rows, tile.queries.shape[1])))
    else:
        assert_same("queries", tile.queries, case.real.type(tile.struct.scale) * rows)


def check_reset(case, memory, random):
    tile = Tile(memory, case)
    sinks = random.choice([-np.inf, -3.7, 0, 1e-3, 88.0, 1e300, -1e300], case.rows)
    given = random.random() < 0.7
    tile.reset(memory.source.place(0, sinks, case.at_end) if given else None)
    has_sink = given & (sinks != -np.inf)
    bound = np.finfo(case.real).max
    assert_same("row_max", tile.row_max, np.where(has_sink, np.clip(sinks, -bound, bound), -np.inf).astype(case.real))
    assert_same("row_sum", tile.row_sum, has_sink.astype(case.real))
    assert_same("lse_sum", tile.lse_sum, has_sink.astype(case.real))


def compute_scores(tile, case, memory, random):
    """Place random queries and keys. Return their scores, how exact they must be, and the block of keys."""
    queries = random.standard_normal((case.rows, case.size)).astype(TYPES[case.own])
    tile.queries[...] = pack(queries, tile.queries.shape[1]) if case.pairs else queries
    tile.struct.scale = scale = float(random.choice([1, 0.125, 1 / 3, -2.5]))
    scale = float(np.float32(scale)) if case.pairs else 1  # `load` has applied it to the others
    if case.scales_late(scale):
        scale = 1
    keys, numbers = stored(random, (case.count, case.size), case)
    block = memory.block(keys, case.type, case.placement, case.at_end)
    raw, sizes = products(queries, numbers.T, case.real)
    return scale * raw, sum_tolerance(case, case.size, abs(scale) * sizes), block


def check_scores(case, memory, random):
    tile, modifiers = Tile(memory, case), Modifiers(case, random)
    raw, tolerance, block = compute_scores(tile, case, memory, random)
    modifiers.pass_to(tile, memory)
    tile.step("scores", block)
    check_modified("scores", tile.scores, raw, modifiers, tolerance)
    assert_same("block_max", tile.block_max, late_scale(case, tile) * largest(tile.scores))
    if case.kernels.takes_lists:
        scores, block_max = tile.scores.copy(), tile.block_max.copy()
        by_list, _addresses = listed(block)
        tile.scores[...] = tile.block_max[...] = 7
        tile.step("scores", by_list)
        assert_same("scores", tile.scores, scores)
        assert_same("block_max", tile.block_max, block_max)


def check_maxima(case, memory, random):
    """The maxima are those of the same kernels' scores, whose bits they must have."""
    tile = Tile(memory, case)
    _, _, block = compute_scores(tile, case, memory, random)
    tile.struct.scale = 1
    largest_before = np.where(random.random(case.rows) < 0.5, -np.inf, random.standard_normal(case.rows))
    if case.special:
        largest_before[random.random(case.rows) < 0.2] = np.nan
    index_before = np.where(largest_before == -np.inf, -1, 3)
    with_index = random.random() < 0.5
    found, index = np.full(MAX_LANES + 16, 7, case.real), np.full(MAX_LANES, 7)
    found = found[-address(found) % ALIGNMENT // found.itemsize :][:MAX_LANES]
    found[: case.rows], index[: case.rows] = largest_before, index_before
    maxima = Maxima(address(found), address(index) if with_index else None, 100)
    if random.random() < 0.5:
        maxima.ahead, maxima.ahead_stride, maxima.ahead_item = block.data, block.stride, TYPES[case.type].itemsize
        maxima.asks_within = int(random.integers(2))
    tile.call("maxima", maxima, tile.struct, block)
    tile.step("scores", block)
    first = tile.scores.argmax(axis=1)
    most = tile.scores[np.arange(case.rows), first]
    with np.errstate(invalid="ignore"):
        better = (most > largest_before) | (np.isnan(most) & ~np.isnan(largest_before))
    if with_index:
        joins = better | (index_before < 0)
        np.testing.assert_array_equal(index[: case.rows], np.where(joins, 100 + first, index_before))
    assert_same("largest", found[: case.rows], np.where(better, most, largest_before).astype(case.real))


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


def late_scale(case, tile):
    """Return the scale that scores come without."""
    return case.real.type(tile.struct.scale if case.scales_late(tile.struct.scale) else 1)


def check_mark_attended(case, memory, random):
    tile, modifiers = Tile(memory, case), Modifiers(case, random)
    raw, tolerance, block = compute_scores(tile, case, memory, random)
    modifiers.pass_to(tile, memory)
    tile.step("scores", block)
    scores = tile.scores.copy()
    masked = check_modified("scores", scores, raw, modifiers, tolerance)
    every = tile.step("mark_attended", block)
    assert_same("scores", tile.scores, np.where(masked, case.real.type(-np.inf), scores))
    assert_same("attended", tile.attended, (~masked & (scores != -np.inf)).astype(np.uint8))
    assert bool(every) == tile.attended.all(), f"answers {every}"


def random_sums(random, case, empty):
    """Return sums of weights, rounded and not, of rows of which some have seen no key."""
    row_sum = np.where(empty, 0, random.uniform(1, 9, case.rows)).astype(case.real)
    lse_sum = row_sum * random.uniform(0.9, 1.1, case.rows).astype(case.real) if case.pairs else row_sum
    return row_sum, lse_sum


def check_exponentials(case, memory, random):
    tile, real = Tile(memory, case), case.real
    spread = random.choice([1, 10, 200] if real.itemsize == 4 else [1, 10, 1500])
    scores = (spread * random.standard_normal((case.rows, case.count))).astype(real)
    scores[random.random(scores.shape) < 0.1] = -np.inf
    scores[random.random(case.rows) < 0.1] = -np.inf
    row_max = np.where(random.random(case.rows) < 0.3, -np.inf, spread * random.standard_normal(case.rows)).astype(real)
    if case.special:
        scores[random.random(scores.shape) < 0.05] = np.nan
        scores[random.random(scores.shape) < 0.02] = np.inf
    row_sum, lse_sum = random_sums(random, case, row_max == -np.inf)
    tile.scores[...], tile.block_max[...] = scores, largest(scores)
    case = dataclasses.replace(case, modifiers=())
    tile.struct.scale = float(random.choice([-1, 0.125, 1 / 3, 2.5]))
    late = case.scales_late(tile.struct.scale)
    if late:
        scale = real.type(tile.struct.scale)
        tile.block_max[...] *= scale
        scores = scores.astype(wide(real)) * scale
    block_max = tile.block_max.copy()
    tile.row_max[...], tile.row_sum[...], tile.lse_sum[...] = row_max, row_sum, lse_sum
    tile.step("exponentials", KeyBlock(count=case.count))
    new = np.fmax(row_max, block_max)
    assert_same("row_max", tile.row_max, new)
    reference = np.where(new == -np.inf, 0, new).astype(wide(real))
    with np.errstate(invalid="ignore", under="ignore"):
        (row_scale, scale_tolerance), (power, tolerance) = (
            (np.exp(x), np.where(x == -np.inf, 0, exponential_tolerance(real, x, np.exp(x))))
            for x in (row_max - reference, scores - reference[:, None])
        )
        if late:  # where there is no FMA, the product with the scale is rounded, too
            tolerance = tolerance + np.where(power == 0, 0, unit(real) * np.abs(scores) * power)
        assert_close("row_scale", tile.row_scale, row_scale, scale_tolerance)
        weights, rest = np.split(tile.weights.astype(wide(real)), [case.count], axis=1)
        assert_close("weights", weights, *(rounded(power, tolerance) if case.pairs else (power, tolerance)))
        assert_close("behind the last weight", rest, 0, 0)
        scale = tile.row_scale.astype(wide(real))
        total = scale * row_sum + weights.sum(axis=1)
        assert_close("row_sum", tile.row_sum, total, sum_tolerance(case, case.count, np.abs(total)))
        total = scale * lse_sum + power.sum(axis=1)
        tolerance = tolerance.sum(axis=1) + sum_tolerance(case, case.count, np.abs(total))
        assert_close("lse_sum", tile.lse_sum, total, tolerance)


def random_values(tile, case, memory, random):
    """Place random weights and values. Return the block of values, the weights and the values' numbers."""
    values, numbers = stored(random, (case.count, case.size), case)
    shape = case.rows, case.count
    weights = (random.uniform(0, 1, shape) * (random.random(shape) < 0.8)).astype(TYPES[case.own])
    tile.weights = weights
    tile.attended[...] = (random.random(shape) < 0.7) | (weights > 0)
    tile.struct.is_new = bool(random.random() < 0.3)
    if not tile.struct.is_new:
        tile.row_scale[...] = random.uniform(0, 1, case.rows) * (random.random(case.rows) < 0.8)
        tile.output[...] = random.standard_normal(tile.output.shape)
    return value_block(memory, case, values), weights, numbers


def value_block(memory, case, values):
    """Return the values as the kernels take them: interleaved groups of keys lie one behind the other."""
    bundle = case.kernels.interleaves
    if bundle == 1:
        return memory.block(values, case.type, case.placement, case.at_end)
    padded = np.pad(values, ((0, -len(values) % bundle), (0, 0)), mode="edge")
    block = memory.block(interleaved(padded, bundle), case.type, "contiguous", case.at_end)
    block.count, block.stride, block.size = len(values), block.stride // bundle, values.shape[1]
    return block


def interleaved(rows, bundle):
    """Return the rows with those of each bundle of keys as one, column by column."""
    return rows.reshape(-1, bundle, rows.shape[1]).swapaxes(1, 2).reshape(len(rows) // bundle, -1)


def listed(block):
    """Return the same keys as a list of addresses, and the list, which must live as long."""
    addresses = np.array([block.data + j * block.stride for j in range(block.count)], np.uintp)
    return KeyBlock(None, 0, block.count, block.size, block.type, None, None, address(addresses)), addresses


def tile_with_gaps(memory, case, random):
    """Return a tile whose output may have columns beside those of the call, and a pitch that is larger than needed."""
    beside = case.few and random.random() < 0.5
    pitch = round_up(case.count, 64) + 64 * int(random.integers(3))
    start, beyond = (ALIGNMENT // case.real.itemsize, int(random.integers(1, 9))) if beside else (0, 0)
    return Tile(memory, case, pitch=pitch, start=start, beyond=beyond)


def check_values(case, memory, random):
    case = dataclasses.replace(case, special=False)
    tile = tile_with_gaps(memory, case, random)
    block, weights, numbers = random_values(tile, case, memory, random)
    expected, sizes = products(weights, numbers, case.real)
    if not tile.struct.is_new:
        before = tile.row_scale.astype(wide(case.real))[:, None] * tile.output
        expected, sizes = expected + before, sizes + np.abs(before)
    start = tile.output.copy()
    tile.step("values", block)
    assert_close("output", tile.output, expected, sum_tolerance(case, case.count, sizes))
    together, column = tile.output.copy(), int(random.integers(case.size))
    if case.kernels.takes_lists and case.kernels.interleaves == 1:
        tile.output[...] = start
        by_list, _addresses = listed(block)
        tile.step("values", by_list)
        assert_same("output", tile.output, together)
    tile.output[...] = start
    block.data += column * TYPES[case.type].itemsize * case.kernels.interleaves
    block.size = 1
    tile.step("values", block, first=column if case.few else column * case.kernels.lanes)
    assert_same("output", tile.output[:, column], together[:, column])


def random_softmax(random, case):
    """Return a softmax of random keys, some rows of which have seen none."""
    empty = random.random(case.rows) < 0.2
    row_max = np.where(empty, -np.inf, 4 * random.standard_normal(case.rows)).astype(case.real)
    row_max[random.random(case.rows) < 0.1] -= 2000  # whose share is 0
    row_sum, lse_sum = random_sums(random, case, empty)
    output = np.where(empty[:, None], 0, random.standard_normal((case.rows, case.size))).astype(case.real)
    if case.special:
        some = ~empty[:, None] & (random.random(output.shape) < 0.1)
        output[some] = random.choice([np.inf, -np.inf, np.nan], some.sum())
    return row_max, row_sum, lse_sum, output


def place_softmax(tile, memory, row_max, row_sum, lse_sum, output):
    """Place what joins the total. With few rows it may lie anywhere."""
    if not tile.few:
        tile.row_max[...], tile.row_sum[...], tile.lse_sum[...], tile.output[...] = row_max, row_sum, lse_sum, output
        return
    pitch, at_end = tile.struct.output_pitch, tile.at_end
    apart = np.full((len(output) - 1) * pitch + output.shape[1], np.nan, output.dtype)
    np.ndarray(output.shape, output.dtype, apart, strides=(pitch * output.itemsize, output.itemsize))[...] = output
    rows = [
        memory.source.place(0, row_max, at_end),
        memory.source.place(1, row_sum, at_end),
        memory.source.place(2, lse_sum, at_end),
        memory.span.place(0, apart, at_end),
    ]
    tile.struct.softmax = Softmax(*map(address, rows))


def random_carries(case, total, random):
    """Return what rounding may have taken from the sums and the output of a total."""
    row_sum, lse_sum, output = [
        (unit(case.real) * random.standard_normal(x.shape) * np.where(np.isfinite(x), x, 0)).astype(case.real)
        for x in total[1:]
    ]
    return row_sum, lse_sum if case.pairs else row_sum, output


def set_total(tile, total, carries=(0, 0, 0)):
    tile.total_max[...], tile.total_sum[...], tile.total_lse_sum[...], tile.total_output[...] = total
    tile.row_sum_carry[...], tile.lse_sum_carry[...], tile.output_carry[...] = carries


def scaled(exponent, terms, real):
    """Return exp(exponent) · terms. What is not finite stays, even if the power is 0 in the kernel's type."""
    power = np.exp(exponent)
    return np.where((power < tiny(real)) & ~np.isfinite(terms), terms, power * terms)


def sum_of_merged(exponents, total, carry, part, real):
    """Return the sum of a total, its carry and a part, each scaled by the power of its exponent, and the tolerance."""
    if total.ndim == 2:
        exponents = [exponent[:, None] for exponent in exponents]
    expected = scaled(exponents[0], total, real) + scaled(exponents[1], part, real)
    expected = expected + np.where(np.isfinite(total), np.exp(exponents[0]) * carry, 0)
    tolerance = tiny(real)
    for exponent, terms in zip(exponents, (total, part), strict=True):
        finite = np.where(np.isinf(exponent), 0, exponent)
        error = exponential_tolerance(real, finite, np.exp(finite))
        tolerance = tolerance + np.where(np.isfinite(terms), np.abs(terms) * error, 0)
    return expected, tolerance


def check_merged(what, got, carry, expected, tolerance, exact):
    """Check a sum and its carry. Unless exact, an infinity may have become a NaN."""
    if not exact:
        wild = ~np.isfinite(expected)
        assert not np.isfinite(got[wild]).any(), f"{what}: an infinity or NaN was lost"
        expected = np.where(wild, got, expected)
    finite, real = np.isfinite(got), got.dtype
    assert_close(what, np.where(finite, got + carry.astype(wide(real)), got), expected, tolerance)
    size = np.abs(np.where(finite, got, 0))
    assert_close(f"{what}'s carry", np.where(finite, carry, 0), 0, 2 * unit(real) * size)


def check_merge(case, memory, random):
    tile = tile_with_gaps(memory, case, random)
    total, part = random_softmax(random, case), random_softmax(random, case)
    carries = random_carries(case, total, random)
    set_total(tile, total, carries)
    place_softmax(tile, memory, *part)
    exact = case.few or bool(random.random() < 0.5)
    tile.merge(exact)
    maximum = np.fmax(total[0], part[0])
    assert_same("row_max", tile.total_max, maximum)
    reference = np.where(maximum == -np.inf, 0, maximum).astype(wide(case.real))
    sums = [
        ("row_sum", tile.total_sum, tile.row_sum_carry),
        ("lse_sum", tile.total_lse_sum, tile.lse_sum_carry),
        ("output", tile.total_output, tile.output_carry),
    ]
    with np.errstate(invalid="ignore", under="ignore", over="ignore"):
        exponents = total[0] - reference, part[0] - reference
        for (what, got, carry), one, lost, two in zip(sums, total[1:], carries, part[1:], strict=True):
            expected, tolerance = sum_of_merged(exponents, one, lost, two, case.real)
            check_merged(what, got, carry, expected, tolerance, exact)


def check_merges(case, memory, random):
    """The sums of many softmaxes of one maximum are as exact as one of them."""
    case = dataclasses.replace(case, size=min(case.size, 5), special=False)
    tile = Tile(memory, case)
    count = 300
    row_max = random.standard_normal(case.rows).astype(case.real)
    row_sums, lse_sums = (
        np.array(parts) for parts in zip(*(random_sums(random, case, False) for _ in range(count)), strict=True)
    )
    outputs = random.uniform(0, 1, (count, case.rows, case.size)).astype(case.real)
    set_total(tile, (row_max, row_sums[0], lse_sums[0], outputs[0]))
    for joining in zip(row_sums[1:], lse_sums[1:], outputs[1:], strict=True):
        place_softmax(tile, memory, row_max, *joining)
        tile.merge(False)
        memory.check(tiles=False)
    for what, got, terms in [
        ("row_sum", tile.total_sum, row_sums),
        ("lse_sum", tile.total_lse_sum, lse_sums),
        ("output", tile.total_output, outputs),
    ]:
        exact = terms.astype(wide(case.real)).sum(axis=0)
        assert_close(what, got, exact, 1.01 * unit(case.real) * exact + count * np.finfo(wide(case.real)).eps * exact)


def check_store(case, memory, random):
    tile, real = tile_with_gaps(memory, case, random), case.real
    output = np.ldexp(
        random.standard_normal((case.rows, case.size)), random.integers(-20, 20, (case.rows, case.size))
    ).astype(real)
    row_sum = np.where(random.random(case.rows) < 0.2, 0, random.uniform(0.01, 1000, case.rows)).astype(real)
    if case.special:
        some = random.random(output.shape) < 0.05
        output[some] = random.choice([np.inf, -np.inf, np.nan, -0.0, tiny(real)], some.sum())
        row_sum[random.random(case.rows) < 0.05] = random.choice([np.inf, np.nan])
    tile.output[...], tile.row_sum[...] = output, row_sum
    rows = [memory.destination.allocate(slot, [case.size], real, case.at_end) for slot in range(case.rows)]
    divided = bool(random.random() < 0.7)
    if not divided:
        row_sum[...] = 1
    answer = tile.store(tile.struct.softmax, rows, divided=divided)
    with np.errstate(invalid="ignore", under="ignore"):
        expected = output / np.where(row_sum == 0, 1, row_sum)[:, None].astype(real)
    # Correctly rounded but for quotients of what is nearly too small for a number.
    assert_close(
        "rows",
        np.array(rows),
        expected,
        np.where(np.abs(output) <= tiny(real), 2 * np.finfo(real).smallest_subnormal, 0),
    )
    finite = np.isfinite(expected).all() and np.isfinite(row_sum).all()
    assert bool(answer) == finite, f"answers {answer}"


def check_logsumexp(case, memory, random):
    tile, real = Tile(memory, case), case.real
    empty = random.random(case.rows) < 0.2
    row_max = np.where(empty, -np.inf, 100 * random.standard_normal(case.rows)).astype(real)
    lse_sum = np.where(empty, 0, random.uniform(1, 1e4, case.rows)).astype(real)
    tile.row_max[...], tile.lse_sum[...] = row_max, lse_sum
    rows = [memory.destination.allocate(slot, [1], real, case.at_end) for slot in range(case.rows)]
    tile.logsumexp(tile.struct.softmax, rows)
    with np.errstate(divide="ignore"):
        logarithm = np.log(lse_sum.astype(wide(real)))
        sizes = np.where(empty, 0, np.abs(row_max) + np.abs(logarithm))
        assert_close("lse", np.concatenate(rows), row_max + logarithm, 3 * unit(real) * sizes)


MASKED = 30  # keys behind the last one at most


class Problem:
    """Rows over two blocks of keys."""

    def __init__(self, case, random):
        self.case = case = dataclasses.replace(case, placement="contiguous")  # no two keys are the same
        self.source = random.standard_normal((case.rows, case.size)).astype(TYPES[case.own])
        self.sinks = random.choice([-np.inf, 0.5], case.rows)
        # Values are finite, since what `values` makes of others is thrown away.
        self.keys, self.values = (
            [stored(random, (case.count + MASKED, case.size), of)[0] for _ in range(2)]
            for of in (case, dataclasses.replace(case, special=False))
        )
        self.modifiers = [Modifiers(case, random) for _ in range(2)]

    def results(self, memory, random, chosen, *, extra=0, alone=None, halves=False):
        """Return what each kernel leaves of the chosen rows. `extra` masked keys stand behind the last one. If one row
        stands `alone`, the queries of all others are NaN."""
        run = Run(self, memory, random, chosen, extra)
        run.load(alone)
        for block in range(2):
            run.attend(block, halves)
            if block == 0:
                set_total(run.tile, [getattr(run.tile, name) for name in ("row_max", "row_sum", "lse_sum", "output")])
        run.finish()
        return run.results


class Run:
    """The kernels of some rows of a problem, called one after the other as attention does."""

    def __init__(self, problem, memory, random, chosen, extra):
        self.problem, self.memory, self.chosen, self.extra, self.results = problem, memory, chosen, extra, {}
        self.case = dataclasses.replace(
            problem.case,
            count=problem.case.count + extra,
            half=None,
            placement=str(random.choice(PLACEMENTS[:-1])),
        )
        pitch = round_up(problem.case.count + MASKED, 64)
        self.tile = Tile(memory, self.case, rows=len(chosen), pitch=pitch)

    def keep(self, step, names):
        """Keep these arrays as results, without the weights of masked keys behind the last one."""
        self.memory.check(tiles=False)
        for name in names.split():
            array = getattr(self.tile, name)
            self.results[f"{step}: {name}"] = (
                array[:, : self.problem.case.count] if name == "weights" else array
            ).copy()

    def place(self, rows):
        case = self.case
        return self.memory.block(rows[: case.count], case.type, case.placement, case.at_end)

    def load(self, alone):
        source = self.problem.source[self.chosen]
        if alone is not None:
            source[np.arange(len(self.chosen)) != alone] = np.nan
        self.tile.struct.scale = 0.5 / math.sqrt(self.case.size)  # no few keys have all the weight
        self.tile.load([self.memory.source.place(slot, row, self.case.at_end) for slot, row in enumerate(source)])
        self.keep("load", "queries")

    def parts(self, halves):
        """Return the tile and its rows, or its halves and theirs."""
        if not halves:
            return [(self.tile, self.chosen)]
        starts = [*range(0, len(self.chosen), self.case.kernels.half), len(self.chosen)]
        return [
            (self.tile.half(half, stop - start), self.chosen[start:stop])
            for half, (start, stop) in enumerate(itertools.pairwise(starts))
        ]

    def attend(self, block, halves):
        problem, case, count = self.problem, self.case, KeyBlock(count=self.case.count)
        self.tile.reset(problem.sinks[self.chosen] if block == 0 else None)
        parts = self.parts(halves)
        for part, rows in parts:
            part.struct.is_new = True
            problem.modifiers[block].of(rows, self.extra).pass_to(part, self.memory)
            part.step("scores", self.place(problem.keys[block]))
            self.memory.check(tiles=False)
            if case.special:
                part.step("mark_attended", count)
            part.step("exponentials", count)
        self.keep(f"{block}, exponentials", "weights row_scale row_max row_sum lse_sum")
        values = value_block(self.memory, case, problem.values[block][: case.count])
        for part, _ in parts:
            part.step("values", values)
        self.keep(f"{block}, values", "output")

    def finish(self):
        self.tile.merge(False)
        self.keep("merge", "total_max total_sum total_lse_sum total_output output_carry")
        for kernel, size in [("store", self.case.size), ("logsumexp", 1)]:
            shape, slots = [size], range(len(self.chosen))
            rows = [self.memory.destination.allocate(slot, shape, self.case.real, self.case.at_end) for slot in slots]
            getattr(self.tile, kernel)(self.tile.total.softmax, rows)
            self.results[kernel] = np.array(rows)
            self.memory.destination.check()
        self.memory.check()


def check_rows(case, memory, random):
    """A row gets the same bits whatever its lane, its neighbours, strides, and the masked keys behind its last one."""
    problem, everyone = Problem(case, random), np.arange(case.rows)
    expected = problem.results(memory, random, everyone)

    def check(what, chosen, rows=None, **options):
        found = problem.results(memory, random, chosen, **options)
        for step in expected:
            at = slice(None) if rows is None else rows
            assert_same(f"{what}: {step}", found[step][at], expected[step][chosen][at])

    check("in other lanes", random.permutation(everyone))
    if case.count < case.kernels.most:
        extra = int(random.integers(1, min(MASKED, case.kernels.most - case.count) + 1))
        check(f"beside {extra} masked keys", everyone, extra=extra)
    for row in {0, case.rows - 1, int(random.integers(case.rows))}:
        check(f"row {row} alone", everyone[row : row + 1])
    check(f"row {row} beside NaN", everyone, slice(row, row + 1), alone=row)
    if case.kernels.half < case.kernels.lanes and not case.few:
        check("by halves", everyone, halves=True)


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
    """Every number of a half type becomes the float that it is."""
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
    table_of(case.isa).interleave(address(to), block.data, block.stride, case.count, case.size)
    assert_same("numbers", to, expected)


CHECKS = {
    "load": check_load,
    "reset": check_reset,
    "scores": check_scores,
    "maxima": check_maxima,
    "differentiate": check_differentiate,
    "query_gradients": check_query_gradients,
    "join": check_join,
    "dots": check_dots,
    "mark_attended": check_mark_attended,
    "exponentials": check_exponentials,
    "values": check_values,
    "merge": check_merge,
    "merges": check_merges,
    "store": check_store,
    "logsumexp": check_logsumexp,
    "rows": check_rows,
    "widen": check_widen,
    "narrow": check_narrow,
    "round_to_float": check_round_to_float,
    "interleave": check_interleave,
}


def checks(isa, others=()):
    """Return the functions of a table that are checked."""
    return [function for function in CHECKS if kernel_sets(function, isa, others)]


def run(isa, others, rounds, functions):
    """Run the checks of a table, without those of kernels that it shares with other tables. Print each case beforehand,
    and what fails. Ten failures of a function are enough."""
    memory = Memory()
    for function in functions:
        print(json.dumps(["begin", function]), flush=True)
        failures = 0
        for case in cases(function, isa, rounds, others):
            print(json.dumps(["case", str(case)]), flush=True)
            try:
                CHECKS[function](case, memory, np.random.default_rng(zlib.crc32(str(case).encode())))
                memory.check()
            except AssertionError as error:
                print(json.dumps(["failed", f"{case}: {error}"]), flush=True)
                memory = Memory()
                failures += 1
                if failures == 10:
                    break
        print(json.dumps(["end", function]), flush=True)


if __name__ == "__main__":
    tables, rounds, *functions = sys.argv[1:]
    isa, *others = tables.split(",")
    run(isa, others, int(rounds), functions or checks(isa, others))
