# Plan → Workspace: the size and the address of every buffer that a worker computes in. Sizes stand in make_workspace
# alone. Tiles get the addresses of theirs by place_tile. MaxSim has a workspace of its own, in maxsim.pxd.

from plan cimport Plan, Strategy
from problem cimport cattn_array, cattn_problem
from rows cimport gathered_bytes, paged_bytes, Storage
from sizes cimport reserve, round_up
from tile cimport Tile
from tiles.tiles cimport CATTN_ALIGNMENT, CATTN_FEW_ROWS, CATTN_MAX_LANES, cattn_row_tile, cattn_softmax, cattn_total


# One for each tile of a task.
cdef struct Buffer:
    Py_ssize_t at        # bytes from the start of the workspace
    Py_ssize_t stride    # bytes from that of one tile to that of the next


cdef struct SoftmaxBuffers:
    Buffer row_max, row_sum, lse_sum, output


# Those of a softmax that others are joined to.
cdef struct TotalBuffers:
    SoftmaxBuffers softmax
    Buffer row_sum_carry, lse_sum_carry, output_carry


cdef struct Workspace:
    Buffer queries
    TotalBuffers total, split                     # without carries, `split` is the only softmax
    SoftmaxBuffers chunk
    bint has_splits, has_chunks                   # a row has several of them, so that `total` or `chunk` exists
    # Where those begin that all tiles use in turn.
    Py_ssize_t tiles, row_scale, block_max, divisor, scores, attn_bias, attended, block_output
    Py_ssize_t key, value, key_scale, value_scale, row, bias, mask   # what cannot be read where it lies
    Py_ssize_t bytes


cdef inline void repeat(Buffer *buffer, Py_ssize_t *bytes, Py_ssize_t tiles, Py_ssize_t size) noexcept nogil:
    """Place a buffer of `size` bytes for each of so many tiles."""
    buffer.stride = round_up(size, CATTN_ALIGNMENT)
    buffer.at = reserve(bytes, tiles * buffer.stride)


cdef inline void repeat_softmax(SoftmaxBuffers *buffers, Py_ssize_t *bytes, Py_ssize_t tiles, Py_ssize_t vector,
                                Py_ssize_t output) noexcept nogil:
    """Place the buffers of a softmax for each of so many tiles."""
    repeat(&buffers.row_max, bytes, tiles, vector)
    repeat(&buffers.row_sum, bytes, tiles, vector)
    repeat(&buffers.lse_sum, bytes, tiles, vector)
    repeat(&buffers.output, bytes, tiles, output)


cdef inline void repeat_carries(TotalBuffers *buffers, Py_ssize_t *bytes, Py_ssize_t tiles, Py_ssize_t vector,
                                Py_ssize_t output) noexcept nogil:
    """Place the carries of a total for each of so many tiles."""
    repeat(&buffers.row_sum_carry, bytes, tiles, vector)
    repeat(&buffers.lse_sum_carry, bytes, tiles, vector)
    repeat(&buffers.output_carry, bytes, tiles, output)


cdef inline Py_ssize_t query_room(const cattn_problem *problem) noexcept nogil:
    """Return the room for a row of a tile's queries, in numbers. A row may end in a whole vector of 64 bytes, or in a
    whole row of a register tile, which takes pairs of columns."""
    return round_up(problem.head_size, 16)


cdef inline Py_ssize_t block_bytes(const cattn_problem *problem, const Strategy *strategy, const Storage *storage,
                                   Py_ssize_t size) noexcept nogil:
    """Return the room for a block of keys or values, of `size` numbers each, that is not read where it lies."""
    if problem.block_table != NULL:
        return paged_bytes(storage, problem.page_size, strategy.key_block, size)
    return gathered_bytes(storage, strategy.key_block, size)


cdef inline Py_ssize_t scale_bytes(const cattn_array *scale, Py_ssize_t block, Py_ssize_t columns) noexcept nogil:
    """Return the room for the scales of a block of keys or of all columns, if there are any."""
    return 0 if scale.data == NULL else max(block, columns) * sizeof(float)


cdef inline void make_workspace(Workspace *space, const Plan *plan, const cattn_problem *problem) noexcept nogil:
    """Place every buffer of a worker, one behind the other."""
    cdef const Strategy *many = &plan.many
    cdef const Strategy *few = &plan.few
    cdef Py_ssize_t bytes = 0, item = plan.itemsize, vector = CATTN_MAX_LANES * item, lanes = many.kernels.lanes
    cdef Py_ssize_t tiles = many.tiles_per_task, block = max(many.key_block, few.key_block)
    cdef Py_ssize_t rows = max(lanes if plan.has_many else 0, <Py_ssize_t>CATTN_FEW_ROWS if plan.has_few else 0)
    cdef Py_ssize_t output = rows * problem.value_size * item
    space.has_chunks = plan.has_many and problem.key_length > many.chunk
    space.has_splits = (plan.has_many and problem.key_length > many.split
                        or plan.has_few and problem.key_length > few.split)
    space.tiles = reserve(&bytes, tiles * sizeof(Tile))
    space.row_scale = reserve(&bytes, vector)
    space.block_max = reserve(&bytes, vector)
    space.divisor = reserve(&bytes, vector)
    repeat(&space.queries, &bytes, tiles, rows * query_room(problem) * item)
    repeat_softmax(&space.split.softmax, &bytes, tiles, vector, output)
    if space.has_chunks:
        repeat_carries(&space.split, &bytes, tiles, vector, output)
        repeat_softmax(&space.chunk, &bytes, tiles, vector, output)
    if space.has_splits:
        repeat_softmax(&space.total.softmax, &bytes, tiles, vector, output)
        repeat_carries(&space.total, &bytes, tiles, vector, output)
    space.block_output = reserve(&bytes, 0 if many.key_block <= many.kernels.run else lanes * problem.value_size * item)
    space.scores = reserve(&bytes, block * rows * item)
    space.attn_bias = reserve(&bytes, min(many.key_block, problem.key_length) * lanes * item)
    space.attended = reserve(&bytes, block * rows)
    space.key = reserve(&bytes, max(block_bytes(problem, many, &many.key, problem.head_size),
                                    block_bytes(problem, few, &few.key, problem.head_size)))
    space.value = reserve(&bytes, max(block_bytes(problem, many, &many.value, problem.value_size),
                                      block_bytes(problem, few, &few.value, problem.value_size)))
    space.key_scale = reserve(&bytes, scale_bytes(&problem.key_scale, block, problem.head_size))
    space.value_scale = reserve(&bytes, scale_bytes(&problem.value_scale, block, problem.value_size))
    space.row = reserve(&bytes, 0 if many.query_in_place and few.query_in_place and plan.out_in_place else
          rows * max(problem.head_size, problem.value_size, block) * item)
    space.bias = reserve(&bytes, 0 if plan.bias_in_place else rows * block * item)
    space.mask = reserve(&bytes, 0 if plan.mask_in_place else rows * block)
    space.bytes = bytes


cdef inline char *buffer_at(const Buffer *buffer, char *memory, Py_ssize_t tile) noexcept nogil:
    """Return the address of a tile's buffer in the memory of a worker."""
    return memory + buffer.at + tile * buffer.stride


cdef inline void place_softmax(cattn_softmax *softmax, const SoftmaxBuffers *buffers, char *memory, Py_ssize_t tile,
                               bint rounds_weights) noexcept nogil:
    """Point a softmax to a tile's buffers. Unless weights are rounded, both sums are one."""
    softmax.row_max = buffer_at(&buffers.row_max, memory, tile)
    softmax.row_sum = buffer_at(&buffers.row_sum, memory, tile)
    softmax.lse_sum = buffer_at(&buffers.lse_sum, memory, tile) if rounds_weights else softmax.row_sum
    softmax.output = buffer_at(&buffers.output, memory, tile)


cdef inline void place_total(cattn_total *total, const TotalBuffers *buffers, char *memory, Py_ssize_t tile,
                             bint rounds_weights) noexcept nogil:
    """Point a total to a tile's buffers."""
    place_softmax(&total.softmax, &buffers.softmax, memory, tile, rounds_weights)
    total.row_sum_carry = buffer_at(&buffers.row_sum_carry, memory, tile)
    total.lse_sum_carry = buffer_at(&buffers.lse_sum_carry, memory, tile)
    total.output_carry = buffer_at(&buffers.output_carry, memory, tile)


cdef inline void place_tile(Tile *tile, const Workspace *space, char *memory, Py_ssize_t number) noexcept nogil:
    """Point tile number `number` of a task to its buffers."""
    cdef cattn_row_tile *arrays = &tile.arrays
    cdef bint rounds = tile.kernels.rounds_weights
    arrays.queries = buffer_at(&space.queries, memory, number)
    arrays.row_scale = memory + space.row_scale
    arrays.block_max = memory + space.block_max
    arrays.block_output = memory + space.block_output
    arrays.scores = memory + space.scores
    arrays.attn_bias = memory + space.attn_bias
    arrays.attended = <unsigned char *>memory + space.attended
    place_softmax(&tile.split.softmax, &space.split.softmax, memory, number, rounds)
    if space.has_chunks:
        place_total(&tile.split, &space.split, memory, number, rounds)
        place_softmax(&tile.chunk, &space.chunk, memory, number, rounds)
    if space.has_splits:
        place_total(&tile.total, &space.total, memory, number, rounds)
