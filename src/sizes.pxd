# Arithmetic on sizes and counts, which must not overflow and should not divide in short calls.

from tiles.tiles cimport CATTN_ALIGNMENT, PY_SSIZE_T_MAX


cdef inline Py_ssize_t times(Py_ssize_t one, Py_ssize_t other) noexcept nogil:
    """Return the product of two counts, or 2^61 if it is larger, which no memory holds. Three of these can be added
    up."""
    cdef Py_ssize_t most = PY_SSIZE_T_MAX // 4 + 1
    if one | other < 1 << 30:   # no division
        return one * other
    return most if other != 0 and one > most // other else one * other


cdef inline Py_ssize_t divided(Py_ssize_t number, Py_ssize_t divisor) noexcept nogil:
    """Return number / divisor, rounded down. The quotients of short calls, 0 and number / 1, take no division."""
    if number < divisor:
        return 0
    return number if divisor == 1 else number // divisor


cdef inline Py_ssize_t count_pieces(Py_ssize_t number, Py_ssize_t size) noexcept nogil:
    """Return how many pieces of at most `size` a number is cut into: at least one. A short call takes no division."""
    return 1 if number <= size else (number + size - 1) // size


cdef inline Py_ssize_t round_up(Py_ssize_t number, Py_ssize_t multiple) noexcept nogil:
    """Return the least multiple of `multiple` that is not below `number`."""
    return (number + multiple - 1) // multiple * multiple


cdef inline char *aligned_from(char *memory) noexcept nogil:
    """Return the first address from `memory` on that CATTN_ALIGNMENT divides."""
    return <char *>round_up(<Py_ssize_t>memory, CATTN_ALIGNMENT)


cdef inline Py_ssize_t reserve(Py_ssize_t *bytes, Py_ssize_t size) noexcept nogil:
    """Add an array of `size` bytes behind the first `bytes` bytes, and return where it begins."""
    cdef Py_ssize_t at = bytes[0]
    bytes[0] += round_up(size, CATTN_ALIGNMENT)
    return at
