# Rows and keys that are not finite. The products of gradients take 0 in their place, because 0·NaN of what is masked
# would be NaN. What they give to those who attend is added afterwards, one by one.

from libc.math cimport INFINITY, NAN

from gradients.head cimport Head
from gradients.sums cimport real_at, set_real
from non_finite cimport non_finite
from tiles.tiles cimport cattn_gradient_tile, cattn_key_block, cattn_score_mod


cdef inline bint is_attended(const cattn_score_mod *mod, Py_ssize_t row, Py_ssize_t key, double score,
                             bint is_float) noexcept nogil:
    """Return whether a key has a share in a row. `score` is the one before score_mod."""
    cdef double bias = 0
    if mod == NULL:
        return score != -INFINITY
    if mod.has_interval and not mod.start[row] <= key < mod.stop[row] or mod.has_mask and not mod.mask[row][key]:
        return False
    if mod.has_bias:
        bias = real_at(<const char *>mod.bias[row], key, is_float)
    return bias != -INFINITY and (score != -INFINITY or mod.softcap != 0 or bias == INFINITY)


cdef inline void mark_scores(unsigned char *attended, const cattn_gradient_tile *tile, Py_ssize_t lanes,
                             bint is_float) noexcept nogil:
    """Mark which keys of a tile have a share in which rows. The weights are still scores."""
    cdef Py_ssize_t row, key
    for row in range(tile.rows):
        for key in range(tile.keys):
            attended[row * lanes + key] = is_attended(
                tile.score_mod, row, key, real_at(<const char *>tile.weights, row * lanes + key, is_float), is_float)


cdef inline double share_of(double weight, double x) noexcept nogil:
    """Return weight · x for an x that is not finite. A weight of 0 stands for a small positive number."""
    return x if weight >= 0 else NAN


cdef inline void add_wild_rows(const Head *head, char *sums, const char *factors, bint are_weights,
                               const cattn_key_block *rows, const unsigned char *attended,
                               Py_ssize_t keys) noexcept nogil:
    """Add what is not finite in rows to the sums of the keys that have a share in them: sums[c][key] gets
    factors[row][key] · row[c]."""
    cdef Py_ssize_t lanes = head.plan.kernels.lanes, item = head.plan.base.itemsize, row, c, key
    cdef double x, factor
    for row in range(rows.count):
        for c in range(rows.size):
            x = non_finite(rows.data + row * rows.stride + c * item, head.plan.base.arithmetic)
            if x == 0:
                continue
            for key in range(keys):
                if attended[row * lanes + key]:
                    factor = real_at(factors, row * lanes + key, head.is_float)
                    set_real(sums, c * lanes + key, head.is_float,
                             real_at(sums, c * lanes + key, head.is_float)
                             + (share_of(factor, x) if are_weights else factor * x))


cdef inline void add_wild_keys(const Head *head, char *sums, const char *factors, const cattn_key_block *keys,
                               const unsigned char *attended, Py_ssize_t rows) noexcept nogil:
    """Add what is not finite in keys of a tile to the sums of the rows that they have a share in: sums[row][c] gets
    factors[row][key] · key[c]."""
    cdef Py_ssize_t lanes = head.plan.kernels.lanes, item = head.plan.base.itemsize, row, c, key
    cdef double x
    for key in range(keys.count):
        for c in range(keys.size):
            x = non_finite(keys.data + key * keys.stride + c * item, head.plan.base.arithmetic)
            if x == 0:
                continue
            for row in range(rows):
                if attended[row * lanes + key]:
                    set_real(sums, row * keys.size + c, head.is_float,
                             real_at(sums, row * keys.size + c, head.is_float)
                             + real_at(factors, row * lanes + key, head.is_float) * x)
