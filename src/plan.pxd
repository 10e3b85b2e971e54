# Problem → Plan: how each number of rows is computed, in blocks of which size, and what the kernels read where it
# lies. A pure function of the problem, the kernel table and what is known of the processor. The number of threads
# decides only how many tiles share a task and whether splits of the keys are tasks, which changes no bit.
#
# The bits of a row depend only on its entry's number of rows, the kernel table, the head size and the type, because
# nothing else changes the order of its operations. Blocks, chunks and splits are cut at multiples from key 0.

from caller cimport Caller, is_stopped
from convert cimport in_place, item_size
from machine cimport Machine
from problem cimport (
    CATTN_DONE, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_STOPPED, CATTN_UNLIMITED, cattn_array, cattn_problem, cattn_status,
    cattn_type)
from rows cimport count_entries, entry_key_length, entry_query_length, set_storage, Storage
from scales cimport folds_columns
from sizes cimport count_pieces, round_up, times
from tiles.tiles cimport (
    CATTN_BY_HALVES, CATTN_FEW, CATTN_FEW_ROWS, CATTN_MANY, cattn_blocking, cattn_kernels, cattn_table)
from work cimport TASK_LEAST, work_of

cdef enum:
    LARGEST_TASK = 16      # query tiles that share a block of keys
    TILES_BYTES = 524288   # of the tiles of a task with all their outputs: with the rest a workspace stays below 1 MiB
    WANTED_TASKS = 32      # enough for several threads to end at about the same time
    TASKS_PER_THREAD = 4   # and for more of them
    LEAST_SPLIT = 2048     # keys of a split of many rows, rounded up to whole chunks
    PARTIALS_SHARE = 100   # partial results take at most this part of the bytes of keys and values,
    PARTIALS_BYTES = 1048576   # or so many bytes a thread if that is more

# What a call is for: the output, or scores and weights after this step.
cdef enum:
    STAGE_SCORES
    STAGE_SOFTCAPPED
    STAGE_BIASED
    STAGE_WEIGHTS
    STAGE_OUTPUT


# How rows that share their keys are computed: many at a time, or few.
cdef struct Strategy:
    const cattn_kernels *kernels
    Py_ssize_t key_block, chunk, split   # keys
    Py_ssize_t tiles_per_task
    bint splits_keys                 # if there are several splits, each is a task, which leaves a partial result
    bint prefetches                  # keys, values, queries and outputs: they come from beyond L2, unforeseen
    Storage key, value
    bint query_in_place
    bint folds_columns, folds_value_columns   # the scales of int8 columns go into the queries, and into the output


cdef struct Plan:
    int stage
    const cattn_table *table
    cattn_type arithmetic
    Py_ssize_t itemsize                  # of that type
    Py_ssize_t entries                   # of the batch
    Py_ssize_t group                     # query heads that share a key head
    Py_ssize_t partial_row_bytes         # of a row's partial result: row_max, two sums and the output
    Strategy many, few
    bint has_many, has_few
    bint heads_inside                    # tasks of the same rows follow each other, head by head
    bint head_fits_l2                    # a head's keys and values, mask and bias, which then stay from task to task
    bint out_in_place, mask_in_place, bias_in_place


# What is computed by many rows at a time.
cdef struct ManyRows:
    Py_ssize_t rows, tiles               # of all key heads
    Py_ssize_t keys                      # of the entry that has most


cdef inline const Strategy *strategy_of(const Plan *plan, Py_ssize_t rows) noexcept nogil:
    """Return the strategy for so many rows that share their keys."""
    return &plan.few if rows <= CATTN_FEW_ROWS and plan.stage == STAGE_OUTPUT else &plan.many


cdef inline double bytes_beside(const cattn_array *array, const cattn_problem *problem,
                                bint of_all_heads) noexcept nogil:
    """Return how many bytes of a mask or a bias one head reads: 0 if there is none, or if `of_all_heads` asks only for
    one that all heads share and each head has its own."""
    if array.data == NULL or of_all_heads and array.head != 0:
        return 0
    return <double>problem.key_length * (1 if array.row == 0 else problem.query_length) * item_size(array.type)


cdef inline void open_strategy(Strategy *strategy, const cattn_kernels *kernels) noexcept nogil:
    """Start a strategy that nothing is computed by yet."""
    strategy.kernels = kernels
    strategy.key_block = strategy.chunk = strategy.split = 0
    strategy.tiles_per_task = 1
    strategy.splits_keys = False
    strategy.prefetches = False
    strategy.key.type = strategy.value.type = kernels.type
    strategy.key.gather = strategy.value.gather = NULL
    strategy.key.listed = strategy.value.listed = False
    strategy.query_in_place = True
    strategy.folds_columns = strategy.folds_value_columns = False


cdef inline void set_strategy(Strategy *strategy, const cattn_problem *problem, Py_ssize_t depth) noexcept nogil:
    """Set what depends on the kernels: block, chunk, split, storage."""
    cdef const cattn_blocking *blocking = &strategy.kernels.blocking
    cdef Py_ssize_t block = blocking.most, bytes = depth * strategy.kernels.itemsize
    if blocking.step == CATTN_BY_HALVES:
        while block > blocking.least and block * bytes > blocking.bytes:
            block //= 2
    elif block * bytes > blocking.bytes:
        block = max(blocking.least, blocking.bytes // bytes // blocking.step * blocking.step)
    strategy.key_block = block
    strategy.chunk = min(blocking.most_chunk, max(blocking.least_chunk, blocking.chunk_blocks * block))
    # With few rows, a chunk takes so long that it is a split.
    strategy.split = strategy.chunk if strategy.kernels.layout == CATTN_FEW else round_up(LEAST_SPLIT, strategy.chunk)
    strategy.query_in_place = in_place(&problem.query, strategy.kernels.type, problem.batch_ndim)
    set_storage(&strategy.key, &problem.key, strategy.kernels, False, problem.batch_ndim)
    if problem.value.data != NULL:
        set_storage(&strategy.value, &problem.value, strategy.kernels, strategy.kernels.interleaves > 1,
                    problem.batch_ndim)
        strategy.folds_value_columns = folds_columns(&problem.value_scale, &strategy.value, problem.block_table != NULL)
    strategy.folds_columns = folds_columns(&problem.key_scale, &strategy.key, problem.block_table != NULL)
    strategy.query_in_place = strategy.query_in_place and not strategy.folds_columns


cdef inline cattn_status count_rows(Plan *plan, const cattn_problem *problem, const Caller *caller,
                                    ManyRows *many) noexcept nogil:
    """Find out which strategies the entries take, and what is computed by many rows."""
    cdef Py_ssize_t entry, rows, lanes = plan.many.kernels.lanes
    plan.has_many = plan.stage != STAGE_OUTPUT
    plan.has_few = False
    many.rows = many.tiles = many.keys = 0
    for entry in range(plan.entries if problem.query_indptr != NULL else min(<Py_ssize_t>1, plan.entries)):
        if is_stopped(caller, entry):
            return CATTN_STOPPED
        rows = entry_query_length(problem, entry) * plan.group
        if strategy_of(plan, rows).kernels.layout == CATTN_FEW:
            plan.has_few = True
        else:
            plan.has_many = True
            many.rows += rows
            many.tiles += (rows + lanes - 1) // lanes
            many.keys = max(many.keys, entry_key_length(problem, entry))
    rows = times(plan.entries if problem.query_indptr == NULL else 1, problem.key_heads)
    many.rows = times(many.rows, rows)
    many.tiles = times(many.tiles, rows)
    return CATTN_DONE


cdef inline bint gains_by_splits(const Plan *plan, const ManyRows *many, Py_ssize_t threads,
                                 double bytes) noexcept nogil:
    """Return whether splits of the keys are tasks: without them threads would have nothing to do, and partial results
    take little memory beside `bytes` of keys and values."""
    return (plan.stage == STAGE_OUTPUT and threads > 1 and many.tiles < TASKS_PER_THREAD * threads
            and <double>many.rows * count_pieces(many.keys, plan.many.split) * plan.partial_row_bytes
            <= max(bytes / PARTIALS_SHARE, <double>PARTIALS_BYTES * threads))


cdef inline void fit_caches(Plan *plan, const cattn_problem *problem, const Machine *machine, const ManyRows *many,
                            Py_ssize_t threads) noexcept nogil:
    """Set what depends on the caches: whether splits are tasks, how many tiles of many rows share a block of keys,
    which task follows which, and what is asked for ahead. The tiles of a task lie in L2, beside a block of keys and one
    of values."""
    cdef Py_ssize_t lanes = plan.many.kernels.lanes, wanted = WANTED_TASKS, tiles = many.tiles, largest, outputs
    cdef Py_ssize_t spans
    cdef Py_ssize_t tile_bytes = lanes * plan.itemsize * max(problem.head_size + problem.value_size, <Py_ssize_t>1)
    cdef double bytes_of_head, bytes_of_all
    cdef bint foreseen
    # A chunk has an output beside that of its split, which has carries. A row with several splits has as much again.
    outputs = lanes * plan.itemsize * problem.value_size * (4 if problem.key_length > plan.many.split else 2)
    largest = min(machine.l2_bytes // 2 // tile_bytes, <Py_ssize_t>TILES_BYTES // (tile_bytes + outputs))
    if threads * TASKS_PER_THREAD > wanted:
        wanted = max(wanted, <Py_ssize_t>min(<double>threads * TASKS_PER_THREAD, work_of(problem) / TASK_LEAST))
    bytes_of_head = <double>problem.key_length * (problem.head_size + problem.value_size) * item_size(problem.key.type)
    # For packed sequences, key_length is the total.
    bytes_of_all = bytes_of_head * problem.key_heads * (plan.entries if problem.key_indptr == NULL else 1)
    plan.many.splits_keys = gains_by_splits(plan, many, threads, bytes_of_all)
    if plan.many.splits_keys:
        tiles = times(tiles, count_pieces(many.keys, plan.many.split))
    plan.many.tiles_per_task = max(<Py_ssize_t>1, min(<Py_ssize_t>LARGEST_TASK, largest,
                                                      (tiles + wanted - 1) // wanted))
    spans = count_pieces(problem.query_length * plan.group, lanes * plan.many.tiles_per_task)
    # The heads of the same rows follow each other if they share a mask or a bias that is larger than what their tasks
    # read of keys and values. They also do so under a causal mask if there are so many threads that one never does two
    # tasks of a head: the last rows of all heads, which see most keys, then come first.
    plan.heads_inside = (bytes_beside(&problem.mask, problem, True) + bytes_beside(&problem.bias, problem, True)
                         > bytes_of_head * spans or problem.window_right != CATTN_UNLIMITED and 1 < spans <= threads)
    plan.head_fits_l2 = (bytes_of_head + bytes_beside(&problem.mask, problem, False)
                         + bytes_beside(&problem.bias, problem, False) <= machine.l2_bytes // 2)
    # No processor foresees the page that a block is gathered from next.
    foreseen = machine.prefetches_rows and (problem.block_table == NULL or plan.many.key.listed)
    plan.many.prefetches = plan.stage == STAGE_OUTPUT and not foreseen and bytes_of_all > machine.l2_bytes // 2


cdef inline void open_plan(Plan *plan, const cattn_problem *problem, const Machine *machine, int stage) noexcept nogil:
    """Set what every call has, one of gradients too: sizes, and which modifiers are read where they lie."""
    plan.stage = stage
    plan.table = &machine.table
    plan.arithmetic = CATTN_FLOAT64 if problem.query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    plan.itemsize = item_size(plan.arithmetic)
    plan.group = problem.query_heads // problem.key_heads if problem.key_heads > 0 else 0
    plan.entries = count_entries(problem)
    plan.mask_in_place = problem.mask.data == NULL or problem.mask.column == 1
    plan.bias_in_place = problem.bias.data == NULL or in_place(&problem.bias, plan.arithmetic, problem.batch_ndim)


cdef inline cattn_status make_plan(Plan *plan, const cattn_problem *problem, const Machine *machine, int stage,
                                   Py_ssize_t threads, const Caller *caller) noexcept nogil:
    """Decide how a problem is computed by at most so many threads. The caller may stop the loop over packed
    sequences."""
    cdef Py_ssize_t depth = max(problem.head_size, problem.value_size, <Py_ssize_t>1)
    cdef const cattn_kernels *kernels
    cdef ManyRows many
    cdef cattn_status status
    cdef bint one_type
    open_plan(plan, problem, machine, stage)
    plan.partial_row_bytes = (3 + problem.value_size) * plan.itemsize
    # Scores and weights that are asked for are not rounded.
    one_type = stage == STAGE_OUTPUT and problem.key.type == problem.query.type
    kernels = &machine.table.kernels[<int>problem.query.type if one_type else <int>plan.arithmetic][0]
    open_strategy(&plan.many, &kernels[CATTN_MANY])
    open_strategy(&plan.few, &kernels[CATTN_FEW])
    plan.few.splits_keys = threads > 1
    status = count_rows(plan, problem, caller, &many)
    if status != CATTN_DONE:
        return status
    plan.heads_inside = False
    if plan.has_many:
        set_strategy(&plan.many, problem, depth)
        fit_caches(plan, problem, machine, &many, threads)
    if plan.has_few or not plan.has_many:
        set_strategy(&plan.few, problem, depth)
    plan.out_in_place = in_place(&problem.out, plan.arithmetic, problem.batch_ndim)
    return CATTN_DONE
