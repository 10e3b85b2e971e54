# Numbers of the arithmetic type one by one, and sums that lose nothing.

from libc.math cimport isfinite


cdef inline double real_at(const char *array, Py_ssize_t index, bint is_float) noexcept nogil:
    return (<const float *>array)[index] if is_float else (<const double *>array)[index]


cdef inline void set_real(char *array, Py_ssize_t index, bint is_float, double value) noexcept nogil:
    if is_float:
        (<float *>array)[index] = <float>value
    else:
        (<double *>array)[index] = value


cdef inline void scale_reals(char *to, const char *source, Py_ssize_t count, double scale,
                             bint is_float) noexcept nogil:
    """Set `count` numbers to so many times those of `source`, which may be the same."""
    cdef float factor = <float>scale
    cdef Py_ssize_t i
    if is_float:
        for i in range(count):
            (<float *>to)[i] = factor * (<const float *>source)[i]
    else:
        for i in range(count):
            (<double *>to)[i] = scale * (<const double *>source)[i]


cdef inline void add_exactly(double *total, double *carry, double x) noexcept nogil:
    """Add x to a total. The carry collects what rounding takes from it (Knuth, The Art of Computer Programming 2,
    section 4.2.2, theorem B)."""
    cdef double sum = total[0] + x, added = sum - total[0]
    carry[0] += (total[0] - (sum - added)) + (x - added)
    total[0] = sum


cdef inline double exact_sum(double total, double carry) noexcept nogil:
    """Return a total and its carry as one number. What is not finite stays."""
    return total + carry if isfinite(total) else total
