# The reduction of `attention`: the online softmax (Milakov and Gimelshein 2018; Rabe and Staats 2021). No more than
# one block of scores exists at a time.
#
#   for each chunk of keys                          sweep_chunks
#     for each block, tile and region               sweep.pxd
#       1. scores, and what happens to them         attend_region; score_mod.pxd
#       2. exponentials, row maxima and sums
#       3. the weighted sum of values
#     join the chunk's softmax to the total         softmax.pxd
#   divide by the sums and store                    softmax.pxd

from non_finite cimport select_values
from rows cimport entry_key_length
from schedule cimport count_chunks, count_splits, Task
from score_mod cimport Region, set_score_mod
from sizes cimport divided
from softmax cimport (
    begin_softmax, begin_total, fill_new, finish, is_empty, is_untouched, join, find_partial, save_partial)
from sweep cimport Block, open_sweep, region_arrays, Sweep, sweep_keys, take_rows
from tile cimport Tile
from tiles.tiles cimport (
    PY_SSIZE_T_MAX, cattn_kernels, cattn_key_block, cattn_row_tile, cattn_score_mod, cattn_softmax)
from worker cimport MOVE_WORK, ROW_WORK, stopped, Worker


cdef inline void attend_region(const Sweep *sweep, Tile *tile, const Block *block, Region *region,
                               void *exact) noexcept nogil:
    """Add the keys and values of a region to the softmax of its rows. If `exact` is not NULL, what is masked is left
    out even where it is not finite."""
    cdef const cattn_kernels *kernels = tile.kernels
    cdef Py_ssize_t skipped = region.low - block.start, number = region.first // tile.half
    cdef const cattn_row_tile *arrays
    cdef cattn_row_tile half
    cdef cattn_score_mod mod
    cdef cattn_key_block keys, values
    # The region begins where a run begins, so that sums do not depend on the other rows of the tile.
    skipped -= skipped % kernels.run
    region.low = block.start + skipped
    if not set_score_mod(&mod, sweep.worker, &sweep.heads, tile, region):
        return
    tile.arrays.is_new = tile.is_new[number]
    arrays = region_arrays(&half, tile, region)
    take_rows(&keys, &block.keys, skipped, region.high - region.low, block.ahead)
    kernels.scores(arrays.scores, arrays, &keys)
    if exact != NULL:
        kernels.mark_attended(arrays.scores, arrays, &keys)
    kernels.exponentials(arrays.scores, arrays, &keys)
    take_rows(&values, &block.values, skipped, region.high - region.low, block.ahead)
    if exact != NULL:
        select_values(kernels, arrays.softmax.output, arrays, &values)
    else:
        kernels.values(arrays.softmax.output, arrays, &values)
    tile.is_new[number] = False
    if region.lanes > tile.half:
        tile.is_new[1] = False


cdef inline void sweep_chunks(const Sweep *sweep, void *exact) noexcept nogil:
    """Sweep over all keys of a task, chunk by chunk. What the rows have attended to is then the tiles' running softmax."""
    cdef Py_ssize_t keys = sweep.task.strategy.chunk, size = sweep.worker.call.problem.value_size, t
    cdef Py_ssize_t begin = divided(sweep.task.key_start, keys), chunk = begin, first = PY_SSIZE_T_MAX, stop = begin + 1
    cdef Tile *tile
    for t in range(sweep.tile_count):
        tile = &sweep.tiles[t]
        if tile.low < tile.high:
            first = min(first, divided(tile.low, keys))
            stop = max(stop, count_chunks(tile.high, keys))
    while chunk < stop and not sweep.worker.call.stopped:
        for t in range(sweep.tile_count):
            tile = &sweep.tiles[t]
            # The first chunk holds the sink, seen or not.
            begin_softmax(tile, &tile.part if chunk > begin else &tile.total.softmax, sweep.worker, &sweep.heads,
                          chunk == 0)
        sweep_keys(sweep, chunk * keys, (chunk + 1) * keys, attend_region, exact)
        for t in range(sweep.tile_count):
            tile = &sweep.tiles[t]
            if chunk > begin and is_untouched(tile):
                continue
            fill_new(tile, size)
            if chunk > begin:
                join(tile, &tile.part, size, exact != NULL)
            elif stop > begin + 1:
                begin_total(tile, size)
        chunk = max(chunk + 1, first)
    for t in range(sweep.tile_count if stop > begin + 1 else 0):
        sweep.tiles[t].arrays.softmax = sweep.tiles[t].total.softmax


cdef inline bint store_result(Tile *tile, const Sweep *sweep) noexcept nogil:
    """Store what the tile has attended to, as the output or as a partial result. Return whether all of it is finite."""
    if sweep.task.partial >= 0:
        return save_partial(tile, sweep.worker, sweep.task)
    return finish(tile, sweep.worker, &sweep.heads)


cdef inline void attend(const Worker *worker, const Task *task) noexcept nogil:
    """Compute the output of one task, or its partial result."""
    cdef Sweep sweep, again
    cdef Py_ssize_t t
    open_sweep(&sweep, worker, task)
    sweep_chunks(&sweep, NULL)
    for t in range(sweep.tile_count):
        if not store_result(&sweep.tiles[t], &sweep):
            # A masked value or score may have been infinite or NaN, which weight 0 does not remove. The tile is
            # computed again without what is masked.
            again = sweep
            again.tiles += t
            again.tile_count = 1
            sweep_chunks(&again, &again)
            store_result(again.tiles, &again)


cdef inline void join_partials(const Worker *worker, const Task *task) noexcept nogil:
    """Join the partial results of the task's rows from left to right, and store the output."""
    cdef Py_ssize_t size = worker.call.problem.value_size, bytes = task.rows * worker.call.plan.itemsize, split
    cdef cattn_softmax part
    cdef Sweep sweep
    cdef Tile *tile
    open_sweep(&sweep, worker, task)
    tile = sweep.tiles
    begin_softmax(tile, &tile.total.softmax, worker, &sweep.heads, False)
    fill_new(tile, size)
    begin_total(tile, size)
    for split in range(count_splits(task.strategy, entry_key_length(worker.call.problem, task.entry))):
        if stopped(worker, ROW_WORK + MOVE_WORK * task.rows * size):
            return
        find_partial(&part, worker, task, split)
        if not is_empty(part.row_sum, bytes):
            join(tile, &part, size, True)
    finish(tile, worker, &sweep.heads)
