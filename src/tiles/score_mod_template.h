/* What happens to the scores of many rows. The softcap comes first. Each of the other modifiers makes one pass over
 * attn_bias, which is then added to the scores. */

/* Returns the softcap within bounds where neither it nor its factor overflows or loses digits. No score reaches
 * them. */
INLINE REAL F(softcap_bounded)(double softcap)
{
    const double bound = REAL_BITS == 32 ? 0x1p100 : 0x1p900;
    return (REAL)(softcap > bound ? bound : softcap < 1 / bound ? 1 / bound : softcap);
}

/* Applies softcap, unless it is 0, adds what is added, and finds the maxima. */
static void F(modify_scores)(vector *scores, const cattn_row_tile *tile, const vector *added, ptrdiff_t count,
                          double softcap)
{
    const REAL cap = F(softcap_bounded)(softcap), factor = (REAL)(-2 * CATTN_LOG2E / (double)cap);
    for (int v = 0; v * WIDTH < tile->rows; v++) {
        vector maximum = F(splat)(-INFINITE);
        for (ptrdiff_t at = v; at < count * TILE_VECTORS; at += TILE_VECTORS) {
            vector score = softcap == 0 ? scores[at] : F(softcap)(scores[at], cap, factor);
            if (added != NULL)
                score += added[at];
            scores[at] = score;
            maximum = F(larger)(score, maximum);
        }
        ((vector *)tile->block_max)[v] = maximum;
    }
}

/* Bias lies along the keys and attn_bias along the rows, so that squares of WIDTH × WIDTH are transposed in
 * registers. */
static void F(bias_pass)(vector *attn_bias, ptrdiff_t rows, ptrdiff_t count, const void *const *bias)
{
    for (int v = 0; v * WIDTH < rows; v++)
        for (ptrdiff_t j = 0; j < count; j += WIDTH) {
            const ptrdiff_t keys = count - j < WIDTH ? count - j : WIDTH;
            vector x[WIDTH];
            F(load_square)(x, bias + v * WIDTH, j, keys);
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < keys)
                    attn_bias[(j + i) * TILE_VECTORS + v] = x[i];
        }
}

/* Returns what the passes before have left, or zeros in the first pass. */
INLINE vector F(left)(const vector *attn_bias, int first)
{
    return first ? (vector){0} : *attn_bias;
}

INLINE void F(alibi_pass)(vector *attn_bias, ptrdiff_t count, const double *slope_, const double *distance_, int first,
                          const int vectors)
{
    const integers sign = (integers)F(splat)(-(REAL)0);
    vector slope[TILE_VECTORS], distance[TILE_VECTORS], key = {0};
    for (int r = 0; r < vectors * WIDTH; r++) {
        ((REAL *)slope)[r] = (REAL)-slope_[r];
        ((REAL *)distance)[r] = (REAL)distance_[r];
    }
    for (ptrdiff_t j = 0; j < count; j++, key += 1, attn_bias += TILE_VECTORS)
        UNROLL for (int v = 0; v < vectors; v++) {
            const vector away = (vector)((integers)(distance[v] - key) & ~sign);
            const vector bias = F(left)(&attn_bias[v], first), biased = F(muladd)(slope[v], away, bias);
            attn_bias[v] = first ? biased : F(select)(bias == -INFINITE, bias,
                                                      biased);   /* -inf masks, beside NaN or +inf too */
        }
}

/* Mask bytes lie along the keys too, and are transposed in squares of 16 × 16. */
static void F(mask_pass)(vector *attn_bias, ptrdiff_t rows, ptrdiff_t count, const unsigned char *const *mask,
                         int first)
{
    enum { ROWS = HALF < 16 ? HALF : 16 };   /* the rows of a half end with its vectors */
    for (int row = 0; row < rows; row += ROWS)
        for (ptrdiff_t j = 0; j < count; j += 16) {
            const ptrdiff_t keys = count - j < 16 ? count - j : 16;
            bytes_16 x[16], y[16];
            UNROLL for (int i = 0; i < 16; i++) {
                x[i] = (bytes_16){0};
                if (i < ROWS) {
                    const unsigned char *from = mask[row + i] + j;
                    if (keys == 16)
                        __builtin_memcpy(&x[i], from, 16);
                    else
                        __builtin_memcpy(&x[i], from, (size_t)keys);
                }
            }
            for (int stage = 0; stage < 4; stage++) {   /* each doubles the distance between a row's elements */
                UNROLL for (int i = 0; i < 8; i++) {
                    y[2 * i] = SHUFFLE(bytes_16, x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                       23);
                    y[2 * i + 1] = SHUFFLE(bytes_16, x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                           30, 15, 31);
                }
                UNROLL for (int i = 0; i < 16; i++)
                    x[i] = y[i];
            }
            for (ptrdiff_t i = 0; i < keys; i++)
                UNROLL for (int v = 0; v < ROWS / WIDTH; v++) {
                    vector *at = attn_bias + (j + i) * TILE_VECTORS + row / WIDTH + v;
                    *at = F(where_set)((const unsigned char *)&y[i] + v * WIDTH, F(left)(at, first));
                }
        }
}

INLINE INT F(key_bound)(ptrdiff_t key, ptrdiff_t count)
{
    return (INT)(key < 0 ? 0 : key > count ? count : key);
}

INLINE void F(interval_pass)(vector *attn_bias, ptrdiff_t count, const ptrdiff_t *start, const ptrdiff_t *stop,
                             int first, const int vectors)
{
    integers low[TILE_VECTORS], high[TILE_VECTORS], key = {0};
    for (int r = 0; r < vectors * WIDTH; r++) {
        ((INT *)low)[r] = F(key_bound)(start[r], count);
        ((INT *)high)[r] = F(key_bound)(stop[r], count);
    }
    for (ptrdiff_t j = 0; j < count; j++, key += 1, attn_bias += TILE_VECTORS)
        UNROLL for (int v = 0; v < vectors; v++)
            attn_bias[v] = F(where_between)(low[v], key, high[v], F(left)(&attn_bias[v], first));
}

/* Finds what is added to the scores of a block. Returns where it lies, or NULL if nothing is added. */
static const void *F(find_attn_bias)(const cattn_row_tile *tile, ptrdiff_t count)
{
    const cattn_score_mod *mod = tile->score_mod;
    vector *attn_bias = tile->attn_bias;
    if (mod == NULL || !mod->adds)
        return NULL;
    int first = !mod->has_bias;
    if (mod->has_bias)
        F(bias_pass)(attn_bias, tile->rows, count, mod->bias);
    if (mod->has_alibi) {
#define ALIBI_PASS(vectors) F(alibi_pass)(attn_bias, count, mod->slope, mod->distance, first, vectors)
        WITH_VECTORS(tile->rows, ALIBI_PASS)
#undef ALIBI_PASS
        first = 0;
    }
    if (mod->has_mask) {
        F(mask_pass)(attn_bias, tile->rows, count, mod->mask, first);
        first = 0;
    }
    if (mod->has_interval) {
#define INTERVAL_PASS(vectors) F(interval_pass)(attn_bias, count, mod->start, mod->stop, first, vectors)
        WITH_VECTORS(tile->rows, INTERVAL_PASS)
#undef INTERVAL_PASS
    }
    return attn_bias;
}
