/* Vectors of 32 bytes on x86, with FMA and F16C. vectors_template.h includes this file, and vectors_generic.h says what
 * each function does. */

#define CONVERSION(name) _mm256_##name
#define HALF_A_VECTOR __m128i
#if REAL_BITS == 32
#define INTRINSIC(name) _mm256_##name##_ps
#define INTRINSIC_TYPE __m256
#else
#define INTRINSIC(name) _mm256_##name##_pd
#define INTRINSIC_TYPE __m256d
#endif

#define OWN_LOAD_PART
INLINE vector F(load_part)(const REAL *from, ptrdiff_t n)
{
    return (vector)INTRINSIC(maskload)(from, (__m256i)(integers)(F(iota)() < (INT)n));
}

#define OWN_LOAD_QUADS
#define LOADS_QUADS   /* parts of a vector come from memory one by one at no cost */
#if REAL_BITS == 32
INLINE vector F(load_quads)(const REAL *const *from)
{
    return (vector)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from[0])), _mm_loadu_ps(from[1]), 1);
}
#else
INLINE vector F(load_quads)(const REAL *const *from)
{
    return (vector)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(from[0])), _mm_loadu_pd(from[1]), 1);
}
#endif

#include "vectors_x86.h"
