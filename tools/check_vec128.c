/* The vec128 table against plain C loops: each of its functions, both types, at sizes around its vectors, tiles, runs and
 * blocks. For processors that have no Python at hand, big-endian ones among them: check_vec128.sh builds it and runs it under
 * emulation. `check_vec128 spoil` counts one key too few in the plain loops, so that all sums over keys must fail.
 *
 * Not reached from here: swapped bytes, which are the business of the code around the table, and the entries that it takes from
 * the portable one.
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

/* What a half type's bits say: sign, exponent, mantissa (IEEE 754, section 3.4). */
static double half(unsigned bits, int exponent_bits)
{
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (int)(bits >> mantissa_bits) & (2 * bias + 1), mantissa = (int)bits & ((1 << mantissa_bits) - 1);
    const double size = exponent == 0 ? ldexp(mantissa, 1 - bias - mantissa_bits)
        : exponent == 2 * bias + 1    ? (mantissa != 0 ? NAN : INFINITY)
                                      : ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return bits & 0x8000 ? -size : size;
}

/* All numbers of a half type, widened; and few rows that read it where it lies, which must give what floats give. */
static void check_halves(const cattn_table *table, cattn_type type)
{
    static unsigned short halves[1 << 16];
    static float wide[1 << 16], scores[2][4 * 128], output[2][4 * 64], queries[4 * 64], vectors[2][CATTN_MAX_LANES];
    for (unsigned i = 0; i < 1 << 16; i++)
        halves[i] = (unsigned short)i;
    table->widen(wide, (const char *)halves, type, 1 << 16);
    for (unsigned i = 0; i < 1 << 16; i++) {
        const double expected = half(i + (unsigned)spoil, type == CATTN_FLOAT16 ? 5 : 8);
        checks++;
        if (!(isnan(expected) ? isnan(wide[i]) : wide[i] == expected && !signbit(wide[i]) == !signbit(expected)) && failures++ < 20)
            printf("widen, type %d: %#x gives %.9g, expected %.9g\n", (int)type, i, (double)wide[i], expected);
    }
    for (unsigned i = 0; i < 1 << 16; i++)   /* below 4 in size, subnormal ones too */
        halves[i] = (unsigned short)((i * 40503u & 0x8000) | (i * 2654435761u >> 7) % (type == CATTN_FLOAT16 ? 0x4400 : 0x4080));
    table->widen(wide, (const char *)halves, type, 1 << 16);
    for (int i = 0; i < 4 * 64; i++)
        queries[i] = (float)number();
    const cattn_kernels *kernels = &table->kernels[type][CATTN_FEW];
    for (int rows = 1; rows <= 4; rows++)
        for (ptrdiff_t size = 1; size <= 64; size = size * 3 / 2 + 1)
            for (ptrdiff_t count = 1; count <= 128; count = count * 3 / 2 + 1) {
                for (int stored = 0; stored < 2; stored++) {
                    cattn_row_tile tile = {.rows = rows, .lanes = rows, .pitch = 128, .output_pitch = size, .queries = queries,
                                           .scores = scores[stored], .block_max = vectors[0], .row_scale = vectors[1], .is_new = 1};
                    const char *from = stored ? (const char *)halves : (const char *)wide;
                    cattn_key_block block = {from, size * (stored ? 2 : 4), count, size, stored ? type : CATTN_FLOAT32, NULL};
                    kernels->scores(scores[stored], &tile, &block);
                    kernels->values(output[stored], &tile, &block);
                }
                for (int r = 0; r < rows; r++)
                    if (checks++, memcmp(scores[0] + r * 128, scores[1] + r * 128, (size_t)count * 4) != 0
                                      || memcmp(output[0] + r * size, output[1] + r * size, (size_t)size * 4) != 0)
                        if (failures++ < 20)
                            printf("few rows of type %d: rows %d, count %td, size %td\n", (int)type, rows, count, size);
            }
}

int main(int count, char **arguments)
{
    cattn_table table = {0};
    spoil = count > 1 && strcmp(arguments[1], "spoil") == 0;
    cattn_override_vec128(&table);
    if (table.name == NULL)
        return puts("this build has no vec128 table"), 1;
    check_all_float(table.kernels[0]);
    check_all_double(table.kernels[1]);
    check_halves(&table, CATTN_FLOAT16);
    check_halves(&table, CATTN_BFLOAT16);
    const unsigned short one = 1;
    printf("%s-endian: %d checks, %d failed\n", *(const char *)&one ? "little" : "big", checks, failures);
    return failures != 0;
}
