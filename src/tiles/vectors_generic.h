/* vectors_template.h includes this file behind that of an instruction set. It defines the functions which that one has
 * not, in vector extensions alone. */

#if !defined(OWN_LARGER)
/* Returns a where a > b, else b. It therefore returns b where a or b is NaN: a running maximum that is passed as b does
 * not count a NaN. */
INLINE vector F(larger)(vector a, vector b)
{
    integers greater = (integers)(a > b);
    return (vector)((greater & (integers)a) | (~greater & (integers)b));
}
#endif

#if !defined(OWN_MULADD)
/* Returns a·b + c. It is always rounded once if the target has FMA (TILES_FMA), and always twice if it has not. */
INLINE vector F(muladd)(vector a, vector b, vector c)
{
#if defined(TILES_FMA)   /* lane by lane, as such processors compute these vectors anyway */
    UNROLL for (int i = 0; i < WIDTH; i++)
        c[i] = REAL_BITS == 32 ? __builtin_fmaf((float)a[i], (float)b[i], (float)c[i])
                               : __builtin_fma(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}
#endif

#if !defined(OWN_LOAD_PART)
/* Returns the first n < WIDTH reals and zeros behind them. It does not touch the memory behind those n. */
INLINE vector F(load_part)(const REAL *from, ptrdiff_t n)
{
    F(lanes) u = {{0}};
    for (ptrdiff_t i = 0; i < n; i++)
        __builtin_memcpy(&u.lane[i], (const char *)from + i * (ptrdiff_t)sizeof(REAL), sizeof(REAL));
    return u.v;
}
#endif

#if !defined(OWN_STORE_PART)
/* Stores the first n < WIDTH reals. It does not touch the memory behind them. */
INLINE void F(store_part)(REAL *to, vector x, ptrdiff_t n)
{
    F(lanes) u = {x};
    for (ptrdiff_t i = 0; i < n; i++)
        to[i] = u.lane[i];
}
#endif

#if !defined(OWN_LOAD_QUADS)
/* The vector whose 128-bit part g lies at from[g]. */
INLINE vector F(load_quads)(const REAL *const *from)
{
    vector x;
    for (int g = 0; g < WIDTH / QUAD; g++)
        __builtin_memcpy((char *)&x + g * 16, from[g], 16);
    return x;
}
#endif

#if !defined(OWN_SPREAD_BYTES)
/* Lane i is 0 where byte i is 0, and only there. */
INLINE integers F(spread_bytes)(bytes_16 x)
{
#if VECTOR_BYTES == 16   /* each byte twice, each pair twice, ... */
    typedef uint16_t pairs __attribute__((vector_size(16)));
    typedef uint32_t fours __attribute__((vector_size(16)));
    pairs two = (pairs)SHUFFLE(bytes_16, x, x, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    fours four = (fours)SHUFFLE(pairs, two, two, 0, 8, 1, 9, 2, 10, 3, 11);
#if REAL_BITS == 32
    return (integers)four;
#else
    return (integers)SHUFFLE(fours, four, four, 0, 4, 1, 5);
#endif
#else
    integers lanes;
    UNROLL for (int i = 0; i < WIDTH; i++)
        lanes[i] = x[i];
    return lanes;
#endif
}
#endif

/* -1 in lane i where byte i is not 0. gcc by itself would widen short vectors element by element. */
INLINE integers F(mask_vector)(const unsigned char *bytes)
{
    bytes_16 x;
#if WIDTH == 16
    __builtin_memcpy(&x, bytes, 16);
#else   /* through a general register: half a vector stored, then all of it loaded, would stall */
    typedef uint64_t word __attribute__((vector_size(16)));
    uint64_t bits = 0;
    __builtin_memcpy(&bits, bytes, WIDTH);
    x = (bytes_16)(word){bits, 0};
#endif
    return F(spread_bytes)(x) != 0;
}

#if !defined(OWN_WHERE)
/* x, but -infinity where byte i is 0. */
INLINE vector F(where_set)(const unsigned char *bytes, vector x)
{
    return F(select)(F(mask_vector)(bytes), x, F(splat)(-INFINITE));
}

/* x, but -infinity where not low <= key < high. */
INLINE vector F(where_between)(integers low, integers key, integers high, vector x)
{
    return F(select)((low <= key) & (high > key), x, F(splat)(-INFINITE));
}
#endif

#if REAL_BITS == 32
#if !defined(OWN_WIDEN_INT8)
/* Each integer as a float. */
INLINE vector widen_int8(quarters x)
{
    return __builtin_convertvector(__builtin_convertvector(x, integers), vector);
}
#endif

#if !defined(OWN_UPPER_HALVES)
/* Each half in the upper half of its word. */
INLINE words upper_halves(halves x)
{
#if VECTOR_BYTES == 16   /* by name: gcc would go element by element */
    typedef uint16_t eight __attribute__((vector_size(16)));
    typedef uint64_t two __attribute__((vector_size(16)));
    uint64_t bits;
    __builtin_memcpy(&bits, &x, 8);
    const eight numbers = (eight)(two){bits, 0}, zeros = {0};
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (words)SHUFFLE(eight, numbers, zeros, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return (words)SHUFFLE(eight, zeros, numbers, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
#else
    return __builtin_convertvector(x, words) << 16;
#endif
}
#endif

#if !defined(OWN_WIDEN_FLOAT16)
/* Does what widen_half of the portable table does, with negative numbers, because there is no F(smaller). */
INLINE vector widen_float16(halves x)
{
    const words bits = upper_halves(x), magnitude = (bits & 0x7fff0000) >> 3;
    const vector twice = (vector)(magnitude + (113 << MANTISSA));
    const words number = (words)F(larger)(twice * -0.5f, 0x1p-14f - twice) & 0x7fffffff;
    const words infinite = (words)((integers)magnitude >= 31 << MANTISSA) & 0x7f800000;
    return (vector)(number | infinite | (bits & 0x80000000));
}
#endif
#endif

/* Ready for the other type, of which an instruction set may have less. */
#undef OWN_LARGER
#undef OWN_MULADD
#undef OWN_LOAD_PART
#undef OWN_STORE_PART
#undef OWN_LOAD_QUADS
#undef OWN_SPREAD_BYTES
#undef OWN_WHERE
#undef OWN_UPPER_HALVES
#undef OWN_WIDEN_FLOAT16
