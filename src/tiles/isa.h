/* What the tables in vector extensions show to cpu.c. This header has no vector types, because it is compiled at the
 * baseline. */
#ifndef CATTN_TILES_ISA_H
#define CATTN_TILES_ISA_H

#include "tiles.h"

/* These say which of the tables this build can hold. The others compile to nothing. clang-cl, which is Clang in the
 * place of MSVC, has the extensions but does not define __GNUC__. */
#if defined(__GNUC__) || defined(__clang__)
#define CATTN_HAS_VEC128 1
#else
#define CATTN_HAS_VEC128 0
#endif

/* Its numbers lie in lanes as they lie in memory, which big-endian processors would swap. */
#if CATTN_HAS_VEC128 && defined(__aarch64__) && !defined(__AARCH64EB__)
#define CATTN_HAS_NEON 1
#else
#define CATTN_HAS_NEON 0
#endif

/* gcc on 64-bit Windows aligns the stack to 16 bytes only and spills wider vectors to it all the same (its bug 54412).
 * Before version 19, clang-cl's <immintrin.h> leaves out what the command line does not enable. */
#if !CATTN_HAS_VEC128 || !defined(__x86_64__)
#define CATTN_HAS_AVX 0
#elif defined(_WIN32) && !defined(__clang__)
#define CATTN_HAS_AVX 0
#elif defined(_MSC_VER) && __clang_major__ < 19
#define CATTN_HAS_AVX 0
#else
#define CATTN_HAS_AVX 1
#endif

/* CATTN_EMULATE builds the tables of 64-byte vectors, VDPBF16PS included, for the baseline. They are slow, but every
 * processor can run their tests. */
#if defined(CATTN_EMULATE)
#define CATTN_HAS_AVX512 CATTN_HAS_VEC128
#else
#define CATTN_HAS_AVX512 CATTN_HAS_AVX
#endif

/* Tiles need a permission, which is implemented for Linux only, and intrinsics, which older compilers lack. */
#if defined(CATTN_EMULATE)
#define CATTN_HAS_AMX CATTN_HAS_AVX512
#elif CATTN_HAS_AVX && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define CATTN_HAS_AMX 1
#else
#define CATTN_HAS_AMX 0
#endif

/* Each replaces the entries that it improves. Entries that depend on `lanes` are replaced together. */
void cattn_override_vec128(cattn_table *table);
void cattn_override_neon(cattn_table *table);
void cattn_override_avx2(cattn_table *table);
void cattn_override_avx512(cattn_table *table);
void cattn_override_avx512bf16(cattn_table *table);
void cattn_override_amx(cattn_table *table);

#endif
