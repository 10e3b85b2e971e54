# Problem → Plan: strategy, blocks, tasks, workspace. A pure function of the problem, the kernel table and what is known
# of the processor, never of the number of threads.
#
# What changes the order of operations within a row depends on little, so that its bits do: the strategy on the entry's
# own number of rows, the blocks and the chunk on table, head size and type. All are cut at multiples from key 0.

from convert cimport gather_rows, gather_rows_function, in_place, interleave_rows, item_size
from problem cimport (
    CATTN_DONE, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_LARGEST_COUNT, CATTN_STOPPED, CATTN_TOO_MANY_TASKS, cattn_array,
    cattn_problem, cattn_status, cattn_type)
from system.system cimport cattn_change_float_mode
from tiles.tiles cimport (
    CATTN_ALIGNMENT, CATTN_FEW, CATTN_FEW_ROWS, CATTN_HALVES, CATTN_MANY, CATTN_MAX_LANES, PY_SSIZE_T_MAX,
    cattn_blocking, cattn_kernels, cattn_row_tile, cattn_table, cattn_total)

cdef enum:
    POLL_ENTRIES = 32768   # between two looks at signals: 1 to 3 ms
    LARGEST_TASK = 16      # query tiles that share a block of keys
    TILES_BYTES = 524288   # of the tiles of a task with their totals: with the rest a workspace stays below 1 MiB
    WANTED_TASKS = 32      # enough for many threads to end at about the same time
    # Multiply-adds below which waking a worker costs more than it brings: about 50 µs.
    THREADS_WORK = 2097152
    # Where fewer rows than these share a key, reading it takes longer than its multiply-adds, as long as those of so many.
    READING_ROWS = 3

# What a call is for: the output, or scores and weights after this step.
cdef enum:
    STAGE_SCORES
    STAGE_SOFTCAPPED
    STAGE_BIASED
    STAGE_WEIGHTS
    STAGE_OUTPUT


# What this process computes with.
cdef struct Machine:
    cattn_table table
    Py_ssize_t l2_bytes        # of one core
    bint prefetches_rows       # by itself
    Py_ssize_t most_threads    # of a call


# Whoever called, who may want to stop: asked now and then, by the thread that called. NULL: nobody.
cdef struct Caller:
    bint (*wants_to_stop)(void *context) noexcept nogil
    void *context
    unsigned int float_mode


# How kernels get keys, or values.
cdef struct Storage:
    cattn_type type                  # as they get it
    gather_rows_function prepare     # how a block becomes that, in the workspace; NULL: it is read where it lies


# How rows that share their keys are computed: many at a time, or few.
cdef struct Strategy:
    const cattn_kernels *kernels
    Py_ssize_t key_block, chunk      # keys
    Py_ssize_t tiles_per_task
    bint splits_keys                 # each chunk is a task, which leaves a partial result
    bint prefetches                  # keys, values, queries and outputs: they come from beyond L2, unforeseen
    Storage key, value
    bint query_in_place


cdef struct Plan:
    int stage
    const cattn_table *table
    cattn_type arithmetic
    Py_ssize_t itemsize                  # of that type
    Py_ssize_t entries                   # of the batch
    Py_ssize_t group                     # query heads that share a key head
    Strategy many, few
    bint has_many, has_few
    bint heads_inside                    # tasks of the same rows follow each other, head by head
    bint head_fits_l2                    # its keys and values, which then stay from task to task
    bint out_in_place, mask_in_place, bias_in_place
    Py_ssize_t tasks
    Py_ssize_t partial_rows, head_partial_rows   # of all partial results, and at most of those that are merged into one
    Py_ssize_t partial_row_bytes
    Py_ssize_t tasks_of_entry            # all have as many, unless packed
    # Where each array of a worker's workspace begins, and its size.
    Py_ssize_t tiles_at, queries_at, output_at, block_output_at, scores_at, attn_bias_at, vectors_at, totals_at
    Py_ssize_t key_at, value_at, row_at, bias_at, mask_at, attended_at, workspace_bytes


cdef struct Task:
    Py_ssize_t number
    Py_ssize_t entry, key_head
    const Strategy *strategy
    Py_ssize_t first_row, rows       # of the rows that share this entry's key head: row i · group + g
    Py_ssize_t key_start, key_stop
    Py_ssize_t partial               # the first row of the partial results of its rows; -1: it writes the output itself


# The rows that are computed side by side, and their running softmax.
cdef struct Tile:
    cattn_row_tile arrays
    cattn_total total                  # of the chunks before
    const cattn_kernels *kernels
    bint is_new[CATTN_HALVES]          # the output of a half holds nothing yet
    Py_ssize_t half                    # rows of a half
    Py_ssize_t low, high               # some row may attend to keys low <= j < high,
    Py_ssize_t half_low[CATTN_HALVES]  # some row of a half to these,
    Py_ssize_t half_high[CATTN_HALVES]
    Py_ssize_t inner_low, inner_high   # every row may attend to keys inner_low <= j < inner_high
    Py_ssize_t head[CATTN_MAX_LANES]   # query head and
    Py_ssize_t index[CATTN_MAX_LANES]  # query of each row,
    Py_ssize_t start[CATTN_MAX_LANES]  # the keys it may attend to,
    Py_ssize_t stop[CATTN_MAX_LANES]
    double position[CATTN_MAX_LANES]   # and where it stands among them


# The first task of a packed sequence and the first row of its partial results, counted over all of them.
cdef struct Start:
    Py_ssize_t task, partial


cdef inline Py_ssize_t entry_query_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    if problem.query_indptr != NULL:
        return <Py_ssize_t>(problem.query_indptr[entry + 1] - problem.query_indptr[entry])
    return problem.query_length


cdef inline Py_ssize_t entry_key_length(const cattn_problem *problem, Py_ssize_t entry) noexcept nogil:
    if problem.key_indptr != NULL:
        return <Py_ssize_t>(problem.key_indptr[entry + 1] - problem.key_indptr[entry])
    return problem.key_length


cdef inline Py_ssize_t count_chunks(Py_ssize_t keys, Py_ssize_t chunk) noexcept nogil:
    return 1 if keys <= chunk else (keys + chunk - 1) // chunk   # without a division in short calls


cdef inline bint has_chunks(const Plan *plan, Py_ssize_t keys) noexcept nogil:
    """Whether so many keys are more than one chunk, with many rows or with few."""
    return (plan.has_many and keys > plan.many.chunk) or (plan.has_few and keys > plan.few.chunk)


cdef inline const Strategy *strategy_of(const Plan *plan, Py_ssize_t rows) noexcept nogil:
    """For so many rows that share their keys."""
    return &plan.few if rows <= CATTN_FEW_ROWS and plan.stage == STAGE_OUTPUT else &plan.many


cdef inline Py_ssize_t times(Py_ssize_t one, Py_ssize_t other) noexcept nogil:
    """The product of two counts; beyond 2^61, which no memory holds, 2^61: three of these can be added up."""
    cdef Py_ssize_t most = PY_SSIZE_T_MAX // 4 + 1
    if one | other < 1 << 30:   # no division
        return one * other
    return most if other != 0 and one > most // other else one * other


cdef inline Py_ssize_t divided(Py_ssize_t number, Py_ssize_t divisor) noexcept nogil:
    """Rounded down. What short calls divide costs them no division."""
    if number < divisor:
        return 0
    return number if divisor == 1 else number // divisor


cdef inline Py_ssize_t round_up(Py_ssize_t number, Py_ssize_t multiple) noexcept nogil:
    return (number + multiple - 1) // multiple * multiple


cdef inline Py_ssize_t reserve(Py_ssize_t *bytes, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at = bytes[0]
    bytes[0] += round_up(size, CATTN_ALIGNMENT)
    return at


cdef inline double bytes_beside(const cattn_array *array, const cattn_problem *problem,
                                bint of_all_heads) noexcept nogil:
    """What one head reads of a mask or a bias, if it is there (and, of_all_heads, the same for all heads)."""
    if array.data == NULL or of_all_heads and array.head != 0:
        return 0
    return <double>problem.key_length * (1 if array.row == 0 else problem.query_length) * item_size(array.type)


cdef inline bint ask(const Caller *caller) noexcept nogil:
    """Return whether the caller wants to stop, and let it find that out in its own floating-point mode."""
    cdef unsigned int mode = cattn_change_float_mode(caller.float_mode)
    cdef bint answer = caller.wants_to_stop(caller.context)
    cattn_change_float_mode(mode)
    return answer


cdef inline bint is_stopped(const Caller *caller, Py_ssize_t entry) noexcept nogil:
    """Asked once in so many entries, of which packed sequences may have millions."""
    return (entry % POLL_ENTRIES == POLL_ENTRIES - 1 and caller.wants_to_stop != NULL
            and ask(caller))


cdef inline void set_storage(Storage *storage, const cattn_array *array, const cattn_kernels *kernels, bint interleaves,
                             int batch_ndim) noexcept nogil:
    storage.type = kernels.type
    storage.prepare = interleave_rows if interleaves else gather_rows
    if not interleaves and kernels.reads >> array.type & 1 and in_place(array, array.type, batch_ndim):
        storage.type = array.type
        storage.prepare = NULL


cdef inline void open_strategy(Strategy *strategy, const cattn_kernels *kernels, bint splits_keys) noexcept nogil:
    strategy.kernels = kernels
    strategy.key_block = strategy.chunk = 0
    strategy.tiles_per_task = 1
    strategy.splits_keys = splits_keys
    strategy.prefetches = False
    strategy.key.prepare = strategy.value.prepare = NULL
    strategy.query_in_place = True


cdef inline void set_strategy(Strategy *strategy, const cattn_problem *problem, Py_ssize_t depth) noexcept nogil:
    """Set what depends on the kernels: blocks, chunk, storage."""
    cdef const cattn_blocking *blocking = &strategy.kernels.blocking
    cdef Py_ssize_t block = blocking.most, bytes = depth * strategy.kernels.itemsize
    if blocking.step > 0 and block * bytes > blocking.bytes:
        block = max(blocking.least, blocking.bytes // bytes // blocking.step * blocking.step)
    elif blocking.step == 0:
        while block > blocking.least and block * bytes > blocking.bytes:
            block //= 2
    strategy.key_block = block
    strategy.chunk = min(blocking.most_chunk, max(blocking.least_chunk, blocking.chunk_blocks * block))
    strategy.query_in_place = in_place(&problem.query, strategy.kernels.type, problem.batch_ndim)
    set_storage(&strategy.key, &problem.key, strategy.kernels, False, problem.batch_ndim)
    if problem.value.data != NULL:
        set_storage(&strategy.value, &problem.value, strategy.kernels, strategy.kernels.interleaves > 1,
                    problem.batch_ndim)


cdef inline cattn_status count_rows(Plan *plan, const cattn_problem *problem, const Caller *caller,
                                    Py_ssize_t *tiles) noexcept nogil:
    """Which strategies the entries take, and the tiles of many rows of them all."""
    cdef Py_ssize_t entry, rows, lanes = plan.many.kernels.lanes
    plan.has_many = plan.stage != STAGE_OUTPUT
    plan.has_few = False
    tiles[0] = 0
    for entry in range(plan.entries if problem.query_indptr != NULL else min(<Py_ssize_t>1, plan.entries)):
        if is_stopped(caller, entry):
            return CATTN_STOPPED
        rows = entry_query_length(problem, entry) * plan.group
        if strategy_of(plan, rows).kernels.layout == CATTN_FEW:
            plan.has_few = True
        else:
            plan.has_many = True
            tiles[0] += (rows + lanes - 1) // lanes
    if problem.query_indptr == NULL:
        tiles[0] = times(tiles[0], plan.entries)
    tiles[0] = times(tiles[0], problem.key_heads)
    return CATTN_DONE


cdef inline void share_blocks(Plan *plan, const cattn_problem *problem, const Machine *machine,
                              Py_ssize_t tiles) noexcept nogil:
    """What many rows share: the tiles of a task live in L2 together with a block of keys and one of values."""
    cdef Py_ssize_t lanes = plan.many.kernels.lanes, largest, tiles_of_head
    cdef Py_ssize_t tile_bytes = lanes * plan.itemsize * max(problem.head_size + problem.value_size, <Py_ssize_t>1)
    cdef double bytes_of_head
    largest = min(machine.l2_bytes // 2 // tile_bytes,
                  <Py_ssize_t>TILES_BYTES // (tile_bytes + 2 * lanes * plan.itemsize * problem.value_size))
    plan.many.tiles_per_task = max(<Py_ssize_t>1, min(<Py_ssize_t>LARGEST_TASK, largest,
                                                      (tiles + WANTED_TASKS - 1) // WANTED_TASKS))
    bytes_of_head = <double>problem.key_length * (problem.head_size + problem.value_size) * item_size(problem.key.type)
    tiles_of_head = (problem.query_length * plan.group + lanes - 1) // lanes
    # Where a mask or a bias that all heads share is larger than what their tasks read of keys and values.
    plan.heads_inside = (bytes_beside(&problem.mask, problem, True) + bytes_beside(&problem.bias, problem, True)
                         > bytes_of_head * ((tiles_of_head + plan.many.tiles_per_task - 1) // plan.many.tiles_per_task))
    plan.head_fits_l2 = (bytes_of_head + bytes_beside(&problem.mask, problem, False)
                         + bytes_beside(&problem.bias, problem, False) <= machine.l2_bytes // 2)
    # Of packed sequences, key_length is the total.
    plan.many.prefetches = not machine.prefetches_rows and bytes_of_head * problem.key_heads \
        * (plan.entries if problem.key_indptr == NULL else 1) > machine.l2_bytes // 2


cdef inline Py_ssize_t prepared_bytes(const Strategy *strategy, const Storage *storage) noexcept nogil:
    """Of a block, for each column."""
    return 0 if storage.prepare == NULL else strategy.key_block * item_size(storage.type)


cdef inline Py_ssize_t query_room(const cattn_problem *problem) noexcept nogil:
    """Return the room for a row of a tile's queries, in numbers. A row may end in a whole vector of 64 bytes, or in a whole
    row of a register tile, which takes pairs of columns."""
    return round_up(problem.head_size, 16)


cdef inline void lay_out_workspace(Plan *plan, const cattn_problem *problem) noexcept nogil:
    cdef const Strategy *many = &plan.many
    cdef Py_ssize_t bytes = 0, item = plan.itemsize, lanes = many.kernels.lanes, tile_count, tile_rows, block, key_block
    key_block = many.key_block
    block = max(key_block, plan.few.key_block)
    tile_rows = max(lanes if plan.has_many else 0, <Py_ssize_t>CATTN_FEW_ROWS if plan.has_few else 0)
    tile_count = many.tiles_per_task
    plan.tiles_at = reserve(&bytes, tile_count * sizeof(Tile))
    plan.vectors_at = reserve(&bytes, (3 * tile_count + 3) * CATTN_MAX_LANES * item)
    plan.queries_at = reserve(&bytes, tile_count * tile_rows * query_room(problem) * item)
    plan.output_at = reserve(&bytes, tile_count * tile_rows * problem.value_size * item)
    plan.block_output_at = reserve(&bytes, 0 if key_block <= many.kernels.run else lanes * problem.value_size * item)
    plan.totals_at = reserve(&bytes, 0 if not has_chunks(plan, problem.key_length) else
                             tile_count * (5 * CATTN_MAX_LANES + 2 * tile_rows * problem.value_size) * item)
    plan.scores_at = reserve(&bytes, block * tile_rows * item)
    plan.attn_bias_at = reserve(&bytes, min(key_block, problem.key_length) * lanes * item)
    plan.attended_at = reserve(&bytes, block * tile_rows)
    plan.key_at = reserve(&bytes, problem.head_size
                          * max(prepared_bytes(many, &many.key), prepared_bytes(&plan.few, &plan.few.key)))
    plan.value_at = reserve(&bytes, problem.value_size
                            * max(prepared_bytes(many, &many.value), prepared_bytes(&plan.few, &plan.few.value)))
    plan.row_at = reserve(&bytes, 0 if many.query_in_place and plan.few.query_in_place and plan.out_in_place else
                          tile_rows * max(problem.head_size, problem.value_size, block) * item)
    plan.bias_at = reserve(&bytes, 0 if plan.bias_in_place else tile_rows * block * item)
    plan.mask_at = reserve(&bytes, 0 if plan.mask_in_place else tile_rows * block)
    plan.workspace_bytes = bytes
    plan.partial_row_bytes = (3 + problem.value_size) * item


cdef inline Py_ssize_t rows_of_task(const Strategy *strategy) noexcept nogil:
    return strategy.tiles_per_task * strategy.kernels.lanes


cdef inline Py_ssize_t count_row_spans(const Strategy *strategy, Py_ssize_t rows) noexcept nogil:
    """Of the rows of a key head, each a task's."""
    return (rows + rows_of_task(strategy) - 1) // rows_of_task(strategy)


cdef inline Py_ssize_t count_splits(const Strategy *strategy, Py_ssize_t keys) noexcept nogil:
    """Of its keys. More than one leave partial results."""
    return count_chunks(keys, strategy.chunk) if strategy.splits_keys else 1


cdef inline Py_ssize_t rows_of_partial(Py_ssize_t rows) noexcept nogil:
    """Return how many rows a partial result has room for, where so many rows share a key head."""
    return min(rows, <Py_ssize_t>CATTN_FEW_ROWS)


cdef inline cattn_status count_packed(Plan *plan, const cattn_problem *problem, const Caller *caller,
                                      Start *starts) noexcept nogil:
    """The numbers of tasks and of rows of partial results of packed sequences, and where those of each begin, if asked
    to."""
    cdef Py_ssize_t entry, rows, splits, count
    cdef const Strategy *strategy
    plan.tasks = plan.partial_rows = plan.head_partial_rows = 0
    for entry in range(plan.entries):
        if is_stopped(caller, entry):
            return CATTN_STOPPED
        if starts != NULL:
            starts[entry] = Start(plan.tasks, plan.partial_rows)
        rows = entry_query_length(problem, entry) * plan.group
        strategy = strategy_of(plan, rows)
        splits = count_splits(strategy, entry_key_length(problem, entry))
        count = times(times(problem.key_heads, count_row_spans(strategy, rows)), splits)
        plan.tasks += count
        if splits > 1:
            plan.partial_rows += times(count, rows_of_partial(rows))
            plan.head_partial_rows = max(plan.head_partial_rows, splits * rows_of_partial(rows))
        if plan.tasks > CATTN_LARGEST_COUNT:
            break
    return CATTN_DONE


cdef inline cattn_status count_tasks(Plan *plan, const cattn_problem *problem, const Caller *caller) noexcept nogil:
    cdef Py_ssize_t rows = problem.query_length * plan.group, splits
    cdef const Strategy *strategy = strategy_of(plan, rows)
    cdef cattn_status status = CATTN_DONE
    if problem.query_indptr != NULL:
        status = count_packed(plan, problem, caller, NULL)
    else:
        splits = count_splits(strategy, problem.key_length)
        plan.tasks_of_entry = times(times(problem.key_heads, count_row_spans(strategy, rows)), splits)
        plan.tasks = times(plan.entries, plan.tasks_of_entry)
        plan.partial_rows = times(plan.tasks, rows_of_partial(rows)) if splits > 1 else 0
        plan.head_partial_rows = splits * rows_of_partial(rows) if splits > 1 else 0
    return CATTN_TOO_MANY_TASKS if plan.tasks > CATTN_LARGEST_COUNT else status


cdef inline cattn_status make_plan(Plan *plan, const cattn_problem *problem, const Machine *machine, int stage,
                                   const Caller *caller) noexcept nogil:
    cdef Py_ssize_t depth = max(problem.head_size, problem.value_size, <Py_ssize_t>1), tiles
    cdef const cattn_kernels *kernels
    cdef cattn_status status
    cdef bint one_type
    cdef int axis
    plan.stage = stage
    plan.table = &machine.table
    plan.arithmetic = CATTN_FLOAT64 if problem.query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    plan.itemsize = item_size(plan.arithmetic)
    plan.group = problem.query_heads // problem.key_heads if problem.key_heads > 0 else 0
    plan.entries = 1
    for axis in range(problem.batch_ndim):
        plan.entries = times(plan.entries, problem.batch_shape[axis])
    # Scores and weights that are asked for are not rounded.
    one_type = stage == STAGE_OUTPUT and problem.key.type == problem.query.type
    kernels = &machine.table.kernels[<int>problem.query.type if one_type else <int>plan.arithmetic][0]
    open_strategy(&plan.many, &kernels[CATTN_MANY], False)
    open_strategy(&plan.few, &kernels[CATTN_FEW], True)
    status = count_rows(plan, problem, caller, &tiles)
    if status != CATTN_DONE:
        return status
    plan.heads_inside = False
    if plan.has_many:
        set_strategy(&plan.many, problem, depth)
        share_blocks(plan, problem, machine, tiles)
    if plan.has_few or not plan.has_many:
        set_strategy(&plan.few, problem, depth)
    plan.out_in_place = in_place(&problem.out, plan.arithmetic, problem.batch_ndim)
    plan.mask_in_place = problem.mask.data == NULL or problem.mask.column == 1
    plan.bias_in_place = problem.bias.data == NULL or in_place(&problem.bias, plan.arithmetic, problem.batch_ndim)
    lay_out_workspace(plan, problem)
    return count_tasks(plan, problem, caller)


cdef inline double work_of(const Plan *plan, const cattn_problem *problem) noexcept nogil:
    """Multiply-adds, about."""
    return (<double>plan.entries * problem.query_heads * problem.query_length * problem.key_length
            * (problem.head_size + problem.value_size))


cdef inline bint gains_by_threads(const Plan *plan, const cattn_problem *problem) noexcept nogil:
    """Return whether a call takes long enough to wake workers for it."""
    cdef double rows = max(problem.query_length * plan.group, <Py_ssize_t>1)
    return work_of(plan, problem) * max(1.0, READING_ROWS / rows) >= THREADS_WORK


cdef inline void make_task(Task *task, const Plan *plan, const cattn_problem *problem, Py_ssize_t number,
                           Py_ssize_t entry, const Start *start) noexcept nogil:
    """The task of this number, which is one of the entry that starts so.

    The last rows come first: under a causal mask they see the most keys, and what is light is left for the end. Tasks
    of one key head follow each other, so that its keys stay in a cache; but those of the same rows do where the heads
    share what is larger: a mask or a bias.
    """
    cdef Py_ssize_t rows = entry_query_length(problem, entry) * plan.group, keys = entry_key_length(problem, entry)
    cdef const Strategy *strategy = strategy_of(plan, rows)
    cdef Py_ssize_t splits = count_splits(strategy, keys), of_head = count_row_spans(strategy, rows) * splits
    cdef Py_ssize_t rest = number - start.task, of_rows, span, split, row_stop
    task.number = number
    task.entry = entry
    task.strategy = strategy
    if plan.heads_inside:
        of_rows = divided(rest, problem.key_heads)
        task.key_head = rest - of_rows * problem.key_heads
    else:
        task.key_head = divided(rest, of_head)
        of_rows = rest - task.key_head * of_head
    span = divided(of_rows, splits)
    split = of_rows - span * splits
    task.partial = start.partial + (rest - split) * rows_of_partial(rows) if splits > 1 else -1
    row_stop = round_up(rows, strategy.kernels.lanes) - span * rows_of_task(strategy)
    task.first_row = max(<Py_ssize_t>0, row_stop - rows_of_task(strategy))
    task.rows = min(rows, row_stop) - task.first_row
    task.key_start = split * strategy.chunk if splits > 1 else 0
    task.key_stop = min(keys, task.key_start + strategy.chunk) if splits > 1 else keys


cdef inline bint leaves_last_partial(const Task *task, const cattn_problem *problem) noexcept nogil:
    """Return whether the task leaves a partial result and is the last of those with the same rows."""
    return task.partial >= 0 and task.key_stop == entry_key_length(problem, task.entry)


cdef inline Py_ssize_t find_sequence(const Start *starts, const Plan *plan, Py_ssize_t task) noexcept nogil:
    """The packed sequence that a task belongs to: sought from where it would be if all had as many tasks."""
    cdef Py_ssize_t count = plan.entries, step = 1, low, high, middle
    low = min(count - 1, <Py_ssize_t>(<double>task / plan.tasks * count))
    high = low + 1
    while starts[low].task > task:
        high = low
        low = max(<Py_ssize_t>0, low - step)
        step *= 2
    while high < count and starts[high].task <= task:
        low = high
        high = min(count, high + step)
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if starts[middle].task <= task:
            low = middle
        else:
            high = middle
    return low


cdef inline const Task *find_task(Task *task, const Plan *plan, const cattn_problem *problem, const Start *starts,
                                  Py_ssize_t number) noexcept nogil:
    """The task of this number; NULL where there is none. `starts` are those of packed sequences, else NULL."""
    cdef Py_ssize_t entry
    cdef Start start
    if not 0 <= number < plan.tasks:
        return NULL
    if starts == NULL:
        entry = divided(number, plan.tasks_of_entry)
        start.task = entry * plan.tasks_of_entry
        start.partial = start.task * rows_of_partial(problem.query_length * plan.group)
    else:
        entry = find_sequence(starts, plan, number)
        start = starts[entry]
    make_task(task, plan, problem, number, entry, &start)
    return task
