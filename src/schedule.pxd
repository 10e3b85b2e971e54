# Plan → Schedule: which tasks there are. A task is some rows of one key head of one batch entry, with all their keys
# or with one split of them. Nothing here knows about memory or threads.

from caller cimport Caller, is_stopped
from plan cimport Plan, Strategy, strategy_of
from problem cimport CATTN_DONE, CATTN_LARGEST_COUNT, CATTN_STOPPED, CATTN_TOO_MANY_TASKS, cattn_problem, cattn_status
from rows cimport entry_key_length, entry_query_length
from sizes cimport count_pieces, divided, round_up, times

cdef struct Schedule:
    Py_ssize_t tasks
    Py_ssize_t tasks_of_entry            # all have as many, unless packed
    Py_ssize_t partial_rows              # of all partial results


cdef struct Task:
    Py_ssize_t number
    Py_ssize_t entry, key_head
    const Strategy *strategy
    Py_ssize_t first_row, rows       # of the rows that share this entry's key head: row i · group + g
    Py_ssize_t key_start, key_stop
    Py_ssize_t split                 # the number of the split that these keys are; 0 if they are all keys
    Py_ssize_t partial               # where the partial result of its first row for split 0 is, counted in rows, and
    Py_ssize_t partial_step          # how far that for the next split is from it; 0: there are no partial results


# A number of tasks and of rows of their partial results. Where a packed sequence starts, they are those before it.
cdef struct Start:
    Py_ssize_t task, partial


cdef inline Py_ssize_t rows_of_task(const Strategy *strategy) noexcept nogil:
    """Return how many rows a task has at most."""
    return strategy.tiles_per_task * strategy.kernels.lanes


cdef inline Py_ssize_t count_row_spans(const Strategy *strategy, Py_ssize_t rows) noexcept nogil:
    """Return the number of row spans of a key head. Each span is one task, or one for each split of its keys."""
    return (rows + rows_of_task(strategy) - 1) // rows_of_task(strategy)


cdef inline Py_ssize_t count_splits(const Strategy *strategy, Py_ssize_t keys) noexcept nogil:
    """Return into how many tasks so many keys are split. If there is more than one, each leaves a partial result."""
    return count_pieces(keys, strategy.split) if strategy.splits_keys else 1


cdef inline Start count_tasks(const Plan *plan, const cattn_problem *problem, Py_ssize_t rows,
                              Py_ssize_t keys) noexcept nogil:
    """Count the tasks of an entry with so many rows and keys for each of its key heads, and their partial results."""
    cdef const Strategy *strategy = strategy_of(plan, rows)
    cdef Py_ssize_t splits = count_splits(strategy, keys)
    return Start(times(times(problem.key_heads, count_row_spans(strategy, rows)), splits),
                 times(problem.key_heads, times(rows, splits)) if splits > 1 else 0)


cdef inline cattn_status count_packed(Schedule *schedule, const Plan *plan, const cattn_problem *problem,
                                      const Caller *caller, Start *starts) noexcept nogil:
    """Count the tasks of packed sequences and the rows of their partial results. If `starts` is not NULL, note where
    those of each sequence begin."""
    cdef Py_ssize_t entry
    cdef Start own
    schedule.tasks = schedule.partial_rows = 0
    for entry in range(plan.entries):
        if is_stopped(caller, entry):
            return CATTN_STOPPED
        if starts != NULL:
            starts[entry] = Start(schedule.tasks, schedule.partial_rows)
        own = count_tasks(plan, problem, entry_query_length(problem, entry) * plan.group,
                          entry_key_length(problem, entry))
        schedule.tasks += own.task
        schedule.partial_rows += own.partial
        if schedule.tasks > CATTN_LARGEST_COUNT:
            break
    return CATTN_DONE


cdef inline cattn_status make_schedule(Schedule *schedule, const Plan *plan, const cattn_problem *problem,
                                       const Caller *caller) noexcept nogil:
    """Count the tasks and the rows of their partial results."""
    cdef cattn_status status = CATTN_DONE
    cdef Start own
    if problem.query_indptr != NULL:
        status = count_packed(schedule, plan, problem, caller, NULL)
    else:
        own = count_tasks(plan, problem, problem.query_length * plan.group, problem.key_length)
        schedule.tasks_of_entry = own.task
        schedule.tasks = times(plan.entries, own.task)
        schedule.partial_rows = times(plan.entries, own.partial)
    return CATTN_TOO_MANY_TASKS if schedule.tasks > CATTN_LARGEST_COUNT else status


cdef inline void make_task(Task *task, const Plan *plan, const cattn_problem *problem, Py_ssize_t number,
                           Py_ssize_t entry, const Start *start) noexcept nogil:
    """Describe the task of this number, which belongs to the entry that begins at `start`.

    The last rows come first: under a causal mask they see the most keys, and what is light is left for the end. Tasks
    that read the same keys follow each other, so that these stay in a cache. With `heads_inside`, the tasks of the same
    rows follow each other instead, head by head.
    """
    cdef Py_ssize_t rows = entry_query_length(problem, entry) * plan.group, keys = entry_key_length(problem, entry)
    cdef const Strategy *strategy = strategy_of(plan, rows)
    cdef Py_ssize_t splits = count_splits(strategy, keys), spans = count_row_spans(strategy, rows)
    cdef Py_ssize_t of_head = spans * splits, rest = number - start.task, of_keys, span, row_stop
    task.number = number
    task.entry = entry
    task.strategy = strategy
    if plan.heads_inside:
        of_keys = divided(rest, problem.key_heads)
        task.key_head = rest - of_keys * problem.key_heads
    else:
        task.key_head = divided(rest, of_head)
        of_keys = rest - task.key_head * of_head
    task.split = divided(of_keys, spans)
    span = of_keys - task.split * spans
    row_stop = round_up(rows, strategy.kernels.lanes) - span * rows_of_task(strategy)
    task.first_row = max(<Py_ssize_t>0, row_stop - rows_of_task(strategy))
    task.rows = min(rows, row_stop) - task.first_row
    task.key_start = task.split * strategy.split
    task.key_stop = min(keys, task.key_start + strategy.split) if splits > 1 else keys
    task.partial = start.partial + task.key_head * splits * rows + task.first_row
    task.partial_step = rows if splits > 1 else 0


cdef inline Py_ssize_t find_sequence(const Start *starts, const Schedule *schedule, Py_ssize_t entries,
                                     Py_ssize_t task) noexcept nogil:
    """Return the packed sequence that a task belongs to. The search begins where it would be if all had as many
    tasks."""
    cdef Py_ssize_t count = entries, step = 1, low, high, middle
    low = min(count - 1, <Py_ssize_t>(<double>task / schedule.tasks * count))
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


cdef inline const Task *find_task(Task *task, const Schedule *schedule, const Plan *plan,
                                  const cattn_problem *problem, const Start *starts, Py_ssize_t number) noexcept nogil:
    """Describe the task of this number, or return NULL if there is none. `starts` is NULL unless sequences are
    packed."""
    cdef Py_ssize_t entry
    cdef Start start
    if not 0 <= number < schedule.tasks:
        return NULL
    if starts == NULL:
        entry = divided(number, schedule.tasks_of_entry)
        start.task = entry * schedule.tasks_of_entry
        start.partial = 0 if schedule.partial_rows == 0 else entry * (schedule.partial_rows // plan.entries)
    else:
        entry = find_sequence(starts, schedule, plan.entries, number)
        start = starts[entry]
    make_task(task, plan, problem, number, entry, &start)
    return task
