/* What the tables in vector extensions show to dispatch.c. No vector types here: this header is compiled at the baseline. */
#ifndef CATTN_TILES_ISA_H
#define CATTN_TILES_ISA_H

#include "tiles.h"

/* Which of them this build can hold. Others compile to nothing. */
#if defined(__GNUC__)
#define CATTN_HAS_VEC128 1
#else
#define CATTN_HAS_VEC128 0
#endif

/* gcc on 64-bit Windows aligns the stack to 16 bytes only and spills wider vectors to it all the same (its bug 54412). */
#if defined(__GNUC__) && defined(__x86_64__) && !(defined(_WIN32) && !defined(__clang__))
#define CATTN_HAS_AVX 1
#else
#define CATTN_HAS_AVX 0
#endif

/* Each replaces the entries that it improves. Entries that depend on `lanes` are replaced together. */
void cattn_override_vec128(cattn_table *table);
void cattn_override_avx2(cattn_table *table);
void cattn_override_avx512(cattn_table *table);

#endif
