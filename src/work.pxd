# Problem → how long it takes, about, and whether more threads than one are worth waking.

from problem cimport cattn_problem
from rows cimport entry_key_length, entry_query_length

cdef enum:
    # Multiply-adds below which waking a worker costs more than it brings.
    THREADS_WORK = 2097152
    # Multiply-adds below which a task is not worth making.
    TASK_LEAST = 1048576
    # Reading a key takes as long as its multiply-adds with so many rows.
    READING_ROWS = 3


cdef inline double work_of(const cattn_problem *problem) noexcept nogil:
    """Return about how many multiply-adds a problem takes."""
    cdef double pairs = 0
    cdef Py_ssize_t entry
    cdef int axis
    if problem.query_indptr != NULL:   # nobody is asked whether to stop: it takes less time than the checks before it
        for entry in range(problem.batch_shape[0]):
            pairs += <double>entry_query_length(problem, entry) * entry_key_length(problem, entry)
    else:
        pairs = <double>problem.query_length * problem.key_length
        for axis in range(problem.batch_ndim):
            pairs *= problem.batch_shape[axis]
    return pairs * problem.query_heads * (problem.head_size + problem.value_size)


cdef inline bint gains_by_threads(const cattn_problem *problem, double work) noexcept nogil:
    """Return whether a problem that takes so much work takes long enough to wake workers for it."""
    cdef double rows = <double>problem.query_length * problem.query_heads   # of a key head, times the key heads
    if problem.query_indptr != NULL:   # query_length is that of all sequences
        rows /= max(problem.batch_shape[0], <Py_ssize_t>1)
    return work >= THREADS_WORK or work * READING_ROWS * problem.key_heads >= THREADS_WORK * max(rows, 1.0)
