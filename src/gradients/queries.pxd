# The gradients of queries, which are sums over the keys. Products with the keys of a piece are added up first. The
# pieces of a split are joined, and then the splits, always from left to right: by the one task that computes all splits
# of a head, or, if each split is a task and leaves its partial sums, by the tasks that join them.

from libc.string cimport memcpy, memset

from convert cimport in_place, scatter_row
from gradients.head cimport buffer, Head, rows_of_block
from gradients.gradient_plan cimport EVEN_SPLITS, GradientCall, GradientPlan, PIECE
from gradients.sums cimport scale_reals
from rows cimport row_at
from worker cimport MOVE_WORK, stopped


cdef struct QuerySums:
    const Head *head
    Py_ssize_t split
    char *slot                   # the partial sums of the split; NULL: its task goes on with the next split
    unsigned char *touched       # which blocks of rows they hold
    unsigned char *in_piece      # which blocks of rows the sums of a piece hold,
    unsigned char *in_split      # those of a split,
    unsigned char *in_total      # and those of all splits


cdef inline Py_ssize_t head_number(const Head *head) noexcept nogil:
    """Return the number of a key head, counted over all batch entries."""
    return head.entry * head.problem.forward.key_heads + head.key_head


cdef inline Py_ssize_t row_bytes(const Head *head) noexcept nogil:
    """Return the bytes of the sums of a row."""
    return head.problem.forward.head_size * head.plan.base.itemsize


cdef inline Py_ssize_t place_of(const Head *head, Py_ssize_t number) noexcept nogil:
    """Return where the sums of a block of rows begin among those of a group, in bytes. Blocks are counted head by
    head."""
    cdef const GradientPlan *plan = head.plan
    return (number // plan.row_blocks * head.problem.forward.query_length
            + number % plan.row_blocks * plan.rows) * row_bytes(head)


cdef inline char *slot_of(const GradientCall *call, const Head *head, Py_ssize_t split) noexcept nogil:
    """Return where the partial sums of a split lie."""
    return call.slots + (head_number(head) * call.plan.splits + split) * call.plan.head_rows * row_bytes(head)


cdef inline unsigned char *touched_of(const GradientCall *call, const Head *head, Py_ssize_t split) noexcept nogil:
    """Return the marks of the blocks of rows that the partial sums of a split hold."""
    return (call.touched
            + (head_number(head) * call.plan.splits + split) * call.plan.base.group * call.plan.row_blocks)


cdef inline void open_query_sums(QuerySums *sums, const Head *head) noexcept nogil:
    """Begin the sums of a head: they hold nothing."""
    cdef const GradientPlan *plan = head.plan
    sums.head = head
    sums.in_piece = <unsigned char *>buffer(head, plan.in_piece)
    sums.in_split = <unsigned char *>buffer(head, plan.in_split)
    sums.in_total = <unsigned char *>buffer(head, plan.in_total)
    memset(sums.in_total, 0, plan.base.group * plan.row_blocks)
    if not plan.splits_are_tasks and plan.splits > EVEN_SPLITS:
        memset(buffer(head, plan.total_carry), 0, plan.head_rows * row_bytes(head))


cdef inline void begin_split(QuerySums *sums, Py_ssize_t split) noexcept nogil:
    """Begin the sums of a split: they hold nothing."""
    cdef const GradientPlan *plan = sums.head.plan
    cdef Py_ssize_t blocks = plan.base.group * plan.row_blocks
    sums.split = split
    sums.slot = NULL
    if plan.splits_are_tasks:
        sums.slot = slot_of(sums.head.call, sums.head, split)
        sums.touched = touched_of(sums.head.call, sums.head, split)
        memset(sums.touched, 0, blocks)
    memset(sums.in_split, 0, blocks)


cdef inline void begin_piece(QuerySums *sums) noexcept nogil:
    """Begin the sums of a piece: they hold nothing."""
    memset(sums.in_piece, 0, sums.head.plan.base.group * sums.head.plan.row_blocks)


cdef inline char *piece_rows(const QuerySums *sums, Py_ssize_t number) noexcept nogil:
    """Return where the products of a block of rows with the keys of a piece are added up."""
    cdef const GradientPlan *plan = sums.head.plan
    if sums.slot != NULL and sums.split < EVEN_SPLITS:   # the piece is the split
        return sums.slot + place_of(sums.head, number)
    if plan.keys < PIECE and sums.head.problem.forward.key_length > plan.keys:
        return buffer(sums.head, plan.piece) + place_of(sums.head, number)
    return buffer(sums.head, plan.piece)   # each block of keys is a piece, so that blocks of rows use it in turn


cdef inline void join_rows(char *total, char *carry, unsigned char *holds, const char *part, Py_ssize_t rows,
                           const Head *head) noexcept nogil:
    """Add the sums of some rows to a total, which `holds` something already, or becomes these sums."""
    cdef Py_ssize_t bytes = rows * row_bytes(head)
    if holds[0]:
        head.plan.kernels.join(total, carry, part, bytes // head.plan.base.itemsize)
    else:
        memcpy(total, part, bytes)
        if carry != NULL:
            memset(carry, 0, bytes)
    holds[0] = True


cdef inline void store_queries(const Head *head, Py_ssize_t number, const char *sums) noexcept nogil:
    """Store the gradients of a block of queries. Without sums (NULL) they are 0, as are those of queries that do not
    exist."""
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t query_head = number // plan.row_blocks, block = number % plan.row_blocks, first, row
    cdef Py_ssize_t size = head.problem.forward.head_size, bytes = row_bytes(head)
    cdef Py_ssize_t there = 0 if sums == NULL else rows_of_block(head, block)
    cdef bint direct = in_place(head.grad_query.array, plan.base.arithmetic, head.problem.forward.batch_ndim)
    cdef char *to
    cdef char *stored
    first = block * plan.rows
    for row in range(min(plan.rows, head.problem.forward.query_length - first)):
        to = row_at(&head.grad_query, query_head, first + row)
        stored = to if direct else buffer(head, plan.row)
        if row < there:
            scale_reals(stored, sums + row * bytes, size, head.problem.forward.scale, head.is_float)
        else:
            memset(stored, 0, bytes)
        if not direct:
            scatter_row(head.grad_query.array, to, stored, plan.base.arithmetic, size, plan.base.table)


cdef inline void end_piece(QuerySums *sums, Py_ssize_t number) noexcept nogil:
    """Join the sums of a block of rows over a piece to those of the pieces before."""
    cdef const Head *head = sums.head
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t at = place_of(head, number), rows = rows_of_block(head, number % plan.row_blocks)
    cdef const char *piece = piece_rows(sums, number) if sums.in_piece[number] else NULL
    if plan.splits == 1:
        store_queries(head, number, piece)
    elif piece != NULL and sums.slot != NULL:
        if sums.split >= EVEN_SPLITS:
            join_rows(sums.slot + at, buffer(head, plan.split_carry) + at, &sums.touched[number], piece, rows, head)
        sums.touched[number] = True
    elif piece != NULL and sums.split < EVEN_SPLITS:
        join_rows(buffer(head, plan.total) + at, NULL, &sums.in_total[number], piece, rows, head)
    elif piece != NULL:
        join_rows(buffer(head, plan.split) + at, buffer(head, plan.split_carry) + at, &sums.in_split[number], piece,
                  rows, head)


cdef inline void end_split(QuerySums *sums) noexcept nogil:
    """Join the sums of a long split to those of the splits before, unless other tasks will."""
    cdef const Head *head = sums.head
    cdef const GradientPlan *plan = head.plan
    cdef Py_ssize_t number, at
    if sums.slot != NULL or sums.split < EVEN_SPLITS:
        return
    for number in range(plan.base.group * plan.row_blocks):
        if stopped(head.worker, MOVE_WORK * plan.rows * head.problem.forward.head_size):
            return
        if sums.in_split[number]:
            at = place_of(head, number)
            join_rows(buffer(head, plan.total) + at, buffer(head, plan.total_carry) + at, &sums.in_total[number],
                      buffer(head, plan.split) + at, rows_of_block(head, number % plan.row_blocks), head)


cdef inline void finish_queries(const QuerySums *sums) noexcept nogil:
    """Store the gradients of all queries of a head, if this task has computed all splits."""
    cdef const GradientPlan *plan = sums.head.plan
    cdef Py_ssize_t number
    if plan.splits_are_tasks or plan.splits == 1 and sums.head.problem.forward.key_length > 0:
        return
    for number in range(plan.base.group * plan.row_blocks):
        if stopped(sums.head.worker, MOVE_WORK * plan.rows * sums.head.problem.forward.head_size):
            return
        store_queries(sums.head, number,
                      buffer(sums.head, plan.total) + place_of(sums.head, number) if sums.in_total[number] else NULL)


cdef inline void join_splits(const GradientCall *call, const Head *head, Py_ssize_t number) noexcept nogil:
    """Join the partial sums of a block of rows, and store them."""
    cdef const GradientPlan *plan = &call.plan
    cdef Py_ssize_t at = place_of(head, number), rows = rows_of_block(head, number % plan.row_blocks), split
    cdef unsigned char holds = False
    cdef char *total = buffer(head, plan.total)
    cdef char *carry = buffer(head, plan.total_carry)
    memset(carry, 0, rows * row_bytes(head))
    for split in range(plan.splits):
        if touched_of(call, head, split)[number]:
            join_rows(total, carry if split >= EVEN_SPLITS else NULL, &holds, slot_of(call, head, split) + at, rows,
                      head)
    store_queries(head, number, total if holds else NULL)
