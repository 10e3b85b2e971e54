# The running softmax of a tile as a value: begin, join, save, find, finish.
#
# A tile computes one chunk of keys at a time into `arrays.softmax`. The first chunk begins in the total's own
# buffers. Each chunk after it begins in the tile's other buffers, and is then joined to the total.

from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

from convert cimport scatter_row
from plan cimport Plan
from problem cimport cattn_problem
from rows cimport entry_query_length
from schedule cimport rows_of_partial, Task
from tile cimport HeadGroup, Tile, tile_row
from tiles.tiles cimport CATTN_FEW, CATTN_HALVES, CATTN_MAX_LANES, cattn_softmax
from worker cimport Worker


cdef inline void begin_softmax(Tile *tile, const cattn_softmax *room, const Worker *worker, const HeadGroup *heads,
                               bint with_sinks) noexcept nogil:
    """Begin a softmax in `room`: nothing is attended to yet, so that a sink alone is in the sum and is the maximum."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef bint given = with_sinks and problem.sinks.data != NULL
    cdef double sinks[CATTN_MAX_LANES]
    cdef Py_ssize_t row, half
    tile.arrays.softmax = room[0]
    for half in range(CATTN_HALVES):
        tile.is_new[half] = True
    for row in range(tile.arrays.rows if given else 0):
        sinks[row] = -INFINITY
        if tile.index[row] < heads.query_limit:
            sinks[row] = (<const double *>(problem.sinks.data
                                           + (heads.first_head + tile.head[row]) * problem.sinks.head))[0]
    tile.kernels.reset(&tile.arrays.softmax, &tile.arrays, sinks if given else NULL)


cdef inline bint is_untouched(const Tile *tile) noexcept nogil:
    """Return whether no block of keys has come to the tile since its softmax began."""
    return tile.is_new[0] and tile.is_new[1]


cdef inline void fill_new(Tile *tile, Py_ssize_t size) noexcept nogil:
    """Put zeros into the output of the halves that no block of keys has come to. Rows have `size` columns."""
    cdef Py_ssize_t half, column, item = tile.kernels.itemsize, lanes = tile.arrays.lanes
    for half in range(CATTN_HALVES):
        if tile.is_new[half] and half * tile.half < lanes:
            if tile.kernels.layout == CATTN_FEW:
                memset(tile.arrays.softmax.output, 0, tile.arrays.rows * size * item)
            else:
                for column in range(size):
                    memset(<char *>tile.arrays.softmax.output + (column * lanes + half * tile.half) * item, 0,
                           tile.half * item)
        tile.is_new[half] = False


cdef inline void begin_total(Tile *tile, Py_ssize_t size) noexcept nogil:
    """Set the carries of the total to 0: nothing of what it holds is lost to rounding yet."""
    cdef Py_ssize_t item = tile.kernels.itemsize
    memset(tile.total.row_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(tile.total.lse_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(tile.total.output_carry, 0, tile.arrays.lanes * size * item)


cdef inline void join(Tile *tile, const cattn_softmax *part, Py_ssize_t size, bint exact) noexcept nogil:
    """Join a softmax over other keys to the total. If `exact`, an infinity stays one."""
    tile.kernels.merge(&tile.total, part, &tile.arrays, size, exact)


cdef inline void store_lse(Tile *tile, const HeadGroup *heads) noexcept nogil:
    """Store the logarithms of the sums."""
    cdef char *rows[CATTN_MAX_LANES]
    cdef Py_ssize_t row
    for row in range(tile.arrays.rows):
        rows[row] = tile_row(&heads.lse, tile, row)
    tile.kernels.logsumexp(&tile.arrays.softmax, &tile.arrays, rows)


cdef inline bint store_output(Tile *tile, const Worker *worker, const HeadGroup *heads) noexcept nogil:
    """Store the output, divided by the sums. Return whether all of it is finite."""
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t row, size = worker.call.problem.value_size, bytes = size * plan.itemsize
    cdef char *room = worker.memory + worker.call.workspace.row
    cdef char *rows[CATTN_MAX_LANES]
    cdef bint finite
    for row in range(tile.arrays.rows):
        rows[row] = tile_row(&heads.out, tile, row) if plan.out_in_place else room + row * bytes
    finite = tile.kernels.store(tile.arrays.softmax.output, tile.arrays.softmax.row_sum, &tile.arrays, rows, size)
    for row in range(0 if plan.out_in_place else tile.arrays.rows):
        scatter_row(heads.out.array, tile_row(&heads.out, tile, row), rows[row], plan.arithmetic, size, plan.table)
    return finite


cdef inline bint finish(Tile *tile, const Worker *worker, const HeadGroup *heads) noexcept nogil:
    """Store a tile's results. Return whether all of the output is finite."""
    if heads.lse.first != NULL:
        store_lse(tile, heads)
    return store_output(tile, worker, heads)


# Partial results: the softmax of few rows over one split of their keys, saved for the thread that joins all splits.


cdef inline bint is_empty(const void *row_sum, Py_ssize_t bytes) noexcept nogil:
    """Return whether no row has attended to anything, as in the chunks before a window: all sums are 0."""
    cdef Py_ssize_t i
    for i in range(bytes):
        if (<const char *>row_sum)[i] != 0:
            return False
    return True


cdef inline void find_partial(cattn_softmax *partial, const Worker *worker, const Task *task,
                              Py_ssize_t split) noexcept nogil:
    """Point to the partial result of the task's rows and this split of their keys. One thread joins the splits of one
    task's rows before it goes on to other rows, which take their place."""
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t rows = rows_of_partial(entry_query_length(worker.call.problem, task.entry) * plan.group)
    cdef Py_ssize_t first = (0 if worker.call.threads == 1 else task.partial) + split * rows
    partial.row_max = worker.call.partials + first * worker.call.schedule.partial_row_bytes
    partial.row_sum = <char *>partial.row_max + rows * plan.itemsize
    partial.lse_sum = <char *>partial.row_sum + rows * plan.itemsize
    partial.output = <char *>partial.lse_sum + rows * plan.itemsize


cdef inline bint save_partial(Tile *tile, const Worker *worker, const Task *task) noexcept nogil:
    """Save the running softmax of a tile as a partial result. The output is not divided by the row sums yet. Return
    whether all of it is finite."""
    cdef Py_ssize_t size = worker.call.problem.value_size, item = worker.call.plan.itemsize
    cdef Py_ssize_t bytes = tile.arrays.rows * item, row
    cdef const cattn_softmax *softmax = &tile.arrays.softmax
    cdef char *rows[CATTN_MAX_LANES]
    cdef cattn_softmax partial
    find_partial(&partial, worker, task, task.key_start // task.strategy.chunk)
    memcpy(partial.row_max, softmax.row_max, bytes)
    memcpy(partial.row_sum, softmax.row_sum, bytes)
    memcpy(partial.lse_sum, softmax.lse_sum, bytes)
    if is_empty(softmax.row_sum, bytes):
        return True
    for row in range(tile.arrays.rows):
        rows[row] = <char *>partial.output + row * size * item
    return tile.kernels.store(softmax.output, NULL, &tile.arrays, rows, size)
