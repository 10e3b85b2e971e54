/* bfloat16 on units that multiply pairs of it, in 32 bits a lane: many rows. For avx512bf16.c, with REAL_BITS 32.
 *
 * Products of bfloat16 numbers are exact in float32, and are summed there. Queries lie in the lanes as pairs of
 * columns, and keys are read where they lie; weights, rounded, lie there as pairs of keys, and values come
 * interleaved. So both are float32's register tiles, of half as many steps. Sums of weights and of weighted values are
 * those of the rounded ones, so that a row stays an average of its values.
 *
 * Chains are longer than float32's: equal products have 16 bits, and 256 of them add up without an error. */

#define PAIR_RUN 32   /* pairs of columns of a run of scores */

/* sum + a.high · b.high + a.low · b.low in each lane, in this order. */
INLINE vector dot_pairs(vector sum, words a, words b)
{
#if defined(TILES_AVX512BF16)
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (vector)(a & 0xffff0000) * (vector)(b & 0xffff0000);
    return sum + (vector)(a << 16) * (vector)(b << 16);
#endif
}

/* Words of `low` and `high`, rounded to nearest, ties to even. */
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

/* Two neighbouring numbers, or the last one and 0, in all lanes. */
INLINE words splat_pair(const char *pair)
{
    uint32_t word;
    __builtin_memcpy(&word, pair, 4);
    return word - (words){0};
}

INLINE words splat_last(const char *last)
{
    uint16_t half;
    __builtin_memcpy(&half, last, 2);
    return (uint32_t)half - (words){0};
}

/* ---- load, scores ---- */

static int load_pairs(void *queries_, const cattn_row_tile *tile, const cattn_key_block *block)
{
    vector *queries = queries_;
    const ptrdiff_t count = tile->rows, pairs = block->size / 2;
    for (int v = 0; v * WIDTH < count; v++) {
        const void *row[WIDTH];
        for (int i = 0; i < WIDTH; i++)   /* lanes behind read the last row, and lose it again */
            row[i] = tile->source[v * WIDTH + i < count ? v * WIDTH + i : count - 1];
        const integers used = F(iota)() < (INT)(count - v * WIDTH);
        for (ptrdiff_t c = 0; c < pairs; c += WIDTH) {
            vector x[WIDTH];
            F(load_square)(x, row, c, AT_MOST(pairs - c, WIDTH));
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < pairs - c)
                    queries[(c + i) * TILE_VECTORS + v] = (vector)((integers)x[i] & used);
        }
        if (block->size % 2) {
            integers last = {0};
            for (int i = 0; i < WIDTH; i++)
                last[i] = ((const uint16_t *)row[i])[block->size - 1];
            queries[pairs * TILE_VECTORS + v] = (vector)(last & used);
        }
    }
    return 1;
}

/* wide keys × the lanes in use. */
INLINE void pair_scores_tile(vector *scores, vector *maximum, const vector *queries, const vector *added,
                             const char *keys, ptrdiff_t stride, ptrdiff_t size, const float scale, const int wide,
                             const int vectors)
{
    const ptrdiff_t pairs = size / 2;
    const char *key[TILE_WIDE];
    vector sum[TILE_WIDE][TILE_VECTORS];
    UNROLL for (int j = 0; j < wide; j++) {
        key[j] = keys + j * stride;
        OPAQUE(key[j]);
    }
    for (ptrdiff_t start = 0; start <= pairs; start += PAIR_RUN) {   /* once at least, for a single column */
        const ptrdiff_t steps = AT_MOST(pairs - start, PAIR_RUN);
        const int last = start + PAIR_RUN >= pairs;
        ptrdiff_t c = start;
        F(clear)(sum, wide, vectors);
#define PAIR_STEP(key_word)                                                                  \
        UNROLL for (int j = 0; j < wide; j++) {                                              \
            const words word = key_word(key[j] + c * 4);                                     \
            UNROLL for (int v = 0; v < vectors; v++)                                         \
                sum[j][v] = dot_pairs(sum[j][v], (words)queries[c * TILE_VECTORS + v], word);\
        }                                                                                    \
        c++;
        STEPS(PAIR_STEP(splat_pair), steps, PAIR_RUN)
        if (last && size % 2) {
            PAIR_STEP(splat_last)
        }
#undef PAIR_STEP
        OPAQUE(scores);   /* or its loads move up before the branches, into spilled registers */
        if (start != 0) {
            UNROLL for (int j = 0; j < wide; j++)
                UNROLL for (int v = 0; v < vectors; v++)
                    sum[j][v] += scores[j * TILE_VECTORS + v];
        }
        if (!last) {
            UNROLL for (int j = 0; j < wide; j++)
                UNROLL for (int v = 0; v < vectors; v++)
                    scores[j * TILE_VECTORS + v] = sum[j][v];
            continue;
        }
        UNROLL for (int j = 0; j < wide; j++)
            UNROLL for (int v = 0; v < vectors; v++) {
                vector score = sum[j][v] * scale;
                if (added != NULL)
                    score = F(muladd)(sum[j][v], F(splat)(scale), added[j * TILE_VECTORS + v]);
                scores[j * TILE_VECTORS + v] = score;
                maximum[v] = F(larger)(score, maximum[v]);
            }
        break;
    }
}

#define SCORES_TILE pair_scores_tile
#define SCORES pair_scores
#include "scores_template.h"

/* ---- softmax, values ---- */

INLINE void pair_exponentials_of(vector *scores, const cattn_row_tile *tile, ptrdiff_t count, const int vectors)
{
    vector *row_max = tile->softmax.row_max, *row_sum = tile->softmax.row_sum, *row_scale = tile->row_scale;
    vector *lse_sum = tile->softmax.lse_sum;
    const vector *block_max = tile->block_max;
    const words one = 0x3f803f80 - (words){0};
    vector shift[TILE_VECTORS], block[TILE_VECTORS], exact[TILE_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        shift[v] = F(advance)(&row_max[v], &row_scale[v], block_max[v]);
        block[v] = exact[v] = (vector){0};
    }
    for (ptrdiff_t start = 0; start < count; start += RUN) {
        vector run[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            run[v] = (vector){0};
        for (ptrdiff_t j = start; j < F(run_end)(start, count, RUN); j += 2) {
            vector low[TILE_VECTORS], high[TILE_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++)
                low[v] = (scores[j * TILE_VECTORS + v] - shift[v]) * (REAL)CATTN_LOG2E;
            F(exponential)(low, vectors);
            if (j + 1 < count) {
                UNROLL for (int v = 0; v < vectors; v++)
                    high[v] = (scores[(j + 1) * TILE_VECTORS + v] - shift[v]) * (REAL)CATTN_LOG2E;
                F(exponential)(high, vectors);
            } else {
                UNROLL for (int v = 0; v < vectors; v++)
                    high[v] = (vector){0};
            }
            UNROLL for (int v = 0; v < vectors; v++) {
                const words pair = round_pairs(low[v], high[v]);
                scores[j / 2 * TILE_VECTORS + v] = (vector)pair;
                block[v] = dot_pairs(block[v], pair, one);
                run[v] += low[v] + high[v];
            }
        }
        UNROLL for (int v = 0; v < vectors; v++)
            exact[v] += run[v];
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        row_sum[v] = F(muladd)(row_scale[v], row_sum[v], block[v]);
        lse_sum[v] = F(muladd)(row_scale[v], lse_sum[v], exact[v]);
    }
}

static int pair_exponentials(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
#define EXPONENTIALS_OF(vectors) pair_exponentials_of(scores, tile, block->count, vectors)
    WITH_VECTORS(tile->rows, EXPONENTIALS_OF)
#undef EXPONENTIALS_OF
    return 1;
}

/* wide value columns × the lanes in use, over all pairs of the block. */
INLINE void pair_values_tile(vector *output, const vector *row_scale, const words *weights, const char *values,
                             ptrdiff_t stride, ptrdiff_t pairs, const int wide, const int vectors)
{
    vector sum[TILE_WIDE][TILE_VECTORS];
    OPAQUE(output);
    F(clear)(sum, wide, vectors);
#define PAIR_STEP                                                                 \
    UNROLL for (int c = 0; c < wide; c++) {                                       \
        const words word = splat_pair(values + c * 4);                            \
        UNROLL for (int v = 0; v < vectors; v++)                                  \
            sum[c][v] = dot_pairs(sum[c][v], weights[v], word);                   \
    }                                                                             \
    weights += TILE_VECTORS;                                                      \
    values += stride;
    STEPS(PAIR_STEP, pairs, 2 * RUN)
#undef PAIR_STEP
    OPAQUE(output);   /* or loads move up before the branches, into spilled registers */
    if (row_scale == NULL) {
        UNROLL for (int c = 0; c < wide; c++)
            UNROLL for (int v = 0; v < vectors; v++)
                output[c * TILE_VECTORS + v] = sum[c][v];
    } else {
        UNROLL for (int c = 0; c < wide; c++)
            UNROLL for (int v = 0; v < vectors; v++)
                output[c * TILE_VECTORS + v] = F(muladd)(row_scale[v], output[c * TILE_VECTORS + v], sum[c][v]);
    }
}

INLINE void pair_values_of(vector *output, const cattn_row_tile *tile, const cattn_key_block *block, const int vectors)
{
    const words *weights = tile->scores;
    const vector *row_scale = tile->is_new ? NULL : tile->row_scale;
    const char *values = block->rows;
    const ptrdiff_t stride = 2 * block->stride, pairs = (block->count + 1) / 2, size = block->size;
    cattn_prefetch *prefetch = block->prefetch;
    const int widest = F(widest)(vectors);
    for (ptrdiff_t c = 0, wide; c < size; c += wide) {
        wide = F(next_width)(size - c, widest);
        cattn_prefetch_next(prefetch);
#define VALUES_TILE(n)                                                                                                 \
        pair_values_tile(output + c * TILE_VECTORS, row_scale, weights, values + c * 4, stride, pairs, n, vectors)
        WITH_WIDTH(wide, widest, VALUES_TILE)
#undef VALUES_TILE
    }
}

static int pair_values(void *output, const cattn_row_tile *tile, const cattn_key_block *block)
{
#define VALUES_OF(vectors) pair_values_of(output, tile, block, vectors)
    WITH_VECTORS(tile->rows, VALUES_OF)
#undef VALUES_OF
    return 1;
}

static void interleave(void *to_, const void *one_, const void *other_, ptrdiff_t count)
{
    uint32_t *restrict to = to_;
    const uint16_t *one = one_, *other = other_;
    for (ptrdiff_t c = 0; c < count; c++)
        to[c] = one[c] | (uint32_t)other[c] << 16;
}

static void override_pairs(cattn_table *table)
{
    cattn_kernels *many = &table->kernels[CATTN_BFLOAT16][CATTN_MANY];
    many->type = CATTN_BFLOAT16;
    many->reads = 1u << CATTN_BFLOAT16;
    many->rounds_weights = many->interleaves = 1;
    many->blocking.bytes *= 2;   /* of numbers of half the size */
    many->load = load_pairs;
    many->scores = pair_scores;
    many->exponentials = pair_exponentials;
    many->values = pair_values;
    table->interleave = interleave;
}
