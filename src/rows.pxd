# The rows of one array that belong to one batch entry and one group of heads: where they lie, how a block of them is
# read, and how it is asked for ahead.

from libc.stdint cimport int64_t

from convert cimport (
    MOST_INTERLEAVED, gather_rows, gather_rows_function, in_place, interleave_rows, item_size)
from problem cimport CATTN_INT8, cattn_array, cattn_problem, cattn_type
from sizes cimport round_up, times
from tiles.tiles cimport (
    CATTN_PREFETCH, CATTN_PREFETCH_L2, CATTN_PREFETCH_WRITE, cattn_kernels, cattn_key_block, cattn_table)


# How the kernels get a block of keys, or of values.
cdef struct Storage:
    cattn_type type                  # of the numbers that they get
    gather_rows_function gather      # turns rows into these, in the workspace; NULL: they are read where they lie
    Py_ssize_t listed                # rows that lie in several pages of a multiple of so many are listed; 0: gathered


cdef struct Rows:
    const cattn_array *array
    char *first                      # row 0 of the first head, in page 0 if there are pages; NULL: not given
    const int64_t *pages             # the pages in which the rows lie; NULL: they lie one after the other
    Py_ssize_t page_size             # rows of a page


cdef inline Py_ssize_t count_entries(const cattn_problem *problem) noexcept nogil:
    """Return the number of batch entries, or of packed sequences."""
    cdef Py_ssize_t entries = 1
    cdef int axis
    for axis in range(problem.batch_ndim):
        entries = times(entries, problem.batch_shape[axis])
    return entries


cdef inline Py_ssize_t entry_query_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    """Return the number of queries of a batch entry, or of a packed sequence."""
    if problem.query_indptr != NULL:
        return <Py_ssize_t>(problem.query_indptr[entry + 1] - problem.query_indptr[entry])
    return problem.query_length


cdef inline Py_ssize_t entry_key_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    """Return the number of keys of a batch entry, or of a packed sequence."""
    if problem.key_indptr != NULL:
        return <Py_ssize_t>(problem.key_indptr[entry + 1] - problem.key_indptr[entry])
    if problem.paged_lengths != NULL:
        return <Py_ssize_t>problem.paged_lengths[entry]
    return problem.key_length


cdef inline void open_rows(Rows *rows, const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                           Py_ssize_t head, const int64_t *indptr) noexcept nogil:
    """Find the rows of `head` and those after it in a batch entry, or in a packed sequence if `indptr` is given."""
    cdef Py_ssize_t axis, rest = entry
    rows.array = array
    rows.first = array.data
    rows.pages = NULL
    if rows.first == NULL:
        return
    for axis in range(problem.batch_ndim - 1, -1, -1):
        rows.first += rest % problem.batch_shape[axis] * array.batch[axis]
        rest //= problem.batch_shape[axis]
    if indptr != NULL:
        rows.first += indptr[entry] * array.row
    rows.first += head * array.head


cdef inline void open_keys(Rows *rows, const cattn_problem *problem, const cattn_array *array, Py_ssize_t entry,
                           Py_ssize_t head) noexcept nogil:
    """Find the rows of `head` in an array of keys, of values, or of their scales."""
    if problem.block_table == NULL:
        open_rows(rows, problem, array, entry, head, problem.key_indptr)
        return
    rows.array = array
    rows.first = NULL if array.data == NULL else array.data + head * array.head
    rows.pages = problem.block_table + entry * problem.most_pages
    rows.page_size = problem.page_size


cdef inline char *key_at(const Rows *rows, Py_ssize_t index) noexcept nogil:
    """Return the address of a row of the first head, in whichever page it lies."""
    if rows.pages == NULL:
        return rows.first + index * rows.array.row
    return (rows.first + rows.pages[index // rows.page_size] * rows.array.batch[0]
            + index % rows.page_size * rows.array.row)


cdef inline Py_ssize_t count_in_page(const Rows *rows, Py_ssize_t index, Py_ssize_t most) noexcept nogil:
    """Return how many rows from `index` on, of `most`, lie one after the other."""
    return most if rows.pages == NULL else min(rows.page_size - index % rows.page_size, most)


cdef inline char *row_at(const Rows *rows, Py_ssize_t head, Py_ssize_t index) noexcept nogil:
    """Return the address of row `index` of a head, which is counted from the first one of these rows."""
    return rows.first + head * rows.array.head + index * rows.array.row


cdef inline void set_storage(Storage *storage, const cattn_array *array, const cattn_kernels *kernels, bint interleaves,
                             int batch_ndim) noexcept nogil:
    """Decide how the kernels get blocks of an array: interleaved, in place, or gathered."""
    storage.type = kernels.type
    storage.listed = 0
    storage.gather = interleave_rows if interleaves else gather_rows
    if not interleaves and kernels.reads >> array.type & 1:
        if array.type == CATTN_INT8:   # it stays so if it is gathered: where its scale goes must not depend on strides
            storage.type = array.type
        if in_place(array, array.type, batch_ndim):
            storage.type = array.type
            storage.gather = NULL
            storage.listed = kernels.takes_lists


cdef inline Py_ssize_t gathered_bytes(const Storage *storage, Py_ssize_t rows, Py_ssize_t size) noexcept nogil:
    """Return the room that a block of so many rows of `size` numbers takes in the workspace."""
    return 0 if storage.gather == NULL else rows * size * item_size(storage.type)


cdef inline bint are_listed(const Storage *storage, Py_ssize_t page_size) noexcept nogil:
    """Return whether the kernels take the addresses of rows that lie in several pages."""
    return storage.listed > 0 and page_size % storage.listed == 0


cdef inline Py_ssize_t paged_bytes(const Storage *storage, Py_ssize_t page_size, Py_ssize_t rows,
                                   Py_ssize_t size) noexcept nogil:
    """Return the room that a block takes if its rows lie in several pages: for their addresses, or for the rows, and
    for a few of them before they are interleaved."""
    if are_listed(storage, page_size):
        return rows * sizeof(char *)
    if storage.gather == interleave_rows:
        rows = round_up(rows, MOST_INTERLEAVED) + MOST_INTERLEAVED
    return rows * size * item_size(storage.type)


cdef inline void read_block(cattn_key_block *block, const Rows *rows, const Storage *storage, Py_ssize_t low,
                            char *room, const cattn_table *table) noexcept nogil:
    """Read rows low, low + 1, ... as the kernels take them. The block's count and size are set before."""
    cdef const char *first = rows.first + low * rows.array.row
    block.type = storage.type
    block.prefetch = NULL
    block.scales = NULL
    block.list = NULL
    if storage.gather == NULL:
        block.data = first
        block.stride = rows.array.row
    else:
        storage.gather(room, storage.type, rows.array, first, block.count, block.size, table)
        block.data = room
        block.stride = block.size * item_size(storage.type)   # if keys are interleaved, one key's share


cdef inline void list_rows(const char **addresses, const Rows *rows, Py_ssize_t low, Py_ssize_t count) noexcept nogil:
    """List the addresses of rows low, low + 1, ..., which lie in several pages."""
    cdef Py_ssize_t row = rows.array.row, page = low // rows.page_size, place = low % rows.page_size, done = 0, some, i
    cdef const char *first
    while done < count:
        first = rows.first + rows.pages[page] * rows.array.batch[0] + place * row
        some = min(rows.page_size - place, count - done)
        for i in range(some):
            addresses[done + i] = first + i * row
        done += some
        page += 1
        place = 0


cdef inline void gather_pages(char *to, const Rows *rows, cattn_type type, Py_ssize_t low, Py_ssize_t count,
                              Py_ssize_t size, const cattn_table *table) noexcept nogil:
    """Gather rows low, low + 1, ..., which lie in several pages, one behind the other."""
    cdef Py_ssize_t done = 0, some
    while done < count:
        some = count_in_page(rows, low + done, count - done)
        gather_rows(to + done * size * item_size(type), type, rows.array, key_at(rows, low + done), some, size, table)
        done += some


cdef inline void read_pages(cattn_key_block *block, const Rows *rows, const Storage *storage, Py_ssize_t low,
                            char *room, const cattn_table *table) noexcept nogil:
    """Do what read_block does with rows that lie in pages. If they lie in several, they are listed, or gathered."""
    cdef Py_ssize_t bytes = block.size * item_size(storage.type), done = 0, some, i
    cdef const char *listed[MOST_INTERLEAVED]
    cdef char *gathered
    cdef Rows page = rows[0]
    if count_in_page(rows, low, block.count) == block.count:
        page.first = key_at(rows, low)
        read_block(block, &page, storage, 0, room, table)
        return
    block.type = storage.type
    block.prefetch = NULL
    block.scales = NULL
    block.list = NULL
    if are_listed(storage, rows.page_size):
        list_rows(<const char **>room, rows, low, block.count)
        block.data = (<const char **>room)[0]
        block.stride = rows.array.row   # in a page
        block.list = <const char *const *>room
        return
    if storage.gather == interleave_rows:
        # Where rows have to be gathered first, a few at a time are: the nearest cache then has them for the interleaving.
        gathered = room + round_up(block.count, MOST_INTERLEAVED) * bytes
        for i in range(MOST_INTERLEAVED):
            listed[i] = gathered + i * bytes
        while done < block.count:
            some = min(<Py_ssize_t>MOST_INTERLEAVED, block.count - done)
            if in_place(rows.array, storage.type, 1):
                list_rows(listed, rows, low + done, some)
            else:
                gather_pages(gathered, rows, storage.type, low + done, some, block.size, table)
            table.interleave(room + done * bytes, listed, some, block.size)
            done += some
    else:
        gather_pages(room, rows, storage.type, low, block.count, block.size, table)
    block.data = room
    block.stride = bytes


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
    cdef Py_ssize_t bytes = size * item_size(rows.array.type), some, i, line
    cdef const char *first
    while low < high:
        first = key_at(rows, low)
        some = count_in_page(rows, low, high - low)
        for i in range(some):
            for line in range((bytes + 63) // 64):
                CATTN_PREFETCH_L2(first + i * rows.array.row + line * 64)
        low += some
