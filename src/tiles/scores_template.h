/* The kernels `scores` and `maxima` of many rows, which the including file names SCORES and MAXIMA. They go over the
 * keys of a block in register tiles, which SCORES_TILE computes. */

#define SCORES_OF TILES_PASTE(SCORES, of)
#define MAXIMA_OF TILES_PASTE(MAXIMA, of)
#define MAXIMA_KEEPING TILES_PASTE(MAXIMA, keeping)

INLINE void SCORES_OF(vector *scores, const cattn_row_tile *tile, const cattn_key_block *block, const vector *added,
                      const int vectors)
{
    const vector *queries = tile->queries;
    vector *block_max = tile->block_max;
    const char *keys = block->data, *const *list = block->list;
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
                    keys + j * stride, stride, list != NULL ? list + j : NULL, size, scale, NULL, n, vectors)
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
        F(modify_scores)(scores, tile, added, block->count, mod->softcap);
    return 1;
}

/* The scores of a register tile are looked at before they leave the nearest cache. Then they are forgotten, unless there
 * is room in which they are `kept`. Returns whether all maxima are right, and stores them only then. A block has a NaN
 * only if its scores add up to NaN, which costs a sum beside each maximum. Infinities of both signs add up to NaN, too. */
INLINE int MAXIMA_OF(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block,
                     vector *kept, const int vectors)
{
    const vector *queries = tile->queries;
    vector *largest = maxima->largest;
    const char *keys = block->data;
    const ptrdiff_t stride = block->stride, count = block->count, size = block->size;
    const int widest = F(widest)(vectors);
    vector room[TILE_WIDE * TILE_VECTORS], maximum[TILE_VECTORS], sum[TILE_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        maximum[v] = largest[v];
        sum[v] = (vector){0};
    }
    for (ptrdiff_t j = 0, wide; j < count; j += wide) {
        const char *asked;
        vector *scores = kept != NULL ? kept + j * TILE_VECTORS : room;
        wide = F(next_width)(count - j, widest);
        asked = F(asked_beside)(maxima, block, j, wide);
#define TILE_OF(n)                                                                                              \
        SCORES_TILE(scores, maximum, queries, NULL, keys + j * stride, stride, NULL, size, (REAL)1, asked, n,       \
                    vectors);                                                                                   \
        UNROLL for (int i = 0; i < n; i++)                                                                      \
            UNROLL for (int v = 0; v < vectors; v++)                                                            \
                sum[v] += scores[i * TILE_VECTORS + v]
        WITH_WIDTH(wide, widest, TILE_OF)
#undef TILE_OF
    }
    if (F(has_nan)(sum, tile->rows))
        return 0;
    UNROLL for (int v = 0; v < vectors; v++)
        largest[v] = maximum[v];
    return 1;
}

static __attribute__((noinline)) int MAXIMA_KEEPING(const cattn_maxima *maxima, const cattn_row_tile *tile,
                                                    const cattn_key_block *block, vector *kept)
{
    int done = 0;
#define MANY(vectors) done = MAXIMA_OF(maxima, tile, block, kept, vectors)
    WITH_VECTORS(tile->rows, MANY)
#undef MANY
    return done;
}

static void MAXIMA(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    if (maxima->index == NULL && MAXIMA_KEEPING(maxima, tile, block, NULL))
        return;
    SCORES(tile->scores, tile, block);
    F(join_scores)(maxima, tile, block->count);
}

#undef MAXIMA_KEEPING
#undef MAXIMA_OF
#undef MAXIMA
#undef SCORES_OF
#undef SCORES_TILE
#undef SCORES
