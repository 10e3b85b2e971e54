# What one task of attention does. A tile of rows goes over its keys block by block with the online softmax (Milakov and
# Gimelshein 2018; Rabe and Staats 2021), so that no more than one block of scores exists at a time:
#
#   for each chunk of keys                          attend_chunks
#     for each block of keys and values             attend_blocks; keys.pxd
#       for each tile of rows                       attend_region
#         1. scores, and what happens to them       score; score_mod.pxd
#         2. exponentials, row maxima and sums
#         3. the weighted sum of values             weigh
#     join the chunk's softmax with the total       tile.pxd
#   divide by the sums and store                    tile.pxd

from keys cimport (
    begin_blocks, Block, look_ahead, next_block, open_prefetch, Prefetch, prefetch_beside, set_rows)
from non_finite cimport select_values
from plan cimport count_chunks, count_splits, divided, entry_key_length, Strategy, Task, Tile
from problem cimport cattn_problem
from score_mod cimport Region, set_region, set_score_mod
from tile cimport (
    begin_total, fill_new, halves_differ, is_empty, KeyHead, open_head, open_tile, reset_softmax,
    set_partial, store_output, store_partial, swap_total)
from tiles.tiles cimport (
    CATTN_HALVES, PY_SSIZE_T_MAX, cattn_kernels, cattn_key_block, cattn_prefetch, cattn_row_tile, cattn_score_mod,
    cattn_softmax)
from worker cimport MOVE_WORK, ROW_WORK, stopped, Worker


cdef inline const cattn_row_tile *half_of(cattn_row_tile *half, const Tile *tile, const Region *region) noexcept nogil:
    """The arrays of a region's rows: those of the tile, or `half`, which becomes a half of it."""
    cdef Py_ssize_t at = region.first * tile.kernels.itemsize
    if region.lanes == tile.arrays.lanes:
        return &tile.arrays
    half[0] = tile.arrays
    half.rows = region.rows
    half.queries = <char *>half.queries + at
    half.scores = <char *>half.scores + at
    half.attn_bias = <char *>half.attn_bias + at
    half.attended += region.first
    half.block_max = <char *>half.block_max + at
    half.row_scale = <char *>half.row_scale + at
    half.block_output = <char *>half.block_output + at
    half.softmax.row_max = <char *>half.softmax.row_max + at
    half.softmax.row_sum = <char *>half.softmax.row_sum + at
    half.softmax.lse_sum = <char *>half.softmax.lse_sum + at
    half.softmax.output = <char *>half.softmax.output + at
    return half


cdef inline void attend_region(Tile *tile, const Worker *worker, const Strategy *strategy, const KeyHead *head,
                               const Block *block, Region *region, cattn_prefetch *prefetch,
                               bint selecting) noexcept nogil:
    """Some rows of a tile and some keys of a block."""
    cdef const cattn_kernels *kernels = tile.kernels
    cdef Py_ssize_t skipped = region.low - block.start, number = region.first // tile.half
    cdef const cattn_row_tile *arrays
    cdef cattn_row_tile half
    cdef cattn_score_mod mod
    cdef cattn_key_block keys, values
    # Runs of sums count from the start of the block, whoever shares the tile.
    skipped -= skipped % kernels.run
    region.low = block.start + skipped
    if not set_score_mod(&mod, worker, head, tile, region):
        return
    tile.arrays.is_new = tile.is_new[number]
    arrays = half_of(&half, tile, region)
    set_rows(&keys, &block.keys, skipped, region.high - region.low, prefetch)
    kernels.scores(arrays.scores, arrays, &keys)
    if selecting:
        kernels.mark_attended(arrays.scores, arrays, &keys)
    kernels.exponentials(arrays.scores, arrays, &keys)
    set_rows(&values, &block.values, skipped, region.high - region.low, prefetch)
    if selecting:
        select_values(kernels, arrays.softmax.output, arrays, &values)
    else:
        kernels.values(arrays.softmax.output, arrays, &values)
    tile.is_new[number] = False
    if region.lanes > tile.half:
        tile.is_new[1] = False


cdef inline void attend_block(Tile *tile, const Worker *worker, const Strategy *strategy, const KeyHead *head,
                              const Block *block, cattn_prefetch *prefetch, bint selecting) noexcept nogil:
    """The keys of a block that some row of a tile may attend to; by halves where these differ."""
    cdef Region region
    cdef Py_ssize_t half
    if not halves_differ(tile, block.start, block.stop):
        set_region(&region, 0, tile.arrays.rows, tile.arrays.lanes, max(block.start, tile.low),
                   min(block.stop, tile.high))
        attend_region(tile, worker, strategy, head, block, &region, prefetch, selecting)
        return
    for half in range(CATTN_HALVES):
        set_region(&region, half * tile.half, min(tile.half, tile.arrays.rows - half * tile.half), tile.half,
                   max(block.start, tile.half_low[half]), min(block.stop, tile.half_high[half]))
        if region.low < region.high:
            attend_region(tile, worker, strategy, head, block, &region, prefetch, selecting)


cdef inline void attend_blocks(Tile *tiles, Py_ssize_t tile_count, const Worker *worker, const Task *task,
                               const KeyHead *head, Py_ssize_t chunk_start, bint selecting) noexcept nogil:
    """All blocks of a chunk of keys that some row of the tiles may attend to, each shared by the tiles in turn."""
    cdef const Strategy *strategy = task.strategy
    cdef Py_ssize_t low = PY_SSIZE_T_MAX, high = 0, t
    cdef cattn_prefetch *ahead
    cdef Prefetch prefetch
    cdef Block block
    for t in range(tile_count):
        low = min(low, tiles[t].low)
        high = max(high, tiles[t].high)
    low = max(low, chunk_start)
    if low >= min(high, chunk_start + strategy.chunk):
        return
    open_prefetch(&prefetch, worker, task, min(high, task.key_stop))
    begin_blocks(&block, low - (low - chunk_start) % strategy.key_block, min(high, chunk_start + strategy.chunk))
    while next_block(&block, worker, strategy, head, tile_count * tiles[0].arrays.lanes):
        for t in range(tile_count):
            if max(block.start, tiles[t].low) >= min(block.stop, tiles[t].high):
                continue
            prefetch_beside(&prefetch, worker, head, &tiles[t], &block, t, tile_count)
            if t + 1 < tile_count:
                ahead = look_ahead(&prefetch, worker, head, &tiles[t + 1], block.start, block.stop)
            else:
                ahead = look_ahead(&prefetch, worker, head, tiles, block.stop,
                                   min(block.next_start + strategy.key_block, block.end))
            attend_block(&tiles[t], worker, strategy, head, &block, ahead, selecting)


cdef inline void attend_chunks(Tile *tiles, Py_ssize_t tile_count, const Worker *worker, const Task *task,
                               const KeyHead *head, bint selecting) noexcept nogil:
    """All keys, chunk by chunk; what the rows have attended to is then in the tiles."""
    cdef Py_ssize_t keys = task.strategy.chunk, size = worker.call.problem.value_size, item = worker.call.plan.itemsize
    cdef Py_ssize_t begin = divided(task.key_start, keys), chunk = begin, first = PY_SSIZE_T_MAX, stop = begin + 1, t
    for t in range(tile_count):
        if tiles[t].low < tiles[t].high:
            first = min(first, divided(tiles[t].low, keys))
            stop = max(stop, count_chunks(tiles[t].high, keys))
    while chunk < stop and not worker.call.stopped:
        for t in range(tile_count):
            reset_softmax(&tiles[t], worker, head, chunk == 0)   # the first chunk holds the sink, seen or not
        attend_blocks(tiles, tile_count, worker, task, head, chunk * keys, selecting)
        for t in range(tile_count):
            if chunk > begin and tiles[t].is_new[0] and tiles[t].is_new[1]:
                continue
            fill_new(&tiles[t], worker)
            if chunk > begin:
                tiles[t].kernels.merge(&tiles[t].total, &tiles[t].arrays.softmax, &tiles[t].arrays, size, selecting)
            elif stop > begin + 1:
                begin_total(&tiles[t], size, item)
        chunk = max(chunk + 1, first)
    for t in range(tile_count if stop > begin + 1 else 0):
        swap_total(&tiles[t])


cdef inline bint store_result(Tile *tile, const Worker *worker, const Task *task, const KeyHead *head) noexcept nogil:
    """Whether all of it is finite."""
    return store_output(tile, worker, head) if task.partial < 0 else store_partial(tile, worker, task)


cdef inline void attend(const Worker *worker, const Task *task) noexcept nogil:
    cdef Py_ssize_t lanes = task.strategy.kernels.lanes, t
    cdef Py_ssize_t tile_count = (task.rows + lanes - 1) // lanes
    cdef Tile *tiles = <Tile *>(worker.workspace + worker.call.plan.tiles_at)
    cdef KeyHead head
    open_head(&head, worker, task)
    for t in range(tile_count):
        open_tile(&tiles[t], worker, task, &head, t)
    attend_chunks(tiles, tile_count, worker, task, &head, False)
    for t in range(tile_count):
        if not store_result(&tiles[t], worker, task, &head):
            # Perhaps a masked value was not finite, which weight 0 does not silence, or a masked score. Again, leaving
            # out what is masked.
            attend_chunks(&tiles[t], 1, worker, task, &head, True)
            store_result(&tiles[t], worker, task, &head)


cdef inline void merge_partials(const Worker *worker, const Task *task) noexcept nogil:
    """Merge the partial results of the task's rows from left to right, and store the output."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef Tile *tile = <Tile *>(worker.workspace + worker.call.plan.tiles_at)
    cdef Py_ssize_t size = problem.value_size, item = worker.call.plan.itemsize, number
    cdef cattn_softmax part
    cdef KeyHead head
    open_head(&head, worker, task)
    open_tile(tile, worker, task, &head, 0)
    reset_softmax(tile, worker, &head, False)
    fill_new(tile, worker)
    begin_total(tile, size, item)
    for number in range(count_splits(task.strategy, entry_key_length(problem, task.entry))):
        if stopped(worker, ROW_WORK + MOVE_WORK * task.rows * size):
            return
        set_partial(&part, worker, task, number)
        if not is_empty(part.row_sum, task.rows * item):
            tile.kernels.merge(&tile.total, &part, &tile.arrays, size, True)
    tile.arrays.softmax = tile.total.softmax
    store_output(tile, worker, &head)
