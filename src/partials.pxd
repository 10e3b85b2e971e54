# Partial results: the softmax of a tile's rows over one split of their keys, saved for the threads that join all
# splits. It is row_max, two sums and the output, for the rows there are, in the layout of the tile.

from libc.string cimport memcpy

from plan cimport Plan
from rows cimport entry_key_length
from schedule cimport count_splits, Task
from sizes cimport round_up
from softmax cimport begin_total, is_empty, join_split, store_lse, store_output
from sweep cimport open_rows_of_tiles, Sweep
from tile cimport Tile
from tiles.tiles cimport CATTN_FEW, cattn_softmax
from worker cimport MOVE_WORK, ROW_WORK, stopped, Worker

cdef enum:
    SHARE_COLUMNS = 16   # a vector's, at least, of the columns that a thread joins


cdef inline void find_partial(cattn_softmax *partial, const Worker *worker, const Task *task, Py_ssize_t number,
                              Py_ssize_t split) noexcept nogil:
    """Point to the partial result of tile number `number` of a task for a split of its keys."""
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t first = number * task.strategy.kernels.lanes
    cdef Py_ssize_t bytes = min(task.strategy.kernels.lanes, task.rows - first) * plan.itemsize
    first += task.partial + split * task.partial_step
    partial.row_max = worker.call.partials + first * plan.partial_row_bytes
    partial.row_sum = <char *>partial.row_max + bytes
    partial.lse_sum = <char *>partial.row_sum + bytes
    partial.output = <char *>partial.lse_sum + bytes


cdef inline void copy_output(char *to, Py_ssize_t to_step, const char *source, Py_ssize_t step, Py_ssize_t bytes,
                             Py_ssize_t count) noexcept nogil:
    """Copy `count` columns of an output, of `bytes` bytes each, which lie so many bytes apart."""
    cdef Py_ssize_t column
    for column in range(count):
        memcpy(to + column * to_step, source + column * step, bytes)


cdef inline void save_partial(const Tile *tile, const Sweep *sweep, Py_ssize_t number) noexcept nogil:
    """Save the running softmax of tile number `number` of a task. The output is not divided by the row sums yet."""
    cdef Py_ssize_t size = sweep.worker.call.problem.value_size, item = tile.kernels.itemsize
    cdef Py_ssize_t bytes = tile.arrays.rows * item
    cdef const cattn_softmax *softmax = &tile.arrays.softmax
    cdef cattn_softmax partial
    find_partial(&partial, sweep.worker, sweep.task, number, sweep.task.split)
    memcpy(partial.row_max, softmax.row_max, bytes)
    memcpy(partial.row_sum, softmax.row_sum, bytes)
    memcpy(partial.lse_sum, softmax.lse_sum, bytes)
    if is_empty(softmax, tile):
        return
    if tile.kernels.layout == CATTN_FEW:
        memcpy(partial.output, softmax.output, bytes * size)
    else:
        copy_output(<char *>partial.output, bytes, <const char *>softmax.output, tile.arrays.lanes * item, bytes, size)


cdef inline void load_partial(cattn_softmax *partial, const Tile *tile, Py_ssize_t column,
                              Py_ssize_t size) noexcept nogil:
    """Bring columns [column, column + size) of a partial result to where the kernels can read them. With few rows, they
    read them where they lie; with many, in the buffers of a chunk."""
    cdef Py_ssize_t item = tile.kernels.itemsize, bytes = tile.arrays.rows * item, step = tile.arrays.lanes * item
    cdef const cattn_softmax *room = &tile.chunk
    if tile.kernels.layout == CATTN_FEW:
        partial.output = <char *>partial.output + column * item
        return
    memcpy(room.row_max, partial.row_max, bytes)
    memcpy(room.row_sum, partial.row_sum, bytes)
    memcpy(room.lse_sum, partial.lse_sum, bytes)
    copy_output(<char *>room.output, step, <const char *>partial.output + column * bytes, bytes, bytes, size)
    partial[0] = room[0]


cdef inline void join_partials_of_tile(Tile *tile, const Sweep *sweep, Py_ssize_t number, Py_ssize_t column,
                                       Py_ssize_t size) noexcept nogil:
    """Join the partial results of tile number `number` of a task from left to right, and store `size` columns from
    `column` on."""
    cdef const Task *task = sweep.task
    cdef Py_ssize_t split
    cdef cattn_softmax partial
    begin_total(tile, sweep.worker, &sweep.heads, size)
    for split in range(count_splits(task.strategy, entry_key_length(sweep.worker.call.problem, task.entry))):
        if stopped(sweep.worker, ROW_WORK + MOVE_WORK * tile.arrays.rows * size):
            return
        find_partial(&partial, sweep.worker, task, number, split)
        if not is_empty(&partial, tile):
            load_partial(&partial, tile, column, size)
            join_split(tile, &partial, size)
    tile.arrays.softmax = tile.total.softmax
    if column == 0 and sweep.heads.lse.first != NULL:
        store_lse(tile, &sweep.heads)
    store_output(tile, sweep.worker, &sweep.heads, column, size)


cdef inline void join_partials(const Worker *worker, const Task *task) noexcept nogil:
    """Join the partial results of the task's rows. The tasks of the other splits of these rows each join some of the
    columns too."""
    cdef Py_ssize_t size = worker.call.problem.value_size, t
    cdef Py_ssize_t splits = count_splits(task.strategy, entry_key_length(worker.call.problem, task.entry))
    cdef Py_ssize_t columns = round_up((size + splits - 1) // splits, SHARE_COLUMNS), first = task.split * columns
    cdef Sweep sweep
    if first >= size and task.split > 0:
        return
    open_rows_of_tiles(&sweep, worker, task)
    for t in range(sweep.tile_count):
        join_partials_of_tile(&sweep.tiles[t], &sweep, t, first, min(columns, size - first))
