# The kernel table in typed loops: complete, portable, and the oracle of the others. What each function does stands in
# tiles.h; here they are written once for float and double.
#
# The innermost loops run over the lanes, a constant number of them, without a branch: compilers turn each into a few
# vector instructions and keep the small accumulator arrays in registers.
#
# Two passes of gcc are off for the sake of these loops, in the whole module. peephole2 turns "copy the factor, multiply it by
# memory" into "load, multiply by the factor": 0.85 times as fast on Zen 3. Unroll-and-jam joins two turns of the outer
# loop, whose sums then do not fit into the registers: 0.3 times.

cdef extern from *:
    """
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize ("no-peephole2", "no-loop-unroll-and-jam")
    #endif
    """

from libc.math cimport INFINITY, isfinite, tanh

ctypedef fused real:
    float
    double

cdef enum:
    # Eight SSE2 registers of floats, which leaves as many for operands. Not fewer: a loop of 16 steps or less gcc unrolls
    # before it looks for vectors, and then finds the wrong ones.
    PORTABLE_LANES = 32
    PORTABLE_NARROW = 16     # for so many rows at most, the loops that cost most (and are too large to unroll) take no more
    PORTABLE_LINK = 4        # terms that are summed, two and two, before they join a chain, which rounds once for the four
    PORTABLE_CHAIN = 16      # links of a score's chain: 32 equal ones came to 2.4 κ
    # Keys whose values are summed in one chain: a block of head size 128, half of one of 64. Why sums are chains of chains
    # stands at RUN in tiles.inc.
    PORTABLE_RUN = 40


cdef union FloatBits:
    float value
    uint32_t bits


cdef union DoubleBits:
    double value
    uint64_t bits


cdef inline real reduce(real x, real *power) noexcept nogil:
    """f, and 2^n as `power`, with which 2^x = 2^n · 2^f: n is the integer nearest to x and f = x - n, exactly.

    Adding `shift` rounds to an integer and leaves n plus the exponent's bias in the last bits of the sum, from where a
    shift makes it the number 2^n.
    """
    cdef FloatBits float_power
    cdef DoubleBits double_power
    cdef real n, shift
    if real is float:
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
    """2^x for x <= 0 (and little above) from its parts; 0 where 2^n falls below the smallest normal number, NaN for NaN.

    The polynomials are minimax ones of (2^f - 1) / f: 1.1e-8 (float), 1.8e-17 (double) relative to 2^f - 1. Their even
    and odd terms are two chains of half the length.
    """
    cdef real even, odd, lowest, g = f * f
    if real is float:
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


cdef inline real rescale(real sum, real factor) noexcept nogil:
    """factor · sum; an infinity stays what it is, even when its weight came out as 0: that is a small positive number."""
    return sum if factor == 0 and sum - sum != 0 else factor * sum


# Many rows: one row a lane.


cdef void load_rows(real *queries, const char *const *rows, Py_ssize_t count, Py_ssize_t size,
                    double scale) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t c, r
    cdef real factor = <real>scale
    for r in range(count):
        for c in range(size):
            queries[c * lanes + r] = factor * (<const real *>rows[r])[c]
    for r in range(count, lanes):
        for c in range(size):
            queries[c * lanes + r] = 0


cdef inline void clear(real *sum) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(PORTABLE_LANES // 2):   # by halves: all in one gcc makes a `rep stos`, 30 cycles
        sum[r] = 0
        sum[PORTABLE_LANES // 2 + r] = 0


cdef inline const real *behind(const real *first, Py_ssize_t bytes) noexcept nogil:
    return <const real *>(<const char *>first + bytes)


cdef inline void add_to_lanes(real *total, Py_ssize_t width, const real *factor, const real *lanes, const real *x,
                              Py_ssize_t stride, Py_ssize_t count) noexcept nogil:
    """total[r] = factor[r] · total[r] + Σ_i lanes[i][r] · x_i for r < width; without a factor the sum alone, and zeros
    past the width. The x_i lie `stride` bytes apart.

    A link at a time: wherever a compiler keeps the sums, it touches them once in four. That should be in registers: gcc
    does so here, but not for the narrow width where the number of passes is plain to see.
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
    """The same for a tile of so many rows. Both widths are constants, so that the sums can stay in registers."""
    if rows > PORTABLE_NARROW:
        add_to_lanes(total, PORTABLE_LANES, factor, lanes, x, stride, count)
    else:
        add_to_lanes(total, PORTABLE_NARROW, factor, lanes, x, stride, count)


cdef void scores(real *scores, real *block_maximum, const real *queries, const real *terms, Py_ssize_t rows,
                 const char *keys, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t size, cattn_ahead *ahead) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] maximum, one
    cdef const real *factor
    cdef real *score
    cdef Py_ssize_t part, c, j, r, chain = PORTABLE_LINK * PORTABLE_CHAIN
    for r in range(lanes):
        one[r] = 1
    for j in range(count):
        cattn_ask_ahead(ahead)
        score = scores + j * lanes
        factor = NULL
        for part in range((size + chain - 1) // chain):
            c = part * chain
            add_products(score, rows, factor, queries + c * lanes, <const real *>(keys + j * stride) + c, sizeof(real),
                         min(size - c, chain))
            factor = one
    for r in range(lanes):
        maximum[r] = -INFINITY
    for j in range(count):
        score = scores + j * lanes
        if terms != NULL:
            for r in range(lanes):
                score[r] += terms[j * lanes + r]
        for r in range(lanes):
            maximum[r] = score[r] if score[r] > maximum[r] else maximum[r]
    for r in range(lanes):
        block_maximum[r] = maximum[r]


cdef inline real softcapped(real score, double softcap) noexcept nogil:
    return <real>(softcap * tanh(score / softcap))


cdef inline bint is_masked(const cattn_edit *edit, Py_ssize_t row, Py_ssize_t j) noexcept nogil:
    return (edit.has_interval and not edit.first[row] <= j < edit.last[row]) or (edit.has_mask and not edit.mask[row][j])


cdef inline real alibi(const cattn_edit *edit, Py_ssize_t row, Py_ssize_t j, real slope) noexcept nogil:
    cdef real distance = <real>(edit.distance[row] - j)
    return slope * (distance if distance > 0 else -distance)


cdef void terms(real *terms, Py_ssize_t rows, Py_ssize_t count, const cattn_edit *edit) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t j, r
    cdef real term, slope
    for r in range(rows):
        slope = <real>edit.slope[r] if edit.has_alibi else 0
        for j in range(count):
            term = (<const real *>edit.bias[r])[j] if edit.has_bias else 0
            if edit.has_alibi and term != -INFINITY:   # a bias masks whatever is added
                term -= alibi(edit, r, j, slope)
            terms[j * lanes + r] = -INFINITY if is_masked(edit, r, j) else term


cdef void soften(real *scores, real *block_maximum, const real *terms, Py_ssize_t rows, Py_ssize_t count,
                 double softcap) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t j, r
    cdef real *score
    for r in range(rows):
        block_maximum[r] = -INFINITY
        for j in range(count):
            score = scores + j * lanes + r
            score[0] = softcapped(score[0], softcap)
            if terms != NULL:
                score[0] += terms[j * lanes + r]
            if score[0] > block_maximum[r]:
                block_maximum[r] = score[0]


cdef inline void advance_maximum(real *maximum, real *reference, real *factor, const real *block_maximum,
                                 Py_ssize_t rows) noexcept nogil:
    """The running maximum, what to subtract from each score, and what rescales all that came before."""
    cdef Py_ssize_t r
    cdef real new
    for r in range(rows):
        new = block_maximum[r] if block_maximum[r] > maximum[r] else maximum[r]
        reference[r] = 0 if new == -INFINITY else new
        factor[r] = exponential(<real>CATTN_LOG2E * (maximum[r] - reference[r]))
        maximum[r] = new


cdef inline void exponentiate(real *score, Py_ssize_t width, const real *reference, real *run) noexcept nogil:
    """score[r] = exp(score[r] - reference[r]), added to run[r]. In two loops: the operations of a whole exponential,
    each of which waits for the last, are more than a processor has in sight while it looks for others to start."""
    cdef real[PORTABLE_LANES] rest, power
    cdef Py_ssize_t r
    for r in range(width):
        score[r] = <real>CATTN_LOG2E * (score[r] - reference[r])
        rest[r] = reduce(score[r], &power[r])
    for r in range(width):
        score[r] = expand(score[r], rest[r], power[r])
        run[r] += score[r]


cdef void exponentials(real *scores, Py_ssize_t rows, Py_ssize_t count, real *maximum, real *sum, real *factor,
                       const real *block_maximum) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] reference, block
    cdef real[PORTABLE_LINK * PORTABLE_LANES] run   # every fourth weight joins the same one: a chain is as short as a value's
    cdef Py_ssize_t number, start, j, r
    advance_maximum(maximum, reference, factor, block_maximum, lanes)
    clear(block)
    for number in range((count + PORTABLE_RUN - 1) // PORTABLE_RUN):
        start = number * PORTABLE_RUN
        for j in range(PORTABLE_LINK):
            clear(run + j * lanes)
        for j in range(start, min(count, start + PORTABLE_RUN)):
            if rows > PORTABLE_NARROW:
                exponentiate(scores + j * lanes, PORTABLE_LANES, reference, run + j % PORTABLE_LINK * lanes)
            else:
                exponentiate(scores + j * lanes, PORTABLE_NARROW, reference, run + j % PORTABLE_LINK * lanes)
        for r in range(lanes):
            block[r] += (run[r] + run[lanes + r]) + (run[2 * lanes + r] + run[3 * lanes + r])
    for r in range(lanes):
        sum[r] = factor[r] * sum[r] + block[r]


cdef void values(real *output, real *block, const real *factor, const real *weights, Py_ssize_t rows, const char *values,
                 Py_ssize_t stride, Py_ssize_t count, Py_ssize_t size, cattn_ahead *ahead) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] one
    cdef const real *joined = NULL
    cdef Py_ssize_t number, start, c, r, runs = (count + PORTABLE_RUN - 1) // PORTABLE_RUN
    for r in range(lanes):
        one[r] = 1
    for number in range(runs):
        start = number * PORTABLE_RUN
        for c in range(size):
            add_products((block if runs > 1 else output) + c * lanes, rows, joined if runs > 1 else factor,
                         weights + start * lanes, <const real *>(values + start * stride) + c, stride,
                         min(count - start, <Py_ssize_t>PORTABLE_RUN))
        joined = one
    for c in range(size if runs > 1 else 0):
        for r in range(lanes):
            output[c * lanes + r] = (0 if factor == NULL else factor[r] * output[c * lanes + r]) + block[c * lanes + r]


cdef inline real select_run(const real *weights, const unsigned char *attended, Py_ssize_t pitch, const char *values,
                            Py_ssize_t stride, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t link_size) noexcept nogil:
    """One element of a run's sum, in either layout: Σ_j weight_j · value_j over the attended keys. Pairs join a link one
    after the other, links the run."""
    cdef real run = 0, link = 0, pair = 0, value
    cdef Py_ssize_t j
    for j in range(start, stop):
        if attended[j * pitch]:
            value = (<const real *>(values + j * stride))[0]
            if weights[j * pitch] == 0 and not isfinite(value):
                pair += value
            else:
                pair += weights[j * pitch] * value
        if (j - start) % 2 == 1 or j == stop - 1:
            link += pair
            pair = 0
        if (j - start + 1) % link_size == 0 or j == stop - 1:
            run += link
            link = 0
    return run


cdef void select_values(real *output, const real *factor, const real *weights, const unsigned char *attended,
                        Py_ssize_t rows, const char *values, Py_ssize_t stride, Py_ssize_t count,
                        Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef Py_ssize_t number, start, c, r
    cdef real block
    for c in range(size):
        for r in range(rows):
            block = 0
            for number in range((count + PORTABLE_RUN - 1) // PORTABLE_RUN):
                start = number * PORTABLE_RUN
                block += select_run(weights + r, attended + r, lanes, values + c * sizeof(real), stride, start,
                                    min(count, start + PORTABLE_RUN), PORTABLE_LINK)
            if factor != NULL:
                block += rescale(output[c * lanes + r], factor[r])
            output[c * lanes + r] = block


cdef inline void add_carrying(real *total, real *carry, real factor, real part) noexcept nogil:
    """total + carry becomes factor · (total + carry) + part, but for one rounding of the factor's products."""
    cdef real before = rescale(total[0], factor)
    cdef real sum = before + part
    cdef real added = sum - before
    cdef real lost = factor * carry[0] + ((before - (sum - added)) + (part - added))
    cdef real all = sum + lost
    cdef bint finite = sum - sum == 0
    total[0] = all if finite else sum
    carry[0] = lost - (all - sum) if finite else 0


cdef inline void merge_rows(const cattn_softmax *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                            Py_ssize_t columns, bint few, real *unused) noexcept nogil:
    """`merge` for either layout. Outputs stand in slices of so many columns, one behind the other."""
    cdef real[CATTN_MAX_LANES] reference, factor, part_factor
    cdef const real *part_output = <const real *>part.output
    cdef real *output = <real *>total.output
    cdef real *carry = <real *>total.output_carry
    cdef Py_ssize_t start = 0, r, c, at, row_pitch = 1, column_pitch = rows
    advance_maximum(<real *>total.maximum, reference, factor, <const real *>part.maximum, rows)
    for r in range(rows):
        part_factor[r] = exponential(<real>CATTN_LOG2E * ((<const real *>part.maximum)[r] - reference[r]))
        add_carrying(<real *>total.sum + r, <real *>total.sum_carry + r, factor[r], part_factor[r] * (<const real *>part.sum)[r])
    while start < size:
        columns = min(columns, size - start)
        if few:
            row_pitch = columns
            column_pitch = 1
        for c in range(columns):
            for r in range(rows):
                at = start * rows + r * row_pitch + c * column_pitch
                add_carrying(output + at, carry + at, factor[r], rescale(part_output[at], part_factor[r]))
        start += columns


cdef void few_merge_float(const cattn_softmax *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                          Py_ssize_t columns) noexcept nogil:
    merge_rows[float](total, part, rows, size, columns, True, NULL)


cdef void few_merge_double(const cattn_softmax *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                           Py_ssize_t columns) noexcept nogil:
    merge_rows[double](total, part, rows, size, columns, True, NULL)


cdef void merge_float(const cattn_softmax *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                      int selected) noexcept nogil:
    merge_rows[float](total, part, PORTABLE_LANES, size, size, False, NULL)


cdef void merge_double(const cattn_softmax *total, const cattn_softmax *part, Py_ssize_t rows, Py_ssize_t size,
                       int selected) noexcept nogil:
    merge_rows[double](total, part, PORTABLE_LANES, size, size, False, NULL)


cdef int store_rows(char *const *rows, Py_ssize_t count, const real *output, const real *divisor,
                    Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t lanes = PORTABLE_LANES
    cdef real[PORTABLE_LANES] quotient, residue
    cdef Py_ssize_t c, r
    cdef real residues = 0
    clear(residue)
    for c in range(size):
        for r in range(lanes):
            quotient[r] = output[c * lanes + r] / divisor[r]
            residue[r] += quotient[r] - quotient[r]   # NaN for an infinity or a NaN, else 0
        for r in range(count):
            (<real *>rows[r])[c] = quotient[r]
    for r in range(count):
        residues += residue[r]
    return residues == 0


# Storage types.


cdef inline float widen_half(uint16_t half) noexcept nogil:
    """float16 → float32. The exponent's bias grows from 15 to 127; a subnormal is an integer times 2^-24."""
    cdef FloatBits result
    cdef uint32_t sign = <uint32_t>(half & 0x8000) << 16
    cdef uint32_t exponent = (half >> 10) & 0x1f
    cdef uint32_t fraction = half & 0x3ff
    if exponent == 0:
        result.value = fraction * <float>5.9604644775390625e-08
        result.bits |= sign
    elif exponent == 31:
        result.bits = sign | 0x7f800000 | (fraction << 13)
    else:
        result.bits = sign | ((exponent + 112) << 23) | (fraction << 13)
    return result.value


cdef inline uint16_t narrow_half(float value) noexcept nogil:
    """float32 → float16, to nearest, ties to even."""
    cdef FloatBits x, rounded
    cdef uint16_t sign
    x.value = value
    sign = <uint16_t>((x.bits >> 16) & 0x8000)
    x.bits &= 0x7fffffff
    if x.bits > 0x7f800000:
        return sign | 0x7e00
    if x.bits >= 0x477ff000:   # 65520, halfway between the largest float16 and the next step
        return sign | 0x7c00
    if x.bits < 0x38800000:   # 2^-14: adding 1/2 leaves the integer multiple of 2^-24, rounded, in the last bits
        rounded.value = x.value + <float>0.5
        return sign | <uint16_t>(rounded.bits - 0x3f000000)
    x.bits += 0xfff + ((x.bits >> 13) & 1)
    return sign | <uint16_t>((x.bits - 0x38000000) >> 13)


cdef inline uint16_t narrow_brain(float value) noexcept nogil:
    """float32 → bfloat16, to nearest, ties to even."""
    cdef FloatBits x
    x.value = value
    if value != value:
        return <uint16_t>((x.bits >> 16) | 0x40)
    return <uint16_t>((x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16)


cdef void widen(void *to, const char *source, cattn_type type, Py_ssize_t count) noexcept nogil:
    cdef const uint16_t *halves = <const uint16_t *>source
    cdef FloatBits x
    cdef Py_ssize_t i
    for i in range(count):
        if type == CATTN_FLOAT16:
            x.value = widen_half(halves[i])
        else:
            x.bits = <uint32_t>halves[i] << 16
        (<float *>to)[i] = x.value


cdef void narrow(char *to, const void *source, cattn_type type, Py_ssize_t count) noexcept nogil:
    cdef const float *values = <const float *>source
    cdef Py_ssize_t i
    for i in range(count):
        (<uint16_t *>to)[i] = narrow_half(values[i]) if type == CATTN_FLOAT16 else narrow_brain(values[i])


cdef void fill_portable(cattn_tiles *tiles, real *unused) noexcept nogil:
    """The set of `real`; the pointer only says which."""
    tiles.item = sizeof(real)
    tiles.lanes = tiles.part = PORTABLE_LANES
    tiles.run = PORTABLE_RUN
    tiles.load_rows = <load_rows_function>load_rows[real]
    tiles.terms = <terms_function>terms[real]
    tiles.scores = <scores_function>scores[real]
    tiles.soften = <soften_function>soften[real]
    tiles.exponentials = <exponentials_function>exponentials[real]
    tiles.values = <values_function>values[real]
    tiles.select_values = <select_values_function>select_values[real]
    tiles.merge = merge_float if real is float else merge_double
    tiles.store_rows = <store_rows_function>store_rows[real]
    tiles.few_halves = False
    tiles.few_scores = <few_scores_function>few_scores[real]
    tiles.few_edit = <few_edit_function>few_edit[real]
    tiles.few_exponentials = <few_exponentials_function>few_exponentials[real]
    tiles.few_values = <few_values_function>few_values[real]
    tiles.few_select_values = <few_select_values_function>few_select_values[real]
    tiles.few_merge = few_merge_float if real is float else few_merge_double
    tiles.widen = widen
    tiles.narrow = narrow
