/* One attention call as data: what to read, where to write, who may attend to whom.
 *
 * Shared by everything that is compiled; it decides nothing. Whoever fills it has checked it: shapes agree,
 * types are known, no array of the result overlaps another. Lengths are counts, strides are bytes.
 */
#ifndef CATTN_PROBLEM_H
#define CATTN_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

/* The types of elements and the statuses, which callers from C share. */
#define CATTN_NO_IMPORT
#include "../cattn/cattn.h"

/* NumPy's 64 axes less head, length and size, rounded up. */
#define CATTN_MAX_BATCH_NDIM 62

/* Of the types in cattn.h, so many are floating types: the first ones. So many there are in all. */
#define CATTN_FLOATS 4
#define CATTN_TYPES 7

/* An array seen along (batch..., head, row, column). An axis that the argument lacks, or along which it is
 * broadcast, has stride 0; any stride may be negative. */
typedef struct {
    char *data;     /* its element (0, ..., 0); NULL where the argument was not given */
    cattn_type type;
    int swapped;    /* the bytes of each element stand in the other order */
    ptrdiff_t head, row, column;
    ptrdiff_t batch[CATTN_MAX_BATCH_NDIM];
} cattn_array;

/* The largest size of a head, and the columns of values that are computed at a time: with more, a tile with a block of
 * keys would take too long for somebody who waits for Ctrl-C. */
#define CATTN_LARGEST_HEAD ((ptrdiff_t)16384)

/* The largest size of a value: a count of bytes cannot overflow then. */
#define CATTN_LARGEST_VALUE ((ptrdiff_t)1 << 40)

/* Of batch entries or of tasks, which take a day for 2^40 at least. */
#define CATTN_LARGEST_COUNT ((ptrdiff_t)1 << 48)

/* A side of the window without a limit. */
#define CATTN_UNLIMITED (-1)

typedef struct {
    cattn_array query;   /* (batch..., query_heads, query_length, head_size) */
    cattn_array key;     /* (batch..., key_heads, key_length, head_size) */
    cattn_array value;   /* (batch..., key_heads, key_length, value_size) */
    cattn_array out;     /* (batch..., query_heads, query_length, value_size) */
    cattn_array lse;     /* (batch..., query_heads, query_length); NULL where nobody asked for it */

    /* int8 keys and values stand for their products with these: (batch..., key_heads, key_length, head_size) and
     * (..., value_size), any floating type. They vary along the keys or along the columns, not along both: the stride
     * of the other axis is 0. NULL beside floating types. */
    cattn_array key_scale, value_scale;

    int batch_ndim;
    ptrdiff_t batch_shape[CATTN_MAX_BATCH_NDIM];
    ptrdiff_t query_heads, key_heads;   /* query_heads is a multiple of key_heads */
    ptrdiff_t query_length, key_length, head_size, value_size;

    /* score = softcap·tanh(scale·(q·k) / softcap) + bias - slope·|p_i - j|, with p_i = query_offset + i */
    double scale;
    double softcap;              /* 0: none */
    cattn_array bias;            /* (batch..., query_heads, query_length, key_length), a floating type of its own */
    cattn_array alibi_slopes;    /* (batch..., query_heads), float64 */
    cattn_array sinks;           /* (query_heads), float64: one more logit a head, without a value */

    /* Row i may attend to key j where p_i - window_left <= j <= p_i + window_right, start_i <= j < stop_i,
     * i < query_lengths, j < key_lengths and mask[i, j]. All but the mask is an interval of keys. */
    int64_t window_left, window_right;   /* CATTN_UNLIMITED, or at least 0; causal is window_right = 0 */
    cattn_array query_offset;            /* (batch...), int64 */
    cattn_array query_lengths;           /* (batch...), int64 */
    cattn_array key_lengths;             /* (batch...), int64 */
    cattn_array key_start, key_stop;     /* (batch..., query_heads, query_length), int64 */
    cattn_array mask;                    /* (batch..., query_heads, query_length, key_length), bool */

    /* Packed sequences: the batch is one axis, entry e owns rows indptr[e] to indptr[e + 1] of the arrays,
     * query_length and key_length are those of all entries together. int64; NULL where arrays are not packed. */
    const int64_t *query_indptr, *key_indptr;

    /* Paged keys and values of packed queries: entry e has paged_lengths[e] keys. Key j is row j mod page_size of page
     * block_table[e · most_pages + j / page_size]. The first stride of `batch` goes from page to page. key_length is
     * the longest entry's, and key_indptr NULL. The table is NULL where keys do not lie in pages. */
    const int64_t *block_table, *paged_lengths;
    ptrdiff_t most_pages, page_size;
} cattn_problem;

#endif
