/* What vectors on x86 have, whatever their width. The file of each width defines INTRINSIC and INTRINSIC_TYPE, and
 * above 16 bytes also CONVERSION and HALF_A_VECTOR. It includes this file at its end. vectors_generic.h says what each
 * function does. */

/* VMAXPS returns b where a or b is NaN, as `larger` must. */
#define OWN_LARGER
INLINE vector F(larger)(vector a, vector b)
{
    return (vector)INTRINSIC(max)((INTRINSIC_TYPE)a, (INTRINSIC_TYPE)b);
}

#if defined(TILES_FMA)
#define OWN_MULADD
INLINE vector F(muladd)(vector a, vector b, vector c)
{
    return (vector)INTRINSIC(fmadd)((INTRINSIC_TYPE)a, (INTRINSIC_TYPE)b, (INTRINSIC_TYPE)c);
}
#endif

#if VECTOR_BYTES > 16
#define OWN_SPREAD_BYTES
INLINE integers F(spread_bytes)(bytes_16 x)
{
#if REAL_BITS == 32
    return (integers)CONVERSION(cvtepi8_epi32)((__m128i)x);
#else
    return (integers)CONVERSION(cvtepi8_epi64)((__m128i)x);
#endif
}

#if REAL_BITS == 32
#define OWN_UPPER_HALVES
INLINE words upper_halves(halves x)
{
    return (words)CONVERSION(cvtepu16_epi32)((HALF_A_VECTOR)x) << 16;
}

#define OWN_WIDEN_FLOAT16
INLINE vector widen_float16(halves x)
{
    return (vector)CONVERSION(cvtph_ps)((HALF_A_VECTOR)x);
}

#define OWN_WIDEN_INT8
INLINE vector widen_int8(quarters x)
{
#if VECTOR_BYTES == 64
    const __m128i bytes = (__m128i)x;
#else
    const __m128i bytes = {(long long)x};
#endif
    return (vector)CONVERSION(cvtepi32_ps)(CONVERSION(cvtepi8_epi32)(bytes));
}

#define NARROWS
INLINE halves narrow_float16(vector x)
{
    return (halves)CONVERSION(cvtps_ph)((INTRINSIC_TYPE)x, _MM_FROUND_TO_NEAREST_INT);
}
#endif
#endif

#undef INTRINSIC
#undef INTRINSIC_TYPE
#undef CONVERSION
#undef HALF_A_VECTOR
