# The scales of int8 keys and values. Each number stands for its product with its scale. A scale varies along the keys
# (one for each token), or along the columns (one for each channel), or not at all.
#
# If the kernels read int8, the scale of a column goes into the queries, or into the output. The scale of a key goes into
# its score, or into its weight on the way to the values, but not into the sum of weights. For other kernels a block is
# widened, and multiplied on the way.

from libc.string cimport memcpy

from convert cimport gather_row, is_multiple
from problem cimport CATTN_FLOAT32, CATTN_INT8, cattn_array
from rows cimport count_in_page, key_at, Rows, Storage
from tiles.tiles cimport cattn_key_block, cattn_row_tile, cattn_table


cdef inline bint settle_scale(cattn_array *scale, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    """Set the strides along axes of one element to 0. Return whether a scale varies along one axis at most."""
    if rows <= 1:
        scale.row = 0
    if columns <= 1:
        scale.column = 0
    return scale.row == 0 or scale.column == 0


cdef inline bint varies_by_key(const cattn_array *scale, bint paged) noexcept nogil:
    """Return whether a scale varies along the keys. Those of one page may share one."""
    return scale.row != 0 or paged and scale.batch[0] != 0


cdef inline bint folds_columns(const cattn_array *scale, const Storage *storage, bint paged) noexcept nogil:
    """Return whether the scales of columns go into queries or output, because the kernels read int8."""
    return scale.data != NULL and not varies_by_key(scale, paged) and storage.type == CATTN_INT8


cdef inline const float *scales_along(const Rows *scale, const char *first, Py_ssize_t stride, Py_ssize_t count,
                                      char *room, const cattn_table *table) noexcept nogil:
    """Return `count` scales as contiguous floats: where they lie, or in `room`."""
    cdef cattn_array along
    if (scale.array.type == CATTN_FLOAT32 and stride == sizeof(float) and not scale.array.swapped
            and is_multiple(<Py_ssize_t>first, sizeof(float))):
        return <const float *>first
    along.type = scale.array.type
    along.swapped = scale.array.swapped
    along.column = stride
    gather_row(room, CATTN_FLOAT32, &along, first, count, table)
    return <const float *>room


cdef inline const float *key_scales(const Rows *scale, Py_ssize_t low, Py_ssize_t count, char *room,
                                    const cattn_table *table) noexcept nogil:
    """Return the scales of keys low, low + 1, ..."""
    cdef Py_ssize_t done = 0, some = count_in_page(scale, low, count), size = sizeof(float)
    cdef const float *found
    if some == count:
        return scales_along(scale, key_at(scale, low), scale.array.row, count, room, table)
    while done < count:
        some = count_in_page(scale, low + done, count - done)
        found = scales_along(scale, key_at(scale, low + done), scale.array.row, some, room + done * size, table)
        if <const char *>found != room + done * size:
            memcpy(room + done * size, found, some * size)
        done += some
    return <const float *>room


cdef inline const float *column_scales(const Rows *scale, Py_ssize_t column, Py_ssize_t count, char *room,
                                       const cattn_table *table) noexcept nogil:
    """Return the scales of columns column, column + 1, ..."""
    return scales_along(scale, scale.first + column * scale.array.column, scale.array.column, count, room, table)


cdef inline void read_scales(cattn_key_block *block, const Rows *scale, const Storage *storage, Py_ssize_t low,
                             char *room, const cattn_table *table) noexcept nogil:
    """Read the scales of a block whose rows have been read, from row `low` on. Rows that were widened are multiplied."""
    cdef bint by_key
    cdef const float *scales
    cdef Py_ssize_t j
    if scale.first == NULL or folds_columns(scale.array, storage, scale.pages != NULL):
        return
    by_key = varies_by_key(scale.array, scale.pages != NULL)
    scales = (key_scales(scale, low, block.count, room, table) if by_key
              else column_scales(scale, 0, block.size, room, table))
    if storage.type == CATTN_INT8:
        block.scales = scales
        return
    for j in range(block.count):
        table.multiply(<char *>block.data + j * block.stride, scales + (j if by_key else 0), 0 if by_key else 1,
                       block.size)


cdef inline void multiply_weights(const cattn_row_tile *tile, const cattn_key_block *values, bint exact,
                                  const cattn_table *table) noexcept nogil:
    """Multiply the weights of few rows by the scales of the values. If `exact`, a weight that is masked stays 0, even
    beside a scale that is not finite."""
    cdef Py_ssize_t row, j
    cdef float *weights
    for row in range(tile.rows):
        weights = <float *>tile.scores + row * tile.pitch
        table.multiply(weights, values.scales, 1, values.count)
        for j in range(values.count if exact else 0):
            if not tile.attended[row * tile.pitch + j]:
                weights[j] = 0


cdef inline void multiply_output(float *output, const float *scales, Py_ssize_t size, float row_sum, bint has_sink,
                                 const cattn_table *table) noexcept nogil:
    """Multiply a row of the output by the scales of its columns. The output of a row that attends to nothing stays 0,
    even beside a scale that is not finite: its sum is 0, or that of its sink alone."""
    cdef Py_ssize_t c = 0
    if has_sink and row_sum == 1:
        while c < size and output[c] == 0:
            c += 1
    if row_sum != 0 and (c < size or not has_sink or row_sum != 1):
        table.multiply(output, scales, 1, size)
