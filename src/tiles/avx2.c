/* The kernel table for avx2: its target, its vector width and its register tile. */
#include "isa.h"

#if CATTN_HAS_AVX
#define TILES_AVX2
#define VECTOR_BYTES 32
#define TILE_VECTORS 2   /* vectors over the rows of a many-row tile */
#define TILE_WIDE 6      /* keys, or value columns, of a register tile */
#define TILE_SUMS 12     /* accumulators */
#define TILE_IN_A_ROW 1  /* whether the steps of a whole run stand in a row */
#include "tiles_of_both_types.h"
#endif

void cattn_override_avx2(cattn_table *table)
{
#if CATTN_HAS_AVX
    override_32(table);
    override_64(table);
    table->name = "avx2";
#else
    (void)table;
#endif
}
