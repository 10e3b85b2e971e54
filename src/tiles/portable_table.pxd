# The portable kernels as a table: complete, so that every other table replaces entries of it.

from problem cimport CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOATS, cattn_type
from tiles.portable cimport (
    PORTABLE_LANES, PORTABLE_RUN, exponentials, load, logsumexp, mark_attended, merge, real,
    reset, round_to_float, scores, store, values)
from tiles.portable_few cimport few_exponentials, few_scores, few_store, few_values
from tiles.portable_half cimport narrow, widen
from tiles.tiles cimport (
    CATTN_FEW, CATTN_FEW_ROWS, CATTN_MANY, CATTN_MAX_KEYS, PY_SSIZE_T_MAX, cattn_blocking, cattn_kernel, cattn_kernels,
    cattn_table)


cdef inline void fill_kernels(cattn_kernels *many, cattn_kernels *few, real *unused) noexcept nogil:
    """Those of `real`; the pointer only says which. Kernels are cast for the sake of their first argument's type."""
    cdef cattn_type type = CATTN_FLOAT32 if real is float else CATTN_FLOAT64
    many.lanes = many.half = PORTABLE_LANES
    many.run = PORTABLE_RUN
    # A block of keys (and one of values) stays in an L1 cache of 32 KiB beside the score tile. Merging chunks takes as
    # long as 5 keys or so.
    many.blocking = cattn_blocking(2 * PORTABLE_RUN, PORTABLE_RUN // 4, 0, 25600, 5, 100, PY_SSIZE_T_MAX)
    many.scores = <cattn_kernel>scores[real]
    many.exponentials = <cattn_kernel>exponentials[real]
    many.values = <cattn_kernel>values[real]
    many.store = <cattn_kernel>store[real]

    few.lanes = few.half = CATTN_FEW_ROWS
    few.run = PY_SSIZE_T_MAX   # calls begin with a block
    # Long streams, of which one stays in L2; and partial results, one a chunk, of less than 1% of the keys' and values'
    # bytes.
    few.blocking = cattn_blocking(CATTN_MAX_KEYS, 64, 64, 262144, 8, 64, 2048)
    few.scores = <cattn_kernel>few_scores[real]
    few.exponentials = <cattn_kernel>few_exponentials[real]
    few.values = <cattn_kernel>few_values[real]
    few.store = <cattn_kernel>few_store[real]

    many.itemsize = few.itemsize = sizeof(real)
    many.type = few.type = type
    many.reads = few.reads = 1u << type
    many.rounds_weights = few.rounds_weights = many.scales_late = few.scales_late = False
    many.interleaves = few.interleaves = 1
    many.load = few.load = <cattn_kernel>load[real]
    many.reset = few.reset = <cattn_kernel>reset[real]
    many.mark_attended = few.mark_attended = <cattn_kernel>mark_attended[real]
    many.merge = few.merge = <cattn_kernel>merge[real]
    many.logsumexp = few.logsumexp = <cattn_kernel>logsumexp[real]


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
