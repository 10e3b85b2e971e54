# The weighted sum of values for a tile that did not end finite. An infinity or NaN counts where it is attended to, only
# and always: 0·NaN of a masked value would be NaN, and so would 0·infinity of a weight that came out as 0, which is a
# small positive number. All that is finite goes through the same kernel as before, and gets the same bits.

from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from convert cimport is_half_type, item_size
from problem cimport CATTN_FLOAT16, CATTN_FLOAT32, CATTN_FLOAT64, cattn_type
from tiles.tiles cimport CATTN_FEW, CATTN_MAX_KEYS, CATTN_MAX_LANES, cattn_kernels, cattn_key_block, cattn_row_tile


cdef inline double non_finite(const char *item, cattn_type type) noexcept nogil:
    """Return an infinity or a NaN as it is, and 0 for a finite number."""
    cdef uint16_t bits, exponent
    cdef double value = 0
    if is_half_type(type):
        bits = (<const uint16_t *>item)[0]
        exponent = 0x7c00 if type == CATTN_FLOAT16 else 0x7f80
        if bits & exponent != exponent:
            return 0
        return NAN if bits & (0x7fff - exponent) else -INFINITY if bits & 0x8000 else INFINITY
    if type == CATTN_FLOAT32:
        value = (<const float *>item)[0]
    elif type == CATTN_FLOAT64:
        value = (<const double *>item)[0]
    return 0 if value - value == 0 else value


cdef inline cattn_type arithmetic_of(const cattn_kernels *kernels) noexcept nogil:
    """Return the type that these kernels compute in."""
    return CATTN_FLOAT32 if kernels.itemsize == sizeof(float) else CATTN_FLOAT64


cdef inline bint are_finite(const void *items, Py_ssize_t count, cattn_type type) noexcept nogil:
    """Return whether no exponent is the largest one. The loops have no way out, so that compilers take many numbers
    at a time."""
    cdef uint64_t double_exponent = <uint64_t>0x7ff << 52
    cdef uint32_t float_exponent = 0x7f800000
    cdef uint16_t half_exponent = 0x7c00 if type == CATTN_FLOAT16 else 0x7f80
    cdef unsigned char found = 0
    cdef Py_ssize_t i
    if type == CATTN_FLOAT64:
        for i in range(count):
            found |= (<const uint64_t *>items)[i] & double_exponent == double_exponent
    elif type == CATTN_FLOAT32:
        for i in range(count):
            found |= (<const uint32_t *>items)[i] & float_exponent == float_exponent
    elif is_half_type(type):
        for i in range(count):
            found |= (<const uint16_t *>items)[i] & half_exponent == half_exponent
    return not found


cdef inline bint is_zero(const char *item, const cattn_kernels *kernels) noexcept nogil:
    """Return whether a number of the arithmetic type is 0."""
    return ((<const float *>item)[0] if kernels.itemsize == sizeof(float) else (<const double *>item)[0]) == 0


cdef inline const char *values_of(const cattn_key_block *block, Py_ssize_t j) noexcept nogil:
    """Return where the values of key j begin, or of a bundle whose first key it is."""
    return block.data + j * block.stride if block.list == NULL else block.list[j]


cdef inline const char *value_at(const cattn_kernels *kernels, const cattn_key_block *block, Py_ssize_t j,
                                 Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t item = item_size(block.type), bundle = kernels.interleaves
    return values_of(block, j - j % bundle) + (c * bundle + j % bundle) * item


cdef inline char *output_at(const cattn_kernels *kernels, const cattn_row_tile *tile, void *output, Py_ssize_t row,
                            Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t at = row * tile.output_pitch + c if kernels.layout == CATTN_FEW else c * tile.lanes + row
    return <char *>output + at * kernels.itemsize


cdef inline bint is_finite_block(const cattn_kernels *kernels, void *output, const cattn_row_tile *tile,
                                 const cattn_key_block *block) noexcept nogil:
    """Return whether a block's values and the sums so far are finite."""
    cdef bint few = kernels.layout == CATTN_FEW, lost = False
    cdef Py_ssize_t lines = tile.rows if few else block.size, length = block.size if few else tile.rows
    cdef Py_ssize_t bundle = kernels.interleaves, i
    for i in range((block.count + bundle - 1) // bundle):
        if not are_finite(values_of(block, i * bundle), bundle * block.size, block.type):
            return False
    # Where the scale is not 0, a sum that is not finite stays so in the kernel.
    for i in range(0 if tile.is_new else tile.rows):
        lost |= is_zero(<const char *>tile.row_scale + i * kernels.itemsize, kernels)
    for i in range(lines if lost else 0):
        if not are_finite(output_at(kernels, tile, output, i if few else 0, 0 if few else i), length,
                          arithmetic_of(kernels)):
            return False
    return True


cdef inline void weigh_column(const cattn_kernels *kernels, void *output, const cattn_row_tile *tile,
                              const cattn_key_block *block, Py_ssize_t c) noexcept nogil:
    """Weigh one column of values: first what is finite, by the kernel, and then what is not."""
    cdef double values[CATTN_MAX_KEYS]
    cdef double rest[CATTN_MAX_LANES]
    cdef double value
    cdef Py_ssize_t j, row, item = item_size(block.type)
    cdef char *column = <char *>values
    cdef cattn_key_block finite = block[0]
    cdef bint few = kernels.layout == CATTN_FEW
    cdef char *out
    for row in range(tile.rows):
        out = output_at(kernels, tile, output, row, c)
        rest[row] = 0 if tile.is_new else non_finite(out, arithmetic_of(kernels))
        if rest[row] != 0:
            memset(out, 0, kernels.itemsize)
    for j in range(block.count):
        memcpy(column + j * item, value_at(kernels, block, j, c), item)
        value = non_finite(column + j * item, block.type)
        if value != 0:
            memset(column + j * item, 0, item)
            for row in range(tile.rows):
                if tile.attended[row * tile.pitch + j if few else j * tile.lanes + row]:
                    rest[row] += value
    memset(column + block.count * item, 0, (kernels.interleaves - 1) * item)   # the rest of the last bundle
    finite.data = column
    finite.stride = item
    finite.size = 1
    finite.prefetch = NULL
    finite.list = NULL
    kernels.values(output_at(kernels, tile, output, 0, c), tile, &finite)
    for row in range(tile.rows):
        out = output_at(kernels, tile, output, row, c)
        if rest[row] == 0:
            continue
        if arithmetic_of(kernels) == CATTN_FLOAT32:
            (<float *>out)[0] += <float>rest[row]
        else:
            (<double *>out)[0] += rest[row]


cdef inline void select_values(const cattn_kernels *kernels, void *output, const cattn_row_tile *tile,
                               const cattn_key_block *block) noexcept nogil:
    """Do what the kernel `values` does, but let nothing that is masked reach the output."""
    cdef Py_ssize_t c
    if is_finite_block(kernels, output, tile, block):
        kernels.values(output, tile, block)
        return
    for c in range(block.size):
        weigh_column(kernels, output, tile, block, c)
