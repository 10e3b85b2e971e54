/* The vec128 table against plain C loops: each of its functions, both types, at sizes around its vectors, tiles, runs and
 * blocks. For processors that have no Python at hand, big-endian ones among them: check_vec128.sh builds it and runs it under
 * emulation. `check_vec128 spoil` counts one key too few in the plain loops, so that all sums over keys must fail.
 *
 * Not reached from here: half types and swapped bytes, which are the business of the code around the table, and the entries that
 * it takes from the portable one.
 *
 * Each result is held to a bound on what rounding can do, eps times the number of operations on it times the size of what is
 * summed; the plain loops run in double, and in long double. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#include "tiles/isa.h"

static int failures, checks, spoil;

/* Reproducible numbers in [-1, 1). */
static double number(void)
{
    static unsigned long long state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / (double)(1ull << 52) - 1;
}

/* Zeroed, as large as the largest of all tiles here, aligned as the table demands. */
#define MOST_KEYS 128   /* a multiple of 64: it is the pitch of few rows */
#define MOST_REALS ((MOST_KEYS + 1) * CATTN_MAX_LANES)
static void *memory(void)
{
    void *reals = NULL;
    if (posix_memalign(&reals, CATTN_ALIGNMENT, MOST_REALS * sizeof(double)) != 0)
        exit(2);
    return memset(reals, 0, MOST_REALS * sizeof(double));
}

#define REAL float
#define WIDE double
#define EPSILON FLT_EPSILON
#define SMALLEST FLT_MIN
#define NAME(name) name##_float
#define TYPE "float"
#include "check_vec128.inc"
#undef REAL
#undef WIDE
#undef EPSILON
#undef SMALLEST
#undef NAME
#undef TYPE
#define REAL double
#define WIDE long double
#define EPSILON DBL_EPSILON
#define SMALLEST DBL_MIN
#define NAME(name) name##_double
#define TYPE "double"
#include "check_vec128.inc"

int main(int count, char **arguments)
{
    cattn_table table = {0};
    spoil = count > 1 && strcmp(arguments[1], "spoil") == 0;
    cattn_override_vec128(&table);
    if (table.name == NULL)
        return puts("this build has no vec128 table"), 1;
    check_all_float(table.kernels[0]);
    check_all_double(table.kernels[1]);
    const unsigned short one = 1;
    printf("%s-endian: %d checks, %d failed\n", *(const char *)&one ? "little" : "big", checks, failures);
    return failures != 0;
}
