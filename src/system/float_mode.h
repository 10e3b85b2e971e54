/* The floating-point mode that tasks run in, whatever the caller's: round to nearest, no traps, and numbers below the
 * smallest normal one count as 0. Weights fall smoothly to 0, and on the way their products with values pass through
 * the subnormal numbers, where Intel's processors take some 150 cycles for a multiply-add. Elsewhere than on
 * x86, where subnormal numbers cost little, the mode is what it is. */
#ifndef CATTN_FLOAT_MODE_H
#define CATTN_FLOAT_MODE_H

#define CATTN_TASK_MODE (0x1f80u | 0x8000u | 0x0040u) /* MXCSR: exceptions masked; flush to zero; denormals are zeros */

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>

static inline unsigned cattn_float_mode(void)
{
    return _mm_getcsr();
}

/* Answers the mode before. */
static inline unsigned cattn_change_float_mode(unsigned mode)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(mode);
    return before;
}
#else
static inline unsigned cattn_float_mode(void)
{
    return 0;
}

static inline unsigned cattn_change_float_mode(unsigned mode)
{
    return mode;
}
#endif

#endif
