# What a table says of the portable kernels of one type. The file is included behind the kernels.

from problem cimport CATTN_FLOAT32, CATTN_FLOAT64
from tiles.tiles cimport (
    CATTN_BY_HALVES, CATTN_FEW, CATTN_FEW_ROWS, CATTN_MANY, CATTN_MAX_KEYS, PY_SSIZE_T_MAX, cattn_blocking,
    cattn_kernels)


cdef inline void fill_kernels(cattn_kernels *many, cattn_kernels *few) noexcept nogil:
    """Fill in the kernels of `real`."""
    many.layout = CATTN_MANY
    many.lanes = many.half = PORTABLE_LANES
    many.run = PORTABLE_RUN
    # A block of keys (and one of values) stays in an L1 cache of 32 KiB beside the score tile. Merging chunks takes as
    # long as 5 keys or so.
    many.blocking = cattn_blocking(
        most=2 * PORTABLE_RUN, least=PORTABLE_RUN // 4, step=CATTN_BY_HALVES, bytes=25600, chunk_blocks=5,
        least_chunk=100, most_chunk=PY_SSIZE_T_MAX)

    few.layout = CATTN_FEW
    few.lanes = few.half = CATTN_FEW_ROWS
    few.run = PY_SSIZE_T_MAX   # calls begin with a block
    # Streams are long, and one of them stays in L2. A chunk has more blocks than with many rows, because each chunk is a
    # task. Its partial result then takes little memory beside its keys and values, and chunks still are enough for many
    # threads. The other tables keep these numbers.
    few.blocking = cattn_blocking(
        most=CATTN_MAX_KEYS, least=64, step=64, bytes=262144, chunk_blocks=8, least_chunk=64, most_chunk=2048)

    many.itemsize = few.itemsize = sizeof(real)
    many.type = few.type = CATTN_FLOAT32 if sizeof(real) == sizeof(float) else CATTN_FLOAT64
    many.reads = few.reads = 1u << many.type
    many.takes_lists = few.takes_lists = 0
    many.rounds_weights = few.rounds_weights = many.scales_late = few.scales_late = False
    many.interleaves = few.interleaves = 1
    many.load = few.load = load
    many.reset = few.reset = reset
    many.mark_attended = few.mark_attended = mark_attended
    many.merge = few.merge = merge
    many.logsumexp = few.logsumexp = logsumexp
    many.scores = scores
    many.maxima = maxima
    few.maxima = NULL
    many.differentiate = differentiate
    many.query_gradients = query_gradients
    many.join = join
    many.dots = dots
    few.differentiate = NULL
    few.query_gradients = NULL
    few.join = NULL
    few.dots = NULL
    few.scores = few_scores
    many.exponentials = exponentials
    few.exponentials = few_exponentials
    many.values = values
    few.values = few_values
    many.store = store
    few.store = few_store
