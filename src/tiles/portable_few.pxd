# Few rows in typed loops: the head size, or the keys, in the lanes. The file is included behind portable.pxd.

from libc.math cimport INFINITY

from tiles.tiles cimport (
    CATTN_FEW_ROWS, CATTN_LOG2E, CATTN_PREFETCH_L2, cattn_key_block, cattn_row_tile, cattn_score_mod)

cdef enum:
    PORTABLE_FEW_LANES = 8   # terms of a score summed side by side: of four keys, half of the SSE2 registers
    PORTABLE_FEW_CHAINS = PORTABLE_FEW_LANES * PORTABLE_CHAIN
    PORTABLE_COLUMNS = 128   # value columns summed at a time for few rows
    PORTABLE_AHEAD = 8192    # bytes asked for ahead of those read: see FEW_AHEAD in tiles_template.h
    PORTABLE_FEW_RUN = 8     # keys of a run: their weights fill half of the SSE2 registers, and short chains round less


cdef inline Py_ssize_t bytes_ahead(Py_ssize_t stride, Py_ssize_t bytes) noexcept nogil:
    """Return the bytes from a row of so many bytes to the one to ask for meanwhile, which the next run has at the
    soonest."""
    return max(PORTABLE_AHEAD // max(bytes, <Py_ssize_t>1), <Py_ssize_t>PORTABLE_FEW_RUN) * stride


cdef inline void ask_ahead(const real *row, Py_ssize_t c, Py_ssize_t ahead) noexcept nogil:
    """Ask for the line of memory that column c begins, if it begins one, so many bytes ahead. It comes into L2, as it
    does by prefetch_stored in few_rows_template.h."""
    if ahead != 0 and c * sizeof(real) % 64 == 0:
        CATTN_PREFETCH_L2(<const char *>(row + c) + ahead)


cdef inline void add_dot(real *lanes, const real *query, const real *key, Py_ssize_t size) noexcept nogil:
    """Set lanes[c mod PORTABLE_FEW_LANES] = Σ_c query[c] · key[c], of at most PORTABLE_FEW_CHAINS elements, so that no
    chain is longer than PORTABLE_CHAIN."""
    cdef Py_ssize_t step, first, lane, c
    for lane in range(PORTABLE_FEW_LANES):
        lanes[lane] = 0
    for step in range(size // PORTABLE_FEW_LANES):
        first = step * PORTABLE_FEW_LANES
        for lane in range(PORTABLE_FEW_LANES):
            lanes[lane] += query[first + lane] * key[first + lane]
    for c in range(size - size % PORTABLE_FEW_LANES, size):
        lanes[c % PORTABLE_FEW_LANES] += query[c] * key[c]


cdef inline void add_dots(real *lanes, const real *query, const real *key0, Py_ssize_t stride, Py_ssize_t size,
                          Py_ssize_t ahead) noexcept nogil:
    """Do what add_dot does for four keys side by side, and ask for later ones."""
    cdef real[PORTABLE_FEW_LANES] sum0, sum1, sum2, sum3
    cdef const real *key1 = behind(key0, stride)
    cdef const real *key2 = behind(key0, 2 * stride)
    cdef const real *key3 = behind(key0, 3 * stride)
    cdef Py_ssize_t step, first, lane, c
    for lane in range(PORTABLE_FEW_LANES):
        sum0[lane] = sum1[lane] = sum2[lane] = sum3[lane] = 0
    for step in range(size // PORTABLE_FEW_LANES):
        first = step * PORTABLE_FEW_LANES
        ask_ahead(key0, first, ahead)
        ask_ahead(key1, first, ahead)
        ask_ahead(key2, first, ahead)
        ask_ahead(key3, first, ahead)
        for lane in range(PORTABLE_FEW_LANES):
            c = first + lane
            sum0[lane] += query[c] * key0[c]
            sum1[lane] += query[c] * key1[c]
            sum2[lane] += query[c] * key2[c]
            sum3[lane] += query[c] * key3[c]
    for lane in range(PORTABLE_FEW_LANES):
        lanes[lane] = sum0[lane]
        lanes[PORTABLE_FEW_LANES + lane] = sum1[lane]
        lanes[2 * PORTABLE_FEW_LANES + lane] = sum2[lane]
        lanes[3 * PORTABLE_FEW_LANES + lane] = sum3[lane]
    for c in range(size - size % PORTABLE_FEW_LANES, size):
        lane = c % PORTABLE_FEW_LANES
        lanes[lane] += query[c] * key0[c]
        lanes[PORTABLE_FEW_LANES + lane] += query[c] * key1[c]
        lanes[2 * PORTABLE_FEW_LANES + lane] += query[c] * key2[c]
        lanes[3 * PORTABLE_FEW_LANES + lane] += query[c] * key3[c]


cdef inline real sum_lanes(real *lanes) noexcept nogil:
    """Return the sum of PORTABLE_FEW_LANES numbers, which are added up by halves."""
    cdef Py_ssize_t lane
    for lane in range(4):
        lanes[lane] += lanes[lane + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef inline void add_chain(real *before, real *sum, real chain, Py_ssize_t number) noexcept nogil:
    """Add chain number `number` of a score to the sum of its block, or begin a block with it."""
    if number % PORTABLE_CHAINS != 0:
        sum[0] += chain
        return
    if number > 0:
        before[0] = sum[0] if number == PORTABLE_CHAINS else before[0] + sum[0]
    sum[0] = chain


cdef inline real add_blocks(real before, real sum, Py_ssize_t chains) noexcept nogil:
    """Return a score of so many chains."""
    return before + sum if chains > PORTABLE_CHAINS else sum


cdef inline int few_modify_scores(real *scores, const cattn_row_tile *tile,
                                  const cattn_key_block *block) noexcept nogil:
    cdef const cattn_score_mod *mod = tile.score_mod
    cdef real *block_max = <real *>tile.block_max
    cdef Py_ssize_t j, r
    cdef real *score
    cdef real slope, bias
    for r in range(tile.rows):
        block_max[r] = -INFINITY
        slope = <real>mod.slope[r] if mod != NULL and mod.has_alibi else 0
        for j in range(block.count):
            score = scores + r * tile.pitch + j
            if mod != NULL:
                if mod.softcap != 0:
                    score[0] = softcapped(score[0], mod.softcap)
                bias = (<const real *>mod.bias[r])[j] if mod.has_bias else 0
                score[0] += bias
                if mod.has_alibi:
                    score[0] -= alibi(mod, r, j, slope)
                if bias == -INFINITY or is_masked(mod, r, j):   # even a NaN
                    score[0] = -INFINITY
            if score[0] > block_max[r]:
                block_max[r] = score[0]
    return True


cdef inline int few_scores(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    cdef real *scores = <real *>array
    # Two keys from each of four places of the block in turn: processors read four streams faster than one. Sums of
    # lanes wait in memory for each other: where they are added up at once, gcc takes their vectors to pieces.
    cdef real[8 * PORTABLE_FEW_LANES] lanes
    cdef real[8] before, sum   # of the blocks of chains before, and of the block
    cdef real *block_max = <real *>tile.block_max
    cdef const real *queries = <const real *>tile.queries
    cdef const char *keys = block.data
    cdef Py_ssize_t rows = tile.rows, pitch = tile.pitch, stride = block.stride, count = block.count, size = block.size
    cdef const real *query
    cdef const char *key
    cdef real score
    cdef Py_ssize_t chain, chains = (size + PORTABLE_FEW_CHAINS - 1) // PORTABLE_FEW_CHAINS, start, width, i, j, c, r
    cdef Py_ssize_t apart = count // 8 * 2, ahead = bytes_ahead(stride, size * sizeof(real))
    for r in range(rows):
        block_max[r] = -INFINITY
    for start in range(0, apart, 2):
        for r in range(rows):
            for chain in range(chains):
                c = chain * PORTABLE_FEW_CHAINS
                width = min(size - c, <Py_ssize_t>PORTABLE_FEW_CHAINS)
                query = queries + r * size + c
                key = keys + start * stride + c * sizeof(real)
                for i in range(2):
                    add_dots(lanes + i * 4 * PORTABLE_FEW_LANES, query, <const real *>(key + i * stride),
                             apart * stride, width,
                             ahead if r == 0 else 0)
                for i in range(8):
                    add_chain(&before[i], &sum[i], sum_lanes(lanes + i * PORTABLE_FEW_LANES), chain)
            for i in range(8):
                score = add_blocks(before[i], sum[i], chains)
                scores[r * pitch + start + i // 4 + i % 4 * apart] = score
                block_max[r] = score if score > block_max[r] else block_max[r]
    for j in range(4 * apart, count):
        for r in range(rows):
            for chain in range(chains):
                c = chain * PORTABLE_FEW_CHAINS
                add_dot(lanes, queries + r * size + c, <const real *>(keys + j * stride) + c,
                        min(size - c, <Py_ssize_t>PORTABLE_FEW_CHAINS))
                add_chain(&before[0], &sum[0], sum_lanes(lanes), chain)
            score = add_blocks(before[0], sum[0], chains)
            scores[r * pitch + j] = score
            block_max[r] = score if score > block_max[r] else block_max[r]
    if tile.score_mod != NULL:
        few_modify_scores(scores, tile, block)
    return True


cdef inline real few_total(const real *total, Py_ssize_t apart) noexcept nogil:
    return (total[0] + total[apart]) + (total[2 * apart] + total[3 * apart])


cdef inline int few_exponentials(void *array, const cattn_row_tile *tile, const cattn_key_block *keys) noexcept nogil:
    cdef real *scores = <real *>array
    cdef real *row_sum = <real *>tile.softmax.row_sum
    cdef real *row_scale = <real *>tile.row_scale
    cdef Py_ssize_t number, start, j, r, count = keys.count
    cdef real[CATTN_FEW_ROWS] reference
    cdef real[4] total
    cdef real *score
    cdef real run
    advance_maximum(<real *>tile.softmax.row_max, reference, row_scale, <const real *>tile.block_max, tile.rows)
    for r in range(tile.rows):
        score = scores + r * tile.pitch
        for j in range(count):
            score[j] = exponential(<real>CATTN_LOG2E * (score[j] - reference[r]))
        total[0] = total[1] = total[2] = total[3] = 0
        for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
            start = number * PORTABLE_FEW_RUN
            run = 0
            for j in range(start, min(count, start + PORTABLE_FEW_RUN)):
                run += score[j]
            total[number % 4] += run
        row_sum[r] = row_scale[r] * row_sum[r] + few_total(total, 1)
    return True


cdef inline void add_run(real *total, const real *weights, const char *values, Py_ssize_t stride, Py_ssize_t columns,
                         Py_ssize_t ahead) noexcept nogil:
    """Add Σ_k weights[k] · value_k[c] of a whole run to total[c], and ask for later values."""
    cdef const real *value0 = <const real *>values
    cdef const real *value1 = behind(value0, stride)
    cdef const real *value2 = behind(value0, 2 * stride)
    cdef const real *value3 = behind(value0, 3 * stride)
    cdef const real *value4 = behind(value0, 4 * stride)
    cdef const real *value5 = behind(value0, 5 * stride)
    cdef const real *value6 = behind(value0, 6 * stride)
    cdef const real *value7 = behind(value0, 7 * stride)
    cdef real weight0 = weights[0], weight1 = weights[1], weight2 = weights[2], weight3 = weights[3]
    cdef real weight4 = weights[4], weight5 = weights[5], weight6 = weights[6], weight7 = weights[7]
    cdef Py_ssize_t step, first, lane, c
    for step in range(columns // 16):
        first = step * 16
        ask_ahead(value0, first, ahead)
        ask_ahead(value1, first, ahead)
        ask_ahead(value2, first, ahead)
        ask_ahead(value3, first, ahead)
        ask_ahead(value4, first, ahead)
        ask_ahead(value5, first, ahead)
        ask_ahead(value6, first, ahead)
        ask_ahead(value7, first, ahead)
        for lane in range(16):
            c = first + lane
            total[c] += ((weight0 * value0[c] + weight1 * value1[c]) + (weight2 * value2[c] + weight3 * value3[c])
                         + (weight4 * value4[c] + weight5 * value5[c]) + (weight6 * value6[c] + weight7 * value7[c]))
    for c in range(columns - columns % 16, columns):
        total[c] += ((weight0 * value0[c] + weight1 * value1[c]) + (weight2 * value2[c] + weight3 * value3[c])
                     + (weight4 * value4[c] + weight5 * value5[c]) + (weight6 * value6[c] + weight7 * value7[c]))


cdef inline void add_rest(real *total, const real *weights, const char *values, Py_ssize_t stride, Py_ssize_t count,
                          Py_ssize_t columns) noexcept nogil:
    """Add those of the last keys, which are fewer than a run, in the order of add_run, so that masked keys behind them
    would change no bit."""
    cdef real[PORTABLE_COLUMNS] sum
    cdef const real *value0
    cdef const real *value1
    cdef Py_ssize_t k, c
    for c in range(columns):
        sum[c] = 0
    for k in range(0, count - 1, 2):
        value0 = <const real *>(values + k * stride)
        value1 = behind(value0, stride)
        for c in range(columns):
            sum[c] += weights[k] * value0[c] + weights[k + 1] * value1[c]
    if count % 2 == 1:
        value0 = <const real *>(values + (count - 1) * stride)
        for c in range(columns):
            sum[c] += weights[count - 1] * value0[c]
    for c in range(columns):
        total[c] += sum[c]


cdef inline int few_values(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    cdef real *output = <real *>array
    # Runs join one of four totals of their row in turn: in one chain equal sums round alike.
    cdef real[CATTN_FEW_ROWS * 4 * PORTABLE_COLUMNS] total
    cdef const real *row_scale = <const real *>tile.row_scale
    cdef const real *weight
    cdef const char *value
    cdef real *joined
    cdef real *out
    cdef real before
    cdef Py_ssize_t part, first, columns, number, start, c, r, count = block.count, stride = block.stride
    cdef Py_ssize_t ahead = bytes_ahead(stride, block.size * sizeof(real))
    for part in range((block.size + PORTABLE_COLUMNS - 1) // PORTABLE_COLUMNS):
        first = part * PORTABLE_COLUMNS
        columns = min(block.size - first, <Py_ssize_t>PORTABLE_COLUMNS)
        for c in range(tile.rows * 4 * columns):
            total[c] = 0
        for number in range((count + PORTABLE_FEW_RUN - 1) // PORTABLE_FEW_RUN):
            start = number * PORTABLE_FEW_RUN
            value = block.data + start * stride + first * sizeof(real)
            for r in range(tile.rows):
                weight = <const real *>tile.scores + r * tile.pitch + start
                joined = total + (r * 4 + number % 4) * columns
                if start + PORTABLE_FEW_RUN <= count:
                    add_run(joined, weight, value, stride, columns, ahead if r == 0 else 0)
                else:
                    add_rest(joined, weight, value, stride, count - start, columns)
        for r in range(tile.rows):
            out = output + r * tile.output_pitch + first
            for c in range(columns):
                before = 0 if tile.is_new else row_scale[r] * out[c]
                out[c] = before + few_total(total + r * 4 * columns + c, columns)
    return True


cdef inline int few_store(const void *array, const void *row_sum, const cattn_row_tile *tile, char **destination,
                          Py_ssize_t size) noexcept nogil:
    cdef const real *output = <const real *>array
    cdef real divisor, quotient, residue = 0
    cdef real *row
    cdef Py_ssize_t r, c
    for r in range(tile.rows):
        row = <real *>destination[r]
        divisor = divisor_of(<const real *>row_sum, r)
        residue += divisor - divisor
        for c in range(size):
            quotient = output[r * tile.output_pitch + c] / divisor
            residue += quotient - quotient   # NaN for an infinity or a NaN, else 0
            row[c] = quotient
    return residue == 0
