# GradientProblem → GradientPlan: blocks, splits, tasks, and where the buffers of a worker begin.
#
# The bits of a gradient depend on the sizes, the type and the kernel table. Keys are cut at fixed places from key 0, so
# that padding behind them changes nothing, and rows at fixed places from the first row of each head. Whether the splits
# of the keys are tasks decides only who computes them.

from convert cimport in_place
from gradients.gradient_problem cimport GradientProblem
from machine cimport Machine
from plan cimport STAGE_OUTPUT, TASKS_PER_THREAD, open_plan, Plan
from problem cimport (
    CATTN_DONE, CATTN_LARGEST_COUNT, CATTN_TOO_MANY_TASKS, cattn_array, cattn_problem, cattn_status)
from rows cimport gathered_bytes, set_storage, Storage
from sizes cimport reserve, round_up, times
from tiles.tiles cimport CATTN_GRADIENT_KEYS, CATTN_MANY, CATTN_MAX_LANES, cattn_kernels
from worker cimport Call
from workspace cimport Workspace

cdef enum:
    # Keys of a piece. The gradients of queries are added up piece by piece. A split is one piece, or several.
    PIECE = 256
    # The first splits are one piece each. Then each doubling of the number of keys has so many splits. A head of 2,048
    # keys therefore has 8 tasks, and partial sums grow with the logarithm of the length.
    EVEN_SPLITS = 8
    SPLITS_PER_DOUBLING = 4
    ROWS = 60                # of a block of queries, which are rows of one head: some whole runs of `values`
    ROWS_BYTES = 98304       # of a block of queries and one of gradients of outputs
    KEYS_BYTES = 131072      # of a block of keys and one of values
    MOST_TILES = 64          # of a block of keys: with the fewest lanes
    # Blocks of rows of a chunk. Sums over rows are joined chunk by chunk, the first of them without a carry.
    CHUNK = 8
    PLAIN_CHUNKS = 8
    PLAIN_SHARES = 8         # entries and heads whose gradients of a bias are added up without a carry
    TASK_ROWS = 480          # of a task that joins partial sums


# How the gradient of a bias is added up.
cdef enum BiasGradient:
    BIAS_NONE
    BIAS_OWN        # each number belongs to one score
    BIAS_SHARED     # entries or heads share it
    BIAS_SUMMED     # queries or keys share it


cdef struct GradientPlan:
    Plan base                    # as far as score_mod.pxd reads it
    Workspace space
    const cattn_kernels *kernels
    Storage query, key, value, out, grad_out
    Py_ssize_t rows, row_blocks  # of a block, and blocks of a head
    Py_ssize_t head_rows         # of all heads of a group
    Py_ssize_t keys              # of a block
    Py_ssize_t chunks            # of the rows of a group
    # Heads whose bias has one gradient are members of one owner. Otherwise each head owns itself.
    Py_ssize_t owners, members
    Py_ssize_t splits
    bint splits_are_tasks
    BiasGradient bias
    Py_ssize_t bias_heads, bias_rows, bias_keys   # of a summed gradient of one owner: keys, or splits of them
    bint sums_in_place           # a shared gradient of a bias is added up where it will stay
    bint has_carries             # of the sums of a bias's gradient
    Py_ssize_t tasks
    Py_ssize_t join_blocks, join_tasks_of_head    # blocks of rows whose partial sums a task joins, and such tasks
    # Where the buffers of a worker begin.
    Py_ssize_t lse, delta, wild, in_piece, in_split, in_total
    Py_ssize_t total, total_carry, split, split_carry, piece
    Py_ssize_t packed_keys, packed_values, packed_keys_stride, packed_values_stride
    Py_ssize_t key_sums, value_sums, key_totals, value_totals, key_carries, value_carries
    Py_ssize_t key_rows, clean_keys, value_rows, query_rows, clean_queries, grad_out_rows, clean_grad_out
    Py_ssize_t weights, scores, gradients, bias_gradients, attended, slopes
    Py_ssize_t ones, block_max, block_output, dots, row


# The common part comes first, so that a pointer to this is a pointer to that.
cdef struct GradientCall:
    Call call
    GradientProblem problem
    GradientPlan plan
    char *slots                  # the partial sums: [head][split][row][column]
    unsigned char *touched       # [head][split][block of rows]: whether they hold anything
    double *slope_parts          # [entry][query head][split]
    char *bias_totals            # [owner][...], and behind all of them the carries
    char *bias_carries


cdef inline Py_ssize_t split_start(Py_ssize_t number) noexcept nogil:
    """Return the first key of a split."""
    cdef Py_ssize_t doubling = (number - EVEN_SPLITS) // SPLITS_PER_DOUBLING
    if number <= EVEN_SPLITS:
        return number * PIECE
    return ((<Py_ssize_t>EVEN_SPLITS * PIECE << doubling)
            + (number - EVEN_SPLITS) % SPLITS_PER_DOUBLING * (EVEN_SPLITS * PIECE // SPLITS_PER_DOUBLING << doubling))


cdef inline Py_ssize_t count_key_splits(Py_ssize_t keys) noexcept nogil:
    """Return how many splits so many keys have: at least one."""
    cdef Py_ssize_t number = 1
    while split_start(number) < keys:
        number += 1
    return number


cdef inline bint is_shared(const GradientProblem *problem, int axis) noexcept nogil:
    """Return whether the entries along an axis of the batch share one gradient of the bias."""
    return problem.bias.data != NULL and problem.bias.batch[axis] == 0


cdef inline bint heads_share(const GradientProblem *problem) noexcept nogil:
    """Return whether all heads of an entry share one gradient of the bias."""
    return problem.bias.data != NULL and problem.bias.head == 0


cdef inline void find_member(const GradientProblem *problem, Py_ssize_t owner, Py_ssize_t member, Py_ssize_t *entry,
                             Py_ssize_t *key_head) noexcept nogil:
    """Find the batch entry and the key head of a member of an owner. Both are counted along their own axes."""
    cdef const cattn_problem *forward = &problem.forward
    cdef Py_ssize_t step = 1, digit, size
    cdef int axis
    if heads_share(problem):
        key_head[0] = member % forward.key_heads
        member //= forward.key_heads
    else:
        key_head[0] = owner % forward.key_heads
        owner //= forward.key_heads
    entry[0] = 0
    for axis in range(forward.batch_ndim - 1, -1, -1):
        size = forward.batch_shape[axis]
        if is_shared(problem, axis):
            digit = member % size
            member //= size
        else:
            digit = owner % size
            owner //= size
        entry[0] += digit * step
        step *= size


cdef inline void set_owners(GradientPlan *plan, const GradientProblem *problem) noexcept nogil:
    """Count the owners and the members of each, and decide how a bias's gradient is added up."""
    cdef const cattn_problem *forward = &problem.forward
    cdef const cattn_array *bias = &problem.bias
    cdef bint shares_rows = bias.row == 0 and forward.query_length > 1
    cdef bint shares_keys = bias.column == 0 and forward.key_length > 1
    cdef Py_ssize_t shares
    cdef int axis
    plan.owners = 1 if heads_share(problem) else forward.key_heads
    plan.members = forward.key_heads if heads_share(problem) else 1
    for axis in range(forward.batch_ndim):
        if is_shared(problem, axis):
            plan.members = times(plan.members, forward.batch_shape[axis])
        else:
            plan.owners = times(plan.owners, forward.batch_shape[axis])
    if plan.members == 0 or forward.key_heads == 0:
        plan.owners = 0
    plan.bias = BIAS_NONE
    if bias.data != NULL:
        plan.bias_heads = 1 if heads_share(problem) else plan.base.group
        plan.bias_rows = 1 if shares_rows else forward.query_length
        plan.bias_keys = plan.splits if shares_keys else forward.key_length
        if shares_rows or shares_keys:
            plan.bias = BIAS_SUMMED
        elif plan.members > 1 or heads_share(problem) and forward.query_heads > 1:
            plan.bias = BIAS_SHARED
            plan.sums_in_place = in_place(bias, plan.base.arithmetic, forward.batch_ndim)
        else:
            plan.bias = BIAS_OWN
        shares = times(plan.members, plan.base.group if heads_share(problem) else 1)
        plan.has_carries = plan.bias == BIAS_SUMMED or plan.bias == BIAS_SHARED and shares > PLAIN_SHARES


cdef inline void place_buffers(GradientPlan *plan, const cattn_problem *forward) noexcept nogil:
    """Place the buffers of a worker one behind the other."""
    cdef Py_ssize_t bytes = 0, item = plan.base.itemsize, lanes = plan.kernels.lanes, vector = CATTN_MAX_LANES * item
    cdef Py_ssize_t depth = forward.head_size, width = forward.value_size, widest = max(depth, width)
    cdef Py_ssize_t rows = plan.rows, blocks = plan.base.group * plan.row_blocks, tiles = plan.keys // lanes
    cdef Py_ssize_t sums = times(times(plan.head_rows, depth), item)
    cdef bint in_turn = not plan.splits_are_tasks and plan.splits > 1, is_long = plan.splits > EVEN_SPLITS
    # One for each row, or block of rows, of a group.
    plan.lse = reserve(&bytes, plan.head_rows * item)
    plan.delta = reserve(&bytes, plan.head_rows * item)
    plan.wild = reserve(&bytes, blocks)
    plan.in_piece = reserve(&bytes, blocks)
    plan.in_split = reserve(&bytes, blocks)
    plan.in_total = reserve(&bytes, blocks)
    plan.slopes = reserve(&bytes, 2 * plan.base.group * sizeof(double))
    plan.total = reserve(&bytes, sums if in_turn else rows * depth * item)
    plan.total_carry = reserve(&bytes, sums if in_turn and is_long else rows * depth * item)
    plan.split = reserve(&bytes, sums if in_turn and is_long else 0)
    plan.split_carry = reserve(&bytes, sums if is_long else 0)
    plan.piece = reserve(&bytes, sums if plan.keys < PIECE and forward.key_length > plan.keys else rows * depth * item)
    # A block of keys.
    plan.packed_keys_stride = round_up(round_up(depth, 16) * lanes * item, 64)
    plan.packed_values_stride = round_up(round_up(width, 16) * lanes * item, 64)
    plan.packed_keys = reserve(&bytes, tiles * plan.packed_keys_stride)
    plan.packed_values = reserve(&bytes, tiles * plan.packed_values_stride)
    plan.key_sums = reserve(&bytes, plan.keys * depth * item)
    plan.value_sums = reserve(&bytes, plan.keys * width * item)
    plan.key_totals = reserve(&bytes, plan.keys * depth * item if plan.chunks > 1 else 0)
    plan.value_totals = reserve(&bytes, plan.keys * width * item if plan.chunks > 1 else 0)
    plan.key_carries = reserve(&bytes, plan.keys * depth * item if plan.chunks > PLAIN_CHUNKS else 0)
    plan.value_carries = reserve(&bytes, plan.keys * width * item if plan.chunks > PLAIN_CHUNKS else 0)
    plan.key_rows = reserve(&bytes, gathered_bytes(&plan.key, plan.keys, depth))
    plan.clean_keys = reserve(&bytes, plan.keys * depth * item)
    plan.value_rows = reserve(&bytes, gathered_bytes(&plan.value, lanes, width))
    # A block of rows.
    plan.query_rows = reserve(&bytes, gathered_bytes(&plan.query, rows, depth))
    plan.clean_queries = reserve(&bytes, rows * depth * item)
    plan.grad_out_rows = reserve(&bytes, gathered_bytes(&plan.grad_out, rows, width))
    plan.clean_grad_out = reserve(&bytes, rows * width * item)   # or rows of out
    plan.weights = reserve(&bytes, rows * lanes * item)
    plan.scores = reserve(&bytes, rows * lanes * item)
    plan.gradients = reserve(&bytes, rows * CATTN_GRADIENT_KEYS * item)
    plan.bias_gradients = reserve(&bytes, 0 if plan.bias == BIAS_NONE else rows * lanes * item)
    plan.attended = reserve(&bytes, rows * CATTN_GRADIENT_KEYS)
    plan.space.bias = reserve(&bytes, 0 if plan.base.bias_in_place else rows * lanes * item)
    plan.space.mask = reserve(&bytes, 0 if plan.base.mask_in_place else rows * lanes)
    plan.ones = reserve(&bytes, vector)
    plan.block_max = reserve(&bytes, vector)
    plan.block_output = reserve(&bytes, lanes * widest * item)
    plan.dots = reserve(&bytes, PIECE * item)
    plan.row = reserve(&bytes, lanes * widest * item)
    plan.space.bytes = bytes


cdef inline cattn_status plan_gradients(GradientPlan *plan, const GradientProblem *problem, const Machine *machine,
                                        Py_ssize_t threads) noexcept nogil:
    """Decide how gradients are computed by at most so many threads. The plan is zeroed before."""
    cdef const cattn_problem *forward = &problem.forward
    cdef Plan *base = &plan.base
    cdef int batch_ndim = forward.batch_ndim
    cdef Py_ssize_t bytes, run
    open_plan(base, forward, machine, STAGE_OUTPUT)
    plan.kernels = &machine.table.kernels[<int>base.arithmetic][<int>CATTN_MANY]
    set_storage(&plan.query, &forward.query, plan.kernels, False, batch_ndim)
    set_storage(&plan.key, &forward.key, plan.kernels, False, batch_ndim)
    set_storage(&plan.value, &forward.value, plan.kernels, False, batch_ndim)
    set_storage(&plan.out, &forward.out, plan.kernels, False, batch_ndim)
    set_storage(&plan.grad_out, &problem.grad_out, plan.kernels, False, batch_ndim)

    bytes = (forward.head_size + forward.value_size) * base.itemsize
    run = min(plan.kernels.run, <Py_ssize_t>ROWS)
    plan.rows = ROWS // run * run
    while plan.rows > run and plan.rows * bytes > ROWS_BYTES:
        plan.rows -= run
    plan.row_blocks = (forward.query_length + plan.rows - 1) // plan.rows
    plan.head_rows = times(base.group, forward.query_length)
    plan.chunks = (base.group * plan.row_blocks + CHUNK - 1) // CHUNK
    plan.keys = PIECE
    while plan.keys > CATTN_GRADIENT_KEYS and plan.keys * bytes > KEYS_BYTES:
        plan.keys //= 2

    plan.splits = count_key_splits(forward.key_length)
    set_owners(plan, problem)
    plan.splits_are_tasks = threads > 1 and plan.splits > 1 and plan.owners < TASKS_PER_THREAD * threads
    plan.tasks = times(plan.owners, plan.splits if plan.splits_are_tasks else 1)
    plan.join_blocks = max(<Py_ssize_t>1, TASK_ROWS // plan.rows)
    plan.join_tasks_of_head = (plan.row_blocks + plan.join_blocks - 1) // plan.join_blocks * base.group
    place_buffers(plan, forward)
    return CATTN_TOO_MANY_TASKS if plan.tasks > CATTN_LARGEST_COUNT else CATTN_DONE
