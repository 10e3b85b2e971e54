# What one task of attention_weights does: the scores at the stage asked for; the weights in two passes, sums first.

from libc.string cimport memcpy, memset

from keys cimport begin_blocks, Block, next_block
from non_finite cimport are_finite, arithmetic_of
from plan cimport STAGE_WEIGHTS, Plan, Strategy, Task, Tile
from score_mod cimport Region, set_region, set_score_mod
from tile cimport KeyHead, open_head, open_tile, reset_softmax, row_of
from tiles.tiles cimport CATTN_MAX_LANES, cattn_score_mod
from worker cimport Worker


cdef inline void store_scores(Tile *tile, const Worker *worker, const KeyHead *head, const Block *block,
                              const void *row_sum, bint masked) noexcept nogil:
    """A block of scores or weights into the rows of the result. What is masked has weight 0, whatever its row's sum."""
    cdef Py_ssize_t item = worker.call.plan.itemsize, keys = block.stop - block.start, row, j
    cdef char *rows[CATTN_MAX_LANES]
    for row in range(tile.arrays.rows):
        rows[row] = row_of(&worker.call.problem.out, head.out, tile, row) + block.start * item
    tile.kernels.store(tile.arrays.scores, row_sum, &tile.arrays, rows, keys)
    for row in range(tile.arrays.rows if masked else 0):
        for j in range(keys):
            if not tile.arrays.attended[j * tile.arrays.lanes + row]:
                memset(rows[row] + j * item, 0, item)


cdef inline bint score_block(Tile *tile, const Worker *worker, const Strategy *strategy, const KeyHead *head,
                             Block *block, bint marking) noexcept nogil:
    """The scores of all rows of a tile with a block of keys. Whether all are attended to, if that is asked for."""
    cdef Region region
    cdef cattn_score_mod mod
    set_region(&region, 0, tile.arrays.rows, tile.arrays.lanes, block.start, block.stop)
    set_score_mod(&mod, worker, head, tile, &region)
    block.keys.count = block.stop - block.start
    tile.kernels.scores(tile.arrays.scores, &tile.arrays, &block.keys)
    # What is added may mask, a NaN too, which the kernels leave as it is until they mark it.
    return not (marking or mod.adds) or tile.kernels.mark_attended(tile.arrays.scores, &tile.arrays, &block.keys)


cdef inline void find_weights(const Worker *worker, const Task *task) noexcept nogil:
    cdef const Plan *plan = worker.call.plan
    cdef const Strategy *strategy = task.strategy
    cdef Py_ssize_t lanes = strategy.kernels.lanes, vector = CATTN_MAX_LANES * plan.itemsize, t
    cdef Tile *tile = <Tile *>(worker.workspace + plan.tiles_at)
    cdef void *sums = worker.workspace + plan.vectors_at + 2 * vector
    cdef const void *row_sum
    cdef int pass_number, passes = 2 if plan.stage == STAGE_WEIGHTS else 1
    cdef bint every, marking
    cdef KeyHead head
    cdef Block block
    open_head(&head, worker, task)
    for t in range((task.rows + lanes - 1) // lanes):
        open_tile(tile, worker, task, &head, t)
        reset_softmax(tile, worker, &head, True)
        row_sum = NULL   # before the second pass; scores are stored as they are
        for pass_number in range(passes):
            # A masked weight is 0 by itself, unless it is divided by what is not finite.
            marking = row_sum != NULL and not are_finite(row_sum, tile.arrays.rows, arithmetic_of(tile.kernels))
            begin_blocks(&block, 0, task.key_stop)
            while next_block(&block, worker, strategy, &head, lanes):
                every = score_block(tile, worker, strategy, &head, &block, marking)
                if passes == 2:
                    tile.kernels.exponentials(tile.arrays.scores, &tile.arrays, &block.keys)
                if pass_number + 1 == passes:   # the maximum stays, so that these are exp(score - maximum)
                    store_scores(tile, worker, &head, &block, row_sum, marking and not every)
            if worker.call.stopped:
                return
            row_sum = memcpy(sums, tile.arrays.softmax.row_sum, vector)
