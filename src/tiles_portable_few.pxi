# The other half of the kernel table in typed loops. Few rows: the head size, or the keys, in the lanes.

cdef enum:
    PORTABLE_FEW_LANES = 16  # terms of a score summed side by side for few rows: four SSE2 registers of floats
    PORTABLE_FEW_CHAINS = PORTABLE_FEW_LANES * PORTABLE_CHAIN
    PORTABLE_COLUMNS = 128   # value columns summed at a time for few rows
    PORTABLE_AHEAD = 2048    # bytes asked for ahead of those read: half or twice as many gain less, 8 KiB nothing
    PORTABLE_FEW_RUN = 8     # keys of a run there: a join costs little beside memory, and short chains round less


cdef inline void add_dot(real *lanes, const real *query, const real *key, Py_ssize_t size) noexcept nogil:
    """lanes[c mod PORTABLE_FEW_LANES] = Σ_c query[c] · key[c], of at most PORTABLE_FEW_CHAINS elements, so that no chain is longer
    than PORTABLE_CHAIN."""
    cdef real[PORTABLE_FEW_LANES] partial
    cdef Py_ssize_t c, lane
    for lane in range(PORTABLE_FEW_LANES):
        partial[lane] = 0
    for c in range(size // PORTABLE_FEW_LANES):
        for lane in range(PORTABLE_FEW_LANES):
            partial[lane] += query[c * PORTABLE_FEW_LANES + lane] * key[c * PORTABLE_FEW_LANES + lane]
    for lane in range(PORTABLE_FEW_LANES):
        lanes[lane] = partial[lane]
    for c in range(size - size % PORTABLE_FEW_LANES, size):
        lanes[c % PORTABLE_FEW_LANES] += query[c] * key[c]


cdef inline real sum_lanes(real *lanes) noexcept nogil:
    """The sum of PORTABLE_FEW_LANES numbers, by halves."""
    cdef Py_ssize_t lane
    for lane in range(8):
        lanes[lane] += lanes[lane + 8]
    for lane in range(4):
        lanes[lane] += lanes[lane + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef inline Py_ssize_t rows_ahead(Py_ssize_t bytes) noexcept nogil:
    """How many rows further on the memory is asked for that comes next."""
    return PORTABLE_AHEAD // max(bytes, <Py_ssize_t>1) + 1


cdef void few_scores(real *scores, Py_ssize_t pitch, real *block_maximum, const real *queries, Py_ssize_t rows,
                     const char *keys, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t size,
                     cattn_type type) noexcept nogil:
    # Sums of lanes wait in memory for each other: where they are added up at once, gcc takes their vectors to pieces.
    cdef real[PORTABLE_FEW_RUN * PORTABLE_FEW_LANES] lanes
    cdef const char *key
    cdef real score
    cdef Py_ssize_t part, parts = (size + PORTABLE_FEW_CHAINS - 1) // PORTABLE_FEW_CHAINS, number, start, run
    cdef Py_ssize_t j, c, r
    cdef Py_ssize_t ahead = rows_ahead(size * sizeof(real))
    for r in range(rows):
        block_maximum[r] = -INFINITY
    for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
        start = number * PORTABLE_FEW_RUN
        run = min(count - start, <Py_ssize_t>PORTABLE_FEW_RUN)
        for r in range(rows):
            for part in range(parts):
                c = part * PORTABLE_FEW_CHAINS
                for j in range(run):
                    key = keys + (start + j) * stride
                    if r == 0 and part == 0:
                        prefetch(key + ahead * stride, size * sizeof(real))
                    add_dot(lanes + j * PORTABLE_FEW_LANES, queries + r * size + c, <const real *>key + c,
                            min(size - c, <Py_ssize_t>PORTABLE_FEW_CHAINS))
                for j in range(run):
                    score = sum_lanes(lanes + j * PORTABLE_FEW_LANES)
                    if part > 0:
                        score += scores[r * pitch + start + j]
                    scores[r * pitch + start + j] = score
            for j in range(run):
                score = scores[r * pitch + start + j]
                block_maximum[r] = score if score > block_maximum[r] else block_maximum[r]


cdef void few_edit(real *scores, Py_ssize_t pitch, real *block_maximum, Py_ssize_t rows, Py_ssize_t count,
                   const cattn_edit *edit) noexcept nogil:
    cdef Py_ssize_t j, r
    cdef real *score
    cdef real slope, bias
    for r in range(rows):
        block_maximum[r] = -INFINITY
        slope = <real>edit.slope[r] if edit.has_alibi else 0
        for j in range(count):
            score = scores + r * pitch + j
            if edit.softcap != 0:
                score[0] = softcapped(score[0], edit.softcap)
            if edit.has_bias:
                bias = (<const real *>edit.bias[r])[j]
                score[0] = bias if bias == -INFINITY else score[0] + bias   # it masks a NaN, too
            if edit.has_alibi:
                score[0] -= alibi(edit, r, j, slope)
            if is_masked(edit, r, j):
                score[0] = -INFINITY
            if score[0] > block_maximum[r]:
                block_maximum[r] = score[0]


cdef void few_exponentials(real *scores, Py_ssize_t pitch, Py_ssize_t rows, Py_ssize_t count, real *maximum, real *sum,
                           real *factor, const real *block_maximum, double unit_) noexcept nogil:
    cdef real unit = <real>unit_
    cdef Py_ssize_t number, start, j, r
    cdef real[CATTN_FEW_ROWS] reference
    cdef real run
    advance_maximum(maximum, reference, factor, block_maximum, rows, unit)
    for r in range(rows):
        for j in range(count):
            scores[r * pitch + j] = exponential(unit * (scores[r * pitch + j] - reference[r]))
        sum[r] *= factor[r]
        for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
            start = number * PORTABLE_FEW_RUN
            run = 0
            for j in range(start, min(count, start + PORTABLE_FEW_RUN)):
                run += scores[r * pitch + j]
            sum[r] += run


cdef inline real few_total(const real *total, Py_ssize_t apart) noexcept nogil:
    return (total[0] + total[apart]) + (total[2 * apart] + total[3 * apart])


cdef inline void add_rows(real *sum, const real *weights, const char *values, Py_ssize_t stride,
                          Py_ssize_t columns) noexcept nogil:
    """The values of four keys in turn, with the sums touched once."""
    cdef const real *value0 = <const real *>values
    cdef const real *value1 = behind(value0, stride)
    cdef const real *value2 = behind(value0, 2 * stride)
    cdef const real *value3 = behind(value0, 3 * stride)
    cdef real weight0 = weights[0], weight1 = weights[1], weight2 = weights[2], weight3 = weights[3]
    cdef Py_ssize_t c
    for c in range(columns):
        sum[c] = sum[c] + weight0 * value0[c] + weight1 * value1[c] + weight2 * value2[c] + weight3 * value3[c]


cdef void few_values(real *output, const real *factor, const real *weights, Py_ssize_t pitch, Py_ssize_t rows,
                     const char *values, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t size,
                     cattn_type type) noexcept nogil:
    cdef real[PORTABLE_COLUMNS] sum
    # Runs join one of four totals of their row in turn: in one chain equal sums round alike.
    cdef real[CATTN_FEW_ROWS * 4 * PORTABLE_COLUMNS] total
    cdef const real *value
    cdef real *joined
    cdef real weight
    cdef Py_ssize_t part, first, columns, number, start, stop, j, c, r, ahead = rows_ahead(size * sizeof(real))
    for part in range((size + PORTABLE_COLUMNS - 1) // PORTABLE_COLUMNS):
        first = part * PORTABLE_COLUMNS
        columns = min(size - first, <Py_ssize_t>PORTABLE_COLUMNS)
        for c in range(rows * 4 * columns):
            total[c] = 0
        for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
            start = number * PORTABLE_FEW_RUN
            for r in range(rows):
                for c in range(columns):
                    sum[c] = 0
                j = start
                stop = min(count, start + PORTABLE_FEW_RUN)
                # The first row brings the values from memory, best one key after the other; the others find them in a cache.
                while r > 0 and j + 4 <= stop:
                    add_rows(sum, weights + r * pitch + j, values + j * stride + first * sizeof(real), stride, columns)
                    j += 4
                while j < stop:
                    value = <const real *>(values + j * stride) + first
                    if r == 0:
                        prefetch(<const char *>value + ahead * stride, columns * sizeof(real))
                    weight = weights[r * pitch + j]
                    for c in range(columns):
                        sum[c] += weight * value[c]
                    j += 1
                joined = total + (r * 4 + number % 4) * columns
                for c in range(columns):
                    joined[c] += sum[c]
        for r in range(rows):
            for c in range(columns):
                output[r * size + first + c] = factor[r] * output[r * size + first + c] \
                    + few_total(total + r * 4 * columns + c, columns)


cdef void few_select_values(real *output, const real *factor, const real *weights, const unsigned char *attended,
                            Py_ssize_t pitch, Py_ssize_t rows, const char *values, Py_ssize_t stride,
                            Py_ssize_t count, Py_ssize_t size,
                            cattn_type type) noexcept nogil:
    cdef real[4] total
    cdef Py_ssize_t number, start, c, r
    for r in range(rows):
        for c in range(size):
            total[0] = total[1] = total[2] = total[3] = 0
            for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
                start = number * PORTABLE_FEW_RUN
                total[number % 4] += select_run(weights + r * pitch, attended + r * pitch, 1, values + c * sizeof(real),
                                                stride, start, min(count, start + PORTABLE_FEW_RUN))
            output[r * size + c] = rescale(output[r * size + c], factor[r]) + few_total(total, 1)
