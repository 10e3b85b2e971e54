/* Sums over the columns of a wide head. Equal terms round the same way each time, and the runs of a wide head would drift
 * in one chain (see RUN in tiles_template.h). Its columns are therefore cut into blocks. The kernels take those of a block
 * as if they were a head, and of the sums of all blocks two chains take turns. */

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

/* Computes the products of few rows, row by row, in blocks of so many columns. `row_bytes` and `column_bytes` are those of
 * the queries. */
static void F(few_wide_products)(REAL *scores, const cattn_row_tile *tile, const cattn_key_block *block,
                                 ptrdiff_t columns, ptrdiff_t row_bytes, ptrdiff_t column_bytes,
                                 void (*products)(REAL *, const cattn_row_tile *, const cattn_key_block *))
{
    enum { KEYS = 64 };
    REAL other[KEYS], part[KEYS];
    cattn_row_tile one = *tile;
    one.rows = 1;
    for (ptrdiff_t j = 0; j < block->count; j += KEYS)
        for (ptrdiff_t r = 0; r < tile->rows; r++) {
            REAL *sums = scores + r * tile->pitch + j;
            const char *list[KEYS];
            for (ptrdiff_t c = 0, number = 0; c < block->size; c += columns, number++) {
                cattn_key_block keys;
                F(take_columns)(&keys, block, list, j, AT_MOST(KEYS, block->count - j), c, columns);
                one.queries = (char *)tile->queries + r * row_bytes + c * column_bytes;
                products(number == 0 ? sums : number == 1 ? other : part, &one, &keys);
                F(add_block)(sums, other, part, keys.count, number, c + columns >= block->size);
            }
        }
}
