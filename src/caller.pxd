# Whoever made a call, and may want to stop it.

from libc.stdint cimport int64_t

from system.system cimport cattn_change_float_mode, cattn_now

cdef enum:
    POLL_ENTRIES = 32768            # of a batch, between two looks at signals or at the clock
    POLL_NANOSECONDS = 20000000     # between two questions, where there is a clock


# The function is asked now and then, by the thread that called. NULL: nobody wants to stop.
cdef struct Caller:
    bint (*wants_to_stop)(void *context) noexcept nogil
    void *context
    unsigned int float_mode


cdef inline bint ask(const Caller *caller) noexcept nogil:
    """Return whether the caller wants to stop, and let it find that out in its own floating-point mode."""
    cdef unsigned int mode = cattn_change_float_mode(caller.float_mode)
    cdef bint answer = caller.wants_to_stop(caller.context)
    cattn_change_float_mode(mode)
    return answer


cdef inline bint ask_at_times(const Caller *caller, int64_t *polled) noexcept nogil:
    """Return whether the caller wants to stop, unless it was asked a moment ago. `polled` is when that was, in ns, and
    0 before the first call."""
    cdef int64_t nanoseconds = cattn_now()
    if polled[0] == 0:
        polled[0] = nanoseconds
    if caller.wants_to_stop == NULL or 0 <= nanoseconds - polled[0] < POLL_NANOSECONDS:
        return False
    polled[0] = nanoseconds
    return ask(caller)


cdef inline bint is_stopped(const Caller *caller, Py_ssize_t entry) noexcept nogil:
    """Return whether a loop over batch entries should stop. The caller is asked once in POLL_ENTRIES entries."""
    return entry % POLL_ENTRIES == POLL_ENTRIES - 1 and caller.wants_to_stop != NULL and ask(caller)
