# Whoever made a call, and may want to stop it.

from system.system cimport cattn_change_float_mode

cdef enum:
    POLL_ENTRIES = 32768   # of a batch, between two looks at signals: 1 to 3 ms


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


cdef inline bint is_stopped(const Caller *caller, Py_ssize_t entry) noexcept nogil:
    """Return whether a loop over batch entries should stop. The caller is asked once in POLL_ENTRIES entries."""
    return entry % POLL_ENTRIES == POLL_ENTRIES - 1 and caller.wants_to_stop != NULL and ask(caller)
