# The call of cattn_maxsim: the arguments that cattn.h describes → Maxsim → a status, without Python.

from libc cimport errno
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from cattn cimport (
    CATTN_IS_MISSING, CATTN_IS_NULL, CATTN_IS_UNKNOWN, CATTN_MAXSIM_ARGS, CATTN_MAXSIM_DOCUMENT,
    CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_MAXSIM_DOCUMENT_LENGTHS, CATTN_MAXSIM_END, CATTN_MAXSIM_INDEX, CATTN_MAXSIM_NUM_THREADS,
    CATTN_MAXSIM_OUT, CATTN_MAXSIM_QUERY, CATTN_MAXSIM_QUERY_LENGTHS, CATTN_MISALIGNED, CATTN_OVERLAPS,
    CATTN_WRONG_SHAPE, CATTN_WRONG_TYPE, CATTN_WRONG_VALUE, cattn_maxsim_args, cattn_ndarray)
from c_arguments cimport CATTN_MOST_ARGS
from caller cimport Caller, is_stopped
from convert cimport is_half_type, item_size
from maxsim cimport Maxsim, run_maxsim
from plan cimport Machine
from problem cimport (
    CATTN_DONE, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOATS, CATTN_INT64, CATTN_LARGEST_HEAD, CATTN_STOPPED,
    cattn_array, cattn_type)
from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode


cdef inline int refused(int number, int reason) noexcept nogil:
    """Return the status of an argument that is refused for a reason."""
    return number << 8 | reason


cdef inline bint has_shape(const cattn_ndarray *array, int ndim, Py_ssize_t first, Py_ssize_t second,
                           Py_ssize_t third) noexcept nogil:
    """Return whether an array has so many axes of these sizes, where -1 is any size."""
    cdef Py_ssize_t[3] sizes = [first, second, third]
    cdef int axis
    if array.ndim != ndim:
        return False
    for axis in range(ndim):
        if array.shape[axis] < 0 or sizes[axis] >= 0 and array.shape[axis] != sizes[axis]:
            return False
    return True


cdef inline Py_ssize_t stride_of(const cattn_ndarray *array, int axis) noexcept nogil:
    """Return the bytes from one element to the next along an axis. Without strides, the array is contiguous."""
    cdef Py_ssize_t stride = item_size(<cattn_type>array.type)
    cdef int other
    if array.strides != NULL:
        return array.strides[axis]
    for other in range(axis + 1, array.ndim):
        stride *= array.shape[other]
    return stride


cdef inline void place(cattn_array *to, const cattn_ndarray *array, bint has_batch, bint has_row,
                       bint has_column) noexcept nogil:
    """Describe an array whose last axes are those of (batch, row, column) that are there."""
    cdef int axis = array.ndim - 1
    memset(to, 0, sizeof(cattn_array))
    to.data = <char *>array.data
    if array.data == NULL:
        return
    to.type = <cattn_type>array.type
    if has_column:
        to.column = stride_of(array, axis)
        axis -= 1
    if has_row:
        to.row = stride_of(array, axis)
        axis -= 1
    if has_batch and axis >= 0:
        to.batch[0] = stride_of(array, axis)


cdef inline bint is_contiguous(const cattn_ndarray *array) noexcept nogil:
    """Return whether the elements lie one behind the other."""
    cdef Py_ssize_t expected = item_size(<cattn_type>array.type)
    cdef int axis
    for axis in range(array.ndim - 1, -1, -1):
        if array.shape[axis] > 1 and stride_of(array, axis) != expected:
            return False
        expected *= array.shape[axis]
    return True


cdef inline Py_ssize_t bytes_of(const cattn_ndarray *array) noexcept nogil:
    """Return the bytes of an array's elements."""
    cdef Py_ssize_t bytes = item_size(<cattn_type>array.type)
    cdef int axis
    for axis in range(array.ndim):
        bytes *= array.shape[axis]
    return bytes


cdef inline bint overlaps(const cattn_ndarray *one, const cattn_ndarray *other) noexcept nogil:
    """Return whether two arrays share memory, as far as this is easily seen."""
    cdef const char *begin = <const char *>one.data
    cdef const char *other_begin = <const char *>other.data
    if begin == NULL or other_begin == NULL or bytes_of(one) == 0 or bytes_of(other) == 0:
        return False
    return begin == other_begin or (is_contiguous(one) and is_contiguous(other)
                                    and begin < other_begin + bytes_of(other)
                                    and other_begin < begin + bytes_of(one))


cdef inline const cattn_ndarray *array_of(const cattn_maxsim_args *args, int number) noexcept nogil:
    """Return the array that has this number, or NULL if the argument is no array."""
    if number == CATTN_MAXSIM_QUERY:
        return &args.query
    if number == CATTN_MAXSIM_DOCUMENT:
        return &args.document
    if number == CATTN_MAXSIM_OUT:
        return &args.out
    if number == CATTN_MAXSIM_QUERY_LENGTHS:
        return &args.query_lengths
    if number == CATTN_MAXSIM_DOCUMENT_LENGTHS:
        return &args.document_lengths
    if number == CATTN_MAXSIM_DOCUMENT_INDPTR:
        return &args.document_indptr
    return &args.index if number == CATTN_MAXSIM_INDEX else NULL


cdef inline int check_result(const cattn_maxsim_args *args, int number) noexcept nogil:
    """Check that an array that is written lies apart from all others, and from itself."""
    cdef const cattn_ndarray *result = array_of(args, number)
    cdef int other, axis
    if result.data == NULL or bytes_of(result) == 0:
        return CATTN_DONE
    for other in range(<int>CATTN_MAXSIM_QUERY, <int>CATTN_MAXSIM_END):
        if other != number and overlaps(result, array_of(args, other)):
            return refused(number, CATTN_OVERLAPS)
    for axis in range(result.ndim):
        if result.shape[axis] > 1 and stride_of(result, axis) == 0:
            return refused(number, CATTN_OVERLAPS)
    return CATTN_DONE


cdef inline int check_arrays(const cattn_maxsim_args *args) noexcept nogil:
    """Check that arrays are there, with shapes and types of their own."""
    cdef const cattn_ndarray *array
    cdef bint is_float
    cdef int number
    for number in range(<int>CATTN_MAXSIM_QUERY, <int>CATTN_MAXSIM_END):
        array = array_of(args, number)
        is_float = number <= <int>CATTN_MAXSIM_OUT
        if array.data == NULL and not is_float:
            continue
        if array.data == NULL or (array.shape == NULL and array.ndim > 0):
            return refused(number, CATTN_IS_NULL)
        if not (0 <= array.type < <int>CATTN_FLOATS if is_float else array.type == <int>CATTN_INT64):
            return refused(number, CATTN_WRONG_TYPE)
    return CATTN_DONE


cdef inline int check_shapes(Maxsim *problem, const cattn_maxsim_args *args) noexcept nogil:
    """Check shapes and types beside each other, and set the sizes of the problem."""
    cdef const cattn_ndarray *query = &args.query
    cdef const cattn_ndarray *document = &args.document
    cdef bint several = query.ndim == 3, packed = args.document_indptr.data != NULL
    cdef int expected = CATTN_FLOAT64 if query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    if not (has_shape(query, 2, -1, -1, 0) or has_shape(query, 3, -1, -1, -1)) or (
            not 1 <= query.shape[query.ndim - 1] <= CATTN_LARGEST_HEAD):
        return refused(CATTN_MAXSIM_QUERY, CATTN_WRONG_SHAPE)
    problem.queries = query.shape[0] if several else 1
    problem.query_length = query.shape[query.ndim - 2]
    problem.size = query.shape[query.ndim - 1]
    if not has_shape(document, 2, -1, problem.size, 0) and not has_shape(document, 3, -1, -1, problem.size):
        return refused(CATTN_MAXSIM_DOCUMENT, CATTN_WRONG_SHAPE)
    if document.type != query.type and not (query.type == CATTN_FLOAT32 and is_half_type(document.type)):
        return refused(CATTN_MAXSIM_DOCUMENT, CATTN_WRONG_TYPE)
    if packed != (document.ndim == 2):
        return refused(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_SHAPE if packed else CATTN_IS_MISSING)
    if packed and (not has_shape(&args.document_indptr, 1, -1, 0, 0) or args.document_indptr.shape[0] == 0
                   or not is_contiguous(&args.document_indptr)):
        return refused(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_SHAPE)
    problem.documents = args.document_indptr.shape[0] - 1 if packed else document.shape[0]
    problem.document_length = document.shape[document.ndim - 2]
    if not (has_shape(&args.out, 2, problem.queries, problem.documents, 0) if several
            else has_shape(&args.out, 1, problem.documents, 0, 0)):
        return refused(CATTN_MAXSIM_OUT, CATTN_WRONG_SHAPE)
    if args.out.type != expected:
        return refused(CATTN_MAXSIM_OUT, CATTN_WRONG_TYPE)
    if args.query_lengths.data != NULL and not has_shape(&args.query_lengths, 1, problem.queries, 0, 0):
        return refused(CATTN_MAXSIM_QUERY_LENGTHS, CATTN_WRONG_SHAPE)
    if args.document_lengths.data != NULL and (
            packed or not has_shape(&args.document_lengths, 1, problem.documents, 0, 0)):
        return refused(CATTN_MAXSIM_DOCUMENT_LENGTHS, CATTN_WRONG_SHAPE)
    if args.index.data != NULL and not (
            has_shape(&args.index, 3, problem.queries, problem.documents, problem.query_length) if several
            else has_shape(&args.index, 2, problem.documents, problem.query_length, 0)):
        return refused(CATTN_MAXSIM_INDEX, CATTN_WRONG_SHAPE)
    return CATTN_DONE


cdef inline int check_lengths(const cattn_ndarray *array, int number, Py_ssize_t most,
                              const Caller *caller) noexcept nogil:
    """Check lengths, which lie from 0 to `most`."""
    cdef Py_ssize_t i, stride
    cdef int64_t length
    if array.data == NULL:
        return CATTN_DONE
    stride = stride_of(array, 0)
    if (<Py_ssize_t>array.data | stride) & 7:
        return refused(number, CATTN_MISALIGNED)
    for i in range(array.shape[0]):
        length = (<const int64_t *>(<const char *>array.data + i * stride))[0]
        if not 0 <= length <= most:
            return refused(number, CATTN_WRONG_VALUE)
        if is_stopped(caller, i):
            return CATTN_STOPPED
    return CATTN_DONE


cdef inline int check_indptr(const cattn_ndarray *array, Py_ssize_t total, const Caller *caller) noexcept nogil:
    """Check that numbers ascend from 0 to the total."""
    cdef const int64_t *indptr = <const int64_t *>array.data
    cdef Py_ssize_t i
    if indptr == NULL:
        return CATTN_DONE
    if <Py_ssize_t>indptr & 7:
        return refused(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_MISALIGNED)
    if indptr[0] != 0 or indptr[array.shape[0] - 1] != total:
        return refused(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_VALUE)
    for i in range(array.shape[0] - 1):
        if indptr[i] > indptr[i + 1]:
            return refused(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_VALUE)
        if is_stopped(caller, i):
            return CATTN_STOPPED
    return CATTN_DONE


cdef inline int set_maxsim_of(Maxsim *problem, const cattn_maxsim_args *args, const Caller *caller) noexcept nogil:
    """Fill the problem from the arguments. Return the first status that is not CATTN_DONE, which is 0."""
    cdef bint packed = args.document_indptr.data != NULL
    cdef int status = check_arrays(args) or check_shapes(problem, args)
    if status == CATTN_DONE and args.num_threads < 0:
        status = refused(CATTN_MAXSIM_NUM_THREADS, CATTN_WRONG_VALUE)
    if status == CATTN_DONE:
        status = check_result(args, CATTN_MAXSIM_OUT)
    if status == CATTN_DONE:
        status = check_result(args, CATTN_MAXSIM_INDEX)
    if status == CATTN_DONE:
        status = (check_lengths(&args.query_lengths, CATTN_MAXSIM_QUERY_LENGTHS, problem.query_length, caller)
                  or check_lengths(&args.document_lengths, CATTN_MAXSIM_DOCUMENT_LENGTHS, problem.document_length,
                                   caller)
                  or check_indptr(&args.document_indptr, problem.document_length, caller))
    if status != CATTN_DONE:
        return status
    place(&problem.query, &args.query, True, True, True)
    place(&problem.document, &args.document, not packed, True, True)
    place(&problem.out, &args.out, True, True, False)
    place(&problem.index, &args.index, True, True, True)
    place(&problem.query_lengths, &args.query_lengths, True, False, False)
    place(&problem.document_lengths, &args.document_lengths, True, False, False)
    problem.document_indptr = <const int64_t *>args.document_indptr.data
    return CATTN_DONE


cdef inline int read_maxsim_args(cattn_maxsim_args *args, const cattn_maxsim_args *given) noexcept nogil:
    """Copy what this version knows of a struct that may be longer."""
    cdef size_t at
    if given == NULL:
        return refused(CATTN_MAXSIM_ARGS, CATTN_IS_NULL)
    if not sizeof(cattn_maxsim_args) <= given.struct_size <= CATTN_MOST_ARGS:
        return refused(CATTN_MAXSIM_ARGS, CATTN_WRONG_VALUE)
    for at in range(sizeof(cattn_maxsim_args), given.struct_size):
        if (<const char *>given)[at] != 0:
            return refused(CATTN_MAXSIM_ARGS, CATTN_IS_UNKNOWN)
    memcpy(args, given, sizeof(cattn_maxsim_args))
    return CATTN_DONE


cdef inline int compare_for_c(const cattn_maxsim_args *given, const Machine *machine) noexcept nogil:
    """Do what cattn_maxsim promises, and return its status."""
    cdef cattn_maxsim_args args
    cdef Maxsim problem
    cdef Caller caller
    cdef Py_ssize_t threads, bytes
    cdef int callers_errno = errno.errno
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef int status = read_maxsim_args(&args, given)
    if status == CATTN_DONE:
        caller = Caller(args.wants_to_stop, args.context, callers_mode)
        status = set_maxsim_of(&problem, &args, &caller)
    if status == CATTN_DONE:
        threads = min(max(args.num_threads, 1), machine.most_threads)
        status = run_maxsim(&problem, machine, &caller, &threads, &bytes)
    cattn_change_float_mode(callers_mode)
    errno.errno = callers_errno
    return status
