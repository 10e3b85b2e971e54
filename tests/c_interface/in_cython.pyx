"""An extension module in Cython that calls cattn: for test_c_interface.py."""

import cattn

cimport cattn
from libc.stdint cimport uintptr_t

cattn.cattn_import()


cdef int read_array(cattn.cattn_ndarray *array, dict arguments, name) except -1:
    if name in arguments:
        data, array.type, array.ndim, shape, strides = arguments[name]
        array.data = <void *><uintptr_t>data
        array.shape = <const Py_ssize_t *><uintptr_t>shape
        array.strides = <const Py_ssize_t *><uintptr_t>strides
    return 0


def attention(dict arguments):
    cdef cattn.cattn_attention_args args = cattn.cattn_attention_defaults()
    cdef int status
    cdef char[2000] text
    read_array(&args.query, arguments, "query")
    read_array(&args.key, arguments, "key")
    read_array(&args.value, arguments, "value")
    read_array(&args.out, arguments, "out")
    read_array(&args.lse, arguments, "lse")
    read_array(&args.query_offset, arguments, "query_offset")
    read_array(&args.query_lengths, arguments, "query_lengths")
    read_array(&args.key_lengths, arguments, "key_lengths")
    read_array(&args.key_start, arguments, "key_start")
    read_array(&args.key_stop, arguments, "key_stop")
    read_array(&args.mask, arguments, "mask")
    read_array(&args.bias, arguments, "bias")
    read_array(&args.alibi_slopes, arguments, "alibi_slopes")
    read_array(&args.sinks, arguments, "sinks")
    read_array(&args.key_scale, arguments, "key_scale")
    read_array(&args.value_scale, arguments, "value_scale")
    args.flags = arguments.get("flags", 0)
    args.num_threads = arguments.get("num_threads", 0)
    args.scale = arguments.get("scale", 0)
    args.softcap = arguments.get("softcap", 0)
    args.window_left = arguments.get("window_left", 0)
    args.window_right = arguments.get("window_right", 0)
    args.struct_size = arguments.get("struct_size", args.struct_size)
    with nogil:
        status = cattn.cattn_attention(&args)
    cattn.cattn_explain(&args, status, text, sizeof(text))
    return status, (<bytes>text).decode()


def both_names():
    """The Python module and the declarations share a name."""
    return cattn.attention, cattn.get_include()
