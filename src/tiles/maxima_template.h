/* How the scores of a block join the maxima so far, in kernels `maxima` that have them all in memory. */

/* Returns what to ask for beside the keys j to j + wide - 1; NULL: nothing. */
INLINE const char *F(asked_beside)(const cattn_maxima *maxima, const cattn_key_block *block, ptrdiff_t j, ptrdiff_t wide)
{
    if (maxima->asks_within)
        return j + wide < block->count ? block->data + (j + wide) * block->stride : maxima->ahead;
    return maxima->ahead == NULL ? NULL : maxima->ahead + j * maxima->ahead_stride;
}

/* Returns whether a number is NaN in the lane of a row. */
INLINE int F(has_nan)(const vector *x, ptrdiff_t rows)
{
    INT any = 0;
    for (int v = 0; v * WIDTH < rows; v++) {
        const integers found = (integers)(x[v] != x[v]) & (integers)(F(iota)() < (INT)(rows - v * WIDTH));
        for (int i = 0; i < WIDTH; i++)
            any |= found[i];
    }
    return any != 0;
}

/* Sets `largest` to the largest score of each lane, of which NaN is larger than all else, and `key` to the first key
 * that has it. */
INLINE void F(first_largest)(vector *largest, integers *key, const vector *scores, ptrdiff_t count)
{
    vector most = F(splat)(-INFINITE);
    integers at = {0};
    for (ptrdiff_t j = 0; j < count; j++) {
        const vector score = scores[j * TILE_VECTORS];
        const integers better = (integers)(score > most) | ((integers)(score != score) & (integers)(most == most));
        most = F(select)(better, score, most);
        at = (better & (INT)j) | (~better & at);
    }
    *largest = most;
    *key = at;
}

/* Joins the scores of a block one by one. */
static void F(join_scores)(const cattn_maxima *maxima, const cattn_row_tile *tile, ptrdiff_t count)
{
    REAL *largest = maxima->largest;
    for (int v = 0; v * WIDTH < tile->rows; v++) {
        F(lanes) most;
        integers key;
        F(first_largest)(&most.v, &key, (const vector *)tile->scores + v, count);
        for (int i = 0; i < WIDTH && v * WIDTH + i < tile->rows; i++) {
            const ptrdiff_t row = v * WIDTH + i;
            const REAL score = most.lane[i], before = largest[row];
            const int is_first = maxima->index != NULL && maxima->index[row] < 0;
            if (!(is_first || score > before || (score != score && before == before)))
                continue;
            largest[row] = score;
            if (maxima->index != NULL)
                maxima->index[row] = maxima->first + key[i];
        }
    }
}

/* Joins the scores of a block, whose maxima without NaN are in block_max. There is a NaN only if they add up to NaN. */
INLINE void F(join_block)(const cattn_maxima *maxima, const cattn_row_tile *tile, ptrdiff_t count)
{
    const vector *scores = tile->scores, *block_max = tile->block_max;
    vector *largest = maxima->largest;
    vector sum[TILE_VECTORS];
    if (maxima->index == NULL) {
        for (int v = 0; v * WIDTH < tile->rows; v++) {
            sum[v] = (vector){0};
            for (ptrdiff_t j = 0; j < count; j++)
                sum[v] += scores[j * TILE_VECTORS + v];
        }
        if (!F(has_nan)(sum, tile->rows)) {
            for (int v = 0; v * WIDTH < tile->rows; v++)
                largest[v] = F(larger)(block_max[v], largest[v]);
            return;
        }
    }
    F(join_scores)(maxima, tile, count);
}
