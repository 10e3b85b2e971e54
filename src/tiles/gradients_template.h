/* The kernels of gradients. Rows of queries are broadcast, and keys lie in the lanes. */

#ifndef QUERY_RUN
#define QUERY_RUN 16   /* keys of a run of query_gradients: it divides CATTN_GRADIENT_KEYS */
#endif

/* ---- differentiate ---- */

/* Returns x where a score is attended to, else 0. */
INLINE vector F(where_attended)(vector score, vector x)
{
    return (vector)((integers)(score != -INFINITE) & (integers)x);
}

/* Does to the scores of one row what score_mod says. `slope` becomes the derivative of the softcap, and `away` how far
 * each key is from the row. */
INLINE void F(modify_row)(vector *score, vector *slope, vector *away, const cattn_score_mod *mod, ptrdiff_t row,
                          ptrdiff_t keys, REAL cap, REAL factor, const int vectors)
{
    if (cap != 0)
        UNROLL for (int v = 0; v < vectors; v++)
            score[v] = F(softcap_with)(score[v], cap, factor, &slope[v]);
    if (!mod->adds)
        return;
    const integers sign = (integers)F(splat)(-(REAL)0);
    integers key = F(iota)(), low = {0}, high = {0};
    if (mod->has_interval) {
        low += F(key_bound)(mod->start[row], keys);
        high += F(key_bound)(mod->stop[row], keys);
    }
    for (int v = 0; v < vectors; v++, key += (INT)WIDTH) {
        const ptrdiff_t count = keys > v * WIDTH ? keys - v * WIDTH : 0;   /* none in a vector behind the last key */
        vector bias = {0}, added = {0};
        if (mod->has_bias)
            bias = added = F(load_up_to)((const REAL *)mod->bias[row] + v * WIDTH, count);
        if (mod->has_alibi) {
            const vector distance = F(splat)((REAL)mod->distance[row]) - __builtin_convertvector(key, vector);
            away[v] = (vector)((integers)distance & ~sign);
            added = F(muladd)(F(splat)((REAL)-mod->slope[row]), away[v], added);
        }
        score[v] += added;
        if (mod->has_bias)   /* -inf masks, beside NaN or +inf too */
            score[v] = F(select)(bias == -INFINITE, bias, score[v]);
        if (mod->has_mask) {
            const unsigned char *mask = mod->mask[row] + v * WIDTH;
            unsigned char some[WIDTH < 16 ? 16 : WIDTH] = {0};
            if (count < WIDTH) {
                __builtin_memcpy(some, mask, (size_t)count);
                mask = some;
            }
            score[v] = F(where_set)(mask, score[v]);
        }
        if (mod->has_interval)
            score[v] = F(where_between)(low, key, high, score[v]);
    }
}

/* Returns the sum of all numbers of these vectors. */
INLINE REAL F(sum_of)(const vector *x, const int vectors)
{
    F(lanes) all = {x[0]};
    UNROLL for (int v = 1; v < vectors; v++)
        all.v += x[v];
    for (int step = WIDTH / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++)
            all.lane[i] += all.lane[step + i];
    return all.lane[0];
}

INLINE void F(differentiate_of)(const cattn_gradient_tile *tile, const int modified, const int vectors)
{
    const cattn_score_mod *mod = tile->score_mod;
    const REAL *lse = tile->lse, *delta = tile->delta;
    vector *weights = tile->weights, *gradients = tile->gradients, *bias_gradients = tile->bias_gradients;
    const int sums = modified && tile->slope_gradient != NULL;
    const REAL cap = modified && mod->softcap != 0 ? F(softcap_bounded)(mod->softcap) : 0;
    const REAL factor = cap != 0 ? (REAL)(-2 * CATTN_LOG2E / (double)cap) : 0;
    vector run[TILE_VECTORS] = {{0}}, all[TILE_VECTORS] = {{0}};
    for (ptrdiff_t row = 0; row < tile->rows; row++) {
        vector score[TILE_VECTORS], weight[TILE_VECTORS], slope[TILE_VECTORS], away[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) {
            score[v] = weights[v];
            slope[v] = away[v] = (vector){0};
        }
        if (modified)
            F(modify_row)(score, slope, away, mod, row, tile->keys, cap, factor, vectors);
        UNROLL for (int v = 0; v < vectors; v++)
            weight[v] = EXPONENT(score[v] - lse[row]);
        F(exponential_of_any)(weight, vectors);   /* lse is the caller's */
        UNROLL for (int v = 0; v < vectors; v++) {
            vector gradient = F(where_attended)(score[v], weight[v] * (gradients[v] - delta[row]));
            weights[v] = F(where_attended)(score[v], weight[v]);
            gradients[v] = gradient;
            if (cap != 0)
                gradients[v] *= slope[v];
            if (modified && bias_gradients != NULL)
                bias_gradients[v] = gradient;
            if (sums) {
                const vector there = F(select)(F(iota)() < (INT)(tile->keys - v * WIDTH), gradient, (vector){0});
                run[v] = F(muladd)(there, away[v], run[v]);
            }
        }
        if (sums && (row % RUN == RUN - 1 || row + 1 == tile->rows))
            UNROLL for (int v = 0; v < vectors; v++) {
                all[v] += run[v];
                run[v] = (vector){0};
            }
        weights += TILE_VECTORS;
        gradients += TILE_VECTORS;
        if (modified && bias_gradients != NULL)
            bias_gradients += TILE_VECTORS;
    }
    if (sums)
        *(REAL *)tile->slope_gradient = F(sum_of)(all, vectors);
}

static void F(differentiate)(const cattn_gradient_tile *tile)
{
#define DIFFERENTIATE(vectors) F(differentiate_of)(tile, 0, vectors)
#define DIFFERENTIATE_MODIFIED(vectors) F(differentiate_of)(tile, 1, vectors)
    if (tile->score_mod == NULL) {
        WITH_VECTORS(tile->keys, DIFFERENTIATE)
    } else {
        WITH_VECTORS(tile->keys, DIFFERENTIATE_MODIFIED)
    }
#undef DIFFERENTIATE
#undef DIFFERENTIATE_MODIFIED
}

/* ---- query_gradients ---- */

/* Adds up `wide` rows and `vectors` vectors of columns, of which the last one has `columns` numbers. A step multiplies
 * one key by the gradients of its scores in these rows. Runs are summed first. */
INLINE void F(query_tile)(REAL *sums, ptrdiff_t size, const REAL *gradients, ptrdiff_t pitch, const char *keys,
                          ptrdiff_t stride, ptrdiff_t count, ptrdiff_t columns, const int is_new, const int wide,
                          const int vectors, const int whole)
{
    enum { TOGETHER = LANES < QUERY_RUN ? LANES : QUERY_RUN };   /* keys that lie in one tile */
    vector block[TILE_WIDE][TILE_VECTORS], sum[TILE_WIDE][TILE_VECTORS];
    OPAQUE(sums);
    F(clear)(block, wide, vectors);
    for (ptrdiff_t start = 0;; start += QUERY_RUN) {
        const ptrdiff_t end = F(run_end)(start, count, QUERY_RUN);
        F(clear)(sum, wide, vectors);
        for (ptrdiff_t at = start; at < end; at += TOGETHER) {
            const ptrdiff_t steps = AT_MOST(end - at, TOGETHER);
            const REAL *gradient = gradients + at / LANES * pitch + at % LANES;
#define QUERY_STEP                                                                                                  \
            vector key[TILE_VECTORS];                                                                               \
            UNROLL for (int v = 0; v < vectors; v++)                                                                \
                key[v] = whole || v + 1 < vectors ? F(load)((const REAL *)keys + v * WIDTH)                         \
                                                  : F(load_part)((const REAL *)keys + v * WIDTH, columns);          \
            EACH_SUM(w, v)                                                                                          \
                sum[w][v] = F(muladd)(F(splat)(gradient[w * LANES]), key[v], sum[w][v]);                            \
            gradient++;                                                                                             \
            keys += stride;
            STEPS(QUERY_STEP, steps, TOGETHER)
#undef QUERY_STEP
        }
        EACH_SUM(w, v)
            sum[w][v] += block[w][v];
        if (end == count)
            break;
        EACH_SUM(w, v)
            block[w][v] = sum[w][v];
    }
    OPAQUE(sums);   /* or loads move up before the branches, into spilled registers */
    EACH_SUM(w, v) {
        REAL *out = sums + w * size + v * WIDTH;
        if (whole || v + 1 < vectors) {
            if (!is_new)
                sum[w][v] += F(load)(out);
            F(store)(out, sum[w][v]);
        } else {
            if (!is_new)
                sum[w][v] += F(load_part)(out, columns);
            F(store_part)(out, sum[w][v], columns);
        }
    }
}

/* Goes over all rows for some columns. */
INLINE void F(query_columns)(REAL *sums, ptrdiff_t rows, ptrdiff_t size, const REAL *gradients, ptrdiff_t pitch,
                             const cattn_key_block *block, ptrdiff_t c, const int is_new, const int vectors,
                             const int whole)
{
    const char *keys = block->data + c * (ptrdiff_t)sizeof(REAL);
    const ptrdiff_t stride = block->stride, count = block->count, columns = size - c;
    const int widest = whole ? F(widest)(vectors) : AT_MOST(6, F(widest)(vectors));
    for (ptrdiff_t row = 0, wide; row < rows; row += wide) {
        wide = F(next_width)(rows - row, widest);
#define QUERY_TILE(n)                                                                                              \
        F(query_tile)(sums + row * size + c, size, gradients + row * LANES, pitch, keys, stride, count, columns,   \
                      is_new, n, vectors, whole)
        WITH_WIDTH(wide, widest, QUERY_TILE)
#undef QUERY_TILE
    }
}

static void F(query_gradients)(void *sums, ptrdiff_t rows, const void *gradients, ptrdiff_t pitch,
                               const cattn_key_block *block, int is_new)
{
    const ptrdiff_t size = block->size;
    ptrdiff_t c = 0;
    for (; c + TILE_VECTORS * WIDTH <= size; c += TILE_VECTORS * WIDTH)
        F(query_columns)(sums, rows, size, gradients, pitch, block, c, is_new, TILE_VECTORS, 1);
    if (TILE_VECTORS > 2 && c + 2 * WIDTH <= size) {
        F(query_columns)(sums, rows, size, gradients, pitch, block, c, is_new, 2, 1);
        c += 2 * WIDTH;
    }
    if (c + WIDTH <= size) {
        F(query_columns)(sums, rows, size, gradients, pitch, block, c, is_new, 1, 1);
        c += WIDTH;
    }
    if (c < size)
        F(query_columns)(sums, rows, size, gradients, pitch, block, c, is_new, 1, 0);
}

/* ---- join, dots ---- */

static void F(join)(void *total_, void *carry_, const void *part_, ptrdiff_t count)
{
    REAL *total = total_, *carry = carry_;
    const REAL *part = part_;
    for (ptrdiff_t i = 0; i < count; i += WIDTH) {
        const ptrdiff_t n = count - i;
        const vector before = F(load_up_to)(total + i, n), x = F(load_up_to)(part + i, n);
        vector sum = before + x;
        if (carry != NULL) {   /* either of the two may be the larger one (Knuth, as in `merge`) */
            const vector added = sum - before;
            const vector lost = F(load_up_to)(carry + i, n) + ((before - (sum - added)) + (x - added));
            const vector all = sum + lost;
            F(store_up_to)(carry + i, F(select)(sum - sum == 0, lost - (all - sum), (vector){0}), n);
            sum = F(select)(sum - sum == 0, all, sum);
        }
        F(store_up_to)(total + i, sum, n);
    }
}

static void F(dots)(void *sums, const cattn_key_block *rows, const cattn_key_block *others)
{
    enum { CHAINS = 4 };
    const ptrdiff_t size = rows->size;
    for (ptrdiff_t first = 0; first < rows->count; first += WIDTH) {
        const ptrdiff_t count = AT_MOST(rows->count - first, WIDTH);
        vector dot[WIDTH];
        UNROLL for (int i = 0; i < WIDTH; i++)
            dot[i] = (vector){0};
        for (ptrdiff_t i = 0; i < count; i++) {
            const REAL *row = (const REAL *)(rows->data + (first + i) * rows->stride);
            const REAL *other = (const REAL *)(others->data + (first + i) * others->stride);
            vector sum[CHAINS] = {{0}};
            for (ptrdiff_t c = 0; c < size; c += CHAINS * WIDTH)
                UNROLL for (int chain = 0; chain < CHAINS; chain++) {
                    const ptrdiff_t n = size - c - chain * WIDTH;
                    if (n > 0)
                        sum[chain] = F(muladd)(F(load_up_to)(row + c + chain * WIDTH, n),
                                               F(load_up_to)(other + c + chain * WIDTH, n), sum[chain]);
                }
            dot[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
        F(store_up_to)((REAL *)sums + first, F(fold)(dot, 0), count);
    }
}
