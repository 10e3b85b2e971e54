"""Compares each function of a kernel table with the formula of src/tiles/tiles.h, computed in a wider type. What is
exact by its nature (loads, marks, conversions, stores) is compared exactly.

test_kernels.py runs this file in a process of its own. By hand: `python tests/kernel_checks.py avx2 1 values merge`.
With `amx,avx512`, it leaves out what the first table shares with the others."""

import dataclasses
import json
import sys
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
from kernel_gradient_checks import check_differentiate, check_dots, check_join, check_query_gradients
from kernel_memory import (
    Memory,
    Tile,
    address,
    listed,
    pack,
    set_total,
    tile_with_gaps,
    unpack,
    value_block,
)
from kernel_row_checks import check_rows
from kernel_storage_checks import check_interleave, check_multiply, check_narrow, check_round_to_float, check_widen
from kernel_tables import (
    ALIGNMENT,
    MAX_LANES,
    TYPES,
    KeyBlock,
    Maxima,
    Softmax,
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
        # The last page first, where no modifier asks for a key's number.
        order = np.roll(np.arange(case.count), 0 if case.modifiers else int(random.integers(case.count)))
        by_list, _addresses = listed(block, order)
        tile.scores[...] = tile.block_max[...] = 7
        tile.step("scores", by_list)
        assert_same("scores", tile.scores, scores[:, order])
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
    count = 100
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
    "multiply": check_multiply,
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
