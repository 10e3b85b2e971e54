/* What all vectors on x86 have. The file of each width defines INTRINSIC and INTRINSIC_TYPE, and includes this one at its
 * end. vectors_generic.h says what each function does. */

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

#undef INTRINSIC
#undef INTRINSIC_TYPE
