# This file asks for memory before it is needed: for rows that lie far apart, and, where the processor does not foresee
# them, for those that come from beyond L2. If all keys and values stay in L2, the problem is small, and asking for
# anything would cost more than it brings.

from convert cimport item_size
from problem cimport cattn_problem
from rows cimport open_keys, open_rows, prefetch_row, prefetch_row_to_write, prefetch_rows, row_at, Rows
from schedule cimport find_task, Task
from tile cimport HeadGroup, Tile, tile_row
from tiles.tiles cimport CATTN_MAX_LANES, cattn_prefetch
from worker cimport Call, Worker


# What comes before and after the tiles and blocks of a task.
cdef struct Prefetch:
    const Worker *worker
    const Task *task
    const HeadGroup *heads
    const Task *previous             # of the same worker, probably; NULL: there is none, or nothing is asked for
    const Task *next
    Py_ssize_t end                   # of the task's keys
    Task previous_task, next_task
    cattn_prefetch ahead             # rows of a bias or a mask, for the kernels to ask for
    const void *row[CATTN_MAX_LANES]


cdef inline void open_prefetch(Prefetch *prefetch, const Worker *worker, const Task *task, const HeadGroup *heads,
                               Py_ssize_t end) noexcept nogil:
    """Find out which tasks come before and after this one, if anything will be asked for."""
    cdef const Call *call = worker.call
    prefetch.worker = worker
    prefetch.task = task
    prefetch.heads = heads
    prefetch.previous = prefetch.next = NULL
    prefetch.end = end
    if task.strategy.prefetches:
        prefetch.previous = find_task(&prefetch.previous_task, call.schedule, call.plan, call.problem, call.starts,
                                      task.number - call.threads)
        prefetch.next = find_task(&prefetch.next_task, call.schedule, call.plan, call.problem, call.starts,
                                  task.number + call.threads)


cdef inline void prefetch_queries(const Prefetch *prefetch, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Ask for rows first, first + 1, ... of the task that comes next. Each is read once, from far away, and never
    foreseen."""
    cdef const cattn_problem *problem = prefetch.worker.call.problem
    cdef const Task *task = prefetch.next
    cdef Py_ssize_t row, group = prefetch.worker.call.plan.group
    cdef Rows queries
    open_rows(&queries, problem, &problem.query, task.entry, task.key_head * group, problem.query_indptr)
    for row in range(task.first_row + first, task.first_row + min(first + count, task.rows)):
        prefetch_row(row_at(&queries, row % group, row // group),
                     problem.head_size * prefetch.worker.call.plan.itemsize)


cdef inline void prefetch_out(const Prefetch *prefetch, const Tile *tile) noexcept nogil:
    """Ask for the rows that a tile is going to be stored to."""
    cdef Py_ssize_t row, bytes = prefetch.worker.call.problem.value_size * prefetch.worker.call.plan.itemsize
    for row in range(tile.arrays.rows):
        prefetch_row_to_write(tile_row(&prefetch.heads.out, tile, row), bytes)


cdef inline bint same_keys(const Task *one, const Task *other) noexcept nogil:
    """Return whether two tasks read the same keys."""
    return one.key_head == other.key_head and one.entry == other.entry and one.key_start == other.key_start


cdef inline void prefetch_block(const Prefetch *prefetch, Py_ssize_t low, Py_ssize_t share,
                                Py_ssize_t shares) noexcept nogil:
    """Ask for a share of the block of keys and values that comes next, from key `low` on. Behind the last block of a
    task, that is the first one of the next task."""
    cdef const cattn_problem *problem = prefetch.worker.call.problem
    cdef const Task *next_task = prefetch.next
    cdef Rows keys = prefetch.heads.key, values = prefetch.heads.value
    cdef Py_ssize_t end = prefetch.end, count, high
    if low < end:
        if (prefetch.worker.call.plan.head_fits_l2 and prefetch.previous != NULL
                and same_keys(prefetch.previous, prefetch.task)):
            return
    elif next_task != NULL and not same_keys(prefetch.task, next_task):
        open_keys(&keys, problem, &problem.key, next_task.entry, next_task.key_head)
        open_keys(&values, problem, &problem.value, next_task.entry, next_task.key_head)
        low = next_task.key_start
        end = next_task.key_stop
    else:
        return
    count = min(prefetch.task.strategy.key_block, end - low)
    high = low + count * (share + 1) // shares
    low += count * share // shares
    prefetch_rows(&keys, low, high, problem.head_size)
    prefetch_rows(&values, low, high, problem.value_size)


cdef inline void prefetch_beside(const Prefetch *prefetch, const Tile *tile, Py_ssize_t start, Py_ssize_t stop,
                                 Py_ssize_t number, Py_ssize_t tile_count) noexcept nogil:
    """Ask for what is needed next while tile number `number` goes over the block of keys [start, stop)."""
    if not prefetch.task.strategy.prefetches:
        return
    if start <= tile.low and prefetch.next != NULL:
        prefetch_queries(prefetch, number * tile.arrays.lanes, tile.arrays.lanes)
    if stop >= tile.high and prefetch.worker.call.plan.out_in_place:
        prefetch_out(prefetch, tile)
    prefetch_block(prefetch, stop, number, tile_count)


cdef inline cattn_prefetch *look_ahead(Prefetch *prefetch, const Tile *tile, Py_ssize_t low,
                                       Py_ssize_t high) noexcept nogil:
    """Return what the tile that comes next reads of its bias, or else of its mask, for keys low <= j < high. NULL means
    that it reads nothing, or nothing that can be asked for by rows."""
    cdef const Rows *beside = &prefetch.heads.bias if prefetch.heads.bias.first != NULL else &prefetch.heads.mask
    cdef Py_ssize_t row
    low = max(low, tile.low)
    high = min(high, tile.high)
    if low >= high or beside.first == NULL or beside.array.column != item_size(beside.array.type):
        return NULL
    for row in range(tile.arrays.rows):
        prefetch.row[row] = tile_row(beside, tile, row)
    prefetch.ahead.starts = prefetch.row
    prefetch.ahead.offset = low * beside.array.column
    prefetch.ahead.bytes = (high - low) * beside.array.column
    prefetch.ahead.next = 0
    prefetch.ahead.count = tile.arrays.rows
    return &prefetch.ahead
