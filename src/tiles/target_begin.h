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
#define TILES_FMA
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16," \
                                                   "amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#endif
#elif defined(TILES_AVX512BF16)
#define TILES_FMA
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#endif
#elif defined(TILES_AVX512)
#define TILES_FMA
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#elif defined(TILES_AVX2)
#define TILES_FMA
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
/* Python's flags let signed numbers wrap. gcc then orders FMAs and broadcasts so that the units wait. */
#pragma GCC optimize("no-wrapv")
#endif
#elif defined(__FMA__) || defined(__aarch64__) || defined(__FP_FAST_FMAF)
#define TILES_FMA   /* the baseline has it, or someone's own -march */
#endif
