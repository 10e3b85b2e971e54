/* What happens to the scores of few rows. It uses functions of score_mod_template.h. */

/* Finds block_max[r], and folds up to WIDTH rows at once. */
static void F(few_maximum)(const REAL *scores, const cattn_row_tile *tile, ptrdiff_t count)
{
    const ptrdiff_t pitch = tile->pitch, rows = tile->rows;
    vector *block_max = tile->block_max;
    for (ptrdiff_t first = 0; first < rows; first += WIDTH) {
        vector maximum[WIDTH];
        UNROLL for (int r = 0; r < WIDTH; r++) {
            maximum[r] = F(splat)(-INFINITE);
            if (first + r < rows)
                for (ptrdiff_t j = 0; j < count; j += WIDTH) {
                    vector x = F(load_up_to)(scores + (first + r) * pitch + j, count - j);
                    if (count - j < WIDTH)
                        x = F(select)(F(iota)() < (INT)(count - j), x, F(splat)(-INFINITE));
                    maximum[r] = F(larger)(x, maximum[r]);
                }
        }
        block_max[first / WIDTH] = F(fold)(maximum, 1);
    }
}

static int F(few_modify_scores)(void *scores_, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const cattn_score_mod none = {0}, *mod = tile->score_mod != NULL ? tile->score_mod : &none;
    const integers sign = (integers)F(splat)(-(REAL)0);
    const vector masked = F(splat)(-INFINITE);
    const ptrdiff_t count = block->count;
    const REAL cap = F(softcap_bounded)(mod->softcap), cap_factor = (REAL)(-2 * CATTN_LOG2E / (double)cap);
    for (ptrdiff_t r = 0; r < tile->rows; r++) {
        REAL *scores = (REAL *)scores_ + r * tile->pitch;
        /* The arrays of modifiers that a call does not have are not initialised. */
        const REAL slope = mod->has_alibi ? (REAL)-mod->slope[r] : 0, distance = mod->has_alibi ? (REAL)mod->distance[r] : 0;
        const INT start = mod->has_interval ? F(key_bound)(mod->start[r], count) : 0;
        const INT stop = mod->has_interval ? F(key_bound)(mod->stop[r], count) : 0;
        for (ptrdiff_t j = 0; j < count; j += WIDTH) {
            const ptrdiff_t keys = count - j < WIDTH ? count - j : WIDTH;
            const integers key = F(iota)() + (INT)j;
            vector score = F(load_up_to)(scores + j, keys), bias = {0};
            if (mod->softcap != 0)
                score = F(softcap)(score, cap, cap_factor);
            if (mod->has_bias) {
                bias = F(load_up_to)((const REAL *)mod->bias[r] + j, keys);
                score += bias;
            }
            if (mod->has_alibi) {
                vector away = distance - __builtin_convertvector(key, vector);
                score = F(muladd)(F(splat)(slope), (vector)((integers)away & ~sign), score);
            }
            if (mod->has_bias)
                score = F(select)(bias == -INFINITE, masked, score);   /* whatever it is: NaN, too */
            if (mod->has_mask) {
                unsigned char bytes[WIDTH] = {0};
                __builtin_memcpy(bytes, mod->mask[r] + j, (size_t)keys);
                score = F(select)(F(mask_vector)(bytes), score, masked);
            }
            if (mod->has_interval)
                score = F(select)((key >= start) & (key < stop), score, masked);
            F(store_up_to)(scores + j, score, keys);
        }
    }
    F(few_maximum)(scores_, tile, count);
    return 1;
}
