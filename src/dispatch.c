/* Processor features → kernel table, and the size of the L2 cache. */
#include "dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiles_isa.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* __builtin_cpu_supports asks CPUID, and XGETBV for what the operating system saves: a feature counts only if both
 * agree. Compilers before gcc 11 do not know "f16c"; every processor with AVX2 and FMA has it. */
static int runs_avx2(void)
{
#if CATTN_HAS_AVX
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
#if defined(__clang__) || __GNUC__ >= 11
        && __builtin_cpu_supports("f16c")
#endif
        ;
#else
    return 0;
#endif
}

static int runs_avx512(void)
{
#if CATTN_HAS_AVX
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return 0;
#endif
}

static int runs_vec128(void)
{
    return CATTN_HAS_VEC128;   /* 128 bits are the baseline wherever it compiles */
}

/* Best first. */
static const struct {
    const char *name;
    int (*runs)(void);
    void (*override)(cattn_table *);
} tables[] = {
    {"avx512", runs_avx512, cattn_override_avx512},
    {"avx2", runs_avx2, cattn_override_avx2},
    {"vec128", runs_vec128, cattn_override_vec128},
};

enum { TABLES = sizeof tables / sizeof tables[0] };

int cattn_override(cattn_table *table, const char *isa)
{
    if (strcmp(isa, "portable") == 0)
        return 0;
    for (int i = 0; i < TABLES; i++)
        if (strcmp(isa, tables[i].name) == 0) {
            if (!tables[i].runs())
                return -2;
            tables[i].override(table);
            return 0;
        }
    return -1;
}

const char *cattn_best_isa(void)
{
    for (int i = 0; i < TABLES; i++)
        if (tables[i].runs())
            return tables[i].name;
    return "portable";
}

#if defined(__linux__)
/* Where the C library does not know (musl, most of ARM), sysfs does: index0, index1, ... each have a level, a type and
 * a size like "32K". 0 where there is none. */
static long long sysfs_l2_bytes(void)
{
    for (int index = 0; index < 8; index++) {
        static const char *const names[] = {"level", "type", "size"};
        char text[3][32] = {"", "", ""};
        for (int n = 0; n < 3; n++) {
            char path[96];
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, names[n]);
            FILE *file = fopen(path, "r");
            if (file == NULL)
                return 0;
            if (fgets(text[n], sizeof text[n], file) == NULL)
                text[n][0] = 0;
            fclose(file);
        }
        if (atoi(text[0]) == 2 && text[1][0] != 'I') {
            char *unit;
            const long long size = strtoll(text[2], &unit, 10);
            return *unit == 'K' ? size << 10 : *unit == 'M' ? size << 20 : size;
        }
    }
    return 0;
}
#endif

ptrdiff_t cattn_l2_bytes(void)
{
    long long size = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
#if defined(__linux__)
    if (size <= 0)
        size = sysfs_l2_bytes();
#endif
#if defined(__APPLE__)
    size_t length = sizeof size;
    if (sysctlbyname("hw.l2cachesize", &size, &length, NULL, 0) != 0)
        size = 0;
#endif
    /* What the smallest cores of the last ten years have. A hypervisor may say anything: believe only what is sane. */
    if (size < 64 << 10 || size > 1 << 26)
        size = 256 << 10;
    return (ptrdiff_t)size;
}

int cattn_foresees_rows(void)
{
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") != 0;
#else
    return 0;
#endif
}
