/* Vectors of 32 bytes on x86, with FMA and F16C. vectors_template.h includes this file, and vectors_generic.h says what
 * each function does. */

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
#define OWN_SPREAD_BYTES
#if REAL_BITS == 32
INLINE vector F(load_quads)(const REAL *const *from)
{
    return (vector)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from[0])), _mm_loadu_ps(from[1]), 1);
}

INLINE integers F(spread_bytes)(bytes_16 x)
{
    return (integers)_mm256_cvtepi8_epi32((__m128i)x);
}

#define OWN_UPPER_HALVES
INLINE words upper_halves(halves x)
{
    return (words)_mm256_cvtepu16_epi32((__m128i)x) << 16;
}

#define OWN_WIDEN_FLOAT16
INLINE vector widen_float16(halves x)
{
    return (vector)_mm256_cvtph_ps((__m128i)x);
}

#define NARROWS
INLINE halves narrow_float16(vector x)
{
    return (halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
}
#else
INLINE vector F(load_quads)(const REAL *const *from)
{
    return (vector)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(from[0])), _mm_loadu_pd(from[1]), 1);
}

INLINE integers F(spread_bytes)(bytes_16 x)
{
    return (integers)_mm256_cvtepi8_epi64((__m128i)x);
}
#endif

#include "vectors_x86.h"
