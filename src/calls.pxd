# What is said about a call with a wrong name or too many arguments. Cython refuses it before any code of the function
# runs, so the advice comes after: each function carries the pointer through which it is called (PEP 590), and a step of
# ours there looks at calls that failed. One that succeeds pays a jump for it; a parameter that takes what is left over,
# a dict a call.

from cpython.exc cimport PyErr_ExceptionMatches, PyErr_Fetch, PyErr_Restore
from cpython.ref cimport PyObject, Py_INCREF, Py_XDECREF

from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode

cdef extern from *:
    """
    static vectorcallfunc *cattn_call_pointer(PyObject *function)
    {
        return (vectorcallfunc *)((char *)function + Py_TYPE(function)->tp_vectorcall_offset);
    }
    /* Cython's own, the same for all functions here; and what says what is wrong with a call. */
    static vectorcallfunc cattn_parse_and_run = NULL;
    static PyObject *cattn_explain_call = NULL;
    """
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *) noexcept
    vectorcallfunc PyVectorcall_Function(PyObject *function)   # NULL where it has no such pointer
    Py_ssize_t PyVectorcall_NARGS(size_t count)
    vectorcallfunc *cattn_call_pointer(PyObject *function)
    vectorcallfunc cattn_parse_and_run
    PyObject *cattn_explain_call


cdef inline int explain(object function, Py_ssize_t positional, object names) except -1:
    """Put a better message in the place of the TypeError that is set, where there is one."""
    cdef PyObject *kind
    cdef PyObject *value
    cdef PyObject *trace
    PyErr_Fetch(&kind, &value, &trace)
    try:
        message = (<object>cattn_explain_call)(function, positional, names)
        if message is not None:
            raise TypeError(message)
    except:
        Py_XDECREF(kind)
        Py_XDECREF(value)
        Py_XDECREF(trace)
        raise
    PyErr_Restore(kind, value, trace)
    return 0


cdef inline PyObject *call(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names) except NULL:
    """Make the call, in the usual floating-point mode, whatever the caller's is."""
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef PyObject *result = cattn_parse_and_run(function, arguments, count, names)
    cattn_change_float_mode(callers_mode)
    if result == NULL and PyErr_ExceptionMatches(TypeError):
        explain(<object>function, PyVectorcall_NARGS(count), () if names == NULL else <object>names)
    return result


cdef inline int explain_calls(object function, object explain_call) except -1:
    """Of `function`: explain_call(function, number of arguments by position, names of others) is a message or None."""
    global cattn_parse_and_run, cattn_explain_call
    cdef PyObject *given = <PyObject *>function
    cdef vectorcallfunc own = PyVectorcall_Function(given)
    if own != NULL and (cattn_parse_and_run == NULL or cattn_parse_and_run == own):
        if cattn_explain_call == NULL:
            Py_INCREF(explain_call)   # for as long as the process
            cattn_explain_call = <PyObject *>explain_call
        cattn_parse_and_run = own
        cattn_call_pointer(given)[0] = <vectorcallfunc>call
    return 0
