/* Processor features → kernel table, and the size of the L2 cache: cpu.h describes the functions. */
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiles/isa.h"

#if CATTN_HAS_VEC128 && defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if CATTN_HAS_AVX
/* XGETBV says which of a thread's registers the operating system saves. AVX has those of 128 and 256 bits. AVX-512 adds
 * the mask registers, the upper halves, and the upper sixteen registers. */
#define SAVES_AVX 0x06u
#define SAVES_AVX512 (SAVES_AVX | 0xe0u)
#define SAVES_AMX (SAVES_AVX512 | 0x60000u)   /* with the tiles and their configuration */

/* Return whether the processor has all these features, which are bits of CPUID's leaves 1 and 7, and the system saves
 * the registers that they use. __builtin_cpu_supports would ask the same, but clang-cl does not link the library it
 * needs. */
static int has(unsigned leaf_1, unsigned leaf_7, unsigned saves)
{
    unsigned eax, ebx, ecx, edx;
    leaf_1 |= bit_OSXSAVE;   /* the processor has XGETBV */
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & leaf_1) != leaf_1)
        return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (ebx & leaf_7) != leaf_7)
        return 0;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
#if defined(__APPLE__)
    eax |= SAVES_AVX512;   /* macOS always saves them, but says so only after a thread has used them */
#endif
    return (eax & saves) == saves;
}
#endif

static int is_intel(void)
{
#if CATTN_HAS_VEC128 && defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx;
#else
    return 0;
#endif
}

static int runs_avx2(void)
{
#if CATTN_HAS_AVX
    return has(bit_AVX | bit_FMA | bit_F16C, bit_AVX2, SAVES_AVX);
#else
    return 0;
#endif
}

static int runs_avx512(void)
{
#if defined(CATTN_EMULATE)
    return CATTN_HAS_AVX512;
#elif CATTN_HAS_AVX
    return runs_avx2() && has(bit_AVX, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ, SAVES_AVX512);
#else
    return 0;
#endif
}

/* The feature is a bit of CPUID's leaf 7, subleaf 1. */
static int runs_avx512bf16(void)
{
#if defined(CATTN_EMULATE)
    return CATTN_HAS_AVX512;
#elif CATTN_HAS_AVX
    unsigned eax, ebx, ecx, edx;
    return runs_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 5) != 0;
#else
    return 0;
#endif
}

/* Return whether the processor multiplies bfloat16 on tiles (CPUID's leaf 7) and the system lets this process use them.
 * The request holds for the whole process, and for good. The system refuses it if a thread's alternate signal stack is
 * too small to save tiles on. */
static int runs_amx(void)
{
#if defined(CATTN_EMULATE)
    return CATTN_HAS_AMX;
#elif CATTN_HAS_AMX
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, ASK_FOR_STATE = 0x1023, TILE_DATA = 18 };
    unsigned eax, ebx, ecx, edx;
    return runs_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)
           && (edx & (AMX_BF16 | AMX_TILE)) == (AMX_BF16 | AMX_TILE) && has(bit_AVX, 0, SAVES_AMX)
           && syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
#else
    return 0;
#endif
}

static int runs_neon(void)
{
    return CATTN_HAS_NEON;   /* the baseline has it */
}

static int runs_vec128(void)
{
    return CATTN_HAS_VEC128;   /* 128 bits are the baseline wherever this table compiles */
}

/* The tables of vector kernels, the best one first. */
static const struct {
    const char *name;
    int (*runs)(void);
    void (*override)(cattn_table *);
    int by_name;   /* on Intel's processors it must be named, because VDPBF16PS may be slow there */
} tables[] = {
    {"amx", runs_amx, cattn_override_amx, 0},
    {"avx512bf16", runs_avx512bf16, cattn_override_avx512bf16, 1},
    {"avx512", runs_avx512, cattn_override_avx512, 0},
    {"avx2", runs_avx2, cattn_override_avx2, 0},
    {"neon", runs_neon, cattn_override_neon, 0},
    {"vec128", runs_vec128, cattn_override_vec128, 0},
};

enum { TABLES = sizeof tables / sizeof tables[0] };

const char *cattn_isa_name(int number)
{
    return number < TABLES ? tables[number].name : number == TABLES ? "portable" : NULL;
}

const char *cattn_best_isa(void)
{
    for (int i = 0; i < TABLES; i++)
        if (tables[i].runs() && !(tables[i].by_name && is_intel()))
            return tables[i].name;
    return "portable";
}

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

#if defined(__linux__)
/* Return the size that sysfs says, or 0 if it says none. The C library often does not know it (musl, most of ARM). In
 * sysfs, index0, index1, ... each have a level, a type and a size like "32K". */
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
    /* A hypervisor may say anything, so that only sane sizes are believed. The default is that of small cores. */
    if (size < 64 << 10 || size > 1 << 26)
        size = 256 << 10;
    return (ptrdiff_t)size;
}

int cattn_prefetches_rows(void)
{
    return is_intel();
}
