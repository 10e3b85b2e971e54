# The loop nests: what one task does. A tile of rows goes over its keys block by block with the online softmax (Milakov
# and Gimelshein 2018; Rabe and Staats 2021), so that no more than one block of scores exists at a time.

cdef struct Block:
    Py_ssize_t start, stop               # its keys
    const char *keys                     # where they and their values lie
    const char *values
    Py_ssize_t key_stride, value_stride


cdef const char *block_rows(const cattn_array *array, const char *first, bint in_place, char *scratch, Py_ssize_t low,
                            Py_ssize_t count, Py_ssize_t start, Py_ssize_t size, const Plan *plan,
                            Py_ssize_t *stride) noexcept nogil:
    """Rows low, low + 1, ... of keys or values, in columns from `start` on: where they lie, or widened and gathered in the
    workspace."""
    first += low * array.row + start * array.column
    if in_place:
        stride[0] = array.row
        return first
    stride[0] = size * plan.tiles.item
    fetch_rows(scratch, plan.arithmetic, array, first, count, size, plan.float_tiles)
    return scratch


cdef const void *score_many(const cattn_tiles *table, void *scores, void *terms, void *block_maximum, const void *queries,
                            Py_ssize_t rows, const cattn_edit *edit, const char *keys, Py_ssize_t stride, Py_ssize_t count,
                            Py_ssize_t size, cattn_ahead *ahead) noexcept nogil:
    """The scores of many rows, and the terms in them if there are any."""
    cdef const void *added = terms if has_terms(edit) else NULL
    if added != NULL:
        table.terms(terms, rows, count, edit)
    if edit.softcap == 0:
        table.scores(scores, block_maximum, queries, added, rows, keys, stride, count, size, ahead)
    else:
        table.scores(scores, block_maximum, queries, NULL, rows, keys, stride, count, size, ahead)
        table.soften(scores, block_maximum, added, rows, count, edit.softcap)
    return added


cdef void select_scores(void *scores, const void *terms, Py_ssize_t count, Py_ssize_t item) noexcept nogil:
    """-infinity for what is masked, which is NaN where the score was not finite."""
    cdef Py_ssize_t i
    for i in range(count if terms != NULL else 0):
        if get_real(terms, i, item) == -INFINITY:
            put_real(scores, i, item, -INFINITY)


cdef bint mark_attended(unsigned char *attended, const void *scores, Py_ssize_t count, Py_ssize_t item) noexcept nogil:
    """Which scores are attended to; whether all are."""
    cdef Py_ssize_t i
    cdef unsigned char every = True
    for i in range(count):
        attended[i] = get_real(scores, i, item) != -INFINITY
        every &= attended[i]
    return every


cdef void add_reals(void *sums, const void *terms, Py_ssize_t count, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        put_real(sums, i, item, get_real(sums, i, item) + get_real(terms, i, item))


cdef void find_maxima(void *maximum, const void *scores, Py_ssize_t rows, Py_ssize_t row_pitch, Py_ssize_t count,
                      Py_ssize_t key_pitch, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t row, j
    cdef double score
    for row in range(rows):
        put_real(maximum, row, item, -INFINITY)
        for j in range(count):
            score = get_real(scores, row * row_pitch + j * key_pitch, item)
            if score > get_real(maximum, row, item):   # a NaN is not
                put_real(maximum, row, item, score)


cdef void score_few(Run *run, int worker, const Entry *entry, Tile *tile, Py_ssize_t low, Py_ssize_t count,
                    char *workspace) noexcept nogil:
    """The scores of few rows with keys low, low + 1, ..., without terms."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef void *scores = workspace + plan.scores_at
    cdef void *sums = workspace + plan.sums_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * table.item
    cdef cattn_type type = problem.key.type if plan.few_halves else plan.arithmetic
    cdef Py_ssize_t start = 0, columns, stride = 0
    cdef const char *keys
    while start < problem.head_size:
        columns = min(problem.head_size - start, plan.columns)
        if plan.huge:
            if stopped(run, worker, tile.rows * count * columns):
                return
            load_queries(tile, problem, plan, entry, start, columns, workspace + plan.row_at, True)
        keys = block_rows(&problem.key, entry.key, plan.few_halves or plan.key_in_place, workspace + plan.key_at, low, count,
                          start, columns, plan, &stride)
        table.few_scores(sums if start > 0 else scores, plan.few_block, block_maximum, tile.queries, tile.rows, keys, stride,
                         count, columns, type)
        if start > 0:
            add_reals(scores, sums, plan.few_block * tile.rows, table.item)
        start += columns
    if plan.huge:
        find_maxima(block_maximum, scores, tile.rows, plan.few_block, count, 1, table.item)


cdef void attend_few_rows(Run *run, int worker, const Entry *entry, Tile *tile, Py_ssize_t low, Py_ssize_t high,
                          char *workspace, bint selecting) noexcept nogil:
    """A tile of few rows and the keys [low, high) of a block."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef void *scores = workspace + plan.scores_at
    cdef void *factor = workspace + plan.vectors_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * table.item
    cdef unsigned char *attended = <unsigned char *>workspace + plan.attended_at
    cdef cattn_type type = problem.value.type if plan.few_halves else plan.arithmetic
    cdef Py_ssize_t pitch = plan.few_block, count = high - low, start = 0, columns, stride = 0
    cdef const char *values
    cdef void *output
    cdef bint edited, visible
    cdef cattn_edit edit
    edited = make_edit(&edit, tile, 0, tile.rows, tile.lanes, problem, plan, entry, low, high, workspace, STAGE_OUTPUT,
                       &visible)
    if not visible:
        return
    score_few(run, worker, entry, tile, low, count, workspace)
    if edited:
        table.few_edit(scores, pitch, block_maximum, tile.rows, count, &edit)
    if selecting:
        mark_attended(attended, scores, pitch * tile.rows, table.item)
    table.few_exponentials(scores, pitch, tile.rows, count, tile.maximum, tile.sum, factor, block_maximum)
    fill_blank(run, worker, tile)
    while start < problem.value_size:
        columns = min(problem.value_size - start, plan.columns)
        if start > 0 and stopped(run, worker, tile.rows * count * columns):
            return
        values = block_rows(&problem.value, entry.value, plan.few_halves or plan.value_in_place, workspace + plan.value_at, low,
                            count, start, columns, plan, &stride)
        output = <char *>tile.output + start * tile.rows * table.item
        if selecting:
            table.few_select_values(output, factor, scores, attended, pitch, tile.rows, values, stride, count, columns, type)
        else:
            table.few_values(output, factor, scores, pitch, tile.rows, values, stride, count, columns, type)
        start += columns


cdef void attend_many_rows(const Run *run, const Entry *entry, Tile *tile, Py_ssize_t first, Py_ssize_t lanes,
                           Py_ssize_t low, Py_ssize_t high, const Block *block, cattn_ahead *ahead, char *workspace,
                           bint selecting) noexcept nogil:
    """The rows in so many lanes of a tile, from lane `first` on, and keys [low, high) of a block."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef Py_ssize_t rows = min(lanes, tile.rows - first), at = first * table.item, part = first // tile.part, count
    cdef void *scores = workspace + plan.scores_at
    cdef void *terms = workspace + plan.terms_at
    cdef void *factor = workspace + plan.vectors_at + at
    cdef void *block_sums = workspace + plan.block_at + at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * table.item + at
    cdef unsigned char *attended = <unsigned char *>workspace + plan.attended_at
    cdef const char *values
    cdef const void *added
    cdef const void *rescale
    cdef bint visible
    cdef cattn_edit edit
    # Runs of sums count from the start of the block, whoever shares the tile.
    low -= (low - block.start) % table.run
    count = high - low
    make_edit(&edit, tile, first, rows, lanes, problem, plan, entry, low, high, workspace, STAGE_OUTPUT, &visible)
    if not visible:
        return
    values = block.values + (low - block.start) * block.value_stride
    added = score_many(table, <char *>scores + at, <char *>terms + at, block_maximum, <char *>tile.queries + at, rows, &edit,
                       block.keys + (low - block.start) * block.key_stride, block.key_stride, count, problem.head_size, ahead)
    if selecting:
        select_scores(scores, terms if added != NULL else NULL, count * table.lanes, table.item)
        mark_attended(attended, scores, count * table.lanes, table.item)
    table.exponentials(<char *>scores + at, rows, count, <char *>tile.maximum + at, <char *>tile.sum + at, factor,
                       block_maximum)
    rescale = NULL if tile.blank[part] else factor
    tile.blank[part] = False
    if lanes > tile.part:
        tile.blank[1] = False
    if selecting:
        table.select_values(<char *>tile.output + at, rescale, <char *>scores + at, attended + first, rows, values,
                            block.value_stride, count, problem.value_size)
    else:
        table.values(<char *>tile.output + at, block_sums, rescale, <char *>scores + at, rows, values, block.value_stride, count,
                     problem.value_size, ahead)


cdef void attend_blocks(Run *run, const Task *task, const Entry *entry, Tile *tiles, Py_ssize_t tile_count,
                        Py_ssize_t first_key, Py_ssize_t last_key, char *workspace, int worker, bint few,
                        bint selecting) noexcept nogil:
    """All blocks of a chunk of keys that some row of the tiles may attend to, each shared by the tiles in turn."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t size = problem.head_size, value_size = problem.value_size
    cdef Py_ssize_t block_keys = plan.few_block if few else plan.key_block
    cdef Py_ssize_t begin = PY_SSIZE_T_MAX, end = 0, last, number, low, high, t, part
    cdef Tile *tile
    cdef Task one, other
    cdef const Task *previous_task = NULL
    cdef const Task *next_task = NULL
    cdef Block block
    cdef cattn_ahead ahead
    cdef const void *rows_ahead[CATTN_MAX_LANES]
    for t in range(tile_count):
        begin = min(begin, tiles[t].low)
        end = max(end, tiles[t].high)
    last = min(end, task.last_key)
    begin = max(begin, first_key)
    end = min(end, last_key)
    if begin >= end:
        return
    if plan.asks_ahead and not few:
        previous_task = find_task(&one, run, task.number - run.threads)
        next_task = find_task(&other, run, task.number + run.threads)
    for number in range((begin - first_key) // block_keys, (end - first_key + block_keys - 1) // block_keys):
        block.start = first_key + number * block_keys
        block.stop = min(block.start + block_keys, end)
        if stopped(run, worker, tile_count * tiles[0].lanes * (block.stop - block.start) * (size + value_size)):
            return
        if few:
            attend_few_rows(run, worker, entry, tiles, block.start, min(block.stop, tiles.high), workspace, selecting)
            continue
        block.keys = block_rows(&problem.key, entry.key, plan.key_in_place, workspace + plan.key_at, block.start,
                                block.stop - block.start, 0, size, plan, &block.key_stride)
        block.values = block_rows(&problem.value, entry.value, plan.value_in_place, workspace + plan.value_at, block.start,
                                  block.stop - block.start, 0, value_size, plan, &block.value_stride)
        for t in range(tile_count):
            tile = &tiles[t]
            if max(block.start, tile.low) >= min(block.stop, tile.high):
                continue
            if block.start <= tile.low and next_task != NULL and plan.asks_ahead:
                prefetch_queries(problem, plan, next_task, t * tile.lanes, tile.lanes)
            if block.stop >= tile.high and plan.out_in_place and plan.asks_ahead:
                prefetch_out(problem, plan, entry, tile)
            prefetch_block(problem, plan, &problem.key, entry.key, size, previous_task, task, next_task, block.stop, last, t,
                           tile_count)
            prefetch_block(problem, plan, &problem.value, entry.value, value_size, previous_task, task, next_task,
                           block.stop, last, t, tile_count)
            if t + 1 < tile_count:
                look_ahead(&ahead, rows_ahead, problem, plan, entry, tile + 1, block.start, block.stop)
            else:
                look_ahead(&ahead, rows_ahead, problem, plan, entry, tiles, block.stop, min(block.stop + block_keys, end))
            if not parts_differ(tile, block.start, block.stop):
                attend_many_rows(run, entry, tile, 0, tile.lanes, max(block.start, tile.low), min(block.stop, tile.high),
                                 &block, &ahead, workspace, selecting)
                continue
            for part in range(CATTN_PARTS):
                low = max(block.start, tile.part_low[part])
                high = min(block.stop, tile.part_high[part])
                if low < high:
                    attend_many_rows(run, entry, tile, part * tile.part, tile.part, low, high, &block, &ahead, workspace,
                                     selecting)


cdef void open_tile(Tile *tile, Run *run, const Task *task, const Entry *entry, Py_ssize_t number, Py_ssize_t lanes,
                    char *workspace, bint few) noexcept nogil:
    """Rows number · lanes, ... of the task: their places, intervals, queries, and an empty softmax."""
    cdef Py_ssize_t first_row = task.first_row + number * lanes
    place_tile(tile, run.plan, run.problem, workspace, number, lanes)
    tile.lanes = lanes
    tile.part = lanes if few else run.plan.tiles.part
    tile.rows = min(lanes, task.first_row + task.rows - first_row)
    find_rows(tile, run.plan, entry, first_row)
    find_intervals(tile, run.problem, entry, task.first_key, task.last_key)
    if not run.plan.huge:
        load_queries(tile, run.problem, run.plan, entry, 0, run.problem.head_size, workspace + run.plan.row_at, few)


cdef inline void swap(void **one, void **other) noexcept nogil:
    cdef void *kept = one[0]
    one[0] = other[0]
    other[0] = kept


cdef void swap_total(Tile *tile) noexcept nogil:
    swap(&tile.maximum, &tile.total.maximum)
    swap(&tile.sum, &tile.total.sum)
    swap(&tile.output, &tile.total.output)


cdef void begin_total(Tile *tile, Py_ssize_t size, Py_ssize_t item) noexcept nogil:
    """The total is what the tile has attended to so far, and nothing is lost."""
    swap_total(tile)
    memset(tile.total.sum_carry, 0, CATTN_MAX_LANES * item)
    memset(tile.total.output_carry, 0, tile.lanes * size * item)


cdef void attend_chunks(Run *run, const Task *task, const Entry *entry, Tile *tiles, Py_ssize_t tile_count,
                        char *workspace, int worker, bint selecting) noexcept nogil:
    """All keys, chunk by chunk; what many rows have attended to is then in the tiles."""
    cdef Py_ssize_t chunk = 0, first_key, t, keys = run.plan.chunk
    cdef Py_ssize_t size = run.problem.value_size, item = run.plan.tiles.item
    cdef Py_ssize_t chunks = count_chunks(task.last_key, keys), first = chunks, last = 1
    cdef cattn_softmax part
    for t in range(tile_count):
        if tiles[t].low < tiles[t].high:
            first = min(first, tiles[t].low // keys)
            last = max(last, count_chunks(tiles[t].high, keys))
    while chunk < last and not run.stopped:   # the first chunk holds the sink, seen or not
        first_key = chunk * keys
        for t in range(tile_count):
            reset_softmax(&tiles[t], run.problem, run.plan, entry, chunk == 0)
        attend_blocks(run, task, entry, tiles, tile_count, first_key, first_key + keys, workspace, worker, False, selecting)
        for t in range(tile_count):
            if chunk > 0 and tiles[t].blank[0] and tiles[t].blank[1]:
                continue
            fill_blank(run, worker, &tiles[t])
            if chunk > 0:
                part = cattn_softmax(tiles[t].maximum, tiles[t].sum, tiles[t].output, NULL, NULL)
                run.plan.tiles.merge(&tiles[t].total, &part, tiles[t].rows, size, selecting)
            elif last > 1:
                begin_total(&tiles[t], size, item)
        chunk = max(chunk + 1, first)
    for t in range(tile_count if last > 1 else 0):
        swap_total(&tiles[t])


cdef void attend_many(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    cdef Py_ssize_t lanes = run.plan.tiles.lanes, t
    cdef Py_ssize_t tile_count = (task.rows + lanes - 1) // lanes
    cdef Tile *tiles = <Tile *>(workspace + run.plan.tiles_at)
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    for t in range(tile_count):
        open_tile(&tiles[t], run, task, &entry, t, lanes, workspace, False)
    attend_chunks(run, task, &entry, tiles, tile_count, workspace, worker, False)
    for t in range(tile_count):
        if not finish_tile(run, worker, &entry, &tiles[t], workspace, False):
            # Perhaps a masked value was not finite, which weight 0 does not silence, or a masked score. Again, leaving out
            # what is masked.
            attend_chunks(run, task, &entry, &tiles[t], 1, workspace, worker, True)
            finish_tile(run, worker, &entry, &tiles[t], workspace, False)


cdef bint output_is_finite(Run *run, int worker, const Tile *tile) noexcept nogil:
    cdef Py_ssize_t i, item = run.plan.tiles.item
    cdef double value, residue = 0
    for i in range(tile.rows * run.problem.value_size):
        if i % LARGEST_WHOLE == LARGEST_WHOLE - 1 and stopped(run, worker, MOVE_WORK * LARGEST_WHOLE):
            break
        value = get_real(tile.output, i, item)
        residue += value - value
    return residue == 0


cdef bint is_empty(const void *sum, Py_ssize_t rows, Py_ssize_t item) noexcept nogil:
    """Whether no row has attended to anything, as in the chunks before a window."""
    cdef Py_ssize_t row
    for row in range(rows):
        if get_real(sum, row, item) != 0:   # a NaN is something
            return False
    return True


cdef void attend_few(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    cdef Py_ssize_t rows = task.rows, item = run.plan.tiles.item, size = run.problem.value_size, start = 0, count
    cdef Tile *tile = <Tile *>(workspace + run.plan.tiles_at)
    cdef bint with_sinks = task.first_key == 0
    cdef char *partial
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    open_tile(tile, run, task, &entry, 0, rows, workspace, True)
    reset_softmax(tile, run.problem, run.plan, &entry, with_sinks)
    attend_blocks(run, task, &entry, tile, 1, task.first_key, task.last_key, workspace, worker, True, False)
    fill_blank(run, worker, tile)
    if tile.low < tile.high and not output_is_finite(run, worker, tile):
        reset_softmax(tile, run.problem, run.plan, &entry, with_sinks)
        attend_blocks(run, task, &entry, tile, 1, task.first_key, task.last_key, workspace, worker, True, True)
    if task.partial < 0:
        finish_tile(run, worker, &entry, tile, workspace, True)
        return
    partial = run.partials + task.partial * run.plan.partial_bytes
    memcpy(partial, tile.maximum, rows * item)
    memcpy(partial + rows * item, tile.sum, rows * item)
    while start < size and not is_empty(tile.sum, rows, item):
        count = min(size - start, run.plan.columns)
        if start > 0 and stopped(run, worker, MOVE_WORK * rows * count):
            return
        memcpy(partial + (2 + start) * rows * item, <char *>tile.output + start * rows * item, count * rows * item)
        start += count


cdef void merge_few(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    """The partial results of the same rows, from left to right; the task's is the first of them."""
    cdef Tile *tile = <Tile *>(workspace + run.plan.tiles_at)
    cdef Py_ssize_t rows = task.rows, size = run.problem.value_size, item = run.plan.tiles.item, number
    cdef char *partial = run.partials + task.partial * run.plan.partial_bytes
    cdef cattn_softmax part
    cdef Entry entry
    open_entry(&entry, run.problem, run.plan, task.entry, task.key_head)
    open_tile(tile, run, task, &entry, 0, rows, workspace, True)
    reset_softmax(tile, run.problem, run.plan, &entry, False)
    fill_blank(run, worker, tile)
    begin_total(tile, size, item)
    for number in range(count_chunks(entry_key_length(run.problem, task.entry), run.plan.few_chunk)):
        if stopped(run, worker, ROW_WORK + MOVE_WORK * rows * size):
            return
        part = cattn_softmax(partial, partial + rows * item, partial + 2 * rows * item, NULL, NULL)
        if not is_empty(part.sum, rows, item):
            run.plan.tiles.few_merge(&tile.total, &part, rows, size, run.plan.columns)
        partial += run.plan.partial_bytes
    swap_total(tile)
    finish_tile(run, worker, &entry, tile, workspace, True)


cdef const void *score_huge(Run *run, int worker, const Entry *entry, Tile *tile, const cattn_edit *edit, Py_ssize_t low,
                            Py_ssize_t count, char *workspace) noexcept nogil:
    """What score_many does, of huge heads, with keys low, low + 1, ..."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef void *scores = workspace + plan.scores_at
    cdef void *sums = workspace + plan.sums_at
    cdef void *terms = workspace + plan.terms_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * table.item
    cdef const void *added = terms if has_terms(edit) else NULL
    cdef Py_ssize_t start = 0, columns, stride = 0
    cdef const char *keys
    cdef cattn_ahead ahead
    ahead.next = ahead.count = 0
    while start < problem.head_size:
        columns = min(problem.head_size - start, plan.columns)
        if stopped(run, worker, tile.lanes * count * columns):
            return added
        load_queries(tile, problem, plan, entry, start, columns, workspace + plan.row_at, False)
        keys = block_rows(&problem.key, entry.key, plan.key_in_place, workspace + plan.key_at, low, count, start, columns, plan,
                          &stride)
        table.scores(sums if start > 0 else scores, block_maximum, tile.queries, NULL, tile.rows, keys, stride, count, columns,
                     &ahead)
        if start > 0:
            add_reals(scores, sums, count * tile.lanes, table.item)
        start += columns
    if added != NULL:
        table.terms(terms, tile.rows, count, edit)
    if edit.softcap != 0:
        table.soften(scores, block_maximum, added, tile.rows, count, edit.softcap)
        return added
    if added != NULL:
        add_reals(scores, terms, count * tile.lanes, table.item)
    find_maxima(block_maximum, scores, tile.rows, 1, count, tile.lanes, table.item)
    return added


cdef void write_scores(Run *run, const Entry *entry, const Tile *tile, Py_ssize_t low, Py_ssize_t count,
                       const void *divisor, const unsigned char *attended, char *workspace) noexcept nogil:
    """A tile of scores or weights into the rows of the result. What is masked has weight 0, whatever its row's sum."""
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t row, j, item = plan.tiles.item
    cdef char *rows[CATTN_MAX_LANES]
    for row in range(tile.rows):
        rows[row] = out_row(tile, row, run.problem, entry) + low * item
    plan.tiles.store_rows(rows, tile.rows, workspace + plan.scores_at, divisor, count)
    if attended != NULL:
        for row in range(tile.rows):
            for j in range(count):
                if not attended[j * plan.tiles.lanes + row]:
                    put_real(rows[row], j, item, 0)


cdef void weigh_many(Run *run, const Task *task, char *workspace, int worker) noexcept nogil:
    """attention_weights: the scores at the stage asked for; the weights in two passes, sums first."""
    cdef const cattn_problem *problem = run.problem
    cdef const Plan *plan = run.plan
    cdef const cattn_tiles *table = plan.tiles
    cdef Py_ssize_t lanes = table.lanes, item = table.item, key_stride = 0, number, start, count, row, t
    cdef Tile *tile = <Tile *>(workspace + plan.tiles_at)
    cdef void *scores = workspace + plan.scores_at
    cdef void *factor = workspace + plan.vectors_at
    cdef void *block_maximum = workspace + plan.vectors_at + CATTN_MAX_LANES * item
    cdef const void *added
    cdef void *divisor = workspace + plan.vectors_at + 2 * CATTN_MAX_LANES * item   # the sums, or 1 for plain scores
    cdef unsigned char *attended = <unsigned char *>workspace + plan.attended_at
    cdef const char *keys
    cdef double sum
    cdef int pass_number, passes = 2 if run.stage == STAGE_WEIGHTS else 1
    cdef bint visible, every
    cdef cattn_edit edit
    cdef cattn_ahead ahead
    cdef Entry entry
    open_entry(&entry, problem, plan, task.entry, task.key_head)
    ahead.next = ahead.count = 0
    for t in range((task.rows + lanes - 1) // lanes):
        open_tile(tile, run, task, &entry, t, lanes, workspace, False)
        reset_softmax(tile, problem, plan, &entry, True)
        for row in range(lanes):
            put_real(divisor, row, item, 1)
        for pass_number in range(passes):
            for number in range((task.last_key + plan.key_block - 1) // plan.key_block):
                start = number * plan.key_block
                count = min(plan.key_block, task.last_key - start)
                if stopped(run, worker, lanes * count * problem.head_size):
                    return
                make_edit(&edit, tile, 0, tile.rows, lanes, problem, plan, &entry, start, start + count, workspace, run.stage,
                          &visible)
                if plan.huge:
                    added = score_huge(run, worker, &entry, tile, &edit, start, count, workspace)
                else:
                    keys = block_rows(&problem.key, entry.key, plan.key_in_place, workspace + plan.key_at, start, count, 0,
                                      problem.head_size, plan, &key_stride)
                    added = score_many(table, scores, workspace + plan.terms_at, block_maximum, tile.queries, tile.rows, &edit,
                                       keys, key_stride, count, problem.head_size, &ahead)
                select_scores(scores, added, count * lanes, item)
                if passes == 1:
                    write_scores(run, &entry, tile, start, count, divisor, NULL, workspace)
                    continue
                every = mark_attended(attended, scores, count * lanes, item)
                table.exponentials(scores, tile.rows, count, tile.maximum, tile.sum, factor, block_maximum)
                if pass_number == 1:   # the maximum stays, so that these are exp(score - maximum)
                    write_scores(run, &entry, tile, start, count, divisor, NULL if every else attended, workspace)
            if pass_number == 0 and passes == 2:
                for row in range(lanes):
                    sum = get_real(tile.sum, row, item)
                    put_real(divisor, row, item, 1 if sum == 0 else sum)
