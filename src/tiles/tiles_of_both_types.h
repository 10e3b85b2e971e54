/* The kernels of both types that are computed in, for the target and the register tile that the including file
 * names. */
#include "target_begin.h"
#define REAL_BITS 32
#include "tiles_template.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "tiles_template.h"
#include "target_end.h"
