# The running softmax of a tile as a value: begin, join, finish. The kernel `merge` has the arithmetic of joining.
#
# A tile computes one chunk of keys at a time into `arrays.softmax`. The first chunk of a split begins in the buffers of
# the split's total. Each chunk after it begins in buffers of its own, and is then joined to that total. In the same way
# splits are joined to the total of the row, whoever has computed them.

from libc.math cimport INFINITY
from libc.string cimport memset

from convert cimport scatter_row
from non_finite cimport are_finite, arithmetic_of
from plan cimport Plan
from problem cimport cattn_problem, cattn_type
from scales cimport column_scales, multiply_output
from tile cimport HeadGroup, Tile, tile_row
from tiles.tiles cimport CATTN_FEW, CATTN_HALVES, CATTN_MAX_LANES, cattn_softmax, cattn_total
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


cdef inline Py_ssize_t output_bytes(const Tile *tile, Py_ssize_t size) noexcept nogil:
    """Return how many bytes `size` columns of an output take, from the first one on. With few rows, all columns do."""
    return (tile.arrays.rows * tile.arrays.output_pitch if tile.kernels.layout == CATTN_FEW
            else tile.arrays.lanes * size) * tile.kernels.itemsize


cdef inline void fill_new(Tile *tile, Py_ssize_t size) noexcept nogil:
    """Put zeros into `size` columns of the output of the halves that no block of keys has come to."""
    cdef Py_ssize_t half, column, item = tile.kernels.itemsize, lanes = tile.arrays.lanes
    for half in range(CATTN_HALVES):
        if tile.is_new[half] and half * tile.half < lanes:
            if tile.kernels.layout == CATTN_FEW:
                memset(tile.arrays.softmax.output, 0, output_bytes(tile, size))
            else:
                for column in range(size):
                    memset(<char *>tile.arrays.softmax.output + (column * lanes + half * tile.half) * item, 0,
                           tile.half * item)
        tile.is_new[half] = False


cdef inline bint is_empty(const cattn_softmax *softmax, const Tile *tile) noexcept nogil:
    """Return whether no row has attended to anything, as in the keys before a window: all sums are 0."""
    cdef Py_ssize_t i
    for i in range(tile.arrays.rows * tile.kernels.itemsize):
        if (<const char *>softmax.row_sum)[i] != 0:
            return False
    return True


cdef inline bint is_finite(const Tile *tile, Py_ssize_t size) noexcept nogil:
    """Return whether the output of `size` columns and the sums are finite."""
    cdef const cattn_softmax *softmax = &tile.arrays.softmax
    cdef cattn_type type = arithmetic_of(tile.kernels)
    cdef Py_ssize_t rows = tile.arrays.rows, column
    if not (are_finite(softmax.row_sum, rows, type) and are_finite(softmax.lse_sum, rows, type)):
        return False
    if tile.kernels.layout == CATTN_FEW:
        return are_finite(softmax.output, rows * size, type)
    for column in range(size):
        if not are_finite(<char *>softmax.output + column * tile.arrays.lanes * tile.kernels.itemsize, rows, type):
            return False
    return True


cdef inline void begin_carries(cattn_total *total, const Tile *tile, Py_ssize_t size) noexcept nogil:
    """Set the carries of a total to 0: nothing of what it holds is lost to rounding yet."""
    cdef Py_ssize_t item = tile.kernels.itemsize
    memset(total.row_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(total.lse_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(total.output_carry, 0, output_bytes(tile, size))


cdef inline void begin_total(Tile *tile, const Worker *worker, const HeadGroup *heads, Py_ssize_t size) noexcept nogil:
    """Begin the total of a row's splits, which holds nothing yet. The sink is in the first split."""
    begin_softmax(tile, &tile.total.softmax, worker, heads, False)
    fill_new(tile, size)
    begin_carries(&tile.total, tile, size)


cdef inline void join_chunk(Tile *tile, Py_ssize_t size, bint exact) noexcept nogil:
    """Join the softmax of a chunk to that of the chunks before. If `exact`, an infinity stays one."""
    tile.kernels.merge(&tile.split, &tile.chunk, &tile.arrays, size, exact)


cdef inline void join_split(Tile *tile, const cattn_softmax *split, Py_ssize_t size) noexcept nogil:
    """Join the softmax of a split to that of the splits before."""
    if not is_empty(split, tile):
        tile.kernels.merge(&tile.total, split, &tile.arrays, size, True)


cdef inline void store_lse(Tile *tile, const HeadGroup *heads) noexcept nogil:
    """Store the logarithms of the sums."""
    cdef char *rows[CATTN_MAX_LANES]
    cdef Py_ssize_t row
    for row in range(tile.arrays.rows):
        rows[row] = tile_row(&heads.lse, tile, row)
    tile.kernels.logsumexp(&tile.arrays.softmax, &tile.arrays, rows)


cdef inline bint store_output(Tile *tile, const Worker *worker, const HeadGroup *heads, Py_ssize_t column,
                              Py_ssize_t size) noexcept nogil:
    """Store `size` columns of the output from `column` on, divided by the sums. Return whether all of it is finite."""
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t row, bytes = size * plan.itemsize, at = column * heads.out.array.column
    cdef char *room = worker.memory + worker.call.workspace.row
    cdef char *rows[CATTN_MAX_LANES]
    cdef const float *scales
    cdef bint finite
    for row in range(tile.arrays.rows):
        rows[row] = tile_row(&heads.out, tile, row) + at if plan.out_in_place else room + row * bytes
    finite = tile.kernels.store(tile.arrays.softmax.output, tile.arrays.softmax.row_sum, &tile.arrays, rows, size)
    if tile.kernels.layout == CATTN_FEW and plan.few.folds_value_columns:
        scales = column_scales(&heads.value_scale, column, size,
                               worker.memory + worker.call.workspace.value_scale, plan.table)
        for row in range(tile.arrays.rows):
            multiply_output(<float *>rows[row], scales, size, (<const float *>tile.arrays.softmax.row_sum)[row],
                            worker.call.problem.sinks.data != NULL, plan.table)
    for row in range(0 if plan.out_in_place else tile.arrays.rows):
        scatter_row(heads.out.array, tile_row(&heads.out, tile, row) + at, rows[row], plan.arithmetic, size, plan.table)
    return finite


cdef inline bint finish(Tile *tile, const Worker *worker, const HeadGroup *heads) noexcept nogil:
    """Store a tile's results. Return whether all of the output is finite."""
    if heads.lse.first != NULL:
        store_lse(tile, heads)
    return store_output(tile, worker, heads, 0, worker.call.problem.value_size)
