/* Many rows of bfloat16 on VDPBF16PS, which multiplies pairs. avx512bf16.c includes this file behind pairs_template.h.
 *
 * Keys are read where they lie, against pairs of columns of the queries. Values come interleaved, against pairs of keys
 * of the weights. So both are float32's register tiles, of half as many steps.
 *
 * Chains are longer than float32's, because equal products have 16 bits, and 256 of them add up without an error. */

#define PAIR_RUN 32   /* pairs of columns of a run of scores */

/* These two put a pair of neighbouring numbers, or the last one and 0, into all lanes. */
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

/* ---- scores ---- */

/* Computes the scores of `wide` keys and the lanes in use. */
INLINE void pair_scores_tile(vector *scores, vector *maximum, const vector *queries, const vector *added,
                             const char *keys, ptrdiff_t stride, const char *const *list, ptrdiff_t size,
                             const float scale, const char *ahead, const int wide, const int vectors)
{
    const ptrdiff_t pairs = size / 2;
    const int bytes = wide * 4, lines = PAIR_RUN * bytes / 64;   /* of a pair of columns and of a run */
    const char *key[TILE_WIDE];
    vector sum[TILE_WIDE][TILE_VECTORS];
    if (list == NULL)
        UNROLL for (int j = 0; j < wide; j++)
            key[j] = keys + j * stride;
    else
        UNROLL for (int j = 0; j < wide; j++)
            key[j] = list[j];
    UNROLL for (int j = 0; j < wide; j++)
        OPAQUE(key[j]);
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
        if (ahead != NULL && vectors <= 2 && steps == PAIR_RUN) {   /* as in scores_tile */
            const char *asked = ahead + start * bytes;
            OPAQUE(asked);
            UNROLL for (int i = 0; i < PAIR_RUN; i++) {
                ask_ahead(asked, lines, i, PAIR_RUN);
                PAIR_STEP(splat_pair)
                IN_ORDER;
            }
        } else {
            if (ahead != NULL)
                ask_ahead(ahead + start * bytes, lines, 0, 1);
            STEPS(PAIR_STEP(splat_pair), steps, PAIR_RUN)
        }
        if (last && size % 2) {
            PAIR_STEP(splat_last)
        }
#undef PAIR_STEP
        OPAQUE(scores);   /* or its loads move up before the branches, into spilled registers */
        if (start != 0) {
            EACH_SUM(j, v)
                sum[j][v] += scores[j * TILE_VECTORS + v];
        }
        if (!last) {
            EACH_SUM(j, v)
                scores[j * TILE_VECTORS + v] = sum[j][v];
            continue;
        }
        EACH_SUM(j, v) {
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
#define MAXIMA pair_maxima
#include "scores_template.h"

/* ---- values ---- */

/* Sums `wide` value columns over all pairs of the block, for the lanes in use. */
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
        EACH_SUM(c, v)
            output[c * TILE_VECTORS + v] = sum[c][v];
    } else {
        EACH_SUM(c, v)
            output[c * TILE_VECTORS + v] = F(muladd)(row_scale[v], output[c * TILE_VECTORS + v], sum[c][v]);
    }
}

INLINE void pair_values_of(vector *output, const cattn_row_tile *tile, const cattn_key_block *block, const int vectors)
{
    const words *weights = tile->scores;
    const vector *row_scale = tile->is_new ? NULL : tile->row_scale;
    const char *values = block->data;
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

static void interleave(void *to_, const char *const *rows, ptrdiff_t keys, ptrdiff_t columns)
{
    uint32_t *restrict to = to_;
    for (ptrdiff_t j = 0; j < keys; j += 2, to += columns) {
        const uint16_t *one = (const uint16_t *)rows[j], *other = j + 1 < keys ? (const uint16_t *)rows[j + 1] : NULL;
        for (ptrdiff_t c = 0; c < columns; c++)
            to[c] = one[c] | (other != NULL ? (uint32_t)other[c] << 16 : 0);
    }
}

static void override_pairs(cattn_table *table)
{
    cattn_kernels *many = &table->kernels[CATTN_BFLOAT16][CATTN_MANY];
    many->type = CATTN_BFLOAT16;
    many->reads = 1u << CATTN_BFLOAT16;
    many->rounds_weights = 1;
    many->interleaves = 2;
    many->blocking.bytes *= 2;   /* of numbers of half the size */
    many->load = load_pairs;
    many->scores = pair_scores;
    many->maxima = pair_maxima;
    many->exponentials = pair_exponentials;
    many->values = pair_values;
    table->interleave = interleave;
}
