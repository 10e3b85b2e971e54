# A block of keys: they are packed into lanes, as `scores` takes queries, and the gradients of keys and values are added
# up there over all rows.

from libc.math cimport isfinite
from libc.string cimport memcpy, memset

from convert cimport in_place, scatter_row
from gradients.head cimport buffer, Head
from gradients.gradient_plan cimport GradientPlan, MOST_TILES, PLAIN_CHUNKS
from gradients.sums cimport real_at, scale_reals
from non_finite cimport are_finite, non_finite
from problem cimport cattn_problem
from rows cimport read_block, row_at, Rows
from tiles.tiles cimport CATTN_MANY, CATTN_MAX_LANES, cattn_key_block, cattn_row_tile


cdef struct KeyBlock:
    Py_ssize_t start, stop           # keys that exist; those behind them get gradients of 0
    Py_ssize_t end                   # of the keys whose gradients are stored
    cattn_key_block rows             # the keys as query_gradients takes them, with 0 for what is not finite,
    cattn_key_block given            # and as they are
    bint is_wild                     # some key is not finite
    bint is_new[MOST_TILES]          # the sums of a tile of keys hold nothing yet,
    bint has_total[MOST_TILES]       # or its totals hold something


cdef inline void clean_rows(cattn_key_block *clean, const cattn_key_block *rows, char *room,
                            const Head *head) noexcept nogil:
    """Copy rows with 0 in the place of what is not finite."""
    cdef Py_ssize_t item = head.plan.base.itemsize, bytes = rows.size * item, row, c
    clean[0] = rows[0]
    clean.data = room
    clean.stride = bytes
    for row in range(rows.count):
        memcpy(room + row * bytes, rows.data + row * rows.stride, bytes)
        if are_finite(room + row * bytes, rows.size, head.plan.base.arithmetic):
            continue
        for c in range(rows.size):
            if non_finite(room + row * bytes + c * item, head.plan.base.arithmetic) != 0:
                memset(room + row * bytes + c * item, 0, item)


cdef inline void open_arrays(cattn_row_tile *arrays, const Head *head, Py_ssize_t keys) noexcept nogil:
    """Describe the arrays of a tile of keys. The caller sets which numbers lie in its lanes."""
    memset(arrays, 0, sizeof(cattn_row_tile))
    arrays.rows = keys
    arrays.lanes = head.plan.kernels.lanes
    arrays.scale = 1
    arrays.block_max = buffer(head, head.plan.block_max)
    arrays.row_scale = buffer(head, head.plan.ones)
    arrays.block_output = buffer(head, head.plan.block_output)
    arrays.layout = CATTN_MANY


cdef inline void pack(char *packed, const cattn_key_block *rows, Py_ssize_t first, Py_ssize_t count, double scale,
                      const Head *head) noexcept nogil:
    """Put rows first, first + 1, ... of a block into the lanes of a tile."""
    cdef const char *sources[CATTN_MAX_LANES]
    cdef cattn_row_tile arrays
    cdef Py_ssize_t row
    open_arrays(&arrays, head, count)
    arrays.scale = scale
    for row in range(count):
        sources[row] = rows.data + (first + row) * rows.stride
    head.plan.kernels.load(packed, &arrays, sources, rows.size)


cdef inline void open_keys(KeyBlock *keys, const Head *head, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Read the keys [start, end) and their values, as far as they exist."""
    cdef const GradientPlan *plan = head.plan
    cdef const cattn_problem *forward = &head.problem.forward
    cdef Py_ssize_t lanes = plan.kernels.lanes, row, number, first, count
    cdef cattn_key_block values
    keys.start = start
    keys.end = end
    keys.stop = max(start, min(end, head.heads.key_limit))
    keys.is_wild = False
    for number in range(MOST_TILES):
        keys.is_new[number] = True
        keys.has_total[number] = False
    keys.given.count = keys.stop - start
    keys.given.size = forward.head_size
    if keys.given.count == 0:
        return
    read_block(&keys.given, &head.heads.key, &plan.key, start, buffer(head, plan.key_rows), plan.base.table)
    keys.rows = keys.given
    plan.kernels.dots(buffer(head, plan.dots), &keys.given, &keys.given)
    for row in range(keys.given.count):
        if not isfinite(real_at(buffer(head, plan.dots), row, head.is_float)):
            keys.is_wild |= not are_finite(keys.given.data + row * keys.given.stride, keys.given.size,
                                           plan.base.arithmetic)
    if keys.is_wild:
        clean_rows(&keys.rows, &keys.given, buffer(head, plan.clean_keys), head)
    for number in range((keys.given.count + lanes - 1) // lanes):
        first = number * lanes
        count = min(lanes, keys.given.count - first)
        pack(buffer(head, plan.packed_keys) + number * plan.packed_keys_stride, &keys.given, first, count,
             forward.scale, head)
        if forward.value_size > 0:
            values.count = count
            values.size = forward.value_size
            read_block(&values, &head.heads.value, &plan.value, start + first, buffer(head, plan.value_rows),
                       plan.base.table)
            pack(buffer(head, plan.packed_values) + number * plan.packed_values_stride, &values, 0, count, 1, head)


cdef inline void end_chunk(KeyBlock *keys, const Head *head, Py_ssize_t chunk) noexcept nogil:
    """Join the sums of a chunk of rows to those of the chunks before."""
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t lanes = plan.kernels.lanes, item = plan.base.itemsize, number
    cdef Py_ssize_t depth = head.problem.forward.head_size * lanes, width = head.problem.forward.value_size * lanes
    cdef bint carries = chunk >= PLAIN_CHUNKS
    cdef Py_ssize_t of_keys, of_values
    if plan.chunks == 1:
        return
    for number in range((keys.stop - keys.start + lanes - 1) // lanes):
        of_keys = number * depth * item
        of_values = number * width * item
        if chunk == PLAIN_CHUNKS:
            memset(buffer(head, plan.key_carries) + of_keys, 0, depth * item)
            memset(buffer(head, plan.value_carries) + of_values, 0, width * item)
        if keys.is_new[number]:
            continue
        if keys.has_total[number]:
            plan.kernels.join(buffer(head, plan.key_totals) + of_keys,
                              buffer(head, plan.key_carries) + of_keys if carries else NULL,
                              buffer(head, plan.key_sums) + of_keys, depth)
            plan.kernels.join(buffer(head, plan.value_totals) + of_values,
                              buffer(head, plan.value_carries) + of_values if carries else NULL,
                              buffer(head, plan.value_sums) + of_values, width)
        else:
            memcpy(buffer(head, plan.key_totals) + of_keys, buffer(head, plan.key_sums) + of_keys, depth * item)
            memcpy(buffer(head, plan.value_totals) + of_values, buffer(head, plan.value_sums) + of_values,
                   width * item)
        keys.has_total[number] = True
        keys.is_new[number] = True


cdef inline void store_keys(const Head *head, const Rows *to, char *sums, Py_ssize_t first, Py_ssize_t count,
                            Py_ssize_t size, double scale) noexcept nogil:
    """Store the gradients of a tile's keys, or values, of `size` numbers each. Without sums (NULL) they are 0."""
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t bytes = size * plan.base.itemsize, row
    cdef bint direct = in_place(to.array, plan.base.arithmetic, head.problem.forward.batch_ndim)
    cdef char *room = buffer(head, plan.row)
    cdef char *rows[CATTN_MAX_LANES]
    cdef cattn_row_tile arrays
    if size == 0:
        return
    for row in range(count):
        rows[row] = row_at(to, 0, first + row) if direct else room + row * bytes
    if sums == NULL:
        for row in range(count):
            memset(rows[row], 0, bytes)
    else:
        if scale != 1:
            scale_reals(sums, sums, size * plan.kernels.lanes, scale, head.is_float)
        open_arrays(&arrays, head, count)
        plan.kernels.store(sums, NULL, &arrays, rows, size)
    for row in range(0 if direct else count):
        scatter_row(to.array, row_at(to, 0, first + row), rows[row], plan.base.arithmetic, size, plan.base.table)


cdef inline void finish_keys(KeyBlock *keys, const Head *head) noexcept nogil:
    """Store the gradients of a block of keys and of its values."""
    cdef const GradientPlan *plan = head.plan
    cdef const cattn_problem *forward = &head.problem.forward
    cdef Py_ssize_t lanes = plan.kernels.lanes, item = plan.base.itemsize, number, first, count
    cdef bint has_chunks = plan.chunks > 1
    cdef char *of_keys
    cdef char *of_values
    for number in range((keys.end - keys.start + lanes - 1) // lanes):
        first = keys.start + number * lanes
        count = min(lanes, keys.end - first)
        of_keys = of_values = NULL
        if keys.has_total[number] if has_chunks else not keys.is_new[number]:
            of_keys = (buffer(head, plan.key_totals if has_chunks else plan.key_sums)
                       + number * lanes * forward.head_size * item)
            of_values = (buffer(head, plan.value_totals if has_chunks else plan.value_sums)
                         + number * lanes * forward.value_size * item)
            clear_behind(keys, first, count, of_keys, of_values, head)
        store_keys(head, &head.grad_key, of_keys, first, count, forward.head_size, forward.scale)
        store_keys(head, &head.grad_value, of_values, first, count, forward.value_size, 1)


cdef inline void clear_behind(const KeyBlock *keys, Py_ssize_t first, Py_ssize_t count, char *of_keys,
                              char *of_values, const Head *head) noexcept nogil:
    """Clear the sums of the keys of a tile that do not exist."""
    cdef Py_ssize_t item = head.plan.base.itemsize, lanes = head.plan.kernels.lanes, c
    cdef Py_ssize_t there = keys.stop - first
    if there >= count:
        return
    for c in range(head.problem.forward.head_size):
        memset(of_keys + (c * lanes + there) * item, 0, (count - there) * item)
    for c in range(head.problem.forward.value_size):
        memset(of_values + (c * lanes + there) * item, 0, (count - there) * item)
