/* The floating-point mode of a thread says how it rounds, whether it traps, and what becomes of subnormal numbers,
 * which are those below the smallest normal one.
 *
 * Calls compute in modes of their own, so that their results do not depend on the caller's mode. Tasks compute in the
 * task mode, in which subnormal numbers count as 0. All else is computed in the usual mode: it rounds to nearest and
 * never traps. Weights fall smoothly to 0, and their products with values pass through the subnormal numbers on the
 * way. Multiply-adds of those are very slow on Intel's processors. On other processors than x86 they cost little, and
 * both modes are the same. */
#ifndef CATTN_FLOAT_MODE_H
#define CATTN_FLOAT_MODE_H

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#define CATTN_USUAL_MODE 0x1f80u /* a value of MXCSR in which exceptions are masked */
#define CATTN_TASK_MODE (CATTN_USUAL_MODE | 0x8000u | 0x0040u) /* with "flush to zero" and "denormals are zeros" */
#define CATTN_MODE_BITS (~0x3fu) /* all bits but those of exceptions that have occurred */
#define cattn_float_mode() ((unsigned)_mm_getcsr())
#define cattn_set_float_mode(mode) _mm_setcsr(mode)

#elif defined(__aarch64__)
#include <stdint.h>
#define CATTN_USUAL_MODE 0u /* a value of FPCR */
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

/* Change the mode of this thread, and return the mode before. */
static inline unsigned cattn_change_float_mode(unsigned mode)
{
    const unsigned before = cattn_float_mode();
    if ((before ^ mode) & CATTN_MODE_BITS)
        cattn_set_float_mode(mode);
    return before;
}

#endif
