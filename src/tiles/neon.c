/* The kernel table for neon: its target, its vector width and its register tile. */
#include "isa.h"

#if CATTN_HAS_NEON
#define TILES_NEON
#define VECTOR_BYTES 16
#define TILE_VECTORS 4   /* vectors over the rows of a many-row tile */
#define TILE_WIDE 8      /* keys, or value columns, of a register tile of one or two vectors */
#define TILE_SUMS 16     /* accumulators */
#define TILE_IN_A_ROW 0  /* whether the steps of a whole run stand in a row */
#define FEW_SUMS 16      /* accumulators of the few-row tiles: 4 FMAs a cycle · latency 4 */
#include "target_begin.h"
#define REAL_BITS 32
#include "tiles_template.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "tiles_template.h"
#include "target_end.h"
#endif

void cattn_override_neon(cattn_table *table)
{
#if CATTN_HAS_NEON
    override_32(table);
    override_64(table);
    table->name = "neon";
#else
    (void)table;
#endif
}
