/* Processor features → kernel table. The portable table is complete. An instruction set overrides what it does
 * better. */
#ifndef CATTN_CPU_H
#define CATTN_CPU_H

#include <stddef.h>

#include "tiles/tiles.h"

/* Return the name of the kernel table of this number. The best comes first and "portable" last, followed by NULL. */
const char *cattn_isa_name(int number);

/* Return the name of the best table that this build has and this processor runs well. It is used if nobody names
 * one. */
const char *cattn_best_isa(void);

/* Replace the entries of a complete `table` (and its name) by those of `isa`. "portable" leaves it as it is. Return 0,
 * or -1 if no table has that name, or -2 if this build or this processor lacks it. */
int cattn_override(cattn_table *table, const char *isa);

/* Return the size in bytes of one core's second-level cache, or a sane default if the system does not say it. Call this
 * once only, because it may read files. */
ptrdiff_t cattn_l2_bytes(void);

/* Return whether this processor's own prefetchers follow rows well that lie one after the other. Those of Intel's do,
 * so that asking for such rows ahead costs time. On AMD's processors it saves time. */
int cattn_prefetches_rows(void);

#endif
