# Storage types and strange strides: rows of any type, stride, alignment and byte order → contiguous rows of the
# arithmetic type, and back. Only what the tiles cannot read in place passes through here, a block at a time, as
# set_storage in rows.pxd decides. The kernel table's `widen` and `narrow` convert half types.

from libc.float cimport FLT_MAX
from libc.math cimport isfinite
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from problem cimport (
    CATTN_BFLOAT16, CATTN_BOOL, CATTN_FLOAT16, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_INT64, CATTN_INT8, cattn_array,
    cattn_type)
from tiles.tiles cimport CATTN_MANY, cattn_table

cdef enum:
    STACK = 128   # elements converted at a time, through the stack
    MOST_INTERLEAVED = 32   # rows at most: as many as bfloat16 numbers lie in a row of an AMX tile


cdef inline bint is_half_type(int type) noexcept nogil:
    """Return whether a type is float16 or bfloat16."""
    return type == CATTN_FLOAT16 or type == CATTN_BFLOAT16


cdef inline Py_ssize_t item_size(cattn_type type) noexcept nogil:
    """Return the bytes of an element: 0, of which nothing is read, for a type that is not known here."""
    if type == CATTN_FLOAT32:
        return 4
    if type == CATTN_FLOAT64 or type == CATTN_INT64:
        return 8
    if is_half_type(type):
        return 2
    return 1 if type == CATTN_BOOL or type == CATTN_INT8 else 0


cdef inline bint is_multiple(Py_ssize_t number, Py_ssize_t power_of_two) noexcept nogil:
    """Return whether a power of two divides a number."""
    return number & (power_of_two - 1) == 0


cdef inline bint in_place(const cattn_array *array, cattn_type type, int batch_ndim) noexcept nogil:
    """Return whether the tiles can read (or write) the rows of `array` where they lie."""
    cdef Py_ssize_t item = item_size(type)
    cdef Py_ssize_t misaligned = <Py_ssize_t>array.data | array.head | array.row
    cdef int axis
    for axis in range(batch_ndim):
        misaligned |= array.batch[axis]
    return array.type == type and array.column == item and not array.swapped and is_multiple(misaligned, item)


cdef inline float to_float(double value) noexcept nogil:
    """Return the nearest float. A finite number stays finite: a bias that would become -infinity would mask."""
    if isfinite(value):
        value = min(max(value, -FLT_MAX), FLT_MAX)
    return <float>value


cdef inline void convert(char *to, cattn_type to_type, const char *source, cattn_type type, Py_ssize_t count,
                         const cattn_table *table) noexcept nogil:
    """Convert contiguous, aligned elements to another floating type. Half types go through float. Doubles never become
    halves, int8 becomes float alone, and an unknown type becomes nothing."""
    cdef float[STACK] middle
    cdef Py_ssize_t i, number, start, size
    if to_type == type:
        memcpy(to, source, count * item_size(type))
    elif to_type == CATTN_FLOAT32 and type == CATTN_FLOAT64:
        table.round_to_float(to, source, count)
    elif to_type == CATTN_FLOAT64 and type == CATTN_FLOAT32:
        for i in range(count):
            (<double *>to)[i] = (<const float *>source)[i]
    elif to_type == CATTN_FLOAT32 and (is_half_type(type) or type == CATTN_INT8):
        table.widen(to, source, type, count)
    elif type == CATTN_FLOAT32 and is_half_type(to_type):
        table.narrow(to, source, to_type, count)
    elif is_half_type(type):
        for number in range((count + STACK - 1) // STACK):
            start = number * STACK
            size = min(<Py_ssize_t>STACK, count - start)
            table.widen(middle, source + start * item_size(type), type, size)
            convert(to + start * item_size(to_type), to_type, <const char *>middle, CATTN_FLOAT32, size, table)


cdef inline void copy_item(char *to, const char *source, Py_ssize_t item, bint swapped) noexcept nogil:
    """Copy one element. If `swapped`, its bytes are in the other order."""
    cdef Py_ssize_t byte
    if swapped:
        for byte in range(item):
            to[byte] = source[item - 1 - byte]
    else:
        memcpy(to, source, item)


cdef inline bint is_direct(const cattn_array *array, const char *row) noexcept nogil:
    """Return whether the elements of `row` can be converted where they lie."""
    cdef Py_ssize_t item = item_size(array.type)
    return array.column == item and not array.swapped and is_multiple(<Py_ssize_t>row, item)


cdef inline void gather_row(char *to, cattn_type to_type, const cattn_array *array, const char *row, Py_ssize_t count,
                            const cattn_table *table) noexcept nogil:
    """Gather `count` elements of `array` from `row` on, along its last axis."""
    cdef double[STACK] buffer
    cdef char *piece = <char *>buffer
    cdef Py_ssize_t item = item_size(array.type), to_item = item_size(to_type)
    cdef Py_ssize_t number, start, i, size
    if is_direct(array, row):
        convert(to, to_type, row, array.type, count, table)
        return
    for number in range((count + STACK - 1) // STACK):
        start = number * STACK
        size = min(<Py_ssize_t>STACK, count - start)
        for i in range(size):
            copy_item(piece + i * item, row + (start + i) * array.column, item, array.swapped)
        convert(to + start * to_item, to_type, piece, array.type, size, table)


ctypedef void (*gather_rows_function)(char *to, cattn_type to_type, const cattn_array *array, const char *row,
                                      Py_ssize_t rows, Py_ssize_t count, const cattn_table *table) noexcept nogil


cdef inline void gather_rows(char *to, cattn_type to_type, const cattn_array *array, const char *row, Py_ssize_t rows,
                             Py_ssize_t count, const cattn_table *table) noexcept nogil:
    """Gather rows of `count` elements, one behind the other."""
    cdef Py_ssize_t i, item = item_size(array.type)
    if array.column == item and array.row == count * item:   # all of them are one row
        rows, count = 1, rows * count
    for i in range(rows):
        gather_row(to + i * count * item_size(to_type), to_type, array, row + i * array.row, count, table)


cdef inline void interleave_rows(char *to, cattn_type to_type, const cattn_array *array, const char *row,
                                 Py_ssize_t rows, Py_ssize_t count, const cattn_table *table) noexcept nogil:
    """Gather rows of bfloat16 in bundles, as the table's kernels take values of that type."""
    cdef uint16_t[MOST_INTERLEAVED * STACK] gathered
    cdef const char *listed[MOST_INTERLEAVED]
    cdef Py_ssize_t bundle = table.kernels[<int>to_type][<int>CATTN_MANY].interleaves
    cdef Py_ssize_t size = bundle * item_size(to_type)
    cdef Py_ssize_t index, first, number, start, piece, i
    if is_direct(array, row) and is_multiple(array.row, item_size(to_type)):
        for index in range((rows + MOST_INTERLEAVED - 1) // MOST_INTERLEAVED):
            first = index * MOST_INTERLEAVED
            piece = min(<Py_ssize_t>MOST_INTERLEAVED, rows - first)
            for i in range(piece):
                listed[i] = row + (first + i) * array.row
            table.interleave(to + first * count * item_size(to_type), listed, piece, count)
        return
    for i in range(bundle):
        listed[i] = <const char *>&gathered[i * STACK]
    for index in range((rows + bundle - 1) // bundle):
        first = index * bundle
        for number in range((count + STACK - 1) // STACK):
            start = number * STACK
            piece = min(<Py_ssize_t>STACK, count - start)
            for i in range(min(bundle, rows - first)):
                gather_row(<char *>&gathered[i * STACK], to_type, array,
                           row + (first + i) * array.row + start * array.column, piece, table)
            table.interleave(to + first * count * item_size(to_type) + start * size, listed,
                             min(bundle, rows - first), piece)


cdef inline void scatter_row(const cattn_array *array, char *row, const char *source, cattn_type source_type,
                             Py_ssize_t count, const cattn_table *table) noexcept nogil:
    """Convert contiguous numbers to `count` elements of `array` from `row` on."""
    cdef double[STACK] buffer
    cdef char *piece = <char *>buffer
    cdef Py_ssize_t item = item_size(array.type), source_item = item_size(source_type)
    cdef Py_ssize_t number, start, i, size
    if is_direct(array, row):
        convert(row, array.type, source, source_type, count, table)
        return
    for number in range((count + STACK - 1) // STACK):
        start = number * STACK
        size = min(<Py_ssize_t>STACK, count - start)
        convert(piece, array.type, source + start * source_item, source_type, size, table)
        for i in range(size):
            copy_item(row + (start + i) * array.column, piece + i * item, item, array.swapped)
