# Problem → result: the course of a call. What is decided about it, its memory, and its tasks one by one. It knows
# nothing of Python: it asks a callback whether to stop, and returns a status.

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from caller cimport Caller
from partials cimport join_partials
from machine cimport Machine
from plan cimport STAGE_OUTPUT, make_plan, Plan
from problem cimport CATTN_DONE, CATTN_LARGEST_HEAD, CATTN_NO_MEMORY, CATTN_STOPPED, cattn_problem, cattn_status
from reductions.attend cimport attend
from reductions.weights cimport find_weights
from schedule cimport count_packed, find_task, make_schedule, Schedule, Start, Task
from sizes cimport aligned_from, reserve, times
from system.system cimport CATTN_TASK_MODE, cattn_change_float_mode, cattn_now, cattn_pool_run, cattn_task
from tiles.tiles cimport CATTN_ALIGNMENT
from worker cimport ROW_WORK, TASK_WORK, Call, open_worker, poll, stopped, TaskTimes, Worker
from workspace cimport make_workspace, Workspace

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <malloc.h>
    #define cattn_stack_memory _alloca
    #else
    #define cattn_stack_memory __builtin_alloca
    #endif
    """
    void *cattn_stack_memory(size_t bytes) noexcept nogil

cdef enum:
    SMALL_WORKSPACE = 16384   # bytes, taken from the stack


# What is decided about a call before anything is computed.
cdef struct Prepared:
    Plan plan
    Schedule schedule
    Workspace workspace


# What a call takes, or would have taken where there is no memory for it.
cdef struct Cost:
    Py_ssize_t threads      # before the call, as many as it may have
    Py_ssize_t bytes
    TaskTimes *task_times   # NULL: nobody asks for them


# What is used by more threads than the caller, in memory that does not end with the caller's stack.
cdef struct SharedCall:
    Call call
    Prepared prepared
    cattn_problem problem


cdef inline cattn_status prepare(Prepared *prepared, const cattn_problem *problem, const Machine *machine, int stage,
                                 Py_ssize_t threads, const Caller *caller) noexcept nogil:
    """Decide how a problem is computed by at most so many threads, in which tasks, and in which memory."""
    cdef cattn_status status = make_plan(&prepared.plan, problem, machine, stage, threads, caller)
    if status == CATTN_DONE:
        status = make_schedule(&prepared.schedule, &prepared.plan, problem, caller)
    if status == CATTN_DONE:
        make_workspace(&prepared.workspace, &prepared.plan, problem)
    return status


cdef inline void open_call(Call *call, const Prepared *prepared, const cattn_problem *problem) noexcept nogil:
    """Let a call refer to what was decided about it."""
    call.problem = problem
    call.plan = &prepared.plan
    call.schedule = &prepared.schedule
    call.workspace = &prepared.workspace


cdef inline Py_ssize_t in_turn(Py_ssize_t number, Py_ssize_t tasks, Py_ssize_t seats) noexcept nogil:
    """Return which task comes at this place if one thread does what each of `seats` threads would begin with, thread by
    thread."""
    cdef Py_ssize_t seat = 0, count = (tasks + seats - 1) // seats
    while number >= count:
        number -= count
        seat += 1
        count = (tasks - seat + seats - 1) // seats
    return seat + number * seats


cdef inline int do_task(void *context, Py_ssize_t number, int worker_number) noexcept nogil:
    """Compute one task of a call. Return whether the call was stopped."""
    cdef Call *call = <Call *>context
    cdef unsigned int mode
    cdef Worker worker
    cdef Task task
    open_worker(&worker, call, worker_number)
    if (find_task(&task, call.schedule, call.plan, call.problem, call.starts, number) == NULL
            or stopped(&worker, TASK_WORK + task.rows * (ROW_WORK + call.problem.head_size + call.problem.value_size))):
        return True
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    if call.plan.stage != STAGE_OUTPUT:
        find_weights(&worker, &task)
    elif not call.joining:
        attend(&worker, &task)
    elif task.partial_step > 0:
        join_partials(&worker, &task)
    cattn_change_float_mode(mode)
    return call.stopped


cdef inline int do_task_in_turn(void *context, Py_ssize_t number, int worker_number) noexcept nogil:
    """Compute the task that comes at this place in turn, and note how long it took. Return whether to stop."""
    cdef Call *call = <Call *>context
    cdef Py_ssize_t tasks = call.schedule.tasks
    cdef int64_t begin = cattn_now()
    cdef bint stops
    number = in_turn(number, tasks, call.task_times.seats)
    stops = do_task(context, number, worker_number)
    call.task_times.nanoseconds[number + (tasks if call.joining else 0)] = cattn_now() - begin
    return stops


cdef inline cattn_status run_tasks(Call *call) noexcept nogil:
    """Compute all tasks, and then join their partial results."""
    cdef cattn_task task = do_task if call.task_times == NULL else do_task_in_turn
    call.joining = False
    cattn_pool_run(task, call, call.schedule.tasks, call.threads, poll)
    if call.schedule.partial_rows > 0 and not call.stopped:
        call.joining = True
        cattn_pool_run(task, call, call.schedule.tasks, call.threads, poll)
    return CATTN_STOPPED if call.stopped else CATTN_DONE


cdef inline cattn_status execute(const Prepared *prepared, const cattn_problem *problem, const Caller *caller,
                                 Cost *cost) noexcept nogil:
    """Compute a call that has tasks."""
    cdef Py_ssize_t threads = min(cost.threads, prepared.schedule.tasks)
    cdef Py_ssize_t *bytes = &cost.bytes
    cdef const Schedule *schedule = &prepared.schedule
    cdef Py_ssize_t shared_at, starts_at, partials_at, workspaces_at
    cdef bint packed = problem.query_indptr != NULL, on_stack
    cdef cattn_status status = CATTN_DONE
    cdef SharedCall *together
    cdef Schedule noted
    cdef char *memory
    cdef char *aligned
    cdef Call own
    cdef Call *call = &own
    cost.threads = threads
    bytes[0] = 0
    shared_at = reserve(bytes, sizeof(SharedCall) if threads > 1 else 0)
    starts_at = reserve(bytes, times(prepared.plan.entries, sizeof(Start)) if packed else 0)
    partials_at = reserve(bytes, times(schedule.partial_rows, prepared.plan.partial_row_bytes))
    workspaces_at = reserve(bytes, times(threads, prepared.workspace.bytes))
    on_stack = threads == 1 and bytes[0] <= SMALL_WORKSPACE
    if on_stack:
        memory = <char *>cattn_stack_memory(bytes[0] + CATTN_ALIGNMENT)
    else:
        memory = <char *>malloc(bytes[0] + CATTN_ALIGNMENT)
        if memory == NULL:
            return CATTN_NO_MEMORY
    aligned = aligned_from(memory)
    open_call(&own, prepared, problem)
    own.starts = <Start *>(aligned + starts_at) if packed else NULL
    own.partials = aligned + partials_at
    own.memory = aligned + workspaces_at
    own.threads = <int>threads
    own.task_times = cost.task_times
    own.work = 0
    own.polled = 0
    own.caller = caller[0]
    own.stopped = False
    if packed:
        status = count_packed(&noted, &prepared.plan, problem, caller, <Start *>(aligned + starts_at))
    if threads > 1:
        together = <SharedCall *>(aligned + shared_at)
        together.problem = problem[0]
        together.prepared = prepared[0]
        together.call = own
        call = &together.call
        open_call(call, &together.prepared, &together.problem)
    if status == CATTN_DONE:
        status = run_tasks(call)
    if not on_stack:
        free(memory)
    return status


cdef inline void take_columns(cattn_problem *part, const cattn_problem *problem, Py_ssize_t start) noexcept nogil:
    """Set `part` to the problem with as many columns of values, from `start` on, as are computed at a time."""
    part[0] = problem[0]
    part.value_size = min(problem.value_size - start, CATTN_LARGEST_HEAD)
    part.value.data += start * problem.value.column
    part.out.data += start * problem.out.column
    if problem.value_scale.data != NULL:
        part.value_scale.data += start * problem.value_scale.column
    if start > 0:
        part.lse.data = NULL   # it has been written


cdef inline cattn_status run_columns(const cattn_problem *problem, int stage, const Machine *machine,
                                     const Caller *caller, Cost *cost) noexcept nogil:
    """Compute a problem whose values are not too wide for one plan."""
    cdef Prepared prepared
    cdef cattn_status status = prepare(&prepared, problem, machine, stage, cost.threads, caller)
    if status == CATTN_DONE and prepared.schedule.tasks > 0:
        status = execute(&prepared, problem, caller, cost)
    return status


cdef inline cattn_status run(const cattn_problem *problem, int stage, const Machine *machine, const Caller *caller,
                             Cost *cost) noexcept nogil:
    """Compute a problem. Values that are too wide for one plan are computed some columns at a time."""
    cdef Py_ssize_t start = 0
    cdef cattn_status status = CATTN_DONE
    cdef cattn_problem *part
    if problem.value_size <= CATTN_LARGEST_HEAD:
        return run_columns(problem, stage, machine, caller, cost)
    part = <cattn_problem *>malloc(sizeof(cattn_problem))   # it is too large for the stack of every call
    if part == NULL:
        cost.bytes = sizeof(cattn_problem)
        return CATTN_NO_MEMORY
    while start < problem.value_size and status == CATTN_DONE:
        take_columns(part, problem, start)
        status = run_columns(part, stage, machine, caller, cost)
        start += CATTN_LARGEST_HEAD
    free(part)
    return status
