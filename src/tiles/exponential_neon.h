/* The exponential of the table neon. vectors_template.h includes this file where the other tables have theirs. */

/* The constants of F(exponential), each as a vector. The terms are (e^g - 1) / g for |g| <= ln(2) / 2, minimax (Remez),
 * highest power first, and 1. */
#if REAL_BITS == 32
#define ALL(x) {x, x, x, x}
#define LOGARITHMS {(REAL)-CATTN_LOG2E, (REAL)0.69314718055994530942, 0, 0}
#define NATURAL_COUNT 6   /* 9.2e-8 relative to e^g */
#define NATURAL_TERMS \
    ALL(0.008290306f), ALL(0.041897975f), ALL(0.16667637f), ALL(0.4999915f), ALL(0.9999997f), ALL(1.0f)
#define EXPONENT_BITS(n) vcvtq_n_u32_f32((float32x4_t)(n), MANTISSA)
#define SUBTRACT_BITS(x, bits) (vector)vqsubq_u32((uint32x4_t)(x), bits)
#define ADD_BITS(x, bits) (vector)vaddq_u32((uint32x4_t)(x), bits)
#else
#define ALL(x) {x, x}
#define LOGARITHMS {(REAL)-CATTN_LOG2E, (REAL)0.69314718055994530942}
#define NATURAL_COUNT 12   /* 2.4e-17 relative to e^g - 1 */
#define NATURAL_TERMS                                                                                               \
    ALL(2.511487341578675e-08), ALL(2.762635806939412e-07), ALL(2.7557226397024294e-06), ALL(2.480150434475873e-05), \
    ALL(0.0001984126990530941), ALL(0.001388888893249062), ALL(0.008333333333313054), ALL(0.041666666666573135),     \
    ALL(0.1666666666666669), ALL(0.5000000000000006), ALL(1.0), ALL(1.0)
#define EXPONENT_BITS(n) vcvtq_n_u64_f64((float64x2_t)(n), MANTISSA)
#define SUBTRACT_BITS(x, bits) (vector)vqsubq_u64((uint64x2_t)(x), bits)
#define ADD_BITS(x, bits) (vector)vaddq_u64((uint64x2_t)(x), bits)
#endif
static const vector F(natural)[] = {LOGARITHMS, ALL((REAL)(3ll << (MANTISSA - 1))), NATURAL_TERMS};
#undef ALL
#undef LOGARITHMS
#undef NATURAL_TERMS

/* Returns a constant that a multiply-add may overwrite. It comes from memory each time. Compilers would copy it from
 * another register, which takes as long as an FMA, and the same units. */
INLINE vector F(reload)(const vector *constant)
{
    vector x;
    __asm__ volatile("ldr %q0, %1" : "=w"(x) : "m"(*constant));
    return x;
}

/* What F(exponential) takes, so that e^difference comes out. */
#define EXPONENT(difference) (difference)

/* e^x for x <= 0: 0 from -EXPONENT_BIAS·ln(2) down, NaN for NaN. With n the integer nearest to -x / ln(2) and
 * g = x + n·ln(2), it is e^g / 2^n. Adding 1.5·2^MANTISSA leaves no bits for a fraction, and taking it away again gives
 * n. The division takes n from the exponent of e^g. The bits are unsigned and saturate: n is at most what they hold,
 * also for x = -infinity, the difference is at least 0, and n is 0 for NaN. What would be subnormal comes out smaller.
 * Where x may be above 0, up to EXPONENT_BIAS·ln(2), the bits of -n are added. */
INLINE void F(exponential_with)(vector *x, const int n, const int may_grow)
{
    const vector *natural = F(natural);
    OPAQUE(natural);   /* or each load computes its address from the beginning */
    const vector logarithms = natural[0], rounder = natural[1], *terms = natural + 2;
    vector halvings[TILE_VECTORS], power[TILE_VECTORS];
    UNROLL for (int i = 0; i < n; i++)
        halvings[i] = F(muladd_by)(x[i], logarithms, 0, F(reload)(&natural[1])) - rounder;
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(muladd_by)(halvings[i], logarithms, 1, x[i]);
    UNROLL for (int i = 0; i < n; i++)
        power[i] = terms[0];
    UNROLL for (int k = 1; k < NATURAL_COUNT; k++)
        UNROLL for (int i = 0; i < n; i++)
            power[i] = F(muladd)(power[i], x[i], F(reload)(&terms[k]));
    UNROLL for (int i = 0; i < n; i++)
        x[i] = SUBTRACT_BITS(power[i], EXPONENT_BITS(halvings[i]));
    if (may_grow)
        UNROLL for (int i = 0; i < n; i++)
            x[i] = ADD_BITS(x[i], EXPONENT_BITS(-halvings[i]));
}

INLINE void F(exponential)(vector *x, const int n)
{
    F(exponential_with)(x, n, 0);
}

INLINE void F(exponential_of_any)(vector *x, const int n)
{
    F(exponential_with)(x, n, 1);
}
#undef NATURAL_COUNT
#undef EXPONENT_BITS
#undef SUBTRACT_BITS
#undef ADD_BITS
