/* The kernel table for avx512: its target, its vector width and its register tile. */
#include "isa.h"

#if CATTN_HAS_AVX512
#if !defined(CATTN_EMULATE)
#define TILES_AVX512
#endif
#define VECTOR_BYTES 64
#define TILE_VECTORS 4   /* vectors over the rows of a many-row tile: a broadcast serves four FMAs */
#define TILE_WIDE 12     /* keys, or value columns, of a register tile of one or two vectors */
#define TILE_SUMS 24     /* accumulators */
#define TILE_IN_A_ROW 0  /* whether the steps of a whole run stand in a row */
#include "tiles_of_both_types.h"
#endif

void cattn_override_avx512(cattn_table *table)
{
#if CATTN_HAS_AVX512
    override_32(table);
    override_64(table);
    table->name = "avx512";
#else
    (void)table;
#endif
}
