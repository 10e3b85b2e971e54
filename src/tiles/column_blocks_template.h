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

/* Two chains of blocks, of which the first becomes the sum of all, and room for the sums of one block. */
typedef struct {
    REAL *chain[2], *part;
} F(column_sums);

/* Returns where the sums of block number `number` go. */
INLINE REAL *F(block_sums)(const F(column_sums) *sums, ptrdiff_t number)
{
    return number < 2 ? sums->chain[number] : sums->part;
}

/* Adds these `count` sums to their chain, and behind the last block both chains. */
static void F(add_block)(const F(column_sums) *sums, ptrdiff_t count, ptrdiff_t number, int is_last)
{
    if (number > 1)
        for (ptrdiff_t i = 0; i < count; i++)
            sums->chain[number % 2][i] += sums->part[i];
    if (is_last && number > 0)
        for (ptrdiff_t i = 0; i < count; i++)
            sums->chain[0][i] += sums->chain[1][i];
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
            const F(column_sums) sums = {{scores + r * tile->pitch + j, other}, part};
            const char *list[KEYS];
            for (ptrdiff_t c = 0, number = 0; c < block->size; c += columns, number++) {
                cattn_key_block keys;
                F(take_columns)(&keys, block, list, j, AT_MOST(KEYS, block->count - j), c, columns);
                one.queries = (char *)tile->queries + r * row_bytes + c * column_bytes;
                products(F(block_sums)(&sums, number), &one, &keys);
                F(add_block)(&sums, keys.count, number, c + columns >= block->size);
            }
        }
}
