/* The exponential of the table neon. vectors_template.h includes this file where the other tables have theirs. */

/* The constants of F(exponential), each as a vector. The terms are (e^g - 1) / g for |g| <= ln(2) / 2, minimax (Remez),
 * highest power first. */
#define LN2 0.69314718055994530942
#define LEAST (REAL)(-EXPONENT_BIAS * LN2)
#if REAL_BITS == 32
#define ALL(x) {x, x, x, x}
#define LOGARITHMS {(REAL)CATTN_LOG2E, (REAL)LN2, 0, 0}
#define NATURAL_COUNT 5   /* 9.2e-8 relative to e^g */
#define NATURAL_TERMS ALL(0.008290306f), ALL(0.041897975f), ALL(0.16667637f), ALL(0.4999915f), ALL(0.9999997f)
#else
#define ALL(x) {x, x}
#define LOGARITHMS {(REAL)CATTN_LOG2E, (REAL)LN2}
#define NATURAL_COUNT 11   /* 2.4e-17 relative to e^g - 1 */
#define NATURAL_TERMS                                                                                               \
    ALL(2.511487341578675e-08), ALL(2.762635806939412e-07), ALL(2.7557226397024294e-06), ALL(2.480150434475873e-05), \
    ALL(0.0001984126990530941), ALL(0.001388888893249062), ALL(0.008333333333313054), ALL(0.041666666666573135),     \
    ALL(0.1666666666666669), ALL(0.5000000000000006), ALL(1.0)
#endif
static const struct {
    vector least, logarithms, rounder, terms[NATURAL_COUNT];
} F(natural) = {ALL(LEAST), LOGARITHMS, ALL((REAL)((3ll << (MANTISSA - 1)) + EXPONENT_BIAS)), {NATURAL_TERMS}};
#undef LN2
#undef LEAST
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

/* e^x for x <= 0: 0 from -EXPONENT_BIAS·ln(2) down, NaN for NaN. With n the integer nearest to x / ln(2) and
 * g = x - n·ln(2), it is 2^n + 2^n·g·q(g). ROUNDER says where 2^n comes from. */
INLINE void F(exponential)(vector *x, const int n)
{
    const char *place = (const char *)&F(natural);
    OPAQUE(place);   /* or each load computes its address from the beginning */
    const __typeof__(F(natural)) *natural = (const void *)place;
    const vector least = F(reload)(&natural->least), logarithms = F(reload)(&natural->logarithms);
    const vector rounder = F(reload)(&natural->rounder), first = F(reload)(&natural->terms[0]);
    vector power[TILE_VECTORS], q[TILE_VECTORS];
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(at_least)(least, x[i]);
    UNROLL for (int i = 0; i < n; i++)
        power[i] = F(muladd_by)(x[i], logarithms, 0, F(reload)(&natural->rounder));
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(muladd_by)(rounder - power[i], logarithms, 1, x[i]);
    UNROLL for (int i = 0; i < n; i++)
        power[i] = (vector)((integers)power[i] << MANTISSA);
    UNROLL for (int i = 0; i < n; i++)
        q[i] = first;
    UNROLL for (int k = 1; k < NATURAL_COUNT; k++)
        UNROLL for (int i = 0; i < n; i++)
            q[i] = F(muladd)(q[i], x[i], F(reload)(&natural->terms[k]));
    UNROLL for (int i = 0; i < n; i++)
        x[i] = F(muladd)(power[i] * x[i], q[i], power[i]);
}
#undef NATURAL_COUNT
