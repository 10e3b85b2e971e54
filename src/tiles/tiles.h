/* The kernel tables: all arithmetic on scores and values. Each kernel does one step for one tile of rows × one whole
 * block of keys, so that an indirect call costs nothing beside it, and remainders stay inside.
 *
 * A row is one query of one head; the rows of a tile share their keys and values. `real` is float or double, and there
 * are two layouts of a tile: a table holds a set of kernels for each type and layout.
 *
 *   many rows   the rows lie in the lanes of vectors: queries[c][lane], scores[j][lane], output[c][lane],
 *               with c an index into head size or value size and j a key of the block. `lanes` rows a tile.
 *   few rows    the head size lies in the lanes: queries[row][c], scores[row][j], output[row][c]. Rows of scores are
 *               `pitch` reals apart, as many as a block has keys, a multiple of 64; those of the output `output_pitch`.
 *               1 to CATTN_FEW_ROWS rows a tile.
 *
 * Arrays of a tile and its vectors over rows (row_max, row_sum, row_scale, ...) are aligned to CATTN_ALIGNMENT bytes
 * and hold whole vectors. A vector over rows has room for CATTN_MAX_LANES reals. Keys, values and rows in the caller's
 * memory are aligned to their own type only, and contiguous along the last axis. They lie `stride` bytes apart, which
 * may be 0 or negative. Counts are at least 1.
 *
 * If a tile has fewer rows than lanes, the lanes behind may be computed or not, and hold anything. If the halves of a
 * tile of many rows see different keys, each is computed alone: its arrays are those of the tile, from the first lane
 * of the half on.
 *
 * The order of operations within one row is fixed. Each table chooses its own for the sums over c and over the keys of
 * a run, so that a row gets the same bits whatever its lane, its neighbours, and the masked keys behind its last one.
 *
 * Nothing here knows about threads, batches, memory allocation, or storage types beyond those that a set of kernels
 * reads. */
#ifndef CATTN_TILES_H
#define CATTN_TILES_H

#include <stddef.h>

#include "problem.h"

#define CATTN_ALIGNMENT 64
#define CATTN_MAX_LANES 64
#define CATTN_HALVES 2
#define CATTN_FEW_ROWS 8
#define CATTN_MAX_KEYS 512   /* of a block */
#define CATTN_GRADIENT_KEYS 64   /* whose gradients of scores meet the keys in one call: some tiles, or one */

/* The first three ask for a line of memory that will be read, read later (it comes as far as L2), or written. The last
 * one returns the pointer, which the compiler may then take to be aligned to CATTN_ALIGNMENT bytes. They do nothing on
 * compilers that have no such thing. */
#if defined(__GNUC__) || defined(__clang__)
#define CATTN_PREFETCH(address) __builtin_prefetch(address)
#define CATTN_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
#define CATTN_PREFETCH_WRITE(address) __builtin_prefetch(address, 1)
#define CATTN_ALIGNED(pointer) __builtin_assume_aligned(pointer, CATTN_ALIGNMENT)
#else
#define CATTN_PREFETCH(address) ((void)0)
#define CATTN_PREFETCH_L2(address) ((void)0)
#define CATTN_PREFETCH_WRITE(address) ((void)0)
#define CATTN_ALIGNED(pointer) ((const void *)(pointer))
#endif

#define CATTN_LOG2E 1.44269504088896340736

/* What happens to the scores of a block, in this order: softcap, bias and ALiBi, then masks and intervals. The arrays
 * are over the rows of the tile, or of the half. In the lanes behind they are valid, and restrict nothing. */
typedef struct {
    double softcap;                               /* 0: none */
    const void *bias[CATTN_MAX_LANES];            /* reals, one a key of the block, contiguous */
    double slope[CATTN_MAX_LANES];                /* ALiBi: adds -slope·|distance - j| */
    double distance[CATTN_MAX_LANES];             /* the row's position less that of the block's first key */
    const unsigned char *mask[CATTN_MAX_LANES];   /* bytes, one a key of the block, contiguous; 0: -infinity */
    ptrdiff_t start[CATTN_MAX_LANES];             /* keys before it get -infinity */
    ptrdiff_t stop[CATTN_MAX_LANES];              /* keys at or past it get -infinity */
    int has_bias, has_alibi, has_mask, has_interval;
    int adds;                                     /* any of these four */
} cattn_score_mod;

/* The softmax of a tile's rows over some of their keys. Outputs are not yet divided by the sums. If weights are rounded
 * before they meet the values, row_sum is the sum of the rounded ones, and lse_sum that of the others. Otherwise both
 * are the same array. */
typedef struct {
    void *row_max, *row_sum, *lse_sum, *output;
} cattn_softmax;

/* A softmax that others are merged into. The carries hold what rounding has taken from its sums. */
typedef struct {
    cattn_softmax softmax;
    void *row_sum_carry, *lse_sum_carry, *output_carry;
} cattn_total;

/* How the rows of a tile lie, which decides which kernels compute them. */
enum { CATTN_MANY, CATTN_FEW, CATTN_LAYOUTS };

/* The rows of a tile, or of a half of one, and their arrays. Kernels change what the pointers lead to. */
typedef struct {
    ptrdiff_t rows;
    ptrdiff_t lanes;                  /* of the whole tile; few rows: its rows */
    ptrdiff_t pitch, output_pitch;    /* few rows */
    double scale;                     /* of scores: `load` applies it to the queries */
    const cattn_score_mod *score_mod; /* NULL: scores stay as they are */
    void *queries, *scores;
    void *attn_bias;                  /* many rows: room for what score_mod adds, -infinity for what it masks */
    unsigned char *attended;          /* like scores: the key is attended to */
    void *block_max;                  /* the largest score of each row in a block */
    void *row_scale;                  /* of what was summed before the block */
    void *block_output;               /* many rows: room for the sums of a block's runs, like the output */
    cattn_softmax softmax;            /* of the keys since the last reset */
    int layout;                       /* CATTN_MANY or CATTN_FEW */
    int is_new;                       /* the output holds nothing yet */
} cattn_row_tile;

/* Rows of memory that will be read soon. `scores` and `values` ask for them one by one while they compute. If all were
 * asked for at once, they would wait for each other, and whatever else is read would wait behind them. */
typedef struct {
    const void *const *starts;   /* addresses of the rows */
    ptrdiff_t offset, bytes;     /* what is read of each row */
    ptrdiff_t next, count;       /* rows next, next + 1, ... of `count` have not been asked for */
} cattn_prefetch;

/* Some keys, or their values, or some columns of them. */
typedef struct {
    const char *data;               /* where the first key's begin */
    ptrdiff_t stride, count, size;  /* bytes from key to key, keys, columns */
    cattn_type type;                /* one of those that the kernels read */
    cattn_prefetch *prefetch;       /* NULL: there is nothing to ask for */
    const float *scales;            /* the scale of each int8 key, which `scores` applies; NULL: there are none */
    const char *const *list;        /* the address of each key, in the place of data and stride; NULL: these hold. Only
                                     * kernels that take lists get one */
} cattn_key_block;

/* Kept out of line: inlining it would cost the hot loops registers, and they rarely call it. */
#if defined(__GNUC__) || defined(__clang__)
__attribute__((noinline, unused))
#endif
static void cattn_prefetch_row(cattn_prefetch *prefetch)
{
    const char *row = (const char *)prefetch->starts[prefetch->next++] + prefetch->offset;
    for (ptrdiff_t at = 0; at < prefetch->bytes; at += 64)
        CATTN_PREFETCH_L2(row + at);
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((always_inline))
#endif
static inline void cattn_prefetch_next(cattn_prefetch *prefetch)
{
    if (prefetch != NULL && prefetch->next < prefetch->count)
        cattn_prefetch_row(prefetch);
}

/* One step for a tile of rows and a block of keys. It writes `array`, which is one of the tile's arrays, and the vectors
 * over rows that its comment names. Only the answer of mark_attended has a meaning. */
typedef int (*cattn_kernel)(void *array, const cattn_row_tile *tile, const cattn_key_block *block);

/* The largest score of each row over some keys, and the first key that has it. A NaN is larger than all else. */
typedef struct {
    void *largest;               /* over the rows of the tile; -infinity before the first key */
    int64_t *index;              /* -1 before the first key; NULL: nobody asks which key it is */
    int64_t first;               /* what the first key of the block counts as */

    /* Rows of memory that will be read soon, one directly behind the other. The kernel asks for them line by line
     * between its products, because they come from far away. */
    const char *ahead;           /* NULL: there are none */
    ptrdiff_t ahead_stride;      /* bytes from row to row */
    int asks_within;             /* the keys of the block themselves come from far away, and lie like that: each is
                                  * asked for while the ones before it are computed, and `ahead` beside the last ones.
                                  * Otherwise row j of `ahead` is asked for beside key j */
} cattn_maxima;

/* Some rows of one query head, which are broadcast, and keys in the lanes: array[row][lane], as `scores` leaves them
 * where rows of queries take the place of keys. `score_mod` is over these rows. */
typedef struct {
    ptrdiff_t rows, keys;               /* at most CATTN_MAX_LANES rows, and as many keys as a tile has lanes */
    const cattn_score_mod *score_mod;   /* NULL: scores stay as they are */
    const void *lse, *delta;            /* reals, one a row */
    void *weights;                      /* scale · q·k before */
    void *gradients;                    /* dO·v before; dO is the gradient of the output */
    void *bias_gradients;               /* NULL: nobody asks for them */
    void *slope_gradient;               /* one real; NULL: nobody asks for it, or there is no slope */
} cattn_gradient_tile;

/* How many keys a block and a chunk have. */
typedef struct {
    ptrdiff_t most, least;               /* keys of a block */
    ptrdiff_t bytes;                     /* what a block may take; it has fewer keys if the most would take more */
    ptrdiff_t step;                      /* such a block has a multiple of so many keys; or CATTN_BY_HALVES */
    ptrdiff_t chunk_blocks;              /* blocks of a chunk, whose softmax is merged with that of the chunks before */
    ptrdiff_t least_chunk, most_chunk;   /* its keys */
} cattn_blocking;

/* As a step: the most, half of it, a quarter, ... */
enum { CATTN_BY_HALVES = 0 };

typedef struct {
    int layout;           /* of the tiles: CATTN_MANY or CATTN_FEW */
    ptrdiff_t lanes;      /* rows of a tile at most, at most CATTN_MAX_LANES */
    ptrdiff_t half;       /* rows of a half of one: lanes / CATTN_HALVES, or `lanes` where a tile is not divided */
    ptrdiff_t itemsize;   /* of real */
    ptrdiff_t run;        /* keys of a block, counted from its first, that are summed in one chain */
    cattn_type type;      /* of queries, keys and values as these kernels take them */
    unsigned reads;       /* types of keys and values that they read where they lie: bits 1 << cattn_type */
    ptrdiff_t takes_lists;   /* `scores` and `values` take a list of addresses of keys that lie in several pages, if a
                              * page holds a multiple of so many; 0: no list */
    int rounds_weights;   /* to bfloat16: two of them make a word, and lse_sum is another array than row_sum */
    int scales_late;      /* without softcap, bias and ALiBi, `exponentials` applies a scale above 0, not `scores` */
    ptrdiff_t interleaves;   /* the values of so many keys lie beside each other, column by column; 1: row by row */
    cattn_blocking blocking;

    /* queries = scale · source[row] for each row, which has `size` columns. Queries of bfloat16 stay as they are, in
     * pairs of columns, with zeros up to a multiple of the keys that are interleaved, and `scores` or `exponentials`
     * applies the scale. */
    void (*load)(void *queries, const cattn_row_tile *tile, const char **source, ptrdiff_t size);

    /* row_max = -infinity and the sums 0. A row that has a sink begins with the sink as its maximum, and 1 as its
     * sums. `sinks` has one for each row, -infinity where a row has none; NULL where no row has one. */
    void (*reset)(const cattn_softmax *softmax, const cattn_row_tile *tile, const double *sinks);

    /* scores[j][r] = Σ_c queries[c][r] · key_j[c], times the key's scale if there is one, then score_mod. block_max[r] =
     * max_j scores[j][r], where a NaN does not count. A masked NaN or +infinity may come out as NaN. If the kernels
     * scale late, scores come without the scale, and block_max has it. */
    cattn_kernel scores;

    /* attended = whether a score is not -infinity, after masked NaN and +infinity have become that. Returns whether all
     * are attended to. */
    cattn_kernel mark_attended;

    /* The online softmax. With new = max(row_max, block_max), or 0 where that is -infinity:
     *     row_scale = exp(row_max - new)
     *     scores[j] = exp(scores[j] - new), which is exactly 0 for -infinity, and NaN for NaN; if the kernels scale
     *                 late, scale · scores[j] is meant
     *     row_sum = row_scale · row_sum + Σ_j scores[j], in runs
     *     row_max = max(row_max, block_max)
     * Powers of two need a factor log2(e). It is applied to the difference, because in the scores it would make some
     * finite ones infinite. If weights are rounded, pairs of them take the place of scores: scores[j / 2] with many
     * rows, and one behind the other with few rows. A 0 stands behind an odd last one. */
    cattn_kernel exponentials;

    /* output[c][r] = row_scale[r] · output[c][r] + Σ_j scores[j][r] · value_j[c]. Runs are summed first, and then added
     * up in a fixed order. A column gets the same bits alone and among others. */
    cattn_kernel values;

    /* Merges two softmaxes over disjoint keys (Dao et al. 2023, Flash-Decoding): `part` joins `total`. Outputs have
     * `size` columns. What rounding takes from the sums is carried along (Knuth, The Art of Computer Programming 2,
     * section 4.2.2, theorem B), so that they are as exact after thousands of joins as after one. What is not finite
     * stays so; with `exact`, an infinity stays one. Of few rows, `part` may lie anywhere in memory. */
    void (*merge)(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile, ptrdiff_t size,
                  int exact);

    /* destination[row] = output / row_sum, or / 1 where that is 0, for each row, which has `size` columns. Without
     * sums (NULL) the output is stored as it is. Returns whether all that was written is finite, and the sums. */
    int (*store)(const void *output, const void *row_sum, const cattn_row_tile *tile, char **destination,
                 ptrdiff_t size);

    /* destination[row] = row_max + log(lse_sum), -infinity where that is 0, one real for each row. */
    void (*logsumexp)(const cattn_softmax *softmax, const cattn_row_tile *tile, char **destination);

    /* largest[r] = max(largest[r], max_j scores[j][r]), so that the scores of a block join the maxima so far. They are
     * those of `scores`, bit for bit, with a scale of 1 and without a score_mod. The tile's scores and block_max may
     * hold anything afterwards. Few rows have no such kernel: NULL. */
    void (*maxima)(const cattn_maxima *maxima, const cattn_row_tile *tile, const cattn_key_block *block);

    /* What gradients need beside `scores` and `values`. Many rows alone have these kernels: few rows have NULL. */

    /* With s the score after score_mod, and t the one between softcap and bias:
     *     weights = exp(s - lse), and 0 where s is -infinity
     *     bias_gradients = weights · (gradients - delta), and 0 where s is -infinity
     *     slope_gradient = Σ bias_gradients · |distance - j|
     *     gradients = bias_gradients · (1 - (t / softcap)²)
     * What is masked is 0 exactly, whatever it was before. Lanes behind the keys may hold anything. */
    void (*differentiate)(const cattn_gradient_tile *tile);

    /* sums[row][c] = Σ_j gradients[j / lanes][row][j % lanes] · key_j[c], in short runs of keys, for `rows` rows. Unless
     * `is_new`, it is added to what the sums hold. The sums of a row lie behind those of the row before. Tiles of
     * gradients lie `pitch` reals apart. A block has at most CATTN_GRADIENT_KEYS keys. */
    void (*query_gradients)(void *sums, ptrdiff_t rows, const void *gradients, ptrdiff_t pitch,
                            const cattn_key_block *block, int is_new);

    /* total += part, `count` reals. Unless it is NULL, the carry holds what rounding has taken from the total. */
    void (*join)(void *total, void *carry, const void *part, ptrdiff_t count);

    /* sums[i] = Σ_c row_i[c] · other_i[c] of two blocks with as many rows and columns. */
    void (*dots)(void *sums, const cattn_key_block *rows, const cattn_key_block *others);
} cattn_kernels;

/* A call takes the kernels of the type of its query, key and value if that is one type. Otherwise, and for scores and
 * weights, it takes those of the type that it computes in. The half types share float32's kernels if a table has none
 * of their own. */
typedef struct {
    const char *name;
    cattn_kernels kernels[CATTN_FLOATS][CATTN_LAYOUTS];

    /* These turn `count` contiguous elements of CATTN_FLOAT16, CATTN_BFLOAT16 or CATTN_INT8 into floats, and floats into
     * the first two. They round to nearest, ties to even, and NaN stays NaN. */
    void (*widen)(void *to, const char *from, cattn_type type, ptrdiff_t count);
    void (*narrow)(char *to, const void *from, cattn_type type, ptrdiff_t count);

    /* Rounds `count` contiguous doubles to floats. A finite number stays finite, because a bias that became -infinity
     * would mask. */
    void (*round_to_float)(void *to, const void *from, ptrdiff_t count);

    /* Multiplies `count` contiguous floats by as many factors, or all of them by the first one if `step` is 0. */
    void (*multiply)(void *x, const float *factors, ptrdiff_t step, ptrdiff_t count);

    /* Copies rows of bfloat16, one of each key, in bundles of as many keys as the kernels interleave:
     * to[bundle][column][key of the bundle]. Zeros stand behind the last key. NULL if no kernels take them. */
    void (*interleave)(void *to, const char *const *rows, ptrdiff_t keys, ptrdiff_t columns);
} cattn_table;

#endif
