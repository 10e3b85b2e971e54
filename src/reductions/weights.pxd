# The reduction of `attention_weights`: the scores at the stage that was asked for; the weights in two passes, of
# which the first finds the sums.

from libc.string cimport memcpy, memset

from non_finite cimport are_finite, arithmetic_of
from plan cimport STAGE_WEIGHTS, Plan
from schedule cimport Task
from score_mod cimport Region, set_score_mod
from softmax cimport begin_softmax
from sweep cimport Block, open_sweep, Sweep, sweep_keys
from tile cimport HeadGroup, see_all, Tile, tile_row
from tiles.tiles cimport CATTN_MAX_LANES, cattn_score_mod
from worker cimport Worker


# One pass over the keys of a tile.
cdef struct Pass:
    bint sums, stores          # what it is for
    bint marks                 # masked weights are set to 0, because the row's sum is not finite
    const void *row_sum        # what is stored is divided by it; NULL: by nothing


cdef inline void store_scores(Tile *tile, const HeadGroup *heads, const Block *block, const void *row_sum,
                              bint masked) noexcept nogil:
    """Store a block of scores or weights. If `masked`, what is not attended to has weight 0, whatever its row's sum."""
    cdef Py_ssize_t item = tile.kernels.itemsize, keys = block.stop - block.start, row, j
    cdef char *rows[CATTN_MAX_LANES]
    for row in range(tile.arrays.rows):
        rows[row] = tile_row(&heads.out, tile, row) + block.start * item
    tile.kernels.store(tile.arrays.scores, row_sum, &tile.arrays, rows, keys)
    for row in range(tile.arrays.rows if masked else 0):
        for j in range(keys):
            if not tile.arrays.attended[j * tile.arrays.lanes + row]:
                memset(rows[row] + j * item, 0, item)


cdef inline void weigh_region(const Sweep *sweep, Tile *tile, const Block *block, Region *region,
                              void *state) noexcept nogil:
    """Compute the scores of a whole tile with a whole block, and sum up their exponentials or store them."""
    cdef const Pass *this_pass = <const Pass *>state
    cdef cattn_score_mod mod
    cdef bint every = True
    set_score_mod(&mod, sweep.worker, &sweep.heads, tile, region)
    tile.kernels.scores(tile.arrays.scores, &tile.arrays, &block.keys)
    # A bias or a mask may mask a score that is NaN, which stays NaN until it is marked.
    if this_pass.marks or mod.adds:
        every = tile.kernels.mark_attended(tile.arrays.scores, &tile.arrays, &block.keys)
    if this_pass.sums:
        tile.kernels.exponentials(tile.arrays.scores, &tile.arrays, &block.keys)
    if this_pass.stores:
        store_scores(tile, &sweep.heads, block, this_pass.row_sum, this_pass.marks and not every)


cdef inline void find_weights(const Worker *worker, const Task *task) noexcept nogil:
    """Compute the scores or the weights of one task, tile by tile."""
    cdef const Plan *plan = worker.call.plan
    cdef void *divisor = worker.memory + worker.call.workspace.divisor
    cdef int number, passes = 2 if plan.stage == STAGE_WEIGHTS else 1
    cdef Py_ssize_t count
    cdef Pass this_pass
    cdef Sweep sweep
    cdef Tile *tile
    open_sweep(&sweep, worker, task)
    count = sweep.tile_count
    sweep.tile_count = 1
    while count > 0:
        tile = sweep.tiles
        see_all(tile, 0, task.key_stop)
        begin_softmax(tile, &tile.split.softmax, worker, &sweep.heads, True)
        this_pass.sums = passes == 2
        this_pass.row_sum = NULL
        for number in range(passes):
            # The maximum stays from the first pass, so that those of the last one are exp(score - maximum).
            this_pass.stores = number + 1 == passes
            this_pass.marks = this_pass.row_sum != NULL and not are_finite(
                this_pass.row_sum, tile.arrays.rows, arithmetic_of(tile.kernels))
            sweep_keys(&sweep, 0, task.key_stop, weigh_region, &this_pass)
            if worker.call.stopped:
                return
            this_pass.row_sum = memcpy(divisor, tile.arrays.softmax.row_sum, CATTN_MAX_LANES * plan.itemsize)
        sweep.tiles += 1
        count -= 1
