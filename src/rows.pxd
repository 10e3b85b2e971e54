# The rows of one array that belong to one batch entry and one group of heads: where they lie, how a block of them is
# read, and how it is asked for ahead.

from libc.stdint cimport int64_t

from convert cimport gather_rows, gather_rows_function, in_place, interleave_rows, item_size
from problem cimport CATTN_INT8, cattn_array, cattn_problem, cattn_type
from tiles.tiles cimport (
    CATTN_PREFETCH, CATTN_PREFETCH_L2, CATTN_PREFETCH_WRITE, cattn_kernels, cattn_key_block, cattn_table)


# How the kernels get a block of keys, or of values.
cdef struct Storage:
    cattn_type type                  # of the numbers that they get
    gather_rows_function gather      # turns rows into these, in the workspace; NULL: they are read where they lie


cdef struct Rows:
    const cattn_array *array
    char *first                      # row 0 of the first head; NULL: the array was not given


cdef inline Py_ssize_t entry_query_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    """Return the number of queries of a batch entry, or of a packed sequence."""
    if problem.query_indptr != NULL:
        return <Py_ssize_t>(problem.query_indptr[entry + 1] - problem.query_indptr[entry])
    return problem.query_length


cdef inline Py_ssize_t entry_key_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    """Return the number of keys of a batch entry, or of a packed sequence."""
    if problem.key_indptr != NULL:
        return <Py_ssize_t>(problem.key_indptr[entry + 1] - problem.key_indptr[entry])
    return problem.key_length


cdef inline void open_rows(Rows *rows, const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                           Py_ssize_t head, const int64_t *indptr) noexcept nogil:
    """Find the rows of `head` and those after it in a batch entry, or in a packed sequence if `indptr` is given."""
    cdef Py_ssize_t axis, rest = entry
    rows.array = array
    rows.first = array.data
    if rows.first == NULL:
        return
    for axis in range(problem.batch_ndim - 1, -1, -1):
        rows.first += rest % problem.batch_shape[axis] * array.batch[axis]
        rest //= problem.batch_shape[axis]
    if indptr != NULL:
        rows.first += indptr[entry] * array.row
    rows.first += head * array.head


cdef inline char *row_at(const Rows *rows, Py_ssize_t head, Py_ssize_t index) noexcept nogil:
    """Return the address of row `index` of a head, which is counted from the first one of these rows."""
    return rows.first + head * rows.array.head + index * rows.array.row


cdef inline void set_storage(Storage *storage, const cattn_array *array, const cattn_kernels *kernels, bint interleaves,
                             int batch_ndim) noexcept nogil:
    """Decide how the kernels get blocks of an array: interleaved, in place, or gathered."""
    storage.type = kernels.type
    storage.gather = interleave_rows if interleaves else gather_rows
    if not interleaves and kernels.reads >> array.type & 1:
        if array.type == CATTN_INT8:   # gathered as it is, because a scale is folded in either case or in none
            storage.type = array.type
        if in_place(array, array.type, batch_ndim):
            storage.type = array.type
            storage.gather = NULL


cdef inline Py_ssize_t gathered_bytes(const Storage *storage, Py_ssize_t rows, Py_ssize_t size) noexcept nogil:
    """Return the room that a block of so many rows of `size` numbers takes in the workspace."""
    return 0 if storage.gather == NULL else rows * size * item_size(storage.type)


cdef inline void read_block(cattn_key_block *block, const Rows *rows, const Storage *storage, Py_ssize_t low,
                            char *room, const cattn_table *table) noexcept nogil:
    """Read rows low, low + 1, ... as the kernels take them. The block's count and size are set before."""
    cdef const char *first = rows.first + low * rows.array.row
    block.type = storage.type
    block.prefetch = NULL
    block.scales = NULL
    if storage.gather == NULL:
        block.data = first
        block.stride = rows.array.row
    else:
        storage.gather(room, storage.type, rows.array, first, block.count, block.size, table)
        block.data = room
        block.stride = block.size * item_size(storage.type)   # if keys are interleaved, one key's share


cdef inline void prefetch_row(const char *row, Py_ssize_t bytes) noexcept nogil:
    """Ask for a row that will be read soon."""
    cdef Py_ssize_t line
    for line in range((bytes + 63) // 64):
        CATTN_PREFETCH(row + line * 64)


cdef inline void prefetch_row_to_write(const char *row, Py_ssize_t bytes) noexcept nogil:
    """Ask for a row that will be written soon."""
    cdef Py_ssize_t line
    for line in range((bytes + 63) // 64):
        CATTN_PREFETCH_WRITE(row + line * 64)


cdef inline void prefetch_rows(const Rows *rows, Py_ssize_t low, Py_ssize_t high, Py_ssize_t size) noexcept nogil:
    """Ask for rows low <= i < high, of `size` numbers each, as far as L2."""
    cdef Py_ssize_t row, line, bytes = size * item_size(rows.array.type)
    for row in range(low, high):
        for line in range((bytes + 63) // 64):
            CATTN_PREFETCH_L2(rows.first + row * rows.array.row + line * 64)
