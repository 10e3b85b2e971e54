/* The scores of wide heads. Equal terms round the same way each time, and the runs of a wide head would drift in one
 * chain (see RUN). Its columns are therefore cut into blocks. The kernels take those of a block as if they were a head,
 * and of the sums of all blocks two chains take turns. tiles_template.h includes this file. */

/* Takes `count` keys from key j on, with so many of their columns. Listed addresses go to `list`. */
static void F(take_columns)(cattn_key_block *part, const cattn_key_block *block, const char **list, ptrdiff_t j,
                            ptrdiff_t count, ptrdiff_t first, ptrdiff_t columns)
{
    const ptrdiff_t offset = first * F(stored_size)(block->type);
    *part = *block;
    part->count = count;
    part->size = AT_MOST(columns, block->size - first);
    part->prefetch = NULL;
    part->scales = NULL;
    if (block->list == NULL) {
        part->data += j * block->stride + offset;
    } else {
        for (ptrdiff_t i = 0; i < count; i++)
            list[i] = block->list[j + i] + offset;
        part->data = list[0];
        part->list = list;
    }
}

/* Adds the sums of block number `number` of the columns, which lie in `part` from the third one on, to those before. The
 * second one, in `other`, begins the other chain, which joins the scores behind the last block. */
static void F(add_block)(REAL *scores, REAL *other, const REAL *part, ptrdiff_t count, ptrdiff_t number, int is_last)
{
    REAL *chain = number % 2 == 0 ? scores : other;
    if (number > 1)
        for (ptrdiff_t i = 0; i < count; i++)
            chain[i] += part[i];
    if (is_last && number > 0)
        for (ptrdiff_t i = 0; i < count; i++)
            scores[i] += other[i];
}

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
