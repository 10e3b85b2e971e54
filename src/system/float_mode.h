/* The floating-point mode of a thread: rounding, traps, and what becomes of numbers below the smallest normal one.
 *
 * Calls compute in modes of their own, so that their results do not depend on the caller's: all around the tasks in the
 * usual one (round to nearest, no traps), and in tasks in one in which numbers below the smallest normal one count as
 * 0 too. Weights fall smoothly to 0, and on the way their products with values pass through the subnormal numbers, where
 * Intel's processors take some 150 cycles for a multiply-add. Elsewhere than on x86 subnormal numbers cost little, and
 * both modes are the same. */
#ifndef CATTN_FLOAT_MODE_H
#define CATTN_FLOAT_MODE_H

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#define CATTN_USUAL_MODE 0x1f80u /* MXCSR: exceptions are masked */
#define CATTN_TASK_MODE (CATTN_USUAL_MODE | 0x8000u | 0x0040u) /* flush to zero; denormals are zeros */
#define CATTN_MODE_BITS (~0x3fu) /* all but the exceptions that have occurred */
#define cattn_float_mode() ((unsigned)_mm_getcsr())
#define cattn_set_float_mode(mode) _mm_setcsr(mode)

#elif defined(__aarch64__)
#include <stdint.h>
#define CATTN_USUAL_MODE 0u /* FPCR */
#define CATTN_TASK_MODE CATTN_USUAL_MODE
#define CATTN_MODE_BITS (~0u)

static inline unsigned cattn_float_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    return (unsigned)mode;
}

static inline void cattn_set_float_mode(unsigned mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)mode) : "memory");
}

#else
#include <fenv.h>
#define CATTN_USUAL_MODE ((unsigned)FE_TONEAREST)
#define CATTN_TASK_MODE CATTN_USUAL_MODE
#define CATTN_MODE_BITS (~0u)
#define cattn_float_mode() ((unsigned)fegetround())
#define cattn_set_float_mode(mode) fesetround((int)(mode))
#endif

/* Returns the mode before. */
static inline unsigned cattn_change_float_mode(unsigned mode)
{
    const unsigned before = cattn_float_mode();
    if ((before ^ mode) & CATTN_MODE_BITS)
        cattn_set_float_mode(mode);
    return before;
}

#endif
