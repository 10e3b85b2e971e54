/* From here to target_end.h, functions are compiled for the instruction set that the including file names: one of
 * TILES_VEC128, TILES_AVX2 and TILES_AVX512. There is no include guard, because a file includes it once, before the
 * templates.
 *
 * gcc wants its pragma. clang ignores it and wants an attribute, which does not define __AVX2__ and its like. So
 * nothing may ask for those, and our own TILES_ names say what there is. TILES_FMA says that a multiply-add is rounded
 * once, on any processor. */
#include <float.h>
#if defined(__x86_64__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(TILES_AMX)
#define TILES_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16"
#elif defined(TILES_AVX512BF16)
#define TILES_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"
#elif defined(TILES_AVX512)
#define TILES_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"
#elif defined(TILES_AVX2)
#define TILES_TARGET "avx2,fma,f16c"
#endif

/* A baseline has FMA if the processor always has it, or if someone's own -march says so. */
#if defined(TILES_TARGET) || defined(__FMA__) || defined(__aarch64__) || defined(__FP_FAST_FMAF)
#define TILES_FMA
#endif

#if defined(__clang__)
#pragma clang fp contract(fast)   /* as gcc does by itself */
#endif
#if defined(TILES_TARGET) && defined(__clang__)
#pragma clang attribute push(__attribute__((target(TILES_TARGET))), apply_to = function)
#elif defined(TILES_TARGET)
#define TILES_PRAGMA_(text) _Pragma(#text)
#define TILES_PRAGMA(text) TILES_PRAGMA_(text)   /* gcc expands no macros in the pragma itself */
#pragma GCC push_options
TILES_PRAGMA(GCC target(TILES_TARGET))
#if defined(TILES_AVX2)
/* Python's flags let signed numbers wrap. gcc then orders FMAs and broadcasts so that the units wait. */
#pragma GCC optimize("no-wrapv")
#endif
#elif defined(TILES_NEON) && !defined(__clang__)
#pragma GCC push_options
/* gcc would move loads and FMAs apart before it assigns registers, and then have too few of those. */
#pragma GCC optimize("no-schedule-insns")
#endif
