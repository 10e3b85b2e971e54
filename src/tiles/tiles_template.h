/* The kernel table in GCC and Clang vector extensions, written once.
 *
 * tiles_of_both_types.h includes it once with REAL_BITS 32 and once with 64, for vec128.c, avx2.c and avx512.c. They
 * define:
 *
 *   TILES_VEC128, TILES_AVX2 or TILES_AVX512   the target; only vectors_template.h asks
 *   VECTOR_BYTES    16, 32 or 64
 *   TILE_VECTORS    2 or 4, the vectors over the rows of a many-row tile: `lanes` is TILE_VECTORS · (reals a
 *                   vector). Two of four are a half.
 *   TILE_WIDE       keys (scores) or value columns (values) of the widest register tile, at most 12
 *   TILE_SUMS       the sums of a register tile, vectors · wide of them: a tile of fewer vectors is wider. The sums,
 *                   TILE_VECTORS operands and a broadcast live in registers, of which vec128 and avx2 have 16, and
 *                   avx512 has 32
 *   TILE_IN_A_ROW   1 if the steps of a whole run are unrolled. With vec128 gcc then spills
 *
 * A tile of fewer rows than LANES computes in one or two vectors if they hold all rows. Their number, `vectors`, is a
 * constant to each copy of a register tile. The other vectors stay as they are.
 *
 * Vectors are GCC vector types: `*`, `+`, `<` and `<<` work lane by lane, and a scalar beside one is broadcast. Sums
 * of products that decide a row's bits go through F(muladd). If that were left to the compiler, the code around a·b + c
 * would decide whether it becomes one FMA (gcc moves half of it out of a branch), and a remainder would round
 * differently. */

#ifndef RUN
/* Equal terms round the same way each time, so that a long chain of them drifts. Sums over keys are therefore taken in
 * chains of chains: the RUN keys of a run, the runs of a block, the blocks of a chunk. Chunks are joined with
 * compensation. A run of 24 equal values comes out up to 3.25 eps off. Runs and blocks, four at a time, hardly add to
 * that: one and one are exactly two, and two and two four. Weights are also added up in links of a run, which costs
 * nothing. Sums over columns are taken in runs, blocks of runs, and two chains of blocks.
 *
 * Few rows wait for memory anyway, and their blocks hold more runs, so that their runs are shorter. */
#define RUN 20               /* keys of a run of values */
#define LINK 5               /* weights of a link */
#define COLUMN_RUN 16        /* terms of a run of scores; with few rows, vectors of them */
#define COLUMN_RUNS 16       /* runs of a block of columns */
#define FEW_STREAMS 4        /* places of a block that keys and values come from in turn */
#define FEW_STEPS 3          /* keys of a run of values, from each stream */
#define FEW_TOTALS 4         /* sums that runs join in turn */
#define FEW_WEIGHTS 8        /* vectors of weights of a run: a block of two reals a vector has 256 */
/* So many bytes are asked for ahead of those being read, in all streams together: they cover the memory's latency. With
 * one row it is half as many, because the processor foresees more by itself. */
#define FEW_AHEAD 8192
#define FEW_COLUMNS 16       /* vectors of value columns summed at a time */
#endif

#include "vectors_template.h"
#include "register_tile_template.h"

/* ---- many rows: load, scores ---- */

static void F(load_queries)(void *queries_, const cattn_row_tile *tile, const char **source, ptrdiff_t size)
{
    vector *queries = queries_;
    const ptrdiff_t count = tile->rows;
    const REAL scale = (REAL)tile->scale;
    for (int v = 0; v * WIDTH < count; v++) {
        const void *row[WIDTH];
        for (int i = 0; i < WIDTH; i++)   /* lanes behind read the last row, and lose it again */
            row[i] = source[v * WIDTH + i < count ? v * WIDTH + i : count - 1];
        const integers used = F(iota)() < (INT)(count - v * WIDTH);
        for (ptrdiff_t c = 0; c < size; c += WIDTH) {
            vector x[WIDTH];
            const ptrdiff_t columns = size - c < WIDTH ? size - c : WIDTH;
            F(load_square)(x, row, c, columns);
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < columns)
                    queries[(c + i) * TILE_VECTORS + v] = (vector)((integers)(x[i] * scale) & used);
        }
    }
}

/* Computes the scores of `wide` keys and the lanes in use. Each step multiplies a column of queries, which `load` has
 * scaled, by one broadcast element of each key. */
INLINE void F(scores_tile)(vector *scores, vector *maximum, const vector *queries, const vector *added,
                           const char *keys, ptrdiff_t stride, const char *const *list, ptrdiff_t size,
                           const REAL scale, const char *ahead, const int wide, const int vectors)
{
    (void)scale;
    const int bytes = wide * (int)sizeof(REAL), lines = COLUMN_RUN * bytes / 64;   /* of a column and of a run */
    const REAL *key[TILE_WIDE];
    vector sum[TILE_WIDE][TILE_VECTORS];
    if (list == NULL)
        UNROLL for (int j = 0; j < wide; j++)
            key[j] = (const REAL *)(keys + j * stride);
    else
        UNROLL for (int j = 0; j < wide; j++)
            key[j] = (const REAL *)list[j];
    UNROLL for (int j = 0; j < wide; j++)
        OPAQUE(key[j]);
    for (ptrdiff_t start = 0; start < size; start += COLUMN_RUN) {
        const ptrdiff_t columns = AT_MOST(size - start, COLUMN_RUN);
        ptrdiff_t c = start;
        F(clear)(sum, wide, vectors);
#if defined(MULTIPLIES_BY_LANE)
#define SCORES_STEP(n)                                                                                               \
        UNROLL for (int first = 0; first < wide; first += part) {                                                    \
            const int count = AT_MOST(wide - first, part);                                                           \
            UNROLL for (int j = 0; j < count; j++)                                                                   \
                factors[j] = F(load_factors)(key[first + j] + c, n);                                                 \
            UNROLL for (int i = 0; i < n; i++)                                                                       \
                UNROLL for (int v = 0; v < vectors; v++)                                                             \
                    UNROLL for (int j = 0; j < count; j++)                                                           \
                        sum[first + j][v] =                                                                          \
                            F(muladd_by)(queries[(c + i) * TILE_VECTORS + v], factors[j], i, sum[first + j][v]);     \
        }                                                                                                            \
        c += n;
        /* gcc copies registers once it needs more than 24 of them. The maxima therefore wait in memory, and the factors
         * of eight keys come in two parts. */
        const int part = wide > 4 ? (wide + 1) / 2 : wide;
        vector factors[(TILE_WIDE + 1) / 2];
        UNROLL for (int v = 0; v < vectors; v++)
            __asm__("" : "+m"(maximum[v]));
        if (ahead != NULL)
            ask_ahead(ahead + start * bytes, lines, 0, 1);
        STEPS(SCORES_STEP(QUAD), columns / QUAD, COLUMN_RUN / QUAD)
        STEPS(SCORES_STEP(1), columns % QUAD, 1)
#else
#define SCORES_STEP                                                                                                  \
        EACH_SUM(j, v)                                                                                               \
            sum[j][v] = F(muladd)(queries[c * TILE_VECTORS + v], F(splat)(key[j][c]), sum[j][v]);                    \
        c++;
        if (ahead != NULL && vectors <= 2 && columns == COLUMN_RUN) {
            /* Memory delivers as fast as it can only if lines are asked for one by one, in their order. Several at once
             * take all the buffers in which lines arrive, and the keys wait. Beside more vectors there is time enough,
             * and these steps would cost them registers. */
            const char *asked = ahead + start * bytes;
            OPAQUE(asked);
            UNROLL for (int i = 0; i < COLUMN_RUN; i++) {
                ask_ahead(asked, lines, i, COLUMN_RUN);
                SCORES_STEP
                IN_ORDER;
            }
        } else {
            if (ahead != NULL)
                ask_ahead(ahead + start * bytes, lines, 0, 1);
            STEPS(SCORES_STEP, columns, COLUMN_RUN)
        }
#endif
#undef SCORES_STEP
        OPAQUE(scores);   /* or its loads move up before the branches, into spilled registers */
        if (start != 0) {
            EACH_SUM(j, v)
                sum[j][v] += scores[j * TILE_VECTORS + v];
        }
        if (start + COLUMN_RUN < size) {
            EACH_SUM(j, v)
                scores[j * TILE_VECTORS + v] = sum[j][v];
            continue;
        }
        if (added != NULL) {
            EACH_SUM(j, v)
                sum[j][v] += added[j * TILE_VECTORS + v];
        }
        EACH_SUM(j, v) {
            scores[j * TILE_VECTORS + v] = sum[j][v];
            maximum[v] = F(larger)(sum[j][v], maximum[v]);
        }
    }
}

#include "score_mod_template.h"
#include "few_score_mod_template.h"
#include "maxima_template.h"

#define SCORES_TILE F(scores_tile)
#define SCORES F(scores)
#define MAXIMA F(maxima)
#include "scores_template.h"
#include "column_blocks_template.h"
#include "wide_heads_template.h"

/* ---- many rows: softmax, values ---- */

INLINE void F(exponentials_of)(vector *scores, const cattn_row_tile *tile, ptrdiff_t count, const int vectors)
{
    vector *row_max = tile->softmax.row_max, *row_sum = tile->softmax.row_sum, *row_scale = tile->row_scale;
    const vector *block_max = tile->block_max;
    vector shift[TILE_VECTORS], block_sum[TILE_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++)
        shift[v] = F(advance)(&row_max[v], &row_scale[v], block_max[v]);
    UNROLL for (int v = 0; v < vectors; v++)
        block_sum[v] = (vector){0};
    for (ptrdiff_t start = 0; start < count; start += RUN) {
        vector run[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            run[v] = (vector){0};
        for (ptrdiff_t j = start, end = F(run_end)(start, count, RUN); j < end;) {
            vector link[TILE_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++)
                link[v] = (vector){0};
            for (ptrdiff_t stop = F(run_end)(j, end, LINK); j < stop; j++) {
                vector weight[TILE_VECTORS];
                UNROLL for (int v = 0; v < vectors; v++)
                    weight[v] = EXPONENT(scores[j * TILE_VECTORS + v] - shift[v]);
                F(exponential)(weight, vectors);
                UNROLL for (int v = 0; v < vectors; v++) {
                    scores[j * TILE_VECTORS + v] = weight[v];
                    link[v] += weight[v];
                }
            }
            UNROLL for (int v = 0; v < vectors; v++)
                run[v] += link[v];
        }
        UNROLL for (int v = 0; v < vectors; v++)
            block_sum[v] += run[v];
    }
    UNROLL for (int v = 0; v < vectors; v++)
        row_sum[v] = F(muladd)(row_scale[v], row_sum[v], block_sum[v]);
}

static int F(exponentials)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
#define EXPONENTIALS_OF(vectors) F(exponentials_of)(scores, tile, block->count, vectors)
    WITH_VECTORS(tile->rows, EXPONENTIALS_OF)
#undef EXPONENTIALS_OF
    return 1;
}

/* Sums `wide` value columns over one run of keys, for the lanes in use. The sums of the first run of a block begin
 * those of the block, which stay in `block_output` until the last run: that one adds them to the output. */
INLINE void F(values_tile)(vector *output, vector *block_output, const vector *row_scale, const int first,
                           const int last, const vector *weights, const char *values, ptrdiff_t stride,
                           const char *const *list, ptrdiff_t offset, ptrdiff_t count, const int wide,
                           const int vectors)
{
    vector sum[TILE_WIDE][TILE_VECTORS];
    OPAQUE(output);
    OPAQUE(block_output);
    F(clear)(sum, wide, vectors);
#if defined(MULTIPLIES_BY_LANE)
#define VALUES_STEP                                                                                                 \
    UNROLL for (int c = 0; c < wide; c += QUAD)                                                                     \
        factors[c / QUAD] = F(load_factors)((const REAL *)values + c, AT_MOST(wide - c, QUAD));                     \
    UNROLL for (int v = 0; v < vectors; v++)                                                                        \
        UNROLL for (int c = 0; c < wide; c++)                                                                       \
            sum[c][v] = F(muladd_by)(weights[v], factors[c / QUAD], c % QUAD, sum[c][v]);                           \
    weights += TILE_VECTORS;                                                                                        \
    values += stride;
    vector factors[(TILE_WIDE + QUAD - 1) / QUAD];
#else
#define VALUES_STEP                                                                                                 \
    EACH_SUM(c, v)                                                                                                  \
        sum[c][v] = F(muladd)(weights[v], F(splat)(((const REAL *)values)[c]), sum[c][v]);                          \
    weights += TILE_VECTORS;                                                                                        \
    values += stride;
#endif
#define LISTED_STEP                                                                                                 \
    values = *list++ + offset;                                                                                      \
    OPAQUE(values);                                                                                                 \
    VALUES_STEP
    if (list == NULL) {
        STEPS(VALUES_STEP, count, RUN)
    } else {
        STEPS(LISTED_STEP, count, RUN)
    }
#undef LISTED_STEP
#undef VALUES_STEP
    OPAQUE(output);   /* or loads move up before the branches, into spilled registers */
    OPAQUE(block_output);
    if (!first) {
        EACH_SUM(c, v)
            sum[c][v] += block_output[c * TILE_VECTORS + v];
    }
    if (!last) {
        EACH_SUM(c, v)
            block_output[c * TILE_VECTORS + v] = sum[c][v];
    } else if (row_scale == NULL) {
        EACH_SUM(c, v)
            output[c * TILE_VECTORS + v] = sum[c][v];
    } else {
        EACH_SUM(c, v)
            output[c * TILE_VECTORS + v] = F(muladd)(row_scale[v], output[c * TILE_VECTORS + v], sum[c][v]);
    }
}

INLINE void F(values_of)(vector *output, const cattn_row_tile *tile, const cattn_key_block *block, const int vectors)
{
    vector *block_output = tile->block_output;
    const vector *weights = tile->scores, *row_scale = tile->is_new ? NULL : tile->row_scale;
    const char *values = block->data, *const *list = block->list;
    const ptrdiff_t stride = block->stride, count = block->count, size = block->size;
    cattn_prefetch *prefetch = block->prefetch;
    const int widest = F(widest)(vectors);
    for (ptrdiff_t start = 0; start < count; start += RUN) {
        const ptrdiff_t keys = AT_MOST(count - start, RUN);
        for (ptrdiff_t c = 0, wide; c < size; c += wide) {
            wide = F(next_width)(size - c, widest);
            cattn_prefetch_next(prefetch);
#define VALUES_TILE(n)                                                                                           \
            F(values_tile)(output + c * TILE_VECTORS, block_output + c * TILE_VECTORS, row_scale, start == 0,    \
                           start + RUN >= count, weights + start * TILE_VECTORS,                                 \
                           values + start * stride + c * (ptrdiff_t)sizeof(REAL), stride,                        \
                           list != NULL ? list + start : NULL, c * (ptrdiff_t)sizeof(REAL), keys, n, vectors)
            WITH_WIDTH(wide, widest, VALUES_TILE)
#undef VALUES_TILE
        }
    }
}

static int F(values)(void *output, const cattn_row_tile *tile, const cattn_key_block *block)
{
#define VALUES_OF(vectors) F(values_of)(output, tile, block, vectors)
    WITH_VECTORS(tile->rows, VALUES_OF)
#undef VALUES_OF
    return 1;
}

/* ---- many rows: merge ---- */

/* total + carry becomes scale · (total + carry) + x_scale · x, but for one rounding of the products with the scale. */
INLINE void F(add_carrying)(vector *total, vector *carry, vector scale, vector x_scale, vector x, const int exact)
{
    if (exact) {
        scale = F(lasting)(scale, *total);
        x_scale = F(lasting)(x_scale, x);
    }
    const vector before = scale * *total, sum = F(muladd)(x_scale, x, before);
    const vector lost = F(muladd)(scale, *carry, F(muladd)(x_scale, x, before - sum)), all = sum + lost;
    *total = all;
    *carry = lost - (all - sum);
    if (exact) {   /* what an infinity loses is NaN */
        const integers finite = sum - sum == 0;
        *total = F(select)(finite, *total, sum);
        *carry = F(select)(finite, *carry, (vector){0});
    }
}

/* Joins the sums, and finds the scales of the total and of what joins it. */
INLINE void F(merge_sums)(const cattn_total *total, ptrdiff_t v, vector x_max, vector x_sum, vector *scale,
                          vector *x_scale, const int exact)
{
    const vector shift = F(advance)((vector *)total->softmax.row_max + v, scale, x_max);
    *x_scale = EXPONENT(x_max - shift);
    F(exponential)(x_scale, 1);
    F(add_carrying)((vector *)total->softmax.row_sum + v, (vector *)total->row_sum_carry + v, *scale, *x_scale, x_sum,
                    exact);
}

/* Joins the sums for logarithms, if they are others. */
INLINE void F(merge_lse_sums)(const cattn_total *total, const REAL *x, ptrdiff_t v, ptrdiff_t rows, vector scale,
                              vector x_scale)
{
    const cattn_softmax *softmax = &total->softmax;
    if (softmax->lse_sum != softmax->row_sum)
        F(add_carrying)((vector *)softmax->lse_sum + v, (vector *)total->lse_sum_carry + v, scale, x_scale,
                        F(load_up_to)(x + v * WIDTH, rows - v * WIDTH), 1);
}

INLINE void F(merge_of)(const cattn_total *total, const cattn_softmax *part, ptrdiff_t rows, ptrdiff_t size,
                        const int exact)
{
    const vector *x_max = part->row_max, *x_sum = part->row_sum, *x_output = part->output;
    vector *output = total->softmax.output, *carry = total->output_carry;
    vector scale[TILE_VECTORS], x_scale[TILE_VECTORS];
    for (int v = 0; v * WIDTH < rows; v++) {
        F(merge_sums)(total, v, x_max[v], x_sum[v], &scale[v], &x_scale[v], exact);
        F(merge_lse_sums)(total, part->lse_sum, v, rows, scale[v], x_scale[v]);
    }
    for (ptrdiff_t c = 0; c < size; c++)
        for (int v = 0; v * WIDTH < rows; v++) {
            const ptrdiff_t at = c * TILE_VECTORS + v;
            F(add_carrying)(&output[at], &carry[at], scale[v], x_scale[v], x_output[at], exact);
        }
}

static void F(merge)(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile, ptrdiff_t size,
                     int exact)
{
    if (exact)
        F(merge_of)(total, part, tile->rows, size, 1);
    else
        F(merge_of)(total, part, tile->rows, size, 0);
}

/* ---- many rows: store ---- */

/* Returns a / b, given 1 / b, at a fifth of a division's price. It is correctly rounded (Markstein 1990), unless the
 * remainder is too small for a number. It is NaN where the quotient is infinite. */
INLINE vector F(quotient)(vector a, vector b, vector reciprocal)
{
#if defined(TILES_FMA)
    const vector near = a * reciprocal;
    return F(muladd)(F(muladd)(-near, b, a), reciprocal, near);
#else
    (void)reciprocal;
    return a / b;
#endif
}

/* Returns what the outputs of rows are divided by. */
INLINE vector F(divisor)(vector row_sum)
{
    return F(select)(row_sum == 0, F(splat)(1), row_sum);
}

INLINE int F(store_quotients)(const vector *output, const vector *row_sum, char **destination, ptrdiff_t count,
                              ptrdiff_t size, const int all_finite)
{
    int finite = 1;
    for (int v = 0; v < TILE_VECTORS && v * WIDTH < count; v++) {
        const int used = count - v * WIDTH < WIDTH ? (int)(count - v * WIDTH) : WIDTH;
        const vector divisor = row_sum == NULL ? F(splat)(1) : F(divisor)(row_sum[v]), reciprocal = 1 / divisor;
        vector zero[4] = {0 * divisor};   /* 0·x summed, in four chains: 0, or NaN once an x was not finite */
        for (ptrdiff_t c = 0; c < size; c += WIDTH) {
            const ptrdiff_t columns = size - c < WIDTH ? size - c : WIDTH;
            vector x[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; i++) {
                x[i] = (vector){0};
                if (i < columns) {
                    const vector out = output[(c + i) * TILE_VECTORS + v];
                    x[i] = F(quotient)(out, divisor, reciprocal);
                    if (!all_finite)
                        x[i] = F(select)(x[i] - x[i] == 0, x[i], out / divisor);
                }
                zero[i % 4] += 0 * x[i];
            }
            F(transpose)(x);
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < used)
                    F(store_up_to)((REAL *)destination[v * WIDTH + i] + c, x[i], columns);
        }
        F(lanes) zeros = {(zero[0] + zero[1]) + (zero[2] + zero[3])};
        for (int i = 0; i < used; i++)
            finite &= zeros.lane[i] == 0;
    }
    return finite;
}

static int F(store_rows)(const void *output, const void *row_sum, const cattn_row_tile *tile, char **destination,
                         ptrdiff_t size)
{
    if (F(store_quotients)(output, row_sum, destination, tile->rows, size, 1))
        return 1;
    F(store_quotients)(output, row_sum, destination, tile->rows, size, 0);
    return 0;
}

#include "gradients_template.h"

/* ---- storage types ---- */

#if REAL_BITS == 32
static void widen(void *to_, const char *from, cattn_type type, ptrdiff_t count)
{
    float *to = to_;
    ptrdiff_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        F(store)(to + i, F(load_stored)(from, i, WIDTH, type));
    if (i < count)
        F(store_part)(to + i, F(load_stored)(from, i, count - i, type), count - i);
}

static void multiply(void *x_, const float *factors, ptrdiff_t step, ptrdiff_t count)
{
    float *x = x_;
    for (ptrdiff_t i = 0; i < count; i += WIDTH) {
        const ptrdiff_t n = count - i;
        const vector factor = step == 0 ? F(splat)(*factors) : F(load_up_to)(factors + i, n);
        F(store_up_to)(x + i, F(load_up_to)(x + i, n) * factor, n);
    }
}

#if defined(NARROWS)
static void narrow(char *to, const void *from_, cattn_type type, ptrdiff_t count)
{
    const float *from = from_;
    for (ptrdiff_t i = 0; i < count; i += WIDTH) {
        const ptrdiff_t n = count - i < WIDTH ? count - i : WIDTH;
        halves x = narrow_vector(F(load_up_to)(from + i, n), type);
        if (n == WIDTH)
            *(halves *)(to + i * 2) = x;
        else
            __builtin_memcpy(to + i * 2, &x, (size_t)n * 2);
    }
}
#endif
#endif

#if REAL_BITS == 32 && VECTOR_BYTES > 16
/* There is no branch, so that compilers take many at a time. Vectors of 128 bits hold two doubles, which is slower than
 * one by one. */
static void round_to_float(void *to_, const void *from_, ptrdiff_t count)
{
    float *restrict to = to_;
    const double *from = from_;
    for (ptrdiff_t i = 0; i < count; i++) {
        const double x = from[i], above = x < -FLT_MAX ? -FLT_MAX : x, between = above > FLT_MAX ? FLT_MAX : above;
        to[i] = (float)(x - x == 0 ? between : x);
    }
}
#endif

#include "few_rows_template.h"

/* A block of keys (and one of values) stays in an L1 cache of 32 KiB beside the score tile, and has four, two, one or
 * half a run. Merging chunks takes as long as 5 keys or so. */
static const cattn_blocking F(many_blocking) = {
    .most = 4 * RUN, .least = RUN / 2, .bytes = 25600, .step = CATTN_BY_HALVES, .chunk_blocks = 5, .least_chunk = 100,
    .most_chunk = PTRDIFF_MAX};

static void F(override)(cattn_table *table)
{
    const cattn_type type = REAL_BITS == 32 ? CATTN_FLOAT32 : CATTN_FLOAT64;
    cattn_kernels *many = &table->kernels[type][CATTN_MANY];
    many->lanes = LANES;
    many->half = HALF;
    many->run = RUN;
    many->blocking = F(many_blocking);
    many->load = F(load_queries);
    many->scores = F(scores_of_heads);
    many->maxima = F(maxima_of_heads);
    many->exponentials = F(exponentials);
    many->values = F(values);
    many->merge = F(merge);
    many->store = F(store_rows);
    many->differentiate = F(differentiate);
    many->query_gradients = F(query_gradients);
    many->join = F(join);
    many->dots = F(dots);
    many->takes_lists = 1;
    F(override_few)(&table->kernels[type][CATTN_FEW]);
#if REAL_BITS == 32
    for (int layout = 0; layout < CATTN_LAYOUTS; layout++)
        table->kernels[CATTN_FLOAT16][layout] = table->kernels[CATTN_BFLOAT16][layout] = table->kernels[type][layout];
#endif
#if REAL_BITS == 32 && VECTOR_BYTES > 16
    table->round_to_float = round_to_float;
#endif
#if REAL_BITS == 32
    table->widen = widen;
    table->multiply = multiply;
#if defined(NARROWS)
    table->narrow = narrow;
#endif
#endif
}

/* ---- ready for the other type: names that mean something else there ---- */
#undef vector
#undef integers
#undef LOW
#undef HIGH
#undef LOW_PAIRS
#undef HIGH_PAIRS
#undef EVEN
#undef ODD
#undef LOADS_QUADS
#undef MULTIPLIES_BY_LANE
#undef EXPONENT
#undef WITH_TYPE
