# MaxSim: for each query and each document, the sum over the query's tokens of the largest dot product with a token of
# the document. The call as data, what is decided about it, and its tasks.
#
# The sweep of attention goes over all keys of one head for a tile of its rows. Here the tokens of many documents lie
# one behind the other, and the same tiles of query tokens go over all of them: a document is a segment of the keys. A
# task is a range of documents and some whole queries.
#
#   for each pass over some tiles of query tokens         compare; one pass, unless a single query needs more memory
#     for each document of the task                       score_document
#       for each block of its tokens, which is read once
#         for each tile                                   the kernel `maxima`
#       the maxima are added up query by query            add_maxima
#
# The bits of a score depend on the two sequences, their type and the kernel table alone: the sum over a query's tokens
# goes in an order that only their number decides, and a maximum is exact in any order.

from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from caller cimport Caller
from convert cimport gather_row, in_place, item_size
from machine cimport Machine
from problem cimport (
    CATTN_DONE, CATTN_FLOAT32, CATTN_FLOAT64, CATTN_NO_MEMORY, CATTN_STOPPED, cattn_array, cattn_status, cattn_type)
from rows cimport gathered_bytes, read_block, Rows, set_storage, Storage
from sizes cimport aligned_from, reserve, round_up, times
from system.system cimport CATTN_TASK_MODE, cattn_change_float_mode, cattn_pool_run
from tiles.tiles cimport (
    CATTN_ALIGNMENT, CATTN_MANY, CATTN_MAX_LANES, cattn_kernels, cattn_key_block, cattn_maxima, cattn_row_tile,
    cattn_table)
from work cimport READING_ROWS, TASK_LEAST, THREADS_WORK
from worker cimport TASK_WORK, Call, poll, stopped, Worker

cdef enum:
    PASS_ROWS = 2048         # query tokens of a pass at most
    PASS_BYTES = 524288      # of their tiles: with the rest a workspace stays below 1 MiB
    # A block of document tokens: they stay in a cache while tiles go over them. Register tiles have 6, 12 or 24 keys,
    # and tiles of AMX 32.
    BLOCK_BYTES = 49152
    BLOCK_STEP = 96
    LEAST_BLOCK = 12
    MOST_BLOCK = 480
    DOCUMENT_WORK = 512      # what a document costs beside its products, as in worker.pxd
    TASKS_PER_WORKER = 8
    SAVED_DOCUMENTS = 1024   # of a task whose single query needs several passes, at most
    CHAINS = 4               # of the sum over a query's tokens: token t belongs to chain t % 4


cdef struct Maxsim:
    cattn_array query            # (batch: queries, row: tokens, column: size)
    cattn_array document         # (batch: documents, row: tokens, column: size); packed: (row, column)
    cattn_array out              # (batch: queries, row: documents), float32 or float64
    cattn_array index            # (batch: queries, row: documents, column: query tokens), int64; NULL: not asked for
    cattn_array query_lengths    # (batch: queries), int64; NULL: all tokens count
    cattn_array document_lengths # (batch: documents), int64; NULL: all tokens count, or documents are packed
    const int64_t *document_indptr   # document n owns rows indptr[n] to indptr[n + 1]; NULL: documents are not packed
    Py_ssize_t queries, query_length, documents, document_length, size   # packed: the length of all documents together


# What is decided about a call, and where the buffers of a worker begin.
cdef struct MaxsimPlan:
    const cattn_table *table
    const cattn_kernels *kernels
    Storage document
    bint query_in_place, asks_ahead
    Py_ssize_t itemsize, block
    Py_ssize_t tiles                          # of a pass
    Py_ssize_t queries_of_task, query_spans   # several queries only if one pass holds them
    Py_ssize_t documents_of_task, tasks
    Py_ssize_t queries, queries_stride, largest, index, sums, scores, block_max, key, row, bytes


# The common part comes first, so that a pointer to this is a pointer to that.
cdef struct MaxsimCall:
    Call call
    Maxsim problem
    MaxsimPlan plan


# A task while it is computed.
cdef struct Comparison:
    const Maxsim *problem
    const MaxsimPlan *plan
    const Worker *worker
    Py_ssize_t first_query, query_stop
    Py_ssize_t first_document, document_stop
    Py_ssize_t first_token       # of this pass: 0, unless a single query takes several
    Py_ssize_t rows              # query tokens of this pass
    bint is_last                 # pass
    cattn_row_tile tile


cdef inline Py_ssize_t length_at(const cattn_array *lengths, Py_ssize_t number, Py_ssize_t otherwise) noexcept nogil:
    """Return a length, or `otherwise` if none were given."""
    if lengths.data == NULL:
        return otherwise
    return <Py_ssize_t>(<const int64_t *>(lengths.data + number * lengths.batch[0]))[0]


cdef inline Py_ssize_t document_length(const Maxsim *problem, Py_ssize_t number) noexcept nogil:
    """Return the number of tokens of a document."""
    if problem.document_indptr != NULL:
        return <Py_ssize_t>(problem.document_indptr[number + 1] - problem.document_indptr[number])
    return length_at(&problem.document_lengths, number, problem.document_length)


cdef inline Py_ssize_t query_length(const Maxsim *problem, Py_ssize_t number) noexcept nogil:
    """Return the number of tokens of a query."""
    return length_at(&problem.query_lengths, number, problem.query_length)


cdef inline char *first_token_of(const Maxsim *problem, Py_ssize_t number) noexcept nogil:
    """Return the address of the first token of a document."""
    if problem.document_indptr != NULL:
        return problem.document.data + problem.document_indptr[number] * problem.document.row
    return problem.document.data + number * problem.document.batch[0]


# What is decided about a call


cdef inline double document_tokens(const Maxsim *problem) noexcept nogil:
    """Return the number of tokens of all documents, padding included."""
    return <double>problem.document_length * (1 if problem.document_indptr != NULL else problem.documents)


cdef inline double maxsim_work(const Maxsim *problem) noexcept nogil:
    """Return about how many multiply-adds a call takes. What is read counts, too."""
    cdef double rows = max(<double>problem.queries * problem.query_length, <double>READING_ROWS)
    return document_tokens(problem) * rows * problem.size + <double>problem.documents * problem.queries


cdef inline Py_ssize_t at_most(double number, Py_ssize_t most) noexcept nogil:
    """Return a number, rounded up, or `most` if it is larger."""
    return most if number >= most else <Py_ssize_t>number + 1


cdef inline void share_documents(MaxsimPlan *plan, const Maxsim *problem, const Machine *machine,
                                 Py_ssize_t threads) noexcept nogil:
    """Decide how many documents are one task. Queries are loaded anew for each task."""
    cdef double tokens = document_tokens(problem) / problem.documents + 1
    cdef double work = tokens * problem.size * max(<Py_ssize_t>1, plan.queries_of_task * problem.query_length)
    cdef bint reads_again = plan.query_spans > 1 or problem.query_length > plan.tiles * plan.kernels.lanes
    cdef Py_ssize_t count = problem.documents
    if threads > 1:
        count = at_most(<double>count * plan.query_spans / (threads * TASKS_PER_WORKER), count)
        count = max(count, at_most(TASK_LEAST / work, problem.documents))
    if reads_again:   # documents that stay in L2
        count = min(count, at_most(machine.l2_bytes // 2 / (tokens * problem.size * item_size(problem.document.type)),
                                   SAVED_DOCUMENTS))
    plan.documents_of_task = count
    plan.tasks = times(plan.query_spans, (problem.documents + count - 1) // count)


cdef inline void plan_maxsim(MaxsimPlan *plan, const Maxsim *problem, const Machine *machine,
                             Py_ssize_t threads) noexcept nogil:
    """Decide how a call that has queries and documents is computed by at most so many threads."""
    cdef cattn_type arithmetic = CATTN_FLOAT64 if problem.query.type == CATTN_FLOAT64 else CATTN_FLOAT32
    cdef bint one_type = problem.query.type == problem.document.type
    cdef Py_ssize_t lanes, tile_bytes, pass_rows, rows, bytes = 0, packed = problem.document_indptr != NULL
    cdef const cattn_kernels *kernels = &machine.table.kernels[<int>problem.query.type if one_type
                                                               else <int>arithmetic][<int>CATTN_MANY]
    plan.table = &machine.table
    plan.kernels = kernels
    plan.itemsize = kernels.itemsize
    plan.query_in_place = in_place(&problem.query, kernels.type, 1)
    set_storage(&plan.document, &problem.document, kernels, False, 0 if packed else 1)
    plan.block = BLOCK_BYTES // (problem.size * item_size(plan.document.type))
    plan.block = min(<Py_ssize_t>MOST_BLOCK, max(plan.block // BLOCK_STEP * BLOCK_STEP,
                                                 min(plan.block // LEAST_BLOCK * LEAST_BLOCK, <Py_ssize_t>BLOCK_STEP),
                                                 <Py_ssize_t>LEAST_BLOCK))
    lanes = kernels.lanes
    tile_bytes = lanes * round_up(problem.size, 16) * plan.itemsize
    pass_rows = max(<Py_ssize_t>1, min(<Py_ssize_t>PASS_ROWS // lanes, <Py_ssize_t>PASS_BYTES // tile_bytes)) * lanes
    plan.queries_of_task = min(problem.queries, max(<Py_ssize_t>1, pass_rows // max(<Py_ssize_t>1,
                                                                                     problem.query_length)))
    plan.query_spans = (problem.queries + plan.queries_of_task - 1) // plan.queries_of_task
    rows = min(pass_rows, plan.queries_of_task * problem.query_length)
    plan.tiles = (rows + lanes - 1) // lanes
    plan.asks_ahead = (problem.document.column == item_size(problem.document.type)
                       and problem.document.row == problem.size * problem.document.column)
    share_documents(plan, problem, machine, threads)
    rows = plan.tiles * lanes
    plan.queries_stride = round_up(tile_bytes, CATTN_ALIGNMENT)
    plan.queries = reserve(&bytes, plan.tiles * plan.queries_stride)
    plan.largest = reserve(&bytes, rows * plan.itemsize)
    plan.index = reserve(&bytes, 0 if problem.index.data == NULL else rows * sizeof(int64_t))
    plan.sums = reserve(&bytes, 0 if problem.query_length <= rows else
                        plan.documents_of_task * CHAINS * sizeof(double))
    plan.scores = reserve(&bytes, plan.block * lanes * plan.itemsize)
    plan.block_max = reserve(&bytes, CATTN_MAX_LANES * plan.itemsize)
    plan.key = reserve(&bytes, gathered_bytes(&plan.document, plan.block, problem.size))
    plan.row = reserve(&bytes, 0 if plan.query_in_place else lanes * problem.size * plan.itemsize)
    plan.bytes = bytes


# One task


cdef inline void load_tile(Comparison *comparison, Py_ssize_t number, const char **sources,
                           Py_ssize_t rows) noexcept nogil:
    """Load the query tokens of tile number `number`, from the rows in `sources`."""
    cdef const MaxsimPlan *plan = comparison.plan
    cdef const Maxsim *problem = comparison.problem
    cdef char *room = comparison.worker.memory + plan.row
    cdef Py_ssize_t row, bytes = problem.size * item_size(plan.kernels.type)
    for row in range(0 if plan.query_in_place else rows):
        gather_row(room + row * bytes, plan.kernels.type, &problem.query, sources[row], problem.size, plan.table)
        sources[row] = room + row * bytes
    comparison.tile.rows = rows
    plan.kernels.load(comparison.worker.memory + plan.queries + number * plan.queries_stride, &comparison.tile,
                      sources, problem.size)


cdef inline void load_pass(Comparison *comparison) noexcept nogil:
    """Load the query tokens of a pass, tile by tile."""
    cdef const char *sources[CATTN_MAX_LANES]
    cdef const Maxsim *problem = comparison.problem
    cdef Py_ssize_t lanes = comparison.plan.kernels.lanes, most = comparison.plan.tiles * lanes, query, token, stop
    cdef Py_ssize_t rows = 0
    comparison.is_last = True
    for query in range(comparison.first_query, comparison.query_stop):
        stop = query_length(problem, query)
        if stop - comparison.first_token > most:   # of a single query
            stop = comparison.first_token + most
            comparison.is_last = False
        for token in range(comparison.first_token, stop):
            sources[rows % lanes] = problem.query.data + query * problem.query.batch[0] + token * problem.query.row
            rows += 1
            if rows % lanes == 0:
                load_tile(comparison, rows // lanes - 1, sources, lanes)
    if rows % lanes != 0:
        load_tile(comparison, rows // lanes, sources, rows % lanes)
    comparison.rows = rows


cdef inline void reset_maxima(const Comparison *comparison) noexcept nogil:
    """Begin a document: no token has been seen."""
    cdef const MaxsimPlan *plan = comparison.plan
    cdef Py_ssize_t row, rows = round_up(comparison.rows, plan.kernels.lanes)
    cdef char *largest = comparison.worker.memory + plan.largest
    if plan.itemsize == sizeof(float):
        for row in range(rows):
            (<float *>largest)[row] = -INFINITY
    else:
        for row in range(rows):
            (<double *>largest)[row] = -INFINITY
    if comparison.problem.index.data != NULL:
        memset(comparison.worker.memory + plan.index, 255, rows * sizeof(int64_t))   # -1


cdef inline void set_ahead(cattn_maxima *maxima, const Comparison *comparison, Py_ssize_t number, const char *first,
                           Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """Find what is read after the tokens before `start` of document number `number`: its other tokens, or the next
    document."""
    cdef const Maxsim *problem = comparison.problem
    cdef const MaxsimPlan *plan = comparison.plan
    maxima.ahead = NULL
    maxima.ahead_stride = problem.document.row
    maxima.asks_within = plan.asks_ahead and plan.document.gather == NULL
    if not plan.asks_ahead:
        return
    if start < length:
        maxima.ahead = first + start * problem.document.row
    elif number + 1 < comparison.document_stop and document_length(problem, number + 1) > 0:
        maxima.ahead = first_token_of(problem, number + 1)


cdef inline void meet_block(Comparison *comparison, cattn_maxima *maxima, const cattn_key_block *block) noexcept nogil:
    """Let all tiles meet a block. Only the first one asks for what comes next."""
    cdef const MaxsimPlan *plan = comparison.plan
    cdef char *memory = comparison.worker.memory
    cdef Py_ssize_t lanes = plan.kernels.lanes, row = 0, number = 0
    while row < comparison.rows:
        maxima.largest = memory + plan.largest + row * plan.itemsize
        maxima.index = (NULL if comparison.problem.index.data == NULL
                        else <int64_t *>(memory + plan.index + row * sizeof(int64_t)))
        comparison.tile.rows = min(lanes, comparison.rows - row)
        comparison.tile.queries = memory + plan.queries + number * plan.queries_stride
        plan.kernels.maxima(maxima, &comparison.tile, block)
        maxima.ahead = NULL
        maxima.asks_within = False
        row += lanes
        number += 1


cdef inline void add_float_maxima(double *sums, const float *largest, Py_ssize_t count) noexcept nogil:
    """Add the maxima of tokens 0, 1, ... of a query, or of those from a multiple of CHAINS on."""
    cdef double one = sums[0], two = sums[1], three = sums[2], four = sums[3]
    cdef Py_ssize_t i = 0
    while i + CHAINS <= count:
        one += largest[i]
        two += largest[i + 1]
        three += largest[i + 2]
        four += largest[i + 3]
        i += CHAINS
    sums[0] = one
    sums[1] = two
    sums[2] = three
    sums[3] = four
    while i < count:
        sums[i % CHAINS] += largest[i]
        i += 1


cdef inline void add_double_maxima(double *sums, const double *largest, Py_ssize_t count) noexcept nogil:
    """Do what add_float_maxima does."""
    cdef Py_ssize_t i
    for i in range(count):
        sums[i % CHAINS] += largest[i]


cdef inline void store_score(const Maxsim *problem, Py_ssize_t query, Py_ssize_t document,
                             const double *sums) noexcept nogil:
    """Store the score of a query and a document."""
    cdef double score = (sums[0] + sums[1]) + (sums[2] + sums[3])
    cdef char *to = problem.out.data + query * problem.out.batch[0] + document * problem.out.row
    cdef float rounded
    if score != score:
        score = NAN   # whatever bits the NaN had
    if problem.out.type == CATTN_FLOAT64:
        memcpy(to, &score, sizeof(double))
    else:
        rounded = <float>score
        memcpy(to, &rounded, sizeof(float))


cdef inline void store_index(const Maxsim *problem, Py_ssize_t query, Py_ssize_t document, Py_ssize_t first_token,
                             const int64_t *index, Py_ssize_t count) noexcept nogil:
    """Store which token of a document won, for some tokens of a query."""
    cdef char *to = problem.index.data + query * problem.index.batch[0] + document * problem.index.row
    cdef Py_ssize_t i
    for i in range(count):
        memcpy(to + (first_token + i) * problem.index.column, &index[i], sizeof(int64_t))


cdef inline void store_padding(const Maxsim *problem, Py_ssize_t query, Py_ssize_t document) noexcept nogil:
    """Store that no token won for what is behind a query's length."""
    cdef int64_t none = -1
    cdef Py_ssize_t token
    for token in range(query_length(problem, query), problem.query_length):
        store_index(problem, query, document, token, &none, 1)


cdef inline void finish_document(const Comparison *comparison, Py_ssize_t document) noexcept nogil:
    """Add up the maxima of each query."""
    cdef const Maxsim *problem = comparison.problem
    cdef const MaxsimPlan *plan = comparison.plan
    cdef char *memory = comparison.worker.memory
    cdef double *saved = <double *>(memory + plan.sums) + (document - comparison.first_document) * CHAINS
    cdef double[CHAINS] sums
    cdef Py_ssize_t query, count, row = 0
    for query in range(comparison.first_query, comparison.query_stop):
        count = min(query_length(problem, query) - comparison.first_token, comparison.rows - row)
        if comparison.first_token > 0:
            memcpy(sums, saved, sizeof(sums))
        else:
            memset(sums, 0, sizeof(sums))
        if plan.itemsize == sizeof(float):
            add_float_maxima(sums, <const float *>(memory + plan.largest) + row, count)
        else:
            add_double_maxima(sums, <const double *>(memory + plan.largest) + row, count)
        if problem.index.data != NULL:
            store_index(problem, query, document, comparison.first_token,
                        <const int64_t *>(memory + plan.index) + row, count)
            store_padding(problem, query, document)
        if comparison.is_last:
            store_score(problem, query, document, sums)
        else:
            memcpy(saved, sums, sizeof(sums))
        row += count


cdef inline bint score_document(Comparison *comparison, Py_ssize_t number) noexcept nogil:
    """Compare the query tokens of a pass with a document. Return whether to go on."""
    cdef const Maxsim *problem = comparison.problem
    cdef const MaxsimPlan *plan = comparison.plan
    cdef const Worker *worker = comparison.worker
    cdef Py_ssize_t length = document_length(problem, number), low = 0, work = DOCUMENT_WORK
    cdef cattn_key_block block
    cdef cattn_maxima maxima
    cdef Rows rows
    rows.array = &problem.document
    rows.pages = NULL
    rows.first = first_token_of(problem, number)
    reset_maxima(comparison)
    block.size = problem.size
    if comparison.rows == 0:
        length = 0
    while True:
        block.count = min(plan.block, length - low)
        if stopped(worker, work + round_up(comparison.rows, plan.kernels.lanes) * block.count * problem.size):
            return False
        if block.count <= 0:
            break
        read_block(&block, &rows, &plan.document, low, worker.memory + plan.key, plan.table)
        set_ahead(&maxima, comparison, number, rows.first, low + block.count, length)
        maxima.first = low
        meet_block(comparison, &maxima, &block)
        low += block.count
        work = 0
        if low == length:
            break
    finish_document(comparison, number)
    return True


cdef inline void compare(Comparison *comparison) noexcept nogil:
    """Compute one task, pass by pass."""
    cdef Py_ssize_t document
    comparison.first_token = 0
    while True:
        load_pass(comparison)
        for document in range(comparison.first_document, comparison.document_stop):
            if not score_document(comparison, document):
                return
        if comparison.is_last:
            return
        comparison.first_token += comparison.rows


cdef inline int do_maxsim_task(void *context, Py_ssize_t number, int worker_number) noexcept nogil:
    """Compute one task of a call. Return whether the call was stopped."""
    cdef MaxsimCall *call = <MaxsimCall *>context
    cdef const MaxsimPlan *plan = &call.plan
    cdef const Maxsim *problem = &call.problem
    cdef Py_ssize_t range_number = number // plan.query_spans, span = number % plan.query_spans
    cdef unsigned int mode
    cdef Comparison comparison
    cdef Worker worker
    worker.call = &call.call
    worker.number = worker_number
    worker.memory = call.call.memory + worker_number * plan.bytes
    comparison.problem = problem
    comparison.plan = plan
    comparison.worker = &worker
    comparison.first_query = span * plan.queries_of_task
    comparison.query_stop = min(problem.queries, comparison.first_query + plan.queries_of_task)
    comparison.first_document = range_number * plan.documents_of_task
    comparison.document_stop = min(problem.documents, comparison.first_document + plan.documents_of_task)
    memset(&comparison.tile, 0, sizeof(cattn_row_tile))
    comparison.tile.lanes = plan.kernels.lanes
    comparison.tile.scale = 1
    comparison.tile.scores = worker.memory + plan.scores
    comparison.tile.block_max = worker.memory + plan.block_max
    comparison.tile.layout = CATTN_MANY
    if stopped(&worker, TASK_WORK + plan.tiles * plan.kernels.lanes * problem.size):
        return True
    mode = cattn_change_float_mode(CATTN_TASK_MODE)
    compare(&comparison)
    cattn_change_float_mode(mode)
    return call.call.stopped


cdef inline cattn_status run_maxsim(const Maxsim *problem, const Machine *machine, const Caller *caller,
                                    Py_ssize_t *threads, Py_ssize_t *bytes) noexcept nogil:
    """Compute a call by at most so many threads. `threads` and `bytes` become what it takes."""
    cdef Py_ssize_t call_at, workspaces_at
    cdef MaxsimPlan plan
    cdef MaxsimCall *call
    cdef cattn_status status
    cdef char *memory
    cdef char *aligned
    bytes[0] = 0
    if problem.queries == 0 or problem.documents == 0:
        return CATTN_DONE
    if maxsim_work(problem) < THREADS_WORK:
        threads[0] = 1
    plan_maxsim(&plan, problem, machine, threads[0])
    threads[0] = min(threads[0], plan.tasks)
    call_at = reserve(bytes, sizeof(MaxsimCall))   # other threads read it, after the caller's stack may have ended
    workspaces_at = reserve(bytes, times(threads[0], plan.bytes))
    memory = <char *>malloc(bytes[0] + CATTN_ALIGNMENT)
    if memory == NULL:
        return CATTN_NO_MEMORY
    aligned = aligned_from(memory)
    call = <MaxsimCall *>(aligned + call_at)
    memset(&call.call, 0, sizeof(Call))
    call.problem = problem[0]
    call.plan = plan
    call.call.memory = aligned + workspaces_at
    call.call.threads = <int>threads[0]
    call.call.caller = caller[0]
    cattn_pool_run(do_maxsim_task, call, plan.tasks, call.call.threads, poll)
    status = CATTN_STOPPED if call.call.stopped else CATTN_DONE
    free(memory)
    return status
