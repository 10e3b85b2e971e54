/* The kernel table for avx512bf16: avx512's, and bfloat16 on its own units. */
#include "isa.h"

#if CATTN_HAS_AVX512
#if !defined(CATTN_EMULATE)
#define TILES_AVX512
#define TILES_AVX512BF16
#endif
#define VECTOR_BYTES 64
#define TILE_VECTORS 4   /* vectors over the rows of a many-row tile: a broadcast serves four products */
#define TILE_WIDE 12     /* keys, or value columns, of a register tile of one or two vectors */
#define TILE_SUMS 24     /* accumulators */
#define TILE_IN_A_ROW 0  /* whether the steps of a whole run stand in a row */
#define RUN 20           /* keys of a run of weights, as in tiles_template.h */
#include "target_begin.h"
#define REAL_BITS 32
#include "vectors_template.h"
#include "register_tile_template.h"
#include "score_mod_template.h"
#include "few_score_mod_template.h"
#include "maxima_template.h"
#define PAIR_SCALES_LATE 0
#define PAIR_EXPONENTIAL F(exponential)
#include "column_blocks_template.h"
#include "pairs_template.h"
#include "avx512bf16_many.h"
#include "avx512bf16_few.h"
#include "target_end.h"
#endif

void cattn_override_avx512bf16(cattn_table *table)
{
    cattn_override_avx512(table);
#if CATTN_HAS_AVX512
    override_pairs(table);
    override_few_pairs(table);
    table->name = "avx512bf16";
#endif
}
