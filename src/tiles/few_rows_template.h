/* Few rows have the head size, or keys, in the lanes. tiles_template.h includes this file.
 *
 * They are bound by memory. That is faster if keys, and then values, come from FEW_STREAMS places of a block in turn,
 * because the processor's own prefetchers follow several streams at a time. It is faster still if what comes next is
 * asked for: with four rows, the processor sees too few loads ahead to keep the memory busy.
 *
 * Values are summed in this order: the first keys of all streams (a quarter of the block apart), the second ones, and
 * so on. FEW_STEPS of each stream are a run. */

/* Returns the bytes from a row of keys or values to the one to ask for meanwhile, in each of so many streams. */
INLINE ptrdiff_t F(few_ahead)(ptrdiff_t stride, ptrdiff_t size, const cattn_type type, const int streams,
                              const int rows)
{
    const ptrdiff_t bytes = size * F(stored_size)(type);
    const ptrdiff_t ahead = (rows == 1 ? FEW_AHEAD / 2 : FEW_AHEAD) / streams / (bytes > 0 ? bytes : 1);
    return (ahead > 0 ? ahead : 1) * stride;
}

/* Asks for the line of memory that the vector at column c begins, if it begins one. It comes into L2 only, because
 * fewer lines may be on their way to L1 at a time. Memory that comes from L3 gains less by it, or loses. */
INLINE void F(prefetch_stored)(const char *row, ptrdiff_t c, const cattn_type type)
{
    const ptrdiff_t at = c * F(stored_size)(type);
    if (at % 64 == 0)
        CATTN_PREFETCH_L2(row + at);
}

/* Adds the products of `rows` queries and `wide` keys, which lie `apart` bytes from one another, in one vector of
 * columns from c on. The last one has n < WIDTH columns. */
INLINE void F(few_scores_step)(vector *sum, const REAL *queries, ptrdiff_t size, const char *keys, ptrdiff_t apart,
                               ptrdiff_t ahead, ptrdiff_t c, ptrdiff_t n, const cattn_type type, const int rows,
                               const int wide)
{
    vector query[4];
    UNROLL for (int r = 0; r < rows; r++)
        query[r] = F(load_up_to)(queries + r * size + c, n);
    UNROLL for (int w = 0; w < wide; w++) {
        const vector key = F(load_stored)(keys + w * apart, c, n, type);
        F(prefetch_stored)(keys + w * apart + ahead, c, type);
        UNROLL for (int r = 0; r < rows; r++)
            sum[r * wide + w] = F(muladd)(query[r], key, sum[r * wide + w]);
    }
}

/* Computes the scores of `rows` rows and `steps` keys from each of `wide` streams. Dot products are summed lane by
 * lane, and one fold finishes all of them. */
INLINE void F(few_scores_tile)(REAL *scores, ptrdiff_t pitch, const REAL *queries, ptrdiff_t size, const char *keys,
                               ptrdiff_t stride, ptrdiff_t streams_apart, ptrdiff_t ahead, const cattn_type type,
                               const int rows, const int wide, const int steps)
{
    vector total[FEW_SUMS];
    UNROLL for (int i = 0; i < FEW_SUMS; i++)
        total[i] = (vector){0};
    for (ptrdiff_t start = 0; start < size; start += 16 * WIDTH) {
        const ptrdiff_t end = F(run_end)(start, size, 16 * WIDTH);
        vector sum[FEW_SUMS];
        UNROLL for (int i = 0; i < FEW_SUMS; i++)
            sum[i] = (vector){0};
#if defined(MULTIPLIES_BY_LANE)   /* all steps at once: four pipes want so many sums */
#define FEW_SCORES_STEPS(n)                                                                                           \
        UNROLL for (int i = 0; i < steps; i++)                                                                        \
            F(few_scores_step)(sum + i * rows * wide, queries, size, keys + i * stride, streams_apart * stride, ahead, \
                               c, n, type, rows, wide);
        ptrdiff_t c = start;
        UNROLL for (int i = 0; i < FEW_SUMS; i++)   /* the totals wait in memory, or the sums would */
            __asm__("" : "+m"(total[i]));
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
            const char *key = keys + i * stride;
            ptrdiff_t c = start;
            for (; c + WIDTH <= end; c += WIDTH)
                F(few_scores_step)(step, queries, size, key, streams_apart * stride, ahead, c, WIDTH, type, rows, wide);
            if (c < end)
                F(few_scores_step)(step, queries, size, key, streams_apart * stride, ahead, c, size - c, type, rows,
                                   wide);
        }
#endif
        UNROLL for (int i = 0; i < FEW_SUMS; i++)
            total[i] += sum[i];
    }
    F(lanes) score[FEW_SUMS / WIDTH];
    UNROLL for (int i = 0; i < FEW_SUMS / WIDTH; i++)
        if (i * WIDTH < rows * wide * steps)
            score[i].v = F(fold)(total + i * WIDTH, 0);
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
                               const cattn_type type, const int rows, const int wide)
{
    const REAL *queries = (const REAL *)tile->queries + row * block->size;
    const char *keys = block->data;
    const ptrdiff_t pitch = tile->pitch, stride = block->stride, count = block->count, size = block->size;
    const int steps = FEW_SUMS / ((rows == 3 ? 4 : rows) * wide);
    const ptrdiff_t apart = count / (wide * steps) * steps;
    const ptrdiff_t ahead = apart > 0 ? F(few_ahead)(stride, size, type, wide, rows) : 0;
    for (ptrdiff_t j = 0; j < apart; j += steps)
        F(few_scores_tile)(scores + j, pitch, queries, size, keys + j * stride, stride, apart, ahead, type, rows, wide,
                           steps);
    for (ptrdiff_t j = apart * wide; j < count; j++)
        F(few_scores_tile)(scores + j, pitch, queries, size, keys + j * stride, stride, 0, 0, type, rows, 1, 1);
}

#define FEW_SCORES(type) F(few_scores_rows)(array, tile, block, row, type, rows, rows > 2 ? FEW_SUMS / 4 : 4)
FEW_FUNCTIONS(few_scores, WITH_TYPE(block->type, FEW_SCORES))
#undef FEW_SCORES

static int F(few_scores)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    F(few_scores_of_all)(scores, tile, block, tile->pitch);
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

/* Adds the weighted values of `wide` keys, which lie `apart` bytes from one another, to the sums of one vector of
 * columns from c on. The last one has n < WIDTH columns. */
INLINE void F(few_values_step)(vector sum[][FEW_COLUMNS], vector weight[][FEW_STREAMS], const char *values,
                               ptrdiff_t apart, ptrdiff_t ahead, ptrdiff_t c, ptrdiff_t n, const cattn_type type,
                               const int rows, const int wide)
{
    vector value[FEW_STREAMS];
    UNROLL for (int w = 0; w < wide; w++) {
        value[w] = F(load_stored)(values + w * apart, c, n, type);
        F(prefetch_stored)(values + w * apart + ahead, c, type);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vector total = sum[r][c / WIDTH];
        UNROLL for (int w = 0; w < wide; w++)
            total = F(muladd)(weight[r][w], value[w], total);
        sum[r][c / WIDTH] = total;
    }
}

INLINE void F(few_values_tile)(vector sum[][FEW_COLUMNS], const REAL *weights, ptrdiff_t pitch, const char *values,
                               ptrdiff_t stride, ptrdiff_t apart, ptrdiff_t ahead, ptrdiff_t columns,
                               const cattn_type type, const int rows, const int wide)
{
    vector weight[4][FEW_STREAMS];
    ptrdiff_t c = 0;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++)
            weight[r][w] = F(splat)(weights[r * pitch + w * apart]);
    for (; c + WIDTH <= columns; c += WIDTH)
        F(few_values_step)(sum, weight, values, apart * stride, ahead, c, WIDTH, type, rows, wide);
    if (c < columns)
        F(few_values_step)(sum, weight, values, apart * stride, ahead, c, columns - c, type, rows, wide);
}

/* Sums the values of at most FEW_COLUMNS vectors of columns. The sums lie in the first-level cache, because
 * they do not fit the registers. */
INLINE void F(few_values_columns)(REAL *output, ptrdiff_t output_pitch, const REAL *row_scale, const REAL *weights,
                                  ptrdiff_t pitch, const char *values, ptrdiff_t stride, ptrdiff_t count,
                                  ptrdiff_t columns, const cattn_type type, const int rows)
{
    const ptrdiff_t apart = pitch / FEW_STREAMS, vectors = (columns + WIDTH - 1) / WIDTH;
    const ptrdiff_t ahead = count > FEW_STREAMS ? F(few_ahead)(stride, columns, type, FEW_STREAMS, rows) : 0;
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
        for (ptrdiff_t i = first, steps = 1; i < last; i += steps) {
            const ptrdiff_t left = count - i;
#define FEW_VALUES_TILE(wide, apart)                                                                               \
            F(few_values_tile)(sum, weights + i, pitch, values + i * stride, stride, apart, ahead, columns, type,  \
                               rows, wide)
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
            for (ptrdiff_t c = 0; c < vectors; c++) {
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
                               const cattn_type type, const int rows)
{
    const REAL *row_scale = tile->is_new ? NULL : (const REAL *)tile->row_scale + row;
    const REAL *weights = (const REAL *)tile->scores + row * tile->pitch;
    for (ptrdiff_t c = 0, columns; c < block->size; c += columns) {
        columns = block->size - c < FEW_COLUMNS * WIDTH ? block->size - c : FEW_COLUMNS * WIDTH;
        F(few_values_columns)(output + c, tile->output_pitch, row_scale, weights, tile->pitch,
                              block->data + c * F(stored_size)(type), block->stride, block->count, columns, type, rows);
    }
}

#define FEW_VALUES(type) F(few_values_rows)(array, tile, block, row, type, rows)
FEW_FUNCTIONS(few_values, WITH_TYPE(block->type, FEW_VALUES))
#undef FEW_VALUES

static int F(few_values)(void *output, const cattn_row_tile *tile, const cattn_key_block *block)
{
    F(few_values_of_all)(output, tile, block, tile->output_pitch);
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

/* Streams are long, and one of them stays in L2. A chunk has more blocks than with many rows, because each chunk is a
 * task. The partial results of 8 rows are at most 0.8% of the bytes of their keys and values if a chunk has 512 keys,
 * and 2048 keys are few enough for many threads. */
static const cattn_blocking F(few_blocking) = {.most = CATTN_MAX_KEYS, .least = 64, .step = 64, .bytes = 262144,
                                               .chunk_blocks = 8, .least_chunk = 64, .most_chunk = 2048};

static void F(override_few)(cattn_kernels *few)
{
    few->blocking = F(few_blocking);
    few->scores = F(few_scores);
    few->exponentials = F(few_exponentials);
    few->values = F(few_values);
    few->merge = F(few_merge);
#if REAL_BITS == 32
    few->reads |= 1u << CATTN_FLOAT16 | 1u << CATTN_BFLOAT16 | 1u << CATTN_INT8;
#endif
}
