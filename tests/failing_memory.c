/* Allocations, and creations of threads, that fail when they are told to. test_failing_memory.py preloads this into a
 * process whose Python takes all of its memory from malloc (PYTHONMALLOC=malloc). failing_memory.py tells it what is to
 * fail by numbers that it writes into `control`, which takes no memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* glibc's own functions, under names that nothing interposes. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* If FIRST is not 0, allocations of the thread THREAD are counted, and those numbered FIRST to LAST fail. SCOPE says
 * which are counted. BEGIN and END are the addresses of cattn's module. If THREADS is not negative, so many threads that
 * the module creates succeed, and all later ones fail. */
enum { FIRST, LAST, SCOPE, THREAD, BEGIN, END, COUNTED, FAILED, THREADS, FIELDS };
enum { EVERYTHING, OURS, ARRAYS };
volatile int64_t control[FIELDS] = {[THREADS] = -1};

_Atomic int64_t live; /* blocks that exist in this process */

static int is_ours(const void *address)
{
    return (int64_t)address >= control[BEGIN] && (int64_t)address < control[END];
}

static int fails(int scope)
{
    if (!control[FIRST] || control[SCOPE] != scope || (int64_t)pthread_self() != control[THREAD])
        return 0;
    const int64_t number = ++control[COUNTED];
    if (number < control[FIRST] || number > control[LAST])
        return 0;
    control[FAILED]++;
    errno = ENOMEM;
    return 1;
}

static int call_fails(const void *caller)
{
    return fails(EVERYTHING) || (is_ours(caller) && fails(OURS));
}

static void *counted(void *block)
{
    live += block != NULL;
    return block;
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t size)
{
    return call_fails(CALLER) ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return call_fails(CALLER) ? NULL : counted(__libc_calloc(count, size));
}

void *realloc(void *block, size_t size)
{
    if (call_fails(CALLER))
        return NULL;
    void *moved = __libc_realloc(block, size);
    if (!block)
        return counted(moved);
    live -= !moved && !size; /* freed */
    return moved;
}

void *memalign(size_t alignment, size_t size)
{
    return call_fails(CALLER) ? NULL : counted(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return call_fails(CALLER) ? NULL : counted(__libc_memalign(alignment, size));
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    void *found = call_fails(CALLER) ? NULL : counted(__libc_memalign(alignment, size));
    if (found)
        *block = found;
    return found ? 0 : ENOMEM;
}

void free(void *block)
{
    live -= block != NULL;
    __libc_free(block);
}

/* The same for NumPy's arrays (NEP 49), as NumPy's PyDataMem_Handler. */

static void *array_malloc(void *context, size_t size)
{
    (void)context;
    return fails(ARRAYS) ? NULL : malloc(size);
}

static void *array_calloc(void *context, size_t count, size_t size)
{
    (void)context;
    return fails(ARRAYS) ? NULL : calloc(count, size);
}

static void *array_realloc(void *context, void *block, size_t size)
{
    (void)context;
    return fails(ARRAYS) ? NULL : realloc(block, size);
}

static void array_free(void *context, void *block, size_t size)
{
    (void)context, (void)size;
    free(block);
}

struct {
    char name[127];
    uint8_t version;
    void *context, *(*malloc)(void *, size_t), *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} array_handler = {"failing", 1, NULL, array_malloc, array_calloc, array_realloc, array_free};

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument)
{
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    if (is_ours(CALLER) && control[THREADS] >= 0) {
        if (control[THREADS] == 0) {
            errno = ENOMEM; /* as glibc leaves it where there is no memory for the stack */
            return EAGAIN;
        }
        control[THREADS]--;
    }
    return create(thread, attributes, body, argument);
}

/* Ends the process with one status where cattn crashed, and with another where a library did, such as NumPy, that was
 * called by Python's interpreter. */
static void crashed(int signal)
{
    void *frames[64];
    Dl_info found;
    (void)signal;
    control[FIRST] = 0;
    const int count = backtrace(frames, 64);
    for (int n = 0; n < count; n++) {
        if (is_ours(frames[n]))
            _exit(99);
        if (dladdr(frames[n], &found) && found.dli_sname && strncmp(found.dli_sname, "_PyEval_", 8) == 0)
            break;
    }
    _exit(98);
}

void watch_crashes(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE};
    void *frames[1];
    backtrace(frames, 1); /* it loads a library when it is first called */
    for (int n = 0; n < 5; n++)
        signal(signals[n], crashed);
}
