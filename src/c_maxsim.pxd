# The call of cattn_maxsim: the arguments that cattn.h describes → Maxsim → a status, without Python.

from libc cimport errno
from libc.stdint cimport int64_t
from libc.string cimport memset

from c_arrays cimport check_given, copy_known, GivenArray, is_aligned, overlap, wrong
from cattn cimport (
    CATTN_IS_MISSING, CATTN_IS_NULL, CATTN_IS_UNKNOWN, CATTN_MAXSIM_ARGS, CATTN_MAXSIM_DOCUMENT,
    CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_MAXSIM_DOCUMENT_LENGTHS, CATTN_MAXSIM_END, CATTN_MAXSIM_INDEX,
    CATTN_MAXSIM_NUM_THREADS, CATTN_MAXSIM_OUT, CATTN_MAXSIM_QUERY, CATTN_MAXSIM_QUERY_LENGTHS, CATTN_MISALIGNED,
    CATTN_OVERLAPS, CATTN_WRONG_SHAPE, CATTN_WRONG_TYPE, CATTN_WRONG_VALUE, cattn_maxsim_args, cattn_ndarray)
from c_arguments cimport CATTN_MOST_ARGS
from caller cimport Caller, is_stopped
from convert cimport is_half_type
from machine cimport Machine
from maxsim cimport Maxsim, run_maxsim
from problem cimport (
    CATTN_DONE, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOATS, CATTN_INT64, CATTN_LARGEST_HEAD, CATTN_STOPPED,
    cattn_array, cattn_type)
from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode


# A call while its arguments become a problem.
cdef struct MaxsimFromC:
    cattn_maxsim_args args
    GivenArray given[CATTN_MAXSIM_END - CATTN_MAXSIM_QUERY]   # by number; the ndarray is NULL where none is given
    Maxsim problem
    Caller caller


cdef inline const GivenArray *given_array(const MaxsimFromC *call, int number) noexcept nogil:
    """Return the measured array that has this number."""
    return &call.given[number - <int>CATTN_MAXSIM_QUERY]


cdef inline cattn_ndarray *array_of(cattn_maxsim_args *args, int number) noexcept nogil:
    """Return the array that has this number, which is that of an array."""
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
    return &args.document_indptr if number == CATTN_MAXSIM_DOCUMENT_INDPTR else &args.index


cdef inline int check_arrays(MaxsimFromC *call) noexcept nogil:
    """Check each array by itself. The first ones hold floats and must be given; the others hold integers."""
    cdef unsigned int floats = (1u << <int>CATTN_FLOATS) - 1, integers = 1u << <int>CATTN_INT64
    cdef cattn_ndarray *ndarray
    cdef GivenArray *array
    cdef int number, status
    for number in range(<int>CATTN_MAXSIM_QUERY, <int>CATTN_MAXSIM_END):
        array = <GivenArray *>given_array(call, number)
        ndarray = array_of(&call.args, number)
        array.number = number
        array.ndarray = NULL
        if ndarray.data == NULL and number > <int>CATTN_MAXSIM_OUT:
            continue
        array.ndarray = ndarray
        status = check_given(array, floats if number <= <int>CATTN_MAXSIM_OUT else integers)
        if status != CATTN_DONE:
            return status
    return CATTN_DONE


cdef inline bint has_shape(const cattn_ndarray *array, int ndim, Py_ssize_t first, Py_ssize_t second,
                           Py_ssize_t third) noexcept nogil:
    """Return whether an array has so many axes of these sizes, where -1 is any size."""
    cdef Py_ssize_t[3] sizes = [first, second, third]
    cdef int axis
    if array.ndim != ndim:
        return False
    for axis in range(ndim):
        if sizes[axis] >= 0 and array.shape[axis] != sizes[axis]:
            return False
    return True


cdef inline int check_shapes(MaxsimFromC *call) noexcept nogil:
    """Check shapes and types beside each other, and set the sizes of the problem."""
    cdef const cattn_maxsim_args *args = &call.args
    cdef Maxsim *problem = &call.problem
    cdef const cattn_ndarray *query = &args.query
    cdef const cattn_ndarray *document = &args.document
    cdef bint several = query.ndim == 3, packed = args.document_indptr.data != NULL
    cdef int expected = CATTN_FLOAT64 if query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    if not (has_shape(query, 2, -1, -1, 0) or has_shape(query, 3, -1, -1, -1)) or (
            not 1 <= query.shape[query.ndim - 1] <= CATTN_LARGEST_HEAD):
        return wrong(CATTN_MAXSIM_QUERY, CATTN_WRONG_SHAPE)
    problem.queries = query.shape[0] if several else 1
    problem.query_length = query.shape[query.ndim - 2]
    problem.size = query.shape[query.ndim - 1]
    if not has_shape(document, 2, -1, problem.size, 0) and not has_shape(document, 3, -1, -1, problem.size):
        return wrong(CATTN_MAXSIM_DOCUMENT, CATTN_WRONG_SHAPE)
    if document.type != query.type and not (query.type == CATTN_FLOAT32 and is_half_type(document.type)):
        return wrong(CATTN_MAXSIM_DOCUMENT, CATTN_WRONG_TYPE)
    if packed != (document.ndim == 2):
        return wrong(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_SHAPE if packed else CATTN_IS_MISSING)
    if packed and (not has_shape(&args.document_indptr, 1, -1, 0, 0) or args.document_indptr.shape[0] == 0
                   or not given_array(call, CATTN_MAXSIM_DOCUMENT_INDPTR).is_contiguous):
        return wrong(CATTN_MAXSIM_DOCUMENT_INDPTR, CATTN_WRONG_SHAPE)
    problem.documents = args.document_indptr.shape[0] - 1 if packed else document.shape[0]
    problem.document_length = document.shape[document.ndim - 2]
    if not (has_shape(&args.out, 2, problem.queries, problem.documents, 0) if several
            else has_shape(&args.out, 1, problem.documents, 0, 0)):
        return wrong(CATTN_MAXSIM_OUT, CATTN_WRONG_SHAPE)
    if args.out.type != expected:
        return wrong(CATTN_MAXSIM_OUT, CATTN_WRONG_TYPE)
    if args.query_lengths.data != NULL and not has_shape(&args.query_lengths, 1, problem.queries, 0, 0):
        return wrong(CATTN_MAXSIM_QUERY_LENGTHS, CATTN_WRONG_SHAPE)
    if args.document_lengths.data != NULL and (
            packed or not has_shape(&args.document_lengths, 1, problem.documents, 0, 0)):
        return wrong(CATTN_MAXSIM_DOCUMENT_LENGTHS, CATTN_WRONG_SHAPE)
    if args.index.data != NULL and not (
            has_shape(&args.index, 3, problem.queries, problem.documents, problem.query_length) if several
            else has_shape(&args.index, 2, problem.documents, problem.query_length, 0)):
        return wrong(CATTN_MAXSIM_INDEX, CATTN_WRONG_SHAPE)
    return CATTN_DONE


cdef inline int check_result(const MaxsimFromC *call, int number) noexcept nogil:
    """Check that an array that is written lies apart from all others, and from itself."""
    cdef const GivenArray *result = given_array(call, number)
    cdef int other
    if result.ndarray == NULL:
        return CATTN_DONE
    if result.repeats and result.count > 0:
        return wrong(number, CATTN_OVERLAPS)
    for other in range(<int>CATTN_MAXSIM_QUERY, <int>CATTN_MAXSIM_END):
        if other != number and given_array(call, other).ndarray != NULL and overlap(result, given_array(call, other)):
            return wrong(number, CATTN_OVERLAPS)
    return CATTN_DONE


cdef inline int check_lengths(const MaxsimFromC *call, int number, Py_ssize_t most) noexcept nogil:
    """Check lengths, which lie from 0 to `most`."""
    cdef const GivenArray *array = given_array(call, number)
    cdef Py_ssize_t i
    cdef int64_t length
    if array.ndarray == NULL:
        return CATTN_DONE
    if not is_aligned(array):
        return wrong(number, CATTN_MISALIGNED)
    for i in range(array.count):
        length = (<const int64_t *>(<const char *>array.ndarray.data + i * array.strides[0]))[0]
        if not 0 <= length <= most:
            return wrong(number, CATTN_WRONG_VALUE)
        if is_stopped(&call.caller, i):
            return CATTN_STOPPED
    return CATTN_DONE


cdef inline int check_indptr(const MaxsimFromC *call) noexcept nogil:
    """Check that the numbers at which documents begin ascend from 0 to the length of all documents."""
    cdef const GivenArray *array = given_array(call, CATTN_MAXSIM_DOCUMENT_INDPTR)
    cdef const int64_t *indptr
    cdef Py_ssize_t i
    if array.ndarray == NULL:
        return CATTN_DONE
    if not is_aligned(array):
        return wrong(array.number, CATTN_MISALIGNED)
    indptr = <const int64_t *>array.ndarray.data
    if indptr[0] != 0 or indptr[array.count - 1] != call.problem.document_length:
        return wrong(array.number, CATTN_WRONG_VALUE)
    for i in range(array.count - 1):
        if indptr[i] > indptr[i + 1]:
            return wrong(array.number, CATTN_WRONG_VALUE)
        if is_stopped(&call.caller, i):
            return CATTN_STOPPED
    return CATTN_DONE


cdef inline void place(cattn_array *to, const GivenArray *array, bint has_batch, bint has_row,
                       bint has_column) noexcept nogil:
    """Describe an array whose last axes are those of (batch, row, column) that are there."""
    cdef int axis
    memset(to, 0, sizeof(cattn_array))
    if array.ndarray == NULL:
        return
    axis = array.ndarray.ndim - 1
    to.data = <char *>array.ndarray.data
    to.type = <cattn_type>array.ndarray.type
    if has_column:
        to.column = array.strides[axis]
        axis -= 1
    if has_row:
        to.row = array.strides[axis]
        axis -= 1
    if has_batch and axis >= 0:
        to.batch[0] = array.strides[axis]


cdef inline void place_arrays(MaxsimFromC *call) noexcept nogil:
    """Describe all arrays."""
    cdef Maxsim *problem = &call.problem
    cdef bint packed = call.args.document_indptr.data != NULL
    place(&problem.query, given_array(call, CATTN_MAXSIM_QUERY), True, True, True)
    place(&problem.document, given_array(call, CATTN_MAXSIM_DOCUMENT), not packed, True, True)
    place(&problem.out, given_array(call, CATTN_MAXSIM_OUT), True, True, False)
    place(&problem.index, given_array(call, CATTN_MAXSIM_INDEX), True, True, True)
    place(&problem.query_lengths, given_array(call, CATTN_MAXSIM_QUERY_LENGTHS), True, False, False)
    place(&problem.document_lengths, given_array(call, CATTN_MAXSIM_DOCUMENT_LENGTHS), True, False, False)
    problem.document_indptr = <const int64_t *>call.args.document_indptr.data


cdef inline int check_num_threads(const MaxsimFromC *call) noexcept nogil:
    return wrong(CATTN_MAXSIM_NUM_THREADS, CATTN_WRONG_VALUE) if call.args.num_threads < 0 else <int>CATTN_DONE


cdef inline int set_maxsim_of(MaxsimFromC *call) noexcept nogil:
    """Fill the problem from the arguments. Return the first status that is not CATTN_DONE, which is 0."""
    cdef int status = (
        check_arrays(call) or check_shapes(call) or check_num_threads(call)
        or check_result(call, CATTN_MAXSIM_OUT) or check_result(call, CATTN_MAXSIM_INDEX)
        or check_lengths(call, CATTN_MAXSIM_QUERY_LENGTHS, call.problem.query_length)
        or check_lengths(call, CATTN_MAXSIM_DOCUMENT_LENGTHS, call.problem.document_length)
        or check_indptr(call))
    if status == CATTN_DONE:
        place_arrays(call)
    return status


cdef inline int read_maxsim_args(cattn_maxsim_args *args, const cattn_maxsim_args *given) noexcept nogil:
    """Copy what this version knows of a struct that may be longer."""
    if given == NULL:
        return wrong(CATTN_MAXSIM_ARGS, CATTN_IS_NULL)
    if not sizeof(cattn_maxsim_args) <= given.struct_size <= CATTN_MOST_ARGS:
        return wrong(CATTN_MAXSIM_ARGS, CATTN_WRONG_VALUE)
    if not copy_known(args, sizeof(cattn_maxsim_args), given, given.struct_size):
        return wrong(CATTN_MAXSIM_ARGS, CATTN_IS_UNKNOWN)
    return CATTN_DONE


cdef inline int compare_for_c(const cattn_maxsim_args *given, const Machine *machine) noexcept nogil:
    """Do what cattn_maxsim promises, and return its status."""
    cdef MaxsimFromC call
    cdef Py_ssize_t threads, bytes
    cdef int callers_errno = errno.errno
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef int status = read_maxsim_args(&call.args, given)
    if status == CATTN_DONE:
        call.caller = Caller(call.args.wants_to_stop, call.args.context, callers_mode)
        status = set_maxsim_of(&call)
    if status == CATTN_DONE:
        threads = min(max(call.args.num_threads, 1), machine.most_threads)
        status = run_maxsim(&call.problem, machine, &call.caller, &threads, &bytes)
    cattn_change_float_mode(callers_mode)
    errno.errno = callers_errno
    return status
