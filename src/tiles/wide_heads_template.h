/* The kernels `scores` and `maxima` of many rows for heads of any width. tiles_template.h includes this file. */

enum { F(block_columns) = COLUMN_RUNS * COLUMN_RUN };

static void F(wide_scores)(vector *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    enum { KEYS = 4 * TILE_WIDE };   /* whole register tiles */
    vector other[KEYS * TILE_VECTORS] = {{0}}, part[KEYS * TILE_VECTORS] = {{0}}, ignored[TILE_VECTORS];
    cattn_row_tile plain = *tile;
    plain.score_mod = NULL;
    plain.block_max = ignored;
    for (ptrdiff_t j = 0; j < block->count; j += KEYS) {
        vector *sums = scores + j * TILE_VECTORS;
        const char *list[KEYS];
        cattn_prefetch_next(block->prefetch);
        for (ptrdiff_t c = 0, number = 0; c < block->size; c += F(block_columns), number++) {
            cattn_key_block keys;
            F(take_columns)(&keys, block, list, j, AT_MOST(KEYS, block->count - j), c, F(block_columns));
            plain.queries = (vector *)tile->queries + c * TILE_VECTORS;
            F(scores)(number == 0 ? sums : number == 1 ? other : part, &plain, &keys);
            F(add_block)((REAL *)sums, (REAL *)other, (REAL *)part, keys.count * TILE_VECTORS * WIDTH, number,
                         c + F(block_columns) >= block->size);
        }
    }
    F(modify_scores)(scores, tile, F(find_attn_bias)(tile, block->count), block->count,
                     tile->score_mod == NULL ? 0 : tile->score_mod->softcap);
}

static int F(scores_of_heads)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->size <= F(block_columns))
        return F(scores)(scores, tile, block);
    F(wide_scores)(scores, tile, block);
    return 1;
}

/* Does the same as wide_scores, a register tile at a time, beside which the next keys are asked for. */
static void F(wide_scores_from_far)(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const ptrdiff_t stride = block->stride, count = block->count;
    const int widest = F(widest)(tile->rows <= WIDTH ? 1 : tile->rows <= HALF ? 2 : TILE_VECTORS);
    vector other[TILE_WIDE * TILE_VECTORS] = {{0}}, part[TILE_WIDE * TILE_VECTORS] = {{0}}, ignored[TILE_VECTORS] = {{0}};
    cattn_row_tile plain = *tile;
    for (ptrdiff_t j = 0, wide; j < count; j += wide) {
        vector *sums = (vector *)tile->scores + j * TILE_VECTORS;
        const char *asked = maxima->ahead;
        wide = F(next_width)(count - j, widest);
        if (maxima->asks_within && j + wide < count)
            asked = block->data + (j + wide) * stride;
        else if (asked != NULL && !maxima->asks_within)
            asked += j * maxima->ahead_stride;
        for (ptrdiff_t c = 0, number = 0; c < block->size; c += F(block_columns), number++) {
            const cattn_maxima columns = {
                .largest = ignored, .ahead = asked == NULL ? NULL : asked + c * wide * (ptrdiff_t)sizeof(REAL)};
            cattn_key_block keys;
            F(take_columns)(&keys, block, NULL, j, wide, c, F(block_columns));
            plain.queries = (vector *)tile->queries + c * TILE_VECTORS;
            TILES_PASTE(F(maxima), keeping)(&columns, &plain, &keys, number == 0 ? sums : number == 1 ? other : part);
            F(add_block)((REAL *)sums, (REAL *)other, (REAL *)part, wide * TILE_VECTORS * WIDTH, number,
                         c + F(block_columns) >= block->size);
        }
    }
    F(modify_scores)(tile->scores, tile, NULL, count, 0);
}

static void F(maxima_of_heads)(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->size <= F(block_columns)) {
        F(maxima)(maxima, tile, block);
        return;
    }
    F(wide_scores_from_far)(maxima, tile, block);
    F(join_block)(maxima, tile, block->count);
}
