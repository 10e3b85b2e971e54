# The call from C and Cython: the arguments that cattn.h describes → cattn_problem → a status, without Python.
#
# It refuses what _arguments and _modifiers refuse. It does not convert what they convert, except for slopes and sinks,
# which the problem holds as float64.

from libc cimport errno
from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cattn cimport (
    CATTN_ARGUMENT_ALIBI_SLOPES, CATTN_ARGUMENT_ARGS, CATTN_ARGUMENT_BIAS, CATTN_ARGUMENT_FLAGS, CATTN_ARGUMENT_KEY,
    CATTN_ARGUMENT_KEY_LENGTHS, CATTN_ARGUMENT_KEY_START, CATTN_ARGUMENT_KEY_STOP, CATTN_ARGUMENT_LSE,
    CATTN_ARGUMENT_MASK, CATTN_ARGUMENT_NUM_THREADS, CATTN_ARGUMENT_OUT, CATTN_ARGUMENT_QUERY,
    CATTN_ARGUMENT_QUERY_LENGTHS, CATTN_ARGUMENT_QUERY_OFFSET, CATTN_ARGUMENT_SCALE, CATTN_ARGUMENT_SINKS,
    CATTN_ARGUMENT_SOFTCAP, CATTN_ARGUMENT_VALUE, CATTN_ARGUMENT_WINDOW, CATTN_CAUSAL, CATTN_HAS_SCALE,
    CATTN_HAS_WINDOW, CATTN_IS_MISSING, CATTN_IS_NULL, CATTN_IS_UNKNOWN, CATTN_MISALIGNED, CATTN_OFFSET_END,
    CATTN_OFFSET_START, CATTN_OVERLAPS, CATTN_WRONG_SHAPE, CATTN_WRONG_TYPE, CATTN_WRONG_VALUE, cattn_attention_args,
    cattn_ndarray)
from caller cimport ask, Caller, POLL_ENTRIES
from convert cimport gather_row, is_multiple, item_size
from execute cimport execute, execute_wide, prepare, Prepared
from plan cimport STAGE_OUTPUT, Machine
from problem cimport (
    CATTN_BFLOAT16, CATTN_BOOL, CATTN_DONE, CATTN_FLOAT16, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOATS, CATTN_INT64,
    CATTN_LARGEST_HEAD, CATTN_LARGEST_VALUE, CATTN_NO_MEMORY, CATTN_STOPPED, CATTN_UNLIMITED, cattn_array,
    cattn_problem, cattn_status, cattn_type)
from schedule cimport gains_by_threads
from sizes cimport reserve, times
from system.system cimport CATTN_USUAL_MODE, cattn_change_float_mode, cattn_now
from tile cimport entry_integer
from tiles.tiles cimport PY_SSIZE_T_MAX, cattn_table
from worker cimport POLL_NANOSECONDS

cdef extern from "c_messages.h" nogil:
    const char *cattn_status_message(int status) noexcept
    size_t cattn_explain_status(const cattn_attention_args *args, int status, char *text, size_t size) noexcept
    int CATTN_AXES

cdef extern from *:
    """
    /* A struct that ends before is of no version; one beyond has no size that anyone set. */
    #define CATTN_LEAST_ARGS offsetof(cattn_attention_args, lse)
    #define CATTN_MOST_ARGS 65536
    /* Positions beyond this are as good as infinite, and sums of a few of them still fit an int64. */
    #define CATTN_FAR ((int64_t)1 << 60)
    """
    size_t CATTN_LEAST_ARGS
    size_t CATTN_MOST_ARGS
    int64_t CATTN_FAR

cdef enum:
    KNOWN_FLAGS = 31


# The arrays of a call by CATTN_ARGUMENT_...: as they are given, and as the problem holds them.
cdef struct Arrays:
    cattn_ndarray *given[CATTN_ARGUMENT_SINKS + 1]
    cattn_array *placed[CATTN_ARGUMENT_SINKS + 1]


# What the problem reads and the caller does not have.
cdef struct Copies:
    int64_t offset   # of all entries
    char *memory     # offsets of each, slopes and sinks; NULL: there are none


# Whoever called, and when they were last asked whether to stop, while entries are read one by one.
cdef struct Watch:
    Caller caller
    int64_t polled       # in ns; 0: not yet
    Py_ssize_t entries   # since the last look at the clock


cdef inline int wrong(int argument, int reason) noexcept nogil:
    return argument << 8 | reason


cdef inline bint wants_to_end(Watch *watch, Py_ssize_t entries) noexcept nogil:
    """Return whether to give up after so many more entries. The caller is asked as often as in the tasks."""
    cdef int64_t nanoseconds
    watch.entries += entries
    if watch.entries < POLL_ENTRIES or watch.caller.wants_to_stop == NULL:
        return False
    watch.entries = 0
    nanoseconds = cattn_now()
    if watch.polled == 0:
        watch.polled = nanoseconds
    if 0 <= nanoseconds - watch.polled < POLL_NANOSECONDS:
        return False
    watch.polled = nanoseconds
    return ask(&watch.caller)


cdef inline int read_args(cattn_attention_args *args, const cattn_attention_args *given) noexcept nogil:
    """What this version knows of a struct that may be shorter or longer: zeros stand for what it lacks."""
    cdef size_t at
    if given == NULL:
        return wrong(CATTN_ARGUMENT_ARGS, CATTN_IS_NULL)
    if not CATTN_LEAST_ARGS <= given.struct_size <= CATTN_MOST_ARGS or (
            given.struct_size < sizeof(cattn_attention_args)
            and (given.struct_size - CATTN_LEAST_ARGS) % sizeof(size_t)):   # it ends within a number or a pointer
        return wrong(CATTN_ARGUMENT_ARGS, CATTN_WRONG_VALUE)
    for at in range(sizeof(cattn_attention_args), given.struct_size):
        if (<const char *>given)[at] != 0:
            return wrong(CATTN_ARGUMENT_ARGS, CATTN_IS_UNKNOWN)
    memset(args, 0, sizeof(cattn_attention_args))
    memcpy(args, given, min(given.struct_size, sizeof(cattn_attention_args)))
    return CATTN_DONE


cdef inline void list_array(Arrays *arrays, int argument, cattn_ndarray *given, cattn_array *placed) noexcept nogil:
    arrays.given[argument] = given
    arrays.placed[argument] = placed


cdef inline void list_arrays(Arrays *arrays, cattn_attention_args *args, cattn_problem *problem) noexcept nogil:
    list_array(arrays, CATTN_ARGUMENT_QUERY, &args.query, &problem.query)
    list_array(arrays, CATTN_ARGUMENT_KEY, &args.key, &problem.key)
    list_array(arrays, CATTN_ARGUMENT_VALUE, &args.value, &problem.value)
    list_array(arrays, CATTN_ARGUMENT_OUT, &args.out, &problem.out)
    list_array(arrays, CATTN_ARGUMENT_LSE, &args.lse, &problem.lse)
    list_array(arrays, CATTN_ARGUMENT_QUERY_OFFSET, &args.query_offset, &problem.query_offset)
    list_array(arrays, CATTN_ARGUMENT_QUERY_LENGTHS, &args.query_lengths, &problem.query_lengths)
    list_array(arrays, CATTN_ARGUMENT_KEY_LENGTHS, &args.key_lengths, &problem.key_lengths)
    list_array(arrays, CATTN_ARGUMENT_KEY_START, &args.key_start, &problem.key_start)
    list_array(arrays, CATTN_ARGUMENT_KEY_STOP, &args.key_stop, &problem.key_stop)
    list_array(arrays, CATTN_ARGUMENT_MASK, &args.mask, &problem.mask)
    list_array(arrays, CATTN_ARGUMENT_BIAS, &args.bias, &problem.bias)
    list_array(arrays, CATTN_ARGUMENT_ALIBI_SLOPES, &args.alibi_slopes, &problem.alibi_slopes)
    list_array(arrays, CATTN_ARGUMENT_SINKS, &args.sinks, &problem.sinks)


# One array


cdef inline Py_ssize_t size_of(const cattn_ndarray *array, int back) noexcept nogil:
    """Of the axis that is so many from the end; 1 where there is none."""
    return array.shape[array.ndim - back] if back <= array.ndim else 1


cdef inline Py_ssize_t count_of(const cattn_ndarray *array) noexcept nogil:
    cdef Py_ssize_t count = 1
    cdef int axis
    for axis in range(array.ndim):
        count *= array.shape[axis]
    return count


cdef inline Py_ssize_t contiguous_stride(const cattn_ndarray *array, int axis) noexcept nogil:
    cdef Py_ssize_t stride = item_size(<cattn_type>array.type)
    cdef int later
    for later in range(axis + 1, array.ndim):
        stride *= max(array.shape[later], <Py_ssize_t>1)
    return stride


cdef inline Py_ssize_t stride_of(const cattn_ndarray *array, int axis) noexcept nogil:
    return contiguous_stride(array, axis) if array.strides == NULL else array.strides[axis]


cdef inline bint is_contiguous(const cattn_ndarray *array) noexcept nogil:
    cdef int axis
    for axis in range(array.ndim):
        if array.shape[axis] != 1 and stride_of(array, axis) != contiguous_stride(array, axis):
            return False
    return True


cdef inline const char *item_at(const cattn_ndarray *array, Py_ssize_t number) noexcept nogil:
    """The element of this number, in C's order."""
    cdef const char *item = <const char *>array.data
    cdef int axis
    for axis in range(array.ndim - 1, -1, -1):
        item += number % array.shape[axis] * stride_of(array, axis)
        number //= array.shape[axis]
    return item


cdef inline unsigned int types_of(int argument) noexcept nogil:
    """A bit for each that an array of this name may have."""
    if argument == CATTN_ARGUMENT_MASK:
        return 1 << CATTN_BOOL
    if CATTN_ARGUMENT_QUERY_OFFSET <= argument <= CATTN_ARGUMENT_KEY_STOP:
        return 1 << CATTN_INT64
    return (1 << CATTN_FLOATS) - 1


cdef inline bint is_aligned(const cattn_ndarray *array) noexcept nogil:
    cdef Py_ssize_t misaligned = <Py_ssize_t>array.data
    cdef int axis
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            misaligned |= stride_of(array, axis)
    return is_multiple(misaligned, item_size(<cattn_type>array.type))


cdef inline int check_array(const cattn_ndarray *array, int argument) noexcept nogil:
    """What can be said of an array by itself."""
    cdef Py_ssize_t size, bytes
    cdef bint is_empty = False
    cdef int axis
    if not 0 <= array.ndim <= CATTN_AXES:
        return wrong(argument, CATTN_WRONG_SHAPE)
    if array.ndim > 0 and array.shape == NULL:
        return wrong(argument, CATTN_IS_NULL)
    if not 0 <= array.type <= CATTN_INT64 or not types_of(argument) >> array.type & 1:
        return wrong(argument, CATTN_WRONG_TYPE)
    bytes = item_size(<cattn_type>array.type)
    for axis in range(array.ndim):   # as NumPy does, sizes of 0 left out: no product of others overflows then
        size = array.shape[axis]
        if size < 0 or (size > 0 and bytes > PY_SSIZE_T_MAX // size):
            return wrong(argument, CATTN_WRONG_SHAPE)
        bytes *= max(size, <Py_ssize_t>1)
        is_empty |= size == 0
    if array.data == NULL and not is_empty:
        return wrong(argument, CATTN_IS_NULL)
    if array.type == CATTN_INT64 and not is_aligned(array):
        return wrong(argument, CATTN_MISALIGNED)
    return CATTN_DONE


cdef inline bint is_cut(const cattn_ndarray *array, const cattn_attention_args *args) noexcept nogil:
    """Return whether the caller's struct ends within this array's fields."""
    cdef size_t at = <const char *>array - <const char *>args
    return at < args.struct_size < at + sizeof(cattn_ndarray)


cdef inline int check_arrays(const Arrays *arrays, const cattn_attention_args *args) noexcept nogil:
    """Each by itself."""
    cdef int argument, status
    for argument in range(CATTN_ARGUMENT_QUERY, CATTN_ARGUMENT_SINKS + 1):
        if is_cut(arrays.given[argument], args):
            return wrong(CATTN_ARGUMENT_ARGS, CATTN_WRONG_VALUE)
        if argument <= CATTN_ARGUMENT_OUT or arrays.given[argument].data != NULL:
            status = check_array(arrays.given[argument], argument)
            if status != CATTN_DONE:
                return status
    return CATTN_DONE


# All together


cdef inline bint is_half_type(int type) noexcept nogil:
    return type == CATTN_FLOAT16 or type == CATTN_BFLOAT16


cdef inline int check_types(const cattn_attention_args *args) noexcept nogil:
    cdef int query = args.query.type, key = args.key.type, out = args.out.type
    if key != query and not (query == CATTN_FLOAT32 and is_half_type(key)):
        return wrong(CATTN_ARGUMENT_KEY, CATTN_WRONG_TYPE)
    if args.value.type != key:
        return wrong(CATTN_ARGUMENT_VALUE, CATTN_WRONG_TYPE)
    if out != query and not (out == CATTN_FLOAT32 and is_half_type(query)):
        return wrong(CATTN_ARGUMENT_OUT, CATTN_WRONG_TYPE)
    if args.lse.data != NULL:
        if args.lse.type != <int>(CATTN_FLOAT64 if query == CATTN_FLOAT64 else CATTN_FLOAT32):
            return wrong(CATTN_ARGUMENT_LSE, CATTN_WRONG_TYPE)
        if not is_aligned(&args.lse):
            return wrong(CATTN_ARGUMENT_LSE, CATTN_MISALIGNED)
    return CATTN_DONE


cdef inline bint add_batch(cattn_problem *problem, const cattn_ndarray *array) noexcept nogil:
    """Broadcasts the leading axes of an input, if they do. The last one is kept first meanwhile."""
    cdef Py_ssize_t size
    cdef int axis
    for axis in range(array.ndim - 3):
        size = array.shape[array.ndim - 4 - axis]
        if axis >= problem.batch_ndim or problem.batch_shape[axis] == 1:
            problem.batch_shape[axis] = size
        elif size != 1 and size != problem.batch_shape[axis]:
            return False
        problem.batch_ndim = max(problem.batch_ndim, axis + 1)
    return True


cdef inline bint has_axes_like(const cattn_ndarray *array, const cattn_ndarray *query) noexcept nogil:
    return array.ndim >= 2 and (array.ndim == 2) == (query.ndim == 2)


cdef inline int set_sizes(cattn_problem *problem, const cattn_attention_args *args) noexcept nogil:
    cdef int axis, other
    if args.query.ndim < 2 or not 0 < size_of(&args.query, 1) <= CATTN_LARGEST_HEAD:
        return wrong(CATTN_ARGUMENT_QUERY, CATTN_WRONG_SHAPE)
    problem.query_heads = size_of(&args.query, 3)
    problem.query_length = size_of(&args.query, 2)
    problem.head_size = size_of(&args.query, 1)
    problem.batch_ndim = 0
    add_batch(problem, &args.query)
    if not has_axes_like(&args.key, &args.query) or size_of(&args.key, 1) != problem.head_size:
        return wrong(CATTN_ARGUMENT_KEY, CATTN_WRONG_SHAPE)
    problem.key_heads = size_of(&args.key, 3)
    problem.key_length = size_of(&args.key, 2)
    if not add_batch(problem, &args.key) or (
            problem.query_heads != problem.key_heads
            and (problem.query_heads == 0 or problem.key_heads == 0 or problem.query_heads % problem.key_heads)):
        return wrong(CATTN_ARGUMENT_KEY, CATTN_WRONG_SHAPE)
    if (not has_axes_like(&args.value, &args.query) or size_of(&args.value, 3) != problem.key_heads
            or size_of(&args.value, 2) != problem.key_length or not add_batch(problem, &args.value)):
        return wrong(CATTN_ARGUMENT_VALUE, CATTN_WRONG_SHAPE)
    problem.value_size = size_of(&args.value, 1)
    for axis in range(problem.batch_ndim // 2):
        other = problem.batch_ndim - 1 - axis
        problem.batch_shape[axis], problem.batch_shape[other] = problem.batch_shape[other], problem.batch_shape[axis]
    return CATTN_NO_MEMORY if problem.value_size > CATTN_LARGEST_VALUE else CATTN_DONE


cdef inline bint place(cattn_array *array, const cattn_ndarray *given, const cattn_problem *problem,
                       const Py_ssize_t *own, int first, int own_ndim, int exact) noexcept nogil:
    """`given`, broadcast to the batch and the axes own[first:own_ndim] of (head, row, column). Whether it does, its
    last `exact` axes as they are."""
    cdef int axis, ndim = problem.batch_ndim + own_ndim - first, missing = ndim - given.ndim
    cdef Py_ssize_t strides[3]
    cdef Py_ssize_t size, came, stride
    if missing < 0 or given.ndim < exact:
        return False
    memset(strides, 0, sizeof(strides))
    for axis in range(ndim):
        size = problem.batch_shape[axis] if axis < problem.batch_ndim else own[first + axis - problem.batch_ndim]
        came = given.shape[axis - missing] if axis >= missing else 1
        if came != size and (came != 1 or ndim - axis <= exact):
            return False
        stride = stride_of(given, axis - missing) if came == size and axis >= missing else 0
        if axis < problem.batch_ndim:
            array.batch[axis] = stride
        else:
            strides[first + axis - problem.batch_ndim] = stride
    array.data = <char *>given.data if given.data != NULL else <char *>given   # without elements, but not absent
    array.type = <cattn_type>given.type
    array.swapped = False
    array.head = strides[0]
    array.row = strides[1]
    array.column = strides[2]
    return True


cdef inline int own_axes(int argument) noexcept nogil:
    """How many of (head, row, column) an array has behind those of the batch."""
    if CATTN_ARGUMENT_QUERY_OFFSET <= argument <= CATTN_ARGUMENT_KEY_LENGTHS:
        return 0
    if argument >= CATTN_ARGUMENT_ALIBI_SLOPES:
        return 1
    return 2 if argument in (CATTN_ARGUMENT_LSE, CATTN_ARGUMENT_KEY_START, CATTN_ARGUMENT_KEY_STOP) else 3


cdef inline int place_arrays(cattn_problem *problem, const Arrays *arrays) noexcept nogil:
    """Sizes are set."""
    cdef bint headless = arrays.given[CATTN_ARGUMENT_QUERY].ndim == 2, of_keys
    cdef int argument, own_ndim, first, exact
    cdef Py_ssize_t own[3]
    for argument in range(CATTN_ARGUMENT_QUERY, CATTN_ARGUMENT_SINKS + 1):
        if argument > CATTN_ARGUMENT_OUT and arrays.given[argument].data == NULL:
            arrays.placed[argument].data = NULL
            continue
        of_keys = argument == CATTN_ARGUMENT_KEY or argument == CATTN_ARGUMENT_VALUE
        own[0] = problem.key_heads if of_keys else problem.query_heads
        own[1] = problem.key_length if of_keys else problem.query_length
        own[2] = problem.head_size if argument <= CATTN_ARGUMENT_KEY else problem.value_size
        if argument >= CATTN_ARGUMENT_MASK:
            own[2] = problem.key_length
        own_ndim = own_axes(argument)
        first = headless and own_ndim > 1   # slopes and sinks have their heads
        exact = 0
        if argument == CATTN_ARGUMENT_OUT or argument == CATTN_ARGUMENT_LSE:
            exact = problem.batch_ndim + own_ndim - first
        elif argument >= CATTN_ARGUMENT_ALIBI_SLOPES:
            exact = 1
        if (not place(arrays.placed[argument], arrays.given[argument], problem, own, first, own_ndim, exact)
                or (argument == CATTN_ARGUMENT_SINKS and arrays.given[argument].ndim != 1)):
            return wrong(argument, CATTN_WRONG_SHAPE)
    return CATTN_DONE


cdef inline bint overlaps(const cattn_ndarray *one, const cattn_ndarray *other) noexcept nogil:
    """As far as it is seen at a glance."""
    cdef Py_ssize_t bytes = count_of(one) * item_size(<cattn_type>one.type)
    cdef Py_ssize_t other_bytes = count_of(other) * item_size(<cattn_type>other.type)
    if bytes == 0 or other_bytes == 0:
        return False
    if one.data == other.data:
        return True
    return (<const char *>one.data < <const char *>other.data + other_bytes
            and <const char *>other.data < <const char *>one.data + bytes
            and is_contiguous(one) and is_contiguous(other))


cdef inline bint overlaps_itself(const cattn_ndarray *array) noexcept nogil:
    cdef int axis
    for axis in range(array.ndim):
        if array.shape[axis] > 1 and stride_of(array, axis) == 0:
            return count_of(array) > 0
    return False


cdef inline int check_results(const Arrays *arrays) noexcept nogil:
    """That what is written lies apart from all else. Shapes are right."""
    cdef int argument, written
    for written in range(CATTN_ARGUMENT_OUT, CATTN_ARGUMENT_LSE + 1):
        if arrays.given[written].data == NULL:
            continue
        if overlaps_itself(arrays.given[written]):
            return wrong(written, CATTN_OVERLAPS)
        for argument in range(CATTN_ARGUMENT_QUERY, CATTN_ARGUMENT_SINKS + 1):
            if (argument != written and arrays.given[argument].data != NULL
                    and overlaps(arrays.given[written], arrays.given[argument])):
                return wrong(written, CATTN_OVERLAPS)
    return CATTN_DONE


# Numbers


cdef inline int set_numbers(cattn_problem *problem, const cattn_attention_args *args) noexcept nogil:
    cdef bint is_double = args.query.type == CATTN_FLOAT64
    cdef double magnitude = abs(args.scale)
    if args.flags & ~<unsigned int>KNOWN_FLAGS:
        return wrong(CATTN_ARGUMENT_FLAGS, CATTN_IS_UNKNOWN)
    if args.num_threads < 0:
        return wrong(CATTN_ARGUMENT_NUM_THREADS, CATTN_WRONG_VALUE)
    problem.scale = args.scale
    if not args.flags & CATTN_HAS_SCALE:
        problem.scale = 1 / sqrt(<double>problem.head_size)
        if args.scale != 0:   # NaN is not, either
            return wrong(CATTN_ARGUMENT_SCALE, CATTN_IS_MISSING)
    elif magnitude != 0 and not (DBL_MIN if is_double else FLT_MIN) <= magnitude <= (DBL_MAX if is_double else FLT_MAX):
        return wrong(CATTN_ARGUMENT_SCALE, CATTN_WRONG_VALUE)
    if not 0 <= args.softcap <= DBL_MAX:
        return wrong(CATTN_ARGUMENT_SOFTCAP, CATTN_WRONG_VALUE)
    # A subnormal one would count as 0, none, in the tasks' floating-point mode.
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


cdef inline int check_integers(const cattn_ndarray *array, int argument, int64_t low, int64_t high,
                               Watch *watch) noexcept nogil:
    """Check that all of them are within these bounds, if the array is given."""
    cdef Py_ssize_t number
    if array.data != NULL:
        for number in range(count_of(array)):
            if not low <= (<const int64_t *>item_at(array, number))[0] <= high:
                return wrong(argument, CATTN_WRONG_VALUE)
            if wants_to_end(watch, 1):
                return CATTN_STOPPED
    return CATTN_DONE


cdef inline int check_positions(const cattn_problem *problem, const cattn_attention_args *args,
                                Watch *watch) noexcept nogil:
    cdef int status
    cdef unsigned int words = args.flags & (CATTN_OFFSET_START | CATTN_OFFSET_END)
    cdef bint is_placed = words != 0 or args.query_offset.data != NULL
    if words == (CATTN_OFFSET_START | CATTN_OFFSET_END) or (words != 0 and args.query_offset.data != NULL):
        return wrong(CATTN_ARGUMENT_FLAGS, CATTN_WRONG_VALUE)
    if not is_placed and problem.query_length != problem.key_length and (
            args.flags & CATTN_CAUSAL or problem.window_left != CATTN_UNLIMITED
            or problem.window_right != CATTN_UNLIMITED or args.alibi_slopes.data != NULL):
        return wrong(CATTN_ARGUMENT_QUERY_OFFSET, CATTN_IS_MISSING)
    status = check_integers(&args.query_offset, CATTN_ARGUMENT_QUERY_OFFSET, -CATTN_FAR, CATTN_FAR, watch)
    if status == CATTN_DONE:
        status = check_integers(&args.query_lengths, CATTN_ARGUMENT_QUERY_LENGTHS, 0, problem.query_length, watch)
    if status == CATTN_DONE:
        status = check_integers(&args.key_lengths, CATTN_ARGUMENT_KEY_LENGTHS, 0, problem.key_length, watch)
    return status


# What the problem reads and the caller does not have


cdef inline Py_ssize_t count_entries(const cattn_problem *problem) noexcept nogil:
    cdef Py_ssize_t entries = 1
    cdef int axis
    for axis in range(problem.batch_ndim):
        entries = times(entries, problem.batch_shape[axis])
    return entries


cdef inline int copy_doubles(cattn_array *array, cattn_ndarray *given, char *to, const cattn_problem *problem,
                             const cattn_table *table, Watch *watch) noexcept nogil:
    """An array over heads, of any floating type, becomes one of doubles."""
    cdef Py_ssize_t count = count_of(given), heads = problem.query_heads, done = 0, piece
    cdef cattn_array row = array[0]
    row.column = row.head
    while done < count:
        piece = min(heads - done % heads, <Py_ssize_t>POLL_ENTRIES)
        gather_row(to + done * <Py_ssize_t>sizeof(double), CATTN_FLOAT64, &row, item_at(given, done), piece, table)
        done += piece
        if wants_to_end(watch, piece):
            return CATTN_STOPPED
    given.data = to
    given.type = CATTN_FLOAT64
    given.strides = NULL
    place(array, given, problem, &heads, 0, 1, 1)
    return CATTN_DONE


cdef inline int count_from_end(cattn_problem *problem, int64_t *offsets, bint each, Watch *watch) noexcept nogil:
    """The query offset at which the last query stands at the last key, of all entries or of each."""
    cdef Py_ssize_t entry, stride = sizeof(int64_t) if each else 0
    cdef cattn_array *array = &problem.query_offset
    cdef int axis
    for entry in range(count_entries(problem) if each else 1):
        offsets[entry] = (entry_integer(problem, &problem.key_lengths, entry, problem.key_length)
                          - entry_integer(problem, &problem.query_lengths, entry, problem.query_length))
        if wants_to_end(watch, 1):
            return CATTN_STOPPED
    array.data = <char *>offsets
    array.type = CATTN_INT64
    array.swapped = False
    array.head = array.row = array.column = 0
    for axis in range(problem.batch_ndim - 1, -1, -1):
        array.batch[axis] = stride
        stride = times(stride, problem.batch_shape[axis])
    return CATTN_DONE


cdef inline int add_copies(cattn_problem *problem, Copies *copies, cattn_attention_args *args,
                           const cattn_table *table, Watch *watch) noexcept nogil:
    cdef int status = CATTN_DONE
    cdef bint from_end = args.flags & CATTN_OFFSET_END != 0
    cdef bint each = from_end and (args.query_lengths.data != NULL or args.key_lengths.data != NULL)
    cdef Py_ssize_t bytes = 0, slopes_at, sinks_at, item = sizeof(double), number
    reserve(&bytes, times(count_entries(problem), sizeof(int64_t)) if each else 0)
    slopes_at = reserve(&bytes, times(count_of(&args.alibi_slopes), item) if args.alibi_slopes.data != NULL else 0)
    sinks_at = reserve(&bytes, times(problem.query_heads, item) if args.sinks.data != NULL else 0)
    if bytes > 0:
        copies.memory = <char *>malloc(bytes)
        if copies.memory == NULL:
            return CATTN_NO_MEMORY
    if from_end:
        status = count_from_end(problem, <int64_t *>copies.memory if each else &copies.offset, each, watch)
    if args.alibi_slopes.data != NULL and status == CATTN_DONE:
        status = copy_doubles(&problem.alibi_slopes, &args.alibi_slopes, copies.memory + slopes_at, problem, table,
                              watch)
    if args.sinks.data != NULL and status == CATTN_DONE:
        status = copy_doubles(&problem.sinks, &args.sinks, copies.memory + sinks_at, problem, table, watch)
    if args.sinks.data != NULL and status == CATTN_DONE:
        for number in range(problem.query_heads):
            if not (<const double *>(copies.memory + sinks_at))[number] < INFINITY:   # nor NaN
                return wrong(CATTN_ARGUMENT_SINKS, CATTN_WRONG_VALUE)
            if wants_to_end(watch, 1):
                return CATTN_STOPPED
    return status


# The call


cdef inline int set_problem_of(cattn_problem *problem, Copies *copies, cattn_attention_args *args,
                               const cattn_table *table, Watch *watch) noexcept nogil:
    cdef Arrays arrays
    cdef int status
    problem.struct_size = sizeof(cattn_problem)
    problem.query_indptr = problem.key_indptr = NULL
    list_arrays(&arrays, args, problem)
    status = check_arrays(&arrays, args)
    if status == CATTN_DONE:
        status = check_types(args)
    if status == CATTN_DONE:
        status = set_sizes(problem, args)
    if status == CATTN_DONE:
        status = place_arrays(problem, &arrays)
    if status == CATTN_DONE:
        status = check_results(&arrays)
    if status == CATTN_DONE:
        status = set_numbers(problem, args)
    if status == CATTN_DONE:
        status = check_positions(problem, args, watch)
    return add_copies(problem, copies, args, table, watch) if status == CATTN_DONE else status


cdef inline int run(const cattn_problem *problem, const cattn_attention_args *args,
                    const Caller *caller, const Machine *machine) noexcept nogil:
    cdef Py_ssize_t threads = min(max(args.num_threads, 1), machine.most_threads), bytes
    cdef cattn_status status
    cdef Prepared prepared
    if problem.value_size > CATTN_LARGEST_HEAD:
        return execute_wide(problem, threads, machine, caller, &bytes)
    status = prepare(&prepared, problem, machine, STAGE_OUTPUT, caller)
    if status != CATTN_DONE or prepared.schedule.tasks == 0:
        return status
    if not gains_by_threads(&prepared.plan, problem):
        threads = 1
    return execute(&prepared, problem, min(threads, prepared.schedule.tasks), caller, &bytes)


cdef inline int attend_for_c(const cattn_attention_args *given, const Machine *machine) noexcept nogil:
    """What cattn_attention answers."""
    cdef cattn_attention_args args
    cdef cattn_problem problem
    cdef Copies copies
    cdef Watch watch
    cdef int callers_errno = errno.errno
    cdef unsigned int callers_mode = cattn_change_float_mode(CATTN_USUAL_MODE)
    cdef int status = read_args(&args, given)
    copies.memory = NULL
    watch.polled = watch.entries = 0
    if status == CATTN_DONE:
        watch.caller = Caller(args.wants_to_stop, args.context, callers_mode)
        status = set_problem_of(&problem, &copies, &args, &machine.table, &watch)
    if status == CATTN_DONE:
        status = run(&problem, &args, &watch.caller, machine)
    free(copies.memory)
    cattn_change_float_mode(callers_mode)
    errno.errno = callers_errno
    return status


cdef inline size_t explain_for_c(const cattn_attention_args *given, int status, char *text, size_t size) noexcept nogil:
    """Write what cattn_explain promises. If the size of the struct is wrong, nothing else of it is read."""
    cdef cattn_attention_args args
    if given == NULL:
        return cattn_explain_status(NULL, status, text, size)
    memset(&args, 0, sizeof(args))
    read_args(&args, given)
    args.struct_size = given.struct_size
    return cattn_explain_status(&args, status, text, size)
