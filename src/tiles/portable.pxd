# The kernel table in typed loops: it is complete and portable, and the other tables are tested against the same
# formulas. tiles.h says what each kernel does; here each is written once for one type, `real`. portable_float.pxd and
# portable_double.pxd say which that is, and include this file and portable_few.pxd.
#
# The innermost loops run over the lanes, a constant number of them, without a branch: compilers turn each into a few
# vector instructions and keep the small accumulator arrays in registers.
#
# Three passes of gcc are off, in the whole module; two for the sake of these loops. peephole2 turns "copy the factor,
# multiply it by memory" into "load, multiply by the factor", which lengthens the chain of each sum. Unroll-and-jam
# joins two turns of the outer loop, whose sums then do not fit into the registers. Without loops gcc would join
# neighbouring scalars to vectors, and read as one what was stored one by one right before, for which processors wait:
# short calls do little else than fill structs and read them. And no product is contracted into an FMA, where the
# baseline has one: a remainder would round differently.

cdef extern from *:
    """
    #if defined(__clang__)
    #pragma clang fp contract(off)
    #elif defined(__GNUC__)
    #pragma GCC optimize ("no-peephole2", "no-loop-unroll-and-jam", "no-tree-slp-vectorize", "fp-contract=off")
    #endif
    """

from libc.math cimport INFINITY, log, tanh
from libc.stdint cimport uint32_t, uint64_t

from convert cimport to_float
from tiles.tiles cimport (
    CATTN_ALIGNED, CATTN_FEW, CATTN_LOG2E, CATTN_MANY, CATTN_MAX_LANES, cattn_key_block, cattn_maxima,
    cattn_prefetch_next, cattn_row_tile, cattn_score_mod, cattn_softmax, cattn_total)

cdef enum:
    # Eight SSE2 registers of floats, which leaves as many for operands. Not fewer: a loop of 16 steps or less gcc
    # unrolls before it looks for vectors, and then finds the wrong ones.
    PORTABLE_LANES = 32
    # Lanes of the loops that cost most, for so many rows at most. They are too large to unroll, and again not 16.
    PORTABLE_NARROW = 20
    PORTABLE_LINK = 4        # terms that are summed two by two, and then join a chain, which rounds once for the four
    PORTABLE_CHAIN = 16      # links of a score's chain: 32 equal ones came to 2.4 κ
    PORTABLE_CHAINS = 16     # chains of a score that are summed in one chain
    # Keys whose values are summed in one chain: a block of head size 128, half of one of 64. Why sums are chains of
    # chains stands at RUN in tiles_template.h.
    PORTABLE_RUN = 40


cdef union FloatBits:
    float value
    uint32_t bits


cdef union DoubleBits:
    double value
    uint64_t bits


cdef inline real reduce(real x, real *power) noexcept nogil:
    """Return f and set `power` to 2^n, so that 2^x = 2^n · 2^f: n is the integer nearest to x, and f = x - n exactly.

    Adding `shift` rounds to an integer and leaves n plus the exponent's bias in the last bits of the sum, from where a
    shift makes it the number 2^n.
    """
    cdef FloatBits float_power
    cdef DoubleBits double_power
    cdef real n, shift
    if sizeof(real) == sizeof(float):
        shift = 12583039    # 1.5·2^23 + 127
        float_power.value = x + shift
        n = float_power.value - shift
        float_power.bits <<= 23
        power[0] = float_power.value
    else:
        shift = 6755399441056767     # 1.5·2^52 + 1023
        double_power.value = x + shift
        n = double_power.value - shift
        double_power.bits <<= 52
        power[0] = double_power.value
    return x - n


cdef inline real expand(real x, real f, real power) noexcept nogil:
    """Return 2^x for x <= 0 (and little above) from its parts: 0 if 2^n is below the smallest normal number, and NaN
    for NaN.

    The polynomials are minimax ones of (2^f - 1) / f: 1.1e-8 (float), 1.8e-17 (double) relative to 2^f - 1. Their even
    and odd terms are two chains of half the length.
    """
    cdef real even, odd, lowest, g = f * f
    if sizeof(real) == sizeof(float):
        lowest = -126.5
        even = (<real>0.0013390867 * g + <real>0.05550357) * g + <real>0.6931472
        odd = (<real>0.00015469735 * g + <real>0.009618031) * g + <real>0.2402265
    else:
        lowest = -1022.5
        even = 4.456676030826705e-10 * g + 1.0178051724308302e-07
        even = (even * g + 1.5252733853289477e-05) * g + 0.0013333558146395995
        even = (even * g + 0.05550410866482166) * g + 0.6931471805599453
        odd = 7.072586161230777e-09 * g + 1.3215442586728665e-06
        odd = (odd * g + 0.00015403530441738291) * g + 0.009618129107606887
        odd = odd * g + 0.24022650695910097
    return 0 if x < lowest else ((odd * f + even) * f + <real>1) * power


cdef inline real exponential(real x) noexcept nogil:
    cdef real power
    cdef real f = reduce(x, &power)
    return expand(x, f, power)


cdef inline real rescale(real sum, real scale) noexcept nogil:
    """Return scale · sum. An infinity stays, even if its scale came out as 0, which stands for a small positive
    number."""
    return sum if scale == 0 and sum - sum != 0 else scale * sum


cdef inline void round_to_float(void *to, const void *source, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        (<float *>to)[i] = to_float((<const double *>source)[i])


cdef inline real to_real(double value) noexcept nogil:
    return to_float(value) if sizeof(real) == sizeof(float) else value


cdef struct Matrix:
    Py_ssize_t lines, length, pitch


cdef inline Matrix score_matrix(const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    """Return where the scores of a block lie, in either layout. A line holds those of a key, or of a row."""
    return (Matrix(block.count, tile.rows, tile.lanes) if tile.layout == CATTN_MANY
            else Matrix(tile.rows, block.count, tile.pitch))


# Many rows: one row a lane.


cdef inline void load(void *array, const cattn_row_tile *tile, const char **source, Py_ssize_t size) noexcept nogil:
    """Load the queries of a tile of either layout."""
    cdef real *queries = <real *>array
    cdef bint few = tile.layout == CATTN_FEW
    cdef Py_ssize_t row_pitch = size if few else 1, column_pitch = 1 if few else <Py_ssize_t>PORTABLE_LANES, c, r
    cdef real scale = <real>tile.scale
    for r in range(tile.rows if few else <Py_ssize_t>PORTABLE_LANES):
        for c in range(size):
            queries[r * row_pitch + c * column_pitch] = scale * (<const real *>source[r])[c] if r < tile.rows else 0


cdef inline void reset(const cattn_softmax *softmax, const cattn_row_tile *tile, const double *sinks) noexcept nogil:
    """Reset the softmax of a tile of either layout."""
    cdef real *row_max = <real *>softmax.row_max
    cdef real *row_sum = <real *>softmax.row_sum
    cdef real *lse_sum = <real *>softmax.lse_sum
    cdef Py_ssize_t r
    for r in range(tile.lanes):
        row_max[r] = -INFINITY
        row_sum[r] = lse_sum[r] = 0
    for r in range(tile.rows if sinks != NULL else 0):
        if sinks[r] != -INFINITY:
            row_max[r] = to_real(sinks[r])
            row_sum[r] = lse_sum[r] = 1


cdef inline void clear(real *sum) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(PORTABLE_LANES // 2):   # by halves: all in one gcc makes a `rep stos`, 30 cycles
        sum[r] = 0
        sum[PORTABLE_LANES // 2 + r] = 0


cdef inline const real *behind(const real *first, Py_ssize_t bytes) noexcept nogil:
    return <const real *>(<const char *>first + bytes)


cdef inline void add_to_lanes(real *total, Py_ssize_t width, const real *factor, const real *lanes, const real *x,
                              Py_ssize_t stride, Py_ssize_t count) noexcept nogil:
    """Set total[r] = factor[r] · total[r] + Σ_i lanes[i][r] · x_i for r < width. Without a factor the sum replaces the
    total, and zeros stand past the width. The x_i lie `stride` bytes apart.

    The loop takes a link of terms at a time, so that the sums are touched once for four of them, wherever a compiler
    keeps them. That should be in registers. gcc does so here, but not for the narrow width if it can see the number of
    passes.
    """
    cdef real[PORTABLE_LANES] sum, last
    cdef const real *link
    cdef real x0, x1, x2, x3
    cdef Py_ssize_t i = 0, r
    clear(sum)
    while i + PORTABLE_LINK <= count:
        x0 = x[0]
        x1 = behind(x, stride)[0]
        x2 = behind(x, 2 * stride)[0]
        x3 = behind(x, 3 * stride)[0]
        link = <const real *>CATTN_ALIGNED(lanes + i * PORTABLE_LANES)
        for r in range(width):
            sum[r] += ((link[r] * x0 + link[PORTABLE_LANES + r] * x1)
                       + (link[2 * PORTABLE_LANES + r] * x2 + link[3 * PORTABLE_LANES + r] * x3))
        x = behind(x, 4 * stride)
        i += PORTABLE_LINK
    if i < count:
        clear(last)
        while i < count:
            x0 = x[0]
            for r in range(width):
                last[r] += lanes[i * PORTABLE_LANES + r] * x0
            x = behind(x, stride)
            i += 1
        for r in range(width):
            sum[r] += last[r]
    if factor == NULL:
        for r in range(width):
            total[r] = sum[r]
        for r in range(width, PORTABLE_LANES):
            total[r] = 0
    else:
        for r in range(width):
            total[r] = factor[r] * total[r] + sum[r]


cdef inline void add_products(real *total, Py_ssize_t rows, const real *factor, const real *lanes, const real *x,
                              Py_ssize_t stride, Py_ssize_t count) noexcept nogil:
    """Call add_to_lanes for a tile of so many rows. Both widths are constants, so that the sums can stay in
    registers."""
    if rows > PORTABLE_NARROW:
        add_to_lanes(total, PORTABLE_LANES, factor, lanes, x, stride, count)
    else:
        add_to_lanes(total, PORTABLE_NARROW, factor, lanes, x, stride, count)


cdef inline real softcapped(real score, double softcap) noexcept nogil:
    return <real>(softcap * tanh(score / softcap))


cdef inline bint is_masked(const cattn_score_mod *mod, Py_ssize_t row, Py_ssize_t j) noexcept nogil:
    return (mod.has_interval and not mod.start[row] <= j < mod.stop[row]) or (mod.has_mask and not mod.mask[row][j])


cdef inline real alibi(const cattn_score_mod *mod, Py_ssize_t row, Py_ssize_t j, real slope) noexcept nogil:
    cdef real distance = <real>(mod.distance[row] - j)
    return slope * (distance if distance > 0 else -distance)


cdef inline const real *find_attn_bias(real *attn_bias, const cattn_row_tile *tile, Py_ssize_t count) noexcept nogil:
    """Find what is added to the scores of a block and return where it lies, or NULL if nothing is added."""
    cdef const cattn_score_mod *mod = tile.score_mod
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t j, r
    cdef real added, slope
    if mod == NULL or not mod.adds:
        return NULL
    for r in range(tile.rows):
        slope = <real>mod.slope[r] if mod.has_alibi else 0
        for j in range(count):
            added = (<const real *>mod.bias[r])[j] if mod.has_bias else 0
            if mod.has_alibi and added != -INFINITY:   # a bias masks whatever is added
                added -= alibi(mod, r, j, slope)
            attn_bias[j * lanes + r] = -INFINITY if is_masked(mod, r, j) else added
    return attn_bias


cdef inline void find_block_max(const real *scores, const cattn_row_tile *tile, Py_ssize_t count) noexcept nogil:
    cdef real *block_max = <real *>tile.block_max
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] maximum
    cdef const real *score
    cdef Py_ssize_t j, r
    for r in range(lanes):
        maximum[r] = -INFINITY
    for j in range(count):
        score = scores + j * lanes
        for r in range(lanes):
            maximum[r] = score[r] if score[r] > maximum[r] else maximum[r]
    for r in range(lanes):
        block_max[r] = maximum[r]


cdef inline int modify_scores(real *scores, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    cdef const real *added = find_attn_bias(<real *>tile.attn_bias, tile, block.count)
    cdef double softcap = 0 if tile.score_mod == NULL else tile.score_mod.softcap
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t j, r
    if softcap != 0:
        for j in range(block.count):
            for r in range(tile.rows):
                scores[j * lanes + r] = softcapped(scores[j * lanes + r], softcap)
    if added != NULL:
        for j in range(block.count * lanes):
            scores[j] += added[j]
    find_block_max(scores, tile, block.count)
    return True


cdef inline int scores(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    """Step 3 of attention, for a tile of rows and a block of keys: scores[j][r] = Σ_c queries[c][r] · key_j[c].

    Step 4 has been done by `load`, which multiplies the queries by the scale. `add_products` takes up to `chain` of
    the numbers c at a time, for all rows r of the tile at once. Softcap, bias and masks follow in `modify_scores`.
    """
    cdef real *scores = <real *>array
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] one, before   # the second: of the blocks of chains before
    cdef const real *joined
    cdef Py_ssize_t first, c, j, r, size = block.size, chain = PORTABLE_LINK * PORTABLE_CHAIN
    for r in range(lanes):
        one[r] = 1
    for j in range(block.count):
        cattn_prefetch_next(block.prefetch)
        joined = NULL
        clear(before)
        for first in range((size + chain - 1) // chain):
            c = first * chain
            if first % PORTABLE_CHAINS == 0 and first > 0:
                for r in range(lanes):
                    before[r] += scores[j * lanes + r]
                joined = NULL
            add_products(scores + j * lanes, tile.rows, joined, <const real *>tile.queries + c * lanes,
                         <const real *>(block.data + j * block.stride) + c, sizeof(real), min(size - c, chain))
            joined = one
        if size > PORTABLE_CHAINS * chain:
            for r in range(lanes):
                scores[j * lanes + r] += before[r]
    return modify_scores(scores, tile, block)


cdef inline bint adds_up_to_nan(const real *array, const cattn_row_tile *tile, Py_ssize_t count) noexcept nogil:
    """Return whether the scores of some row add up to NaN. A NaN among them does that, and so do infinities of both
    signs."""
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] sum
    cdef bint found = False
    cdef Py_ssize_t j, r
    clear(sum)
    for j in range(count):
        for r in range(lanes):
            sum[r] += array[j * lanes + r]
    for r in range(tile.rows):
        found |= sum[r] != sum[r]
    return found


cdef inline void join_row(const cattn_maxima *joined, Py_ssize_t row, real score, Py_ssize_t key) noexcept nogil:
    """Let the largest score of a row in a block, which `key` is the first to have, join the maximum so far. A NaN is
    larger than all else."""
    cdef real *largest = <real *>joined.largest
    cdef real before = largest[row]
    cdef bint is_first = joined.index != NULL and joined.index[row] < 0
    if is_first or score > before or (score != score and before == before):
        largest[row] = score
        if joined.index != NULL:
            joined.index[row] = joined.first + key


cdef inline void maxima(const cattn_maxima *joined, const cattn_row_tile *tile,
                        const cattn_key_block *block) noexcept nogil:
    """Let the scores of a block join the maxima so far."""
    cdef real *array = <real *>tile.scores
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real most, score
    cdef Py_ssize_t key, j, r
    scores(array, tile, block)
    if joined.index == NULL and not adds_up_to_nan(array, tile, block.count):
        for r in range(tile.rows):
            join_row(joined, r, (<const real *>tile.block_max)[r], 0)
        return
    for r in range(tile.rows):
        most = array[r]
        key = 0
        for j in range(1, block.count):
            score = array[j * lanes + r]
            if score > most or (score != score and most == most):
                most = score
                key = j
        join_row(joined, r, most, key)


cdef inline int mark_attended(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    """Mark what the rows of a tile of either layout attend to."""
    cdef real *scores = <real *>array
    cdef const real *added = <const real *>tile.attn_bias
    # With few rows, `scores` has already made -infinity of what is masked.
    cdef bint selects = tile.layout == CATTN_MANY and tile.score_mod != NULL and tile.score_mod.adds
    cdef unsigned char every = True
    cdef Matrix matrix = score_matrix(tile, block)
    cdef Py_ssize_t line, at
    for line in range(matrix.lines):
        for at in range(line * matrix.pitch, line * matrix.pitch + matrix.length):
            if selects and added[at] == -INFINITY:
                scores[at] = -INFINITY
            tile.attended[at] = scores[at] != -INFINITY
            every &= tile.attended[at]
    return every


cdef inline void advance_maximum(real *row_max, real *reference, real *row_scale, const real *block_max,
                                 Py_ssize_t rows) noexcept nogil:
    """Raise the running maximum to that of a block. Set what to subtract from each score, and the scale of what was
    summed before."""
    cdef Py_ssize_t r
    cdef real new
    for r in range(rows):
        new = block_max[r] if block_max[r] > row_max[r] else row_max[r]
        reference[r] = 0 if new == -INFINITY else new
        row_scale[r] = exponential(<real>CATTN_LOG2E * (row_max[r] - reference[r]))
        row_max[r] = new


cdef inline void exponentiate(real *score, Py_ssize_t width, const real *reference, real *run) noexcept nogil:
    """Set score[r] = exp(score[r] - reference[r]), and add it to run[r].

    There are two loops because each operation of an exponential waits for the last, and all of them are more than a
    processor has in sight while it looks for others to start.
    """
    cdef real[PORTABLE_LANES] rest, power
    cdef Py_ssize_t r
    for r in range(width):
        score[r] = <real>CATTN_LOG2E * (score[r] - reference[r])
        rest[r] = reduce(score[r], &power[r])
    for r in range(width):
        score[r] = expand(score[r], rest[r], power[r])
        run[r] += score[r]


cdef inline int exponentials(void *array, const cattn_row_tile *tile, const cattn_key_block *keys) noexcept nogil:
    """Step 5, for a tile of rows and a block of keys: scores[j][r] becomes exp(scores[j][r] - maximum of row r).

    The maximum is that of all keys so far. Where this block raises it, `row_scale` is what everything before has to be
    multiplied by (the online softmax). `row_sum` collects the sum over keys, by which `store` divides at the end.
    """
    cdef real *scores = <real *>array
    cdef real *row_sum = <real *>tile.softmax.row_sum
    cdef real *row_scale = <real *>tile.row_scale
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] reference, block_sum
    # Every fourth weight joins the same sum of a run, so that a chain is as short as a value's.
    cdef real[PORTABLE_LINK * PORTABLE_LANES] run
    cdef Py_ssize_t number, start, j, r
    advance_maximum(<real *>tile.softmax.row_max, reference, row_scale, <const real *>tile.block_max, lanes)
    clear(block_sum)
    for number in range((keys.count + PORTABLE_RUN - 1) // PORTABLE_RUN):
        start = number * PORTABLE_RUN
        for j in range(PORTABLE_LINK):
            clear(run + j * lanes)
        for j in range(start, min(keys.count, start + PORTABLE_RUN)):
            if tile.rows > PORTABLE_NARROW:
                exponentiate(scores + j * lanes, PORTABLE_LANES, reference, run + j % PORTABLE_LINK * lanes)
            else:
                exponentiate(scores + j * lanes, PORTABLE_NARROW, reference, run + j % PORTABLE_LINK * lanes)
        for r in range(lanes):
            block_sum[r] += (run[r] + run[lanes + r]) + (run[2 * lanes + r] + run[3 * lanes + r])
    for r in range(lanes):
        row_sum[r] = row_scale[r] * row_sum[r] + block_sum[r]
    return True


cdef inline int values(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    """Steps 6 and 7, for a tile of rows and a block of values: output[c][r] = Σ_j weights[j][r] · value_j[c], added to
    what the output holds, times `row_scale`.

    `add_products` takes up to PORTABLE_RUN keys j at a time, for all rows r of the tile at once. The weights are not
    divided by their sum yet.
    """
    cdef real *output = <real *>array
    cdef const real *weights = <const real *>tile.scores
    cdef real *row_scale = NULL if tile.is_new else <real *>tile.row_scale
    cdef real *block_output = <real *>tile.block_output
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] one
    cdef const real *joined = NULL
    cdef Py_ssize_t number, start, c, r, runs = (block.count + PORTABLE_RUN - 1) // PORTABLE_RUN
    for r in range(lanes):
        one[r] = 1
    for number in range(runs):
        start = number * PORTABLE_RUN
        for c in range(block.size):
            add_products((block_output if runs > 1 else output) + c * lanes, tile.rows,
                         joined if runs > 1 else row_scale,
                         weights + start * lanes, <const real *>(block.data + start * block.stride) + c, block.stride,
                         min(block.count - start, <Py_ssize_t>PORTABLE_RUN))
        joined = one
    for c in range(block.size if runs > 1 else 0):
        for r in range(lanes):
            output[c * lanes + r] = ((0 if row_scale == NULL else row_scale[r] * output[c * lanes + r])
                                     + block_output[c * lanes + r])
    return True


cdef inline void add_carrying(real *total, real *carry, real scale, real x) noexcept nogil:
    """Turn total + carry into scale · (total + carry) + x, but for one rounding of the products with the scale."""
    cdef real before = rescale(total[0], scale)
    cdef real sum = before + x
    cdef real added = sum - before
    cdef real lost = scale * carry[0] + ((before - (sum - added)) + (x - added))
    cdef real all = sum + lost
    cdef bint finite = sum - sum == 0
    total[0] = all if finite else sum
    carry[0] = lost - (all - sum) if finite else 0


cdef inline void merge_rows(const cattn_total *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                            Py_ssize_t row_pitch, Py_ssize_t column_pitch) noexcept nogil:
    """Merge the part into the total, element by element: rows and columns lie as far apart as the pitches say."""
    cdef const real *x_max = <const real *>part.row_max
    cdef const real *x_sum = <const real *>part.row_sum
    cdef const real *x_output = <const real *>part.output
    cdef real[CATTN_MAX_LANES] reference, scale, x_scale
    cdef real *output = <real *>total.softmax.output
    cdef real *carry = <real *>total.output_carry
    cdef Py_ssize_t r, c, at
    advance_maximum(<real *>total.softmax.row_max, reference, scale, x_max, rows)
    for r in range(rows):
        x_scale[r] = exponential(<real>CATTN_LOG2E * (x_max[r] - reference[r]))
        add_carrying(<real *>total.softmax.row_sum + r, <real *>total.row_sum_carry + r, scale[r],
                     x_scale[r] * x_sum[r])
    for c in range(size):
        for r in range(rows):
            at = r * row_pitch + c * column_pitch
            add_carrying(output + at, carry + at, scale[r], rescale(x_output[at], x_scale[r]))


cdef inline void merge(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile, Py_ssize_t size,
                       int exact) noexcept nogil:
    """Merge the softmax of a tile of either layout into a total."""
    if tile.layout == CATTN_FEW:
        merge_rows(total, part, tile.rows, size, tile.output_pitch, 1)
    else:
        merge_rows(total, part, PORTABLE_LANES, size, 1, PORTABLE_LANES)


cdef inline real divisor_of(const real *row_sum, Py_ssize_t row) noexcept nogil:
    """Return what the output of a row is divided by: 1 if there are no sums, or if the row's is 0."""
    return 1 if row_sum == NULL or row_sum[row] == 0 else row_sum[row]


cdef inline int store(const void *array, const void *row_sum, const cattn_row_tile *tile, char **destination,
                      Py_ssize_t size) noexcept nogil:
    cdef const real *output = <const real *>array
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] divisor, quotient, residue
    cdef Py_ssize_t c, r
    cdef real residues = 0
    for r in range(lanes):
        divisor[r] = divisor_of(<const real *>row_sum, r)
        residue[r] = divisor[r] - divisor[r]
    for c in range(size):
        for r in range(lanes):
            quotient[r] = output[c * lanes + r] / divisor[r]
            residue[r] += quotient[r] - quotient[r]   # NaN for an infinity or a NaN, else 0
        for r in range(tile.rows):
            (<real *>destination[r])[c] = quotient[r]
    for r in range(tile.rows):
        residues += residue[r]
    return residues == 0


cdef inline void logsumexp(const cattn_softmax *softmax, const cattn_row_tile *tile, char **destination) noexcept nogil:
    """Store the logarithms of the sums of a tile of either layout."""
    cdef const real *row_max = <const real *>softmax.row_max
    cdef const real *lse_sum = <const real *>softmax.lse_sum
    cdef Py_ssize_t r
    for r in range(tile.rows):
        (<real *>destination[r])[0] = <real>(-INFINITY if lse_sum[r] == 0 else <double>row_max[r]
                                             + log(<double>lse_sum[r]))
