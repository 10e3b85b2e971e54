/* Kernel tables against plain C loops: each function of each table that this processor runs, every type, at sizes around vectors,
 * tiles, runs and blocks. It is for processors and systems that have no Python at hand, big-endian ones among them.
 * check_vec128.sh and test_windows.sh build it and run it. `check_tables vec128 avx2` checks these tables, and with `spoil` before
 * them the plain loops count one key too few, so that all sums over keys must fail.
 *
 * Not reached from here: swapped bytes, which are the business of the code around the tables, and the functions that a table takes
 * from the portable one.
 *
 * Each result is held to a bound on what rounding can do, eps times the number of operations on it times the size of what is
 * summed; the plain loops run in double, and in long double. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#include "system/cpu.h"
#include "tiles/isa.h"

static int failures, checks, spoil;

/* Reproducible numbers in [-1, 1). */
static double number(void)
{
    static unsigned long long state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / (double)(1ull << 52) - 1;
}

/* Zeroed, as large as the largest of all tiles here, aligned as the tables demand. */
#define MOST_KEYS 128   /* a multiple of 64: it is the pitch of few rows */
#define MOST_REALS ((MOST_KEYS + 1) * CATTN_MAX_LANES)
static void *memory(void)
{
    const size_t bytes = MOST_REALS * sizeof(double);
#ifdef _WIN32
    void *reals = _aligned_malloc(bytes, CATTN_ALIGNMENT);
#else
    void *reals = aligned_alloc(CATTN_ALIGNMENT, bytes);
#endif
    if (reals == NULL)
        exit(2);
    return memset(reals, 0, bytes);
}

static void release(void *reals)
{
#ifdef _WIN32
    _aligned_free(reals);
#else
    free(reals);
#endif
}

/* Sizes around vectors, tiles, runs and blocks; rows as far as a tile has so many. */
static const ptrdiff_t counts[] = {1, 5, 7, 20, 41, 80}, sizes[] = {1, 3, 7, 17, 64, 70};
static const ptrdiff_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64};
#define LENGTH(array) (sizeof array / sizeof array[0])

#define REAL float
#define WIDE double
#define EPSILON FLT_EPSILON
#define SMALLEST FLT_MIN
#define NAME(name) name##_float
#define TYPE "float"
#include "check_tables.inc"
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
#include "check_tables.inc"

/* ---- half types ---- */

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

static void expect_bits(const char *what, unsigned got, unsigned expected)
{
    checks++;
    if (got != expected && failures++ < 20)
        printf("%s: got %#x, expected %#x\n", what, got, expected);
}

/* Every number of a half type as a float, and back again; floats that lie halfway between two of them, or just beside that. */
static void check_conversions(const cattn_table *table, cattn_type type)
{
    static unsigned short halves[1 << 16], back[1 << 16];
    static float wide[1 << 16];
    const int exponent_bits = type == CATTN_FLOAT16 ? 5 : 8;
    const char *what = type == CATTN_FLOAT16 ? "float16" : "bfloat16";
    for (unsigned i = 0; i < 1 << 16; i++)
        halves[i] = (unsigned short)i;
    table->widen(wide, (const char *)halves, type, 1 << 16);
    for (unsigned i = 0; i < 1 << 16; i++) {
        const double expected = half(i + (unsigned)spoil, exponent_bits);
        checks++;
        if (!(isnan(expected) ? isnan(wide[i]) : wide[i] == expected && !signbit(wide[i]) == !signbit(expected)) && failures++ < 20)
            printf("widen, %s: %#x gives %.9g, expected %.9g\n", what, i, (double)wide[i], expected);
    }
    if (table->narrow == NULL)
        return;
    table->narrow((char *)back, wide, type, 1 << 16);
    for (unsigned i = 0; i < 1 << 16; i++)
        if (!isnan(wide[i]))
            expect_bits("narrow", back[i], i);
        else
            expect_bits("narrow, NaN", isnan(half(back[i], exponent_bits)) != 0, 1);
    unsigned count = 0;
    for (; isfinite(half(count + 1, exponent_bits)); count++) {
        const float tie = (float)((half(count, exponent_bits) + half(count + 1, exponent_bits)) / 2);
        wide[count] = tie;
        wide[(1 << 15) + count] = -nextafterf(tie, count % 2 ? 0 : INFINITY);
    }
    table->narrow((char *)back, wide, type, 1 << 16);
    for (unsigned i = 0; i < count; i++) {
        expect_bits("narrow, a tie", back[i], i + i % 2);
        expect_bits("narrow, beside a tie", back[(1 << 15) + i], 0x8000 | (i + !(i % 2)));
    }
}

static void check_round_to_float(const cattn_table *table)
{
    static double from[4096];
    static float to[4096];
    for (int i = 0; i < 4096; i++)
        from[i] = i % 8 == 0 ? INFINITY : i % 8 == 1 ? NAN : i % 8 == 2 ? 1e300 : ldexp(number(), i % 300 - 150);
    for (int i = 0; i < 4096; i += 2)
        from[i] = -from[i];
    table->round_to_float(to, from, 4096);
    for (int i = 0; i < 4096; i++) {
        const double size = isinf(from[i]) ? INFINITY : fmin(fabs(from[i]), FLT_MAX);
        const float expected = (float)copysign(isnan(from[i]) ? NAN : size, from[i]);
        expect_bits("round_to_float", (isnan(expected) ? isnan(to[i]) : to[i] == expected) != 0, 1);
    }
}

/* Few rows that read a half type where it lies, which must give what floats give. */
static void check_halves(const cattn_table *table, cattn_type type)
{
    static unsigned short halves[1 << 16];
    static float wide[1 << 16], scores[2][4 * 128], output[2][4 * 64], queries[4 * 64], vectors[2][CATTN_MAX_LANES];
    const cattn_kernels *kernels = &table->kernels[type][CATTN_FEW];
    for (unsigned i = 0; i < 1 << 16; i++)   /* below 4 in size, subnormal ones too */
        halves[i] = (unsigned short)((i * 40503u & 0x8000) | (i * 2654435761u >> 7) % (type == CATTN_FLOAT16 ? 0x4400 : 0x4080));
    table->widen(wide, (const char *)halves, type, 1 << 16);
    for (int i = 0; i < 4 * 64; i++)
        queries[i] = (float)number();
    for (int rows = 1; rows <= 4; rows++)
        for (ptrdiff_t size = 1; size <= 64; size = size * 3 / 2 + 1)
            for (ptrdiff_t count = 1; count <= 128; count = count * 3 / 2 + 1) {
                for (int stored = 0; stored < 2; stored++) {
                    cattn_row_tile tile = {.rows = rows, .lanes = rows, .pitch = 128, .output_pitch = size, .queries = queries,
                                           .scores = scores[stored], .block_max = vectors[0], .row_scale = vectors[1],
                                           .layout = CATTN_FEW, .is_new = 1};
                    const char *from = stored ? (const char *)halves : (const char *)wide;
                    cattn_key_block block = {from, size * (stored ? 2 : 4), count, size, stored ? type : CATTN_FLOAT32, NULL, NULL, NULL};
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

/* ---- pairs of bfloat16 ---- */

static void random_pairs(unsigned short *to, double size)
{
    for (ptrdiff_t i = 0; i < MOST_REALS; i++) {
        const float x = (float)(size * number());
        unsigned bits;
        memcpy(&bits, &x, sizeof bits);
        to[i] = (unsigned short)(bits >> 16);
    }
}

/* The number of a row at `at`, in pairs of them that lie in the lanes, or one behind the other in rows so many bytes apart. */
static double pair_at(const void *array, int few, ptrdiff_t row, ptrdiff_t at, ptrdiff_t lanes, ptrdiff_t pitch)
{
    const unsigned short *words = array;
    return half(few ? words[row * pitch / 2 + at] : words[(at / 2 * lanes + row) * 2 + at % 2], 8);
}

static void check_pairs(const cattn_table *table, int few, ptrdiff_t rows, ptrdiff_t count, ptrdiff_t size)
{
    const cattn_kernels *kernels = &table->kernels[CATTN_BFLOAT16][few];
    const ptrdiff_t lanes = few ? rows : kernels->lanes, pitch = MOST_KEYS, group = few ? 1 : kernels->interleaves;
    const ptrdiff_t query_pitch = (size + 31) / 32 * 64, stride = (size + 1) * 2;
    unsigned short *source = memory(), *keys = memory(), *values = memory(), *interleaved = memory();
    float *queries = memory(), *scores = memory(), *raw = memory(), *output = memory(), *before = memory(), *bias = memory();
    float *attn_bias = memory(), *block_output = memory(), (*vectors)[CATTN_MAX_LANES] = memory();
    float *row_max = vectors[0], *row_sum = vectors[1], *lse_sum = vectors[2], *row_scale = vectors[3], *block_max = vectors[4];
    const char *from[CATTN_MAX_LANES];
    cattn_score_mod mod = {.adds = 1, .has_bias = 1};
    cattn_row_tile tile = {.rows = rows, .lanes = lanes, .pitch = pitch, .output_pitch = size, .scale = 0.75, .queries = queries,
                           .scores = scores, .attn_bias = attn_bias, .block_max = block_max, .row_scale = row_scale,
                           .block_output = block_output, .layout = few ? CATTN_FEW : CATTN_MANY,
                           .softmax = {.row_max = row_max, .row_sum = row_sum, .lse_sum = lse_sum, .output = output}};
    cattn_key_block block = {(const char *)keys, stride, count, size, CATTN_BFLOAT16, NULL, NULL, NULL};
#define AT(matrix, r, i, width) matrix[few ? (r) * (width) + (i) : (i) * lanes + (r)]
#define EXPECT(what, got, expected, terms, operations) \
    expect_float(what, few ? "few pairs" : "many pairs", rows, count, size, got, expected, terms, operations)
    random_pairs(source, 1);
    random_pairs(keys, 1);
    random_pairs(values, 1);
    for (ptrdiff_t i = 0; i < MOST_REALS; i++)
        bias[i] = (float)(2 * number()), output[i] = (float)number();
    for (ptrdiff_t r = 0; r < CATTN_MAX_LANES; r++) {
        from[r] = (const char *)source + r * stride;
        mod.bias[r] = bias + r * MOST_KEYS;
    }

    kernels->load(queries, &tile, from, size);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < size; c++)
            EXPECT("load", (float)pair_at(queries, few, r, c, lanes, query_pitch), half(source[r * (size + 1) + c], 8), 0, 0);

    for (int biased = 1; biased >= 0; biased--) {
        const double scale = kernels->scales_late && !biased ? 1 : tile.scale;
        tile.score_mod = biased ? &mod : NULL;
        kernels->scores(scores, &tile, &block);
        for (ptrdiff_t r = 0; r < rows; r++) {
            float largest = -INFINITY;
            for (ptrdiff_t j = 0; j < count; j++) {
                double dot = 0, sizes = 0;
                for (ptrdiff_t c = 0; c < size; c++) {
                    const double product = half(source[r * (size + 1) + c], 8) * half(keys[j * (size + 1) + c], 8);
                    dot += product, sizes += fabs(product);
                }
                const double added = biased ? bias[r * MOST_KEYS + j] : 0;
                if (j < count - spoil)
                    EXPECT("scores", AT(scores, r, j, pitch), scale * dot + added, sizes + fabs(added), (double)size + 4);
                largest = fmax(largest, AT(scores, r, j, pitch));
            }
            EXPECT("block_max", block_max[r], largest * (float)(scale == tile.scale ? 1 : tile.scale), 0, 0);
        }
    }

    /* Row 0 has seen no key before. */
    memcpy(raw, scores, MOST_REALS * sizeof(float));
    for (ptrdiff_t r = 0; r < rows; r++) {
        row_max[r] = r == 0 ? -INFINITY : (float)(2 * number());
        row_sum[r] = r == 0 ? 0 : (float)(2 + number());
        lse_sum[r] = row_sum[r];
    }
    memcpy(before, vectors, 2 * sizeof *vectors);
    kernels->exponentials(scores, &tile, &block);
    for (ptrdiff_t r = 0; r < rows; r++) {
        const double maximum = fmax(before[r], block_max[r]), scale = exp(before[r] - maximum);
        double sum = scale * before[CATTN_MAX_LANES + r], exact = sum;
        for (ptrdiff_t j = 0; j < count - spoil; j++) {
            const double score = AT(raw, r, j, pitch) * (kernels->scales_late ? (float)tile.scale : 1);
            const double weight = exp(score - maximum), got = pair_at(scores, few, r, j, lanes, pitch * 4);
            EXPECT("weights", (float)got, weight, weight, 1 / 256.0 / FLT_EPSILON + operations_of_float(weight));
            sum += got, exact += weight;
        }
        EXPECT("row_max", row_max[r], maximum, 0, 0);
        EXPECT("row_scale", row_scale[r], scale, 0, operations_of_float(scale));
        EXPECT("row_sum", row_sum[r], sum, 0, 32);
        EXPECT("lse_sum", lse_sum[r], exact, 0, 32);
    }

    if (!few) {
        const char *rows[MOST_KEYS];
        for (ptrdiff_t j = 0; j < count; j++)
            rows[j] = (const char *)values + j * stride;
        table->interleave(interleaved, rows, count, size);
        for (ptrdiff_t j = 0; j < (count + group - 1) / group * group; j++)
            for (ptrdiff_t c = 0; c < size; c++)
                expect_bits("interleave", interleaved[(j / group * size + c) * group + j % group],
                            j < count ? values[j * (size + 1) + c] : 0);
    }
    block.data = (const char *)(few ? values : interleaved);
    block.stride = few ? stride : size * 2;
    for (int is_new = 1; is_new >= 0; is_new--) {
        memcpy(before, output, MOST_REALS * sizeof(float));
        tile.is_new = is_new;
        kernels->values(output, &tile, &block);
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t c = 0; c < size; c++) {
                double expected = is_new ? 0 : (double)row_scale[r] * AT(before, r, c, size), sizes = fabs(expected);
                for (ptrdiff_t j = 0; j < count - spoil; j++) {
                    const double product = pair_at(scores, few, r, j, lanes, pitch * 4) * half(values[j * (size + 1) + c], 8);
                    expected += product, sizes += fabs(product);
                }
                EXPECT("values", AT(output, r, c, size), expected, sizes, (double)count + 4);
            }
    }

    void *all[] = {source, keys, values, interleaved, queries, scores, raw, output, before, bias, attn_bias, block_output, vectors};
    for (size_t i = 0; i < LENGTH(all); i++)
        release(all[i]);
#undef AT
#undef EXPECT
}

static void check_all_pairs(const cattn_table *table)
{
    for (int few = 0; few < CATTN_LAYOUTS; few++) {
        const ptrdiff_t most = few ? CATTN_FEW_ROWS : table->kernels[CATTN_BFLOAT16][CATTN_MANY].lanes;
        for (size_t i = 0; i < LENGTH(counts); i++)
            for (size_t k = 0; k < LENGTH(sizes); k++)
                for (size_t r = 0; r < LENGTH(row_counts) && row_counts[r] <= most; r++)
                    check_pairs(table, few, row_counts[r], counts[i], sizes[k]);
    }
}

/* ---- tables ---- */

static int check_table(const char *name)
{
    cattn_table table = {0};
    const int status = cattn_override(&table, name), checks_before = checks, failures_before = failures;
    if (status != 0)
        return printf("%s: %s\n", name, status == -2 ? "not here" : "there is no such table"), status == -2 ? 0 : 1;
    check_all_float(table.kernels[CATTN_FLOAT32]);
    check_all_double(table.kernels[CATTN_FLOAT64]);
    check_conversions(&table, CATTN_FLOAT16);
    check_conversions(&table, CATTN_BFLOAT16);
    check_halves(&table, CATTN_FLOAT16);
    if (table.round_to_float != NULL)
        check_round_to_float(&table);
    if (table.kernels[CATTN_BFLOAT16][CATTN_MANY].rounds_weights)
        check_all_pairs(&table);
    else
        check_halves(&table, CATTN_BFLOAT16);
    printf("%s: %d checks, %d failed\n", name, checks - checks_before, failures - failures_before);
    return 0;
}

int main(int count, char **arguments)
{
    const unsigned short one = 1;
    const ptrdiff_t l2 = cattn_l2_bytes();
    int named = 1, unknown = 0;
    spoil = count > 1 && strcmp(arguments[1], "spoil") == 0;
    named += spoil;
    printf("%s-endian, the table %s, %td KiB of L2\n", *(const char *)&one ? "little" : "big", cattn_best_isa(), l2 >> 10);
    expect_bits("a size of L2", l2 >= 1 << 16 && l2 <= 1 << 26, 1);
    if (named < count)
        for (; named < count; named++)
            unknown |= check_table(arguments[named]);
    else
        for (int i = 0; strcmp(cattn_isa_name(i), "portable") != 0; i++)
            unknown |= check_table(cattn_isa_name(i));
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0 || unknown;
}
