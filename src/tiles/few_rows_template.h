/* Few rows have the head size, or keys, in the lanes. tiles_template.h includes this file.
 *
 * They are bound by memory. That is faster if keys, and then values, come from FEW_STREAMS places of a block in turn,
 * because the processor's own prefetchers follow several streams at a time. It is faster still if what comes next is
 * asked for: with four rows, the processor sees too few loads ahead to keep the memory busy.
 *
 * Values are summed in this order: the first keys of all streams (a quarter of the block apart), the second ones, and
 * so on. FEW_STEPS of each stream are a run. */

#include "few_streams.h"

/* Returns how many keys or values of a stream lie between the one that is read and the one to ask for meanwhile, if there
 * are so many streams. */
INLINE ptrdiff_t F(few_ahead)(ptrdiff_t size, const cattn_type type, const int streams, const int rows)
{
    const ptrdiff_t bytes = size * F(stored_size)(type);
    const ptrdiff_t ahead = (rows == 1 ? FEW_AHEAD / 2 : FEW_AHEAD) / streams / (bytes > 0 ? bytes : 1);
    return ahead > 0 ? ahead : 1;
}

/* Returns how many bytes behind key j of a stream to ask for. Behind the last key of a stream comes the first one of the
 * same stream of the next block. That gains nothing where few keys are asked for ahead, because a key has many bytes. */
INLINE ptrdiff_t F(few_bytes_ahead)(ptrdiff_t j, ptrdiff_t ahead, ptrdiff_t apart, ptrdiff_t count, ptrdiff_t stride,
                                    const cattn_type type)
{
    if (F(stored_size)(type) < (ptrdiff_t)sizeof(REAL) && j + ahead >= apart)
        ahead += count - apart;
    return ahead * stride;
}

/* Asks for the line of memory that the vector at column c begins, if it begins one. It comes into L2 only, because
 * fewer lines may be on their way to L1 at a time. Memory that comes from L3 gains less by it, or loses. */
INLINE void F(prefetch_stored)(const char *row, ptrdiff_t c, const cattn_type type)
{
    const ptrdiff_t at = c * F(stored_size)(type);
    if (at % 64 == 0)
        CATTN_PREFETCH_L2(row + at);
}

/* Adds the products of `rows` queries and `wide` keys in one vector of columns from c on. The last one has n < WIDTH
 * columns. */
INLINE void F(few_scores_step)(vector *sum, const REAL *queries, ptrdiff_t size, const few_streams *keys, ptrdiff_t c,
                               ptrdiff_t n, const cattn_type type, const int rows, const int wide, const int listed)
{
    const int pointers = listed || rows > 2;
    vector query[4];
    UNROLL for (int r = 0; r < rows; r++)
        query[r] = F(load_up_to)(queries + r * size + c, n);
    UNROLL for (int w = 0; w < wide; w++) {
        const vector key = F(load_stored)(few_row(keys, w, pointers), c, n, type);
        F(prefetch_stored)(few_next_row(keys, w, pointers), c, type);
        UNROLL for (int r = 0; r < rows; r++)
            sum[r * wide + w] = F(muladd)(query[r], key, sum[r * wide + w]);
    }
}

#if defined(MULTIPLIES_BY_LANE)
/* Does that for one row and `steps` keys of each stream, four vectors of columns at a time from `start` on. Each key
 * has an address of its own, which moves once in four loads. Returns the first column that is left. */
INLINE ptrdiff_t F(few_scores_of_keys)(vector *sum, const REAL *query, const few_streams *step, const ptrdiff_t start,
                                       const ptrdiff_t end, const cattn_type type, const int wide, const int steps,
                                       const int listed)
{
    enum { TOGETHER = 4 };
    const int bytes = WIDTH * (int)F(stored_size)(type);
    const char *key[FEW_SUMS];
    ptrdiff_t c = start;
    UNROLL for (int k = 0; k < wide * steps; k++) {
        key[k] = step[k / wide].row[k % wide] + start / WIDTH * bytes;
        OPAQUE(key[k]);
    }
    for (; c + TOGETHER * WIDTH <= end; c += TOGETHER * WIDTH) {
        if (TOGETHER * bytes % 64 == 0 || c / WIDTH * bytes % 64 == 0)   /* a line of memory begins */
            UNROLL for (int k = 0; k < wide * steps; k++)
                CATTN_PREFETCH_L2(listed ? step[k / wide].next[k % wide] + c / WIDTH * bytes : key[k] + step->ahead);
        UNROLL for (int v = 0; v < TOGETHER; v++) {
            const vector x = F(load)(query + c + v * WIDTH);
            UNROLL for (int k = 0; k < wide * steps; k++)
                sum[k] = F(muladd)(x, F(load_stored)(key[k], v * WIDTH, WIDTH, type), sum[k]);
        }
        UNROLL for (int k = 0; k < wide * steps; k++) {
            key[k] += TOGETHER * bytes;
            OPAQUE(key[k]);
        }
    }
    return c;
}
#endif

/* Computes the scores of `rows` rows and `steps` keys from each of `wide` streams. Dot products are summed lane by
 * lane, and one fold finishes all of them. */
INLINE void F(few_scores_tile)(REAL *scores, ptrdiff_t pitch, const REAL *queries, ptrdiff_t size, few_keys keys,
                               ptrdiff_t streams_apart, ptrdiff_t ahead, const cattn_type type, const int rows,
                               const int wide, const int steps, const int listed)
{
    vector total[FEW_SUMS], sum[FEW_SUMS];
    for (ptrdiff_t start = 0;; start += COLUMN_RUN * WIDTH) {
        const ptrdiff_t end = F(run_end)(start, size, COLUMN_RUN * WIDTH);
        UNROLL for (int i = 0; i < FEW_SUMS; i++)
            sum[i] = (vector){0};
#if defined(MULTIPLIES_BY_LANE)   /* all steps at once: four pipes want so many sums */
#define FEW_SCORES_STEPS(n)                                                                                           \
        UNROLL for (int i = 0; i < steps; i++)                                                                        \
            F(few_scores_step)(sum + i * rows * wide, queries, size, &step[i], c, n, type, rows, wide, listed);
        few_streams step[FEW_SUMS];
        UNROLL for (int i = 0; i < steps; i++)
            step[i] = few_streams_of(few_keys_from(keys, i, listed), streams_apart, ahead, wide, listed);
        ptrdiff_t c = start;
        if (rows == 1)
            c = F(few_scores_of_keys)(sum, queries, step, start, end, type, wide, steps, listed);
        for (; c + WIDTH <= end; c += WIDTH) {
            FEW_SCORES_STEPS(WIDTH)
        }
        if (c < end) {
            FEW_SCORES_STEPS(size - c)
        }
#undef FEW_SCORES_STEPS
#else
        UNROLL for (int i = 0; i < steps; i++) {
            vector *step = sum + i * rows * wide;
            const few_streams key = few_streams_of(few_keys_from(keys, i, listed), streams_apart, ahead, wide, listed);
            ptrdiff_t c = start;
            for (; c + WIDTH <= end; c += WIDTH)
                F(few_scores_step)(step, queries, size, &key, c, WIDTH, type, rows, wide, listed);
            if (c < end)
                F(few_scores_step)(step, queries, size, &key, c, size - c, type, rows, wide, listed);
        }
#endif
        if (start > 0) {
            UNROLL for (int i = 0; i < FEW_SUMS; i++)
                sum[i] += total[i];
        }
        if (end == size)
            break;
        UNROLL for (int i = 0; i < FEW_SUMS; i++) {
            total[i] = sum[i];
#if defined(MULTIPLIES_BY_LANE)
            __asm__("" : "+m"(total[i]));   /* the totals wait in memory, or the sums would */
#endif
        }
    }
    F(lanes) score[FEW_SUMS / WIDTH];
    UNROLL for (int i = 0; i < FEW_SUMS / WIDTH; i++)
        if (i * WIDTH < rows * wide * steps)
            score[i].v = F(fold)(sum + i * WIDTH, 0);
    UNROLL for (int i = 0; i < steps; i++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int w = 0; w < wide; w++)
                scores[r * pitch + w * streams_apart + i] = (&score[0].lane[0])[(i * rows + r) * wide + w];
}

/* Calls `few` with a constant type. */
#if REAL_BITS == 32
#define WITH_TYPE(type, few)                                     \
    switch (type) {                                              \
    case CATTN_FLOAT16: few(CATTN_FLOAT16); break;               \
    case CATTN_BFLOAT16: few(CATTN_BFLOAT16); break;             \
    case CATTN_INT8: few(CATTN_INT8); break;                     \
    default: few(CATTN_FLOAT32); break;                          \
    }
#else
#define WITH_TYPE(type, few) (void)(type), few(CATTN_FLOAT32);   /* or 64: no other type */
#endif

INLINE void F(few_scores_rows)(REAL *scores, const cattn_row_tile *tile, const cattn_key_block *block, ptrdiff_t row,
                               const cattn_type type, const int rows, const int wide, const int listed)
{
    const REAL *queries = (const REAL *)tile->queries + row * block->size;
    const few_keys keys = {block->data, block->stride, block->list, 0};
    const ptrdiff_t pitch = tile->pitch, count = block->count, size = block->size;
    const int steps = FEW_SUMS / ((rows == 3 ? 4 : rows) * wide);
    const ptrdiff_t apart = count / (wide * steps) * steps;
    const ptrdiff_t ahead = apart > 0 ? F(few_ahead)(size, type, wide, rows) : 0;
    for (ptrdiff_t j = 0; j < apart; j += steps) {
        const ptrdiff_t left = count - (j + (wide - 1) * apart + steps);   /* of the last stream; a list ends with it */
        F(few_scores_tile)(scores + j, pitch, queries, size, few_keys_from(keys, j, listed), apart,
                           listed ? AT_MOST(ahead, left) : F(few_bytes_ahead)(j, ahead, apart, count, keys.stride, type),
                           type, rows, wide, steps, listed);
    }
    for (ptrdiff_t j = apart * wide; j < count; j++)
        F(few_scores_tile)(scores + j, pitch, queries, size, few_keys_from(keys, j, listed), 0, 0, type, rows, 1, 1,
                           listed);
}

#define FEW_SCORES(type) F(few_scores_rows)(array, tile, block, row, type, rows, rows > 2 ? FEW_SUMS / 4 : 4, 0)
#define FEW_LISTED(type) F(few_scores_rows)(array, tile, block, row, type, rows, rows > 2 ? FEW_SUMS / 4 : 4, 1)
FEW_FUNCTIONS(few_scores, WITH_TYPE(block->type, FEW_SCORES))
FEW_FUNCTIONS(few_listed_scores, WITH_TYPE(block->type, FEW_LISTED))
#undef FEW_SCORES
#undef FEW_LISTED

static void F(few_products)(REAL *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->list == NULL)
        F(few_scores_of_all)(scores, tile, block, tile->pitch);
    else
        F(few_listed_scores_of_all)(scores, tile, block, tile->pitch);
}

static int F(few_scores)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const ptrdiff_t columns = COLUMN_RUNS * COLUMN_RUN * WIDTH;
    if (block->size <= columns)
        F(few_products)(scores, tile, block);
    else
        F(few_wide_products)(scores, tile, block, columns, block->size * (ptrdiff_t)sizeof(REAL), sizeof(REAL),
                             F(few_products));
#if REAL_BITS == 32
    if (block->scales != NULL)
        for (ptrdiff_t r = 0; r < tile->rows; r++)
            multiply((float *)scores + r * tile->pitch, block->scales, 1, block->count);
#endif
    if (tile->score_mod != NULL)
        F(few_modify_scores)(scores, tile, block);
    else
        F(few_maximum)(scores, tile, block->count);
    return 1;
}

/* Runs of weights, and of values, join one of FEW_TOTALS totals in turn, and the totals join the sums so far. A block
 * has 22 runs of values. In one chain, equal sums of them would round beyond the promised bound. */
INLINE vector F(few_total)(const vector *total, ptrdiff_t apart)
{
    return (total[0] + total[apart]) + (total[2 * apart] + total[3 * apart]);
}

/* Turns a run of the scores of one row, from key j on, into weights. Returns their sum, lane by lane. */
INLINE vector F(few_weights)(REAL *scores, ptrdiff_t j, ptrdiff_t count, const REAL shift)
{
    vector sum = {0};
    for (const ptrdiff_t end = F(run_end)(j, count, FEW_WEIGHTS * WIDTH); j < end; j += WIDTH) {
        const ptrdiff_t keys = count - j;
        vector weight = EXPONENT(F(load_up_to)(scores + j, keys) - shift);
        F(exponential)(&weight, 1);
        F(store_up_to)(scores + j, weight, keys);
        if (keys < WIDTH)   /* lanes behind the last key add 0, as masked keys there do */
            weight = F(select)(F(iota)() < (INT)keys, weight, (vector){0});
        sum += weight;
    }
    return sum;
}

/* Does that for the other runs of a block. `sum` is that of the first run, and becomes that of all. */
static __attribute__((noinline)) void F(few_more_weights)(vector *sum, REAL *scores, ptrdiff_t count, const REAL shift)
{
    vector total[FEW_TOTALS] = {*sum};
    for (ptrdiff_t start = FEW_WEIGHTS * WIDTH, run = 1; start < count; start += FEW_WEIGHTS * WIDTH, run++)
        total[run % FEW_TOTALS] += F(few_weights)(scores, start, count, shift);
    *sum = F(few_total)(total, 1);
}

static int F(few_exponentials)(void *scores, const cattn_row_tile *tile, const cattn_key_block *keys)
{
    vector *row_max = tile->softmax.row_max, *row_sum = tile->softmax.row_sum, *row_scale = tile->row_scale;
    const vector *block_max = tile->block_max;
    const ptrdiff_t count = keys->count;
    for (ptrdiff_t first = 0; first < tile->rows; first += WIDTH) {
        const ptrdiff_t i = first / WIDTH;
        F(lanes) shift;
        shift.v = F(advance)(&row_max[i], &row_scale[i], block_max[i]);
        vector block_sum[WIDTH];
        UNROLL for (int r = 0; r < WIDTH; r++) {
            REAL *row = (REAL *)scores + (first + r) * tile->pitch;
            block_sum[r] = (vector){0};
            if (first + r < tile->rows) {
                block_sum[r] = F(few_weights)(row, 0, count, shift.lane[r]);
                if (count > FEW_WEIGHTS * WIDTH)
                    F(few_more_weights)(&block_sum[r], row, count, shift.lane[r]);
            }
        }
        row_sum[i] = F(muladd)(row_scale[i], row_sum[i], F(fold)(block_sum, 0));
    }
    return 1;
}

/* Adds the weighted values of `wide` keys to the sums of one vector of columns from c on. The last one has n < WIDTH
 * columns. */
INLINE void F(few_values_step)(vector sum[][FEW_COLUMNS], vector weight[][FEW_STREAMS], const few_streams *values,
                               ptrdiff_t c, ptrdiff_t n, const cattn_type type, const int rows, const int wide,
                               const int listed)
{
    vector value[FEW_STREAMS];
    UNROLL for (int w = 0; w < wide; w++) {
        value[w] = F(load_stored)(few_row(values, w, listed), c, n, type);
        F(prefetch_stored)(few_next_row(values, w, listed), c, type);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vector total = sum[r][c / WIDTH];
        UNROLL for (int w = 0; w < wide; w++)
            total = F(muladd)(weight[r][w], value[w], total);
        sum[r][c / WIDTH] = total;
    }
}

INLINE void F(few_values_tile)(vector sum[][FEW_COLUMNS], const REAL *weights, ptrdiff_t pitch, few_keys values,
                               ptrdiff_t apart, ptrdiff_t ahead, ptrdiff_t c, ptrdiff_t columns,
                               const cattn_type type, const int rows, const int wide, const int listed)
{
    const few_streams value = few_streams_of(values, apart, ahead, wide, listed);
    vector weight[4][FEW_STREAMS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++)
            weight[r][w] = F(splat)(weights[r * pitch + w * apart]);
    for (; c + WIDTH <= columns; c += WIDTH)
        F(few_values_step)(sum, weight, &value, c, WIDTH, type, rows, wide, listed);
    if (c < columns)
        F(few_values_step)(sum, weight, &value, c, columns - c, type, rows, wide, listed);
}

#if defined(MULTIPLIES_BY_LANE)
/* Adds the weighted values of a whole run from all streams to the totals of one or two rows. It takes them in the order
 * of few_values_tile, but the sums of `together` vectors of columns stay in registers meanwhile. If `asks`, it asks for
 * what comes next. Returns the first column that is left. */
INLINE ptrdiff_t F(few_values_run)(vector total[][FEW_COLUMNS + 1], const REAL *weights, ptrdiff_t pitch,
                                   few_keys values, ptrdiff_t apart, ptrdiff_t ahead, ptrdiff_t columns,
                                   const cattn_type type, const int rows, const int together, const int asks,
                                   const int listed)
{
    enum { PARTS = (FEW_STEPS + QUAD - 1) / QUAD };
    const int bytes = WIDTH * (int)F(stored_size)(type);
    few_streams step[FEW_STEPS];
    const char *value[FEW_STEPS][FEW_STREAMS];
    vector weight[2][FEW_STREAMS][PARTS];   /* of the steps, by lane */
    ptrdiff_t c = 0;
#define EACH_WEIGHT(r, w, part)                                \
    UNROLL for (int r = 0; r < rows; r++)                      \
        UNROLL for (int w = 0; w < FEW_STREAMS; w++)           \
            UNROLL for (int part = 0; part < PARTS; part++)
    EACH_WEIGHT(r, w, part)
        weight[r][w][part] = F(load_factors)(weights + r * pitch + w * apart + part * QUAD,
                                             AT_MOST(FEW_STEPS - part * QUAD, QUAD));
    UNROLL for (int i = 0; i < FEW_STEPS; i++) {
        step[i] = few_streams_of(few_keys_from(values, i, listed), apart, ahead, FEW_STREAMS, listed);
        UNROLL for (int w = 0; w < FEW_STREAMS; w++) {
            value[i][w] = step[i].row[w];
            OPAQUE(value[i][w]);
        }
    }
    for (; c + together * WIDTH <= columns; c += together * WIDTH) {
        const int begins = together * bytes % 64 == 0 || c / WIDTH * bytes % 64 == 0;   /* a line of memory */
        vector sum[2][8];
        EACH_WEIGHT(r, w, part)   /* or gcc would make a vector of each lane beforehand, and run out of registers */
            __asm__("" : "+w"(weight[r][w][part]));
        UNROLL for (int i = 0; i < FEW_STEPS; i++)
            UNROLL for (int w = 0; w < FEW_STREAMS; w++) {
                UNROLL for (int v = 0; v < together; v++) {
                    const vector x = F(load_stored)(value[i][w], v * WIDTH, WIDTH, type);
                    if (asks && begins && v * bytes % 64 == 0)
                        CATTN_PREFETCH_L2((listed ? step[i].next[w] + c / WIDTH * bytes : value[i][w] + ahead) +
                                          v * bytes);
                    UNROLL for (int r = 0; r < rows; r++)
                        if (i == 0 && w == 0)
                            sum[r][v] = x * F(splat)(weight[r][w][0][0]);
                        else
                            sum[r][v] = F(muladd_by)(x, weight[r][w][i / QUAD], i % QUAD, sum[r][v]);
                }
                value[i][w] += together * bytes;
                OPAQUE(value[i][w]);
            }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < together; v++)
                total[r][c / WIDTH + v] += sum[r][v];
    }
#undef EACH_WEIGHT
    return c;
}
#endif

/* Sums the values of at most FEW_COLUMNS vectors of columns. The sums lie in the first-level cache, because
 * they do not fit the registers. */
INLINE void F(few_values_columns)(REAL *output, ptrdiff_t output_pitch, const REAL *row_scale, const REAL *weights,
                                  ptrdiff_t pitch, few_keys values, ptrdiff_t count, ptrdiff_t columns,
                                  const cattn_type type, const int rows, const int listed)
{
    const ptrdiff_t apart = pitch / FEW_STREAMS, vectors = (columns + WIDTH - 1) / WIDTH;
    const ptrdiff_t ahead = count > FEW_STREAMS ? F(few_ahead)(columns, type, FEW_STREAMS, rows) : 0;
    vector sum[4][FEW_COLUMNS], total[FEW_TOTALS][4][FEW_COLUMNS + 1], zero = {0};
    /* One vector more than there are columns: totals 4096 bytes apart would get in each other's way in the cache. */
    __asm__("" : "+m"(zero));   /* or gcc sees a memset in each loop, and writes one that takes 30 cycles to begin */
    UNROLL for (int r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < vectors; c++) {
            sum[r][c] = zero;
            UNROLL for (int t = 0; t < FEW_TOTALS; t++)
                total[t][r][c] = zero;
        }
    for (ptrdiff_t first = 0, run = 0; first < apart && first < count; first += FEW_STEPS, run++) {
        ptrdiff_t last = first + FEW_STEPS;
        last = last < apart ? last : apart;
        last = last < count ? last : count;
        ptrdiff_t done = 0;   /* columns of the run */
#if defined(MULTIPLIES_BY_LANE)
        if (last - first == FEW_STEPS && count - last >= 3 * apart) {
            const ptrdiff_t left = count - (last + 3 * apart);   /* of the last stream; a list ends with it */
            UNROLL for (int r = 0; r < rows; r += 2)
                done = F(few_values_run)(total[run % FEW_TOTALS] + r, weights + first + r * pitch, pitch,
                                         few_keys_from(values, first, listed), apart,
                                         listed ? AT_MOST(ahead, left)
                                                : F(few_bytes_ahead)(first, ahead, apart, count, values.stride, type),
                                         columns, type,
                                         AT_MOST(rows - r, 2), rows == 1 ? 8 : 4, r == 0, listed);
            if (done >= columns)
                continue;
        }
#endif
        for (ptrdiff_t i = first, steps = 1; i < last; i += steps) {
            const ptrdiff_t left = count - i;
#define FEW_VALUES_TILE(wide, apart)                                                                               \
            F(few_values_tile)(sum, weights + i, pitch, few_keys_from(values, i, listed), apart,                   \
                               listed ? AT_MOST(ahead, left - (wide - 1) * (apart) - 1)                            \
                                      : F(few_bytes_ahead)(i, ahead, apart, count, values.stride, type),           \
                               done, columns, type, rows, wide, listed)
            if (left > 3 * apart) {
                FEW_VALUES_TILE(4, apart);
            } else if (left > 2 * apart) {
                FEW_VALUES_TILE(3, apart);
            } else if (left > apart) {
                FEW_VALUES_TILE(2, apart);
            } else if (last - i >= 3) {   /* one stream: the next three keys are its next three */
                FEW_VALUES_TILE(3, 1);
                steps = 3;
            } else {
                FEW_VALUES_TILE(1, 1);
                steps = 1;
            }
#undef FEW_VALUES_TILE
        }
        UNROLL for (int r = 0; r < rows; r++)
            for (ptrdiff_t c = done / WIDTH; c < vectors; c++) {
                total[run % FEW_TOTALS][r][c] += sum[r][c];
                sum[r][c] = zero;
            }
    }
    UNROLL for (int r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < vectors; c++) {
            REAL *out = output + r * output_pitch + c * WIDTH;
            const ptrdiff_t n = columns - c * WIDTH;
            vector all = F(few_total)(&total[0][r][c], 4 * (FEW_COLUMNS + 1));
            if (row_scale == NULL)
                all += zero;
            else
                all = F(muladd)(F(splat)(row_scale[r]), F(load_up_to)(out, n), all);
            F(store_up_to)(out, all, n);
        }
}

INLINE void F(few_values_rows)(REAL *output, const cattn_row_tile *tile, const cattn_key_block *block, ptrdiff_t row,
                               const cattn_type type, const int rows, const int listed)
{
    const REAL *row_scale = tile->is_new ? NULL : (const REAL *)tile->row_scale + row;
    const REAL *weights = (const REAL *)tile->scores + row * tile->pitch;
    for (ptrdiff_t c = 0, columns; c < block->size; c += columns) {
        columns = block->size - c < FEW_COLUMNS * WIDTH ? block->size - c : FEW_COLUMNS * WIDTH;
        const ptrdiff_t offset = c * F(stored_size)(type);
        const few_keys values = {block->data + offset, block->stride, block->list, offset};
        F(few_values_columns)(output + c, tile->output_pitch, row_scale, weights, tile->pitch, values, block->count,
                              columns, type, rows, listed);
    }
}

#define FEW_VALUES(type) F(few_values_rows)(array, tile, block, row, type, rows, 0)
#define FEW_LISTED(type) F(few_values_rows)(array, tile, block, row, type, rows, 1)
FEW_FUNCTIONS(few_values, WITH_TYPE(block->type, FEW_VALUES))
FEW_FUNCTIONS(few_listed_values, WITH_TYPE(block->type, FEW_LISTED))
#undef FEW_VALUES
#undef FEW_LISTED

static int F(few_values)(void *output, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->list == NULL)
        F(few_values_of_all)(output, tile, block, tile->output_pitch);
    else
        F(few_listed_values_of_all)(output, tile, block, tile->output_pitch);
    return 1;
}

/* Merges the columns of one row. */
INLINE void F(few_merge_row)(REAL *output, REAL *carry, const REAL *x, ptrdiff_t size, vector scale, vector x_scale)
{
    for (ptrdiff_t c = 0; c < size; c += WIDTH) {
        const ptrdiff_t n = size - c;
        vector sum = F(load_up_to)(output + c, n), lost = F(load_up_to)(carry + c, n);
        F(add_carrying)(&sum, &lost, scale, x_scale, F(load_up_to)(x + c, n), 1);
        F(store_up_to)(output + c, sum, n);
        F(store_up_to)(carry + c, lost, n);
    }
}

static void F(few_merge)(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile,
                         ptrdiff_t size, int exact)
{
    const ptrdiff_t rows = tile->rows, pitch = tile->output_pitch;
    const REAL *x_max = part->row_max, *x_sum = part->row_sum, *x_output = part->output;
    REAL *output = total->softmax.output, *carry = total->output_carry;
    (void)exact;   /* always: with few rows it costs nothing */
    F(lanes) scale[(CATTN_FEW_ROWS + WIDTH - 1) / WIDTH], x_scale[(CATTN_FEW_ROWS + WIDTH - 1) / WIDTH];
    for (ptrdiff_t v = 0; v * WIDTH < rows; v++) {
        const ptrdiff_t at = v * WIDTH;
        F(merge_sums)(total, v, F(load_up_to)(x_max + at, rows - at), F(load_up_to)(x_sum + at, rows - at),
                      &scale[v].v, &x_scale[v].v, 1);
        F(merge_lse_sums)(total, part->lse_sum, v, rows, scale[v].v, x_scale[v].v);
    }
    for (ptrdiff_t r = 0; r < rows; r++)
        F(few_merge_row)(output + r * pitch, carry + r * pitch, x_output + r * pitch, size,
                         F(splat)(scale[r / WIDTH].lane[r % WIDTH]), F(splat)(x_scale[r / WIDTH].lane[r % WIDTH]));
}

static void F(override_few)(cattn_kernels *few)
{
    few->takes_lists = 1;
    few->scores = F(few_scores);
    few->exponentials = F(few_exponentials);
    few->values = F(few_values);
    few->merge = F(few_merge);
#if REAL_BITS == 32
    few->reads |= 1u << CATTN_FLOAT16 | 1u << CATTN_BFLOAT16 | 1u << CATTN_INT8;
#endif
}
