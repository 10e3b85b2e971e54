# Plan → result: the memory of a call, its tasks one by one, and its looks at signals.

import atexit

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <malloc.h>
    #define cattn_stack_memory _alloca
    static __declspec(thread) int cattn_handlers;
    #else
    #define cattn_stack_memory __builtin_alloca
    static _Thread_local int cattn_handlers;
    #endif
    """
    void *cattn_stack_memory(size_t bytes) noexcept nogil
    int cattn_handlers   # of signals, which run in this thread inside of calls

cdef enum:
    # Multiply-adds below which letting go of the GIL, or waking a worker, costs more than it brings: about 2 and 50 µs.
    GIL_WORK = 65536
    THREADS_WORK = 2097152
    SMALL_WORKSPACE = 16384   # bytes, taken from the stack
    # Scores × head size between two looks at the clock: under 10 ms at 2 GFLOP/s.
    CLOCK_WORK = 8388608
    # What a task and a row cost without any keys, in the same unit: about 400 and 20 ns.
    TASK_WORK = 1024
    ROW_WORK = 64
    # And a number that is moved: memory that is new costs up to 1 ns a number.
    MOVE_WORK = 4
    POLL_NANOSECONDS = 20000000
    # Signal handlers that may call cattn, each inside a call that the one before made. A level takes 64 KiB of stack at most,
    # Python's own included, and the smallest stack that signal handlers usually run on is 1 MiB.
    MOST_HANDLERS = 8


cdef struct Run:
    const cattn_problem *problem
    const Plan *plan
    const Start *starts          # of packed sequences; NULL: there are none
    char *workspaces
    char *partials
    int stage                    # of attention_weights
    int threads
    shared stopped               # a signal handler raised: leave the rest
    Py_ssize_t work              # of the caller, since it last looked at the clock
    int64_t polled               # when the caller last looked for signals, in ns
    unsigned int callers_mode    # of floating point: what its signal handlers run in


# What is used by more threads than the caller, in memory that does not end with the caller's stack.
cdef struct SharedRun:
    Run run
    Plan plan
    cattn_problem problem


# The thread that ends Python, once one does: no other may ask for the GIL then. Python ends a thread that does, or holds it
# for ever, and crashes when it is gone itself.
cdef shared ending_thread = 0


def _end():
    global ending_thread
    ending_thread = <int64_t>PyThread_get_thread_ident()


atexit.register(_end)


cdef bint interrupted() noexcept:
    """Lets Python run its signal handlers. Whether one raised."""
    global cattn_handlers
    cdef bint raised
    if cattn_handlers == MOST_HANDLERS:
        PyErr_SetString(RecursionError, "cattn: signal handlers that call cattn are nested too deeply")
        return True
    cattn_handlers += 1
    raised = PyErr_CheckSignals() != 0
    cattn_handlers -= 1
    return raised


cdef void poll(void *context) noexcept nogil:
    """Lets signal handlers run, now and then; one that raises stops the run."""
    cdef Run *run = <Run *>context
    cdef int64_t nanoseconds = cattn_now(), ending = ending_thread
    cdef unsigned int mode
    if run.polled == 0:
        run.polled = nanoseconds
    elif (not run.stopped and not 0 <= nanoseconds - run.polled < POLL_NANOSECONDS
            and (ending == 0 or ending == <int64_t>PyThread_get_thread_ident())):
        run.polled = nanoseconds
        mode = cattn_change_float_mode(run.callers_mode)
        with gil:
            run.stopped = interrupted()
        cattn_change_float_mode(mode)


cdef inline bint stopped(Run *run, int worker, Py_ssize_t work) noexcept nogil:
    """Whether to give up. The caller polls: Python's signals are for the thread that called."""
    if worker == 0:
        run.work += work
        if run.work > CLOCK_WORK:
            run.work = 0
            poll(run)
    return run.stopped


cdef Py_ssize_t find_sequence(const Start *starts, const Plan *plan, Py_ssize_t task) noexcept nogil:
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


cdef const Task *find_task(Task *task, const Run *run, Py_ssize_t number) noexcept nogil:
    """The task of this number; NULL where there is none."""
    cdef const Plan *plan = run.plan
    cdef Py_ssize_t entry
    cdef Start start
    if not 0 <= number < plan.tasks:
        return NULL
    if run.starts == NULL:
        entry = divided(number, plan.tasks_of_entry)
        start.task = start.partial = entry * plan.tasks_of_entry
    else:
        entry = find_sequence(run.starts, plan, number)
        start = run.starts[entry]
    make_task(task, plan, run.problem, number, entry, &start)
    return task


cdef int do_task(void *context, Py_ssize_t number, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    cdef char *workspace = run.workspaces + worker * run.plan.workspace_bytes
    cdef unsigned int mode
    cdef Task task
    find_task(&task, run, number)
    if stopped(run, worker, TASK_WORK + task.rows * (ROW_WORK + run.problem.head_size + run.problem.value_size)):
        return True
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    if run.stage != STAGE_OUTPUT:
        weigh_many(run, &task, workspace, worker)
    elif task.few:
        attend_few(run, &task, workspace, worker)
    else:
        attend_many(run, &task, workspace, worker)
    cattn_change_float_mode(mode)
    return run.stopped


cdef int do_merge(void *context, Py_ssize_t number, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    cdef unsigned int mode
    cdef Task task
    find_task(&task, run, number)
    if stopped(run, worker, TASK_WORK):
        return True
    if task.partial >= 0 and task.first_key == 0:
        mode = cattn_change_float_mode(CATTN_TASK_MODE)
        merge_few(run, &task, run.workspaces + worker * run.plan.workspace_bytes, worker)
        cattn_change_float_mode(mode)
    return run.stopped


cdef void run_tasks(Run *run, int threads) noexcept nogil:
    cattn_pool_run(do_task, run, run.plan.tasks, threads, poll)
    if run.plan.partials > 0 and not run.stopped:
        cattn_pool_run(do_merge, run, run.plan.tasks, threads, poll)


cdef int run_problem(const cattn_problem *problem, int stage, Py_ssize_t threads) except -1:
    cdef char *memory
    cdef char *aligned
    cdef Py_ssize_t bytes = 0, shared_at, starts_at, partials_at, workspaces_at
    cdef bint packed = problem.query_indptr != NULL, on_stack
    cdef double work
    cdef SharedRun *together
    cdef Plan plan
    cdef Run own
    cdef Run *run = &own
    make_plan(&plan, problem, &table, stage != STAGE_OUTPUT)
    if plan.tasks == 0:
        return 0
    work = <double>plan.entries * problem.query_heads * problem.query_length * problem.key_length \
        * (problem.head_size + problem.value_size)
    if work < THREADS_WORK:
        threads = 1
    elif threads == 0:
        threads = get_num_threads()
    threads = min(threads, plan.tasks)

    shared_at = reserve(&bytes, sizeof(SharedRun) if threads > 1 else 0)
    starts_at = reserve(&bytes, times(plan.entries, sizeof(Start)) if packed else 0)
    partials_at = reserve(&bytes, times(plan.partials, plan.partial_bytes))
    workspaces_at = reserve(&bytes, times(threads, plan.workspace_bytes))
    on_stack = threads == 1 and bytes <= SMALL_WORKSPACE
    if on_stack:
        memory = <char *>cattn_stack_memory(bytes + CATTN_ALIGNMENT)
    else:
        memory = <char *>PyMem_RawMalloc(bytes + CATTN_ALIGNMENT)
        if memory == NULL:
            raise MemoryError(f"a workspace of {bytes} bytes for {threads} threads")
    try:
        aligned = <char *>((<Py_ssize_t>memory + CATTN_ALIGNMENT - 1) // CATTN_ALIGNMENT * CATTN_ALIGNMENT)
        if packed:
            count_packed(&plan, problem, <Start *>(aligned + starts_at))
        run.problem = problem
        run.plan = &plan
        run.starts = <Start *>(aligned + starts_at) if packed else NULL
        run.partials = aligned + partials_at
        run.workspaces = aligned + workspaces_at
        run.stage = stage
        run.threads = <int>threads
        run.work = 0
        run.polled = 0
        run.callers_mode = cattn_float_mode()
        run.stopped = False
        if threads > 1:
            together = <SharedRun *>(aligned + shared_at)
            together.problem = problem[0]
            together.plan = plan
            together.run = own
            run = &together.run
            run.problem = &together.problem
            run.plan = &together.plan
        if work < GIL_WORK:
            run_tasks(run, 1)
        else:
            with nogil:
                run_tasks(run, <int>threads)
        return -1 if run.stopped else 0   # the exception that stopped it is set
    finally:
        if not on_stack:
            PyMem_RawFree(memory)
