# The keys and values of a head, block by block: where the next block lies, what it must become for the kernels, and
# what is asked for before it is needed.

from convert cimport item_size
from plan cimport find_task, Plan, Storage, Strategy, Task, Tile
from problem cimport cattn_array, cattn_problem
from tile cimport first_row, KeyHead, row_of
from tiles.tiles cimport (
    CATTN_MAX_LANES, CATTN_PREFETCH, CATTN_PREFETCH_L2, CATTN_PREFETCH_WRITE, cattn_key_block, cattn_prefetch)
from worker cimport Call, stopped, Worker


cdef struct Block:
    Py_ssize_t start, stop           # its keys
    Py_ssize_t next_start, end       # where the next one begins, and the last one ends
    cattn_key_block keys, values


cdef inline void prepare(cattn_key_block *rows, const Storage *storage, const Worker *worker, const cattn_array *array,
                         const char *first, char *scratch) noexcept nogil:
    """`rows`, whose count and size are set and which begin at `first`, as the kernels read them."""
    rows.type = storage.type
    rows.prefetch = NULL
    if storage.prepare == NULL:
        rows.rows = first
        rows.stride = array.row
    else:
        storage.prepare(scratch, storage.type, array, first, rows.count, rows.size, worker.call.plan.table)
        rows.rows = scratch
        rows.stride = rows.size * item_size(storage.type)   # of pairs, what one key takes


cdef inline void prepare_keys(cattn_key_block *rows, const Worker *worker, const Strategy *strategy,
                              const KeyHead *head, Py_ssize_t low) noexcept nogil:
    """Prepare keys low, low + 1, ..."""
    cdef const cattn_array *array = &worker.call.problem.key
    prepare(rows, &strategy.key, worker, array, head.key + low * array.row,
            worker.workspace + worker.call.plan.key_at)


cdef inline void prepare_values(cattn_key_block *rows, const Worker *worker, const Strategy *strategy,
                                const KeyHead *head, Py_ssize_t low) noexcept nogil:
    """Prepare values low, low + 1, ..."""
    cdef const cattn_array *array = &worker.call.problem.value
    prepare(rows, &strategy.value, worker, array, head.value + low * array.row,
            worker.workspace + worker.call.plan.value_at)


cdef inline void set_rows(cattn_key_block *rows, const cattn_key_block *block, Py_ssize_t first, Py_ssize_t count,
                          cattn_prefetch *prefetch) noexcept nogil:
    """Rows first, first + 1, ... of a block."""
    rows[0] = block[0]
    rows.rows += first * block.stride
    rows.count = count
    rows.prefetch = prefetch


cdef inline void begin_blocks(Block *block, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    block.next_start = start
    block.end = end


cdef inline bint next_block(Block *block, const Worker *worker, const Strategy *strategy, const KeyHead *head,
                            Py_ssize_t rows) noexcept nogil:
    """The next block of keys, for so many rows; False behind the last one, or if the caller wants no more."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef Py_ssize_t count
    block.start = block.next_start
    block.next_start += strategy.key_block
    block.stop = min(block.next_start, block.end)
    count = block.stop - block.start
    if count <= 0 or stopped(worker, rows * count * (problem.head_size + problem.value_size)):
        return False
    block.keys.count = block.values.count = count
    block.keys.size = problem.head_size
    block.values.size = problem.value_size
    prepare_keys(&block.keys, worker, strategy, head, block.start)
    if head.value != NULL:
        prepare_values(&block.values, worker, strategy, head, block.start)
    return True


# Memory that is asked for before it is needed: rows that lie far apart; and, where the processor does not foresee them,
# those that come from beyond L2. A problem whose keys and values all stay there is small: to ask for anything
# would cost more than it brings.


# What comes before and after the tiles and blocks of a task.
cdef struct Prefetch:
    const Task *task
    const Task *previous             # of the same worker, probably; NULL: there is none, or nothing is asked for
    const Task *next
    Py_ssize_t end                   # of the task's keys
    Task previous_task, next_task
    cattn_prefetch rows              # of a bias or a mask, for the kernels to ask for
    const void *row[CATTN_MAX_LANES]


cdef inline void open_prefetch(Prefetch *prefetch, const Worker *worker, const Task *task,
                               Py_ssize_t end) noexcept nogil:
    cdef const Call *call = worker.call
    prefetch.task = task
    prefetch.previous = prefetch.next = NULL
    prefetch.end = end
    if task.strategy.prefetches:
        prefetch.previous = find_task(&prefetch.previous_task, call.plan, call.problem, call.starts,
                                      task.number - call.threads)
        prefetch.next = find_task(&prefetch.next_task, call.plan, call.problem, call.starts, task.number + call.threads)


cdef inline void prefetch_queries(const Prefetch *prefetch, const Worker *worker, Py_ssize_t first,
                                  Py_ssize_t count) noexcept nogil:
    """Rows first, first + 1, ... of the task that comes next: each is read once, from far away, and never foreseen."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef const Plan *plan = worker.call.plan
    cdef const Task *task = prefetch.next
    cdef const char *queries = first_row(problem, &problem.query, task.entry, task.key_head * plan.group,
                                         problem.query_indptr)
    cdef Py_ssize_t row, line
    for row in range(task.first_row + first, task.first_row + min(first + count, task.rows)):
        for line in range((problem.head_size * plan.itemsize + 63) // 64):
            CATTN_PREFETCH(queries + row % plan.group * problem.query.head + row // plan.group * problem.query.row
                           + line * 64)


cdef inline void prefetch_out(const Worker *worker, const KeyHead *head, const Tile *tile) noexcept nogil:
    """The rows that a tile is going to be stored to."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef Py_ssize_t row, line
    for row in range(tile.arrays.rows):
        for line in range((problem.value_size * worker.call.plan.itemsize + 63) // 64):
            CATTN_PREFETCH_WRITE(row_of(&problem.out, head.out, tile, row) + line * 64)


cdef inline bint same_keys(const Task *one, const Task *other) noexcept nogil:
    return one.key_head == other.key_head and one.entry == other.entry


cdef inline void prefetch_share(const cattn_array *array, const char *first, Py_ssize_t low, Py_ssize_t count,
                                Py_ssize_t share, Py_ssize_t shares, Py_ssize_t size) noexcept nogil:
    """One of so many shares of rows low, low + 1, ..., into L2."""
    cdef Py_ssize_t row, line, bytes = size * item_size(array.type)
    for row in range(low + count * share // shares, low + count * (share + 1) // shares):
        for line in range((bytes + 63) // 64):
            CATTN_PREFETCH_L2(first + row * array.row + line * 64)


cdef inline void prefetch_block(const Prefetch *prefetch, const Worker *worker, const KeyHead *head, Py_ssize_t low,
                                Py_ssize_t share, Py_ssize_t shares) noexcept nogil:
    """A share of the block of keys and values that comes next, from row `low` on: behind the last one, of the next
    task's first block."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef const char *keys = head.key
    cdef const char *values = head.value
    cdef Py_ssize_t end = prefetch.end, count
    if low < end:
        if worker.call.plan.head_fits_l2 and prefetch.previous != NULL and same_keys(prefetch.previous, prefetch.task):
            return
    elif prefetch.next != NULL and not same_keys(prefetch.task, prefetch.next):
        keys = first_row(problem, &problem.key, prefetch.next.entry, prefetch.next.key_head, problem.key_indptr)
        values = first_row(problem, &problem.value, prefetch.next.entry, prefetch.next.key_head, problem.key_indptr)
        low = 0
        end = prefetch.next.key_stop
    else:
        return
    count = min(prefetch.task.strategy.key_block, end - low)
    prefetch_share(&problem.key, keys, low, count, share, shares, problem.head_size)
    prefetch_share(&problem.value, values, low, count, share, shares, problem.value_size)


cdef inline void prefetch_beside(Prefetch *prefetch, const Worker *worker, const KeyHead *head, const Tile *tile,
                                 const Block *block, Py_ssize_t number, Py_ssize_t tile_count) noexcept nogil:
    """What is asked for while tile number `number` goes over a block."""
    if not prefetch.task.strategy.prefetches:
        return
    if block.start <= tile.low and prefetch.next != NULL:
        prefetch_queries(prefetch, worker, number * tile.arrays.lanes, tile.arrays.lanes)
    if block.stop >= tile.high and worker.call.plan.out_in_place:
        prefetch_out(worker, head, tile)
    prefetch_block(prefetch, worker, head, block.stop, number, tile_count)


cdef inline cattn_prefetch *look_ahead(Prefetch *prefetch, const Worker *worker, const KeyHead *head, const Tile *tile,
                                       Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """What the tile that comes next reads of its bias, or else of its mask, for keys low <= j < high; NULL: nothing."""
    cdef const cattn_problem *problem = worker.call.problem
    cdef bint has_bias = problem.bias.data != NULL
    cdef const cattn_array *array = &problem.bias if has_bias else &problem.mask
    cdef const char *first = head.bias if has_bias else head.mask
    cdef Py_ssize_t row
    low = max(low, tile.low)
    high = min(high, tile.high)
    if low >= high or first == NULL or array.column != item_size(array.type):
        return NULL
    for row in range(tile.arrays.rows):
        prefetch.row[row] = row_of(array, first, tile, row)
    prefetch.rows.rows = prefetch.row
    prefetch.rows.offset = low * array.column
    prefetch.rows.bytes = (high - low) * array.column
    prefetch.rows.next = 0
    prefetch.rows.count = tile.arrays.rows
    return &prefetch.rows
