# The kernels of gradients in typed loops. Rows of queries are broadcast, and keys lie in the lanes. The file is included
# behind portable.pxd.

from tiles.tiles cimport cattn_gradient_tile

cdef enum:
    PORTABLE_QUERY_RUN = 16       # keys of a run of query_gradients: they lie in one tile
    PORTABLE_QUERY_COLUMNS = 32   # that are summed at a time
    PORTABLE_GRADIENT_RUN = 20    # rows of a run of a slope's gradient


cdef inline void modify_row(real *score, real *slope, const cattn_score_mod *mod, Py_ssize_t row,
                            Py_ssize_t keys) noexcept nogil:
    """Do to the scores of one row what score_mod says. `slope` becomes the derivative of the softcap."""
    cdef double capped
    cdef real added
    cdef Py_ssize_t j
    for j in range(keys if mod.softcap != 0 else 0):
        capped = tanh(score[j] / mod.softcap)
        score[j] = <real>(mod.softcap * capped)
        slope[j] = <real>((1 - capped) * (1 + capped))
    for j in range(keys if mod.adds else 0):
        added = (<const real *>mod.bias[row])[j] if mod.has_bias else 0
        if is_masked(mod, row, j) or added == -INFINITY:
            score[j] = -INFINITY
            continue
        if mod.has_alibi:
            added -= alibi(mod, row, j, <real>mod.slope[row])
        score[j] += added


cdef inline real slope_run(const cattn_gradient_tile *tile, const real *gradients, Py_ssize_t row) noexcept nogil:
    """Return the sum of a row's gradients, each times how far its key is from the row."""
    cdef real[PORTABLE_LANES] chain
    cdef Py_ssize_t j
    clear(chain)
    for j in range(tile.keys):
        chain[j % 4] += gradients[j] * alibi(tile.score_mod, row, j, 1)
    return (chain[0] + chain[1]) + (chain[2] + chain[3])


cdef inline void differentiate(const cattn_gradient_tile *tile) noexcept nogil:
    cdef real *weights = <real *>tile.weights
    cdef real *gradients = <real *>tile.gradients
    cdef real *of_bias = <real *>tile.bias_gradients
    cdef bint capped = tile.score_mod != NULL and tile.score_mod.softcap != 0
    cdef real[PORTABLE_LANES] score, slope, gradient
    cdef real lse, delta, weight, run = 0, all = 0
    cdef Py_ssize_t row, r
    for row in range(tile.rows):
        lse = (<const real *>tile.lse)[row]
        delta = (<const real *>tile.delta)[row]
        for r in range(PORTABLE_LANES):
            score[r] = weights[r] if r < tile.keys else 0
        if tile.score_mod != NULL:
            modify_row(score, slope, tile.score_mod, row, tile.keys)
        for r in range(tile.keys):
            weight = exponential(<real>CATTN_LOG2E * (score[r] - lse))
            gradient[r] = 0 if score[r] == -INFINITY else weight * (gradients[r] - delta)
            weights[r] = 0 if score[r] == -INFINITY else weight
            gradients[r] = gradient[r] * slope[r] if capped else gradient[r]
        if of_bias != NULL:
            for r in range(tile.keys):
                of_bias[row * PORTABLE_LANES + r] = gradient[r]
        if tile.slope_gradient != NULL:
            run += slope_run(tile, gradient, row)
            if row % PORTABLE_GRADIENT_RUN == PORTABLE_GRADIENT_RUN - 1:
                all += run
                run = 0
        weights += PORTABLE_LANES
        gradients += PORTABLE_LANES
    if tile.slope_gradient != NULL:
        (<real *>tile.slope_gradient)[0] = all + run


cdef inline void query_run(real *sum, Py_ssize_t columns, const real *gradients, const char *keys, Py_ssize_t stride,
                           Py_ssize_t count) noexcept nogil:
    """Set sum[c] = Σ_j gradients[j] · key_j[c]."""
    cdef const real *key
    cdef real gradient
    cdef Py_ssize_t j, c
    for c in range(columns):
        sum[c] = 0
    for j in range(count):
        key = <const real *>(keys + j * stride)
        gradient = gradients[j]
        for c in range(columns):
            sum[c] += gradient * key[c]


cdef inline void query_gradients(void *array, Py_ssize_t rows, const void *gradients, Py_ssize_t pitch,
                                 const cattn_key_block *block, int is_new) noexcept nogil:
    cdef real *sums
    cdef const real *gradient
    cdef real[PORTABLE_QUERY_COLUMNS] sum, total
    cdef Py_ssize_t row, part, first, columns, number, start, c, count = block.count, size = block.size
    for row in range(rows):
        for part in range((size + PORTABLE_QUERY_COLUMNS - 1) // PORTABLE_QUERY_COLUMNS):
            first = part * PORTABLE_QUERY_COLUMNS
            columns = min(size - first, <Py_ssize_t>PORTABLE_QUERY_COLUMNS)
            sums = <real *>array + row * size + first
            for number in range((count + PORTABLE_QUERY_RUN - 1) // PORTABLE_QUERY_RUN):
                start = number * PORTABLE_QUERY_RUN
                gradient = (<const real *>gradients + start // PORTABLE_LANES * pitch + row * PORTABLE_LANES
                            + start % PORTABLE_LANES)
                # The width is a constant where it can be, so that the sums can stay in registers.
                if columns == PORTABLE_QUERY_COLUMNS:
                    query_run(sum, PORTABLE_QUERY_COLUMNS, gradient, block.data + start * block.stride
                              + first * sizeof(real), block.stride, min(count - start, <Py_ssize_t>PORTABLE_QUERY_RUN))
                else:
                    query_run(sum, columns, gradient, block.data + start * block.stride + first * sizeof(real),
                              block.stride, min(count - start, <Py_ssize_t>PORTABLE_QUERY_RUN))
                for c in range(columns):
                    total[c] = total[c] + sum[c] if number > 0 else sum[c]
            for c in range(columns):
                sums[c] = total[c] if is_new else sums[c] + total[c]


cdef inline void join(void *array, void *carry, const void *part, Py_ssize_t count) noexcept nogil:
    cdef real *total = <real *>array
    cdef const real *x = <const real *>part
    cdef Py_ssize_t i
    if carry == NULL:
        for i in range(count):
            total[i] += x[i]
    else:
        for i in range(count):
            add_carrying(total + i, <real *>carry + i, 1, x[i])


cdef inline void dots(void *array, const cattn_key_block *rows, const cattn_key_block *others) noexcept nogil:
    cdef real *sums = <real *>array
    cdef const real *row
    cdef const real *other
    cdef real[PORTABLE_LANES] chain
    cdef Py_ssize_t i, c, r, size = rows.size, whole = size - size % PORTABLE_LANES
    for i in range(rows.count):
        row = <const real *>(rows.data + i * rows.stride)
        other = <const real *>(others.data + i * others.stride)
        clear(chain)
        for c in range(whole // PORTABLE_LANES):
            for r in range(PORTABLE_LANES):
                chain[r] += row[c * PORTABLE_LANES + r] * other[c * PORTABLE_LANES + r]
        for c in range(whole, size):
            chain[c - whole] += row[c] * other[c]
        for c in range(1, 6):   # 16, 8, ... 1
            for r in range(PORTABLE_LANES >> c):
                chain[r] += chain[(PORTABLE_LANES >> c) + r]
        sums[i] = chain[0]
