# The call from Python: the GIL, signals, the number of threads, and exceptions instead of a status.

from libc.stdint cimport int64_t

from caller cimport Caller
from execute cimport Cost, run
from gradients.gradient_problem cimport GradientProblem
from gradients.run cimport gradient_work, run_gradients
from machine cimport Machine
from maxsim cimport Maxsim, maxsim_work, run_maxsim
from problem cimport (
    CATTN_LARGEST_COUNT, CATTN_NO_MEMORY, CATTN_STOPPED, CATTN_TOO_MANY_TASKS, cattn_problem,
    cattn_status)
from system.system cimport cattn_float_mode
from work cimport THREADS_WORK, gains_by_threads, work_of

cdef extern from *:
    """
    #if defined(_MSC_VER)
    static __declspec(thread) int cattn_handlers;
    #else
    static _Thread_local int cattn_handlers;
    #endif
    static cattn_shared cattn_ending_thread = 0;
    """
    int cattn_handlers   # the number of signal handlers that run in this thread inside calls
    # The thread that ends Python, or 0 until one does. From then on no other thread may ask for the GIL: Python would
    # end that thread or make it wait for ever, or crash if Python itself is already gone.
    int64_t cattn_ending_thread

cdef extern from "Python.h":
    ctypedef struct PyThreadState
    void *PyExc_RecursionError
    int PyErr_CheckSignals() noexcept nogil
    void PyErr_SetString(void *error, const char *message) noexcept nogil
    PyThreadState *PyEval_SaveThread() noexcept nogil
    void PyEval_RestoreThread(PyThreadState *thread) noexcept nogil
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef enum:
    # A call of fewer multiply-adds keeps the GIL, because releasing it would cost more than it brings.
    GIL_WORK = 65536
    # So many signal handlers may call cattn, each inside a call that the one before made. A level takes 64 KiB of stack
    # at most, including Python's own, and signal handlers usually run on a stack of 1 MiB or more.
    MOST_HANDLERS = 8


cdef inline bint run_handlers() noexcept nogil:
    """Let Python run its signal handlers, and return whether one raised. The caller must hold the GIL."""
    global cattn_handlers
    cdef bint raised
    if cattn_handlers == MOST_HANDLERS:
        PyErr_SetString(PyExc_RecursionError, "cattn: signal handlers that call cattn are nested too deeply")
        return True
    cattn_handlers += 1
    raised = PyErr_CheckSignals() != 0
    cattn_handlers -= 1
    return raised


cdef inline bint wants_to_stop(void *context) noexcept nogil:
    """Return whether a call that Python made should stop. If so, the exception is set.

    `context` is the thread's state in Python if the call runs without the GIL, else NULL.
    """
    # `with gil` would not do: in a subinterpreter it takes the state of the main one, and sets the exception there.
    cdef bint raised
    if cattn_ending_thread != 0 and cattn_ending_thread != <int64_t>PyThread_get_thread_ident():
        return False
    if context == NULL:
        return run_handlers()
    PyEval_RestoreThread(<PyThreadState *>context)
    raised = run_handlers()
    PyEval_SaveThread()
    return raised


cdef inline void note_ending_thread() noexcept:
    global cattn_ending_thread
    cattn_ending_thread = <int64_t>PyThread_get_thread_ident()


cdef inline int check(cattn_status status, const Cost *cost) except -1:
    """Raise the exception for a status. If the call was stopped, the exception is already set."""
    if status == CATTN_STOPPED:
        return -1
    if status == CATTN_TOO_MANY_TASKS:
        raise MemoryError(f"query, key: expected a batch of at most {CATTN_LARGEST_COUNT} tasks, got more")
    if status == CATTN_NO_MEMORY:
        raise MemoryError(f"a workspace of {cost.bytes} bytes for {cost.threads} threads")
    return 0


ctypedef Py_ssize_t (*default_threads_function)() except -1


cdef inline int compute(const cattn_problem *problem, int stage, Py_ssize_t threads, const Machine *machine,
                        default_threads_function default_threads) except -1:
    """Compute a problem that Python asked for. If `threads` is 0, as many take part as are usual."""
    cdef Caller caller = Caller(wants_to_stop, NULL, cattn_float_mode())
    cdef double work = work_of(problem)
    cdef cattn_status status
    cdef Cost cost
    if not gains_by_threads(problem, work):
        threads = 1
    elif threads == 0:
        threads = default_threads()
    cost.threads = min(threads, machine.most_threads)
    cost.task_times = NULL
    if work >= GIL_WORK:
        caller.context = PyEval_SaveThread()
    status = run(problem, stage, machine, &caller, &cost)
    if caller.context != NULL:
        PyEval_RestoreThread(<PyThreadState *>caller.context)
    return check(status, &cost)


cdef inline int compute_maxsim(const Maxsim *problem, Py_ssize_t threads, const Machine *machine,
                               default_threads_function default_threads) except -1:
    """Compute the scores that Python asked for. If `threads` is 0, as many take part as are usual."""
    cdef Caller caller = Caller(wants_to_stop, NULL, cattn_float_mode())
    cdef cattn_status status
    cdef Cost cost
    cost.threads = min(threads or default_threads(), machine.most_threads)
    if maxsim_work(problem) >= GIL_WORK:
        caller.context = PyEval_SaveThread()
    status = run_maxsim(problem, machine, &caller, &cost.threads, &cost.bytes)
    if caller.context != NULL:
        PyEval_RestoreThread(<PyThreadState *>caller.context)
    return check(status, &cost)


cdef inline int compute_gradients(const GradientProblem *problem, Py_ssize_t threads, const Machine *machine,
                                  default_threads_function default_threads) except -1:
    """Compute the gradients that Python asked for. If `threads` is 0, as many take part as are usual."""
    cdef Caller caller = Caller(wants_to_stop, NULL, cattn_float_mode())
    cdef double work = gradient_work(problem)
    cdef cattn_status status
    cdef Cost cost
    if work < THREADS_WORK:
        threads = 1
    elif threads == 0:
        threads = default_threads()
    cost.threads = min(threads, machine.most_threads)
    if work >= GIL_WORK:
        caller.context = PyEval_SaveThread()
    status = run_gradients(problem, machine, &caller, &cost.threads, &cost.bytes)
    if caller.context != NULL:
        PyEval_RestoreThread(<PyThreadState *>caller.context)
    return check(status, &cost)
