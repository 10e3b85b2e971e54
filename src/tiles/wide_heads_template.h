/* The kernels `scores` and `maxima` of many rows for heads of any width. tiles_template.h includes this file. */

static int F(wide_scores)(void *scores_, const cattn_row_tile *tile, const cattn_key_block *block)
{
    enum { KEYS = 16, COLUMNS = COLUMN_RUNS * COLUMN_RUN };
    vector *scores = scores_, other[KEYS * TILE_VECTORS] = {{0}}, part[KEYS * TILE_VECTORS] = {{0}};
    vector ignored[TILE_VECTORS];
    cattn_row_tile plain = *tile;
    plain.score_mod = NULL;
    plain.block_max = ignored;
    for (ptrdiff_t j = 0; j < block->count; j += KEYS) {
        vector *sums = scores + j * TILE_VECTORS;
        const char *list[KEYS];
        cattn_prefetch_next(block->prefetch);
        for (ptrdiff_t c = 0, number = 0; c < block->size; c += COLUMNS, number++) {
            cattn_key_block keys;
            F(take_columns)(&keys, block, list, j, AT_MOST(KEYS, block->count - j), c, COLUMNS);
            plain.queries = (vector *)tile->queries + c * TILE_VECTORS;
            F(scores)(number == 0 ? sums : number == 1 ? other : part, &plain, &keys);
            F(add_block)((REAL *)sums, (REAL *)other, (REAL *)part, keys.count * TILE_VECTORS * WIDTH, number,
                         c + COLUMNS >= block->size);
        }
    }
    F(modify_scores)(scores, tile, F(find_attn_bias)(tile, block->count), block->count,
                     tile->score_mod == NULL ? 0 : tile->score_mod->softcap);
    return 1;
}

static int F(scores_of_heads)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    return (block->size > COLUMN_RUNS * COLUMN_RUN ? F(wide_scores) : F(scores))(scores, tile, block);
}

static void F(maxima_of_heads)(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->size <= COLUMN_RUNS * COLUMN_RUN) {
        F(maxima)(maxima, tile, block);
        return;
    }
    F(wide_scores)(tile->scores, tile, block);
    F(join_scores)(maxima, tile, block->count);
}
