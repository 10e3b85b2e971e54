# What problem.h declares, in Cython's words.

from libc.stdint cimport int64_t

cdef extern from "problem.h" nogil:
    enum:
        CATTN_FLOATS
        CATTN_TYPES
        CATTN_MAX_BATCH_NDIM
        CATTN_UNLIMITED
    Py_ssize_t CATTN_LARGEST_HEAD
    Py_ssize_t CATTN_LARGEST_VALUE
    Py_ssize_t CATTN_LARGEST_COUNT

# The types of elements and the statuses, which callers from C share. They stand here because problem.h must be included
# before cattn.h, from which it leaves out what only other modules need.
from cattn cimport (
    CATTN_BFLOAT16, CATTN_BOOL, CATTN_DONE, CATTN_FLOAT16, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_INT64, CATTN_INT8,
    CATTN_NO_MEMORY, CATTN_STOPPED, CATTN_TOO_MANY_TASKS, cattn_status, cattn_type)

cdef extern from "problem.h" nogil:
    ctypedef struct cattn_array:
        char *data
        cattn_type type
        int swapped
        Py_ssize_t head, row, column
        Py_ssize_t batch[CATTN_MAX_BATCH_NDIM]

    ctypedef struct cattn_problem:
        cattn_array query, key, value, out, lse, key_scale, value_scale
        int batch_ndim
        Py_ssize_t batch_shape[CATTN_MAX_BATCH_NDIM]
        Py_ssize_t query_heads, key_heads
        Py_ssize_t query_length, key_length, head_size, value_size
        double scale, softcap
        cattn_array bias, alibi_slopes, sinks
        int64_t window_left, window_right
        cattn_array query_offset, query_lengths, key_lengths
        cattn_array key_start, key_stop, mask
        const int64_t *query_indptr
        const int64_t *key_indptr
        const int64_t *block_table
        const int64_t *paged_lengths
        Py_ssize_t most_pages, page_size
