/* Few rows of bfloat16 on VDPBF16PS, which multiplies pairs. avx512bf16.c includes this file behind avx512bf16_many.h.
 *
 * Keys are read where they lie, against pairs of columns of the queries. Values are unpacked two rows at a time, and
 * summed in the order of columns that this leaves, which the last step undoes. Rows come from FEW_STREAMS places of a
 * block in turn, as in few_rows_template.h: the first FEW_KEYS keys of all streams (a quarter of the block apart), then
 * the next ones. */

#include "few_streams.h"

#define FEW_STREAMS 4
#define FEW_KEYS 4            /* of each stream, before the next one's turn */
#define FEW_BYTES_AHEAD 4096  /* of each stream, asked for ahead of those being read */
#define FEW_SCORE_CHAIN 128   /* vectors of a key that are summed in one chain */
#define FEW_VECTORS 8         /* of values that are summed at a time: their sums lie in the first-level cache */
/* The values of so many keys of each stream, 64 keys in all, are summed in one chain. Chains join one of FEW_TOTALS
 * totals in turn. */
#define FEW_CHAIN 16
#define FEW_TOTALS 2

/* Returns how many rows lie between one and that to ask for meanwhile. With one row they are half as many, because the
 * processor foresees more. */
INLINE ptrdiff_t pairs_ahead(ptrdiff_t size, const int rows)
{
    const ptrdiff_t ahead = (rows == 1 ? FEW_BYTES_AHEAD / 2 : FEW_BYTES_AHEAD) / 2 / size;
    return ahead > FEW_KEYS ? ahead : FEW_KEYS;
}

/* Copies the rows, with zeros behind each up to a whole vector. */
static void few_load_pairs(void *queries, const cattn_row_tile *tile, const char **source, ptrdiff_t size)
{
    words *to = queries;
    for (ptrdiff_t r = 0; r < tile->rows; r++)
        for (ptrdiff_t c = 0; c < size; c += NUMBERS)
            *to++ = load_numbers(source[r] + c * 2, size - c);
}

/* Adds the products of `rows` queries and `wide` keys in the vector of columns that begins `at` bytes from the first one,
 * of which n numbers are there. */
INLINE void few_pair_scores_step(vector *sum, const words *queries, ptrdiff_t vectors, const few_streams *keys,
                                 ptrdiff_t at, const ptrdiff_t n, const int asks, const int rows, const int wide,
                                 const int listed)
{
    words query[4];
    UNROLL for (int r = 0; r < rows; r++)
        query[r] = queries[r * vectors];
    UNROLL for (int w = 0; w < wide; w++) {
        const words key = load_numbers(few_row(keys, w, listed) + at, n);
        if (asks)
            CATTN_PREFETCH_L2(few_next_row(keys, w, listed) + at);
        UNROLL for (int r = 0; r < rows; r++)
            sum[r * wide + w] = dot_pairs(sum[r * wide + w], query[r], key);
    }
}

/* Computes the scores of `rows` rows and `steps` keys from each of `wide` streams, which begin `apart` keys from one
 * another. Dot products are summed lane by lane, and one fold finishes all of them. */
INLINE void few_pair_scores_tile(float *scores, const cattn_row_tile *tile, const words *queries, few_keys keys,
                                 ptrdiff_t size, ptrdiff_t apart, ptrdiff_t ahead, const int asks, const int rows,
                                 const int wide, const int steps, const int listed)
{
    const ptrdiff_t vectors = (size + NUMBERS - 1) / NUMBERS;
    vector sum[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i++)
        sum[i] = (vector){0};
    UNROLL for (int i = 0; i < steps; i++) {
        const few_streams key = few_streams_of(few_keys_from(keys, i, listed), apart, ahead, wide, listed);
        ptrdiff_t c = 0;
        for (; c < size / NUMBERS; c++)
            few_pair_scores_step(sum + i * rows * wide, queries + c, vectors, &key, c * 2 * NUMBERS, NUMBERS, asks, rows,
                                 wide, listed);
        if (c < vectors)
            few_pair_scores_step(sum + i * rows * wide, queries + c, vectors, &key, c * 2 * NUMBERS, size % NUMBERS,
                                 asks, rows, wide, listed);
    }
    F(lanes) score = {F(fold)(sum, 0) * (float)tile->scale};
    UNROLL for (int i = 0; i < steps; i++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int w = 0; w < wide; w++)
                scores[r * tile->pitch + w * apart + i] = score.lane[(i * rows + r) * wide + w];
}

/* Computes the scores of at most four rows, from `row` on. */
INLINE void few_pair_scores_rows(float *scores, const cattn_row_tile *tile, const cattn_key_block *block, ptrdiff_t row,
                                 const int rows, const int listed)
{
    const words *queries = (const words *)tile->queries + row * ((block->size + NUMBERS - 1) / NUMBERS);
    const few_keys keys = {block->data, block->stride, block->list, 0};
    const int steps = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    const ptrdiff_t size = block->size, count = block->count, apart = count / (FEW_STREAMS * steps) * steps;
    const ptrdiff_t ahead = pairs_ahead(size, rows);
    for (ptrdiff_t j = 0; j < apart; j += steps) {
        const ptrdiff_t left = count - (j + (FEW_STREAMS - 1) * apart + steps);   /* a list ends with the last stream */
        few_pair_scores_tile(scores + j, tile, queries, few_keys_from(keys, j, listed), size, apart,
                             listed ? AT_MOST(ahead, left) : ahead * keys.stride, 1, rows, FEW_STREAMS, steps, listed);
    }
    for (ptrdiff_t j = apart * FEW_STREAMS; j < count; j++)
        few_pair_scores_tile(scores + j, tile, queries, few_keys_from(keys, j, listed), size, 0, 0, 0, rows, 1, 1,
                             listed);
}

FEW_FUNCTIONS(few_pair_scores, few_pair_scores_rows(array, tile, block, row, rows, 0);)
FEW_FUNCTIONS(few_listed_pair_scores, few_pair_scores_rows(array, tile, block, row, rows, 1);)

static void few_pair_products(float *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->list == NULL)
        F(few_pair_scores_of_all)(scores, tile, block, tile->pitch);
    else
        F(few_listed_pair_scores_of_all)(scores, tile, block, tile->pitch);
}

static int few_pair_scores(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const ptrdiff_t columns = FEW_SCORE_CHAIN * NUMBERS;
    if (block->size <= columns)
        few_pair_products(scores, tile, block);
    else
        F(few_wide_products)(scores, tile, block, columns,
                             (block->size + NUMBERS - 1) / NUMBERS * (ptrdiff_t)sizeof(words), 2, few_pair_products);
    if (tile->score_mod != NULL)
        F(few_modify_scores)(scores, tile, block);
    else
        F(few_maximum)(scores, tile, block->count);
    return 1;
}

/* Returns two vectors of weights as one of rounded numbers, in their order. */
INLINE words round_numbers(vector first, vector second)
{
#if defined(TILES_AVX512BF16)
    return (words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    union { words all; uint16_t number[NUMBERS]; } x;
    const union { words pairs; uint16_t number[NUMBERS]; } pairs = {round_pairs(first, second)};
    for (int i = 0; i < NUMBERS; i++)
        x.number[i] = pairs.number[i % WIDTH * 2 + i / WIDTH];
    return x.all;
#endif
}

/* Turns the scores of each row into rounded weights, one behind the other, with zeros up to a whole vector. */
static int few_pair_exponentials(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    vector *row_max = tile->softmax.row_max, *row_scale = tile->row_scale;
    const words one = 0x3f803f80 - (words){0};
    F(lanes) shift = {F(advance)(row_max, row_scale, *(const vector *)tile->block_max)};
    vector sum[WIDTH], exact[WIDTH];
    for (int r = 0; r < WIDTH; r++)
        sum[r] = exact[r] = (vector){0};
    for (ptrdiff_t r = 0; r < tile->rows; r++) {
        float *row = (float *)scores + r * tile->pitch;
        words *weights = (words *)row;
        for (ptrdiff_t j = 0; j < block->count; j += NUMBERS) {
            vector weight[2];
            const ptrdiff_t keys = block->count - j;
            UNROLL for (int i = 0; i < 2; i++)   /* the row ends in a whole vector of room */
                weight[i] = (F(load)(row + j + i * WIDTH) - shift.lane[r]) * (REAL)CATTN_LOG2E;
            F(exponential)(weight, 2);
            if (keys < NUMBERS)
                UNROLL for (int i = 0; i < 2; i++)
                    weight[i] = F(select)(F(iota)() < (INT)(keys - i * WIDTH), weight[i], (vector){0});
            const words rounded = round_numbers(weight[0], weight[1]);
            sum[r] = dot_pairs(sum[r], rounded, one);
            exact[r] += weight[0] + weight[1];
            weights[j / NUMBERS] = rounded;
        }
    }
    vector *row_sum = tile->softmax.row_sum, *lse_sum = tile->softmax.lse_sum;
    *row_sum = F(muladd)(*row_scale, *row_sum, F(fold)(sum, 0));
    *lse_sum = F(muladd)(*row_scale, *lse_sum, F(fold)(exact, 0));
    return 1;
}

/* Adds the weighted values of `pairs` pairs of keys from each of `wide` streams to the sums of `vectors` vectors of
 * columns. The other key of a pair is the next one, or the same where that is missing and its weight 0. */
INLINE void few_pair_values_step(vector *sum, const char *weights, ptrdiff_t pitch, few_keys values, ptrdiff_t other,
                                 ptrdiff_t apart, ptrdiff_t ahead, ptrdiff_t numbers, const int asks, const int rows,
                                 const int wide, const int pairs, const int vectors, const int listed)
{
    vector total[4][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < 2 * vectors; v++)
            total[r][v] = sum[r * 2 * FEW_VECTORS + v];
    UNROLL for (int w = 0; w < wide; w++)
        UNROLL for (int p = 0; p < pairs; p++) {
            const ptrdiff_t key = w * apart + 2 * p;
            const few_keys pair = few_keys_from(values, key, listed);
            const few_streams from = few_streams_of(pair, other, ahead, 2, listed);
            words value[4];
            UNROLL for (int v = 0; v < vectors; v++) {
                const ptrdiff_t at = v * 2 * NUMBERS;
                unpack_rows(&value[2 * v], &value[2 * v + 1],
                            load_numbers(few_row(&from, 0, listed) + at, numbers - v * NUMBERS),
                            load_numbers(few_row(&from, 1, listed) + at, numbers - v * NUMBERS));
                if (asks) {
                    CATTN_PREFETCH_L2(few_next_row(&from, 0, listed) + at);
                    CATTN_PREFETCH_L2(few_next_row(&from, 1, listed) + at);
                }
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const words weight = splat_pair(weights + r * pitch + key * 2);
                UNROLL for (int v = 0; v < 2 * vectors; v++)
                    total[r][v] = dot_pairs(total[r][v], value[v], weight);
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < 2 * vectors; v++)
            sum[r * 2 * FEW_VECTORS + v] = total[r][v];
}

/* Sums the values of the columns of at most FEW_VECTORS vectors. */
INLINE void few_pair_values_columns(float *output, const cattn_row_tile *tile, const cattn_key_block *block,
                                    ptrdiff_t row, ptrdiff_t first, ptrdiff_t columns, const int rows,
                                    const int listed)
{
    const ptrdiff_t apart = tile->pitch / FEW_STREAMS, count = block->count, stride = block->stride;
    const ptrdiff_t most_ahead = pairs_ahead(block->size, rows), pitch = tile->pitch * 4;
    const char *weights = (const char *)tile->scores + row * pitch;
    const int vectors_of_sums = (int)((columns + NUMBERS - 1) / NUMBERS) * 2;
    vector sum[4][2 * FEW_VECTORS], total[FEW_TOTALS][4][2 * FEW_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors_of_sums; v++)
            sum[r][v] = total[0][r][v] = total[1][r][v] = (vector){0};
    for (ptrdiff_t i = 0; i < apart && i < count; i += FEW_KEYS) {
        const ptrdiff_t left = count - ((FEW_STREAMS - 1) * apart + i + FEW_KEYS);   /* of the last stream */
        const ptrdiff_t ahead = listed ? AT_MOST(most_ahead, left) : most_ahead * stride;
        const int whole = i + FEW_KEYS <= apart && left >= 0;
        for (ptrdiff_t c = 0, vectors; c < columns; c += vectors * NUMBERS) {
            const ptrdiff_t offset = (first + c) * 2;
            const few_keys all = {block->data + offset, stride, block->list, offset};
            const few_keys from = few_keys_from(all, i, listed);
            vector *sums = &sum[0][c / NUMBERS * 2];
            vectors = columns - c > NUMBERS ? 2 : 1;
#define FEW_STEP(key, other, ahead, asks, wide, pairs, vectors)                                                       \
            few_pair_values_step(sums, weights + (i + (key)) * 2, pitch, few_keys_from(from, key, listed), other,     \
                                 apart, ahead, columns - c, asks, rows, wide, pairs, vectors, listed)
            if (whole && vectors == 2) {
                FEW_STEP(0, 1, ahead, 1, FEW_STREAMS, FEW_KEYS / 2, 2);
                continue;
            }
            vectors = 1;
            if (whole) {
                FEW_STEP(0, 1, ahead, 1, FEW_STREAMS, FEW_KEYS / 2, 1);
                continue;
            }
            for (ptrdiff_t stream = 0; stream < FEW_STREAMS * apart; stream += apart)
                for (ptrdiff_t k = stream; k < AT_MOST(stream + FEW_KEYS, AT_MOST(count, stream + apart) - i); k += 2)
                    FEW_STEP(k, i + k + 1 < count, 0, 0, 1, 1, 1);
#undef FEW_STEP
        }
        if ((i + FEW_KEYS) % FEW_CHAIN == 0 || i + FEW_KEYS >= AT_MOST(apart, count))
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < vectors_of_sums; v++) {
                    total[i / FEW_CHAIN % FEW_TOTALS][r][v] += sum[r][v];
                    sum[r][v] = (vector){0};
                }
    }
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < columns; c += WIDTH) {
            const ptrdiff_t at = c / NUMBERS * 2;
            const vector low = total[0][r][at] + total[1][r][at], high = total[0][r][at + 1] + total[1][r][at + 1];
            float *out = output + r * tile->output_pitch + first + c;
            vector all;
            if (c / WIDTH % 2 == 0)
                all = SHUFFLE(integers, low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            else
                all = SHUFFLE(integers, low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
            if (!tile->is_new)
                all = F(muladd)(F(splat)(((const float *)tile->row_scale)[row + r]), F(load_up_to)(out, columns - c),
                                all);
            F(store_up_to)(out, all, columns - c);
        }
}

INLINE void few_pair_values_rows(float *output, const cattn_row_tile *tile, const cattn_key_block *block, ptrdiff_t row,
                                 const int rows, const int listed)
{
    for (ptrdiff_t c = 0; c < block->size; c += FEW_VECTORS * NUMBERS)
        few_pair_values_columns(output, tile, block, row, c, AT_MOST(block->size - c, FEW_VECTORS * NUMBERS), rows,
                                listed);
}

FEW_FUNCTIONS(few_pair_values, few_pair_values_rows(array, tile, block, row, rows, 0);)
FEW_FUNCTIONS(few_listed_pair_values, few_pair_values_rows(array, tile, block, row, rows, 1);)

static int few_pair_values(void *output, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->list == NULL)
        F(few_pair_values_of_all)(output, tile, block, tile->output_pitch);
    else
        F(few_listed_pair_values_of_all)(output, tile, block, tile->output_pitch);
    return 1;
}

static void override_few_pairs(cattn_table *table)
{
    cattn_kernels *few = &table->kernels[CATTN_BFLOAT16][CATTN_FEW];
    few->type = CATTN_BFLOAT16;
    few->reads = 1u << CATTN_BFLOAT16;
    few->rounds_weights = 1;
    few->blocking.bytes *= 2;   /* of numbers of half the size */
    few->load = few_load_pairs;
    few->scores = few_pair_scores;
    few->exponentials = few_pair_exponentials;
    few->values = few_pair_values;
}
