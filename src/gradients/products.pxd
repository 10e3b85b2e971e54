# The products of a block of queries with a block of keys. Keys lie in the lanes and rows are broadcast, so that nothing
# is transposed:
#
#   for each tile of keys and the rows that see some of it
#     scores = scale · K·qᵀ, and V·dOᵀ                the kernel `scores`, where rows take the place of keys
#     weights P = exp(score - lse), gradients dS      the kernel `differentiate`
#     dV += Pᵀ·dO, dK += dSᵀ·Q                        the kernel `values`, where rows take the place of values
#   dQ += dS·K, for CATTN_GRADIENT_KEYS keys          the kernel `query_gradients`

from libc.string cimport memset

from convert cimport item_size
from gradients.bias cimport add_bias_gradients, carries_of
from gradients.exact cimport add_wild_keys, add_wild_rows, mark_scores
from gradients.head cimport (
    buffer, Head, open_row_block, read_head_rows, rows_of_block, WILD_GRAD_OUT, WILD_QUERY)
from gradients.keys cimport clean_rows, KeyBlock, open_arrays
from gradients.gradient_plan cimport BIAS_NONE, BIAS_OWN, GradientPlan
from gradients.queries cimport piece_rows, QuerySums
from gradients.sums cimport add_exactly, real_at
from problem cimport cattn_problem
from rows cimport row_at, Rows
from score_mod cimport Region, set_score_mod
from sweep cimport take_rows
from tile cimport Tile
from tiles.tiles cimport (
    CATTN_GRADIENT_KEYS, CATTN_MAX_LANES, cattn_gradient_tile, cattn_key_block, cattn_prefetch, cattn_row_tile,
    cattn_score_mod)


# A block of queries while it meets keys.
cdef struct RowBlock:
    const Head *head
    Py_ssize_t number            # of all blocks of the group, head by head
    Py_ssize_t owner, split      # whose bias and slopes get gradients
    Tile tile
    cattn_key_block query, grad_out               # as they are,
    cattn_key_block clean_query, clean_grad_out   # and with 0 in the place of what is not finite
    bint is_wild
    cattn_prefetch ahead         # what the next block of queries needs of the bias or the mask
    const void *ahead_rows[3 * CATTN_MAX_LANES]


cdef inline void read_rows(RowBlock *rows) noexcept nogil:
    """Read the queries of a block and the gradients of its outputs."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef const cattn_problem *forward = &head.problem.forward
    cdef Py_ssize_t query_head = rows.number // plan.row_blocks, first = rows.number % plan.row_blocks * plan.rows
    cdef Py_ssize_t count = rows.tile.arrays.rows
    cdef unsigned char wild = head.wild[rows.number]
    read_head_rows(&rows.query, head, &head.heads.query, &plan.query, query_head, first, count, forward.head_size,
                   plan.query_rows)
    rows.clean_query = rows.query
    if wild & WILD_QUERY:
        clean_rows(&rows.clean_query, &rows.query, buffer(head, plan.clean_queries), head)
    if forward.value_size > 0:
        read_head_rows(&rows.grad_out, head, &head.grad_out, &plan.grad_out, query_head, first, count,
                       forward.value_size, plan.grad_out_rows)
        rows.clean_grad_out = rows.grad_out
        if wild & WILD_GRAD_OUT:
            clean_rows(&rows.clean_grad_out, &rows.grad_out, buffer(head, plan.clean_grad_out), head)
    rows.is_wild = wild != 0


cdef inline void find_seen(Region *region, const Tile *tile, Py_ssize_t run) noexcept nogil:
    """Find the rows of a tile that see some of a region's keys. The first one begins a run, so that sums do not depend
    on the other rows."""
    cdef Py_ssize_t first = 0, stop = tile.arrays.rows
    if region.low < tile.inner_low or region.high > tile.inner_high:
        while first < stop and not (tile.start[first] < region.high and tile.stop[first] > region.low):
            first += 1
        while first < stop and not (tile.start[stop - 1] < region.high and tile.stop[stop - 1] > region.low):
            stop -= 1
    first -= first % run
    region.first = first
    region.rows = region.lanes = stop - first


cdef inline void add_ahead(RowBlock *rows, const void *row) noexcept nogil:
    """Add a row to those that the kernels ask for."""
    rows.ahead_rows[rows.ahead.count] = row
    rows.ahead.count += 1


cdef inline void look_ahead(RowBlock *rows, const KeyBlock *keys) noexcept nogil:
    """List what the next block of queries reads of its bias, or else of its mask, and where the gradients of its bias
    are added up. Such rows lie far apart, so that the processor does not foresee them. The kernels ask for them."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef const Rows *beside = &head.heads.bias if head.heads.bias.first != NULL else &head.heads.mask
    cdef Py_ssize_t low = keys.start, high = keys.stop, number = rows.number + 1, query_head, row, first
    rows.ahead.next = rows.ahead.count = 0
    if beside.first == NULL or beside.array.column != item_size(beside.array.type):
        return
    if number == plan.base.group * plan.row_blocks:
        number = 0
        low = keys.stop
        high = min(low + plan.keys, head.heads.key_limit)
    query_head = number // plan.row_blocks
    first = number % plan.row_blocks * plan.rows
    for row in range(first, first + (rows_of_block(head, number % plan.row_blocks) if low < high else 0)):
        add_ahead(rows, row_at(beside, query_head, row))
        if plan.bias == BIAS_OWN or plan.sums_in_place:
            add_ahead(rows, row_at(&head.grad_bias, query_head, row))
        if plan.sums_in_place and plan.has_carries:
            add_ahead(rows, carries_of(head, rows.owner, query_head, row))
    rows.ahead.starts = rows.ahead_rows
    rows.ahead.offset = low * beside.array.column
    rows.ahead.bytes = (high - low) * beside.array.column


cdef inline void meet_tile(RowBlock *rows, KeyBlock *keys, const Region *region, Py_ssize_t number, char *gradients,
                           unsigned char *attended) noexcept nogil:
    """Let a region's rows meet tile number `number` of a block of keys: add their products to the gradients of keys and
    values, and leave the gradients of the scores in `gradients`."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef const cattn_problem *forward = &head.problem.forward
    cdef Py_ssize_t lanes = plan.kernels.lanes, item = plan.base.itemsize
    cdef Py_ssize_t query_head = rows.tile.head[0]
    cdef Py_ssize_t at = query_head * forward.query_length + rows.tile.index[region.first]
    cdef char *key_sums = buffer(head, plan.key_sums) + number * lanes * forward.head_size * item
    cdef char *value_sums = buffer(head, plan.value_sums) + number * lanes * forward.value_size * item
    cdef char *weights = buffer(head, plan.weights)
    cdef double *slopes = <double *>buffer(head, plan.slopes)
    cdef bint is_wild = rows.is_wild or keys.is_wild
    cdef cattn_key_block block
    cdef cattn_row_tile arrays
    cdef cattn_gradient_tile tile
    cdef double slope = 0
    open_arrays(&arrays, head, region.high - region.low)
    arrays.is_new = keys.is_new[number]
    arrays.queries = buffer(head, plan.packed_keys) + number * plan.packed_keys_stride
    take_rows(&block, &rows.query, region.first, region.rows, &rows.ahead)
    plan.kernels.scores(weights, &arrays, &block)
    if forward.value_size > 0:
        arrays.queries = buffer(head, plan.packed_values) + number * plan.packed_values_stride
        take_rows(&block, &rows.grad_out, region.first, region.rows, &rows.ahead)
        plan.kernels.scores(gradients, &arrays, &block)
    else:
        memset(gradients, 0, region.rows * lanes * item)
    tile.rows = region.rows
    tile.keys = region.high - region.low
    tile.score_mod = rows.tile.arrays.score_mod
    tile.lse = head.lse + at * item
    tile.delta = head.delta + at * item
    tile.weights = weights
    tile.gradients = gradients
    tile.bias_gradients = NULL if plan.bias == BIAS_NONE else buffer(head, plan.bias_gradients)
    tile.slope_gradient = NULL if forward.alibi_slopes.data == NULL else &slope
    if is_wild:
        mark_scores(attended, &tile, lanes, head.is_float)
    plan.kernels.differentiate(&tile)
    if forward.value_size > 0:
        arrays.scores = weights
        take_rows(&block, &rows.clean_grad_out, region.first, region.rows, &rows.ahead)
        plan.kernels.values(value_sums, &arrays, &block)
    arrays.scores = gradients
    take_rows(&block, &rows.clean_query, region.first, region.rows, &rows.ahead)
    plan.kernels.values(key_sums, &arrays, &block)
    keys.is_new[number] = False
    if is_wild and forward.value_size > 0:
        take_rows(&block, &rows.grad_out, region.first, region.rows, NULL)
        add_wild_rows(head, value_sums, weights, True, &block, attended, tile.keys)
    if is_wild:
        take_rows(&block, &rows.query, region.first, region.rows, NULL)
        add_wild_rows(head, key_sums, gradients, False, &block, attended, tile.keys)
    if plan.bias != BIAS_NONE:
        add_bias_gradients(head, rows.owner, rows.split, &rows.tile, region, <const char *>tile.bias_gradients)
    if tile.slope_gradient != NULL:
        add_exactly(&slopes[2 * query_head], &slopes[2 * query_head + 1],
                    -real_at(<const char *>&slope, 0, head.is_float))


cdef inline void meet_keys(RowBlock *rows, KeyBlock *keys, QuerySums *sums, Region *region) noexcept nogil:
    """Let a region meet its keys, CATTN_GRADIENT_KEYS of them at most, tile by tile."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t lanes = plan.kernels.lanes, item = plan.base.itemsize, size = head.problem.forward.head_size
    cdef Py_ssize_t low = region.low, high = region.high, number = 0, pitch = plan.rows * lanes, t
    cdef char *piece = piece_rows(sums, rows.number)
    cdef unsigned char *attended = <unsigned char *>buffer(head, plan.attended)
    cdef char *gradients
    cdef bint met = False
    cdef cattn_score_mod mod
    cdef cattn_key_block block
    while low + number * lanes < high:
        region.low = low + number * lanes
        region.high = min(high, region.low + lanes)
        gradients = buffer(head, plan.gradients) + number * pitch * item
        if set_score_mod(&mod, head.worker, &head.heads, &rows.tile, region):
            meet_tile(rows, keys, region, (region.low - keys.start) // lanes, gradients,
                      attended + number * plan.rows * lanes)
            met = True
        else:
            memset(gradients, 0, region.rows * lanes * item)
            memset(attended + number * plan.rows * lanes, 0, region.rows * lanes)
            if plan.bias == BIAS_OWN:
                memset(buffer(head, plan.bias_gradients), 0, region.rows * lanes * item)
                add_bias_gradients(head, rows.owner, rows.split, &rows.tile, region, buffer(head, plan.bias_gradients))
        number += 1
    if not met:
        return
    if not sums.in_piece[rows.number] and region.rows < rows.tile.arrays.rows:
        memset(piece, 0, rows.tile.arrays.rows * size * item)
        sums.in_piece[rows.number] = True
    piece += region.first * size * item
    take_rows(&block, &keys.rows, low - keys.start, high - low, NULL)
    plan.kernels.query_gradients(piece, region.rows, buffer(head, plan.gradients), pitch, &block,
                                 not sums.in_piece[rows.number])
    sums.in_piece[rows.number] = True
    for t in range(number if keys.is_wild else 0):
        take_rows(&block, &keys.given, low - keys.start + t * lanes, min(lanes, high - low - t * lanes), NULL)
        add_wild_keys(head, piece, buffer(head, plan.gradients) + t * pitch * item, &block,
                      attended + t * plan.rows * lanes, region.rows)


cdef inline void meet_block(RowBlock *rows, KeyBlock *keys, QuerySums *sums, Py_ssize_t number) noexcept nogil:
    """Let block number `number` of a group's queries meet a block of keys."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef Tile *tile = &rows.tile
    cdef Py_ssize_t low
    cdef Region region
    open_row_block(tile, head, number // plan.row_blocks, number % plan.row_blocks)
    if tile.arrays.rows == 0 or max(tile.low, keys.start) >= min(tile.high, keys.stop):
        return
    rows.number = number
    read_rows(rows)
    look_ahead(rows, keys)
    low = keys.start
    while low < keys.stop:
        region.low = low
        region.high = min(keys.stop, low + CATTN_GRADIENT_KEYS)
        find_seen(&region, tile, plan.kernels.run)
        if region.rows > 0:
            meet_keys(rows, keys, sums, &region)
        low += CATTN_GRADIENT_KEYS
