# The loop nests: what one task does. A tile of rows goes over its keys block by block with the online softmax (Milakov
# and Gimelshein 2018; Rabe and Staats 2021), so that no more than one block of scores exists at a time.

from libc.math cimport log
from libc.string cimport memset
from libc.time cimport time_t


cdef extern from "time.h" nogil:
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    int TIME_UTC
    int timespec_get(timespec *now, int base)

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept


cdef enum:
    STAGE_SCORES
    STAGE_SOFTCAPPED
    STAGE_BIASED
    STAGE_WEIGHTS
    STAGE_OUTPUT   # not a stage of the weights, but what they are for

cdef enum:
    # Scores × head size between two looks at the clock: under 10 ms at 2 GFLOP/s.
    CLOCK_WORK = 8388608
    POLL_NANOSECONDS = 20000000


cdef struct Run:
    const cattn_problem *problem
    const Plan *plan
    const Task *tasks
    char *workspaces
    char *partials
    int stage                    # of attention_weights
    int stopped                  # a signal handler raised: leave the rest
    Py_ssize_t work              # of the caller, since it last looked at the clock
    int64_t polled               # when the caller last looked for signals, in ns


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
        (<float *>vector)[lane] = <float>value
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


cdef void find_interval(Tile *tile, Py_ssize_t row, const cattn_problem *problem, const Entry *entry,
                        Py_ssize_t first_key, Py_ssize_t last_key) noexcept nogil:
    """The keys [first, last) that a row may attend to, masks and biases aside, of those of the task."""
    cdef Py_ssize_t head = tile.head[row], i = tile.index[row]
    cdef int64_t position = entry.offset + i
    cdef int64_t low = first_key, high = min(last_key, entry.key_limit)
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
    tile.position[row] = <double>position


cdef void find_intervals(Tile *tile, const cattn_problem *problem, const Plan *plan, const Entry *entry,
                         Py_ssize_t first_row, Py_ssize_t first_key, Py_ssize_t last_key) noexcept nogil:
    cdef Py_ssize_t row, head = first_row % plan.group, i = first_row // plan.group
    tile.low = tile.inner_high = PY_SSIZE_T_MAX
    tile.high = tile.inner_low = 0
    for row in range(tile.rows):
        tile.head[row] = head
        tile.index[row] = i
        find_interval(tile, row, problem, entry, first_key, last_key)
        if tile.last[row] > 0:
            tile.low = min(tile.low, tile.first[row])
            tile.high = max(tile.high, tile.last[row])
        tile.inner_low = max(tile.inner_low, tile.first[row])
        tile.inner_high = min(tile.inner_high, tile.last[row])
        head += 1
        if head == plan.group:
            head = 0
            i += 1
    for row in range(tile.rows, tile.lanes):   # lanes without a row restrict nothing
        tile.first[row] = 0
        tile.last[row] = PY_SSIZE_T_MAX
        tile.position[row] = 0


cdef void reset_softmax(Tile *tile, const cattn_problem *problem, const Plan *plan, const Entry *entry,
                        bint with_sinks) noexcept nogil:
    """Nothing attended yet: the sink alone is in the sum, and it is the maximum."""
    cdef Py_ssize_t item = plan.tiles.item, row
    cdef double sink
    memset(tile.output, 0, tile.lanes * problem.value_size * item)
    for row in range(tile.lanes):
        sink = -INFINITY
        if with_sinks and problem.sinks.data != NULL and row < tile.rows and tile.index[row] < entry.query_limit:
            sink = (<const double *>(problem.sinks.data + (entry.first_head + tile.head[row]) * problem.sinks.head))[0]
        put_real(tile.maximum, row, item, sink)
        put_real(tile.sum, row, item, 0 if sink == -INFINITY else 1)


cdef inline const char *query_row(const Tile *tile, Py_ssize_t row, const cattn_problem *problem,
                                  const Entry *entry) noexcept nogil:
    return entry.query + tile.head[row] * problem.query.head + tile.index[row] * problem.query.row


cdef inline char *out_row(const Tile *tile, Py_ssize_t row, const cattn_problem *problem,
                          const Entry *entry) noexcept nogil:
    return entry.out + tile.head[row] * problem.out.head + tile.index[row] * problem.out.row


cdef void load_queries(Tile *tile, const cattn_problem *problem, const Plan *plan, const Entry *entry, char *scratch,
                       bint few) noexcept nogil:
    cdef const char *rows[CATTN_MAX_LANES]
    cdef Py_ssize_t row, c, size = problem.head_size, item = plan.tiles.item
    for row in range(tile.rows):
        rows[row] = query_row(tile, row, problem, entry)
        if not plan.query_in_place:
            fetch_row(scratch + row * size * item, plan.arithmetic, &problem.query, rows[row], size, plan.float_tiles)
            rows[row] = scratch + row * size * item
    if not few:
        plan.tiles.load_rows(tile.queries, rows, tile.rows, size, problem.scale)
        return
    for row in range(tile.rows):
        if item == 4:
            for c in range(size):
                (<float *>tile.queries)[row * size + c] = <float>problem.scale * (<const float *>rows[row])[c]
        else:
            for c in range(size):
                (<double *>tile.queries)[row * size + c] = problem.scale * (<const double *>rows[row])[c]


cdef bint make_edit(cattn_edit *edit, const Tile *tile, const cattn_problem *problem, const Plan *plan,
                    const Entry *entry, Py_ssize_t low, Py_ssize_t high, char *workspace, int stage,
                    bint *visible) noexcept nogil:
    """What happens to the scores of keys [low, high); whether anything does. Clears `visible` where the mask leaves
    nothing to see."""
    cdef Py_ssize_t row, j, count = high - low, item = plan.tiles.item
    cdef const char *source
    cdef char *copy
    cdef unsigned char seen = 0
    visible[0] = True
    edit.softcap = problem.softcap if stage >= STAGE_SOFTCAPPED else 0
    edit.has_bias = stage >= STAGE_BIASED and problem.bias.data != NULL
    edit.has_alibi = stage >= STAGE_BIASED and problem.alibi_slopes.data != NULL
    edit.has_mask = stage >= STAGE_BIASED and problem.mask.data != NULL
    edit.has_interval = stage >= STAGE_BIASED and (low < tile.inner_low or high > tile.inner_high)
    if edit.has_interval:
        for row in range(tile.lanes):
            edit.first[row] = tile.first[row] - low
            edit.last[row] = tile.last[row] - low
    if edit.has_mask:
        for row in range(tile.rows):
            source = entry.mask + tile.head[row] * problem.mask.head + tile.index[row] * problem.mask.row \
                + low * problem.mask.column
            if not plan.mask_in_place:
                copy = workspace + plan.mask_at + row * count
                for j in range(count):
                    copy[j] = source[j * problem.mask.column]
                source = copy
            edit.mask[row] = <const unsigned char *>source
            for j in range(count):
                seen |= edit.mask[row][j]
        for row in range(tile.rows, tile.lanes):
            edit.mask[row] = edit.mask[0]
        visible[0] = seen != 0
    if edit.has_bias:
        for row in range(tile.rows):
            source = entry.bias + tile.head[row] * problem.bias.head + tile.index[row] * problem.bias.row \
                + low * problem.bias.column
            if not plan.bias_in_place:
                copy = workspace + plan.bias_at + row * count * item
                fetch_row(copy, plan.arithmetic, &problem.bias, source, count, plan.float_tiles)
                source = copy
            edit.bias[row] = source
        for row in range(tile.rows, tile.lanes):
            edit.bias[row] = edit.bias[0]
    if edit.has_alibi:
        for row in range(tile.lanes):
            edit.slope[row] = 0
            edit.distance[row] = 0
            if row < tile.rows:
                edit.slope[row] = (<const double *>(problem.alibi_slopes.data + (entry.first_head + tile.head[row])
                                                    * problem.alibi_slopes.head))[0]
                edit.distance[row] = tile.position[row] - low
    return edit.softcap != 0 or edit.has_bias or edit.has_alibi or edit.has_mask or edit.has_interval


cdef const char *block_rows(const cattn_array *array, const char *first, bint in_place, char *scratch, Py_ssize_t low,
                            Py_ssize_t count, Py_ssize_t size, const Plan *plan, Py_ssize_t *stride) noexcept nogil:
    """Rows low, low + 1, ... of keys or values: where they lie, or widened and gathered in the workspace."""
    cdef Py_ssize_t j
    if in_place:
        stride[0] = array.row
        return first + low * array.row
    stride[0] = size * plan.tiles.item
    for j in range(count):
        fetch_row(scratch + j * stride[0], plan.arithmetic, array, first + (low + j) * array.row, size,
                  plan.float_tiles)
    return scratch


cdef inline bint stopped(Run *run, int worker, Py_ssize_t work) noexcept nogil:
    """Whether to give up. The caller polls for signals, now and then."""
    cdef timespec now
    cdef int64_t nanoseconds
    if worker == 0:
        run.work += work
        if run.work > CLOCK_WORK:
            run.work = 0
            timespec_get(&now, TIME_UTC)
            nanoseconds = now.tv_sec * <int64_t>1000000000 + now.tv_nsec
            if run.polled == 0:
                run.polled = nanoseconds
            elif not 0 <= nanoseconds - run.polled < POLL_NANOSECONDS:
                run.polled = nanoseconds
                with gil:
                    if PyErr_CheckSignals() != 0:
                        run.stopped = True
    return run.stopped


cdef void mark_attended(unsigned char *attended, const void *scores, Py_ssize_t count, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        attended[i] = get_real(scores, i, item) != -INFINITY


cdef void attend_blocks(Run *run, const Entry *entry, Tile *tiles, Py_ssize_t tile_count, Py_ssize_t first_key,
                        Py_ssize_t last_key, char *workspace, int worker, bint few, bint selecting) noexcept nogil:
    """All blocks of a chunk of keys that some row of the tiles may attend to, each shared by the tiles in turn."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef Py_ssize_t size = problem.head_size, value_size = problem.value_size
    cdef Py_ssize_t block = CATTN_FEW_BLOCK if few else plan.key_block
    cdef Py_ssize_t begin = PY_SSIZE_T_MAX, end = 0, number, start, stop, low, high, count, t
    cdef Py_ssize_t key_stride = 0, value_stride = 0
    cdef void *scores = workspace + plan.scores_at
    cdef void *factor = workspace + plan.vectors_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * table.item
    cdef unsigned char *attended = <unsigned char *>workspace + plan.attended_at
    cdef const char *keys
    cdef const char *values
    cdef const char *key
    cdef const char *value
    cdef Tile *tile
    cdef cattn_edit edit
    cdef bint edited, visible
    for t in range(tile_count):
        begin = min(begin, tiles[t].low)
        end = max(end, tiles[t].high)
    begin = max(begin, first_key)
    end = min(end, last_key)
    if begin >= end:
        return
    for number in range((begin - first_key) // block, (end - first_key + block - 1) // block):
        start = first_key + number * block
        stop = min(start + block, end)
        if stopped(run, worker, tile_count * tiles[0].lanes * (stop - start) * (size + value_size)):
            return
        keys = block_rows(&problem.key, entry.key, plan.key_in_place, workspace + plan.key_at, start, stop - start, size,
                          plan, &key_stride)
        values = block_rows(&problem.value, entry.value, plan.value_in_place, workspace + plan.value_at, start,
                            stop - start, value_size, plan, &value_stride)
        for t in range(tile_count):
            tile = &tiles[t]
            low = max(start, tile.low)
            high = min(stop, tile.high)
            if low >= high:
                continue
            # Runs of sums count from the start of the block, whoever shares the tile.
            low = start if few else low - (low - start) % table.run
            count = high - low
            edited = make_edit(&edit, tile, problem, plan, entry, low, high, workspace, STAGE_OUTPUT, &visible)
            if not visible:
                continue
            key = keys + (low - start) * key_stride
            value = values + (low - start) * value_stride
            if few:
                table.few_scores(scores, CATTN_FEW_BLOCK, block_maximum, tile.queries, tile.rows, key, key_stride, count, size,
                                 value, value_stride, value_size * table.item)
                if edited:
                    table.few_edit(scores, CATTN_FEW_BLOCK, block_maximum, tile.rows, count, &edit)
                if selecting:
                    mark_attended(attended, scores, CATTN_FEW_BLOCK * tile.rows, table.item)
                table.few_exponentials(scores, CATTN_FEW_BLOCK, tile.rows, count, tile.maximum, tile.sum, factor,
                                       block_maximum)
                if selecting:
                    table.few_select_values(tile.output, factor, scores, attended, CATTN_FEW_BLOCK, tile.rows, value,
                                            value_stride, count, value_size)
                else:
                    table.few_values(tile.output, factor, scores, CATTN_FEW_BLOCK, tile.rows, value, value_stride, count,
                                     value_size)
            else:
                table.scores(scores, block_maximum, tile.queries, key, key_stride, count, size)
                if edited:
                    table.edit(scores, block_maximum, count, &edit)
                if selecting:
                    mark_attended(attended, scores, count * table.lanes, table.item)
                table.exponentials(scores, count, tile.maximum, tile.sum, factor, block_maximum)
                if selecting:
                    table.select_values(tile.output, factor, scores, attended, value, value_stride, count, value_size)
                else:
                    table.values(tile.output, factor, scores, value, value_stride, count, value_size)


cdef bint few_store(char *const *rows, Py_ssize_t count, const void *output, const void *factor, Py_ssize_t size,
                    Py_ssize_t item) noexcept nogil:
    """rows[r][c] = factor[r] · output[r][c]; whether all of it is finite."""
    cdef Py_ssize_t r, c
    cdef float single, scale
    cdef double value, double_scale, residue = 0
    for r in range(count):
        if item == 4:
            scale = (<const float *>factor)[r]
            for c in range(size):
                single = scale * (<const float *>output)[r * size + c]
                residue += single - single
                (<float *>rows[r])[c] = single
        else:
            double_scale = (<const double *>factor)[r]
            for c in range(size):
                value = double_scale * (<const double *>output)[r * size + c]
                residue += value - value
                (<double *>rows[r])[c] = value
    return residue == 0


cdef bint finish_tile(const Run *run, const Entry *entry, const Tile *tile, char *workspace, bint few) noexcept nogil:
    """Divides by the sums and writes rows and lse; whether all of the output is finite."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t row, size = problem.value_size, item = plan.tiles.item
    cdef char *scratch = workspace + plan.row_at
    cdef void *factor = workspace + plan.vectors_at
    cdef char *rows[CATTN_MAX_LANES]
    cdef double sum
    cdef bint finite
    for row in range(tile.lanes):
        sum = get_real(tile.sum, row, item)
        put_real(factor, row, item, 0 if sum == 0 else 1 / sum)
    for row in range(tile.rows):
        rows[row] = out_row(tile, row, problem, entry) if plan.out_in_place else scratch + row * size * item
    if few:
        finite = few_store(rows, tile.rows, tile.output, factor, size, item)
    else:
        finite = plan.tiles.store_rows(rows, tile.rows, tile.output, factor, size)
    if not plan.out_in_place:
        for row in range(tile.rows):
            deliver_row(&problem.out, out_row(tile, row, problem, entry), rows[row], plan.arithmetic, size,
                        plan.float_tiles)
    if entry.lse != NULL:
        for row in range(tile.rows):
            write_lse(problem, entry, tile, row, get_real(tile.maximum, row, item), get_real(tile.sum, row, item), item)
    return finite


cdef inline void write_lse(const cattn_problem *problem, const Entry *entry, const Tile *tile, Py_ssize_t row,
                           double maximum, double sum, Py_ssize_t item) noexcept nogil:
    cdef char *lse = entry.lse + tile.head[row] * problem.lse.head + tile.index[row] * problem.lse.row
    put_real(lse, 0, item, -INFINITY if sum == 0 else maximum + log(sum))


cdef void place_tile(Tile *tile, const Plan *plan, const cattn_problem *problem, char *workspace, Py_ssize_t number,
                     Py_ssize_t lanes) noexcept nogil:
    cdef Py_ssize_t item = plan.tiles.item
    cdef char *vectors = workspace + plan.vectors_at + (3 + 2 * number) * CATTN_MAX_LANES * item
    tile.maximum = vectors
    tile.sum = vectors + CATTN_MAX_LANES * item
    if plan.totals_at < plan.scores_at:
        tile.total_maximum = workspace + plan.totals_at \
            + number * (2 * CATTN_MAX_LANES + lanes * problem.value_size) * item
        tile.total_sum = <char *>tile.total_maximum + CATTN_MAX_LANES * item
        tile.total_output = <char *>tile.total_sum + CATTN_MAX_LANES * item
    tile.queries = workspace + plan.queries_at + number * lanes * problem.head_size * item
    tile.output = workspace + plan.output_at + number * lanes * problem.value_size * item


cdef void open_tile(Tile *tile, Run *run, const Task *task, const Entry *entry, Py_ssize_t number, Py_ssize_t lanes,
                    char *workspace, bint few) noexcept nogil:
    """Rows number · lanes, ... of the task: their places, intervals, queries, and an empty softmax."""
    cdef Py_ssize_t first_row = task.first_row + number * lanes
    place_tile(tile, run.plan, run.problem, workspace, number, lanes)
    tile.lanes = lanes
    tile.rows = min(lanes, task.first_row + task.rows - first_row)
    find_intervals(tile, run.problem, run.plan, entry, first_row, task.first_key, task.last_key)
    load_queries(tile, run.problem, run.plan, entry, workspace + run.plan.row_at, few)


cdef void merge(real *maximum, real *sum, real *output, const real *other_maximum, const real *other_sum,
                const real *other_output, Py_ssize_t rows, Py_ssize_t row_pitch, Py_ssize_t size,
                Py_ssize_t size_pitch) noexcept nogil:
    """Two softmaxes over disjoint keys into one (Dao et al. 2023, Flash-Decoding); output (r, c) stands at
    r · row_pitch + c · size_pitch."""
    cdef real[CATTN_MAX_LANES] reference, factor, other_factor
    cdef Py_ssize_t r, c, at
    advance_maximum(maximum, reference, factor, other_maximum, rows)
    for r in range(rows):
        other_factor[r] = exponential(other_maximum[r] - reference[r])
        sum[r] = factor[r] * sum[r] + other_factor[r] * other_sum[r]
    for c in range(size):
        for r in range(rows):
            at = r * row_pitch + c * size_pitch
            output[at] = factor[r] * output[at] + other_factor[r] * other_output[at]


cdef void begin_total(Tile *tile, Py_ssize_t size, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t row
    memset(tile.total_output, 0, tile.lanes * size * item)
    for row in range(tile.lanes):
        put_real(tile.total_maximum, row, item, -INFINITY)
        put_real(tile.total_sum, row, item, 0)


cdef void join_total(Tile *tile, Py_ssize_t size, Py_ssize_t item) noexcept nogil:
    if item == 4:
        merge[float](<float *>tile.total_maximum, <float *>tile.total_sum, <float *>tile.total_output,
                     <const float *>tile.maximum, <const float *>tile.sum, <const float *>tile.output,
                     tile.lanes, 1, size, tile.lanes)
    else:
        merge[double](<double *>tile.total_maximum, <double *>tile.total_sum, <double *>tile.total_output,
                      <const double *>tile.maximum, <const double *>tile.sum, <const double *>tile.output,
                      tile.lanes, 1, size, tile.lanes)


cdef inline void swap(void **one, void **other) noexcept nogil:
    cdef void *kept = one[0]
    one[0] = other[0]
    other[0] = kept


cdef void attend_chunks(Run *run, const Task *task, const Entry *entry, Tile *tiles, Py_ssize_t tile_count,
                        char *workspace, int worker, bint selecting) noexcept nogil:
    """All keys, chunk by chunk; what many rows have attended to is then in the tiles."""
    cdef Py_ssize_t chunk, first_key, t, size = run.problem.value_size, item = run.plan.tiles.item
    cdef Py_ssize_t chunks = count_chunks(task.last_key)
    for chunk in range(chunks):
        first_key = chunk * CHUNK
        for t in range(tile_count):
            if chunk == 0 and chunks > 1:
                begin_total(&tiles[t], size, item)
            reset_softmax(&tiles[t], run.problem, run.plan, entry, chunk == 0)
        attend_blocks(run, entry, tiles, tile_count, first_key, first_key + CHUNK, workspace, worker, False, selecting)
        if chunks > 1:
            for t in range(tile_count):
                join_total(&tiles[t], size, item)
    if chunks > 1:
        for t in range(tile_count):
            swap(&tiles[t].maximum, &tiles[t].total_maximum)
            swap(&tiles[t].sum, &tiles[t].total_sum)
            swap(&tiles[t].output, &tiles[t].total_output)


cdef void attend_many(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    cdef Py_ssize_t lanes = run.plan.tiles.lanes, t
    cdef Py_ssize_t tile_count = (task.rows + lanes - 1) // lanes
    cdef Tile *tiles = <Tile *>(workspace + run.plan.tiles_at)
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    for t in range(tile_count):
        open_tile(&tiles[t], run, task, &entry, t, lanes, workspace, False)
    attend_chunks(run, task, &entry, tiles, tile_count, workspace, worker, False)
    for t in range(tile_count):
        if not finish_tile(run, &entry, &tiles[t], workspace, False):
            # Perhaps a masked value was not finite: weight 0 does not silence it. Again, leaving out what is masked.
            attend_chunks(run, task, &entry, &tiles[t], 1, workspace, worker, True)
            finish_tile(run, &entry, &tiles[t], workspace, False)


cdef bint output_is_finite(const Tile *tile, Py_ssize_t count, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t i
    cdef double value, residue = 0
    for i in range(count):
        value = get_real(tile.output, i, item)
        residue += value - value
    return residue == 0


cdef void attend_few(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    cdef Py_ssize_t rows = task.rows, item = run.plan.tiles.item
    cdef Py_ssize_t output_size = rows * run.problem.value_size
    cdef Tile *tile = <Tile *>(workspace + run.plan.tiles_at)
    cdef bint with_sinks = task.first_key == 0
    cdef char *partial
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    open_tile(tile, run, task, &entry, 0, rows, workspace, True)
    reset_softmax(tile, run.problem, run.plan, &entry, with_sinks)
    attend_blocks(run, &entry, tile, 1, task.first_key, task.last_key, workspace, worker, True, False)
    if not output_is_finite(tile, output_size, item):
        reset_softmax(tile, run.problem, run.plan, &entry, with_sinks)
        attend_blocks(run, &entry, tile, 1, task.first_key, task.last_key, workspace, worker, True, True)
    if task.partial < 0:
        finish_tile(run, &entry, tile, workspace, True)
        return
    partial = run.partials + task.partial * run.plan.partial_bytes
    memcpy(partial, tile.maximum, rows * item)
    memcpy(partial + rows * item, tile.sum, rows * item)
    memcpy(partial + 2 * rows * item, tile.output, output_size * item)


cdef void merge_few(Run *run, Py_ssize_t number, char *workspace) noexcept nogil:
    """The partial results of one key head, from left to right; task `number` is the first of them."""
    cdef const Task *task = &run.tasks[number]
    cdef Tile *tile = <Tile *>(workspace + run.plan.tiles_at)
    cdef Py_ssize_t rows = task.rows, size = run.problem.value_size, item = run.plan.tiles.item
    cdef const char *partial
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    open_tile(tile, run, task, &entry, 0, rows, workspace, True)
    reset_softmax(tile, run.problem, run.plan, &entry, False)
    while True:
        partial = run.partials + run.tasks[number].partial * run.plan.partial_bytes
        if item == 4:
            merge[float](<float *>tile.maximum, <float *>tile.sum, <float *>tile.output, <const float *>partial,
                         <const float *>(partial + rows * item), <const float *>(partial + 2 * rows * item), rows, size,
                         size, 1)
        else:
            merge[double](<double *>tile.maximum, <double *>tile.sum, <double *>tile.output, <const double *>partial,
                          <const double *>(partial + rows * item), <const double *>(partial + 2 * rows * item), rows,
                          size, size, 1)
        number += 1
        if number == run.plan.tasks or run.tasks[number].first_key == 0:
            break
    finish_tile(run, &entry, tile, workspace, True)


cdef void write_scores(Run *run, const Entry *entry, const Tile *tile, Py_ssize_t low, Py_ssize_t count,
                       const void *factor, const unsigned char *attended, char *workspace) noexcept nogil:
    """A tile of scores or weights into the rows of the result. What is masked has weight 0, whatever its row's sum."""
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t row, j, item = plan.tiles.item
    cdef char *rows[CATTN_MAX_LANES]
    for row in range(tile.rows):
        rows[row] = out_row(tile, row, run.problem, entry) + low * item
    plan.tiles.store_rows(rows, tile.rows, workspace + plan.scores_at, factor, count)
    if attended != NULL:
        for row in range(tile.rows):
            for j in range(count):
                if not attended[j * plan.tiles.lanes + row]:
                    put_real(rows[row], j, item, 0)


cdef void weigh_many(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    """attention_weights: the scores at the stage asked for; the weights in two passes, sums first."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef Py_ssize_t lanes = table.lanes, item = table.item, key_stride = 0, number, start, count, row, t
    cdef Tile *tile = <Tile *>(workspace + plan.tiles_at)
    cdef void *scores = workspace + plan.scores_at
    cdef void *factor = workspace + plan.vectors_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * item
    cdef void *inverse = workspace + plan.vectors_at + 2 * CATTN_MAX_LANES * item   # 1 / sum, or 1 for plain scores
    cdef unsigned char *attended = <unsigned char *>workspace + plan.attended_at
    cdef const char *keys
    cdef double sum
    cdef int pass_number, passes = 2 if run.stage == STAGE_WEIGHTS else 1
    cdef bint visible
    cdef cattn_edit edit
    cdef Entry entry
    open_entry(&entry, problem, plan, task.entry, task.key_head)
    for t in range((task.rows + lanes - 1) // lanes):
        open_tile(tile, run, task, &entry, t, lanes, workspace, False)
        reset_softmax(tile, problem, plan, &entry, True)
        for row in range(lanes):
            put_real(inverse, row, item, 1)
        for pass_number in range(passes):
            for number in range((task.last_key + plan.key_block - 1) // plan.key_block):
                start = number * plan.key_block
                count = min(plan.key_block, task.last_key - start)
                if stopped(run, worker, lanes * count * problem.head_size):
                    return
                keys = block_rows(&problem.key, entry.key, plan.key_in_place, workspace + plan.key_at, start, count,
                                  problem.head_size, plan, &key_stride)
                table.scores(scores, block_maximum, tile.queries, keys, key_stride, count, problem.head_size)
                if make_edit(&edit, tile, problem, plan, &entry, start, start + count, workspace, run.stage, &visible):
                    table.edit(scores, block_maximum, count, &edit)
                if passes == 1:
                    write_scores(run, &entry, tile, start, count, inverse, NULL, workspace)
                    continue
                mark_attended(attended, scores, count * lanes, item)
                table.exponentials(scores, count, tile.maximum, tile.sum, factor, block_maximum)
                if pass_number == 1:   # the maximum stays, so that these are exp(score - maximum)
                    write_scores(run, &entry, tile, start, count, inverse, attended, workspace)
            if pass_number == 0 and passes == 2:
                for row in range(lanes):
                    sum = get_real(tile.sum, row, item)
                    put_real(inverse, row, item, 0 if sum == 0 else 1 / sum)
