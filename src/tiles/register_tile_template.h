/* This file has what templates share: widths and steps of register tiles, functions of few rows, and the steps of the
 * online softmax. */

/* Returns how wide the next register tile is. It is the widest while two of those fit. Two equal ones share what is
 * left, because a narrow tile has too few accumulators to hide the latency of its FMAs (6 + 1 columns take longer than
 * 4 + 3). */
INLINE ptrdiff_t F(next_width)(ptrdiff_t left, const ptrdiff_t widest)
{
    return left >= 2 * widest ? widest : left > widest ? (left + 1) / 2 : left;
}

/* These call `tile` with a constant width, and `many` with a constant number of vectors, so that the compiler makes a
 * register tile of its own for each. */
#define AT_MOST(n, most) ((n) < (most) ? (n) : (most))
#define WITH_WIDTH(width, widest, tile)               \
    switch (width) {                                  \
    case 1: tile(AT_MOST(1, widest)); break;          \
    case 2: tile(AT_MOST(2, widest)); break;          \
    case 3: tile(AT_MOST(3, widest)); break;          \
    case 4: tile(AT_MOST(4, widest)); break;          \
    case 5: tile(AT_MOST(5, widest)); break;          \
    case 6: tile(AT_MOST(6, widest)); break;          \
    case 7: tile(AT_MOST(7, widest)); break;          \
    case 8: tile(AT_MOST(8, widest)); break;          \
    case 9: tile(AT_MOST(9, widest)); break;          \
    case 10: tile(AT_MOST(10, widest)); break;        \
    case 11: tile(AT_MOST(11, widest)); break;        \
    default: tile(widest); break;                     \
    }
#define WITH_VECTORS(rows, many)                      \
    if ((rows) <= WIDTH) {                            \
        many(1);                                      \
    } else if (TILE_VECTORS == 2 || (rows) <= HALF) { \
        many(2);                                      \
    } else {                                          \
        many(TILE_VECTORS);                           \
    }

/* Repeats a step, which advances its own operands, `count` times. The processor cannot foresee the branch that ends a
 * loop of 16 or 24 turns, so that whole runs are unrolled where registers allow it. */
#if TILE_IN_A_ROW
#define STEPS(step, count, run)                                    \
    if ((count) == (run)) {                                        \
        UNROLL for (int i = 0; i < (run); i++) {                   \
            step                                                   \
        }                                                          \
    } else {                                                       \
        for (ptrdiff_t i = 0; i < (count); i++) {                  \
            step                                                   \
        }                                                          \
    }
#elif defined(MULTIPLIES_BY_LANE)   /* a step is long enough */
#define STEPS(step, count, run)                                    \
    for (ptrdiff_t left = (count); left > 0; left--) {             \
        OPAQUE(left);   /* or gcc unrolls three turns at most */   \
        step                                                       \
    }
#else
#define STEPS(step, count, run)                                    \
    UNROLL_EIGHT for (ptrdiff_t i = 0; i < (count); i++) {         \
        step                                                       \
    }
#endif

/* Few rows have one function for each number of rows, which is a constant in its body. These are not inlined, because
 * together they have more addresses than there are registers. Another function calls them for all rows of a tile, four
 * at a time. The rows of its array lie `pitch` apart. */
#define FEW_FUNCTION(name, n, ...)                                                                                  \
    static __attribute__((noinline)) void F(name##_of_##n)(REAL *array, const cattn_row_tile *tile,                 \
                                                           const cattn_key_block *block, ptrdiff_t row)             \
    {                                                                                                               \
        const int rows = n;                                                                                         \
        __VA_ARGS__                                                                                                 \
    }
#define FEW_FUNCTIONS(name, ...)                                                                                    \
    FEW_FUNCTION(name, 1, __VA_ARGS__)                                                                              \
    FEW_FUNCTION(name, 2, __VA_ARGS__)                                                                              \
    FEW_FUNCTION(name, 3, __VA_ARGS__)                                                                              \
    FEW_FUNCTION(name, 4, __VA_ARGS__)                                                                              \
    INLINE void F(name##_of_all)(void *array, const cattn_row_tile *tile, const cattn_key_block *block,             \
                                 ptrdiff_t pitch)                                                                   \
    {                                                                                                               \
        for (ptrdiff_t row = 0; row < tile->rows; row += 4) {                                                       \
            REAL *first = (REAL *)array + row * pitch;                                                              \
            switch (tile->rows - row) {                                                                             \
            case 1: F(name##_of_1)(first, tile, block, row); break;                                                 \
            case 2: F(name##_of_2)(first, tile, block, row); break;                                                 \
            case 3: F(name##_of_3)(first, tile, block, row); break;                                                 \
            default: F(name##_of_4)(first, tile, block, row); break;                                                \
            }                                                                                                       \
        }                                                                                                           \
    }

/* Goes over the sums of a register tile, sum[i][v], of which it has `wide` times `vectors`. */
#define EACH_SUM(i, v)                      \
    UNROLL for (int i = 0; i < wide; i++)   \
        UNROLL for (int v = 0; v < vectors; v++)

#ifndef TILES_ASK_AHEAD
#define TILES_ASK_AHEAD
/* Asks for those of `lines` lines of memory that share number `share` of `shares` has. */
INLINE void ask_ahead(const char *ahead, const int lines, const int share, const int shares)
{
    enum { LINE = 64 };
    UNROLL for (int line = share * lines / shares; line < (share + 1) * lines / shares; line++)
        CATTN_PREFETCH(ahead + line * LINE);
}

/* Keeps the compiler from moving loads across, and prefetches and multiply-adds with them. */
#define IN_ORDER __asm__ volatile("" ::: "memory")
#endif

/* Returns how wide a register tile of so many vectors can be. */
INLINE int F(widest)(const int vectors)
{
    return AT_MOST(TILE_SUMS / vectors, TILE_WIDE);
}

INLINE void F(clear)(vector sum[TILE_WIDE][TILE_VECTORS], const int wide, const int vectors)
{
    EACH_SUM(w, v)
        sum[w][v] = (vector){0};
}

/* Goes from one maximum to the next. Returns what to subtract from scores, and sets the scale of what was summed
 * before. */
INLINE vector F(advance)(vector *row_max, vector *row_scale, vector block_max)
{
    vector next = F(larger)(block_max, *row_max);
    vector shift = F(select)(next == -INFINITE, (vector){0}, next);   /* -inf - -inf would be NaN */
    *row_scale = EXPONENT(*row_max - shift);
    F(exponential)(row_scale, 1);
    *row_max = next;
    return shift;
}

INLINE ptrdiff_t F(run_end)(ptrdiff_t start, ptrdiff_t count, const ptrdiff_t run)
{
    return count - start < run ? count : start + run;
}

/* Returns the scale of a total that may be infinite: 1 then, even if the scale came out as 0. */
INLINE vector F(lasting)(vector scale, vector total)
{
    return F(select)((scale == 0) & (total - total != 0), F(splat)(1), scale);
}
