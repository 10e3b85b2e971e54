"""The check that a row has the same bits whatever lies beside it and behind it, for kernel_checks.py."""

import dataclasses
import itertools
import math

import numpy as np
from kernel_cases import (
    Modifiers,
    assert_same,
    stored,
)
from kernel_memory import (
    PLACEMENTS,
    Tile,
    round_up,
    set_total,
    value_block,
)
from kernel_tables import (
    TYPES,
    KeyBlock,
)

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
