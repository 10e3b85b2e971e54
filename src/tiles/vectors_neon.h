/* Vectors of 16 bytes on aarch64. vectors_template.h includes this file, and vectors_generic.h says what each function
 * does. */

#define OWN_MULADD
INLINE vector F(muladd)(vector a, vector b, vector c)
{
#if REAL_BITS == 32
    return (vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return (vector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
}

#if REAL_BITS == 32
#define OWN_WIDEN_FLOAT16
INLINE vector widen_float16(halves x)
{
    return (vector)vcvt_f32_f16((float16x4_t)x);
}
#endif
