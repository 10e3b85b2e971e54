# What tiles.h declares, for Cython.

from libc.stdint cimport int64_t

from problem cimport cattn_type, CATTN_FLOATS

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX   # not an enum, which Cython takes for a C int or long

cdef extern from "tiles/tiles.h" nogil:
    enum:
        CATTN_ALIGNMENT
        CATTN_MAX_LANES
        CATTN_HALVES
        CATTN_FEW_ROWS
        CATTN_MAX_KEYS
        CATTN_GRADIENT_KEYS
        CATTN_MANY
        CATTN_FEW
        CATTN_LAYOUTS
        CATTN_BY_HALVES
    double CATTN_LOG2E

    const void *CATTN_ALIGNED(const void *pointer)

    void CATTN_PREFETCH(const void *address)
    void CATTN_PREFETCH_L2(const void *address)
    void CATTN_PREFETCH_WRITE(const void *address)

    ctypedef struct cattn_prefetch:
        const void *const *starts
        Py_ssize_t offset, bytes, next, count

    void cattn_prefetch_next(cattn_prefetch *prefetch)

    ctypedef struct cattn_score_mod:
        double softcap
        const void *bias[CATTN_MAX_LANES]
        double slope[CATTN_MAX_LANES]
        double distance[CATTN_MAX_LANES]
        const unsigned char *mask[CATTN_MAX_LANES]
        Py_ssize_t start[CATTN_MAX_LANES]
        Py_ssize_t stop[CATTN_MAX_LANES]
        int has_bias, has_alibi, has_mask, has_interval, adds

    ctypedef struct cattn_softmax:
        void *row_max
        void *row_sum
        void *lse_sum
        void *output

    ctypedef struct cattn_total:
        cattn_softmax softmax
        void *row_sum_carry
        void *lse_sum_carry
        void *output_carry

    ctypedef struct cattn_row_tile:
        Py_ssize_t rows, lanes, pitch, output_pitch
        double scale
        const cattn_score_mod *score_mod
        void *queries
        void *scores
        void *attn_bias
        unsigned char *attended
        void *block_max
        void *row_scale
        void *block_output
        cattn_softmax softmax
        int layout, is_new

    ctypedef struct cattn_key_block:
        const char *data
        Py_ssize_t stride, count, size
        cattn_type type
        cattn_prefetch *prefetch
        const float *scales
        const char *const *list

    ctypedef int (*cattn_kernel)(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil

    ctypedef struct cattn_maxima:
        void *largest
        int64_t *index
        int64_t first
        const char *ahead
        Py_ssize_t ahead_stride
        int asks_within

    ctypedef struct cattn_gradient_tile:
        Py_ssize_t rows, keys
        const cattn_score_mod *score_mod
        const void *lse
        const void *delta
        void *weights
        void *gradients
        void *bias_gradients
        void *slope_gradient

    ctypedef struct cattn_blocking:
        Py_ssize_t most, least, step, bytes
        Py_ssize_t chunk_blocks, least_chunk, most_chunk

    ctypedef struct cattn_kernels:
        int layout
        Py_ssize_t lanes, half, itemsize, run
        cattn_type type
        unsigned int reads
        Py_ssize_t takes_lists
        int rounds_weights, scales_late
        Py_ssize_t interleaves
        cattn_blocking blocking
        void (*load)(void *queries, const cattn_row_tile *tile, const char **source, Py_ssize_t size) noexcept nogil
        void (*reset)(const cattn_softmax *softmax, const cattn_row_tile *tile, const double *sinks) noexcept nogil
        cattn_kernel scores, mark_attended, exponentials, values
        void (*merge)(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile, Py_ssize_t size,
                      int exact) noexcept nogil
        int (*store)(const void *output, const void *row_sum, const cattn_row_tile *tile, char **destination,
                     Py_ssize_t size) noexcept nogil
        void (*logsumexp)(const cattn_softmax *softmax, const cattn_row_tile *tile, char **destination) noexcept nogil
        void (*maxima)(const cattn_maxima *maxima, const cattn_row_tile *tile,
                       const cattn_key_block *block) noexcept nogil
        void (*differentiate)(const cattn_gradient_tile *tile) noexcept nogil
        void (*query_gradients)(void *sums, Py_ssize_t rows, const void *gradients, Py_ssize_t pitch,
                                const cattn_key_block *block, int is_new) noexcept nogil
        void (*join)(void *total, void *carry, const void *part, Py_ssize_t count) noexcept nogil
        void (*dots)(void *sums, const cattn_key_block *rows, const cattn_key_block *others) noexcept nogil

    ctypedef struct cattn_table:
        const char *name
        cattn_kernels kernels[CATTN_FLOATS][CATTN_LAYOUTS]
        void (*widen)(void *to, const char *source, cattn_type type, Py_ssize_t count) noexcept nogil
        void (*narrow)(char *to, const void *source, cattn_type type, Py_ssize_t count) noexcept nogil
        void (*round_to_float)(void *to, const void *source, Py_ssize_t count) noexcept nogil
        void (*multiply)(void *x, const float *factors, Py_ssize_t step, Py_ssize_t count) noexcept nogil
        void (*interleave)(void *to, const char **rows, Py_ssize_t keys, Py_ssize_t columns) noexcept nogil
