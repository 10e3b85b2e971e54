# Who does a task: what it works for, and whether to go on.

from libc.stdint cimport int64_t

from caller cimport ask_at_times, Caller
from plan cimport Plan
from problem cimport cattn_problem
from schedule cimport Schedule, Start
from system.system cimport cattn_shared
from workspace cimport Workspace

cdef enum:
    # Scores × head size between two looks at the clock: much more than a look costs, and little enough that a slow
    # processor, too, answers an interrupt without a delay that anybody notices.
    CLOCK_WORK = 8388608
    # What a task and a row cost without any keys, in the same unit. Calls with many of them look at the clock, too.
    TASK_WORK = 1024
    ROW_WORK = 64
    # And a number that is moved, perhaps into memory that is new, which is slower.
    MOVE_WORK = 4


# How long the tasks of a call take that one thread does in turn: what each of `seats` threads would begin with.
cdef struct TaskTimes:
    int64_t *nanoseconds         # of each task, and behind them of each joining of partial results
    Py_ssize_t seats


# One call while it is computed: what was decided about it, and its memory.
cdef struct Call:
    const cattn_problem *problem
    const Plan *plan
    const Schedule *schedule
    const Workspace *workspace
    const Start *starts          # of packed sequences; NULL: there are none
    char *memory                 # the workspaces of all workers
    char *partials
    int threads
    TaskTimes *task_times        # NULL: nobody asks for them
    bint joining                 # partial results; before that, tasks leave them
    cattn_shared stopped         # the caller wants no more
    Py_ssize_t work              # of the caller, since it last looked at the clock
    int64_t polled               # when the caller was last asked, in ns
    Caller caller


cdef struct Worker:
    Call *call
    char *memory                 # its workspace
    int number                   # 0 is the caller


cdef inline void open_worker(Worker *worker, Call *call, int number) noexcept nogil:
    """Let worker number `number` work for a call, in its part of the call's memory."""
    worker.call = call
    worker.memory = call.memory + number * call.workspace.bytes
    worker.number = number


cdef inline void poll(void *context) noexcept nogil:
    """Ask the caller, now and then, whether to stop."""
    cdef Call *call = <Call *>context
    if not call.stopped:
        call.stopped = ask_at_times(&call.caller, &call.polled)


cdef inline bint stopped(const Worker *worker, Py_ssize_t work) noexcept nogil:
    """Count work that is about to be done, ask the caller now and then, and return whether the call is stopped."""
    if worker.number == 0:
        worker.call.work += work
        if worker.call.work > CLOCK_WORK:
            worker.call.work = 0
            poll(worker.call)
    return worker.call.stopped
