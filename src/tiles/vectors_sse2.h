/* Vectors of 16 bytes on x86. vectors_template.h includes this file, and vectors_generic.h says what each function
 * does. */

#if REAL_BITS == 32
#define INTRINSIC(name) _mm_##name##_ps
#define INTRINSIC_TYPE __m128
#else
#define INTRINSIC(name) _mm_##name##_pd
#define INTRINSIC_TYPE __m128d
#endif

#define OWN_LARGER
INLINE vector F(larger)(vector a, vector b)
{
    return (vector)INTRINSIC(max)((INTRINSIC_TYPE)a, (INTRINSIC_TYPE)b);
}

#if defined(TILES_FMA)   /* someone's own -march */
#define OWN_MULADD
INLINE vector F(muladd)(vector a, vector b, vector c)
{
    return (vector)INTRINSIC(fmadd)((INTRINSIC_TYPE)a, (INTRINSIC_TYPE)b, (INTRINSIC_TYPE)c);
}
#endif

#undef INTRINSIC
#undef INTRINSIC_TYPE
