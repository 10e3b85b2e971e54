/* Pairs of bfloat16, in 32 bits a lane: this file has what all kernels that take them share. REAL_BITS is 32.
 *
 * Products of bfloat16 numbers are exact in float32, and are summed there. Queries lie in the lanes as pairs of
 * columns, and weights, rounded, as pairs of keys. Sums of weights are those of the rounded ones, so that a row stays
 * an average of its values. */

#define NUMBERS 32   /* bfloat16 numbers a vector */

/* Loads the first n numbers, with zeros behind them. */
INLINE words load_numbers(const void *from, ptrdiff_t n)
{
    words x = {0};
    if (n >= NUMBERS)
        __builtin_memcpy(&x, from, sizeof x);
    else
#if defined(TILES_AVX512BF16)
        x = (words)_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), from);
#else
        __builtin_memcpy(&x, from, (size_t)n * 2);
#endif
    return x;
}

/* Returns sum + a.high · b.high + a.low · b.low in each lane, added up in this order. */
INLINE vector dot_pairs(vector sum, words a, words b)
{
#if defined(TILES_AVX512BF16)
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (vector)(a & 0xffff0000) * (vector)(b & 0xffff0000);
    return sum + (vector)(a << 16) * (vector)(b << 16);
#endif
}

/* Returns words of `low` and `high`, rounded to nearest, ties to even. */
INLINE words round_pairs(vector low, vector high)
{
#if defined(TILES_AVX512BF16)
    static const uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
#else
    words x = (words)low, y = (words)high, nan = (words)(low != low);
    x = ((nan & (x | 0x400000)) | (~nan & (x + 0x7fff + ((x >> 16) & 1)))) >> 16;
    nan = (words)(high != high);
    return x | (((nan & (y | 0x400000)) | (~nan & (y + 0x7fff + ((y >> 16) & 1)))) & 0xffff0000);
#endif
}

/* Makes words of two rows. `low` takes the numbers 0 to 3 of each 128 bits, and `high` the numbers 4 to 7. */
INLINE void unpack_rows(words *low, words *high, words one, words other)
{
#if defined(TILES_AVX512BF16)
    *low = (words)_mm512_unpacklo_epi16((__m512i)one, (__m512i)other);
    *high = (words)_mm512_unpackhi_epi16((__m512i)one, (__m512i)other);
#else
    const union { words all; uint16_t number[NUMBERS]; } x = {one}, y = {other};
    for (int i = 0; i < WIDTH; i++) {
        const int at = i / 4 * 8 + i % 4;
        (*low)[i] = x.number[at] | (uint32_t)y.number[at] << 16;
        (*high)[i] = x.number[at + 4] | (uint32_t)y.number[at + 4] << 16;
    }
#endif
}

/* ---- load ---- */

static void load_pairs(void *queries_, const cattn_row_tile *tile, const char **source, ptrdiff_t size)
{
    vector *queries = queries_;
    const ptrdiff_t count = tile->rows, pairs = size / 2;
    for (int v = 0; v * WIDTH < count; v++) {
        const void *row[WIDTH];
        for (int i = 0; i < WIDTH; i++)   /* lanes behind read the last row, and lose it again */
            row[i] = source[v * WIDTH + i < count ? v * WIDTH + i : count - 1];
        const integers used = F(iota)() < (INT)(count - v * WIDTH);
        for (ptrdiff_t c = 0; c < pairs; c += WIDTH) {
            vector x[WIDTH];
            F(load_square)(x, row, c, AT_MOST(pairs - c, WIDTH));
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < pairs - c)
                    queries[(c + i) * TILE_VECTORS + v] = (vector)((integers)x[i] & used);
        }
        if (size % 2) {
            integers last = {0};
            for (int i = 0; i < WIDTH; i++)
                last[i] = ((const uint16_t *)row[i])[size - 1];
            queries[pairs * TILE_VECTORS + v] = (vector)(last & used);
        }
    }
}

/* ---- exponentials ---- */

/* Returns whether `scores` leaves the scale to the exponentials. The scale must be positive, so that the largest score
 * stays the largest, and nothing but -infinity may be added. Masks do not decide it, because the bits of a row must not
 * depend on masked keys. */
INLINE int scales_late(const cattn_row_tile *tile)
{
    const cattn_score_mod *mod = tile->score_mod;
    return PAIR_SCALES_LATE && tile->scale > 0 && (mod == NULL || (mod->softcap == 0 && !mod->has_bias && !mod->has_alibi));
}

/* Scores that are scaled late are not rounded before the row's largest one is subtracted, which is. What that one was
 * rounded by counts in rows whose largest score is beyond this. */
#define FAR_SCORE 0x1p20f

INLINE integers is_far(vector score)
{
    return ((score > FAR_SCORE) | (score < -FAR_SCORE)) & (score - score == 0);
}

/* Returns whether there is such a row. */
static int has_far_rows(const cattn_row_tile *tile)
{
    const vector *row_max = tile->softmax.row_max, *block_max = tile->block_max;
    integers found = {0};
    INT any = 0;
    for (int v = 0; v * WIDTH < tile->rows; v++)
        found |= is_far(row_max[v]) | is_far(block_max[v]);
    for (int i = 0; i < WIDTH; i++)
        any |= found[i];
    return any != 0;
}

/* Computes the exponentials of the scores of two keys, or of the last key and zeros. Where scores are far, those that
 * are not below `equal` are the largest one. */
INLINE void pair_powers(vector low[TILE_VECTORS], vector high[TILE_VECTORS], const vector *scores, const vector *shift,
                        const vector *equal, const float scale, const int late, const int far, const int keys,
                        const int vectors)
{
    UNROLL for (int key = 0; key < 2; key++) {
        vector *power = key == 0 ? low : high;
        if (key >= keys) {
            UNROLL for (int v = 0; v < vectors; v++)
                power[v] = (vector){0};
            continue;
        }
        UNROLL for (int v = 0; v < vectors; v++) {
            const vector score = scores[key * TILE_VECTORS + v];
            power[v] = score - shift[v];
            if (late)
                power[v] = F(muladd)(score, F(splat)(scale), -shift[v]);
            if (far)
                power[v] = F(select)(power[v] >= equal[v], (vector){0}, power[v]);
            power[v] *= (REAL)CATTN_LOG2E;
        }
        PAIR_EXPONENTIAL(power, vectors);
    }
}

INLINE void pair_exponentials_of(vector *scores, const cattn_row_tile *tile, ptrdiff_t count, const int late,
                                 const int far, const int vectors)
{
    vector *row_max = tile->softmax.row_max, *row_sum = tile->softmax.row_sum, *row_scale = tile->row_scale;
    vector *lse_sum = tile->softmax.lse_sum;
    const vector *block_max = tile->block_max;
    const words one = 0x3f803f80 - (words){0};
    const float scale = (float)tile->scale;
    vector shift[TILE_VECTORS], equal[TILE_VECTORS], block_sum[TILE_VECTORS], exact_sum[TILE_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        shift[v] = F(advance)(&row_max[v], &row_scale[v], block_max[v]);
        /* A unit in the last place below it. */
        equal[v] = F(select)(is_far(shift[v]), F(larger)(shift[v], -shift[v]) * -0x1p-23f, F(splat)(INFINITE));
        block_sum[v] = exact_sum[v] = (vector){0};
    }
    for (ptrdiff_t start = 0; start < count; start += RUN) {
        vector run[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            run[v] = (vector){0};
        for (ptrdiff_t j = start; j < F(run_end)(start, count, RUN); j += 2) {
            vector low[TILE_VECTORS], high[TILE_VECTORS];
            if (j + 1 < count)
                pair_powers(low, high, scores + j * TILE_VECTORS, shift, equal, scale, late, far, 2, vectors);
            else
                pair_powers(low, high, scores + j * TILE_VECTORS, shift, equal, scale, late, far, 1, vectors);
            UNROLL for (int v = 0; v < vectors; v++) {
                const words pair = round_pairs(low[v], high[v]);
                scores[j / 2 * TILE_VECTORS + v] = (vector)pair;
                block_sum[v] = dot_pairs(block_sum[v], pair, one);
                run[v] += low[v] + high[v];
            }
        }
        UNROLL for (int v = 0; v < vectors; v++)
            exact_sum[v] += run[v];
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        row_sum[v] = F(muladd)(row_scale[v], row_sum[v], block_sum[v]);
        lse_sum[v] = F(muladd)(row_scale[v], lse_sum[v], exact_sum[v]);
    }
}

static int pair_exponentials(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
#define EXPONENTIALS_OF(vectors) pair_exponentials_of(scores, tile, block->count, late, far, vectors)
    if (scales_late(tile) && has_far_rows(tile)) {
        const int late = 1, far = 1;
        WITH_VECTORS(tile->rows, EXPONENTIALS_OF)
    } else if (scales_late(tile)) {
        const int late = 1, far = 0;
        WITH_VECTORS(tile->rows, EXPONENTIALS_OF)
    } else {
        const int late = 0, far = 0;
        WITH_VECTORS(tile->rows, EXPONENTIALS_OF)
    }
#undef EXPONENTIALS_OF
    return 1;
}
