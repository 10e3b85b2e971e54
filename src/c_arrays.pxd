# What the calls from C share: a struct of arguments that may be of another version, and the arrays in it.

from libc.string cimport memcpy, memset

from cattn cimport CATTN_IS_NULL, CATTN_WRONG_SHAPE, CATTN_WRONG_TYPE, cattn_ndarray
from c_arguments cimport CATTN_AXES, cattn_argument
from convert cimport is_multiple, item_size
from problem cimport CATTN_DONE, cattn_type
from tiles.tiles cimport PY_SSIZE_T_MAX


# An array that the caller gives.
cdef struct GivenArray:
    int number                        # of the argument, which a status names
    const cattn_argument *argument    # its row in the table, if there is a table
    cattn_ndarray *ndarray
    Py_ssize_t count                  # how many elements it has
    Py_ssize_t strides[CATTN_AXES]    # the caller's, or those of a contiguous array if the caller gives none
    Py_ssize_t low_bits               # its elements are aligned to all powers of two that divide this number
    bint is_contiguous
    bint repeats                      # it has a stride of 0, so that several of its elements are one


cdef inline int wrong(int number, int reason) noexcept nogil:
    """Return the status of an argument that is refused for a reason."""
    return number << 8 | reason


cdef inline bint copy_known(void *args, size_t size, const void *given, size_t given_size) noexcept nogil:
    """Copy the `size` bytes that this version knows of a struct that may be shorter or longer. Return whether all
    others are 0."""
    cdef size_t at
    for at in range(size, given_size):
        if (<const char *>given)[at] != 0:
            return False
    memset(args, 0, size)
    memcpy(args, given, min(given_size, size))
    return True


cdef inline bint measure(GivenArray *array) noexcept nogil:
    """Find out about an array what its shape and strides say. Return whether its sizes are possible."""
    cdef const cattn_ndarray *ndarray = array.ndarray
    cdef Py_ssize_t size, contiguous = item_size(<cattn_type>ndarray.type)
    cdef int axis
    array.count = 1
    array.low_bits = <Py_ssize_t>ndarray.data
    array.is_contiguous = True
    array.repeats = False
    for axis in range(ndarray.ndim - 1, -1, -1):
        size = ndarray.shape[axis]
        array.strides[axis] = contiguous if ndarray.strides == NULL else ndarray.strides[axis]
        if size < 0 or (size > 0 and contiguous > PY_SSIZE_T_MAX // size):
            return False
        if size > 1:
            array.low_bits |= array.strides[axis]
            array.is_contiguous &= array.strides[axis] == contiguous
            array.repeats |= array.strides[axis] == 0
        array.count *= size
        contiguous *= max(size, <Py_ssize_t>1)   # as in NumPy: no product overflows where another size is 0
    return True


cdef inline bint is_aligned(const GivenArray *array) noexcept nogil:
    """Return whether all elements are aligned to their type."""
    return is_multiple(array.low_bits, item_size(<cattn_type>array.ndarray.type))


cdef inline const char *item_at(const GivenArray *array, Py_ssize_t number) noexcept nogil:
    """Return the address of the element of this number, counted in C's order."""
    cdef const char *item = <const char *>array.ndarray.data
    cdef int axis
    for axis in range(array.ndarray.ndim - 1, -1, -1):
        item += number % array.ndarray.shape[axis] * array.strides[axis]
        number //= array.ndarray.shape[axis]
    return item


cdef inline bint has_type(unsigned int types, int type) noexcept nogil:
    """Return whether a type is among some, which are bits."""
    return 0 <= type < 32 and types >> type & 1


cdef inline int check_given(GivenArray *array, unsigned int types) noexcept nogil:
    """Measure an array, and check what can be said of it without the others. Return a status."""
    cdef const cattn_ndarray *ndarray = array.ndarray
    if not 0 <= ndarray.ndim <= CATTN_AXES:
        return wrong(array.number, CATTN_WRONG_SHAPE)
    if ndarray.ndim > 0 and ndarray.shape == NULL:
        return wrong(array.number, CATTN_IS_NULL)
    if not has_type(types, ndarray.type):
        return wrong(array.number, CATTN_WRONG_TYPE)
    if not measure(array):
        return wrong(array.number, CATTN_WRONG_SHAPE)
    if ndarray.data == NULL and array.count > 0:
        return wrong(array.number, CATTN_IS_NULL)
    return CATTN_DONE


cdef inline bint overlap(const GivenArray *one, const GivenArray *other) noexcept nogil:
    """Return whether two arrays share memory, as far as this is easily seen."""
    cdef const char *begin = <const char *>one.ndarray.data
    cdef const char *end = begin + one.count * item_size(<cattn_type>one.ndarray.type)
    cdef const char *other_begin = <const char *>other.ndarray.data
    cdef const char *other_end = other_begin + other.count * item_size(<cattn_type>other.ndarray.type)
    if begin == end or other_begin == other_end:
        return False
    return begin == other_begin or (
        one.is_contiguous and other.is_contiguous and begin < other_end and other_begin < end)
