"""Each function of a kernel table against the formula of src/tiles/tiles.h, computed in a wider type; what is exact by
its nature (loads, marks, conversions, stores) is compared exactly.

test_kernels.py runs this file in a process of its own. By hand: `python tests/kernel_checks.py avx2 1 values merge`."""

import dataclasses
import functools
import itertools
import json
import math
import sys
import zlib

import numpy as np
from kernel_cases import (
    Modifiers,
    cases,
    close,
    exponential_tolerance,
    products,
    rounded,
    same,
    sets,
    stored,
    sum_tolerance,
    tiny,
    unit,
    wide,
)
from kernel_tables import (
    ALIGNMENT,
    BFLOAT16,
    FLOAT16,
    PLACEMENTS,
    TYPES,
    KeyBlock,
    Memory,
    Softmax,
    Tile,
    address,
    pack,
    round_up,
    table_of,
    unpack,
)


def check_modified(what, got, raw, modifiers, tolerance):
    """Scores, of which those that are masked may be NaN where that comes of a NaN or +infinity."""
    expected, masked, tolerance = modifiers.expect(raw, tolerance)
    capped = "softcap" in modifiers.kinds
    wild = np.isnan(raw) | ((raw == np.inf) & (not capped))
    expected = np.where(masked, np.where(wild & np.isnan(got), np.nan, -np.inf), expected)
    close(what, got, expected, tolerance)
    return masked


def largest(scores):
    """Of each row; a NaN not counted."""
    return np.fmax.reduce(scores, axis=1, initial=-np.inf)


def check_load(case, memory, random):
    tile = Tile(memory, case)
    rows = random.standard_normal((case.rows, case.size)).astype(TYPES[case.own])
    if case.special:
        rows[random.random(rows.shape) < 0.1] = np.inf
        rows[random.random(rows.shape) < 0.1] = np.nan
        rows[random.random(rows.shape) < 0.1] = -0.0
    tile.struct.scale = float(random.choice([1, 0.125, 1 / 3, -2.5]))
    tile.load([memory.source.put(slot, row, case.at_end) for slot, row in enumerate(rows)])
    if case.pairs:  # `scores` applies the scale
        same("queries", unpack(tile.queries), unpack(pack(rows, tile.queries.shape[1])))
    else:
        same("queries", tile.queries, case.real.type(tile.struct.scale) * rows)


def check_reset(case, memory, random):
    tile = Tile(memory, case)
    sinks = random.choice([-np.inf, -3.7, 0, 1e-3, 88.0, 1e300, -1e300], case.rows)
    given = random.random() < 0.7
    tile.reset(memory.source.put(0, sinks, case.at_end) if given else None)
    has_sink = given & (sinks != -np.inf)
    bound = np.finfo(case.real).max
    same("row_max", tile.row_max, np.where(has_sink, np.clip(sinks, -bound, bound), -np.inf).astype(case.real))
    same("row_sum", tile.row_sum, has_sink.astype(case.real))
    same("lse_sum", tile.lse_sum, has_sink.astype(case.real))


def compute_scores(tile, case, memory, random):
    """Of random queries and keys, unmodified: what is expected and how exactly, and the block."""
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
    same("block_max", tile.block_max, late_scale(case, tile) * largest(tile.scores))


def late_scale(case, tile):
    """The scale that scores come without."""
    return case.real.type(tile.struct.scale if case.scales_late(tile.struct.scale) else 1)


def check_mark_attended(case, memory, random):
    tile, modifiers = Tile(memory, case), Modifiers(case, random)
    raw, tolerance, block = compute_scores(tile, case, memory, random)
    modifiers.pass_to(tile, memory)
    tile.step("scores", block)
    scores = tile.scores.copy()
    masked = check_modified("scores", scores, raw, modifiers, tolerance)
    every = tile.step("mark_attended", block)
    same("scores", tile.scores, np.where(masked, case.real.type(-np.inf), scores))
    same("attended", tile.attended, (~masked & (scores != -np.inf)).astype(np.uint8))
    assert bool(every) == tile.attended.all(), f"answers {every}"


def sums(random, case, empty):
    """Sums of weights, as they meet the values and as they were, of rows of which some have seen no key."""
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
    row_sum, lse_sum = sums(random, case, row_max == -np.inf)
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
    same("row_max", tile.row_max, new)
    reference = np.where(new == -np.inf, 0, new).astype(wide(real))
    with np.errstate(invalid="ignore", under="ignore"):
        (row_scale, scale_tolerance), (power, tolerance) = (
            (np.exp(x), np.where(x == -np.inf, 0, exponential_tolerance(real, x, np.exp(x))))
            for x in (row_max - reference, scores - reference[:, None])
        )
        if late:  # where there is no FMA, the product with the scale is rounded, too
            tolerance = tolerance + np.where(power == 0, 0, unit(real) * np.abs(scores) * power)
        close("row_scale", tile.row_scale, row_scale, scale_tolerance)
        weights, rest = np.split(tile.weights.astype(wide(real)), [case.count], axis=1)
        close("weights", weights, *(rounded(power, tolerance) if case.pairs else (power, tolerance)))
        close("behind the last weight", rest, 0, 0)
        scale = tile.row_scale.astype(wide(real))
        total = scale * row_sum + weights.sum(axis=1)
        close("row_sum", tile.row_sum, total, sum_tolerance(case, case.count, np.abs(total)))
        total = scale * lse_sum + power.sum(axis=1)
        tolerance = tolerance.sum(axis=1) + sum_tolerance(case, case.count, np.abs(total))
        close("lse_sum", tile.lse_sum, total, tolerance)


def weigh(tile, case, memory, random):
    """Random weights and values: the block, and the values' numbers."""
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
    group = case.kernels.interleaves
    if group == 1:
        return memory.block(values, case.type, case.placement, case.at_end)
    padded = np.pad(values, ((0, -len(values) % group), (0, 0)), mode="edge")
    block = memory.block(interleaved(padded, group), case.type, "contiguous", case.at_end)
    block.count, block.stride, block.size = len(values), block.stride // group, values.shape[1]
    return block


def interleaved(rows, group):
    """The rows of a group of keys as one, column by column."""
    return rows.reshape(-1, group, rows.shape[1]).swapaxes(1, 2).reshape(len(rows) // group, -1)


def roomy(memory, case, random):
    """A tile whose output may have columns beside those of the call, and whose pitch may be larger than it must be."""
    beside = case.few and random.random() < 0.5
    pitch = round_up(case.count, 64) + 64 * int(random.integers(3))
    start, beyond = (ALIGNMENT // case.real.itemsize, int(random.integers(1, 9))) if beside else (0, 0)
    return Tile(memory, case, pitch=pitch, start=start, beyond=beyond)


def check_values(case, memory, random):
    case = dataclasses.replace(case, special=False)
    tile = roomy(memory, case, random)
    block, weights, numbers = weigh(tile, case, memory, random)
    expected, sizes = products(weights, numbers, case.real)
    if not tile.struct.is_new:
        before = tile.row_scale.astype(wide(case.real))[:, None] * tile.output
        expected, sizes = expected + before, sizes + np.abs(before)
    start = tile.output.copy()
    tile.step("values", block)
    close("output", tile.output, expected, sum_tolerance(case, case.count, sizes))
    together, column = tile.output.copy(), int(random.integers(case.size))
    tile.output[...] = start
    block.rows += column * TYPES[case.type].itemsize * case.kernels.interleaves
    block.size = 1
    tile.step("values", block, first=column if case.few else column * case.kernels.lanes)
    same("output", tile.output[:, column], together[:, column])


def part(random, case):
    """A softmax of random keys, some rows of which have seen none."""
    empty = random.random(case.rows) < 0.2
    row_max = np.where(empty, -np.inf, 4 * random.standard_normal(case.rows)).astype(case.real)
    row_max[random.random(case.rows) < 0.1] -= 2000  # whose share is 0
    row_sum, lse_sum = sums(random, case, empty)
    output = np.where(empty[:, None], 0, random.standard_normal((case.rows, case.size))).astype(case.real)
    if case.special:
        some = ~empty[:, None] & (random.random(output.shape) < 0.1)
        output[some] = random.choice([np.inf, -np.inf, np.nan], some.sum())
    return row_max, row_sum, lse_sum, output


def set_part(tile, memory, row_max, row_sum, lse_sum, output):
    """What joins the total. Of few rows it lies anywhere."""
    if not tile.few:
        tile.row_max[...], tile.row_sum[...], tile.lse_sum[...], tile.output[...] = row_max, row_sum, lse_sum, output
        return
    pitch, at_end = tile.struct.output_pitch, tile.at_end
    apart = np.full((len(output) - 1) * pitch + output.shape[1], np.nan, output.dtype)
    np.ndarray(output.shape, output.dtype, apart, strides=(pitch * output.itemsize, output.itemsize))[...] = output
    rows = [
        memory.source.put(0, row_max, at_end),
        memory.source.put(1, row_sum, at_end),
        memory.source.put(2, lse_sum, at_end),
        memory.span.put(0, apart, at_end),
    ]
    tile.struct.softmax = Softmax(*map(address, rows))


def check_merge(case, memory, random):
    tile, real = roomy(memory, case, random), case.real
    total, other = part(random, case), part(random, case)
    carries = [
        (unit(real) * random.standard_normal(x.shape) * np.where(np.isfinite(x), x, 0)).astype(real) for x in total[1:]
    ]
    carries[1] = carries[1 if case.pairs else 0]
    tile.total_max[...], tile.total_sum[...], tile.total_lse_sum[...], tile.total_output[...] = total
    tile.row_sum_carry[...], tile.lse_sum_carry[...], tile.output_carry[...] = carries
    set_part(tile, memory, *other)
    selecting = case.few or bool(random.random() < 0.5)
    tile.merge(selecting)
    new = np.fmax(total[0], other[0])
    same("row_max", tile.total_max, new)
    reference = np.where(new == -np.inf, 0, new).astype(wide(real))
    with np.errstate(invalid="ignore", under="ignore", over="ignore"):
        x, y = total[0] - reference, other[0] - reference
        for what, got, carry, one, rest, two in [
            ("row_sum", tile.total_sum, tile.row_sum_carry, total[1], carries[0], other[1]),
            ("lse_sum", tile.total_lse_sum, tile.lse_sum_carry, total[2], carries[1], other[2]),
            ("output", tile.total_output, tile.output_carry, total[3], carries[2], other[3]),
        ]:
            a, b = x, y
            if one.ndim == 2:
                a, b = x[:, None], y[:, None]
            terms = [
                np.where((np.exp(e) < tiny(real)) & ~np.isfinite(z), z, np.exp(e) * z) for e, z in ((a, one), (b, two))
            ]
            expected = terms[0] + terms[1] + np.where(np.isfinite(one), np.exp(a) * rest, 0)
            if not selecting:
                wild = ~np.isfinite(expected)
                assert not np.isfinite(got[wild]).any(), f"{what}: an infinity or NaN was lost"
                expected = np.where(wild, got, expected)
            tolerance = sum(
                np.where(np.isfinite(z), np.abs(z) * exponential_tolerance(real, e, np.exp(e)), 0)
                for e, z in ((np.where(np.isinf(a), 0, a), one), (np.where(np.isinf(b), 0, b), two))
            )
            exact = np.where(np.isfinite(got), got + carry.astype(wide(real)), got)
            close(what, exact, expected, tolerance + tiny(real))
            small = np.isfinite(got)
            close(f"{what}'s carry", np.where(small, carry, 0), 0, 2 * unit(real) * np.abs(np.where(small, got, 0)))


def check_merges(case, memory, random):
    """The sums of many softmaxes of one maximum are as exact as one of them."""
    case = dataclasses.replace(case, size=min(case.size, 5), special=False)
    tile = Tile(memory, case)
    count = 300
    row_max = random.standard_normal(case.rows).astype(case.real)
    row_sums, lse_sums = (
        np.array(parts) for parts in zip(*(sums(random, case, False) for _ in range(count)), strict=True)
    )
    outputs = random.uniform(0, 1, (count, case.rows, case.size)).astype(case.real)
    tile.total_max[...], tile.total_output[...] = row_max, outputs[0]
    tile.total_sum[...], tile.total_lse_sum[...] = row_sums[0], lse_sums[0]
    tile.row_sum_carry[...] = tile.lse_sum_carry[...] = tile.output_carry[...] = 0
    for joining in zip(row_sums[1:], lse_sums[1:], outputs[1:], strict=True):
        set_part(tile, memory, row_max, *joining)
        tile.merge(False)
        memory.settle(all=False)
    for what, got, terms in [
        ("row_sum", tile.total_sum, row_sums),
        ("lse_sum", tile.total_lse_sum, lse_sums),
        ("output", tile.total_output, outputs),
    ]:
        exact = terms.astype(wide(case.real)).sum(axis=0)
        close(what, got, exact, 1.01 * unit(case.real) * exact + count * np.finfo(wide(case.real)).eps * exact)


def check_store(case, memory, random):
    tile, real = roomy(memory, case, random), case.real
    output = np.ldexp(
        random.standard_normal((case.rows, case.size)), random.integers(-20, 20, (case.rows, case.size))
    ).astype(real)
    row_sum = np.where(random.random(case.rows) < 0.2, 0, random.uniform(0.01, 1000, case.rows)).astype(real)
    if case.special:
        some = random.random(output.shape) < 0.05
        output[some] = random.choice([np.inf, -np.inf, np.nan, -0.0, tiny(real)], some.sum())
        row_sum[random.random(case.rows) < 0.05] = random.choice([np.inf, np.nan])
    tile.output[...], tile.row_sum[...] = output, row_sum
    rows = [memory.destination.room(slot, [case.size], real, case.at_end) for slot in range(case.rows)]
    divided = bool(random.random() < 0.7)
    if not divided:
        row_sum[...] = 1
    answer = tile.store(tile.struct.softmax, rows, divided=divided)
    with np.errstate(invalid="ignore", under="ignore"):
        expected = output / np.where(row_sum == 0, 1, row_sum)[:, None].astype(real)
    # Correctly rounded but for quotients of what is nearly too small for a number.
    close(
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
    rows = [memory.destination.room(slot, [1], real, case.at_end) for slot in range(case.rows)]
    tile.logsumexp(tile.struct.softmax, rows)
    with np.errstate(divide="ignore"):
        logarithm = np.log(lse_sum.astype(wide(real)))
        sizes = np.where(empty, 0, np.abs(row_max) + np.abs(logarithm))
        close("lse", np.concatenate(rows), row_max + logarithm, 3 * unit(real) * sizes)


class Problem:
    """Rows over two blocks of keys."""

    def __init__(self, case, random):
        self.case = case = dataclasses.replace(case, placement="contiguous")  # no two keys are the same
        self.source = random.standard_normal((case.rows, case.size)).astype(TYPES[case.own])
        self.sinks = random.choice([-np.inf, 0.5], case.rows)
        # Values that are not finite never come to `values`.
        self.keys, self.values = (
            [stored(random, (case.count + MASKED, case.size), of)[0] for _ in range(2)]
            for of in (case, dataclasses.replace(case, special=False))
        )
        self.modifiers = [Modifiers(case, random) for _ in range(2)]

    def steps(self, memory, random, chosen, *, extra=0, alone=None, halves=False):
        """What each kernel, called one after the other as attention does, leaves of the chosen rows. Behind the last
        keys some may stand that are masked; and all rows but one may be NaN."""
        case = dataclasses.replace(
            self.case, count=self.case.count + extra, half=None, placement=str(random.choice(PLACEMENTS[:-1]))
        )
        tile = Tile(memory, case, rows=len(chosen), pitch=round_up(self.case.count + MASKED, 64))
        left = {}

        def keep(step, kernel, names):
            memory.settle(all=False)
            for name in names.split():
                result = getattr(tile, name)
                left[f"{step}, {kernel}: {name}"] = (
                    result[:, : self.case.count] if name == "weights" else result
                ).copy()

        source = self.source[chosen]
        if alone is not None:
            source[np.arange(len(chosen)) != alone] = np.nan
        tile.struct.scale = 0.5 / math.sqrt(case.size)  # no few keys have all the weight
        tile.load([memory.source.put(slot, row, case.at_end) for slot, row in enumerate(source)])
        keep(0, "load", "queries")
        for step, (keys, values, modifiers) in enumerate(zip(self.keys, self.values, self.modifiers, strict=True)):
            tile.reset(self.sinks[chosen] if step == 0 else None)
            parts, starts = [tile], [0, len(chosen)]
            if halves:
                starts = [*range(0, len(chosen), case.kernels.half), len(chosen)]
                parts = [tile.half(half, stop - start) for half, (start, stop) in enumerate(itertools.pairwise(starts))]
            for part, (start, stop) in zip(parts, itertools.pairwise(starts), strict=True):
                part.struct.is_new = True
                modifiers.of(chosen[start:stop], extra).pass_to(part, memory)
                part.step("scores", memory.block(keys[: case.count], case.type, case.placement, case.at_end))
                memory.settle(all=False)
                if case.special:
                    part.step("mark_attended", KeyBlock(count=case.count))
                part.step("exponentials", KeyBlock(count=case.count))
            keep(step, "exponentials", "weights row_scale row_max row_sum lse_sum")
            block = value_block(memory, case, values[: case.count])
            for part in parts:
                part.step("values", block)
            keep(step, "values", "output")
            if step == 0:
                tile.total_max[...], tile.total_sum[...], tile.total_lse_sum[...], tile.total_output[...] = (
                    tile.row_max,
                    tile.row_sum,
                    tile.lse_sum,
                    tile.output,
                )
                tile.row_sum_carry[...] = tile.lse_sum_carry[...] = tile.output_carry[...] = 0
        tile.merge(False)
        keep(step, "merge", "total_max total_sum total_lse_sum total_output output_carry")
        for kernel, size in [("store", case.size), ("logsumexp", 1)]:
            rows = [memory.destination.room(slot, [size], case.real, case.at_end) for slot in range(len(chosen))]
            getattr(tile, kernel)(tile.total.softmax, rows)
            left[kernel] = np.array(rows)
            memory.destination.settle()
        memory.settle()
        return left


MASKED = 30  # keys behind the last one at most


def check_rows(case, memory, random):
    """A row gets the same bits whatever its lane, its neighbours, strides, and the masked keys behind its last one."""
    problem, everyone = Problem(case, random), np.arange(case.rows)
    expected = problem.steps(memory, random, everyone)

    def check(what, chosen, rows=None, **options):
        found = problem.steps(memory, random, chosen, **options)
        for step in expected:
            at = slice(None) if rows is None else rows
            same(f"{what}: {step}", found[step][at], expected[step][chosen][at])

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
    """Contiguous elements through the table's converter, aligned to their own type only."""
    source, to = memory.span.put(0, array, case.at_end), memory.converted.room(0, array.shape, out, case.at_end)
    getattr(table_of(case.isa), name)(address(to), address(source), type, array.size)
    return to


def some_of(numbers, case, random):
    """All of them now and then, else a piece."""
    start = 0 if case.number % 40 == 0 else int(random.integers(len(numbers) - case.size))
    return numbers if case.number % 40 == 0 else numbers[start : start + case.size]


def check_widen(case, memory, random):
    """Every number there is."""
    for type, half in HALF_TYPES.items():
        some = some_of(np.arange(1 << 16, dtype=np.uint16), case, random)
        with np.errstate(invalid="ignore"):
            expected = some.view(half).astype(np.float32)
        same(f"{half}", convert(case, memory, "widen", type, some, np.float32), expected)
        memory.settle()


@functools.cache
def near(half):
    """Every number of this type, what lies halfway to the next, and what lies just beside that."""
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
    """To nearest, ties to even."""
    for type, half in HALF_TYPES.items():
        some = some_of(near(half), case, random)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = some.astype(half).view(np.uint16)
        found = convert(case, memory, "narrow", type, some, np.uint16)
        nan = np.isnan(some)
        good = np.where(nan, np.isnan(found.view(half).astype(np.float32)), found == expected)
        assert good.all(), f"{half}({some[~good][0]!r}): expected {expected[~good][0]:#x}, got {found[~good][0]:#x}"
        memory.settle()


@functools.cache
def around_float32():
    """Doubles of every size, ties between neighbouring float32 numbers, and what is or is not beyond the largest."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 1 << 63, 4000, dtype=np.uint64).view(np.float64)
    floats = random.integers(0, 0x7F7FFFFF, 4000, dtype=np.uint32).view(np.float32)
    ties = (floats.astype(np.float64) + np.nextafter(floats, np.float32(np.inf))) / 2
    largest = float(np.finfo(np.float32).max)
    edges = [0, 1, np.inf, np.nan, largest, np.nextafter(largest, np.inf), 2.0**128, np.finfo(np.float64).max]
    numbers = np.concatenate([numbers, floats, ties, np.repeat(edges, 100)])
    return random.permutation(np.concatenate([numbers, -numbers]))


def check_round_to_float(case, memory, random):
    """To nearest, ties to even, and no finite number becomes infinite."""
    some, largest = some_of(around_float32(), case, random), np.finfo(np.float32).max
    source, to = memory.span.put(0, some, case.at_end), memory.converted.room(0, some.shape, np.float32, case.at_end)
    table_of(case.isa).round_to_float(address(to), address(source), some.size)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        expected = np.where(np.isfinite(some), np.clip(some, -largest, largest), some).astype(np.float32)
    same("floats", to, expected)


def check_interleave(case, memory, random):
    """Rows whose numbers are aligned to their own type only."""
    group = case.kernels.interleaves
    rows = random.integers(0, 1 << 16, (case.count, case.size), dtype=np.uint16)
    block = memory.block(rows, case.type, case.placement, case.at_end)
    if case.placement == "repeated":
        rows = np.repeat(rows[-1:], case.count, axis=0)
    expected = interleaved(np.pad(rows, ((0, -case.count % group), (0, 0))), group)
    to = memory.converted.room(0, expected.shape, np.uint16, case.at_end)
    table_of(case.isa).interleave(address(to), block.rows, block.stride, case.count, case.size)
    same("numbers", to, expected)


CHECKS = {
    "load": check_load,
    "reset": check_reset,
    "scores": check_scores,
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


def checks(isa):
    """The functions of a table that are checked."""
    return [function for function in CHECKS if sets(function, isa)]


def run(isa, rounds, functions):
    """The checks of a table; each is said beforehand, and so is what fails. Ten failures of a function are enough."""
    memory = Memory()
    for function in functions:
        print(json.dumps(["begin", function]), flush=True)
        failures = 0
        for case in cases(function, isa, rounds):
            print(json.dumps(["case", str(case)]), flush=True)
            try:
                CHECKS[function](case, memory, np.random.default_rng(zlib.crc32(str(case).encode())))
                memory.settle()
            except AssertionError as error:
                print(json.dumps(["failed", f"{case}: {error}"]), flush=True)
                memory = Memory()
                failures += 1
                if failures == 10:
                    break
        print(json.dumps(["end", function]), flush=True)


if __name__ == "__main__":
    isa, rounds, *functions = sys.argv[1:]
    run(isa, int(rounds), functions or checks(isa))
