/* The kernel table for AMX: it computes many rows of bfloat16 on tiles, and all else as avx512bf16 does. */
#include "isa.h"

#if CATTN_HAS_AMX
#if !defined(CATTN_EMULATE)
#define TILES_AVX512
#define TILES_AVX512BF16
#define TILES_AMX
#endif
#define VECTOR_BYTES 64
#define TILE_VECTORS 4
#define TILE_WIDE 12
#define TILE_SUMS 24
#define RUN 32   /* keys of a run of weights: one product of tiles sums so many */
#include "target_begin.h"
#define REAL_BITS 32
#include "vectors_template.h"
#include "register_tile_template.h"
#include "score_mod_template.h"
#include "maxima_template.h"
#define PAIR_SCALES_LATE 1
#include "amx_tiles.h"
#define PAIR_EXPONENTIAL amx_exponential
#include "pairs_template.h"
#include "amx_bfloat16.h"
#include "target_end.h"
#endif

void cattn_override_amx(cattn_table *table)
{
    cattn_override_avx512bf16(table);
#if CATTN_HAS_AMX
    override_amx(table);
    table->name = "amx";
#endif
}
