# This file is for `cimport cattn`. It declares what cattn.h declares, and cattn.h describes.

from libc.stdint cimport int64_t

cdef extern from "cattn.h" nogil:
    ctypedef enum cattn_type:
        CATTN_FLOAT32
        CATTN_FLOAT64
        CATTN_FLOAT16
        CATTN_BFLOAT16
        CATTN_BOOL
        CATTN_INT64
        CATTN_INT8

    ctypedef struct cattn_ndarray:
        void *data
        int type
        int ndim
        const Py_ssize_t *shape
        const Py_ssize_t *strides

    enum:
        CATTN_CAUSAL
        CATTN_HAS_SCALE
        CATTN_HAS_WINDOW
        CATTN_OFFSET_START
        CATTN_OFFSET_END

    ctypedef struct cattn_attention_args:
        size_t struct_size
        unsigned int flags
        int num_threads
        cattn_ndarray query, key, value, out, lse
        double scale, softcap
        int64_t window_left, window_right
        cattn_ndarray query_offset, query_lengths, key_lengths
        cattn_ndarray key_start, key_stop, mask, bias, alibi_slopes, sinks
        bint (*wants_to_stop)(void *context) noexcept nogil
        void *context
        cattn_ndarray key_scale, value_scale

    ctypedef struct cattn_maxsim_args:
        size_t struct_size
        int num_threads
        cattn_ndarray query, document, out
        cattn_ndarray query_lengths, document_lengths, document_indptr, index
        bint (*wants_to_stop)(void *context) noexcept nogil
        void *context

    ctypedef enum cattn_status:
        CATTN_DONE
        CATTN_STOPPED
        CATTN_NO_MEMORY
        CATTN_TOO_MANY_TASKS
        CATTN_NOT_IMPORTED

    int CATTN_ARGUMENT_OF(int status)
    int CATTN_REASON_OF(int status)

    enum:
        CATTN_ARGUMENT_ARGS
        CATTN_ARGUMENT_FLAGS
        CATTN_ARGUMENT_NUM_THREADS
        CATTN_ARGUMENT_SCALE
        CATTN_ARGUMENT_SOFTCAP
        CATTN_ARGUMENT_WINDOW
        CATTN_ARGUMENT_QUERY
        CATTN_ARGUMENT_KEY
        CATTN_ARGUMENT_VALUE
        CATTN_ARGUMENT_OUT
        CATTN_ARGUMENT_LSE
        CATTN_ARGUMENT_QUERY_OFFSET
        CATTN_ARGUMENT_QUERY_LENGTHS
        CATTN_ARGUMENT_KEY_LENGTHS
        CATTN_ARGUMENT_KEY_START
        CATTN_ARGUMENT_KEY_STOP
        CATTN_ARGUMENT_MASK
        CATTN_ARGUMENT_BIAS
        CATTN_ARGUMENT_ALIBI_SLOPES
        CATTN_ARGUMENT_SINKS
        CATTN_ARGUMENT_KEY_SCALE
        CATTN_ARGUMENT_VALUE_SCALE

    enum:
        CATTN_MAXSIM_ARGS
        CATTN_MAXSIM_NUM_THREADS
        CATTN_MAXSIM_QUERY
        CATTN_MAXSIM_DOCUMENT
        CATTN_MAXSIM_OUT
        CATTN_MAXSIM_QUERY_LENGTHS
        CATTN_MAXSIM_DOCUMENT_LENGTHS
        CATTN_MAXSIM_DOCUMENT_INDPTR
        CATTN_MAXSIM_INDEX
        CATTN_MAXSIM_END

    enum:
        CATTN_IS_NULL
        CATTN_WRONG_SHAPE
        CATTN_WRONG_TYPE
        CATTN_WRONG_VALUE
        CATTN_MISALIGNED
        CATTN_OVERLAPS
        CATTN_IS_MISSING
        CATTN_IS_UNKNOWN

    enum:
        CATTN_C_ABI
        CATTN_C_VERSION

    ctypedef struct cattn_c_api:
        int abi, version
        int (*attention)(const cattn_attention_args *args) noexcept
        const char *(*message)(int status) noexcept
        size_t (*explain)(const cattn_attention_args *args, int status, char *text, size_t size) noexcept
        int (*maxsim)(const cattn_maxsim_args *args) noexcept

    cattn_attention_args cattn_attention_defaults() noexcept
    cattn_ndarray cattn_ndarray_of(const void *data, int type, int ndim, const Py_ssize_t *shape,
                                   const Py_ssize_t *strides) noexcept
    cattn_maxsim_args cattn_maxsim_defaults() noexcept
    int cattn_attention(const cattn_attention_args *args) noexcept
    int cattn_maxsim(const cattn_maxsim_args *args) noexcept
    const char *cattn_message(int status) noexcept
    size_t cattn_explain(const cattn_attention_args *args, int status, char *text, size_t size) noexcept

cdef extern from "cattn.h":
    const cattn_c_api *cattn_c
    int cattn_import() except -1
