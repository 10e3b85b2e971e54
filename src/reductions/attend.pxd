# The reduction of `attention`: the online softmax (Milakov and Gimelshein 2018; Rabe and Staats 2021). No more than
# one block of scores exists at a time.
#
#   for each split of the keys                      attend_splits
#     for each chunk of the split                   sweep_split
#       for each block, tile and region             sweep.pxd
#         1. scores, and what happens to them       attend_region; score_mod.pxd
#         2. exponentials, row maxima and sums
#         3. the weighted sum of values
#       join the chunk's softmax to the split's     softmax.pxd
#     join the split's softmax to the row's,        softmax.pxd
#     or save it for the threads that will do so    partials.pxd
#   divide by the sums and store                    softmax.pxd

from non_finite cimport select_values
from partials cimport save_partial
from plan cimport Strategy
from scales cimport multiply_weights
from schedule cimport Task
from score_mod cimport Region, set_score_mod
from sizes cimport count_pieces, divided
from softmax cimport (
    begin_carries, begin_softmax, begin_total, fill_new, finish, is_finite, is_untouched, join_chunk, join_split)
from sweep cimport Block, open_sweep, region_arrays, Sweep, sweep_keys, take_rows
from tile cimport Tile
from tiles.tiles cimport (
    PY_SSIZE_T_MAX, cattn_kernels, cattn_key_block, cattn_row_tile, cattn_score_mod)
from worker cimport Worker


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
    if values.scales != NULL:
        multiply_weights(arrays, &values, exact != NULL, sweep.worker.call.plan.table)
    if exact != NULL:
        select_values(kernels, arrays.softmax.output, arrays, &values)
    else:
        kernels.values(arrays.softmax.output, arrays, &values)
    tile.is_new[number] = False
    if region.lanes > tile.half:
        tile.is_new[1] = False


cdef inline void sweep_split(const Sweep *sweep, Py_ssize_t split, void *exact) noexcept nogil:
    """Sweep over a split of a task's keys, chunk by chunk. What the rows have attended to there is then the tiles'
    running softmax."""
    cdef const Strategy *strategy = sweep.task.strategy
    cdef Py_ssize_t keys = strategy.chunk, size = sweep.worker.call.problem.value_size, t
    cdef Py_ssize_t begin = divided(split * strategy.split, keys), end = (split + 1) * strategy.split
    cdef Py_ssize_t chunk = begin, first = PY_SSIZE_T_MAX, stop = begin + 1
    cdef Tile *tile
    for t in range(sweep.tile_count):
        tile = &sweep.tiles[t]
        if tile.low < tile.high:
            first = min(first, divided(tile.low, keys))
            stop = max(stop, count_pieces(min(tile.high, end), keys))
    while chunk < stop and not sweep.worker.call.stopped:
        for t in range(sweep.tile_count):
            tile = &sweep.tiles[t]
            # The first chunk holds the sink, seen or not.
            begin_softmax(tile, &tile.chunk if chunk > begin else &tile.split.softmax, sweep.worker, &sweep.heads,
                          chunk == 0)
        sweep_keys(sweep, chunk * keys, (chunk + 1) * keys, attend_region, exact)
        for t in range(sweep.tile_count):
            tile = &sweep.tiles[t]
            if chunk > begin and is_untouched(tile):
                continue
            fill_new(tile, size)
            if chunk > begin:
                join_chunk(tile, size, exact != NULL)
            elif stop > begin + 1:
                begin_carries(&tile.split, tile, size)
        chunk = max(chunk + 1, first)
    for t in range(sweep.tile_count if stop > begin + 1 else 0):
        sweep.tiles[t].arrays.softmax = sweep.tiles[t].split.softmax


cdef inline void sweep_again(const Sweep *sweep, Py_ssize_t number, Py_ssize_t split) noexcept nogil:
    """Compute tile number `number` again, which did not end finite: a masked value or score may have been infinite or
    NaN, which weight 0 does not remove. What is masked is now left out."""
    cdef Sweep again = sweep[0]
    again.tiles += number
    again.tile_count = 1
    sweep_split(&again, split, &again)


cdef inline void attend_splits(const Sweep *sweep, Py_ssize_t split, Py_ssize_t stop) noexcept nogil:
    """Compute splits [split, stop) of a task's keys. Save them as partial results, or join them and store the
    output."""
    cdef Py_ssize_t size = sweep.worker.call.problem.value_size, first = PY_SSIZE_T_MAX, t
    cdef bint saves = sweep.task.partial_step > 0
    cdef Tile *tile
    for t in range(sweep.tile_count):
        tile = &sweep.tiles[t]
        if tile.low < tile.high:
            first = min(first, divided(tile.low, sweep.task.strategy.split))
        if not saves:
            begin_total(tile, sweep.worker, &sweep.heads, size)
    while split < stop and not sweep.worker.call.stopped:
        sweep_split(sweep, split, NULL)
        for t in range(sweep.tile_count):
            tile = &sweep.tiles[t]
            if not is_finite(tile, size):
                sweep_again(sweep, t, split)
            if saves:
                save_partial(tile, sweep, t)
            else:
                join_split(tile, &tile.arrays.softmax, size)
        split = max(split + 1, first)
    for t in range(0 if saves else sweep.tile_count):
        sweep.tiles[t].arrays.softmax = sweep.tiles[t].total.softmax
        finish(&sweep.tiles[t], sweep.worker, &sweep.heads)


cdef inline void attend(const Worker *worker, const Task *task) noexcept nogil:
    """Compute the output of one task, or its partial results."""
    cdef Py_ssize_t stop = task.split + 1, t
    cdef Sweep sweep
    open_sweep(&sweep, worker, task)
    for t in range(sweep.tile_count):
        stop = max(stop, count_pieces(sweep.tiles[t].high, task.strategy.split))
    if task.partial_step > 0 or stop > 1:
        attend_splits(&sweep, task.split, stop)
        return
    sweep_split(&sweep, 0, NULL)
    for t in range(sweep.tile_count):
        if not finish(&sweep.tiles[t], worker, &sweep.heads):
            sweep_again(&sweep, t, 0)
            finish(&sweep.tiles[t], worker, &sweep.heads)
