# GradientProblem → gradients: the course of a call, and its tasks.
#
#   for each member of an owner: a head of a batch entry        do_task_of_gradients
#     for each split, piece and block of keys                   backward
#       for each block of rows that sees some of it             products.pxd
#       store the gradients of keys and values                  keys.pxd
#     join the splits' gradients of queries, and store them     queries.pxd

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from caller cimport Caller
from gradients.bias cimport begin_bias, bias_item, finish_bias, finish_sums_over_keys
from gradients.head cimport buffer, Head, open_head, open_head_rows, store_sink_gradients
from gradients.keys cimport end_chunk, finish_keys, KeyBlock, open_keys
from gradients.gradient_plan cimport (
    BIAS_OWN, CHUNK, find_member, GradientCall, GradientPlan, PIECE, plan_gradients, split_start)
from gradients.gradient_problem cimport GradientProblem
from gradients.products cimport meet_block, RowBlock
from gradients.queries cimport (
    begin_piece, begin_split, end_piece, end_split, finish_queries, join_splits, open_query_sums, QuerySums)
from gradients.sums cimport add_exactly, exact_sum, set_real
from machine cimport Machine
from problem cimport CATTN_DONE, CATTN_NO_MEMORY, CATTN_STOPPED, cattn_problem, cattn_status
from sizes cimport aligned_from, reserve, times
from system.system cimport CATTN_TASK_MODE, cattn_change_float_mode, cattn_pool_run
from tiles.tiles cimport CATTN_ALIGNMENT, CATTN_MAX_LANES
from work cimport work_of
from worker cimport MOVE_WORK, open_worker, poll, ROW_WORK, stopped, TASK_WORK, Worker

cdef enum:
    PRODUCTS = 3   # of gradients for each of attention, about


cdef inline double gradient_work(const GradientProblem *problem) noexcept nogil:
    """Return about how many multiply-adds a call takes."""
    return PRODUCTS * work_of(&problem.forward)


cdef inline bint meet_all(RowBlock *rows, KeyBlock *keys, QuerySums *sums, bint is_last) noexcept nogil:
    """Let all rows of a group meet a block of keys, which may be the last one of a piece. Return whether to go on."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t blocks = plan.base.group * plan.row_blocks, number
    cdef Py_ssize_t work = PRODUCTS * plan.rows * (head.problem.forward.head_size + head.problem.forward.value_size)
    for number in range(blocks):
        if stopped(head.worker, TASK_WORK + work * (keys.stop - keys.start)):
            return False
        if keys.stop > keys.start:
            meet_block(rows, keys, sums, number)
        if is_last:
            end_piece(sums, number)
        if number % CHUNK == CHUNK - 1 or number + 1 == blocks:
            end_chunk(keys, head, number // CHUNK)
    return True


cdef inline void store_slopes(const Head *head, Py_ssize_t split) noexcept nogil:
    """Store the gradients of the slopes from one split of the keys."""
    cdef const double *slopes = <const double *>buffer(head, head.plan.slopes)
    cdef Py_ssize_t at, query_head
    for query_head in range(head.plan.base.group if head.call.slope_parts != NULL else 0):
        at = head.entry * head.problem.forward.query_heads + head.heads.first_head + query_head
        head.call.slope_parts[at * head.plan.splits + split] = exact_sum(slopes[2 * query_head],
                                                                         slopes[2 * query_head + 1])


cdef inline bint meet_split(RowBlock *rows, QuerySums *sums, Py_ssize_t split) noexcept nogil:
    """Let all rows of a group meet a split of the keys. Return whether to go on."""
    cdef const Head *head = rows.head
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t piece = split_start(split), start, stop
    cdef Py_ssize_t end = min(split_start(split + 1), head.problem.forward.key_length)
    cdef Py_ssize_t numbers = head.problem.forward.head_size + head.problem.forward.value_size
    cdef KeyBlock keys
    begin_split(sums, split)
    rows.split = split
    memset(buffer(head, plan.slopes), 0, 2 * plan.base.group * sizeof(double))
    while piece < end:
        stop = min(piece + PIECE, end)
        begin_piece(sums)
        start = piece
        while start < stop:
            if stopped(head.worker, TASK_WORK + MOVE_WORK * plan.keys * numbers):   # even if no query sees the keys
                return False
            open_keys(&keys, head, start, min(start + plan.keys, stop))
            if not meet_all(rows, &keys, sums, start + plan.keys >= stop):
                return False
            finish_keys(&keys, head)
            start += plan.keys
        piece = stop
    end_split(sums)
    store_slopes(head, split)
    return True


cdef inline void backward(Head *head, Py_ssize_t owner, Py_ssize_t split, Py_ssize_t split_stop) noexcept nogil:
    """Compute the gradients of some splits of the keys of a head."""
    cdef QuerySums sums
    cdef RowBlock rows
    if not open_head_rows(head):
        return
    if split == 0 and head.problem.sinks != NULL:
        store_sink_gradients(head)
    rows.head = head
    rows.owner = owner
    open_query_sums(&sums, head)
    while split < split_stop:
        if not meet_split(&rows, &sums, split):
            return
        split += 1
    finish_queries(&sums)


cdef inline void join_rows_of_task(const GradientCall *call, const Worker *worker, Py_ssize_t number) noexcept nogil:
    """Join the partial sums of some blocks of queries of one head."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t head_number = number // plan.join_tasks_of_head, rest = number % plan.join_tasks_of_head
    cdef Py_ssize_t spans = plan.join_tasks_of_head // plan.base.group
    cdef Py_ssize_t query_head = rest // spans, block = rest % spans * plan.join_blocks
    cdef Head head
    open_head(&head, worker, call, head_number // call.problem.forward.key_heads,
              head_number % call.problem.forward.key_heads)
    for block in range(block, min(plan.row_blocks, block + plan.join_blocks)):
        if stopped(worker, TASK_WORK + plan.splits * plan.rows * call.problem.forward.head_size * MOVE_WORK):
            return
        join_splits(call, &head, query_head * plan.row_blocks + block)


cdef inline void compute_task(const GradientCall *call, const Worker *worker, Py_ssize_t number) noexcept nogil:
    """Compute the gradients of some splits of the keys, for all members of an owner."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t splits = plan.splits if plan.splits_are_tasks else 1
    cdef Py_ssize_t owner = number // splits, split = number % splits
    cdef Py_ssize_t split_stop = split + 1 if plan.splits_are_tasks else plan.splits
    cdef Py_ssize_t key = split_start(split), key_stop = min(split_start(split_stop), call.problem.forward.key_length)
    cdef Py_ssize_t member, i, entry, key_head
    cdef Head head
    for i in range(CATTN_MAX_LANES):
        set_real(worker.memory + plan.ones, i, plan.base.itemsize == sizeof(float), 1)
    begin_bias(call, worker, owner, split, split_stop, key, key_stop)
    for member in range(plan.members):
        find_member(&call.problem, owner, member, &entry, &key_head)
        open_head(&head, worker, call, entry, key_head)
        backward(&head, owner, split, split_stop)
        if worker.call.stopped:
            return
    finish_bias(call, worker, owner, key, key_stop)


cdef inline int do_task_of_gradients(void *context, Py_ssize_t number, int worker_number) noexcept nogil:
    """Do one task of a call. Return whether the call was stopped."""
    cdef GradientCall *call = <GradientCall *>context
    cdef unsigned int mode
    cdef Worker worker
    open_worker(&worker, &call.call, worker_number)
    if stopped(&worker, TASK_WORK):
        return True
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    if call.call.joining:
        join_rows_of_task(call, &worker, number)
    else:
        compute_task(call, &worker, number)
    cattn_change_float_mode(mode)
    return call.call.stopped


cdef inline void sum_slopes(const GradientCall *call, const Worker *worker) noexcept nogil:
    """Join the gradients of the slopes from all splits of the keys, from left to right."""
    cdef const cattn_problem *forward = &call.problem.forward
    cdef Py_ssize_t at, split
    cdef double total, carry
    for at in range(call.plan.base.entries * forward.query_heads if call.slope_parts != NULL else 0):
        if stopped(worker, ROW_WORK + 2 * MOVE_WORK * call.plan.splits):
            return
        total = carry = 0
        for split in range(call.plan.splits):
            add_exactly(&total, &carry, call.slope_parts[at * call.plan.splits + split])
        call.problem.slopes[at] = exact_sum(total, carry)


cdef inline cattn_status run_tasks_of_gradients(GradientCall *call) noexcept nogil:
    """Do all tasks of a call, and then join what they have left."""
    cdef unsigned int mode
    cdef Worker worker
    cattn_pool_run(do_task_of_gradients, call, call.plan.tasks, call.call.threads, poll)
    if call.plan.splits_are_tasks and not call.call.stopped:
        call.call.joining = True
        cattn_pool_run(do_task_of_gradients, call,
                       call.plan.owners * call.plan.members * call.plan.join_tasks_of_head, call.call.threads, poll)
    if call.call.stopped:
        return CATTN_STOPPED
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    open_worker(&worker, &call.call, 0)
    sum_slopes(call, &worker)
    finish_sums_over_keys(call, &worker)
    cattn_change_float_mode(mode)
    return CATTN_STOPPED if call.call.stopped else CATTN_DONE


cdef inline cattn_status run_gradients(const GradientProblem *problem, const Machine *machine, const Caller *caller,
                                       Py_ssize_t *threads, Py_ssize_t *bytes) noexcept nogil:
    """Compute gradients by at most so many threads. `threads` and `bytes` become what it takes."""
    cdef Py_ssize_t call_at, slots_at, touched_at, slopes_at, totals_at, carries_at, workspaces_at, splits, heads, sums
    cdef GradientCall *call
    cdef cattn_status status
    cdef GradientPlan plan
    cdef char *memory
    cdef char *aligned
    memset(&plan, 0, sizeof(GradientPlan))
    bytes[0] = 0
    status = plan_gradients(&plan, problem, machine, threads[0])
    if status != CATTN_DONE or plan.tasks == 0:
        return status
    threads[0] = min(threads[0], plan.tasks)
    splits = plan.splits if plan.splits_are_tasks else 0
    heads = times(plan.owners, plan.members)
    splits = times(heads, splits)
    sums = 0
    if plan.bias > BIAS_OWN:
        sums = times(times(times(plan.bias_heads, plan.bias_rows), plan.bias_keys), bias_item(&plan))
        sums = times(plan.owners, sums)
    call_at = reserve(bytes, sizeof(GradientCall))   # other threads read it, after the caller's stack may have ended
    slots_at = reserve(bytes, times(splits, times(plan.head_rows, problem.forward.head_size * plan.base.itemsize)))
    touched_at = reserve(bytes, times(splits, plan.base.group * plan.row_blocks))
    slopes_at = reserve(bytes, 0 if problem.slopes == NULL else
                        times(times(heads, plan.base.group * sizeof(double)), plan.splits))
    totals_at = reserve(bytes, 0 if plan.sums_in_place else sums)
    carries_at = reserve(bytes, sums if plan.has_carries else 0)
    workspaces_at = reserve(bytes, times(threads[0], plan.space.bytes))
    memory = <char *>malloc(bytes[0] + CATTN_ALIGNMENT)
    if memory == NULL:
        return CATTN_NO_MEMORY
    aligned = aligned_from(memory)
    call = <GradientCall *>(aligned + call_at)
    memset(&call.call, 0, sizeof(call.call))
    call.problem = problem[0]
    call.plan = plan
    call.slots = aligned + slots_at
    call.touched = <unsigned char *>aligned + touched_at
    call.slope_parts = NULL if problem.slopes == NULL else <double *>(aligned + slopes_at)
    call.bias_totals = aligned + totals_at
    call.bias_carries = aligned + carries_at
    call.call.problem = &call.problem.forward
    call.call.plan = &call.plan.base
    call.call.workspace = &call.plan.space
    call.call.memory = aligned + workspaces_at
    call.call.threads = <int>threads[0]
    call.call.caller = caller[0]
    status = run_tasks_of_gradients(call)
    free(memory)
    return status
