# The gradient of a bias: what each score adds to it, summed over the axes along which the bias was broadcast. The keys
# of one owner are computed by one task, which goes over entries and heads in order.

from libc.math cimport INFINITY, nextafterf
from libc.string cimport memset

from convert cimport is_half_type, item_size, scatter_row
from gradients.head cimport Head
from gradients.gradient_plan cimport (
    BIAS_NONE, BIAS_OWN, BIAS_SHARED, BIAS_SUMMED, GradientCall, GradientPlan, find_member)
from gradients.sums cimport add_exactly, exact_sum, real_at
from problem cimport CATTN_FLOAT32, CATTN_FLOAT64, CATTN_UNLIMITED, cattn_array, cattn_problem, cattn_type
from rows cimport open_rows, row_at, Rows
from score_mod cimport Region
from tile cimport Tile
from tiles.portable_float cimport FloatBits
from worker cimport MOVE_WORK, ROW_WORK, stopped, Worker

cdef enum:
    RUN = 16   # terms that are added up in one chain


cdef inline Py_ssize_t bias_numbers(const GradientCall *call) noexcept nogil:
    """Return how many sums an owner has, where they are not stored right away."""
    cdef const GradientPlan *plan = &call.plan
    return plan.bias_heads * plan.bias_rows * plan.bias_keys


cdef inline Py_ssize_t bias_item(const GradientPlan *plan) noexcept nogil:
    """Return the bytes of a sum. Those over queries or keys have many terms, and are computed in float64."""
    return plan.base.itemsize if plan.bias == BIAS_SHARED else <Py_ssize_t>sizeof(double)


cdef inline Py_ssize_t bias_line(const GradientPlan *plan, Py_ssize_t query_head, Py_ssize_t row) noexcept nogil:
    """Return the line of sums that a row of a head belongs to."""
    return (query_head if plan.bias_heads > 1 else 0) * plan.bias_rows + (row if plan.bias_rows > 1 else 0)


cdef inline bint sums_keys(const GradientCall *call) noexcept nogil:
    """Return whether the gradients of all keys are summed."""
    return call.plan.bias == BIAS_SUMMED and call.problem.bias.column == 0 and call.problem.forward.key_length > 1


cdef inline void open_owner_bias(Rows *rows, const GradientCall *call, Py_ssize_t owner) noexcept nogil:
    """Find the rows of the gradient that an owner adds up."""
    cdef Py_ssize_t entry, key_head
    find_member(&call.problem, owner, 0, &entry, &key_head)
    open_rows(rows, &call.problem.forward, &call.problem.bias, entry, key_head * call.plan.base.group, NULL)


cdef inline bint is_sparse(const GradientCall *call) noexcept nogil:
    """Return whether rows may attend to some of the keys only, so that parts of a bias are not visited. What a mask
    hides is visited."""
    cdef const cattn_problem *forward = &call.problem.forward
    return (forward.window_left != CATTN_UNLIMITED or forward.window_right != CATTN_UNLIMITED
            or forward.query_lengths.data != NULL or forward.key_lengths.data != NULL
            or forward.key_start.data != NULL or forward.key_stop.data != NULL)


cdef inline void clear_gradients(const GradientCall *call, const Worker *worker, Py_ssize_t owner, Py_ssize_t key,
                                 Py_ssize_t key_stop) noexcept nogil:
    """Set the gradients of an owner's biases for these keys to 0."""
    cdef const cattn_array *array = &call.problem.bias
    cdef Py_ssize_t line, rows = call.plan.bias_rows, item = item_size(array.type)
    cdef Rows to
    open_owner_bias(&to, call, owner)
    for line in range(call.plan.bias_heads * rows):
        if stopped(worker, ROW_WORK + MOVE_WORK * (key_stop - key)):
            return
        memset(row_at(&to, line // rows, line % rows) + key * item, 0, (key_stop - key) * item)


cdef inline void begin_bias(const GradientCall *call, const Worker *worker, Py_ssize_t owner, Py_ssize_t split,
                            Py_ssize_t split_stop, Py_ssize_t key, Py_ssize_t key_stop) noexcept nogil:
    """Set the sums of a task, which computes these splits and keys, to 0."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t item = bias_item(plan), line, at
    if plan.bias == BIAS_OWN and is_sparse(call) or plan.sums_in_place:
        clear_gradients(call, worker, owner, key, key_stop)
    if plan.bias != BIAS_SHARED and plan.bias != BIAS_SUMMED or plan.sums_in_place and not plan.has_carries:
        return
    if sums_keys(call):
        key, key_stop = split, split_stop
    for line in range(plan.bias_heads * plan.bias_rows):
        if stopped(worker, ROW_WORK + 2 * MOVE_WORK * (key_stop - key)):
            return
        at = (owner * bias_numbers(call) + line * plan.bias_keys + key) * item
        if not plan.sums_in_place:
            memset(call.bias_totals + at, 0, (key_stop - key) * item)
        if plan.has_carries:
            memset(call.bias_carries + at, 0, (key_stop - key) * item)


cdef inline void sum_rows(double *totals, double *carries, const char *gradients, Py_ssize_t rows, Py_ssize_t keys,
                          Py_ssize_t lanes, bint is_float) noexcept nogil:
    """Add the gradients of all rows to the sums of each key."""
    cdef Py_ssize_t key, row, first
    cdef double run
    for key in range(keys):
        first = 0
        while first < rows:
            run = 0
            for row in range(first, min(rows, first + RUN)):
                run += real_at(gradients, row * lanes + key, is_float)
            add_exactly(&totals[key], &carries[key], run)
            first += RUN


cdef inline void sum_keys(double *total, double *carry, const char *gradients, Py_ssize_t first, Py_ssize_t keys,
                          bint is_float) noexcept nogil:
    """Add the gradients of one row, numbers first, first + 1, ... to a sum."""
    cdef Py_ssize_t key, start = 0
    cdef double run
    while start < keys:
        run = 0
        for key in range(start, min(keys, start + RUN)):
            run += real_at(gradients, first + key, is_float)
        add_exactly(total, carry, run)
        start += RUN


cdef inline float round_to_odd(double x) noexcept nogil:
    """Return x as a float whose last bit is 1 if x lies between two floats. Rounded to a half type, it gives what x
    itself would (Boldo and Melquiond 2008)."""
    cdef FloatBits near
    near.value = <float>x
    if near.value != x and near.bits & 1 == 0:
        near.value = nextafterf(near.value, -INFINITY if near.value > x else INFINITY)
    return near.value


cdef inline void store_numbers(const cattn_array *array, char *to, const char *source, cattn_type type,
                               Py_ssize_t count, const GradientPlan *plan) noexcept nogil:
    """Store contiguous numbers of float32 or float64 in an array, each rounded once."""
    cdef float rounded
    cdef Py_ssize_t i
    if type != CATTN_FLOAT64 or not is_half_type(array.type):
        scatter_row(array, to, source, type, count, plan.base.table)
        return
    for i in range(count):
        rounded = round_to_odd((<const double *>source)[i])
        scatter_row(array, to + i * array.column, <const char *>&rounded, CATTN_FLOAT32, 1, plan.base.table)


cdef inline char *carries_of(const Head *head, Py_ssize_t owner, Py_ssize_t query_head, Py_ssize_t row) noexcept nogil:
    """Return where the carries of a row's sums lie, from key 0 on."""
    cdef const GradientPlan *plan = head.plan
    return head.call.bias_carries + (owner * bias_numbers(head.call) + bias_line(plan, query_head, row)
                                     * plan.bias_keys) * bias_item(plan)


cdef inline void add_bias_gradients(const Head *head, Py_ssize_t owner, Py_ssize_t split, const Tile *tile,
                                    const Region *region, const char *gradients) noexcept nogil:
    """Add the gradients of a region's scores to those of the bias, or store them."""
    cdef const GradientCall *call = head.call
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t lanes = plan.kernels.lanes, item = plan.base.itemsize, keys = region.high - region.low, row, at
    cdef Py_ssize_t first = owner * bias_numbers(call)
    cdef Py_ssize_t index = tile.index[region.first], query_head = tile.head[region.first]
    cdef double *totals = <double *>call.bias_totals + first
    cdef double *carries = <double *>call.bias_carries + first
    cdef char *to
    if plan.bias == BIAS_SUMMED and plan.bias_rows == 1 and not sums_keys(call):
        at = bias_line(plan, query_head, 0) * plan.bias_keys + region.low
        sum_rows(totals + at, carries + at, gradients, region.rows, keys, lanes, head.is_float)
        return
    for row in range(region.rows):
        at = bias_line(plan, query_head, index + row) * plan.bias_keys
        to = row_at(&head.grad_bias, query_head, index + row) + region.low * head.grad_bias.array.column
        if plan.bias == BIAS_OWN:
            store_numbers(head.grad_bias.array, to, gradients + row * lanes * item, plan.base.arithmetic, keys, plan)
        elif plan.bias == BIAS_SHARED:
            at = (first + at + region.low) * item
            plan.kernels.join(to if plan.sums_in_place else call.bias_totals + at,
                              call.bias_carries + at if plan.has_carries else NULL, gradients + row * lanes * item,
                              keys)
        else:
            sum_keys(totals + at + split, carries + at + split, gradients, row * lanes, keys, head.is_float)


cdef inline void finish_bias(const GradientCall *call, const Worker *worker, Py_ssize_t owner, Py_ssize_t key,
                             Py_ssize_t key_stop) noexcept nogil:
    """Store the sums of a task for these keys. Sums over keys wait for the other tasks."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t line, at, j
    cdef Rows rows
    cdef double sum
    cdef char *to
    if plan.bias != BIAS_SHARED and plan.bias != BIAS_SUMMED or plan.sums_in_place or sums_keys(call):
        return
    open_owner_bias(&rows, call, owner)
    for line in range(plan.bias_heads * plan.bias_rows):
        if stopped(worker, ROW_WORK + 2 * MOVE_WORK * (key_stop - key)):
            return
        to = row_at(&rows, line // plan.bias_rows, line % plan.bias_rows)
        at = owner * bias_numbers(call) + line * plan.bias_keys
        if plan.bias == BIAS_SHARED:
            store_numbers(rows.array, to + key * rows.array.column,
                          call.bias_totals + (at + key) * plan.base.itemsize, plan.base.arithmetic, key_stop - key,
                          plan)
            continue
        for j in range(key, key_stop):
            sum = exact_sum((<const double *>call.bias_totals)[at + j], (<const double *>call.bias_carries)[at + j])
            store_numbers(rows.array, to + j * rows.array.column, <const char *>&sum, CATTN_FLOAT64, 1, plan)


cdef inline void finish_sums_over_keys(const GradientCall *call, const Worker *worker) noexcept nogil:
    """Join the sums of all splits of the keys, from left to right, and store them."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t owner, line, at, split
    cdef double total, carry
    cdef Rows rows
    for owner in range(plan.owners if plan.bias != BIAS_NONE and sums_keys(call) else 0):
        open_owner_bias(&rows, call, owner)
        for line in range(plan.bias_heads * plan.bias_rows):
            if stopped(worker, ROW_WORK + 2 * MOVE_WORK * plan.splits):
                return
            at = owner * bias_numbers(call) + line * plan.bias_keys
            total = carry = 0
            for split in range(plan.splits):
                add_exactly(&total, &carry, exact_sum((<const double *>call.bias_totals)[at + split],
                                                      (<const double *>call.bias_carries)[at + split]))
            total = exact_sum(total, carry)
            store_numbers(rows.array, row_at(&rows, line // plan.bias_rows, line % plan.bias_rows),
                          <const char *>&total, CATTN_FLOAT64, 1, plan)
