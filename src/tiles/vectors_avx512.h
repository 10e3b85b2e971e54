/* Vectors of 64 bytes on x86. vectors_template.h includes this file, and vectors_generic.h says what each function
 * does. */

#define CONVERSION(name) _mm512_##name
#define HALF_A_VECTOR __m256i
#if REAL_BITS == 32
#define INTRINSIC(name) _mm512_##name##_ps
#define INTRINSIC_TYPE __m512
#define FIRST(n) ((__mmask16)((1u << (n)) - 1))
#else
#define INTRINSIC(name) _mm512_##name##_pd
#define INTRINSIC_TYPE __m512d
#define FIRST(n) ((__mmask8)((1u << (n)) - 1))
#endif

#define OWN_LOAD_PART
INLINE vector F(load_part)(const REAL *from, ptrdiff_t n)
{
    return (vector)INTRINSIC(maskz_loadu)(FIRST(n), from);
}

#define OWN_STORE_PART
INLINE void F(store_part)(REAL *to, vector x, ptrdiff_t n)
{
    INTRINSIC(mask_storeu)(to, FIRST(n), (INTRINSIC_TYPE)x);
}

#define OWN_LOAD_QUADS
#define LOADS_QUADS   /* parts of a vector come from memory one by one at no cost */
#if REAL_BITS == 32
INLINE vector F(load_quads)(const REAL *const *from)
{
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(from[0]));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from[1]), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from[2]), 2);
    return (vector)_mm512_insertf32x4(x, _mm_loadu_ps(from[3]), 3);
}

#define OWN_WHERE
INLINE vector F(where_set)(const unsigned char *bytes, vector x)
{
    const __m128i set = _mm_loadu_si128((const __m128i *)bytes);
    return (vector)_mm512_mask_mov_ps((__m512)F(splat)(-INFINITE), _mm_test_epi8_mask(set, set), (__m512)x);
}

INLINE vector F(where_between)(integers low, integers key, integers high, vector x)
{
    const __mmask16 between = _mm512_mask_cmpgt_epi32_mask(_mm512_cmple_epi32_mask((__m512i)low, (__m512i)key),
                                                           (__m512i)high, (__m512i)key);
    return (vector)_mm512_mask_mov_ps((__m512)F(splat)(-INFINITE), between, (__m512)x);
}
#else
INLINE vector F(load_quads)(const REAL *const *from)
{
    __m512d x = _mm512_castpd128_pd512(_mm_loadu_pd(from[0]));
    x = _mm512_insertf64x2(x, _mm_loadu_pd(from[1]), 1);
    x = _mm512_insertf64x2(x, _mm_loadu_pd(from[2]), 2);
    return (vector)_mm512_insertf64x2(x, _mm_loadu_pd(from[3]), 3);
}
#endif

#include "vectors_x86.h"
#undef FIRST
