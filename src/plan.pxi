# Problem → Plan: strategy, blocks, tasks, workspace. A pure function of the problem, the kernel table, the size of the
# L2 cache and what the processor foresees, never of the number of threads.
#
# What changes the order of operations within a row depends on little, so that its bits do: the strategy on the entry's
# own number of rows, the blocks and the chunk on table, head size and type. All are cut at multiples from key 0.

# Of one core.
cdef Py_ssize_t L2_BYTES = cattn_l2_bytes()
cdef bint FORESEES_ROWS = cattn_foresees_rows()

cdef enum:
    BLOCK_BYTES = 25600    # of keys (or values) in one block: it stays in an L1 cache of 32 KiB beside the score tile
    # Keys of a block: the largest, or a half, a quarter, ... of it, so that a block has four, two or one of the runs of 20 keys
    # in which the tables sum (portable: 40).
    LARGEST_BLOCK = 80
    SMALLEST_BLOCK = 10
    # With few rows, of keys (then of values) in one block: long streams, and one of them stays in L2. 64 to 512 keys.
    FEW_BYTES = 262144
    FEW_STEP = 64
    LARGEST_FEW = 512
    # Blocks of keys whose sums join one another in a chain: a chunk. Its softmax is merged into that of the chunks before, with
    # compensation. Why chains are short stands at RUN in tiles.inc.
    CHUNK_BLOCKS = 5
    SMALLEST_CHUNK = 100   # keys: merging takes as long as 5 keys or so
    # With few rows chunks are tasks of their own. Of more blocks their partial results, at most 8 rows, are no more than 0.8%
    # of the bytes of their keys and values: a chunk has 512 keys at least.
    FEW_CHUNK_BLOCKS = 8
    LARGEST_CHUNK = 2048   # keys: enough tasks for many threads
    # Heads and values of more columns are huge: a tile of many rows with a block of keys, or its load, would be too long to
    # wait for. They go a slice at a time, which a block of keys shares with its rows in L2, and by few rows, for an output
    # takes memory that takes time to be freed. A slice is a multiple of what any table sums at a time.
    LARGEST_WHOLE = 16384
    SLICE = 2048
    POLL_ENTRIES = 32768   # between two looks at signals: 1 to 3 ms
    LARGEST_TASK = 16      # query tiles that share a block of keys
    TILES_BYTES = 524288   # of the tiles of a task with their totals: with the rest a workspace stays below 1 MiB
    WANTED_TASKS = 32      # enough for many threads to end at about the same time


# The rows that are computed side by side, and their running softmax.
cdef struct Tile:
    void *queries
    void *output
    void *maximum
    void *sum
    cattn_softmax total     # of the chunks before this one, where there are several
    bint blank[CATTN_PARTS]            # the output of a part holds nothing yet
    Py_ssize_t rows                    # of them,
    Py_ssize_t lanes                   # and the lanes they take: those behind the rows are computed and not stored
    Py_ssize_t part                    # rows of a part
    Py_ssize_t low, high               # some row may attend to keys low <= j < high,
    Py_ssize_t part_low[CATTN_PARTS]   # some row of a part to these,
    Py_ssize_t part_high[CATTN_PARTS]
    Py_ssize_t inner_low, inner_high   # every row may attend to keys inner_low <= j < inner_high
    Py_ssize_t head[CATTN_MAX_LANES]   # query head and
    Py_ssize_t index[CATTN_MAX_LANES]  # query of each row,
    Py_ssize_t first[CATTN_MAX_LANES]  # the keys it may attend to,
    Py_ssize_t last[CATTN_MAX_LANES]
    double position[CATTN_MAX_LANES]   # and where it stands among them


cdef struct Plan:
    bint weights_only
    const cattn_tiles *tiles
    const cattn_tiles *float_tiles       # whose loaders and stores know the half types
    cattn_type arithmetic
    Py_ssize_t entries                   # of the batch
    Py_ssize_t group                     # query heads that share a key head
    Py_ssize_t key_block, few_block      # keys, of many and of few rows
    Py_ssize_t chunk, few_chunk
    Py_ssize_t tiles_per_task
    bint huge                            # heads or values are: go through them by slices
    Py_ssize_t columns                   # of queries, keys and values that are in the workspace at a time, if they are
    bint has_many, has_few
    bint heads_share                     # a mask or a bias that is larger than what all parts read of their keys and values
    bint head_stays                      # in L2, from task to task: the keys and values of a head
    bint asks_ahead                      # for keys, values, queries and outputs: they come from beyond L2, unforeseen
    bint query_in_place, key_in_place, value_in_place, out_in_place, mask_in_place, bias_in_place
    bint few_halves                      # few rows read keys and values of a half type where they lie
    Py_ssize_t tasks, partials, partial_bytes
    Py_ssize_t tasks_of_entry            # all have as many, unless packed
    # Where each part of a worker's workspace begins, and its size.
    Py_ssize_t tiles_at, queries_at, output_at, block_at, scores_at, terms_at, vectors_at, totals_at, key_at, value_at, row_at
    Py_ssize_t bias_at, mask_at, attended_at, sums_at, workspace_bytes


cdef struct Task:
    Py_ssize_t number
    Py_ssize_t entry, key_head
    bint few
    Py_ssize_t first_row, rows       # of the rows that share this entry's key head: row i · group + g
    Py_ssize_t first_key, last_key
    Py_ssize_t partial               # the number of its partial result; -1: it writes the output itself


# The first task of a packed sequence and the first partial result, counted over all of them.
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
    return (plan.has_many and keys > plan.chunk) or (plan.has_few and keys > plan.few_chunk)


cdef inline bint goes_few(const Plan *plan, Py_ssize_t rows) noexcept nogil:
    return (rows <= CATTN_FEW_ROWS or plan.huge) and not plan.weights_only


cdef inline Py_ssize_t count_slices(Py_ssize_t size) noexcept nogil:
    return (size + SLICE - 1) // SLICE


cdef inline Py_ssize_t times(Py_ssize_t one, Py_ssize_t other) noexcept nogil:
    """The product of two counts; of those beyond 2^61, which no memory holds, 2^61: three of them can still be added up."""
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


cdef inline double head_sink(const cattn_problem *problem, Py_ssize_t head) noexcept nogil:
    return (<const double *>(problem.sinks.data + head * problem.sinks.head))[0]


cdef double bytes_beside(const cattn_array *array, const cattn_problem *problem, bint shared) noexcept nogil:
    """What one head reads of a mask or a bias, if it is there (and, shared, the same for all heads)."""
    if array.data == NULL or shared and array.head != 0:
        return 0
    return <double>problem.key_length * (1 if array.row == 0 else problem.query_length) * item_size(array.type)


cdef inline int look_for_signals(Py_ssize_t entry) except -1:
    """Once in so many entries, of which packed sequences may have millions."""
    return -1 if entry % POLL_ENTRIES == POLL_ENTRIES - 1 and interrupted() else 0


cdef int make_plan(Plan *plan, const cattn_problem *problem, const cattn_table *table, bint weights_only) except -1:
    cdef Py_ssize_t entry, rows, tiles_total = 0, bytes = 0
    cdef Py_ssize_t item, lanes, depth, block, tile_rows, tile_count, tile_bytes, largest, tiles_of_head
    cdef double bytes_of_head
    cdef int axis
    plan.weights_only = weights_only
    depth = max(problem.head_size, problem.value_size, <Py_ssize_t>1)
    plan.huge = depth > LARGEST_WHOLE
    plan.columns = SLICE if plan.huge else depth
    plan.float_tiles = &table.float32
    plan.arithmetic = CATTN_FLOAT64 if problem.query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    plan.tiles = &table.float64 if plan.arithmetic == CATTN_FLOAT64 else &table.float32
    item = plan.tiles.item
    lanes = plan.tiles.lanes
    plan.group = problem.query_heads // problem.key_heads if problem.key_heads > 0 else 0
    plan.entries = 1
    for axis in range(problem.batch_ndim):
        plan.entries = times(plan.entries, problem.batch_shape[axis])

    plan.has_many = weights_only
    plan.has_few = plan.heads_share = False
    for entry in range(plan.entries if problem.query_indptr != NULL else min(<Py_ssize_t>1, plan.entries)):
        look_for_signals(entry)
        rows = entry_query_length(problem, entry) * plan.group
        if goes_few(plan, rows):
            plan.has_few = True
        else:
            plan.has_many = True
            tiles_total += (rows + lanes - 1) // lanes
    if problem.query_indptr == NULL:
        tiles_total = times(tiles_total, plan.entries)
    tiles_total = times(tiles_total, problem.key_heads)

    plan.key_block = plan.few_block = plan.chunk = plan.few_chunk = 0
    plan.tiles_per_task = 1
    if plan.has_few or not plan.has_many:
        block = FEW_BYTES // (depth * item) // FEW_STEP * FEW_STEP
        plan.few_block = max(<Py_ssize_t>FEW_STEP, min(<Py_ssize_t>LARGEST_FEW, block))
        plan.few_chunk = min(<Py_ssize_t>LARGEST_CHUNK, FEW_CHUNK_BLOCKS * plan.few_block)
    if plan.has_many:
        plan.key_block = LARGEST_BLOCK   # huge heads load the queries anew for each block
        while plan.key_block > SMALLEST_BLOCK and plan.key_block * depth * item > BLOCK_BYTES and not plan.huge:
            plan.key_block //= 2
        plan.chunk = max(<Py_ssize_t>SMALLEST_CHUNK, CHUNK_BLOCKS * plan.key_block)
        # The tiles of a task live in L2 together with a block of keys and one of values.
        tile_bytes = lanes * item * max(problem.head_size + problem.value_size, <Py_ssize_t>1)
        largest = min(L2_BYTES // 2 // tile_bytes,
                      <Py_ssize_t>TILES_BYTES // (tile_bytes + 2 * lanes * item * problem.value_size))
        plan.tiles_per_task = max(<Py_ssize_t>1, min(<Py_ssize_t>LARGEST_TASK, largest,
                                                        (tiles_total + WANTED_TASKS - 1) // WANTED_TASKS))
        bytes_of_head = <double>problem.key_length * (problem.head_size + problem.value_size) * item_size(problem.key.type)
        tiles_of_head = (problem.query_length * plan.group + lanes - 1) // lanes
        plan.heads_share = (bytes_beside(&problem.mask, problem, True) + bytes_beside(&problem.bias, problem, True)
                            > bytes_of_head * ((tiles_of_head + plan.tiles_per_task - 1) // plan.tiles_per_task))
        plan.head_stays = (bytes_of_head + bytes_beside(&problem.mask, problem, False)
                           + bytes_beside(&problem.bias, problem, False) <= L2_BYTES // 2)
        # Of packed sequences, key_length is the total.
        plan.asks_ahead = not FORESEES_ROWS and bytes_of_head * problem.key_heads \
            * (plan.entries if problem.key_indptr == NULL else 1) > L2_BYTES // 2

    plan.query_in_place = in_place(&problem.query, plan.arithmetic, problem.batch_ndim)
    plan.key_in_place = in_place(&problem.key, plan.arithmetic, problem.batch_ndim)
    plan.value_in_place = weights_only or in_place(&problem.value, plan.arithmetic, problem.batch_ndim)
    plan.few_halves = (plan.has_few and plan.tiles.few_halves and problem.key.type in (CATTN_FLOAT16, CATTN_BFLOAT16)
                       and in_place(&problem.key, problem.key.type, problem.batch_ndim)
                       and in_place(&problem.value, problem.value.type, problem.batch_ndim))
    plan.out_in_place = in_place(&problem.out, plan.arithmetic, problem.batch_ndim)
    plan.mask_in_place = problem.mask.data == NULL or problem.mask.column == 1
    plan.bias_in_place = problem.bias.data == NULL or in_place(&problem.bias, plan.arithmetic, problem.batch_ndim)

    tile_rows = max(lanes if plan.has_many else 0, <Py_ssize_t>CATTN_FEW_ROWS if plan.has_few else 0)
    tile_count = plan.tiles_per_task
    block = max(plan.key_block, plan.few_block)
    plan.tiles_at = reserve(&bytes, tile_count * sizeof(Tile))
    plan.vectors_at = reserve(&bytes, (2 * tile_count + 3) * CATTN_MAX_LANES * item)
    plan.queries_at = reserve(&bytes, tile_count * tile_rows * min(problem.head_size, plan.columns) * item)
    plan.output_at = reserve(&bytes, tile_count * tile_rows * problem.value_size * item)
    plan.block_at = reserve(&bytes, 0 if plan.key_block <= plan.tiles.run else lanes * problem.value_size * item)
    plan.totals_at = reserve(&bytes, 0 if not has_chunks(plan, problem.key_length) else
                             tile_count * (3 * CATTN_MAX_LANES + 2 * tile_rows * problem.value_size) * item)
    plan.scores_at = reserve(&bytes, block * tile_rows * item)
    plan.terms_at = reserve(&bytes, min(plan.key_block, problem.key_length) * lanes * item)
    plan.attended_at = reserve(&bytes, block * tile_rows)
    plan.sums_at = reserve(&bytes, block * tile_rows * item if plan.huge else 0)
    plan.key_at = reserve(&bytes, 0 if plan.key_in_place else block * min(problem.head_size, plan.columns) * item)
    plan.value_at = reserve(&bytes, 0 if plan.value_in_place else block * min(problem.value_size, plan.columns) * item)
    plan.row_at = reserve(&bytes, 0 if plan.query_in_place and plan.out_in_place else
                          tile_rows * max(plan.columns, block) * item)
    plan.bias_at = reserve(&bytes, 0 if plan.bias_in_place else tile_rows * block * item)
    plan.mask_at = reserve(&bytes, 0 if plan.mask_in_place else tile_rows * block)
    plan.workspace_bytes = bytes

    plan.partial_bytes = CATTN_FEW_ROWS * (2 + problem.value_size) * item
    return count_tasks(plan, problem)


cdef inline Py_ssize_t count_parts(const Plan *plan, Py_ssize_t rows) noexcept nogil:
    """Of the rows of a key head, each a task's: one where few go that way, but for huge heads."""
    cdef Py_ssize_t span = plan.tiles_per_task * plan.tiles.lanes
    return (rows + CATTN_FEW_ROWS - 1) // CATTN_FEW_ROWS if goes_few(plan, rows) else (rows + span - 1) // span


cdef inline Py_ssize_t count_key_parts(const Plan *plan, Py_ssize_t rows, Py_ssize_t keys) noexcept nogil:
    """Of its keys. More than one leave partial results."""
    return count_chunks(keys, plan.few_chunk) if goes_few(plan, rows) else 1


cdef int count_packed(Plan *plan, const cattn_problem *problem, Start *starts) except -1:
    """The numbers of tasks and of partial results of packed sequences, and where those of each begin, if asked to."""
    cdef Py_ssize_t entry, rows, key_parts, count
    plan.tasks = plan.partials = 0
    for entry in range(plan.entries):
        look_for_signals(entry)
        if starts != NULL:
            starts[entry] = Start(plan.tasks, plan.partials)
        rows = entry_query_length(problem, entry) * plan.group
        key_parts = count_key_parts(plan, rows, entry_key_length(problem, entry))
        count = times(times(problem.key_heads, count_parts(plan, rows)), key_parts)
        plan.tasks += count
        plan.partials += count if key_parts > 1 else 0
        if plan.tasks > CATTN_LARGEST_COUNT:
            break
    return 0


cdef int count_tasks(Plan *plan, const cattn_problem *problem) except -1:
    cdef Py_ssize_t rows = problem.query_length * plan.group, key_parts
    if problem.query_indptr != NULL:
        count_packed(plan, problem, NULL)
    else:
        key_parts = count_key_parts(plan, rows, problem.key_length)
        plan.tasks_of_entry = times(times(problem.key_heads, count_parts(plan, rows)), key_parts)
        plan.tasks = times(plan.entries, plan.tasks_of_entry)
        plan.partials = plan.tasks if key_parts > 1 else 0
    if plan.tasks > CATTN_LARGEST_COUNT:
        raise MemoryError(f"query, key: expected a batch of at most {CATTN_LARGEST_COUNT} tasks, got {plan.tasks}")
    return 0


cdef void make_task(Task *task, const Plan *plan, const cattn_problem *problem, Py_ssize_t number, Py_ssize_t entry,
                    const Start *start) noexcept nogil:
    """The task of this number, which is one of the entry that starts so.

    The last rows come first: under a causal mask they see the most keys, and what is light is left for the end. Tasks of one
    key head follow each other, so that its keys stay in a cache; but those of the same rows do where the heads share what is
    larger: a mask or a bias.
    """
    cdef Py_ssize_t rows = entry_query_length(problem, entry) * plan.group, keys = entry_key_length(problem, entry)
    cdef Py_ssize_t key_parts = count_key_parts(plan, rows, keys), of_head = count_parts(plan, rows) * key_parts
    cdef bint few = goes_few(plan, rows)
    cdef Py_ssize_t span = CATTN_FEW_ROWS if few else plan.tiles_per_task * plan.tiles.lanes
    cdef Py_ssize_t whole = round_up(rows, CATTN_FEW_ROWS) if few else round_up(rows, plan.tiles.lanes)
    cdef Py_ssize_t rest = number - start.task, part, row_part, last_row
    task.number = number
    task.entry = entry
    task.few = few
    task.partial = start.partial + rest if key_parts > 1 else -1
    if plan.heads_share:
        part = divided(rest, problem.key_heads)
        task.key_head = rest - part * problem.key_heads
    else:
        task.key_head = divided(rest, of_head)
        part = rest - task.key_head * of_head
    row_part = divided(part, key_parts)
    last_row = whole - row_part * span
    task.first_row = max(<Py_ssize_t>0, last_row - span)
    task.rows = min(rows, last_row) - task.first_row
    task.first_key = (part - row_part * key_parts) * plan.few_chunk
    task.last_key = min(keys, task.first_key + plan.few_chunk) if few else keys
