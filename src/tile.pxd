# The rows of a tile: which queries they are, what they may see, their loads and their results.

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from convert cimport gather_row, scatter_row
from plan cimport (
    entry_key_length, entry_query_length, Plan, query_room, rows_of_partial, Strategy, Task, Tile)
from problem cimport CATTN_UNLIMITED, cattn_array, cattn_problem
from tiles.tiles cimport (
    CATTN_FEW, CATTN_HALVES, CATTN_MAX_LANES, PY_SSIZE_T_MAX, cattn_kernels, cattn_row_tile, cattn_softmax)
from worker cimport Worker


# One batch entry and key head: where its first rows lie, and what holds for all its rows.
cdef struct KeyHead:
    Py_ssize_t entry
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


cdef inline char *first_row(const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry, Py_ssize_t head,
                            const int64_t *indptr) noexcept nogil:
    """That of `head` in this batch entry; NULL for an array that was not given."""
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


cdef inline int64_t entry_integer(const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                                  int64_t otherwise) noexcept nogil:
    cdef const char *data = first_row(problem, array, entry, 0, NULL)
    return otherwise if data == NULL else (<const int64_t *>data)[0]


cdef inline void open_head(KeyHead *head, const Worker *worker, const Task *task) noexcept nogil:
    cdef const cattn_problem *problem = worker.call.problem
    cdef Py_ssize_t entry = task.entry, query_head = task.key_head * worker.call.plan.group
    head.entry = entry
    head.first_head = query_head
    head.query = first_row(problem, &problem.query, entry, query_head, problem.query_indptr)
    head.key = first_row(problem, &problem.key, entry, task.key_head, problem.key_indptr)
    head.value = first_row(problem, &problem.value, entry, task.key_head, problem.key_indptr)
    head.out = first_row(problem, &problem.out, entry, query_head, problem.query_indptr)
    head.lse = first_row(problem, &problem.lse, entry, query_head, problem.query_indptr)
    head.mask = first_row(problem, &problem.mask, entry, query_head, NULL)
    head.bias = first_row(problem, &problem.bias, entry, query_head, NULL)
    head.key_start = first_row(problem, &problem.key_start, entry, query_head, NULL)
    head.key_stop = first_row(problem, &problem.key_stop, entry, query_head, NULL)
    head.offset = entry_integer(problem, &problem.query_offset, entry, 0)
    head.query_limit = <Py_ssize_t>entry_integer(problem, &problem.query_lengths, entry,
                                                 entry_query_length(problem, entry))
    head.key_limit = <Py_ssize_t>entry_integer(problem, &problem.key_lengths, entry, entry_key_length(problem, entry))


cdef inline void find_rows(Tile *tile, const Plan *plan, const KeyHead *key_head, Py_ssize_t first_row) noexcept nogil:
    cdef Py_ssize_t row, head = first_row % plan.group, i = first_row // plan.group
    for row in range(tile.arrays.rows):
        tile.head[row] = head
        tile.index[row] = i
        tile.position[row] = <double>(key_head.offset + i)
        head += 1
        if head == plan.group:
            head = 0
            i += 1


cdef inline int64_t integer_of(const cattn_array *array, const char *first, Py_ssize_t head,
                               Py_ssize_t i) noexcept nogil:
    return (<const int64_t *>(first + head * array.head + i * array.row))[0]


cdef inline void find_interval(Tile *tile, Py_ssize_t row, const cattn_problem *problem, const KeyHead *key_head,
                               int64_t low, int64_t high) noexcept nogil:
    """The keys [start, stop) that a row may attend to, masks and biases aside, of keys [low, high)."""
    cdef Py_ssize_t head = tile.head[row], i = tile.index[row]
    cdef int64_t position = key_head.offset + i
    if problem.window_left != CATTN_UNLIMITED:
        low = max(low, position - problem.window_left)
    if problem.window_right != CATTN_UNLIMITED:
        high = min(high, position + problem.window_right + 1)
    if key_head.key_start != NULL:
        low = max(low, integer_of(&problem.key_start, key_head.key_start, head, i))
    if key_head.key_stop != NULL:
        high = min(high, integer_of(&problem.key_stop, key_head.key_stop, head, i))
    if i >= key_head.query_limit or low >= high:
        low = high = 0
    tile.start[row] = <Py_ssize_t>low
    tile.stop[row] = <Py_ssize_t>high


cdef inline void find_intervals(Tile *tile, const cattn_problem *problem, const KeyHead *head, Py_ssize_t key_start,
                                Py_ssize_t key_stop) noexcept nogil:
    cdef Py_ssize_t row, half, rows = tile.arrays.rows
    key_stop = min(key_stop, head.key_limit)
    for half in range(CATTN_HALVES):
        tile.half_low[half] = PY_SSIZE_T_MAX
        tile.half_high[half] = 0
    if (problem.window_left == CATTN_UNLIMITED and problem.window_right == CATTN_UNLIMITED and head.key_start == NULL
            and head.key_stop == NULL and tile.index[rows - 1] < head.query_limit and key_start < key_stop):
        for row in range(rows):
            tile.start[row] = key_start
            tile.stop[row] = key_stop
        tile.low = tile.inner_low = key_start
        tile.high = tile.inner_high = key_stop
        for half in range((rows + tile.half - 1) // tile.half):
            tile.half_low[half] = key_start
            tile.half_high[half] = key_stop
        return
    tile.low = tile.inner_high = PY_SSIZE_T_MAX
    tile.high = tile.inner_low = 0
    for row in range(rows):
        half = row // tile.half
        find_interval(tile, row, problem, head, key_start, key_stop)
        if tile.stop[row] > 0:
            tile.half_low[half] = min(tile.half_low[half], tile.start[row])
            tile.half_high[half] = max(tile.half_high[half], tile.stop[row])
        tile.inner_low = max(tile.inner_low, tile.start[row])
        tile.inner_high = min(tile.inner_high, tile.stop[row])
    for half in range(CATTN_HALVES):
        tile.low = min(tile.low, tile.half_low[half])
        tile.high = max(tile.high, tile.half_high[half])


cdef inline bint halves_differ(const Tile *tile, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Whether the halves of a tile have different things to do with keys [start, stop): then each goes alone."""
    return (tile.arrays.rows > tile.half
            and (max(start, tile.half_low[0]) != max(start, tile.half_low[1])
                 or min(stop, tile.half_high[0]) != min(stop, tile.half_high[1]) or tile.is_new[0] != tile.is_new[1]))


cdef inline char *row_of(const cattn_array *array, const char *first, const Tile *tile, Py_ssize_t row) noexcept nogil:
    """What belongs to a row of the tile, in an array whose part for the tile's heads begins at `first`."""
    return <char *>first + tile.head[row] * array.head + tile.index[row] * array.row


cdef inline void place_arrays(Tile *tile, const Worker *worker, const Task *task, Py_ssize_t number) noexcept nogil:
    """Tile number `number` of a task in the worker's workspace, where all tiles have the same place for scores."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Plan *plan = worker.call.plan
    cdef cattn_row_tile *arrays = &tile.arrays
    cdef char *workspace = worker.workspace
    cdef Py_ssize_t item = plan.itemsize, vector = CATTN_MAX_LANES * item
    cdef Py_ssize_t output = arrays.lanes * problem.value_size * item
    cdef bint rounds = task.strategy.kernels.rounds_weights
    cdef char *vectors = workspace + plan.vectors_at
    arrays.pitch = task.strategy.key_block
    arrays.output_pitch = problem.value_size
    arrays.scale = problem.scale
    arrays.score_mod = NULL
    arrays.row_scale = vectors
    arrays.block_max = vectors + vector
    arrays.softmax.row_max = vectors + (3 + 3 * number) * vector
    arrays.softmax.row_sum = vectors + (4 + 3 * number) * vector
    arrays.softmax.lse_sum = vectors + (5 + 3 * number) * vector if rounds else arrays.softmax.row_sum
    arrays.queries = workspace + plan.queries_at + number * arrays.lanes * query_room(problem) * item
    arrays.softmax.output = workspace + plan.output_at + number * output
    arrays.block_output = workspace + plan.block_output_at
    arrays.scores = workspace + plan.scores_at
    arrays.attn_bias = workspace + plan.attn_bias_at
    arrays.attended = <unsigned char *>workspace + plan.attended_at
    if plan.totals_at < plan.scores_at:
        vectors = workspace + plan.totals_at + number * (5 * vector + 2 * output)
        tile.total.softmax.row_max = vectors
        tile.total.softmax.row_sum = vectors + vector
        tile.total.softmax.lse_sum = vectors + 2 * vector if rounds else tile.total.softmax.row_sum
        tile.total.softmax.output = vectors + 5 * vector
        tile.total.row_sum_carry = vectors + 3 * vector
        tile.total.lse_sum_carry = vectors + 4 * vector
        tile.total.output_carry = vectors + 5 * vector + output


cdef inline void load_queries(Tile *tile, const Worker *worker, const Strategy *strategy,
                              const KeyHead *head) noexcept nogil:
    """Load the tile's queries."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Plan *plan = worker.call.plan
    cdef const char *rows[CATTN_MAX_LANES]
    cdef char *scratch = worker.workspace + plan.row_at
    cdef Py_ssize_t row, count = problem.head_size
    for row in range(tile.arrays.rows):
        rows[row] = row_of(&problem.query, head.query, tile, row)
        if not strategy.query_in_place:
            gather_row(scratch + row * count * plan.itemsize, tile.kernels.type, &problem.query, rows[row], count,
                       plan.table)
            rows[row] = scratch + row * count * plan.itemsize
    tile.kernels.load(tile.arrays.queries, &tile.arrays, rows, count)


cdef inline void open_tile(Tile *tile, const Worker *worker, const Task *task, const KeyHead *head,
                           Py_ssize_t number) noexcept nogil:
    """Tile number `number` of the task: its rows, their intervals and queries."""
    cdef const cattn_kernels *kernels = task.strategy.kernels
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t first_row = task.first_row + number * kernels.lanes
    tile.kernels = kernels
    tile.arrays.layout = kernels.layout
    tile.arrays.rows = min(kernels.lanes, task.first_row + task.rows - first_row)
    tile.arrays.lanes = tile.arrays.rows if kernels.layout == CATTN_FEW else kernels.lanes
    tile.half = kernels.half
    place_arrays(tile, worker, task, number)
    find_rows(tile, plan, head, first_row)
    find_intervals(tile, worker.call.problem, head, task.key_start, task.key_stop)
    load_queries(tile, worker, task.strategy, head)


cdef inline void reset_softmax(Tile *tile, const Worker *worker, const KeyHead *head, bint with_sinks) noexcept nogil:
    """Nothing attended yet: the sink alone is in the sum, and it is the maximum."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef double sinks[CATTN_MAX_LANES]
    cdef bint given = with_sinks and problem.sinks.data != NULL
    cdef Py_ssize_t row, half
    for half in range(CATTN_HALVES):
        tile.is_new[half] = True
    for row in range(tile.arrays.rows if given else 0):
        sinks[row] = -INFINITY
        if tile.index[row] < head.query_limit:
            sinks[row] = (<const double *>(problem.sinks.data
                                           + (head.first_head + tile.head[row]) * problem.sinks.head))[0]
    tile.kernels.reset(&tile.arrays.softmax, &tile.arrays, sinks if given else NULL)


cdef inline void fill_new(Tile *tile, const Worker *worker) noexcept nogil:
    """Zeros into the output of the halves that no block of keys has come to."""
    cdef Py_ssize_t half, column, item = worker.call.plan.itemsize, lanes = tile.arrays.lanes
    for half in range(CATTN_HALVES):
        if tile.is_new[half] and half * tile.half < lanes:
            if tile.kernels.layout == CATTN_FEW:
                memset(tile.arrays.softmax.output, 0, tile.arrays.rows * worker.call.problem.value_size * item)
            else:
                for column in range(worker.call.problem.value_size):
                    memset(<char *>tile.arrays.softmax.output + (column * lanes + half * tile.half) * item, 0,
                           tile.half * item)
        tile.is_new[half] = False


cdef inline void swap_total(Tile *tile) noexcept nogil:
    cdef cattn_softmax total = tile.total.softmax
    tile.total.softmax = tile.arrays.softmax
    tile.arrays.softmax = total


cdef inline void begin_total(Tile *tile, Py_ssize_t size, Py_ssize_t item) noexcept nogil:
    """The total is what the tile has attended to so far, and nothing is lost."""
    swap_total(tile)
    memset(tile.total.row_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(tile.total.lse_sum_carry, 0, CATTN_MAX_LANES * item)
    memset(tile.total.output_carry, 0, tile.arrays.lanes * size * item)


cdef inline void write_lse(Tile *tile, const Worker *worker, const KeyHead *head) noexcept nogil:
    cdef char *rows[CATTN_MAX_LANES]
    cdef Py_ssize_t row
    for row in range(tile.arrays.rows):
        rows[row] = row_of(&worker.call.problem.lse, head.lse, tile, row)
    tile.kernels.logsumexp(&tile.arrays.softmax, &tile.arrays, rows)


cdef inline bint store_rows(Tile *tile, const Worker *worker, const KeyHead *head, char *partial) noexcept nogil:
    """The output into the result, divided by the sums, or into a partial one as it is. Whether all of it is finite."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t row, size = problem.value_size, item = plan.itemsize, rows = tile.arrays.rows
    cdef bint scattered = partial == NULL and not plan.out_in_place, finite
    cdef char *destination[CATTN_MAX_LANES]
    for row in range(rows):
        if scattered:
            destination[row] = worker.workspace + plan.row_at + row * size * item
        else:
            destination[row] = (row_of(&problem.out, head.out, tile, row) if partial == NULL
                                else partial + row * size * item)
    finite = tile.kernels.store(tile.arrays.softmax.output, tile.arrays.softmax.row_sum if partial == NULL else NULL,
                                &tile.arrays, destination, size)
    for row in range(rows if scattered else 0):
        scatter_row(&problem.out, row_of(&problem.out, head.out, tile, row), destination[row], plan.arithmetic, size,
                    plan.table)
    return finite


cdef inline bint store_output(Tile *tile, const Worker *worker, const KeyHead *head) noexcept nogil:
    if head.lse != NULL:
        write_lse(tile, worker, head)
    return store_rows(tile, worker, head, NULL)


cdef inline bint is_empty(const void *row_sum, Py_ssize_t bytes) noexcept nogil:
    """Whether no row has attended to anything, as in the chunks before a window: all sums are 0."""
    cdef Py_ssize_t i
    for i in range(bytes):
        if (<const char *>row_sum)[i] != 0:
            return False
    return True


cdef inline void set_partial(cattn_softmax *partial, const Worker *worker, const Task *task,
                             Py_ssize_t split) noexcept nogil:
    """Point to the partial result of the task's rows and this split of their keys. One thread merges the splits of one
    task's rows before it goes on to other rows, which take their place."""
    cdef const Plan *plan = worker.call.plan
    cdef Py_ssize_t rows = rows_of_partial(entry_query_length(worker.call.problem, task.entry) * plan.group)
    cdef Py_ssize_t first = (0 if worker.call.threads == 1 else task.partial) + split * rows
    partial.row_max = worker.call.partials + first * plan.partial_row_bytes
    partial.row_sum = <char *>partial.row_max + rows * plan.itemsize
    partial.lse_sum = <char *>partial.row_sum + rows * plan.itemsize
    partial.output = <char *>partial.lse_sum + rows * plan.itemsize


cdef inline bint store_partial(Tile *tile, const Worker *worker, const Task *task) noexcept nogil:
    """Of few rows, the softmax as it stands: the output is divided by nothing. Whether all of it is finite."""
    cdef Py_ssize_t bytes = tile.arrays.rows * worker.call.plan.itemsize
    cdef cattn_softmax *softmax = &tile.arrays.softmax
    cdef cattn_softmax partial
    set_partial(&partial, worker, task, task.key_start // task.strategy.chunk)
    memcpy(partial.row_max, softmax.row_max, bytes)
    memcpy(partial.row_sum, softmax.row_sum, bytes)
    memcpy(partial.lse_sum, softmax.lse_sum, bytes)
    if is_empty(softmax.row_sum, bytes):
        return True
    return store_rows(tile, worker, NULL, <char *>partial.output)
