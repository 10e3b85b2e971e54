/* The kernels `scores` and `maxima` of many rows for heads of any width. tiles_template.h includes this file. */

enum { F(block_columns) = COLUMN_RUNS * COLUMN_RUN };

/* Computes scores from blocks of columns, a register tile at a time. If `maxima` is given, it says what to ask for
 * meanwhile. */
static void F(wide_scores)(vector *scores, const cattn_row_tile *tile, const cattn_key_block *block,
                           const cattn_maxima *maxima)
{
    const int widest = F(widest)(tile->rows <= WIDTH ? 1 : tile->rows <= HALF ? 2 : TILE_VECTORS);
    vector other[TILE_WIDE * TILE_VECTORS] = {{0}}, part[TILE_WIDE * TILE_VECTORS] = {{0}};
    vector ignored[TILE_VECTORS] = {{0}};
    cattn_row_tile plain = *tile;
    plain.score_mod = NULL;
    plain.block_max = ignored;
    for (ptrdiff_t j = 0, wide; j < block->count; j += wide) {
        const F(column_sums) sums = {{(REAL *)(scores + j * TILE_VECTORS), (REAL *)other}, (REAL *)part};
        const char *list[TILE_WIDE], *asked;
        wide = F(next_width)(block->count - j, widest);
        asked = maxima == NULL ? NULL : F(asked_beside)(maxima, block, j, wide);
        cattn_prefetch_next(block->prefetch);
        for (ptrdiff_t c = 0, number = 0; c < block->size; c += F(block_columns), number++) {
            vector *to = (vector *)F(block_sums)(&sums, number);
            cattn_key_block keys;
            F(take_columns)(&keys, block, list, j, wide, c, F(block_columns));
            plain.queries = (vector *)tile->queries + c * TILE_VECTORS;
            if (maxima == NULL) {
                F(scores)(to, &plain, &keys);
            } else {
                const cattn_maxima columns = {
                    .largest = ignored, .ahead = asked == NULL ? NULL : asked + c * wide * (ptrdiff_t)sizeof(REAL)};
                TILES_PASTE(F(maxima), keeping)(&columns, &plain, &keys, to);
            }
            F(add_block)(&sums, wide * TILE_VECTORS * WIDTH, number, c + F(block_columns) >= block->size);
        }
    }
    F(modify_scores)(scores, tile, F(find_attn_bias)(tile, block->count), block->count,
                     tile->score_mod == NULL ? 0 : tile->score_mod->softcap);
}

static int F(scores_of_heads)(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->size <= F(block_columns))
        return F(scores)(scores, tile, block);
    F(wide_scores)(scores, tile, block, NULL);
    return 1;
}

static void F(maxima_of_heads)(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (block->size <= F(block_columns)) {
        F(maxima)(maxima, tile, block);
        return;
    }
    F(wide_scores)(tile->scores, tile, block, maxima);
    F(join_block)(maxima, tile, block->count);
}
