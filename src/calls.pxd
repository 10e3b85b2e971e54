# Advice about a call with a wrong name or too many arguments. Cython refuses such a call before any code of the
# function runs. Each function has a pointer through which it is called (PEP 590). This file replaces the pointer by a
# step of its own, which looks at calls that failed. A call that succeeds pays a jump for it. A parameter that takes all
# other names would cost each call a dict.

from cpython.exc cimport PyErr_ExceptionMatches, PyErr_Fetch, PyErr_Restore
from cpython.ref cimport PyObject, Py_INCREF, Py_XDECREF

from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode

cdef extern from *:
    """
    static vectorcallfunc *cattn_call_pointer(PyObject *function)
    {
        return (vectorcallfunc *)((char *)function + Py_TYPE(function)->tp_vectorcall_offset);
    }
    /* The first is Cython's own function, which is the same for all functions here. The second says what is wrong. */
    static vectorcallfunc cattn_parse_and_run = NULL;
    static PyObject *cattn_explain_call = NULL;
    """
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *) noexcept
    vectorcallfunc PyVectorcall_Function(PyObject *function)   # NULL if the function has no such pointer
    Py_ssize_t PyVectorcall_NARGS(size_t count)
    vectorcallfunc *cattn_call_pointer(PyObject *function)
    vectorcallfunc cattn_parse_and_run
    PyObject *cattn_explain_call


cdef inline int explain(object function, Py_ssize_t positional, object names) except -1:
    """Replace the TypeError that is set by one with a better message, if there is a better message."""
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
    """Make the call in the usual floating-point mode, whatever the caller's mode is."""
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef PyObject *result = cattn_parse_and_run(function, arguments, count, names)
    cattn_change_float_mode(callers_mode)
    if result == NULL and PyErr_ExceptionMatches(TypeError):
        explain(<object>function, PyVectorcall_NARGS(count), () if names == NULL else <object>names)
    return result


cdef inline int explain_calls(object function, object explain_call) except -1:
    """Let explain_call give advice on failed calls of `function`.

    explain_call(function, number of arguments by position, names of the others) returns a message or None.
    """
    global cattn_parse_and_run, cattn_explain_call
    cdef PyObject *given = <PyObject *>function
    cdef vectorcallfunc own = PyVectorcall_Function(given)
    if own != NULL and (cattn_parse_and_run == NULL or cattn_parse_and_run == own):
        if cattn_explain_call == NULL:
            Py_INCREF(explain_call)   # it is kept as long as the process lives
            cattn_explain_call = <PyObject *>explain_call
        cattn_parse_and_run = own
        cattn_call_pointer(given)[0] = <vectorcallfunc>call
    return 0
