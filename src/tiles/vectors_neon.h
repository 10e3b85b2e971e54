/* Vectors of 16 bytes on aarch64. vectors_template.h includes this file, and vectors_generic.h says what each function
 * does. */

#if REAL_BITS == 32
#define INTRINSIC(name) v##name##_f32
#define INTRINSIC_TYPE float32x4_t
#else
#define INTRINSIC(name) v##name##_f64
#define INTRINSIC_TYPE float64x2_t
#endif

#define OWN_MULADD
INLINE vector F(muladd)(vector a, vector b, vector c)
{
    return (vector)INTRINSIC(fmaq)((INTRINSIC_TYPE)c, (INTRINSIC_TYPE)a, (INTRINSIC_TYPE)b);
}

#if REAL_BITS == 32
#define OWN_WIDEN_FLOAT16
INLINE vector widen_float16(halves x)
{
    return (vector)vcvt_f32_f16((float16x4_t)x);
}

#define OWN_WIDEN_INT8
INLINE vector widen_int8(quarters x)   /* gcc would go element by element */
{
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return (vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(bits)))));
}
#endif

#if defined(TILES_NEON)
/* A multiply-add takes one factor from a lane of a vector. A load of QUAD numbers of a key therefore serves QUAD
 * columns. */
#define MULTIPLIES_BY_LANE

/* Returns the first n <= QUAD numbers, with anything behind them. */
INLINE vector F(load_factors)(const REAL *from, const int n)
{
    if (n == QUAD)
        return F(load)(from);
#if REAL_BITS == 32
    if (n > 1) {
        const float32x4_t two = vcombine_f32(vld1_f32(from), vdup_n_f32(0));
        return (vector)(n == 2 ? two : vld1q_lane_f32(from + 2, two, 2));
    }
#endif
    return F(splat)(*from);
}

/* Returns a·factors[i] + c, rounded once. */
INLINE vector F(muladd_by)(vector a, vector factors, const int i, vector c)
{
#define BY_LANE(i) (vector)INTRINSIC(fmaq_laneq)((INTRINSIC_TYPE)c, (INTRINSIC_TYPE)a, (INTRINSIC_TYPE)factors, i)
    switch (i) {   /* the lane is part of the instruction */
    case 0: return BY_LANE(0);
#if REAL_BITS == 32
    case 2: return BY_LANE(2);
    case 3: return BY_LANE(3);
#endif
    default: return BY_LANE(1);
    }
#undef BY_LANE
}
#endif

#undef INTRINSIC
#undef INTRINSIC_TYPE
