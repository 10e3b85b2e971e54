/* Memory between pages that cannot be read, for guarded_calls.py, which loads this by LD_PRELOAD.
 *
 * Between guard_begin and guard_end, every block that one module asks malloc for lies flush against such a page, with
 * its end or with its beginning; so do NumPy's arrays, by guard_handler. What is freed cannot be read any more either. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARENA ((size_t)1 << 30)

static char *arena;
static size_t page, used;                       /* bytes of the arena */
static const char *module_low, *module_high;    /* the code whose calls of malloc are guarded */
static int is_on, at_end, fill;
static size_t workspace_slack;                  /* see guard_begin */
static ptrdiff_t live, workspaces, others;      /* blocks: not freed yet; so far */

/* Stands in a page of its own before each block. */
struct header {
    char *data;            /* the pages between the guards */
    size_t data_bytes, bytes;
    char *block;
    int fill;
};

static void fail(const char *what)
{
    fprintf(stderr, "guard_pages: %s\n", what);
    abort();
}

static struct header *header_of(void *block)
{
    return (struct header *)((uintptr_t)block / page * page - 2 * page);
}

static void check_fill(const char *from, const char *to, int byte)
{
    for (; from < to; from++)
        if (*from != (char)byte)
            fail("memory beside a block was written to");
}

/* A block of which `slack` bytes at the end are never used: they lie in the guard page. */
static void *take(size_t bytes, size_t slack, size_t alignment)
{
    size_t kept = bytes - slack, data_bytes = (kept + page - 1) / page * page;
    struct header *header;
    if (data_bytes == 0)
        data_bytes = page;
    if (used + data_bytes + 3 * page > ARENA)
        fail("the arena is full");
    header = (struct header *)(arena + used);
    used += data_bytes + 3 * page;              /* its header, and a guard on either side */
    if (mprotect(header, page, PROT_READ | PROT_WRITE) != 0)
        fail("mprotect");
    header->data = (char *)header + 2 * page;
    header->data_bytes = data_bytes;
    header->bytes = kept;
    header->fill = fill;
    if (mprotect(header->data, data_bytes, PROT_READ | PROT_WRITE) != 0)
        fail("mprotect");
    memset(header->data, fill, data_bytes);
    header->block = header->data;
    if (at_end)
        header->block += (data_bytes - kept) / alignment * alignment;
    live++;
    return header->block;
}

static void give_back(void *block)
{
    struct header *header = header_of(block);
    if (header->block != block)
        fail("free of what is no block");
    check_fill(header->data, header->block, header->fill);
    check_fill(header->block + header->bytes, header->data + header->data_bytes, header->fill);
    live--;
    mprotect(header->data, header->data_bytes, PROT_NONE);
}

static int is_guarded(const void *block)
{
    return arena != NULL && (const char *)block >= arena && (const char *)block < arena + ARENA;
}

void *malloc(size_t bytes)
{
    static void *(*next)(size_t);
    const char *caller = __builtin_return_address(0);
    if (next == NULL)
        next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    if (is_on && caller >= module_low && caller < module_high) {
        int is_workspace = bytes % 64 == 0 && bytes > 8192;
        workspaces += is_workspace;
        others += !is_workspace;
        return take(bytes, is_workspace ? workspace_slack : 0, 16);
    }
    return next(bytes);
}

void free(void *block)
{
    static void (*next)(void *);
    if (is_guarded(block)) {
        give_back(block);
        return;
    }
    if (next == NULL)
        next = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    next(block);
}

/* NumPy's arrays, which are aligned to their own type only: what divides their size. */

static void *array_malloc(void *context, size_t bytes)
{
    (void)context;
    return take(bytes, 0, 1);
}

static void *array_calloc(void *context, size_t count, size_t size)
{
    void *block = array_malloc(context, count * size);
    return memset(block, 0, count * size);
}

static void array_free(void *context, void *block, size_t bytes)
{
    (void)context, (void)bytes;
    free(block);
}

static void *array_realloc(void *context, void *block, size_t bytes)
{
    void *other = array_malloc(context, bytes);
    size_t before = header_of(block)->bytes;
    memcpy(other, block, before < bytes ? before : bytes);
    free(block);
    return other;
}

/* PyDataMem_Handler of numpy/ndarraytypes.h. */
struct {
    char name[127];
    uint8_t version;
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} guard_handler = {"guard_pages", 1, NULL, array_malloc, array_calloc, array_realloc, array_free};

void guard_open(const char *low, const char *high)
{
    page = (size_t)getpagesize();
    module_low = low;
    module_high = high;
    arena = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        fail("mmap");
}

/* Blocks touch a guard page with their end, or with their beginning, and hold `byte`. Of a workspace, which the module
 * aligns by itself, the last `slack` bytes are never used where malloc has aligned it. */
void guard_begin(int end, int byte, size_t slack)
{
    if (live == 0)
        used = 0;
    at_end = end;
    fill = byte;
    workspace_slack = slack;
    is_on = 1;
}

void guard_end(void)
{
    is_on = 0;
}

ptrdiff_t guard_workspaces(void) { return workspaces; }
ptrdiff_t guard_others(void) { return others; }
ptrdiff_t guard_live(void) { return live; }
