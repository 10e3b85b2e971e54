# The call from C and Cython: the arguments that cattn.h describes → cattn_problem → a status, without Python.
#
# c_arguments.h has a row for each argument. The checks go through these rows in their order, and refuse what _arguments
# and _modifiers refuse. Nothing is converted except slopes and sinks, which the problem holds as float64.

from libc cimport errno
from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cattn cimport (
    CATTN_ARGUMENT_ARGS, CATTN_ARGUMENT_FLAGS, CATTN_ARGUMENT_KEY, CATTN_ARGUMENT_KEY_SCALE, CATTN_ARGUMENT_NUM_THREADS,
    CATTN_ARGUMENT_QUERY, CATTN_ARGUMENT_QUERY_OFFSET, CATTN_ARGUMENT_SCALE, CATTN_ARGUMENT_SOFTCAP,
    CATTN_ARGUMENT_VALUE, CATTN_ARGUMENT_VALUE_SCALE, CATTN_ARGUMENT_WINDOW, CATTN_CAUSAL, CATTN_HAS_SCALE,
    CATTN_HAS_WINDOW, CATTN_IS_MISSING, CATTN_IS_NULL, CATTN_IS_UNKNOWN, CATTN_MISALIGNED, CATTN_OFFSET_END,
    CATTN_OFFSET_START, CATTN_OVERLAPS, CATTN_WRONG_SHAPE, CATTN_WRONG_TYPE, CATTN_WRONG_VALUE, cattn_attention_args,
    cattn_ndarray)
from c_arguments cimport (
    CATTN_ARGUMENTS, CATTN_BROADCAST_ALL, CATTN_BROADCAST_NONE, CATTN_FAR, CATTN_KIND_ARRAY,
    CATTN_KNOWN_FLAGS, CATTN_LEAST_ARGS, CATTN_MOST_ARGS, CATTN_NUMBERS_LENGTHS, CATTN_NUMBERS_LOGITS,
    CATTN_NUMBERS_POSITIONS, cattn_argument, cattn_arguments, cattn_explain_status, cattn_given)
from c_arrays cimport check_given, copy_known, GivenArray, has_type, is_aligned, item_at, measure, overlap, wrong
from caller cimport ask_at_times, Caller, POLL_ENTRIES
from convert cimport gather_row
from execute cimport Cost, run
from machine cimport Machine
from plan cimport STAGE_OUTPUT
from problem cimport (
    CATTN_DONE, CATTN_FLOAT64, CATTN_INT64, CATTN_INT8, CATTN_LARGEST_HEAD, CATTN_LARGEST_VALUE, CATTN_NO_MEMORY,
    CATTN_STOPPED, CATTN_UNLIMITED, cattn_array, cattn_problem, cattn_type)
from rows cimport count_entries
from scales cimport settle_scale
from sizes cimport reserve, times
from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode
from tile cimport entry_integer
from tiles.tiles cimport cattn_table
from work cimport gains_by_threads, work_of


# A call while its arguments become a problem.
cdef struct CallFromC:
    cattn_attention_args args           # zeros stand for fields that the caller's struct lacks
    GivenArray given[CATTN_ARGUMENTS]   # in the order of the table
    int given_count
    cattn_problem problem
    int64_t offset                      # the offset from the end, if all entries have the same one
    char *copies                        # offsets from the end, slopes and sinks; NULL if there are none
    const cattn_table *table
    Caller caller
    int64_t polled                      # when the caller was last asked whether to stop, in ns; 0 before the first time
    Py_ssize_t entries                  # how many have been read since the last look at the clock


cdef inline bint wants_to_end(CallFromC *call, Py_ssize_t entries) noexcept nogil:
    """Return whether to give up after so many more entries. The caller is asked as often as in the tasks."""
    call.entries += entries
    if call.entries < POLL_ENTRIES:
        return False
    call.entries = 0
    return ask_at_times(&call.caller, &call.polled)


cdef inline int read_args(cattn_attention_args *args, const cattn_attention_args *given) noexcept nogil:
    """Copy what this version knows of a struct that may be shorter or longer."""
    if given == NULL:
        return wrong(CATTN_ARGUMENT_ARGS, CATTN_IS_NULL)
    if not CATTN_LEAST_ARGS <= given.struct_size <= CATTN_MOST_ARGS or (
            given.struct_size < sizeof(cattn_attention_args)
            and (given.struct_size - CATTN_LEAST_ARGS) % sizeof(size_t)):   # it ends within a number or a pointer
        return wrong(CATTN_ARGUMENT_ARGS, CATTN_WRONG_VALUE)
    if not copy_known(args, sizeof(cattn_attention_args), given, given.struct_size):
        return wrong(CATTN_ARGUMENT_ARGS, CATTN_IS_UNKNOWN)
    return CATTN_DONE


# Each array by itself


cdef inline cattn_array *place_of(cattn_problem *problem, const cattn_argument *argument) noexcept nogil:
    """Return the array of the problem that an argument becomes."""
    return <cattn_array *>(<char *>problem + argument.placed)


cdef inline int check_arrays(CallFromC *call) noexcept nogil:
    """Check each array by itself, and list those that are given."""
    cdef int number, status
    cdef GivenArray *array
    cdef size_t at
    call.given_count = 0
    for number in range(CATTN_ARGUMENTS):
        array = &call.given[call.given_count]
        array.number = number
        array.argument = &cattn_arguments[number]
        if array.argument.kind != CATTN_KIND_ARRAY:
            continue
        at = array.argument.given
        if at < call.args.struct_size < at + sizeof(cattn_ndarray):   # the caller's struct ends within the array
            return wrong(CATTN_ARGUMENT_ARGS, CATTN_WRONG_VALUE)
        array.ndarray = <cattn_ndarray *>cattn_given(&call.args, number)
        place_of(&call.problem, array.argument).data = NULL
        if array.argument.is_required or array.ndarray.data != NULL:
            status = check_given(array, array.argument.types)
            if (status == CATTN_DONE and array.argument.is_aligned and array.argument.beside == 0
                    and not is_aligned(array)):
                status = wrong(array.number, CATTN_MISALIGNED)
            if status != CATTN_DONE:
                return status
            call.given_count += 1
    return CATTN_DONE


# All together


cdef inline int check_types(const CallFromC *call) noexcept nogil:
    """Check the types that depend on the type of another array."""
    cdef const GivenArray *array
    cdef int i, other
    for i in range(call.given_count):
        array = &call.given[i]
        if array.argument.beside == 0:
            continue
        other = (<const cattn_ndarray *>cattn_given(&call.args, array.argument.beside)).type
        if not has_type(array.argument.types_beside[other], array.ndarray.type):
            return wrong(array.number, CATTN_WRONG_TYPE)
        if array.argument.is_aligned and not is_aligned(array):
            return wrong(array.number, CATTN_MISALIGNED)
    return CATTN_DONE


cdef inline Py_ssize_t *size_in(cattn_problem *problem, size_t axis) noexcept nogil:
    """Return where the problem holds the size of an axis, which is CATTN_HQ or another of c_arguments.h."""
    return <Py_ssize_t *>(<char *>problem + axis)


cdef inline void set_sizes(CallFromC *call) noexcept nogil:
    """Set the sizes of the problem. The first input that has an axis decides its size, except for a batch axis of 1."""
    cdef cattn_problem *problem = &call.problem
    cdef const cattn_ndarray *ndarray
    cdef int i, axis, leading
    problem.batch_ndim = max(call.args.query.ndim, call.args.key.ndim, call.args.value.ndim, 3) - 3
    for axis in range(problem.batch_ndim):
        problem.batch_shape[axis] = 1
    for i in range(call.given_count - 1, -1, -1):   # the first input comes last, and overwrites what others have set
        if not call.given[i].argument.is_input:
            continue
        ndarray = call.given[i].ndarray
        leading = ndarray.ndim - 3
        for axis in range(3):
            size_in(problem, call.given[i].argument.axes[axis])[0] = (
                ndarray.shape[leading + axis] if leading + axis >= 0 else 1)
        for axis in range(leading):
            if ndarray.shape[axis] != 1:
                problem.batch_shape[problem.batch_ndim - leading + axis] = ndarray.shape[axis]


cdef inline int check_sizes(const cattn_problem *problem, int number) noexcept nogil:
    """Check the sizes that the input of this number adds to those before."""
    cdef Py_ssize_t heads = problem.query_heads, key_heads = problem.key_heads
    if number == CATTN_ARGUMENT_QUERY and not 0 < problem.head_size <= CATTN_LARGEST_HEAD:
        return wrong(number, CATTN_WRONG_SHAPE)
    if number == CATTN_ARGUMENT_KEY and heads != key_heads and (heads == 0 or key_heads == 0 or heads % key_heads):
        return wrong(number, CATTN_WRONG_SHAPE)
    if number == CATTN_ARGUMENT_VALUE and problem.value_size > CATTN_LARGEST_VALUE:
        return CATTN_NO_MEMORY
    return CATTN_DONE


cdef inline bint take_axis(const GivenArray *array, int *left, Py_ssize_t size, bint broadcasts,
                           Py_ssize_t *stride) noexcept nogil:
    """Take the last axis that is left of an array as one of this size. Return whether it has it or broadcasts to it."""
    cdef bint is_there = left[0] > 0
    left[0] -= is_there
    if is_there and array.ndarray.shape[left[0]] == size:
        stride[0] = array.strides[left[0]]
        return True
    stride[0] = 0
    return broadcasts and (not is_there or array.ndarray.shape[left[0]] == 1)


cdef inline bint place_array(CallFromC *call, const GivenArray *array) noexcept nogil:
    """Describe an array as one of the problem, whose sizes are set. Return whether its shape is right."""
    cdef cattn_problem *problem = &call.problem
    cdef cattn_array *place = place_of(problem, array.argument)
    cdef bint has_heads = call.args.query.ndim != 2 or array.argument.axes[1] == 0   # slopes and sinks always have them
    cdef int axis, left = array.ndarray.ndim
    cdef Py_ssize_t strides[3]
    cdef size_t at
    for axis in range(2, -1, -1):
        strides[axis] = 0
        at = array.argument.axes[axis]
        if at != 0 and (axis > 0 or has_heads) and not take_axis(
                array, &left, size_in(problem, at)[0], array.argument.broadcast == CATTN_BROADCAST_ALL, &strides[axis]):
            return False
    for axis in range(problem.batch_ndim - 1, -1, -1):
        place.batch[axis] = 0
        if not array.argument.has_no_batch and not take_axis(
                array, &left, problem.batch_shape[axis], array.argument.broadcast != CATTN_BROADCAST_NONE,
                &place.batch[axis]):
            return False
    # An array without elements may come without data. It is given all the same.
    place.data = <char *>array.ndarray.data if array.ndarray.data != NULL else <char *>array.ndarray
    place.type = <cattn_type>array.ndarray.type
    place.swapped = False
    place.head = strides[0]
    place.row = strides[1]
    place.column = strides[2]
    return left == 0


cdef inline bint settle(CallFromC *call, const GivenArray *scale) noexcept nogil:
    """Settle the strides of a scale, and return whether it varies along one axis at most. A scale without elements
    belongs to no keys, and is not read."""
    cdef cattn_array *place = place_of(&call.problem, scale.argument)
    if scale.count == 0:
        place.data = NULL
    return settle_scale(place, size_in(&call.problem, scale.argument.axes[1])[0],
                        size_in(&call.problem, scale.argument.axes[2])[0])


cdef inline int check_scales(const CallFromC *call) noexcept nogil:
    """Check that int8 keys and values have scales. check_types has refused scales beside other types."""
    if call.problem.key.type == CATTN_INT8 and call.args.key_scale.data == NULL:
        return wrong(CATTN_ARGUMENT_KEY_SCALE, CATTN_IS_MISSING)
    if call.problem.value.type == CATTN_INT8 and call.args.value_scale.data == NULL:
        return wrong(CATTN_ARGUMENT_VALUE_SCALE, CATTN_IS_MISSING)
    return CATTN_DONE


cdef inline int place_arrays(CallFromC *call) noexcept nogil:
    """Describe all arrays as those of the problem."""
    cdef int i, status
    set_sizes(call)
    for i in range(call.given_count):
        if not place_array(call, &call.given[i]) or (call.given[i].argument.is_scale
                                                     and not settle(call, &call.given[i])):
            return wrong(call.given[i].number, CATTN_WRONG_SHAPE)
        status = check_sizes(&call.problem, call.given[i].number)
        if status != CATTN_DONE:
            return status
    return CATTN_DONE


cdef inline int check_results(const CallFromC *call) noexcept nogil:
    """Check that each array that is written lies apart from all others."""
    cdef int i, other
    for i in range(call.given_count):
        if not call.given[i].argument.is_result:
            continue
        if call.given[i].repeats and call.given[i].count > 0:
            return wrong(call.given[i].number, CATTN_OVERLAPS)
        for other in range(call.given_count):
            if other != i and overlap(&call.given[i], &call.given[other]):
                return wrong(call.given[i].number, CATTN_OVERLAPS)
    return CATTN_DONE


# Numbers


cdef inline int set_numbers(CallFromC *call) noexcept nogil:
    """Check the arguments that are no arrays, and set what they are in the problem."""
    cdef const cattn_attention_args *args = &call.args
    cdef cattn_problem *problem = &call.problem
    cdef bint is_double = args.query.type == CATTN_FLOAT64
    cdef double magnitude = abs(args.scale)
    if args.flags & ~<unsigned int>CATTN_KNOWN_FLAGS:
        return wrong(CATTN_ARGUMENT_FLAGS, CATTN_IS_UNKNOWN)
    if args.num_threads < 0:
        return wrong(CATTN_ARGUMENT_NUM_THREADS, CATTN_WRONG_VALUE)
    problem.scale = args.scale
    if not args.flags & CATTN_HAS_SCALE:
        problem.scale = 1 / sqrt(<double>problem.head_size)
        if args.scale != 0:   # this is true of NaN, too
            return wrong(CATTN_ARGUMENT_SCALE, CATTN_IS_MISSING)
    elif magnitude != 0 and not (DBL_MIN if is_double else FLT_MIN) <= magnitude <= (DBL_MAX if is_double else FLT_MAX):
        return wrong(CATTN_ARGUMENT_SCALE, CATTN_WRONG_VALUE)
    if not 0 <= args.softcap <= DBL_MAX:
        return wrong(CATTN_ARGUMENT_SOFTCAP, CATTN_WRONG_VALUE)
    # A subnormal softcap would count as 0 in the tasks' floating-point mode, and 0 means that there is none.
    problem.softcap = max(args.softcap, DBL_MIN) if args.softcap > 0 else 0
    problem.window_left = problem.window_right = CATTN_UNLIMITED
    if args.flags & CATTN_HAS_WINDOW:
        if min(args.window_left, args.window_right) < CATTN_UNLIMITED:
            return wrong(CATTN_ARGUMENT_WINDOW, CATTN_WRONG_VALUE)
        problem.window_left = min(args.window_left, CATTN_FAR)
        problem.window_right = min(args.window_right, CATTN_FAR)
    elif args.window_left != 0 or args.window_right != 0:
        return wrong(CATTN_ARGUMENT_WINDOW, CATTN_IS_MISSING)
    if args.flags & CATTN_CAUSAL:
        problem.window_right = 0
    return CATTN_DONE


cdef inline int check_offset(CallFromC *call) noexcept nogil:
    """Check that the position of the queries is not given twice, and is given if the result depends on it."""
    cdef const cattn_problem *problem = &call.problem
    cdef unsigned int words = call.args.flags & (CATTN_OFFSET_START | CATTN_OFFSET_END)
    cdef bint is_array = call.args.query_offset.data != NULL
    if words == (CATTN_OFFSET_START | CATTN_OFFSET_END) or (words != 0 and is_array):
        return wrong(CATTN_ARGUMENT_FLAGS, CATTN_WRONG_VALUE)
    if words == 0 and not is_array and problem.query_length != problem.key_length and (
            problem.window_left != CATTN_UNLIMITED or problem.window_right != CATTN_UNLIMITED
            or call.args.alibi_slopes.data != NULL):
        return wrong(CATTN_ARGUMENT_QUERY_OFFSET, CATTN_IS_MISSING)
    return CATTN_DONE


cdef inline int check_integers(CallFromC *call) noexcept nogil:
    """Check that positions and lengths are within their bounds."""
    cdef int64_t low, high
    cdef Py_ssize_t number
    cdef const GivenArray *array
    cdef int i
    for i in range(call.given_count):
        array = &call.given[i]
        if array.argument.numbers == CATTN_NUMBERS_POSITIONS:
            low, high = -CATTN_FAR, CATTN_FAR
        elif array.argument.numbers == CATTN_NUMBERS_LENGTHS:
            low, high = 0, size_in(&call.problem, array.argument.limit)[0]
        else:
            continue
        for number in range(array.count):
            if not low <= (<const int64_t *>item_at(array, number))[0] <= high:
                return wrong(array.number, CATTN_WRONG_VALUE)
            if wants_to_end(call, 1):
                return CATTN_STOPPED
    return CATTN_DONE


# What the problem reads and the caller does not have


cdef inline int count_from_end(CallFromC *call, int64_t *offsets, bint each) noexcept nogil:
    """Set the query offset at which the last query stands at the last key, of all entries or of each."""
    cdef cattn_problem *problem = &call.problem
    cdef cattn_array *offset = &problem.query_offset
    cdef Py_ssize_t entry, stride = sizeof(int64_t) if each else 0
    cdef int axis
    for entry in range(count_entries(problem) if each else 1):
        offsets[entry] = (entry_integer(problem, &problem.key_lengths, entry, problem.key_length)
                          - entry_integer(problem, &problem.query_lengths, entry, problem.query_length))
        if wants_to_end(call, 1):
            return CATTN_STOPPED
    offset.data = <char *>offsets
    offset.type = CATTN_INT64
    offset.swapped = False
    offset.head = offset.row = offset.column = 0
    for axis in range(problem.batch_ndim - 1, -1, -1):
        offset.batch[axis] = stride
        stride = times(stride, problem.batch_shape[axis])
    return CATTN_DONE


cdef inline int copy_doubles(CallFromC *call, GivenArray *array, double *to) noexcept nogil:
    """Copy an array over heads, of any floating type, and let the problem read the copy."""
    cdef Py_ssize_t heads = call.problem.query_heads, done = 0, piece, number
    cdef cattn_array row = place_of(&call.problem, array.argument)[0]
    row.column = row.head
    while done < array.count:
        piece = min(heads - done % heads, <Py_ssize_t>POLL_ENTRIES)
        gather_row(<char *>(to + done), CATTN_FLOAT64, &row, item_at(array, done), piece, call.table)
        for number in range(done, done + piece):
            if array.argument.numbers == CATTN_NUMBERS_LOGITS and not to[number] < INFINITY:   # true of NaN, too
                return wrong(array.number, CATTN_WRONG_VALUE)
        done += piece
        if wants_to_end(call, piece):
            return CATTN_STOPPED
    array.ndarray.data = to
    array.ndarray.type = CATTN_FLOAT64
    array.ndarray.strides = NULL
    measure(array)
    place_array(call, array)
    return CATTN_DONE


cdef inline int add_copies(CallFromC *call) noexcept nogil:
    """Compute offsets from the end, and copy slopes and sinks, in memory that belongs to this call."""
    cdef bint from_end = call.args.flags & CATTN_OFFSET_END != 0
    cdef bint each = from_end and (call.args.query_lengths.data != NULL or call.args.key_lengths.data != NULL)
    cdef Py_ssize_t at[CATTN_ARGUMENTS]
    cdef Py_ssize_t bytes = 0
    cdef int i, status = CATTN_DONE
    reserve(&bytes, times(count_entries(&call.problem), sizeof(int64_t)) if each else 0)
    for i in range(call.given_count):
        at[i] = bytes
        if call.given[i].argument.is_copied:
            reserve(&bytes, times(call.given[i].count, sizeof(double)))
    if bytes > 0:
        call.copies = <char *>malloc(bytes)
        if call.copies == NULL:
            return CATTN_NO_MEMORY
    if from_end:
        status = count_from_end(call, <int64_t *>call.copies if each else &call.offset, each)
    for i in range(call.given_count):
        if call.given[i].argument.is_copied and status == CATTN_DONE:
            status = copy_doubles(call, &call.given[i], <double *>(call.copies + at[i]))
    return status


# The call


cdef inline int set_problem_of(CallFromC *call) noexcept nogil:
    """Fill the problem from the arguments. Return the first status that is not CATTN_DONE, which is 0."""
    call.problem.query_indptr = call.problem.key_indptr = NULL
    call.problem.block_table = call.problem.paged_lengths = NULL
    return (check_arrays(call) or check_types(call) or place_arrays(call) or check_scales(call) or check_results(call)
            or set_numbers(call) or check_offset(call) or check_integers(call) or add_copies(call))


cdef inline int run_for_c(const CallFromC *call, const Machine *machine) noexcept nogil:
    """Compute the problem of a call whose arguments are right."""
    cdef Cost cost
    cost.task_times = NULL
    cost.threads = min(max(call.args.num_threads, 1), machine.most_threads)
    if not gains_by_threads(&call.problem, work_of(&call.problem)):
        cost.threads = 1
    return run(&call.problem, STAGE_OUTPUT, machine, &call.caller, &cost)


cdef inline int attend_for_c(const cattn_attention_args *args, const Machine *machine) noexcept nogil:
    """Do what cattn_attention promises, and return its status."""
    cdef CallFromC call
    cdef int callers_errno = errno.errno
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef int status = read_args(&call.args, args)
    if status == CATTN_DONE:
        call.table = &machine.table
        call.caller = Caller(call.args.wants_to_stop, call.args.context, callers_mode)
        call.polled = call.entries = 0
        call.copies = NULL
        status = set_problem_of(&call) or run_for_c(&call, machine)
        free(call.copies)
    cattn_change_float_mode(callers_mode)
    errno.errno = callers_errno
    return status


cdef inline void find_range(const cattn_ndarray *ndarray, int64_t *least, int64_t *most) noexcept nogil:
    """Find the least and the largest integer of an array."""
    cdef Py_ssize_t number
    cdef int64_t value
    cdef GivenArray array
    array.ndarray = <cattn_ndarray *>ndarray
    measure(&array)
    least[0] = INT64_MAX
    most[0] = INT64_MIN
    for number in range(array.count):
        value = (<const int64_t *>item_at(&array, number))[0]
        least[0] = min(least[0], value)
        most[0] = max(most[0], value)


cdef inline size_t explain_for_c(const cattn_attention_args *given, int status, char *text, size_t size) noexcept nogil:
    """Write what cattn_explain promises. If the size of the struct is wrong, nothing else of it is read."""
    cdef cattn_attention_args args
    if given == NULL:
        return cattn_explain_status(NULL, status, find_range, text, size)
    memset(&args, 0, sizeof(args))
    read_args(&args, given)
    args.struct_size = given.struct_size
    return cattn_explain_status(&args, status, find_range, text, size)
