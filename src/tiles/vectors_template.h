/* Vectors of one type and width, for the templates beside: names, loads, shuffles, exponentials.
 *
 * What an instruction set does better than the compiler is in a file of its own: vectors_sse2.h, vectors_avx2.h,
 * vectors_avx512.h or vectors_neon.h. vectors_generic.h has the rest, in vector extensions alone. */

/* ---- names: F(x) is x for this type ---- */

#ifndef TILES_PASTE
#define TILES_PASTE_(a, b) a##_##b
#define TILES_PASTE(a, b) TILES_PASTE_(a, b)
#if defined(CATTN_EMULATE) || defined(CATTN_COMPACT)   /* compiled in a minute, to run slowly */
#define INLINE static inline __attribute__((unused))
#define UNROLL
#define UNROLL_EIGHT
#else
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_EIGHT _Pragma("clang loop unroll_count(8)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define UNROLL_EIGHT _Pragma("GCC unroll 8")
#endif
#endif
/* A vector in memory is aligned to its numbers at least. Emulated tables load pairs of bfloat16 as floats. */
#if defined(CATTN_EMULATE)
#define LOAD_ALIGNMENT 2
#else
#define LOAD_ALIGNMENT (REAL_BITS / 8)
#endif
/* Hides how an address came about. gcc, knowing it, derives one address from another in each turn of a loop, or
 * computes many beforehand and runs out of registers for them. */
#define OPAQUE(address) __asm__("" : "+r"(address))
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(indices, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(indices, a, b, ...) __builtin_shuffle(a, b, (indices){__VA_ARGS__})
#endif
typedef unsigned char bytes_16 __attribute__((vector_size(16)));

typedef float REAL_32;
typedef double REAL_64;
typedef int32_t INT_32;
typedef int64_t INT_64;
enum { MANTISSA_32 = 23, MANTISSA_64 = 52, EXPONENT_BIAS_32 = 127, EXPONENT_BIAS_64 = 1023 };
#endif

#define F(name) TILES_PASTE(name, REAL_BITS)
#define REAL F(REAL)
#define INT F(INT)
#define MANTISSA F(MANTISSA)
#define EXPONENT_BIAS F(EXPONENT_BIAS)

#define WIDTH (VECTOR_BYTES * 8 / REAL_BITS)   /* reals a vector */
#define LANES (TILE_VECTORS * WIDTH)           /* rows of a many-row tile */
#define HALF (2 * WIDTH)                       /* and of a half of one */
#define QUAD (16 / (REAL_BITS / 8))            /* reals in 128 bits: what most shuffles stay inside */
#if !defined(FEW_SUMS)
#define FEW_SUMS (WIDTH > 8 ? WIDTH : 8)       /* accumulators of the few-row tiles: 2 FMAs a cycle · latency 4 */
#endif

/* They may alias, because tiles are plain reals to everyone else. */
typedef REAL F(vector) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL F(unaligned) __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(LOAD_ALIGNMENT)));
typedef INT F(integers) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef union {
    F(vector) v;
    REAL lane[WIDTH];
} F(lanes);
#define vector F(vector)
#define integers F(integers)

#if REAL_BITS == 32
typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2), may_alias, aligned(2)));
typedef signed char quarters __attribute__((vector_size(VECTOR_BYTES / 4), may_alias, aligned(1)));
#endif

/* ---- what is the same on every processor ---- */

INLINE vector F(splat)(REAL x)
{
    return x - (vector){0};   /* x + 0 would lose the sign of -0 */
}

INLINE integers F(iota)(void)
{
    static const INT numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    integers v;
    __builtin_memcpy(&v, numbers, sizeof v);
    return v;
}

INLINE vector F(load)(const REAL *from)
{
    return *(const F(unaligned) *)from;
}

INLINE void F(store)(REAL *to, vector x)
{
    *(F(unaligned) *)to = x;
}

INLINE vector F(select)(integers condition, vector yes, vector no)
{
    return (vector)((condition & (integers)yes) | (~condition & (integers)no));
}

#define INFINITE ((REAL)__builtin_inf())

/* ---- what is not: the file of the instruction set says OWN_X for each function x that it has ---- */

#if defined(TILES_AVX512)
#include "vectors_avx512.h"
#elif defined(TILES_AVX2)
#include "vectors_avx2.h"
#elif defined(__SSE2__) && VECTOR_BYTES == 16
#include "vectors_sse2.h"
#elif defined(__aarch64__) && VECTOR_BYTES == 16   /* vec128 takes a part of it */
#include "vectors_neon.h"
#endif
#include "vectors_generic.h"

/* ---- parts of vectors, half types ---- */

INLINE vector F(load_up_to)(const REAL *from, ptrdiff_t n)
{
    return n >= WIDTH ? F(load)(from) : F(load_part)(from, n);
}

INLINE void F(store_up_to)(REAL *to, vector x, ptrdiff_t n)
{
    if (n >= WIDTH)
        F(store)(to, x);
    else
        F(store_part)(to, x, n);
}

#if REAL_BITS == 32
INLINE vector widen_vector(halves x, cattn_type type)
{
    if (type != CATTN_FLOAT16)
        return (vector)upper_halves(x);
    return widen_float16(x);
}

#if defined(NARROWS)
/* Rounds to nearest, ties to even. For bfloat16 it does so by hand. What is cut off, plus a half less one, plus the
 * lowest bit kept, carries exactly if the number is rounded up. A NaN must not carry into infinity and gets its quiet
 * bit. */
INLINE halves narrow_vector(vector x, cattn_type type)
{
    if (type == CATTN_FLOAT16)
        return narrow_float16(x);
    const words bits = (words)x, nan = (words)(x != x);
    const words nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return __builtin_convertvector(((nan & (bits | 0x400000)) | (~nan & nearest)) >> 16, halves);
}
#endif
#endif

/* Loads n elements of a row as it is stored, from c on, with zeros behind them; all of a vector if n >= WIDTH. */
INLINE vector F(load_stored)(const char *row, ptrdiff_t c, ptrdiff_t n, const cattn_type type)
{
#if REAL_BITS == 32
    if (type == CATTN_FLOAT16 || type == CATTN_BFLOAT16) {
        halves x = {0};
        if (n >= WIDTH)
            x = *(const halves *)(row + c * 2);
        else
            __builtin_memcpy(&x, row + c * 2, (size_t)n * 2);
        return widen_vector(x, type);
    }
    if (type == CATTN_INT8) {
        quarters x = {0};
        if (n >= WIDTH)
            x = *(const quarters *)(row + c);
        else
            __builtin_memcpy(&x, row + c, (size_t)n);
        return widen_int8(x);
    }
#else
    (void)type;
#endif
    return F(load_up_to)((const REAL *)row + c, n);
}

INLINE ptrdiff_t F(stored_size)(const cattn_type type)
{
    return type == CATTN_INT8 ? 1 : type == CATTN_FLOAT16 || type == CATTN_BFLOAT16 ? 2 : (ptrdiff_t)sizeof(REAL);
}

/* ---- shuffles: transposes, and folds of many vectors into one ---- */

/* Inside each 128 bits: the elements (pairs) of a and b in turn, from the low and from the high half. Across: the even
 * and the odd 128 bits of a, then those of b. */
#if REAL_BITS == 32 && VECTOR_BYTES == 16
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLE(integers, a, b, 2, 6, 3, 7)
#define LOW_PAIRS(a, b) SHUFFLE(integers, a, b, 0, 1, 4, 5)
#define HIGH_PAIRS(a, b) SHUFFLE(integers, a, b, 2, 3, 6, 7)
#elif REAL_BITS == 32 && VECTOR_BYTES == 32
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) SHUFFLE(integers, a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) SHUFFLE(integers, a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_PAIRS(a, b) SHUFFLE(integers, a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN(a, b) SHUFFLE(integers, a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD(a, b) SHUFFLE(integers, a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#elif REAL_BITS == 32
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) SHUFFLE(integers, a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) SHUFFLE(integers, a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b) SHUFFLE(integers, a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN(a, b) SHUFFLE(integers, a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD(a, b) SHUFFLE(integers, a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#elif VECTOR_BYTES == 16
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 2)
#define HIGH(a, b) SHUFFLE(integers, a, b, 1, 3)
#elif VECTOR_BYTES == 32
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 4, 2, 6)
#define HIGH(a, b) SHUFFLE(integers, a, b, 1, 5, 3, 7)
#define EVEN(a, b) SHUFFLE(integers, a, b, 0, 1, 4, 5)
#define ODD(a, b) SHUFFLE(integers, a, b, 2, 3, 6, 7)
#else
#define LOW(a, b) SHUFFLE(integers, a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define HIGH(a, b) SHUFFLE(integers, a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#define EVEN(a, b) SHUFFLE(integers, a, b, 0, 1, 4, 5, 8, 9, 12, 13)
#define ODD(a, b) SHUFFLE(integers, a, b, 2, 3, 6, 7, 10, 11, 14, 15)
#endif

/* y[i][k] = x[k][i] inside each 128-bit part of QUAD vectors. */
INLINE void F(transpose_quads)(vector y[QUAD], const vector x[QUAD])
{
#if REAL_BITS == 32
    vector a = LOW(x[0], x[1]), b = HIGH(x[0], x[1]);
    vector c = LOW(x[2], x[3]), d = HIGH(x[2], x[3]);
    y[0] = LOW_PAIRS(a, c);
    y[1] = HIGH_PAIRS(a, c);
    y[2] = LOW_PAIRS(b, d);
    y[3] = HIGH_PAIRS(b, d);
#else
    y[0] = LOW(x[0], x[1]);
    y[1] = HIGH(x[0], x[1]);
#endif
}

/* x[i][k] ↔ x[k][i] of WIDTH vectors: first QUAD × QUAD squares inside the 128-bit parts, then the parts. */
INLINE void F(transpose)(vector x[WIDTH])
{
    vector y[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i += QUAD)
        F(transpose_quads)(y + i, x + i);
    UNROLL for (int i = 0; i < QUAD; i++) {
#if VECTOR_BYTES == 16
        x[i] = y[i];
#elif VECTOR_BYTES == 32
        x[i] = EVEN(y[i], y[QUAD + i]);
        x[QUAD + i] = ODD(y[i], y[QUAD + i]);
#else
        vector a = EVEN(y[i], y[QUAD + i]), b = EVEN(y[2 * QUAD + i], y[3 * QUAD + i]);
        vector c = ODD(y[i], y[QUAD + i]), d = ODD(y[2 * QUAD + i], y[3 * QUAD + i]);
        x[i] = EVEN(a, b);
        x[QUAD + i] = EVEN(c, d);
        x[2 * QUAD + i] = ODD(a, b);
        x[3 * QUAD + i] = ODD(c, d);
#endif
    }
}

/* x[i] = element `at` + i of each of WIDTH rows, for i < n. It is a transpose, in whose first step whole 128-bit parts
 * come from memory to where they belong. */
INLINE void F(load_square)(vector x[WIDTH], const void *const *rows, ptrdiff_t at, ptrdiff_t n)
{
#if defined(LOADS_QUADS)
    if (n >= WIDTH) {
        UNROLL for (int q = 0; q < WIDTH; q += QUAD) {
            vector z[QUAD];
            UNROLL for (int m = 0; m < QUAD; m++) {
                const REAL *from[WIDTH / QUAD];
                UNROLL for (int g = 0; g < WIDTH / QUAD; g++)
                    from[g] = (const REAL *)rows[g * QUAD + m] + at + q;
                z[m] = F(load_quads)(from);
            }
            F(transpose_quads)(x + q, z);
        }
        return;
    }
#endif
    UNROLL for (int i = 0; i < WIDTH; i++)
        x[i] = F(load_up_to)((const REAL *)rows[i] + at, n);
    F(transpose)(x);
}

INLINE vector F(fold_two)(vector a, vector b, const int largest)
{
    if (largest)
        return F(larger)(a, b);
    return a + b;
}

/* Returns the vector whose lane i is the sum of x[i]'s lanes, or the largest of them, where a NaN is lost. It is the
 * network of the transpose with a sum at each of its nodes, so that the order is the same for every i. */
INLINE vector F(fold)(const vector x[WIDTH], const int largest)
{
    vector y[WIDTH / QUAD];
    UNROLL for (int i = 0; i < WIDTH / QUAD; i++) {
        const vector *z = x + i * QUAD;
#if REAL_BITS == 32
        vector a = F(fold_two)(LOW(z[0], z[1]), HIGH(z[0], z[1]), largest);
        vector b = F(fold_two)(LOW(z[2], z[3]), HIGH(z[2], z[3]), largest);
        y[i] = F(fold_two)(LOW_PAIRS(a, b), HIGH_PAIRS(a, b), largest);
#else
        y[i] = F(fold_two)(LOW(z[0], z[1]), HIGH(z[0], z[1]), largest);
#endif
    }
#if VECTOR_BYTES == 16
    return y[0];
#elif VECTOR_BYTES == 32
    return F(fold_two)(EVEN(y[0], y[1]), ODD(y[0], y[1]), largest);
#else
    vector a = F(fold_two)(EVEN(y[0], y[1]), ODD(y[0], y[1]), largest);
    vector b = F(fold_two)(EVEN(y[2], y[3]), ODD(y[2], y[3]), largest);
    return F(fold_two)(EVEN(a, b), ODD(a, b), largest);
#endif
}

/* ---- exponentials ---- */

/* 2^x = 2^n · 2^f with n the integer nearest to x and f = x - n, exactly. Adding ROUNDER = 1.5·2^MANTISSA +
 * EXPONENT_BIAS leaves no bits for a fraction: the sum's lowest bits are n + EXPONENT_BIAS, a shift by MANTISSA makes
 * them the bits of 2^n, and taking ROUNDER away again gives n as a real. At n = LOWEST those bits are 0, and so is
 * 2^n, exactly; lower still, the trick fails. */
#define ROUNDER F(splat)((REAL)((3ll << (MANTISSA - 1)) + EXPONENT_BIAS))
#define LOWEST F(splat)(-EXPONENT_BIAS)

/* (2^f - 1) / f for |f| <= 1/2, minimax (Remez), highest power first. With it 1 + f·q(f) is exactly 1 at f = 0. */
#if REAL_BITS == 32
#if defined(TILES_FMA)
/* 9.1e-8 relative to 2^f (0.8 eps), for weights. */
static const REAL F(for_exponential)[] = {0.001326473f, 0.009671513f, 0.055507336f, 0.24022242f, 0.693147f};
#else   /* two roundings a step leave no room for that error */
#define for_exponential_32 for_difference_32
#endif
/* 1.1e-8 relative to 2^f - 1 itself. */
static const REAL F(for_difference)[] = {
    0.00015469735f, 0.0013390867f, 0.009618031f, 0.05550357f, 0.2402265f, 0.6931472f};
#else
/* 1.8e-17 relative to 2^f - 1. */
static const REAL F(for_difference)[] = {
    4.456676030826705e-10, 7.072586161230777e-09, 1.0178051724308302e-07, 1.3215442586728665e-06,
    1.5252733853289477e-05, 0.00015403530441738291, 0.0013333558146395995, 0.009618129107606887,
    0.05550410866482166, 0.24022650695910097, 0.6931471805599453};
#define for_exponential_64 for_difference_64
#endif
#define TERMS(coefficients) ((int)(sizeof F(coefficients) / sizeof *F(coefficients)))

/* The steps of an exponential are each taken for n vectors, so that what depends on one another stands n instructions
 * apart. */

/* x >= LOWEST, or NaN, becomes f; power becomes 2^n. */
INLINE void F(reduce)(vector *x, vector *power, const int n)
{
    UNROLL for (int i = 0; i < n; i++)
        power[i] = x[i] + ROUNDER;
    UNROLL for (int i = 0; i < n; i++)
        x[i] += ROUNDER - power[i];
    UNROLL for (int i = 0; i < n; i++)
        power[i] = (vector)((integers)power[i] << MANTISSA);
}

INLINE void F(polynomial)(vector *q, const vector *f, const int n, const REAL *coefficients, const int terms)
{
    UNROLL for (int i = 0; i < n; i++)
        q[i] = F(splat)(coefficients[0]);
    UNROLL for (int k = 1; k < terms; k++)
        UNROLL for (int i = 0; i < n; i++)
            q[i] = F(muladd)(q[i], f[i], F(splat)(coefficients[k]));
}

#if defined(TILES_NEON)
#include "exponential_neon.h"
#else
/* What F(exponential) takes, so that e^difference comes out. */
#define EXPONENT(difference) ((difference) * (REAL)CATTN_LOG2E)

/* 2^x for x <= 0: 0 from LOWEST down, NaN for NaN. */
INLINE void F(exponential)(vector *x, const int n)
{
    vector power[TILE_VECTORS], q[TILE_VECTORS];
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(larger)(LOWEST, x[i]);   /* in this order it keeps a NaN */
    F(reduce)(x, power, n);
    F(polynomial)(q, x, n, F(for_exponential), TERMS(for_exponential));
    /* This is a product, not a sum of exponents, so that a NaN stays one whatever its bits. */
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(muladd)(q[i], x[i], F(splat)(1)) * power[i];
}

/* The same for x up to EXPONENT_BIAS. */
INLINE void F(exponential_of_any)(vector *x, const int n)
{
    F(exponential)(x, n);
}
#endif

/* cap · tanh(x / cap), from e = exp(-2|x| / cap) - 1: tanh = -e / (2 + e), which loses nothing near 0 because e does
 * not. `factor` is -2·log2(e) / cap. Below -60, e is -1 in both types. If `slope` is not NULL, it becomes the derivative
 * 1 - tanh² = 4 (1 + e) / (2 + e)², which loses nothing where tanh is near 1. */
INLINE vector F(softcap_with)(vector x, REAL cap, REAL factor, vector *slope)
{
    const integers sign = (integers)x & (integers)F(splat)(-(REAL)0);
    vector f = F(larger)(F(splat)(-60), (vector)((integers)x ^ sign) * factor), power, q;
    F(reduce)(&f, &power, 1);
    F(polynomial)(&q, &f, 1, F(for_difference), TERMS(for_difference));
    const vector e = F(muladd)(power, q * f, power - 1);
    const vector size = cap * (e / (2 + e));
    if (slope != NULL)
        *slope = 4 * F(muladd)(power, q * f, power) / ((2 + e) * (2 + e));
    return (vector)(((integers)size & ~(integers)F(splat)(-(REAL)0)) | sign);
}

INLINE vector F(softcap)(vector x, REAL cap, REAL factor)
{
    return F(softcap_with)(x, cap, factor, NULL);
}
