# NumPy arrays → cattn_problem. Arrays of the usual kind, and calls without modifiers, are taken as they come.
# _arguments looks at all others. Below this file nothing knows NumPy.

from libc.float cimport DBL_MIN
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy
cimport numpy as cnp

from gradients.gradient_problem cimport GradientProblem
from maxsim cimport Maxsim
from problem cimport (
    CATTN_BFLOAT16, CATTN_BOOL, CATTN_FLOAT16, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_INT64, CATTN_INT8,
    CATTN_LARGEST_HEAD, CATTN_LARGEST_VALUE, CATTN_MAX_BATCH_NDIM, CATTN_UNLIMITED, cattn_array, cattn_problem,
    cattn_type)
from scales cimport settle_scale


cdef inline cattn_type storage_type(cnp.ndarray array) except *:
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT:
        return CATTN_FLOAT32
    if number == cnp.NPY_DOUBLE:
        return CATTN_FLOAT64
    if number == cnp.NPY_FLOAT16:
        return CATTN_FLOAT16
    if number == cnp.NPY_BOOL:
        return CATTN_BOOL
    if cnp.PyTypeNum_ISUSERDEF(number):
        return CATTN_BFLOAT16
    if number == cnp.NPY_INT8:
        return CATTN_INT8
    if array.dtype.kind == "i":
        return CATTN_INT64
    raise TypeError(f"expected an array of floats, booleans or integers, got one of {array.dtype}")


cdef inline int set_array(cattn_array *array, object given, int batch_ndim, int own_ndim) except -1:
    """Describe `given` as an array of the problem. Its last own_ndim axes are those of (head, row, column) that it has,
    and those before are the batch. Without any, all entries share it."""
    cdef cnp.ndarray view
    cdef Py_ssize_t strides[3]
    cdef int axis, is_shared
    array.data = NULL
    if given is None:
        return 0
    view = given
    is_shared = cnp.PyArray_NDIM(view) == own_ndim
    array.data = cnp.PyArray_BYTES(view)
    array.type = storage_type(view)
    array.swapped = not cnp.PyArray_ISNOTSWAPPED(view)
    for axis in range(batch_ndim):
        array.batch[axis] = 0 if is_shared else cnp.PyArray_STRIDE(view, axis)
    for axis in range(3):
        strides[axis] = cnp.PyArray_STRIDE(view, (0 if is_shared else batch_ndim) + axis) if axis < own_ndim else 0
    array.head = strides[0]
    array.row = strides[1]
    array.column = strides[2]
    return 0


cdef inline int set_modifiers(cattn_problem *problem, object given) except -1:
    """Copy what _modifiers.Modifiers says into the problem, whose sizes are set."""
    cdef int batch_ndim = problem.batch_ndim
    set_array(&problem.mask, given.mask, batch_ndim, 3)
    set_array(&problem.bias, given.bias, batch_ndim, 3)
    set_array(&problem.key_start, given.key_start, batch_ndim, 2)
    set_array(&problem.key_stop, given.key_stop, batch_ndim, 2)
    set_array(&problem.query_offset, given.query_offset, batch_ndim, 0)
    set_array(&problem.query_lengths, given.query_lengths, batch_ndim, 0)
    set_array(&problem.key_lengths, given.key_lengths, batch_ndim, 0)
    set_array(&problem.alibi_slopes, given.alibi_slopes, batch_ndim, 1)
    set_array(&problem.sinks, given.sinks, 0, 1)
    problem.scale = given.scale
    # A subnormal one would count as 0, none, in the tasks' floating-point mode.
    problem.softcap = max(<double>given.softcap, DBL_MIN) if given.softcap else 0
    problem.window_left = given.window_left
    problem.window_right = given.window_right
    return 0


cdef inline int set_scale(cattn_array *array, object given, int batch_ndim) except -1:
    """Describe the scale of int8 keys or values. Each of its last two axes may have 1 element."""
    set_array(array, given, batch_ndim, 3)
    if given is not None:
        *_, rows, columns = given.shape
        settle_scale(array, rows, columns)
        if given.ndim > 3 and given.shape[0] == 1:   # all pages share it
            array.batch[0] = 0
        if given.size == 0:   # there are no keys to multiply, and no scale to read
            array.data = NULL
    return 0


cdef inline void set_unpacked(cattn_problem *problem) noexcept:
    problem.query_indptr = problem.key_indptr = problem.block_table = problem.paged_lengths = NULL


cdef inline int set_problem(cattn_problem *problem, object given) except -1:
    """Copy what _arguments.Problem says into the problem."""
    cdef int axis, batch_ndim
    set_unpacked(problem)
    batch = given.query.shape[:given.query.ndim - 3]
    if given.query_indptr is not None:
        problem.query_indptr = <const int64_t *>cnp.PyArray_DATA(given.query_indptr)
        batch = (len(given.query_indptr) - 1,)
    if given.key_indptr is not None:
        problem.key_indptr = <const int64_t *>cnp.PyArray_DATA(given.key_indptr)
    problem.batch_ndim = batch_ndim = len(batch)
    for axis in range(batch_ndim):
        problem.batch_shape[axis] = batch[axis]
    set_array(&problem.query, given.query, batch_ndim, 3)
    set_array(&problem.key, given.key, batch_ndim, 3)
    set_array(&problem.value, given.value, batch_ndim, 3)
    set_array(&problem.out, given.out, batch_ndim, 3)
    set_array(&problem.lse, given.lse, batch_ndim, 2)
    set_scale(&problem.key_scale, given.key_scale, batch_ndim)
    set_scale(&problem.value_scale, given.value_scale, batch_ndim)
    *_, problem.query_heads, problem.query_length, problem.head_size = given.query.shape
    *_, problem.key_heads, problem.key_length, _ = given.key.shape
    if given.block_table is not None:
        problem.block_table = <const int64_t *>cnp.PyArray_DATA(given.block_table)
        problem.paged_lengths = <const int64_t *>cnp.PyArray_DATA(given.key_lengths)
        problem.most_pages = given.block_table.shape[1]
        problem.page_size = problem.key_length
        problem.key_length = given.key_lengths.max(initial=0)
    *_, problem.value_size = (0,) if given.value is None else given.value.shape
    set_modifiers(problem, given.modifiers)
    return 0


cdef inline int set_gradients(GradientProblem *problem, object given) except -1:
    """Copy what _backward.Problem says into the problem."""
    cdef int batch_ndim
    set_problem(&problem.forward, given)
    batch_ndim = problem.forward.batch_ndim
    set_array(&problem.grad_out, given.grad_out, batch_ndim, 3)
    set_array(&problem.grad_lse, given.grad_lse, batch_ndim, 2)
    set_array(&problem.query, given.grad_query, batch_ndim, 3)
    set_array(&problem.key, given.grad_key, batch_ndim, 3)
    set_array(&problem.value, given.grad_value, batch_ndim, 3)
    set_array(&problem.bias, given.grad_bias, batch_ndim, 3)
    problem.slopes = NULL if given.grad_slopes is None else <double *>cnp.PyArray_DATA(given.grad_slopes)
    problem.sinks = NULL if given.grad_sinks is None else <double *>cnp.PyArray_DATA(given.grad_sinks)
    return 0


cdef inline int set_maxsim(Maxsim *problem, object given) except -1:
    """Copy what _maxsim.Problem says into the problem."""
    cdef bint packed = given.document_indptr is not None
    problem.document_indptr = <const int64_t *>cnp.PyArray_DATA(given.document_indptr) if packed else NULL
    set_array(&problem.query, given.query[:, None], 1, 3)
    set_array(&problem.document, given.document[None] if packed else given.document[:, None], 1, 3)
    set_array(&problem.out, given.out[:, None], 1, 2)
    set_array(&problem.index, None if given.index is None else given.index[:, None], 1, 3)
    set_array(&problem.query_lengths, given.query_lengths, 1, 0)
    set_array(&problem.document_lengths, given.document_lengths, 1, 0)
    problem.queries, problem.query_length, problem.size = given.query.shape
    _, problem.documents = given.out.shape
    problem.document_length = given.document.shape[0 if packed else 1]
    return 0


cdef inline bint names_half_type(int number) except -1:
    """Return whether NumPy's type of this number is float16 or bfloat16. NumPy does not know bfloat16, and gives a
    number to whoever defines it."""
    return (number == cnp.NPY_FLOAT16
            or (cnp.PyTypeNum_ISUSERDEF(number) and cnp.PyArray_DescrFromType(number).name == "bfloat16"))


cdef inline bint are_types(int query, int key) except -1:
    """Return whether queries may have the type of the one number, and keys and values that of the other."""
    if key == cnp.NPY_INT8:
        return query == cnp.NPY_FLOAT or names_half_type(query)
    if query == cnp.NPY_FLOAT:
        return key == query or names_half_type(key)
    return key == query and (query == cnp.NPY_DOUBLE or names_half_type(query))


cdef inline void set_plain(cattn_array *array, cnp.ndarray given, cattn_type type, int batch_ndim,
                           bint is_blhd) noexcept:
    cdef int axis, ndim = cnp.PyArray_NDIM(given)
    array.data = cnp.PyArray_BYTES(given)
    array.type = type
    array.swapped = False
    for axis in range(batch_ndim):
        array.batch[axis] = cnp.PyArray_STRIDE(given, axis)
    array.head = cnp.PyArray_STRIDE(given, batch_ndim + is_blhd) if ndim > 2 else 0
    array.row = cnp.PyArray_STRIDE(given, ndim - 2 - is_blhd)
    array.column = cnp.PyArray_STRIDE(given, ndim - 1)


cdef inline bint set_plain_inputs(cattn_problem *problem, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value,
                                  object key_scale, object value_scale, bint is_blhd) except -1:
    """Set the inputs from three arrays of the usual kind and of matching shapes. Return False where there is anything
    to look at more closely."""
    cdef int number, key_number, ndim, axis, batch_ndim, head_axis, row_axis
    cdef cattn_type type, key_type
    cdef const cnp.npy_intp *query_shape
    cdef const cnp.npy_intp *key_shape
    cdef const cnp.npy_intp *value_shape
    # The name of a type is found by Python code, during which another thread may reshape the arrays. What follows runs
    # none.
    number = cnp.PyArray_TYPE(query)
    key_number = cnp.PyArray_TYPE(key)
    if not (are_types(number, key_number) and cnp.PyArray_ISBEHAVED_RO(query) and cnp.PyArray_ISBEHAVED_RO(key)
            and cnp.PyArray_ISBEHAVED_RO(value)):
        return False
    ndim = cnp.PyArray_NDIM(query)
    if (ndim < 2 or cnp.PyArray_NDIM(key) != ndim or cnp.PyArray_NDIM(value) != ndim
            or cnp.PyArray_TYPE(query) != number or cnp.PyArray_TYPE(key) != key_number
            or cnp.PyArray_TYPE(value) != key_number):
        return False
    is_blhd = is_blhd and ndim > 2
    batch_ndim = ndim - 3 if ndim > 2 else 0
    head_axis = batch_ndim + is_blhd
    row_axis = ndim - 2 - is_blhd
    query_shape = cnp.PyArray_DIMS(query)
    key_shape = cnp.PyArray_DIMS(key)
    value_shape = cnp.PyArray_DIMS(value)
    problem.batch_ndim = batch_ndim
    for axis in range(batch_ndim):
        if key_shape[axis] != query_shape[axis] or value_shape[axis] != query_shape[axis] or query_shape[axis] == 0:
            return False
        problem.batch_shape[axis] = query_shape[axis]
    problem.query_heads = query_shape[head_axis] if ndim > 2 else 1
    problem.key_heads = key_shape[head_axis] if ndim > 2 else 1
    problem.query_length = query_shape[row_axis]
    problem.key_length = key_shape[row_axis]
    problem.head_size = query_shape[ndim - 1]
    problem.value_size = value_shape[ndim - 1]
    if (problem.query_heads == 0 or problem.key_heads == 0 or problem.query_heads % problem.key_heads
            or (ndim > 2 and value_shape[head_axis] != problem.key_heads) or problem.query_length == 0
            or problem.key_length == 0 or value_shape[row_axis] != problem.key_length or problem.head_size == 0
            or key_shape[ndim - 1] != problem.head_size or problem.value_size == 0
            or problem.head_size > CATTN_LARGEST_HEAD or problem.value_size > CATTN_LARGEST_VALUE):
        return False
    type = storage_type(query)
    key_type = type if key_number == number else storage_type(key)
    set_plain(&problem.query, query, type, batch_ndim, is_blhd)
    set_plain(&problem.key, key, key_type, batch_ndim, is_blhd)
    set_plain(&problem.value, value, key_type, batch_ndim, is_blhd)
    set_unpacked(problem)
    problem.key_scale.data = problem.value_scale.data = NULL
    return (set_plain_scale(&problem.key_scale, key_scale, key, key_type, batch_ndim, is_blhd)
            and set_plain_scale(&problem.value_scale, value_scale, value, key_type, batch_ndim, is_blhd))


cdef inline bint set_plain_scale(cattn_array *array, object given, cnp.ndarray of, cattn_type type, int batch_ndim,
                                 bint is_blhd) noexcept:
    """Set the scale of plain keys or values, which is a plain array of float32 beside int8, or None beside other types.
    Return False where there is anything to look at more closely."""
    cdef cnp.ndarray scale
    cdef int ndim = cnp.PyArray_NDIM(of), axis
    if type != CATTN_INT8:
        return given is None
    if not cnp.PyArray_CheckExact(given):
        return False
    scale = <cnp.ndarray>given
    if (cnp.PyArray_TYPE(scale) != cnp.NPY_FLOAT or not cnp.PyArray_ISBEHAVED_RO(scale)
            or cnp.PyArray_NDIM(scale) != ndim):
        return False
    is_blhd = is_blhd and ndim > 2
    for axis in range(ndim - 1):
        if (axis != ndim - 2 - is_blhd or cnp.PyArray_DIM(scale, axis) != 1) and (
                cnp.PyArray_DIM(scale, axis) != cnp.PyArray_DIM(of, axis)):
            return False
    if cnp.PyArray_DIM(scale, ndim - 1) not in (1, cnp.PyArray_DIM(of, ndim - 1)):
        return False
    set_plain(array, scale, CATTN_FLOAT32, batch_ndim, is_blhd)
    return settle_scale(array, cnp.PyArray_DIM(scale, ndim - 2 - is_blhd), cnp.PyArray_DIM(scale, ndim - 1))


cdef inline void set_unmodified(cattn_problem *problem, double scale, bint causal) noexcept:
    problem.mask.data = problem.bias.data = problem.key_start.data = problem.key_stop.data = NULL
    problem.query_offset.data = problem.query_lengths.data = problem.key_lengths.data = NULL
    problem.alibi_slopes.data = problem.sinks.data = NULL
    problem.scale = scale
    problem.softcap = 0
    problem.window_left = CATTN_UNLIMITED
    problem.window_right = 0 if causal else CATTN_UNLIMITED


cdef inline bint is_apart(cnp.ndarray out, cnp.ndarray other) noexcept:
    """Return whether two contiguous arrays share no memory."""
    return (cnp.PyArray_ISCARRAY_RO(other)
            and (cnp.PyArray_BYTES(out) + cnp.PyArray_NBYTES(out) <= cnp.PyArray_BYTES(other)
                 or cnp.PyArray_BYTES(other) + cnp.PyArray_NBYTES(other) <= cnp.PyArray_BYTES(out)))


cdef inline bint is_plain_out(object out, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value, cattn_type type,
                              int ndim, const cnp.npy_intp *shape) noexcept:
    return (cnp.PyArray_CheckExact(out) and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
            and (cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(query)
                 or (cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.NPY_FLOAT and type != CATTN_FLOAT64))
            and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim
            and memcmp(cnp.PyArray_DIMS(<cnp.ndarray>out), shape, ndim * sizeof(cnp.npy_intp)) == 0
            and is_apart(<cnp.ndarray>out, query) and is_apart(<cnp.ndarray>out, key)
            and is_apart(<cnp.ndarray>out, value))


cdef inline object set_plain_out(cattn_problem *problem, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value,
                                 bint is_blhd, object given):
    """Return the output for plain inputs, which is `given` or a new array. Return None where there is anything to look
    at more closely."""
    cdef int ndim = cnp.PyArray_NDIM(query)
    cdef cattn_type type = problem.query.type
    cdef cnp.npy_intp shape[CATTN_MAX_BATCH_NDIM + 3]
    memcpy(shape, cnp.PyArray_DIMS(query), ndim * sizeof(cnp.npy_intp))
    shape[ndim - 1] = problem.value_size
    if given is None:
        try:
            given = cnp.PyArray_EMPTY(ndim, shape, cnp.PyArray_TYPE(query), 0)
        except (MemoryError, ValueError):   # too large: _arguments says it in words
            return None
    elif not is_plain_out(given, query, key, value, type, ndim, shape):
        return None
    elif cnp.PyArray_TYPE(<cnp.ndarray>given) == cnp.NPY_FLOAT:   # beside half types, too
        type = CATTN_FLOAT32
    set_plain(&problem.out, <cnp.ndarray>given, type, problem.batch_ndim, is_blhd and ndim > 2)
    return given


cdef inline object set_plain_lse(cattn_problem *problem, cnp.ndarray out, bint is_blhd):
    """Return a new array for the logarithms, of a plain output's shape without its last axis."""
    cdef int ndim = cnp.PyArray_NDIM(out) - 1
    cdef cnp.ndarray lse = cnp.PyArray_EMPTY(ndim, cnp.PyArray_DIMS(out),
                                             cnp.NPY_DOUBLE if problem.out.type == CATTN_FLOAT64
                                             else cnp.NPY_FLOAT, 0)
    set_array(&problem.lse, lse, problem.batch_ndim, ndim - problem.batch_ndim)
    if is_blhd or ndim == 1:
        problem.lse.head, problem.lse.row = problem.lse.row, problem.lse.head
    return lse
