/* The kernel table: all arithmetic on scores and values, each function for one tile of rows × one whole block
 * of keys, so that an indirect call costs nothing beside it, and remainders stay inside.
 *
 * `real` is float or double: a table holds one set for each. A row is one query of one head; the rows of a tile
 * share their keys and values. There are two layouts of a tile:
 *
 *   many rows   the rows lie in the lanes of vectors: queries[c][lane], scores[j][lane], output[c][lane],
 *               with c an index into head size or value size and j a key of the block. `lanes` rows a tile.
 *   few rows    the head size lies in the lanes: queries[row][c], output[row][c], scores[row][j], the score rows
 *               `pitch` reals apart: as many as a block has keys, a multiple of 64. 1 to CATTN_FEW_ROWS rows a tile.
 *
 * Tiles and the vectors over rows (maximum, sum, factor, ...) are aligned to CATTN_ALIGNMENT bytes and hold whole
 * vectors: CATTN_MAX_LANES reals each. Keys, values and rows in the caller's memory are aligned to their own type
 * only, contiguous along the last axis, and `stride` bytes apart: 0 and negative included. Counts are at least 1.
 *
 * A tile of fewer rows than lanes: the lanes behind may be computed or not, and hold anything. Where its rows see other
 * keys, a tile of many rows goes by parts: pointers to the first lane of the part, which the layout is the same for.
 *
 * The order of operations within one row is fixed: sums run over c = 0, 1, ... and over the keys of a run as the table
 * pleases, so that a row gets the same bits whatever its lane, its neighbours, and the masked keys behind its last one.
 *
 * Nothing here knows about threads, batches, storage types (but for widen and narrow) or memory allocation.
 */
#ifndef CATTN_TILES_H
#define CATTN_TILES_H

#include <stddef.h>

#include "problem.h"

#define CATTN_ALIGNMENT 64
#define CATTN_MAX_LANES 64
#define CATTN_PARTS 2
#define CATTN_FEW_ROWS 8

/* Asks for a line of memory that will be read, read later (it comes as far as L2), or written; where there is no such
 * thing, nothing. */
#if defined(__GNUC__) || defined(__clang__)
#define CATTN_PREFETCH(address) __builtin_prefetch(address)
#define CATTN_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
#define CATTN_PREFETCH_WRITE(address) __builtin_prefetch(address, 1)
#else
#define CATTN_PREFETCH(address) ((void)0)
#define CATTN_PREFETCH_L2(address) ((void)0)
#define CATTN_PREFETCH_WRITE(address) ((void)0)
#endif

/* The same pointer, which the compiler may take to be aligned to CATTN_ALIGNMENT bytes. */
#if defined(__GNUC__) || defined(__clang__)
#define CATTN_ALIGNED(pointer) __builtin_assume_aligned(pointer, CATTN_ALIGNMENT)
#else
#define CATTN_ALIGNED(pointer) ((const void *)(pointer))
#endif

#define CATTN_LOG2E 1.44269504088896340736

/* What happens to the scores of a block, in this order: softcap, bias and ALiBi, then the selection. Vectors are over
 * the rows of the tile, or of the part. */
typedef struct {
    double softcap;                               /* 0: none */
    const void *bias[CATTN_MAX_LANES];            /* reals, one a key of the block, contiguous */
    double slope[CATTN_MAX_LANES];                /* ALiBi: adds -slope·|distance - j| */
    double distance[CATTN_MAX_LANES];             /* the row's position less that of the block's first key */
    const unsigned char *mask[CATTN_MAX_LANES];   /* bytes, one a key of the block, contiguous; 0: -infinity */
    ptrdiff_t first[CATTN_MAX_LANES];             /* keys before it get -infinity */
    ptrdiff_t last[CATTN_MAX_LANES];              /* keys at or past it get -infinity */
    int has_bias, has_alibi, has_mask, has_interval;
} cattn_edit;

/* The softmax of a tile's rows over some of their keys. Outputs are not yet divided by the sums. */
typedef struct {
    void *maximum, *sum, *output;
    void *sum_carry, *output_carry;   /* of a total: what its sums have lost to rounding */
} cattn_softmax;

/* Rows of memory that will be read soon. `scores` and `values` ask for them one by one while they compute: all at once would
 * wait for each other, and whatever else is read would wait behind them. */
typedef struct {
    const void *const *rows;
    ptrdiff_t offset, bytes;   /* what is read of each row */
    ptrdiff_t next, count;     /* rows next, next + 1, ... of `count` have not been asked for */
} cattn_ahead;

/* Out of the way of the loops, which rarely come here. */
#if defined(__GNUC__) || defined(__clang__)
__attribute__((noinline, unused))
#endif
static void cattn_ask_row(cattn_ahead *ahead)
{
    const char *row = (const char *)ahead->rows[ahead->next++] + ahead->offset;
    for (ptrdiff_t at = 0; at < ahead->bytes; at += 64)
        CATTN_PREFETCH_L2(row + at);
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((always_inline))
#endif
static inline void cattn_ask_ahead(cattn_ahead *ahead)
{
    if (ahead->next < ahead->count)
        cattn_ask_row(ahead);
}

typedef struct {
    ptrdiff_t lanes;   /* rows of a many-row tile, at most CATTN_MAX_LANES */
    ptrdiff_t part;    /* rows of a part of one: lanes / CATTN_PARTS, or `lanes` where a tile has one part only */
    ptrdiff_t item;    /* sizeof(real) */
    ptrdiff_t run;     /* keys of a block, counted from its first, that are summed in one chain */

    /* ---- many rows ---- */

    /* queries[c][r] = scale · rows[r][c] for r < count, and 0 for the lanes behind. */
    void (*load_rows)(void *queries, const char *const *rows, ptrdiff_t count, ptrdiff_t size, double scale);

    /* terms[j][r] = what `edit` adds to score (j, r): bias + ALiBi, or -infinity where it is masked. */
    void (*terms)(void *terms, ptrdiff_t rows, ptrdiff_t count, const cattn_edit *edit);

    /* scores[j][r] = Σ_c queries[c][r] · key_j[c] + terms[j][r];  block_maximum[r] = max_j scores[j][r], a NaN not counted.
     * terms NULL: there are none. A masked NaN or +infinity comes out as NaN. */
    void (*scores)(void *scores, void *block_maximum, const void *queries, const void *terms, ptrdiff_t rows,
                   const char *keys, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size, cattn_ahead *ahead);

    /* With a softcap: scores without terms become softcap · tanh(score / softcap) + terms, and block_maximum is found anew. */
    void (*soften)(void *scores, void *block_maximum, const void *terms, ptrdiff_t rows, ptrdiff_t count, double softcap);

    /* The online softmax. With new = max(maximum, block_maximum), and 0 in its place where it is -infinity:
     * factor = exp(maximum - new);  scores[j] = exp(scores[j] - new), exactly 0 for -infinity, NaN for NaN;
     * sum = factor · sum + Σ_j scores[j], in runs;  maximum = the new one. log2(e), for powers of two, enters behind the
     * difference: in the scores it would make some finite ones infinite. */
    void (*exponentials)(void *scores, ptrdiff_t rows, ptrdiff_t count, void *maximum, void *sum, void *factor,
                         const void *block_maximum);

    /* output[c][r] = factor[r] · output[c][r] + Σ_j weights[j][r] · value_j[c]. Runs are summed first, in order; `block` has room
     * for their sums, as large as the output, where a block has more than one. factor NULL: output holds nothing yet. */
    void (*values)(void *output, void *block, const void *factor, const void *weights, ptrdiff_t rows,
                   const char *values, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size, cattn_ahead *ahead);

    /* The same bits as `values`, but for non-finite values: a key with attended[j][r] = 0 is left out, and an
     * infinity or NaN with a weight that came out as 0 counts with weight 1. For a tile that did not end finite. */
    void (*select_values)(void *output, const void *factor, const void *weights, const unsigned char *attended,
                          ptrdiff_t rows, const char *values, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size);

    /* Two softmaxes over disjoint keys into one (Dao et al. 2023, Flash-Decoding): `part` joins `total`. What rounding takes from
     * the sums is carried along (Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B), so that they are as exact
     * after thousands of parts as after one. What is not finite stays so; where it was selected, an infinity stays one. */
    void (*merge)(const cattn_softmax *total, const cattn_softmax *part, ptrdiff_t rows, ptrdiff_t size, int selected);

    /* rows[r][c] = output[c][r] / divisor[r] for r < count. Answers whether all that was written is finite. */
    int (*store_rows)(char *const *rows, ptrdiff_t count, const void *output, const void *divisor, ptrdiff_t size);

    /* ---- few rows ---- */

    /* Whether few rows read keys and values of the half types where they lie. Otherwise `type` is the type of real. */
    int few_halves;

    /* scores[r][j] and block_maximum[r] as above. */
    void (*few_scores)(void *scores, ptrdiff_t pitch, void *block_maximum, const void *queries, ptrdiff_t rows,
                       const char *keys, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size, cattn_type type);

    void (*few_edit)(void *scores, ptrdiff_t pitch, void *block_maximum, ptrdiff_t rows, ptrdiff_t count,
                     const cattn_edit *edit);

    void (*few_exponentials)(void *scores, ptrdiff_t pitch, ptrdiff_t rows, ptrdiff_t count,
                             void *maximum, void *sum, void *factor, const void *block_maximum);

    void (*few_values)(void *output, const void *factor, const void *weights, ptrdiff_t pitch, ptrdiff_t rows,
                       const char *values, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size, cattn_type type);

    /* attended[r · pitch + j]. */
    void (*few_select_values)(void *output, const void *factor, const void *weights, const unsigned char *attended,
                              ptrdiff_t pitch, ptrdiff_t rows,
                              const char *values, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t size, cattn_type type);

    /* `merge`, of a `part` that lies anywhere in memory. Outputs stand in slices of so many columns, one behind the other. */
    void (*few_merge)(const cattn_softmax *total, const cattn_softmax *part, ptrdiff_t rows, ptrdiff_t size, ptrdiff_t columns);

    /* ---- storage types ---- */

    /* real to[i] = from[i], and back (to nearest, ties to even; NaN stays NaN), for `count` contiguous elements of
     * CATTN_FLOAT16 or CATTN_BFLOAT16. float only. */
    void (*widen)(void *to, const char *from, cattn_type type, ptrdiff_t count);
    void (*narrow)(char *to, const void *from, cattn_type type, ptrdiff_t count);
} cattn_tiles;

typedef struct {
    const char *name;
    cattn_tiles float32, float64;
} cattn_table;

#endif
