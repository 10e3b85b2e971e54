/* Processor features → kernel table. The complete table exists in portable form; an instruction set overrides what it
 * does better. */
#ifndef CATTN_DISPATCH_H
#define CATTN_DISPATCH_H

#include <stddef.h>

#include "tiles.h"

/* Replaces the entries of a complete `table` (and its name) by those of `isa`: "vec128", "avx2" or "avx512"; "portable"
 * leaves it as it is. Answers 0; -1 where no table has that name; -2 where this build or this processor lacks it. */
int cattn_override(cattn_table *table, const char *isa);

/* The name of the best table that this build has and this processor runs. */
const char *cattn_best_isa(void);

/* Bytes of the second-level cache of one core, or a sane default where the system does not say. It may read files: to be
 * called once. */
ptrdiff_t cattn_l2_bytes(void);

/* Whether this processor's own prefetchers follow rows well that lie behind one another. Intel's do: to ask for such rows
 * beforehand took 2 to 6% of the time where it saves 2 to 7% on AMD's Zen 4 and 5. */
int cattn_foresees_rows(void);

#endif
