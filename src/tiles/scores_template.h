/* The kernel `scores` of many rows. SCORES is its name. It goes over the keys of a block in register tiles, which
 * SCORES_TILE computes. */

#define SCORES_OF TILES_PASTE(SCORES, of)

INLINE void SCORES_OF(vector *scores, const cattn_row_tile *tile, const cattn_key_block *block, const vector *added,
                      const int vectors)
{
    const vector *queries = tile->queries;
    vector *block_max = tile->block_max;
    const char *keys = block->data;
    const REAL scale = (REAL)tile->scale;
    const ptrdiff_t stride = block->stride, count = block->count, size = block->size;
    cattn_prefetch *prefetch = block->prefetch;
    const int widest = F(widest)(vectors);
    vector maximum[TILE_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++)
        maximum[v] = F(splat)(-INFINITE);
    for (ptrdiff_t j = 0, wide; j < count; j += wide) {
        wide = F(next_width)(count - j, widest);
        cattn_prefetch_next(prefetch);
#define TILE_OF(n)                                                                                               \
        SCORES_TILE(scores + j * TILE_VECTORS, maximum, queries, added != NULL ? added + j * TILE_VECTORS : NULL, \
                    keys + j * stride, stride, size, scale, n, vectors)
        WITH_WIDTH(wide, widest, TILE_OF)
#undef TILE_OF
    }
    UNROLL for (int v = 0; v < vectors; v++)
        block_max[v] = maximum[v];
}

static int SCORES(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const cattn_score_mod *mod = tile->score_mod;
    const int capped = mod != NULL && mod->softcap != 0;
    const void *added = F(find_attn_bias)(tile, block->count);
#define MANY(vectors) SCORES_OF(scores, tile, block, capped ? NULL : added, vectors)
    WITH_VECTORS(tile->rows, MANY)
#undef MANY
    if (capped)
        F(cap_scores)(scores, tile, added, block->count, mod->softcap);
    return 1;
}

#undef SCORES_OF
#undef SCORES_TILE
#undef SCORES
