# The sweep: which tile of a task meets which block of keys, in which order. What is done with the scores of a region,
# some rows of a tile and some keys of a block, is left to a *reduction*, a function that the caller names. Compilers
# see which one it is, and call it directly.
#
#   for each block of keys and values               sweep_keys
#     for each tile of rows                         meet
#       for each region that is seen                the reduction

from plan cimport Strategy
from prefetch cimport look_ahead, open_prefetch, Prefetch, prefetch_beside
from problem cimport cattn_problem
from rows cimport read_block, read_pages
from scales cimport read_scales
from schedule cimport Task
from score_mod cimport Region
from tile cimport find_intervals, find_rows, halves_differ, HeadGroup, load_queries, open_heads, Tile
from tiles.tiles cimport (
    CATTN_FEW, CATTN_HALVES, PY_SSIZE_T_MAX, cattn_kernels, cattn_key_block, cattn_prefetch, cattn_row_tile,
    cattn_table)
from worker cimport stopped, Worker
from workspace cimport place_tile, Workspace


# A task while it is computed: its tiles, and the rows of the heads that they read.
cdef struct Sweep:
    const Worker *worker
    const Task *task
    HeadGroup heads
    Tile *tiles
    Py_ssize_t tile_count


cdef struct Block:
    Py_ssize_t start, stop           # its keys
    cattn_key_block keys, values
    cattn_prefetch *ahead            # what the kernels ask for meanwhile


# Whatever the reduction needs to know or to note is in `state`; a flag may be any address, or NULL.
ctypedef void (*reduction)(const Sweep *sweep, Tile *tile, const Block *block, Region *region,
                           void *state) noexcept nogil


cdef inline void open_rows_of_tile(Tile *tile, const Sweep *sweep, Py_ssize_t number) noexcept nogil:
    """Open tile number `number` of a task: its buffers and its rows."""
    cdef const Worker *worker = sweep.worker
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Task *task = sweep.task
    cdef const cattn_kernels *kernels = task.strategy.kernels
    cdef cattn_row_tile *arrays = &tile.arrays
    cdef Py_ssize_t first_row = task.first_row + number * kernels.lanes
    tile.kernels = kernels
    tile.half = kernels.half
    arrays.layout = kernels.layout
    arrays.rows = min(kernels.lanes, task.first_row + task.rows - first_row)
    arrays.lanes = arrays.rows if kernels.layout == CATTN_FEW else kernels.lanes
    arrays.pitch = task.strategy.key_block
    arrays.output_pitch = problem.value_size
    arrays.scale = problem.scale
    arrays.score_mod = NULL
    place_tile(tile, worker.call.workspace, worker.memory, number)
    find_rows(tile, worker.call.plan, &sweep.heads, first_row)


cdef inline void open_rows_of_tiles(Sweep *sweep, const Worker *worker, const Task *task) noexcept nogil:
    """Open all tiles of a task, for what is done without their queries and keys."""
    cdef Py_ssize_t lanes = task.strategy.kernels.lanes, t
    sweep.worker = worker
    sweep.task = task
    sweep.tiles = <Tile *>(worker.memory + worker.call.workspace.tiles)
    sweep.tile_count = (task.rows + lanes - 1) // lanes
    open_heads(&sweep.heads, worker.call.problem, worker.call.plan.group, task.entry, task.key_head)
    for t in range(sweep.tile_count):
        open_rows_of_tile(&sweep.tiles[t], sweep, t)


cdef inline void open_sweep(Sweep *sweep, const Worker *worker, const Task *task) noexcept nogil:
    """Open all tiles of a task: their buffers, their rows, the keys these may see, and their queries."""
    cdef Py_ssize_t t
    open_rows_of_tiles(sweep, worker, task)
    for t in range(sweep.tile_count):
        find_intervals(&sweep.tiles[t], worker.call.problem, &sweep.heads, task.key_start, task.key_stop)
        load_queries(&sweep.tiles[t], worker.call.plan, task.strategy, &sweep.heads, worker.call.problem.head_size,
                     worker.memory + worker.call.workspace.row, worker.memory + worker.call.workspace.key_scale)


cdef inline bint read_keys(Block *block, const Sweep *sweep, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Read the keys [start, stop) and their values. Return False if there are none, or if the caller wants to stop."""
    cdef const Worker *worker = sweep.worker
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Strategy *strategy = sweep.task.strategy
    cdef const Workspace *space = worker.call.workspace
    cdef const cattn_table *table = worker.call.plan.table
    cdef char *memory = worker.memory
    cdef bint paged = problem.block_table != NULL
    cdef Py_ssize_t count = stop - start
    if count <= 0 or stopped(worker, sweep.tile_count * sweep.tiles[0].arrays.lanes * count
                             * (problem.head_size + problem.value_size)):
        return False
    block.start = start
    block.stop = stop
    block.keys.count = block.values.count = count
    block.keys.size = problem.head_size
    block.values.size = problem.value_size
    if paged:
        read_pages(&block.keys, &sweep.heads.key, &strategy.key, start, memory + space.key, table)
    else:
        read_block(&block.keys, &sweep.heads.key, &strategy.key, start, memory + space.key, table)
    read_scales(&block.keys, &sweep.heads.key_scale, &strategy.key, start, memory + space.key_scale, table)
    if sweep.heads.value.first != NULL:
        if paged:
            read_pages(&block.values, &sweep.heads.value, &strategy.value, start, memory + space.value, table)
        else:
            read_block(&block.values, &sweep.heads.value, &strategy.value, start, memory + space.value, table)
        read_scales(&block.values, &sweep.heads.value_scale, &strategy.value, start, memory + space.value_scale, table)
    return True


cdef inline void set_region(Region *region, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t lanes, Py_ssize_t low,
                            Py_ssize_t high) noexcept nogil:
    region.first = first
    region.rows = rows
    region.lanes = lanes
    region.low = low
    region.high = high


cdef inline void meet(const Sweep *sweep, Tile *tile, const Block *block, reduction reduce, void *state) noexcept nogil:
    """Let a tile meet a block: all its rows together, or half by half if these see different keys."""
    cdef Region region
    cdef Py_ssize_t half
    if not halves_differ(tile, block.start, block.stop):
        set_region(&region, 0, tile.arrays.rows, tile.arrays.lanes, max(block.start, tile.low),
                   min(block.stop, tile.high))
        reduce(sweep, tile, block, &region, state)
        return
    for half in range(CATTN_HALVES):
        set_region(&region, half * tile.half, min(tile.half, tile.arrays.rows - half * tile.half), tile.half,
                   max(block.start, tile.half_low[half]), min(block.stop, tile.half_high[half]))
        if region.low < region.high:
            reduce(sweep, tile, block, &region, state)


cdef inline void sweep_keys(const Sweep *sweep, Py_ssize_t start, Py_ssize_t stop, reduction reduce,
                            void *state) noexcept nogil:
    """Sweep over the keys [start, stop) that some row may attend to. Blocks are cut from `start` on. Each is read once,
    and meets all tiles that see some of it."""
    cdef Py_ssize_t low = PY_SSIZE_T_MAX, high = 0, size = sweep.task.strategy.key_block, count = sweep.tile_count, t
    cdef Tile *tiles = sweep.tiles
    cdef Prefetch prefetch
    cdef Block block
    for t in range(count):
        low = min(low, tiles[t].low)
        high = max(high, tiles[t].high)
    low = max(low, start)
    stop = min(high, stop)
    if low >= stop:
        return
    open_prefetch(&prefetch, sweep.worker, sweep.task, &sweep.heads, min(high, sweep.task.key_stop))
    low -= (low - start) % size
    while read_keys(&block, sweep, low, min(low + size, stop)):
        for t in range(count):
            if max(block.start, tiles[t].low) >= min(block.stop, tiles[t].high):
                continue
            prefetch_beside(&prefetch, &tiles[t], block.start, block.stop, t, count)
            if t + 1 < count:
                block.ahead = look_ahead(&prefetch, &tiles[t + 1], block.start, block.stop)
            else:
                block.ahead = look_ahead(&prefetch, tiles, block.stop, min(low + 2 * size, stop))
            meet(sweep, &tiles[t], &block, reduce, state)
        low += size


# What reductions share.


cdef inline void take_rows(cattn_key_block *rows, const cattn_key_block *block, Py_ssize_t first, Py_ssize_t count,
                           cattn_prefetch *ahead) noexcept nogil:
    """Take rows first, first + 1, ... of a block of keys or values."""
    rows[0] = block[0]
    rows.data += first * block.stride
    if block.list != NULL:
        rows.list += first
    rows.count = count
    rows.prefetch = ahead
    if block.scales != NULL:
        rows.scales += first


cdef inline const cattn_row_tile *region_arrays(cattn_row_tile *half, const Tile *tile,
                                                const Region *region) noexcept nogil:
    """Return the arrays of a region's rows: those of the tile, or `half`, which becomes a half of it."""
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
