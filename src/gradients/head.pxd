# One key head of one batch entry, and the query heads that share it: the rows of all arrays, and what is known of each
# row before any key comes: its lse, Δ = Σ dO·out - dlse, and whether it holds anything that is not finite.

from libc.math cimport exp, INFINITY, isfinite
from libc.string cimport memcpy, memset

from convert cimport gather_row
from gradients.gradient_plan cimport GradientCall, GradientPlan
from gradients.gradient_problem cimport GradientProblem
from gradients.sums cimport add_exactly, exact_sum, real_at, set_real
from non_finite cimport are_finite
from problem cimport CATTN_FLOAT32, CATTN_FLOAT64, cattn_problem
from rows cimport open_rows, read_block, row_at, Rows, Storage
from tile cimport find_intervals, HeadGroup, open_heads, Tile
from tiles.tiles cimport CATTN_MAX_LANES, cattn_key_block
from worker cimport MOVE_WORK, ROW_WORK, stopped, Worker

cdef enum:
    # A block of rows is marked with these if its queries, or the gradients of its outputs, are not all finite.
    WILD_QUERY = 1
    WILD_GRAD_OUT = 2


cdef struct Head:
    const Worker *worker
    const GradientCall *call
    const GradientProblem *problem
    const GradientPlan *plan
    bint is_float                # the arithmetic type
    Py_ssize_t entry, key_head
    HeadGroup heads
    Rows grad_out, grad_lse, grad_query, grad_key, grad_value, grad_bias
    Py_ssize_t row_limit         # rows of each query head that exist
    char *lse                    # of all rows, head by head
    char *delta
    unsigned char *wild          # of all blocks of rows


cdef inline char *buffer(const Head *head, Py_ssize_t at) noexcept nogil:
    """Return the address of a buffer of the plan in the memory of the worker."""
    return head.worker.memory + at


cdef inline Py_ssize_t rows_of_block(const Head *head, Py_ssize_t block) noexcept nogil:
    """Return how many rows a block of a query head has, of those that exist."""
    return max(<Py_ssize_t>0, min(head.plan.rows, head.row_limit - block * head.plan.rows))


cdef inline void read_head_rows(cattn_key_block *block, const Head *head, const Rows *rows, const Storage *storage,
                                Py_ssize_t query_head, Py_ssize_t first, Py_ssize_t count, Py_ssize_t size,
                                Py_ssize_t room) noexcept nogil:
    """Read rows first, first + 1, ... of a query head, of `size` numbers each, as the kernels take them."""
    cdef Rows of_head = rows[0]
    of_head.first = row_at(rows, query_head, 0)
    block.count = count
    block.size = size
    read_block(block, &of_head, storage, first, buffer(head, room), head.plan.base.table)


cdef inline void open_row_block(Tile *tile, const Head *head, Py_ssize_t query_head, Py_ssize_t block) noexcept nogil:
    """Take the rows of a block of queries for a tile, and find the keys that they may attend to."""
    cdef Py_ssize_t row, first = block * head.plan.rows
    tile.kernels = head.plan.kernels
    tile.half = CATTN_MAX_LANES
    tile.arrays.rows = tile.arrays.lanes = rows_of_block(head, block)
    for row in range(tile.arrays.rows):
        tile.head[row] = query_head
        tile.index[row] = first + row
        tile.position[row] = <double>(head.heads.offset + first + row)
    if tile.arrays.rows > 0:
        find_intervals(tile, &head.problem.forward, &head.heads, 0, head.problem.forward.key_length)


cdef inline bint attends(const Head *head, const Tile *tile, Py_ssize_t row) noexcept nogil:
    """Return whether a row attends to any key, as far as intervals, mask and bias say."""
    cdef const Rows *mask = &head.heads.mask
    cdef const Rows *bias = &head.heads.bias
    cdef Py_ssize_t query_head = tile.head[row], index = tile.index[row], j
    cdef double added
    for j in range(tile.start[row], tile.stop[row]):
        if stopped(head.worker, 2 * MOVE_WORK):   # a row of NaN that is masked throughout sees all keys here
            return False
        if mask.first != NULL and row_at(mask, query_head, index)[j * mask.array.column] == 0:
            continue
        if bias.first != NULL:
            gather_row(<char *>&added, CATTN_FLOAT64, bias.array,
                       row_at(bias, query_head, index) + j * bias.array.column, 1, head.plan.base.table)
            if added == -INFINITY:
                continue
        return True
    return False


cdef inline double grad_lse_of(const Head *head, Py_ssize_t query_head, Py_ssize_t index) noexcept nogil:
    """Return the gradient of a row's lse."""
    return 0 if head.grad_lse.first == NULL else real_at(row_at(&head.grad_lse, query_head, index), 0, head.is_float)


cdef inline void find_wild_rows(Head *head, Py_ssize_t number, const cattn_key_block *rows, const char *dots,
                                unsigned char mark) noexcept nogil:
    """Mark a block of rows that holds anything not finite. If a product of a row with anything is finite, the row is
    finite."""
    cdef Py_ssize_t row
    for row in range(rows.count):
        if not (isfinite(real_at(dots, row, head.is_float))
                or are_finite(rows.data + row * rows.stride, rows.size, head.plan.base.arithmetic)):
            head.wild[number] |= mark


cdef inline void find_deltas(Head *head, Py_ssize_t query_head, Py_ssize_t block) noexcept nogil:
    """Find what is known of the rows of a block before any key comes."""
    cdef const cattn_problem *forward = &head.problem.forward
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t first = block * plan.rows, rows = rows_of_block(head, block), item = plan.base.itemsize, row
    cdef Py_ssize_t at = query_head * forward.query_length + first, number = query_head * plan.row_blocks + block
    cdef char *delta = head.delta + at * item
    cdef cattn_key_block query, grad_out, out
    cdef double dot
    cdef Tile tile
    head.wild[number] = 0
    if rows == 0:
        return
    read_head_rows(&query, head, &head.heads.query, &plan.query, query_head, first, rows, forward.head_size,
                   plan.query_rows)
    plan.kernels.dots(buffer(head, plan.dots), &query, &query)
    find_wild_rows(head, number, &query, buffer(head, plan.dots), WILD_QUERY)
    memset(delta, 0, rows * item)
    if forward.value_size > 0:
        read_head_rows(&grad_out, head, &head.grad_out, &plan.grad_out, query_head, first, rows, forward.value_size,
                       plan.grad_out_rows)
        read_head_rows(&out, head, &head.heads.out, &plan.out, query_head, first, rows, forward.value_size,
                       plan.clean_grad_out)
        plan.kernels.dots(delta, &grad_out, &out)
        find_wild_rows(head, number, &grad_out, delta, WILD_GRAD_OUT)
    open_row_block(&tile, head, query_head, block)
    for row in range(rows):
        memcpy(head.lse + (at + row) * item, row_at(&head.heads.lse, query_head, first + row), item)
        dot = real_at(delta, row, head.is_float)
        if not isfinite(dot) and not attends(head, &tile, row):
            dot = 0   # the output of such a row is 0, whatever its gradient
        set_real(delta, row, head.is_float, dot - grad_lse_of(head, query_head, first + row))


cdef inline void store_sink_gradients(const Head *head) noexcept nogil:
    """Store the gradients of the sinks of this entry's heads: -Σ p_sink·Δ over their rows."""
    cdef const cattn_problem *forward = &head.problem.forward
    cdef Py_ssize_t query_head, row, at
    cdef double sink, total, carry
    for query_head in range(head.plan.base.group):
        sink = (<const double *>(forward.sinks.data + (head.heads.first_head + query_head) * forward.sinks.head))[0]
        total = carry = 0
        for row in range(head.row_limit if sink != -INFINITY else 0):
            if stopped(head.worker, ROW_WORK):
                return
            at = query_head * forward.query_length + row
            add_exactly(&total, &carry, -exp(sink - real_at(head.lse, at, head.is_float))
                        * real_at(head.delta, at, head.is_float))
        head.problem.sinks[head.entry * forward.query_heads + head.heads.first_head + query_head] = exact_sum(
            total, carry)


cdef inline void open_head(Head *head, const Worker *worker, const GradientCall *call, Py_ssize_t entry,
                           Py_ssize_t key_head) noexcept nogil:
    """Find the rows of a head in all arrays."""
    cdef const GradientProblem *problem = &call.problem
    cdef const cattn_problem *forward = &problem.forward
    cdef Py_ssize_t first = key_head * call.plan.base.group
    head.worker = worker
    head.call = call
    head.problem = problem
    head.plan = &call.plan
    head.is_float = call.plan.base.arithmetic == CATTN_FLOAT32
    head.entry = entry
    head.key_head = key_head
    open_heads(&head.heads, forward, call.plan.base.group, entry, key_head)
    open_rows(&head.grad_out, forward, &problem.grad_out, entry, first, NULL)
    open_rows(&head.grad_lse, forward, &problem.grad_lse, entry, first, NULL)
    open_rows(&head.grad_query, forward, &problem.query, entry, first, NULL)
    open_rows(&head.grad_key, forward, &problem.key, entry, key_head, NULL)
    open_rows(&head.grad_value, forward, &problem.value, entry, key_head, NULL)
    open_rows(&head.grad_bias, forward, &problem.bias, entry, first, NULL)
    head.row_limit = min(head.heads.query_limit, forward.query_length)
    head.lse = buffer(head, call.plan.lse)
    head.delta = buffer(head, call.plan.delta)
    head.wild = <unsigned char *>buffer(head, call.plan.wild)


cdef inline bint open_head_rows(Head *head) noexcept nogil:
    """Find what is known of a head's rows before any key comes. Return whether to go on."""
    cdef Py_ssize_t numbers = head.problem.forward.head_size + 2 * head.problem.forward.value_size, query_head, block
    for query_head in range(head.plan.base.group):
        for block in range(head.plan.row_blocks):
            if stopped(head.worker, MOVE_WORK * head.plan.rows * numbers):
                return False
            find_deltas(head, query_head, block)
    return True
