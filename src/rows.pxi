# The rows of a tile: which queries they are, what they may see, and what happens to their scores. Loading them and
# writing their results.

from libc.math cimport log
from libc.string cimport memset

cdef enum:
    STAGE_SCORES
    STAGE_SOFTCAPPED
    STAGE_BIASED
    STAGE_WEIGHTS
    STAGE_OUTPUT   # not a stage of the weights, but what they are for

# One batch entry and key head: where its first rows lie, and what holds for all its rows.
cdef struct Entry:
    Py_ssize_t number
    Py_ssize_t first_head            # the first query head of the group
    Py_ssize_t query_limit, key_limit
    int64_t offset
    const char *query
    const char *key
    const char *value
    char *out
    char *lse
    const char *mask
    const char *bias
    const char *key_start
    const char *key_stop


cdef inline void put_real(void *vector, Py_ssize_t lane, Py_ssize_t item, double value) noexcept nogil:
    if item == 4:
        (<float *>vector)[lane] = to_float(value)
    else:
        (<double *>vector)[lane] = value


cdef inline double get_real(const void *vector, Py_ssize_t lane, Py_ssize_t item) noexcept nogil:
    return (<const float *>vector)[lane] if item == 4 else (<const double *>vector)[lane]


cdef char *entry_data(const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry, Py_ssize_t head,
                      const int64_t *indptr) noexcept nogil:
    """The first row of `head` in batch entry number `entry`; NULL for an array that was not given."""
    cdef char *data = array.data
    cdef Py_ssize_t axis, rest = entry
    if data == NULL:
        return NULL
    for axis in range(problem.batch_ndim - 1, -1, -1):
        data += rest % problem.batch_shape[axis] * array.batch[axis]
        rest //= problem.batch_shape[axis]
    if indptr != NULL:
        data += indptr[entry] * array.row
    return data + head * array.head


cdef int64_t entry_integer(const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                           int64_t otherwise) noexcept nogil:
    cdef const char *data = entry_data(problem, array, entry, 0, NULL)
    return otherwise if data == NULL else (<const int64_t *>data)[0]


cdef void open_entry(Entry *entry, const cattn_problem *problem, const Plan *plan, Py_ssize_t number,
                     Py_ssize_t key_head) noexcept nogil:
    cdef Py_ssize_t query_head = key_head * plan.group
    cdef const int64_t *rows = problem.query_indptr
    entry.number = number
    entry.first_head = query_head
    entry.query = entry_data(problem, &problem.query, number, query_head, rows)
    entry.key = entry_data(problem, &problem.key, number, key_head, problem.key_indptr)
    entry.value = entry_data(problem, &problem.value, number, key_head, problem.key_indptr)
    entry.out = entry_data(problem, &problem.out, number, query_head, rows)
    entry.lse = entry_data(problem, &problem.lse, number, query_head, rows)
    entry.mask = entry_data(problem, &problem.mask, number, query_head, NULL)
    entry.bias = entry_data(problem, &problem.bias, number, query_head, NULL)
    entry.key_start = entry_data(problem, &problem.key_start, number, query_head, NULL)
    entry.key_stop = entry_data(problem, &problem.key_stop, number, query_head, NULL)
    entry.offset = entry_integer(problem, &problem.query_offset, number, 0)
    entry.query_limit = <Py_ssize_t>entry_integer(problem, &problem.query_lengths, number,
                                                  entry_query_length(problem, number))
    entry.key_limit = <Py_ssize_t>entry_integer(problem, &problem.key_lengths, number,
                                                entry_key_length(problem, number))


cdef void find_rows(Tile *tile, const Plan *plan, const Entry *entry, Py_ssize_t first_row) noexcept nogil:
    cdef Py_ssize_t row, head = first_row % plan.group, i = first_row // plan.group
    for row in range(tile.rows):
        tile.head[row] = head
        tile.index[row] = i
        tile.position[row] = <double>(entry.offset + i)
        head += 1
        if head == plan.group:
            head = 0
            i += 1


cdef void find_interval(Tile *tile, Py_ssize_t row, const cattn_problem *problem, const Entry *entry, int64_t low,
                        int64_t high) noexcept nogil:
    """The keys [first, last) that a row may attend to, masks and biases aside, of keys [low, high)."""
    cdef Py_ssize_t head = tile.head[row], i = tile.index[row]
    cdef int64_t position = entry.offset + i
    if problem.window_left != CATTN_UNLIMITED:
        low = max(low, position - problem.window_left)
    if problem.window_right != CATTN_UNLIMITED:
        high = min(high, position + problem.window_right + 1)
    if entry.key_start != NULL:
        low = max(low, (<const int64_t *>(entry.key_start + head * problem.key_start.head
                                          + i * problem.key_start.row))[0])
    if entry.key_stop != NULL:
        high = min(high, (<const int64_t *>(entry.key_stop + head * problem.key_stop.head
                                            + i * problem.key_stop.row))[0])
    if i >= entry.query_limit or low >= high:
        low = high = 0
    tile.first[row] = <Py_ssize_t>low
    tile.last[row] = <Py_ssize_t>high


cdef void find_intervals(Tile *tile, const cattn_problem *problem, const Entry *entry, Py_ssize_t first_key,
                         Py_ssize_t last_key) noexcept nogil:
    cdef Py_ssize_t row, part
    last_key = min(last_key, entry.key_limit)
    for part in range(CATTN_PARTS):
        tile.part_low[part] = PY_SSIZE_T_MAX
        tile.part_high[part] = 0
    if (problem.window_left == CATTN_UNLIMITED and problem.window_right == CATTN_UNLIMITED and entry.key_start == NULL
            and entry.key_stop == NULL and tile.index[tile.rows - 1] < entry.query_limit and first_key < last_key):
        for row in range(tile.rows):
            tile.first[row] = first_key
            tile.last[row] = last_key
        tile.low = tile.inner_low = first_key
        tile.high = tile.inner_high = last_key
        for part in range((tile.rows + tile.part - 1) // tile.part):
            tile.part_low[part] = first_key
            tile.part_high[part] = last_key
        return
    tile.low = tile.inner_high = PY_SSIZE_T_MAX
    tile.high = tile.inner_low = 0
    for row in range(tile.rows):
        part = row // tile.part
        find_interval(tile, row, problem, entry, first_key, last_key)
        if tile.last[row] > 0:
            tile.part_low[part] = min(tile.part_low[part], tile.first[row])
            tile.part_high[part] = max(tile.part_high[part], tile.last[row])
        tile.inner_low = max(tile.inner_low, tile.first[row])
        tile.inner_high = min(tile.inner_high, tile.last[row])
    for part in range(CATTN_PARTS):
        tile.low = min(tile.low, tile.part_low[part])
        tile.high = max(tile.high, tile.part_high[part])


cdef bint parts_differ(const Tile *tile, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Whether the parts of a tile have different things to do with keys [start, stop): then each goes alone."""
    return (tile.rows > tile.part
            and (max(start, tile.part_low[0]) != max(start, tile.part_low[1])
                 or min(stop, tile.part_high[0]) != min(stop, tile.part_high[1]) or tile.blank[0] != tile.blank[1]))


cdef void empty_softmax(real *maximum, real *sum, Py_ssize_t lanes) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(lanes):
        maximum[row] = -INFINITY
        sum[row] = 0


cdef void reset_softmax(Tile *tile, const cattn_problem *problem, const Plan *plan, const Entry *entry,
                        bint with_sinks) noexcept nogil:
    """Nothing attended yet: the sink alone is in the sum, and it is the maximum."""
    cdef Py_ssize_t item = plan.tiles.item, row, part
    cdef double sink
    for part in range(CATTN_PARTS):
        tile.blank[part] = True
    if item == 4:
        empty_softmax(<float *>tile.maximum, <float *>tile.sum, tile.lanes)
    else:
        empty_softmax(<double *>tile.maximum, <double *>tile.sum, tile.lanes)
    if not with_sinks or problem.sinks.data == NULL:
        return
    for row in range(tile.rows):
        sink = head_sink(problem, entry.first_head + tile.head[row])
        if sink != -INFINITY and tile.index[row] < entry.query_limit:
            put_real(tile.maximum, row, item, sink)
            put_real(tile.sum, row, item, 1)


cdef void fill_huge(Run *run, int worker, Tile *tile) noexcept nogil:
    """The whole output with zeros."""
    cdef Py_ssize_t start = 0, size = run.problem.value_size, columns, bytes = tile.lanes * run.plan.tiles.item
    while start < size and not stopped(run, worker, MOVE_WORK * SLICE * tile.lanes):
        columns = min(size - start, <Py_ssize_t>SLICE)
        memset(<char *>tile.output + start * bytes, 0, columns * bytes)
        start += columns


cdef inline void fill_blank(Run *run, int worker, Tile *tile) noexcept nogil:
    """The output of the parts that no block of keys has come to."""
    cdef Py_ssize_t part, column, item = run.plan.tiles.item
    if run.plan.huge and tile.blank[0]:
        fill_huge(run, worker, tile)
        tile.blank[0] = False
    for part in range(CATTN_PARTS):
        if tile.blank[part] and part * tile.part < tile.lanes:
            for column in range(run.problem.value_size):
                memset(<char *>tile.output + (column * tile.lanes + part * tile.part) * item, 0, tile.part * item)
            tile.blank[part] = False


cdef inline char *array_row(const cattn_array *array, const char *first, const Tile *tile, Py_ssize_t row) noexcept nogil:
    """What belongs to a row of the tile, in an array whose part for the tile's heads begins at `first`."""
    return <char *>first + tile.head[row] * array.head + tile.index[row] * array.row


cdef inline char *out_row(const Tile *tile, Py_ssize_t row, const cattn_problem *problem,
                          const Entry *entry) noexcept nogil:
    return array_row(&problem.out, entry.out, tile, row)


cdef void load_queries(Tile *tile, const cattn_problem *problem, const Plan *plan, const Entry *entry, Py_ssize_t start,
                       Py_ssize_t count, char *scratch, bint few) noexcept nogil:
    """Columns start, start + 1, ... of the tile's queries."""
    cdef const char *rows[CATTN_MAX_LANES]
    cdef Py_ssize_t row, c, item = plan.tiles.item
    for row in range(tile.rows):
        rows[row] = array_row(&problem.query, entry.query, tile, row) + start * problem.query.column
        if not plan.query_in_place:
            fetch_row(scratch + row * count * item, plan.arithmetic, &problem.query, rows[row], count, plan.float_tiles)
            rows[row] = scratch + row * count * item
    if not few:
        plan.tiles.load_rows(tile.queries, rows, tile.rows, count, problem.scale)
        return
    for row in range(tile.rows):
        if item == 4:
            for c in range(count):
                (<float *>tile.queries)[row * count + c] = <float>problem.scale * (<const float *>rows[row])[c]
        else:
            for c in range(count):
                (<double *>tile.queries)[row * count + c] = problem.scale * (<const double *>rows[row])[c]


cdef inline bint has_terms(const cattn_edit *edit) noexcept nogil:
    return edit.has_bias or edit.has_alibi or edit.has_mask or edit.has_interval


cdef bint make_edit(cattn_edit *edit, const Tile *tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t lanes,
                    const cattn_problem *problem, const Plan *plan, const Entry *entry, Py_ssize_t low, Py_ssize_t high,
                    char *workspace, int stage, bint *visible) noexcept nogil:
    """What happens to the scores of rows first, first + 1, ... of a tile, which take so many lanes, and keys [low, high);
    whether anything does. Clears `visible` where the mask leaves nothing to see."""
    cdef Py_ssize_t row, j, count = high - low, item = plan.tiles.item
    cdef const char *source
    cdef char *copy
    cdef double slope
    cdef unsigned char seen = 0
    visible[0] = True
    edit.softcap = problem.softcap if stage >= STAGE_SOFTCAPPED else 0
    edit.has_bias = stage >= STAGE_BIASED and problem.bias.data != NULL
    edit.has_alibi = stage >= STAGE_BIASED and problem.alibi_slopes.data != NULL
    edit.has_mask = stage >= STAGE_BIASED and problem.mask.data != NULL
    edit.has_interval = stage >= STAGE_BIASED and (low < tile.inner_low or high > tile.inner_high)
    if edit.has_interval:
        for row in range(rows):
            edit.first[row] = tile.first[first + row] - low
            edit.last[row] = tile.last[first + row] - low
        for row in range(rows, lanes):   # lanes without a row restrict nothing
            edit.first[row] = 0
            edit.last[row] = count
    if edit.has_mask:
        for row in range(rows):
            source = array_row(&problem.mask, entry.mask, tile, first + row) + low * problem.mask.column
            if not plan.mask_in_place:
                copy = workspace + plan.mask_at + row * count
                for j in range(count):
                    copy[j] = source[j * problem.mask.column]
                source = copy
            edit.mask[row] = <const unsigned char *>source
            if not seen:
                for j in range(count):
                    seen |= edit.mask[row][j]
        for row in range(rows, lanes):
            edit.mask[row] = edit.mask[0]
        visible[0] = seen != 0
    if edit.has_bias:
        for row in range(rows):
            source = array_row(&problem.bias, entry.bias, tile, first + row) + low * problem.bias.column
            if not plan.bias_in_place:
                copy = workspace + plan.bias_at + row * count * item
                fetch_row(copy, plan.arithmetic, &problem.bias, source, count, plan.float_tiles)
                source = copy
            edit.bias[row] = source
        for row in range(rows, lanes):
            edit.bias[row] = edit.bias[0]
    if edit.has_alibi:
        for row in range(lanes):
            edit.slope[row] = 0
            edit.distance[row] = 0
            if row < rows:
                slope = (<const double *>(problem.alibi_slopes.data + (entry.first_head + tile.head[first + row])
                                          * problem.alibi_slopes.head))[0]
                edit.slope[row] = to_float(slope) if item == 4 else slope
                edit.distance[row] = tile.position[first + row] - low
    return edit.softcap != 0 or has_terms(edit)


cdef bint few_store(char *const *rows, Py_ssize_t count, const void *output, const void *divisor, Py_ssize_t size,
                    Py_ssize_t item) noexcept nogil:
    """rows[r][c] = output[r][c] / divisor[r]; whether all of it is finite."""
    cdef Py_ssize_t r, c
    cdef float single, by
    cdef double value, double_by, residue = 0
    for r in range(count):
        if item == 4:
            by = (<const float *>divisor)[r]
            for c in range(size):
                single = (<const float *>output)[r * size + c] / by
                residue += single - single
                (<float *>rows[r])[c] = single
        else:
            double_by = (<const double *>divisor)[r]
            for c in range(size):
                value = (<const double *>output)[r * size + c] / double_by
                residue += value - value
                (<double *>rows[r])[c] = value
    return residue == 0


cdef void find_divisors(real *divisor, const real *sum, Py_ssize_t lanes) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(lanes):
        divisor[row] = 1 if sum[row] == 0 else sum[row]


cdef bint finish_tile(Run *run, int worker, const Entry *entry, const Tile *tile, char *workspace, bint few) noexcept nogil:
    """Divides by the sums and writes rows and lse; whether all of the output is finite."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t row, start = 0, columns, size = problem.value_size, item = plan.tiles.item
    cdef const char *output = <const char *>tile.output
    cdef char *scratch = workspace + plan.row_at
    cdef void *divisor = workspace + plan.vectors_at
    cdef char *rows[CATTN_MAX_LANES]
    cdef bint finite = True
    if item == 4:
        find_divisors(<float *>divisor, <const float *>tile.sum, tile.lanes)
    else:
        find_divisors(<double *>divisor, <const double *>tile.sum, tile.lanes)
    while start < size:
        columns = min(size - start, plan.columns)
        if start > 0 and stopped(run, worker, MOVE_WORK * columns * tile.rows):
            return finite
        for row in range(tile.rows):
            rows[row] = (out_row(tile, row, problem, entry) + start * item if plan.out_in_place
                         else scratch + row * columns * item)
        if few:
            finite &= few_store(rows, tile.rows, output, divisor, columns, item)
        else:
            finite &= plan.tiles.store_rows(rows, tile.rows, output, divisor, columns)
        if not plan.out_in_place:
            for row in range(tile.rows):
                deliver_row(&problem.out, out_row(tile, row, problem, entry) + start * problem.out.column, rows[row],
                            plan.arithmetic, columns, plan.float_tiles)
        output += columns * tile.lanes * item
        start += columns
    if entry.lse != NULL:
        for row in range(tile.rows):
            write_lse(problem, plan, entry, tile, row)
    for row in range(tile.rows if size == 0 else 0):   # no column says so
        finite &= isfinite(get_real(tile.sum, row, item))
    return finite


cdef inline void write_lse(const cattn_problem *problem, const Plan *plan, const Entry *entry, const Tile *tile,
                           Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t item = plan.tiles.item
    cdef char *lse = entry.lse + tile.head[row] * problem.lse.head + tile.index[row] * problem.lse.row
    cdef double maximum = get_real(tile.maximum, row, item), sum = get_real(tile.sum, row, item)
    put_real(lse, 0, item, -INFINITY if sum == 0 else maximum + log(sum))


cdef void place_tile(Tile *tile, const Plan *plan, const cattn_problem *problem, char *workspace, Py_ssize_t number,
                     Py_ssize_t lanes) noexcept nogil:
    cdef Py_ssize_t item = plan.tiles.item
    cdef char *vectors = workspace + plan.vectors_at + (3 + 2 * number) * CATTN_MAX_LANES * item
    tile.maximum = vectors
    tile.sum = vectors + CATTN_MAX_LANES * item
    if plan.totals_at < plan.scores_at:
        vectors = workspace + plan.totals_at + number * (3 * CATTN_MAX_LANES + 2 * lanes * problem.value_size) * item
        tile.total.maximum = vectors
        tile.total.sum = vectors + CATTN_MAX_LANES * item
        tile.total.sum_carry = vectors + 2 * CATTN_MAX_LANES * item
        tile.total.output_carry = vectors + 3 * CATTN_MAX_LANES * item
        tile.total.output = <char *>tile.total.output_carry + lanes * problem.value_size * item
    tile.queries = workspace + plan.queries_at + number * lanes * min(problem.head_size, plan.columns) * item
    tile.output = workspace + plan.output_at + number * lanes * problem.value_size * item
