# What happens to the scores of a block: this file fills cattn_score_mod, whose comment in tiles.h says in which order
# the kernels apply softcap, bias, ALiBi, masks and intervals.

from libc.math cimport INFINITY

from convert cimport gather_row, to_float
from plan cimport STAGE_BIASED, STAGE_SOFTCAPPED, Plan
from problem cimport CATTN_FLOAT32, cattn_problem, cattn_type
from rows cimport open_rows, row_at, Rows
from tile cimport HeadGroup, Tile, tile_row
from tiles.tiles cimport cattn_score_mod
from worker cimport Worker


# Some rows of a tile and some keys of a block.
cdef struct Region:
    Py_ssize_t first, rows, lanes    # rows first, first + 1, ..., in so many lanes
    Py_ssize_t low, high             # keys low <= j < high


cdef inline void set_intervals(cattn_score_mod *mod, const Tile *tile, const Region *region) noexcept nogil:
    """Set the keys of a region that each of its rows may attend to, counted from the region's first key."""
    cdef Py_ssize_t row
    for row in range(region.rows):
        mod.start[row] = tile.start[region.first + row] - region.low
        mod.stop[row] = tile.stop[region.first + row] - region.low
    for row in range(region.rows, region.lanes):   # lanes without a row restrict nothing
        mod.start[row] = 0
        mod.stop[row] = region.high - region.low


cdef inline bint set_masks(cattn_score_mod *mod, const Worker *worker, const HeadGroup *heads, const Tile *tile,
                           const Region *region) noexcept nogil:
    """Set the masks of a region's rows, and return whether they leave anything to see."""
    cdef Py_ssize_t row, j, column = heads.mask.array.column, count = region.high - region.low
    cdef unsigned char seen = 0
    cdef const char *source
    cdef char *copy
    for row in range(region.rows):
        source = tile_row(&heads.mask, tile, region.first + row) + region.low * column
        if not worker.call.plan.mask_in_place:
            copy = worker.memory + worker.call.workspace.mask + row * count
            for j in range(count):
                copy[j] = source[j * column]
            source = copy
        mod.mask[row] = <const unsigned char *>source
        if not seen:
            for j in range(count):
                seen |= mod.mask[row][j]
    for row in range(region.rows, region.lanes):
        mod.mask[row] = mod.mask[0]
    return seen != 0


cdef inline Py_ssize_t row_before(const Rows *bias, const Tile *tile, const Region *region, Py_ssize_t row,
                                  Py_ssize_t group) noexcept nogil:
    """Return an earlier row of the region that has the same bias as `row`, or `row` itself if there is none known."""
    cdef const Py_ssize_t *index = tile.index + region.first
    if bias.array.head == 0 and row > 0 and (bias.array.row == 0 or index[row] == index[row - 1]):
        return row - 1
    return row - group if bias.array.row == 0 and row >= group else row


cdef inline bint masks_all(const void *bias, Py_ssize_t count, cattn_type type) noexcept nogil:
    """Return whether all numbers of a row's bias are -infinity. The loops have no way out, so that compilers take many
    numbers at a time."""
    cdef unsigned char seen = 0
    cdef Py_ssize_t j
    if type == CATTN_FLOAT32:
        for j in range(count):
            seen |= (<const float *>bias)[j] != -INFINITY
    else:
        for j in range(count):
            seen |= (<const double *>bias)[j] != -INFINITY
    return not seen


cdef inline bint set_biases(cattn_score_mod *mod, const Worker *worker, const HeadGroup *heads, const Tile *tile,
                            const Region *region) noexcept nogil:
    """Set the biases of a region's rows, and return whether they leave anything to see. Rows that share a bias share
    its copy."""
    cdef bint seen = False
    cdef const Rows *bias = &heads.bias
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t row, before, count = region.high - region.low
    cdef const char *source
    cdef char *copy
    for row in range(region.rows):
        before = row if plan.bias_in_place else row_before(bias, tile, region, row, plan.group)
        if before < row:   # converted once
            mod.bias[row] = mod.bias[before]
            continue
        source = tile_row(bias, tile, region.first + row) + region.low * bias.array.column
        if not plan.bias_in_place:
            copy = worker.memory + worker.call.workspace.bias + row * count * plan.itemsize
            gather_row(copy, plan.arithmetic, bias.array, source, count, plan.table)
            source = copy
        mod.bias[row] = source
        seen = seen or not masks_all(source, count, plan.arithmetic)
    for row in range(region.rows, region.lanes):
        mod.bias[row] = mod.bias[0]
    return seen


cdef inline void set_slopes(cattn_score_mod *mod, const Worker *worker, const HeadGroup *heads, const Tile *tile,
                            const Region *region) noexcept nogil:
    """Set the slopes and distances of a region's rows for ALiBi."""
    cdef Rows slopes
    cdef Py_ssize_t row
    cdef double slope
    open_rows(&slopes, worker.call.problem, &worker.call.problem.alibi_slopes, heads.entry, heads.first_head, NULL)
    for row in range(region.lanes):
        mod.slope[row] = 0
        mod.distance[row] = 0
        if row < region.rows:
            slope = (<const double *>row_at(&slopes, tile.head[region.first + row], 0))[0]
            mod.slope[row] = to_float(slope) if worker.call.plan.arithmetic == CATTN_FLOAT32 else slope
            mod.distance[row] = tile.position[region.first + row] - region.low


cdef inline bint set_score_mod(cattn_score_mod *mod, const Worker *worker, const HeadGroup *heads, Tile *tile,
                               const Region *region) noexcept nogil:
    """Set what happens to the scores of a region, up to the stage that was asked for, and let the tile's kernels see
    it. Return whether mask and bias leave anything to see."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef int stage = worker.call.plan.stage
    cdef bint visible = True
    mod.softcap = problem.softcap if stage >= STAGE_SOFTCAPPED else 0
    mod.has_bias = stage >= STAGE_BIASED and problem.bias.data != NULL
    mod.has_alibi = stage >= STAGE_BIASED and problem.alibi_slopes.data != NULL
    mod.has_mask = stage >= STAGE_BIASED and problem.mask.data != NULL
    mod.has_interval = stage >= STAGE_BIASED and (region.low < tile.inner_low or region.high > tile.inner_high)
    mod.adds = mod.has_bias or mod.has_alibi or mod.has_mask or mod.has_interval
    tile.arrays.score_mod = mod if mod.softcap != 0 or mod.adds else NULL
    if mod.has_interval:
        set_intervals(mod, tile, region)
    if mod.has_mask:
        visible = set_masks(mod, worker, heads, tile, region)
    if mod.has_bias:
        visible = set_biases(mod, worker, heads, tile, region) and visible
    if mod.has_alibi:
        set_slopes(mod, worker, heads, tile, region)
    return visible
