# The rows of a tile: which queries they are, which keys they may see, and their queries as the kernels read them.

from libc.stdint cimport int64_t

from convert cimport gather_row
from plan cimport Plan, Strategy
from problem cimport CATTN_UNLIMITED, cattn_array, cattn_problem
from rows cimport entry_key_length, entry_query_length, open_keys, open_rows, row_at, Rows
from scales cimport column_scales
from tiles.tiles cimport (
    CATTN_HALVES, CATTN_MAX_LANES, PY_SSIZE_T_MAX, cattn_kernels, cattn_row_tile, cattn_softmax, cattn_total)


# The query heads of one batch entry that share a key head: the rows of all arrays, and what holds for all of them.
cdef struct HeadGroup:
    Py_ssize_t entry
    Py_ssize_t first_head            # the first query head of the group
    Py_ssize_t query_limit, key_limit
    int64_t offset
    Rows query, key, value, key_scale, value_scale, out, lse, mask, bias, key_start, key_stop


# The rows that are computed side by side, and their running softmax, which is `arrays.softmax`.
cdef struct Tile:
    cattn_row_tile arrays
    cattn_total total                  # the softmax of the splits so far, where there are several,
    cattn_total split                  # that of the chunks of a split so far,
    cattn_softmax chunk                # and the room for that of one chunk, where there are several
    const cattn_kernels *kernels
    bint is_new[CATTN_HALVES]          # the output of a half holds nothing yet
    Py_ssize_t half                    # rows of a half
    Py_ssize_t low, high               # some row may attend to keys low <= j < high,
    Py_ssize_t half_low[CATTN_HALVES]  # some row of a half to these,
    Py_ssize_t half_high[CATTN_HALVES]
    Py_ssize_t inner_low, inner_high   # every row may attend to keys inner_low <= j < inner_high
    Py_ssize_t head[CATTN_MAX_LANES]   # query head within the group and
    Py_ssize_t index[CATTN_MAX_LANES]  # query of each row,
    Py_ssize_t start[CATTN_MAX_LANES]  # the keys it may attend to,
    Py_ssize_t stop[CATTN_MAX_LANES]
    double position[CATTN_MAX_LANES]   # and where it stands among them


cdef inline int64_t integer_at(const Rows *rows, Py_ssize_t head, Py_ssize_t index) noexcept nogil:
    """Return a number of an integer array that has one for each row."""
    return (<const int64_t *>row_at(rows, head, index))[0]


cdef inline int64_t entry_integer(const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                                  int64_t otherwise) noexcept nogil:
    """Return a number of an integer array that has one for each batch entry, or `otherwise` if it was not given."""
    cdef Rows rows
    open_rows(&rows, problem, array, entry, 0, NULL)
    return otherwise if rows.first == NULL else (<const int64_t *>rows.first)[0]


cdef inline void open_heads(HeadGroup *heads, const cattn_problem *problem, Py_ssize_t group, Py_ssize_t entry,
                            Py_ssize_t key_head) noexcept nogil:
    """Find the rows of the heads of a group, which share a key head of a batch entry."""
    cdef Py_ssize_t first = key_head * group
    heads.entry = entry
    heads.first_head = first
    open_rows(&heads.query, problem, &problem.query, entry, first, problem.query_indptr)
    open_keys(&heads.key, problem, &problem.key, entry, key_head)
    open_keys(&heads.value, problem, &problem.value, entry, key_head)
    open_keys(&heads.key_scale, problem, &problem.key_scale, entry, key_head)
    open_keys(&heads.value_scale, problem, &problem.value_scale, entry, key_head)
    open_rows(&heads.out, problem, &problem.out, entry, first, problem.query_indptr)
    open_rows(&heads.lse, problem, &problem.lse, entry, first, problem.query_indptr)
    open_rows(&heads.mask, problem, &problem.mask, entry, first, NULL)
    open_rows(&heads.bias, problem, &problem.bias, entry, first, NULL)
    open_rows(&heads.key_start, problem, &problem.key_start, entry, first, NULL)
    open_rows(&heads.key_stop, problem, &problem.key_stop, entry, first, NULL)
    heads.offset = entry_integer(problem, &problem.query_offset, entry, 0)
    heads.query_limit = <Py_ssize_t>entry_integer(problem, &problem.query_lengths, entry,
                                                  entry_query_length(problem, entry))
    heads.key_limit = <Py_ssize_t>entry_integer(problem, &problem.key_lengths, entry, entry_key_length(problem, entry))


cdef inline void find_rows(Tile *tile, const Plan *plan, const HeadGroup *heads, Py_ssize_t first_row) noexcept nogil:
    """Find head, query and position of each row of a tile. Rows of a group are counted query by query, head by head."""
    cdef Py_ssize_t row, head = first_row % plan.group, i = first_row // plan.group
    for row in range(tile.arrays.rows):
        tile.head[row] = head
        tile.index[row] = i
        tile.position[row] = <double>(heads.offset + i)
        head += 1
        if head == plan.group:
            head = 0
            i += 1


cdef inline char *tile_row(const Rows *rows, const Tile *tile, Py_ssize_t row) noexcept nogil:
    """Return the address of what belongs to a row of the tile."""
    return row_at(rows, tile.head[row], tile.index[row])


cdef inline void find_interval(Tile *tile, Py_ssize_t row, const cattn_problem *problem, const HeadGroup *heads,
                               int64_t low, int64_t high) noexcept nogil:
    """Find the keys start <= j < stop that a row may attend to among keys low <= j < high. Masks and biases come
    later."""
    cdef Py_ssize_t head = tile.head[row], i = tile.index[row]
    cdef int64_t position = heads.offset + i
    if problem.window_left != CATTN_UNLIMITED:
        low = max(low, position - problem.window_left)
    if problem.window_right != CATTN_UNLIMITED:
        high = min(high, position + problem.window_right + 1)
    if heads.key_start.first != NULL:
        low = max(low, integer_at(&heads.key_start, head, i))
    if heads.key_stop.first != NULL:
        high = min(high, integer_at(&heads.key_stop, head, i))
    if i >= heads.query_limit or low >= high:
        low = high = 0
    tile.start[row] = <Py_ssize_t>low
    tile.stop[row] = <Py_ssize_t>high


cdef inline void find_intervals(Tile *tile, const cattn_problem *problem, const HeadGroup *heads, Py_ssize_t key_start,
                                Py_ssize_t key_stop) noexcept nogil:
    """Find the keys that each row may attend to, and those that some rows and all rows may."""
    cdef Py_ssize_t row, half, rows = tile.arrays.rows
    key_stop = min(key_stop, heads.key_limit)
    for half in range(CATTN_HALVES):
        tile.half_low[half] = PY_SSIZE_T_MAX
        tile.half_high[half] = 0
    if (problem.window_left == CATTN_UNLIMITED and problem.window_right == CATTN_UNLIMITED
            and heads.key_start.first == NULL and heads.key_stop.first == NULL
            and tile.index[rows - 1] < heads.query_limit and key_start < key_stop):
        for row in range(rows):
            tile.start[row] = key_start
            tile.stop[row] = key_stop
        tile.inner_low = key_start
        tile.inner_high = key_stop
        see_all(tile, key_start, key_stop)
        return
    tile.low = tile.inner_high = PY_SSIZE_T_MAX
    tile.high = tile.inner_low = 0
    for row in range(rows):
        half = row // tile.half
        find_interval(tile, row, problem, heads, key_start, key_stop)
        if tile.stop[row] > 0:
            tile.half_low[half] = min(tile.half_low[half], tile.start[row])
            tile.half_high[half] = max(tile.half_high[half], tile.stop[row])
        tile.inner_low = max(tile.inner_low, tile.start[row])
        tile.inner_high = min(tile.inner_high, tile.stop[row])
    for half in range(CATTN_HALVES):
        tile.low = min(tile.low, tile.half_low[half])
        tile.high = max(tile.high, tile.half_high[half])


cdef inline void see_all(Tile *tile, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Let the whole tile go over keys low <= j < high, whatever its rows may attend to."""
    cdef Py_ssize_t half
    tile.low = low
    tile.high = high
    for half in range((tile.arrays.rows + tile.half - 1) // tile.half):
        tile.half_low[half] = low
        tile.half_high[half] = high


cdef inline bint halves_differ(const Tile *tile, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Return whether the halves of a tile have different things to do with keys [start, stop). Each then goes alone."""
    return (tile.arrays.rows > tile.half
            and (max(start, tile.half_low[0]) != max(start, tile.half_low[1])
                 or min(stop, tile.half_high[0]) != min(stop, tile.half_high[1]) or tile.is_new[0] != tile.is_new[1]))


cdef inline void load_queries(Tile *tile, const Plan *plan, const Strategy *strategy, const HeadGroup *heads,
                              Py_ssize_t size, char *room, char *scales_room) noexcept nogil:
    """Load the tile's queries, of `size` numbers each. `room` is for those that cannot be read where they lie, or are
    multiplied by the scales of the keys' columns."""
    cdef const char *sources[CATTN_MAX_LANES]
    cdef Py_ssize_t row, bytes = size * plan.itemsize
    cdef const float *scales = NULL
    if strategy.folds_columns:
        scales = column_scales(&heads.key_scale, 0, size, scales_room, plan.table)
    for row in range(tile.arrays.rows):
        sources[row] = tile_row(&heads.query, tile, row)
        if not strategy.query_in_place:
            gather_row(room + row * bytes, tile.kernels.type, heads.query.array, sources[row], size, plan.table)
            sources[row] = room + row * bytes
            if scales != NULL:
                plan.table.multiply(room + row * bytes, scales, 1, size)
    tile.kernels.load(tile.arrays.queries, &tile.arrays, sources, size)
