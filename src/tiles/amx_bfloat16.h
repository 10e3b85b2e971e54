/* The kernels for many rows of bfloat16 on AMX. amx.c includes this file with REAL_BITS 32, after pairs_template.h.
 *
 *   product                      left tile                                     right tile
 *   scoresᵀ = keys · queries     16 keys, read where they lie, × 32 columns    16 pairs of columns × 16 lanes
 *   outputᵀ = valuesᵀ · weights  16 value columns × a bundle of 32 keys        16 pairs of keys × 16 lanes
 *
 * Four products are computed together, so that each tile is loaded once for two of them: 32 keys (or value columns) ×
 * 32 lanes. One product sums 32 terms, so a run has 32 keys. Queries are padded with zeros to whole tiles, and values
 * come interleaved in bundles of 32 keys. Rows that do not fill a tile are copied to one that is padded with zeros. */

#define BUNDLE TILE_NUMBERS   /* keys of a bundle of interleaved values */
#define TALL (2 * TILE_ROWS)
#define WIDE 2               /* vectors of lanes */
#define CHAIN 256            /* steps whose products are summed in one chain: a head has at most twice as many */

/* This buffer holds the sums of 2 × 2 tiles until they are used: 32 keys or value columns, with 32 lanes each. */
typedef vector products[TALL][WIDE];

typedef struct {
    words row[TILE_ROWS];
} whole_tile;

/* The operands of `multiply`. `a` has two tiles of at most 16 rows, one below the other, and `b` two tiles of 16 rows,
 * side by side. The sum runs over `steps` of each, which have 32 numbers a row. */
typedef struct {
    const char *a;
    const char *const *list;   /* the addresses of a's rows if they lie in several pages of whole tiles; else NULL */
    ptrdiff_t count, stride;   /* of a's rows, in both tiles */
    ptrdiff_t next;            /* bytes from a step's numbers of a row to those of the next one */
    const vector *b, *last_b;  /* the tiles of the last step may lie elsewhere */
    ptrdiff_t steps, last;     /* numbers of a row of the last step */
} factors;

INLINE const char *row_of(const factors *of, ptrdiff_t i)
{
    return of->list != NULL ? of->list[i] : of->a + i * of->stride;
}

/* Copies the n numbers of each of 16 rows that lie `at` bytes behind its first one, with zeros where there are none. */
static __attribute__((noinline)) const char *copy_tile(whole_tile *to, const factors *of, ptrdiff_t first, ptrdiff_t at,
                                                       ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < TILE_ROWS; i++)
        to->row[i] = first + i < of->count ? load_numbers(row_of(of, first + i) + at, n) : (words){0};
    return (const char *)to;
}

/* Returns where TILE_LOAD finds rows first, first + 1, ..., and sets their stride: in place if they fill a tile and lie
 * in one page, else in the copy. */
INLINE const char *find_tile(whole_tile *copy, ptrdiff_t *stride, const factors *of, ptrdiff_t first, ptrdiff_t at,
                             ptrdiff_t n)
{
    if (of->count - first >= TILE_ROWS && n >= TILE_NUMBERS) {
        const char *rows = row_of(of, first);
        *stride = of->stride;
        if (of->list == NULL || of->list[first + TILE_ROWS - 1] == rows + (TILE_ROWS - 1) * of->stride)
            return rows + at;
    }
    *stride = TILE_BYTES;
    return copy_tile(copy, of, first, at, n);
}

INLINE void store_products(vector *to, ptrdiff_t pitch)
{
    const ptrdiff_t stride = pitch * VECTOR_BYTES;
    TILE_STORE(0, to, stride);
    TILE_STORE(1, to + 1, stride);
    TILE_STORE(2, to + TILE_ROWS * pitch, stride);
    TILE_STORE(3, to + TILE_ROWS * pitch + 1, stride);
}

INLINE void clear_products(void)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

/* Computes Σ a · b: 32 rows of 32 lanes, which are `pitch` vectors apart. */
INLINE void multiply(vector *to, ptrdiff_t pitch, const factors *of)
{
    const ptrdiff_t b_stride = TILE_VECTORS * VECTOR_BYTES;
    const vector *b = of->b;
    ptrdiff_t at = 0;
    whole_tile copy[2];
    products first;   /* of two chains */
    clear_products();
    for (ptrdiff_t step = 1; step <= of->steps; step++) {
        if (step == CHAIN + 1) {
            store_products(first[0], WIDE);
            clear_products();
        }
        const ptrdiff_t n = step < of->steps ? TILE_NUMBERS : of->last;
        ptrdiff_t stride, other_stride;
        const char *one = find_tile(&copy[0], &stride, of, 0, at, n);
        const char *other = find_tile(&copy[1], &other_stride, of, TILE_ROWS, at, n);
        if (step == of->steps)
            b = of->last_b;
        TILE_LOAD(4, one, stride);
        TILE_LOAD(6, b, b_stride);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, b + 1, b_stride);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, other, other_stride);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
        at += of->next;
        b += TILE_PAIRS * TILE_VECTORS;
    }
    store_products(to, pitch);
    if (of->steps > CHAIN)
        for (int i = 0; i < TALL; i++)
            UNROLL for (int v = 0; v < WIDE; v++)
                to[i * pitch + v] += first[i][v];
}

/* ---- load ---- */

static void amx_load(void *queries, const cattn_row_tile *tile, const char **source, ptrdiff_t size)
{
    const ptrdiff_t pairs = (size + 1) / 2;
    load_pairs(queries, tile, source, size);
    for (ptrdiff_t c = pairs; c % TILE_PAIRS != 0; c++)
        UNROLL for (int v = 0; v < TILE_VECTORS; v++)
            ((vector *)queries)[c * TILE_VECTORS + v] = (vector){0};
}

/* ---- scores ---- */

/* Makes scores of products, and finds their maxima. Scores that are scaled late stay as they are if nothing is
 * added. */
INLINE void finish_scores(vector *scores, vector *maximum, const vector *added, const float scale, ptrdiff_t count,
                          const int late)
{
    vector largest[WIDE] = {maximum[0], maximum[1]};
    UNROLL_EIGHT for (ptrdiff_t at = 0; at < count * TILE_VECTORS; at += TILE_VECTORS)
        UNROLL for (int v = 0; v < WIDE; v++) {
            vector score = scores[at + v];
            if (added != NULL)
                score = F(muladd)(score, F(splat)(late ? 1 : scale), added[at + v]);
            else if (!late)
                score *= scale;
            if (added != NULL || !late)
                scores[at + v] = score;
            largest[v] = F(larger)(score, largest[v]);
        }
    UNROLL for (int v = 0; v < WIDE; v++)
        maximum[v] = largest[v];
}

INLINE void amx_scores_of(vector *scores, const cattn_row_tile *tile, const cattn_key_block *block, const vector *added,
                          const int late)
{
    const vector *queries = tile->queries;
    const ptrdiff_t count = block->count, vectors = tile->rows <= HALF ? WIDE : TILE_VECTORS;
    const ptrdiff_t steps = (block->size + TILE_NUMBERS - 1) / TILE_NUMBERS;
    const float scale = (float)tile->scale;
    factors of = {.stride = block->stride, .next = TILE_BYTES, .steps = steps,
                  .last = block->size - (steps - 1) * TILE_NUMBERS};
    products rest;
    vector maximum[TILE_VECTORS], *block_max = tile->block_max;
    ptrdiff_t before = 0;   /* where the products of the turn before lie */
    UNROLL for (int v = 0; v < TILE_VECTORS; v++)
        maximum[v] = F(splat)(-INFINITE);
#define FINISH                                                                                      \
    finish_scores(scores + before, maximum + before % TILE_VECTORS, added == NULL ? NULL : added + before, scale, \
                  AT_MOST(BUNDLE, count - before / TILE_VECTORS), late)
    for (ptrdiff_t j = 0; j < count; j += BUNDLE) {
        cattn_prefetch_next(block->prefetch);
        of.a = block->data + j * block->stride;
        of.list = block->list == NULL ? NULL : block->list + j;
        of.count = count - j;
        for (ptrdiff_t v = 0; v < vectors; v += WIDE) {
            const ptrdiff_t at = j * TILE_VECTORS + v;
            of.b = queries + v;
            of.last_b = of.b + (of.steps - 1) * TILE_PAIRS * TILE_VECTORS;
            if (of.count >= BUNDLE) {
                multiply(scores + at, TILE_VECTORS, &of);
            } else {
                multiply(rest[0], WIDE, &of);
                for (ptrdiff_t i = 0; i < of.count; i++)
                    UNROLL for (int w = 0; w < WIDE; w++)
                        scores[at + i * TILE_VECTORS + w] = rest[i][w];
            }
            if (at > 0)
                FINISH;
            before = at;
        }
    }
    FINISH;
#undef FINISH
    UNROLL for (int v = 0; v < TILE_VECTORS; v++)
        if (v < vectors)
            block_max[v] = maximum[v] * (late ? scale : 1);
}

static int amx_scores(void *scores, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const cattn_score_mod *mod = tile->score_mod;
    const int capped = mod != NULL && mod->softcap != 0;
    const void *added = F(find_attn_bias)(tile, block->count);
    TILES_BEGIN;
    if (scales_late(tile) && added == NULL)
        amx_scores_of(scores, tile, block, NULL, 1);
    else if (scales_late(tile))
        amx_scores_of(scores, tile, block, added, 1);
    else
        amx_scores_of(scores, tile, block, capped ? NULL : added, 0);
    TILES_END;
    if (capped)
        F(modify_scores)(scores, tile, added, block->count, mod->softcap);
    return 1;
}

/* ---- maxima ---- */

static void amx_maxima(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block)
{
    amx_scores(tile->scores, tile, block);
    F(join_block)(maxima, tile, block->count);
}

/* ---- values ---- */

INLINE void finish_values(vector *output, const products sums, const vector *row_scale, ptrdiff_t columns)
{
    UNROLL_EIGHT for (ptrdiff_t c = 0; c < columns; c++)
        UNROLL for (int v = 0; v < WIDE; v++) {
            vector *out = &output[c * TILE_VECTORS + v];
            if (row_scale != NULL)
                *out = F(muladd)(row_scale[v], *out, sums[c][v]);
            else
                *out = sums[c][v];
        }
}

static int amx_values(void *output_, const cattn_row_tile *tile, const cattn_key_block *block)
{
    const ptrdiff_t size = block->size, vectors = tile->rows <= HALF ? WIDE : TILE_VECTORS;
    const ptrdiff_t pairs = (block->count + 1) / 2, steps = (block->count + BUNDLE - 1) / BUNDLE;
    const vector *weights = tile->scores, *row_scale = tile->is_new ? NULL : tile->row_scale;
    factors of = {.stride = TILE_BYTES, .next = BUNDLE * block->stride, .steps = steps, .last = TILE_NUMBERS};
    vector *output = output_, last[TILE_PAIRS * TILE_VECTORS];   /* the weights of the last bundle, padded with zeros */
    products sums[2];
    ptrdiff_t turn = 0, before = 0;   /* where the outputs of the turn before lie */
#define FINISH                                                                                                         \
    finish_values(output + before, sums[(turn - 1) % 2], row_scale == NULL ? NULL : row_scale + before % TILE_VECTORS, \
                  AT_MOST(TALL, size - before / TILE_VECTORS))
    for (ptrdiff_t p = 0; p < TILE_PAIRS; p++)
        for (ptrdiff_t v = 0; v < vectors; v++) {
            const ptrdiff_t at = (steps - 1) * TILE_PAIRS + p;
            last[p * TILE_VECTORS + v] = (vector){0};
            if (at < pairs)
                last[p * TILE_VECTORS + v] = weights[at * TILE_VECTORS + v];
        }
    TILES_BEGIN;
    for (ptrdiff_t c = 0; c < size; c += TALL) {
        cattn_prefetch_next(block->prefetch);
        of.a = block->data + c * TILE_BYTES;
        of.count = size - c;
        for (ptrdiff_t v = 0; v < vectors; v += WIDE) {
            of.b = weights + v;
            of.last_b = last + v;
            multiply(sums[turn % 2][0], WIDE, &of);
            if (turn > 0)
                FINISH;
            before = c * TILE_VECTORS + v;
            turn++;
        }
    }
    FINISH;
    TILES_END;
#undef FINISH
    return 1;
}

/* Returns the vector whose 128-bit part g lies at from[g]. */
INLINE words gather_quads(const char *const from[4])
{
    const REAL *parts[4] = {(const REAL *)from[0], (const REAL *)from[1], (const REAL *)from[2], (const REAL *)from[3]};
    return (words)F(load_quads)(parts);
}

/* Transposes 8 columns of 32 keys: y[c] holds the 32 numbers of column c. Part g of a vector holds columns of keys 8g +
 * 2m and 8g + 2m + 1. Their numbers become pairs first, and then the pairs of four vectors change places inside each
 * part. */
INLINE void interleave_eight(vector y[8], const char *const rows[BUNDLE])
{
    vector low[4], high[4];
    UNROLL for (int m = 0; m < 4; m++) {
        const char *even[4], *odd[4];
        UNROLL for (int g = 0; g < 4; g++) {
            even[g] = rows[8 * g + 2 * m];
            odd[g] = rows[8 * g + 2 * m + 1];
        }
        words one, other;
        unpack_rows(&one, &other, gather_quads(even), gather_quads(odd));
        low[m] = (vector)one;
        high[m] = (vector)other;
    }
    F(transpose_quads)(y, low);
    F(transpose_quads)(y + 4, high);
}

static void amx_interleave(void *to, const char *const *from, ptrdiff_t keys, ptrdiff_t columns)
{
    enum { EIGHT = 8 };
    const ptrdiff_t whole = columns / EIGHT * EIGHT;
    words *out = to;
    for (ptrdiff_t j = 0; j < keys; j += BUNDLE, from += BUNDLE) {
        uint16_t rest[BUNDLE][EIGHT] = {{0}};
        const char *rows[BUNDLE];
        vector y[EIGHT];
        if (keys - j >= BUNDLE)
            for (ptrdiff_t c = 0; c < whole; c += EIGHT, out += EIGHT) {
                UNROLL for (int i = 0; i < BUNDLE; i++)
                    rows[i] = from[i] + c * 2;
                interleave_eight(y, rows);
                UNROLL for (int i = 0; i < EIGHT; i++)
                    __builtin_memcpy(out + i, &y[i], TILE_BYTES);
            }
        /* Columns and keys that do not fill a square are copied to one that is padded with zeros. */
        for (ptrdiff_t c = keys - j >= BUNDLE ? whole : 0; c < columns; c += EIGHT) {
            const ptrdiff_t n = AT_MOST(columns - c, EIGHT);
            for (int i = 0; i < BUNDLE; i++) {
                rows[i] = (const char *)rest[i];
                if (i < keys - j)
                    __builtin_memcpy(rest[i], from[i] + c * 2, (size_t)n * 2);
            }
            interleave_eight(y, rows);
            for (ptrdiff_t i = 0; i < n; i++)
                __builtin_memcpy(out++, &y[i], TILE_BYTES);
        }
    }
}

static void override_amx(cattn_table *table)
{
    cattn_kernels *many = &table->kernels[CATTN_BFLOAT16][CATTN_MANY];
    many->run = RUN;
    many->scales_late = 1;
    many->interleaves = BUNDLE;
    many->takes_lists = TILE_ROWS;
    /* Keys, values, scores and weights of a block stay in L2 beside the tiles of a task. */
    many->blocking = (cattn_blocking){.most = 256, .least = BUNDLE, .step = CATTN_BY_HALVES, .bytes = 131072,
                                      .chunk_blocks = 8, .least_chunk = 512, .most_chunk = PTRDIFF_MAX};
    many->load = amx_load;
    many->scores = amx_scores;
    many->maxima = amx_maxima;
    many->exponentials = pair_exponentials;
    many->values = amx_values;
    table->interleave = amx_interleave;
}
