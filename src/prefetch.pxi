# Memory that is asked for before it is needed: rows that lie far apart; and, where the processor does not foresee them, those
# that come from beyond L2. A problem whose keys and values all stay there is small: to ask for anything took 9% of its time.


cdef inline void prefetch(const void *row, Py_ssize_t bytes) noexcept nogil:
    cdef Py_ssize_t line
    for line in range((bytes + 63) // 64):
        CATTN_PREFETCH(<const char *>row + line * 64)


cdef void look_ahead(cattn_ahead *ahead, const void **rows, const cattn_problem *problem, const Plan *plan,
                     const Entry *entry, const Tile *tile, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """What the tile that comes next reads of its bias, or else of its mask, for the keys low <= j < high."""
    cdef bint has_bias = problem.bias.data != NULL
    cdef const cattn_array *array = &problem.bias if has_bias else &problem.mask
    cdef const char *first = entry.bias if has_bias else entry.mask
    cdef Py_ssize_t row
    ahead.next = ahead.count = 0
    low = max(low, tile.low)
    high = min(high, tile.high)
    if low >= high or array.data == NULL or not (plan.bias_in_place if has_bias else plan.mask_in_place):
        return
    for row in range(tile.rows):
        rows[row] = array_row(array, first, tile, row)
    ahead.rows = rows
    ahead.offset = low * array.column
    ahead.bytes = (high - low) * array.column
    ahead.count = tile.rows


cdef void prefetch_queries(const cattn_problem *problem, const Plan *plan, const Task *task, Py_ssize_t first,
                           Py_ssize_t count) noexcept nogil:
    """Rows first, first + 1, ... of a task that comes next: each is read once, from far away, and never foreseen."""
    cdef const char *queries = entry_data(problem, &problem.query, task.entry, task.key_head * plan.group,
                                          problem.query_indptr)
    cdef Py_ssize_t row
    for row in range(task.first_row + first, task.first_row + min(first + count, task.rows)):
        prefetch(queries + row % plan.group * problem.query.head + row // plan.group * problem.query.row,
                 problem.head_size * plan.tiles.item)


cdef void prefetch_out(const cattn_problem *problem, const Plan *plan, const Entry *entry, const Tile *tile) noexcept nogil:
    """The rows that a tile is going to be stored to."""
    cdef Py_ssize_t row, line
    for row in range(tile.rows):
        for line in range((problem.value_size * plan.tiles.item + 63) // 64):
            CATTN_PREFETCH_WRITE(out_row(tile, row, problem, entry) + line * 64)


cdef void prefetch_to_l2(const cattn_array *array, const char *first, Py_ssize_t low, Py_ssize_t high,
                         Py_ssize_t bytes) noexcept nogil:
    cdef Py_ssize_t row, line
    for row in range(low, high):
        for line in range((bytes + 63) // 64):
            CATTN_PREFETCH_L2(first + row * array.row + line * 64)


cdef inline bint same_keys(const Task *one, const Task *other) noexcept nogil:
    return one.key_head == other.key_head and one.entry == other.entry


cdef void prefetch_block(const cattn_problem *problem, const Plan *plan, const cattn_array *array, const char *rows,
                         Py_ssize_t size, const Task *previous, const Task *task, const Task *next_task, Py_ssize_t low,
                         Py_ssize_t high, Py_ssize_t share, Py_ssize_t shares) noexcept nogil:
    """A share of the block of keys or values that comes next, from row `low` on: behind the last one, of the next
    task's first block."""
    cdef Py_ssize_t count
    if not plan.asks_ahead:
        return
    if low < high:
        if plan.head_stays and previous != NULL and same_keys(previous, task):
            return
    elif next_task != NULL and not same_keys(task, next_task):
        rows = entry_data(problem, array, next_task.entry, next_task.key_head, problem.key_indptr)
        low = 0
        high = next_task.last_key
    else:
        return
    count = min(plan.key_block, high - low)
    prefetch_to_l2(array, rows, low + count * share // shares, low + count * (share + 1) // shares, size * item_size(array.type))
