/* Vectors of 16 bytes on x86. vectors_template.h includes this file, and vectors_generic.h says what each function
 * does. */

#if REAL_BITS == 32
#define INTRINSIC(name) _mm_##name##_ps
#define INTRINSIC_TYPE __m128
#else
#define INTRINSIC(name) _mm_##name##_pd
#define INTRINSIC_TYPE __m128d
#endif

#include "vectors_x86.h"
