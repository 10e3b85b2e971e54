# What the C headers declare, in Cython's words.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    void PyErr_SetString(object error, const char *message) noexcept
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef extern from "problem.h" nogil:
    enum:
        CATTN_MAX_BATCH_NDIM
        CATTN_UNLIMITED
    Py_ssize_t CATTN_LARGEST_SIZE
    Py_ssize_t CATTN_LARGEST_COUNT

    ctypedef enum cattn_type:
        CATTN_FLOAT32
        CATTN_FLOAT64
        CATTN_FLOAT16
        CATTN_BFLOAT16
        CATTN_BOOL
        CATTN_INT64

    ctypedef struct cattn_array:
        char *data
        cattn_type type
        int swapped
        Py_ssize_t head, row, column
        Py_ssize_t batch[CATTN_MAX_BATCH_NDIM]

    ctypedef struct cattn_problem:
        size_t struct_size
        cattn_array query, key, value, out, lse
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

cdef extern from "tiles.h" nogil:
    enum:
        CATTN_ALIGNMENT
        CATTN_MAX_LANES
        CATTN_PARTS
        CATTN_FEW_ROWS
    double CATTN_LOG2E

    const void *CATTN_ALIGNED(const void *pointer)

    void CATTN_PREFETCH(const void *address)
    void CATTN_PREFETCH_L2(const void *address)
    void CATTN_PREFETCH_WRITE(const void *address)

    ctypedef struct cattn_ahead:
        const void *const *rows
        Py_ssize_t offset, bytes, next, count

    void cattn_ask_ahead(cattn_ahead *ahead)

    ctypedef struct cattn_softmax:
        void *maximum
        void *sum
        void *output
        void *sum_carry
        void *output_carry

    ctypedef struct cattn_edit:
        double softcap
        const void *bias[CATTN_MAX_LANES]
        double slope[CATTN_MAX_LANES]
        double distance[CATTN_MAX_LANES]
        const unsigned char *mask[CATTN_MAX_LANES]
        Py_ssize_t first[CATTN_MAX_LANES]
        Py_ssize_t last[CATTN_MAX_LANES]
        int has_bias, has_alibi, has_mask, has_interval


# The types of the kernel table's entries, for the portable functions to be cast to.
ctypedef void (*load_rows_function)(void *, const char *const *, Py_ssize_t, Py_ssize_t, double) noexcept nogil
ctypedef void (*terms_function)(void *, Py_ssize_t, Py_ssize_t, const cattn_edit *) noexcept nogil
ctypedef void (*scores_function)(void *, void *, const void *, const void *, Py_ssize_t, const char *, Py_ssize_t, Py_ssize_t,
                                 Py_ssize_t, cattn_ahead *) noexcept nogil
ctypedef void (*soften_function)(void *, void *, const void *, Py_ssize_t, Py_ssize_t, double) noexcept nogil
ctypedef void (*exponentials_function)(void *, Py_ssize_t, Py_ssize_t, void *, void *, void *, const void *) noexcept nogil
ctypedef void (*values_function)(void *, void *, const void *, const void *, Py_ssize_t, const char *, Py_ssize_t, Py_ssize_t,
                                 Py_ssize_t, cattn_ahead *) noexcept nogil
ctypedef void (*select_values_function)(void *, const void *, const void *, const unsigned char *, Py_ssize_t,
                                        const char *, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept nogil
ctypedef void (*merge_function)(const cattn_softmax *, const cattn_softmax *, Py_ssize_t, Py_ssize_t, int) noexcept nogil
ctypedef int (*store_rows_function)(char *const *, Py_ssize_t, const void *, const void *,
                                    Py_ssize_t) noexcept nogil
ctypedef void (*few_scores_function)(void *, Py_ssize_t, void *, const void *, Py_ssize_t, const char *,
                                     Py_ssize_t, Py_ssize_t, Py_ssize_t, cattn_type) noexcept nogil
ctypedef void (*few_edit_function)(void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t,
                                   const cattn_edit *) noexcept nogil
ctypedef void (*few_exponentials_function)(void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, void *, void *,
                                           const void *) noexcept nogil
ctypedef void (*few_values_function)(void *, const void *, const void *, Py_ssize_t, Py_ssize_t, const char *,
                                     Py_ssize_t, Py_ssize_t, Py_ssize_t, cattn_type) noexcept nogil
ctypedef void (*few_select_values_function)(void *, const void *, const void *, const unsigned char *, Py_ssize_t,
                                            Py_ssize_t, const char *, Py_ssize_t, Py_ssize_t,
                                            Py_ssize_t, cattn_type) noexcept nogil
ctypedef void (*few_merge_function)(const cattn_softmax *, const cattn_softmax *, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept nogil
ctypedef void (*widen_function)(void *, const char *, cattn_type, Py_ssize_t) noexcept nogil
ctypedef void (*narrow_function)(char *, const void *, cattn_type, Py_ssize_t) noexcept nogil


cdef extern from "tiles.h" nogil:
    ctypedef struct cattn_tiles:
        Py_ssize_t lanes, part, item, run
        load_rows_function load_rows
        terms_function terms
        scores_function scores
        soften_function soften
        exponentials_function exponentials
        values_function values
        select_values_function select_values
        merge_function merge
        store_rows_function store_rows
        int few_halves
        few_scores_function few_scores
        few_edit_function few_edit
        few_exponentials_function few_exponentials
        few_values_function few_values
        few_select_values_function few_select_values
        few_merge_function few_merge
        widen_function widen
        narrow_function narrow

    ctypedef struct cattn_table:
        const char *name
        cattn_tiles float32, float64

cdef extern from "dispatch.h" nogil:
    int cattn_override(cattn_table *table, const char *isa)
    const char *cattn_best_isa()
    Py_ssize_t cattn_l2_bytes()
    int cattn_foresees_rows()

cdef extern from "float_mode.h" nogil:
    unsigned int CATTN_TASK_MODE
    unsigned int cattn_float_mode()
    unsigned int cattn_change_float_mode(unsigned int mode)

cdef extern from "pool.h" nogil:
    ctypedef int64_t shared
    ctypedef int (*cattn_task)(void *context, Py_ssize_t task, int worker) noexcept nogil
    int64_t cattn_now()
    void cattn_pool_run(cattn_task task, void *context, Py_ssize_t tasks, int threads,
                        void (*meanwhile)(void *context) noexcept nogil)
