# The portable kernels as a table: complete, so that every other table replaces entries of it.

from problem cimport CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOATS
from tiles.portable cimport (
    PORTABLE_LANES, PORTABLE_RUN, exponentials, load, logsumexp, mark_attended, merge, real,
    reset, round_to_float, scores, store, values)
from tiles.portable_few cimport few_exponentials, few_scores, few_store, few_values
from tiles.portable_half cimport narrow, widen
from tiles.tiles cimport (
    CATTN_BY_HALVES, CATTN_FEW, CATTN_FEW_ROWS, CATTN_MANY, CATTN_MAX_KEYS, PY_SSIZE_T_MAX, cattn_kernels,
    cattn_key_block, cattn_row_tile, cattn_softmax, cattn_table, cattn_total)


# A kernel has the same type for float and double in a table. These functions have it, and call the typed ones.


cdef inline void load_32(void *queries, const cattn_row_tile *tile, const char **source,
                         Py_ssize_t size) noexcept nogil:
    load(<float *>queries, tile, source, size)


cdef inline void reset_32(const cattn_softmax *softmax, const cattn_row_tile *tile, const double *sinks) noexcept nogil:
    reset(<float *>softmax.row_max, softmax, tile, sinks)


cdef inline int scores_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return scores(<float *>array, tile, block)


cdef inline int mark_attended_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return mark_attended(<float *>array, tile, block)


cdef inline int exponentials_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return exponentials(<float *>array, tile, block)


cdef inline int values_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return values(<float *>array, tile, block)


cdef inline int few_scores_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return few_scores(<float *>array, tile, block)


cdef inline int few_exponentials_32(void *array, const cattn_row_tile *tile,
                                    const cattn_key_block *block) noexcept nogil:
    return few_exponentials(<float *>array, tile, block)


cdef inline int few_values_32(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return few_values(<float *>array, tile, block)


cdef inline void merge_32(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile,
                          Py_ssize_t size, int selecting) noexcept nogil:
    merge(<float *>total.softmax.output, total, part, tile, size)


cdef inline int store_32(const void *output, const void *row_sum, const cattn_row_tile *tile, char **destination,
                         Py_ssize_t size) noexcept nogil:
    return store(<const float *>output, <const float *>row_sum, tile, destination, size)


cdef inline int few_store_32(const void *output, const void *row_sum, const cattn_row_tile *tile,
                             char **destination, Py_ssize_t size) noexcept nogil:
    return few_store(<const float *>output, <const float *>row_sum, tile, destination, size)


cdef inline void logsumexp_32(const cattn_softmax *softmax, const cattn_row_tile *tile,
                              char **destination) noexcept nogil:
    logsumexp(<const float *>softmax.row_max, <const float *>softmax.lse_sum, tile, destination)


cdef inline void load_64(void *queries, const cattn_row_tile *tile, const char **source,
                         Py_ssize_t size) noexcept nogil:
    load(<double *>queries, tile, source, size)


cdef inline void reset_64(const cattn_softmax *softmax, const cattn_row_tile *tile, const double *sinks) noexcept nogil:
    reset(<double *>softmax.row_max, softmax, tile, sinks)


cdef inline int scores_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return scores(<double *>array, tile, block)


cdef inline int mark_attended_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return mark_attended(<double *>array, tile, block)


cdef inline int exponentials_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return exponentials(<double *>array, tile, block)


cdef inline int values_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return values(<double *>array, tile, block)


cdef inline int few_scores_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return few_scores(<double *>array, tile, block)


cdef inline int few_exponentials_64(void *array, const cattn_row_tile *tile,
                                    const cattn_key_block *block) noexcept nogil:
    return few_exponentials(<double *>array, tile, block)


cdef inline int few_values_64(void *array, const cattn_row_tile *tile, const cattn_key_block *block) noexcept nogil:
    return few_values(<double *>array, tile, block)


cdef inline void merge_64(const cattn_total *total, const cattn_softmax *part, const cattn_row_tile *tile,
                          Py_ssize_t size, int selecting) noexcept nogil:
    merge(<double *>total.softmax.output, total, part, tile, size)


cdef inline int store_64(const void *output, const void *row_sum, const cattn_row_tile *tile, char **destination,
                         Py_ssize_t size) noexcept nogil:
    return store(<const double *>output, <const double *>row_sum, tile, destination, size)


cdef inline int few_store_64(const void *output, const void *row_sum, const cattn_row_tile *tile,
                             char **destination, Py_ssize_t size) noexcept nogil:
    return few_store(<const double *>output, <const double *>row_sum, tile, destination, size)


cdef inline void logsumexp_64(const cattn_softmax *softmax, const cattn_row_tile *tile,
                              char **destination) noexcept nogil:
    logsumexp(<const double *>softmax.row_max, <const double *>softmax.lse_sum, tile, destination)


cdef inline void fill_kernels(cattn_kernels *many, cattn_kernels *few, real *unused) noexcept nogil:
    """Fill in the kernels of `real`. The pointer only says which type that is."""
    many.layout = CATTN_MANY
    many.lanes = many.half = PORTABLE_LANES
    many.run = PORTABLE_RUN
    # A block of keys (and one of values) stays in an L1 cache of 32 KiB beside the score tile. Merging chunks takes as
    # long as 5 keys or so.
    many.blocking.most = 2 * PORTABLE_RUN
    many.blocking.least = PORTABLE_RUN // 4
    many.blocking.step = CATTN_BY_HALVES
    many.blocking.bytes = 25600
    many.blocking.chunk_blocks = 5
    many.blocking.least_chunk = 100
    many.blocking.most_chunk = PY_SSIZE_T_MAX

    few.layout = CATTN_FEW
    few.lanes = few.half = CATTN_FEW_ROWS
    few.run = PY_SSIZE_T_MAX   # calls begin with a block
    # Streams are long, and one of them stays in L2. Each chunk leaves a partial result, which takes less than 1% of the
    # bytes of its keys and values.
    few.blocking.most = CATTN_MAX_KEYS
    few.blocking.least = 64
    few.blocking.step = 64
    few.blocking.bytes = 262144
    few.blocking.chunk_blocks = 8
    few.blocking.least_chunk = 64
    few.blocking.most_chunk = 2048

    many.itemsize = few.itemsize = sizeof(real)
    many.type = few.type = CATTN_FLOAT32 if real is float else CATTN_FLOAT64
    many.reads = few.reads = 1u << many.type
    many.rounds_weights = few.rounds_weights = many.scales_late = few.scales_late = False
    many.interleaves = few.interleaves = 1
    if real is float:
        many.load = few.load = load_32
        many.reset = few.reset = reset_32
        many.mark_attended = few.mark_attended = mark_attended_32
        many.merge = few.merge = merge_32
        many.logsumexp = few.logsumexp = logsumexp_32
        many.scores = scores_32
        few.scores = few_scores_32
        many.exponentials = exponentials_32
        few.exponentials = few_exponentials_32
        many.values = values_32
        few.values = few_values_32
        many.store = store_32
        few.store = few_store_32
    else:
        many.load = few.load = load_64
        many.reset = few.reset = reset_64
        many.mark_attended = few.mark_attended = mark_attended_64
        many.merge = few.merge = merge_64
        many.logsumexp = few.logsumexp = logsumexp_64
        many.scores = scores_64
        few.scores = few_scores_64
        many.exponentials = exponentials_64
        few.exponentials = few_exponentials_64
        many.values = values_64
        few.values = few_values_64
        many.store = store_64
        few.store = few_store_64


cdef inline void fill_portable(cattn_table *table) noexcept nogil:
    table.name = "portable"
    cdef int type
    for type in range(<int>CATTN_FLOATS):
        if type == <int>CATTN_FLOAT64:
            fill_kernels[double](&table.kernels[type][CATTN_MANY], &table.kernels[type][CATTN_FEW], NULL)
        else:
            fill_kernels[float](&table.kernels[type][CATTN_MANY], &table.kernels[type][CATTN_FEW], NULL)
    table.interleave = NULL
    table.widen = widen
    table.narrow = narrow
    table.round_to_float = round_to_float
