# This file declares for Cython what c_arguments.h and c_messages.h declare for C.

from libc.stdint cimport int64_t

from cattn cimport cattn_attention_args, cattn_ndarray
from problem cimport CATTN_TYPES

cdef extern from "c_arguments.h" nogil:
    enum: CATTN_AXES, CATTN_ARGUMENTS, CATTN_KNOWN_FLAGS, CATTN_KIND_ARRAY
    enum: CATTN_BROADCAST_NONE, CATTN_BROADCAST_ALL
    enum: CATTN_NUMBERS_POSITIONS, CATTN_NUMBERS_LENGTHS, CATTN_NUMBERS_LOGITS
    size_t CATTN_LEAST_ARGS
    size_t CATTN_MOST_ARGS
    int64_t CATTN_FAR

    ctypedef struct cattn_argument:
        int kind
        size_t given, placed
        bint is_required, is_input, is_result, is_copied, is_scale, is_aligned
        unsigned int types
        int beside
        unsigned int types_beside[CATTN_TYPES]
        size_t axes[3]
        int broadcast
        bint has_no_batch
        int numbers
        size_t limit

    const cattn_argument cattn_arguments[CATTN_ARGUMENTS]
    void *cattn_given(const cattn_attention_args *args, int number)

cdef extern from "c_messages.h" nogil:
    ctypedef void (*cattn_find_range)(const cattn_ndarray *array, int64_t *least, int64_t *most) noexcept nogil
    const char *cattn_status_message(int status) noexcept
    size_t cattn_explain_status(const cattn_attention_args *args, int status, cattn_find_range find_range,
                                char *text, size_t size) noexcept
