# This file declares for Cython what the headers in this folder declare for C.

from libc.stdint cimport int64_t

from tiles.tiles cimport cattn_table

cdef extern from "system/cpu.h" nogil:
    const char *cattn_isa_name(int number)
    const char *cattn_best_isa()
    int cattn_override(cattn_table *table, const char *isa)
    Py_ssize_t cattn_l2_bytes()
    int cattn_prefetches_rows()

cdef extern from "system/float_mode.h" nogil:
    unsigned int CATTN_USUAL_MODE
    unsigned int CATTN_TASK_MODE
    unsigned int cattn_float_mode()
    unsigned int cattn_change_float_mode(unsigned int mode)

cdef extern from "system/pool.h" nogil:
    ctypedef int64_t cattn_shared
    ctypedef int (*cattn_task)(void *context, Py_ssize_t task, int worker) noexcept nogil
    int64_t cattn_now()
    void cattn_pool_run(cattn_task task, void *context, Py_ssize_t tasks, int threads,
                        void (*meanwhile)(void *context) noexcept nogil)
