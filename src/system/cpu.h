/* Processor features → kernel table. The complete table exists in portable form; an instruction set overrides what it
 * does better. */
#ifndef CATTN_CPU_H
#define CATTN_CPU_H

#include <stddef.h>

#include "tiles/tiles.h"

/* The kernel tables by name, best first, "portable" last; NULL behind it. */
const char *cattn_isa_name(int number);

/* Replaces the entries of a complete `table` (and its name) by those of `isa`; "portable" leaves it as it is. Answers
 * 0; -1 where no table has that name; -2 where this build or this processor lacks it. */
int cattn_override(cattn_table *table, const char *isa);

/* Bytes of the second-level cache of one core, or a sane default where the system does not say. It may read files: to
 * be called once. */
ptrdiff_t cattn_l2_bytes(void);

/* Whether this processor's own prefetchers follow rows well that lie behind one another. Intel's do: to ask for such
 * rows beforehand costs time there, and saves time on AMD's. */
int cattn_prefetches_rows(void);

#endif
