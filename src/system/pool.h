/* Threads that share out numbered tasks. */
#ifndef CATTN_POOL_H
#define CATTN_POOL_H

#include <stddef.h>
#include <stdint.h>

/* A number that threads read and write at once. */
#ifdef _WIN32
typedef volatile int64_t cattn_shared;
#else
typedef _Atomic int64_t cattn_shared;
#endif

/* Does one task; `worker` is 0 (the caller) to threads - 1, and no two tasks run at once with the same one. Done
 * again, it leaves what it left before. Answers whether to give up: tasks that nobody has begun are left then. */
typedef int (*cattn_task)(void *context, ptrdiff_t task, int worker);

/* Nanoseconds, of a clock that only goes forward. */
int64_t cattn_now(void);

/* Runs task(context, 0 .. tasks - 1), shared between the caller and up to threads - 1 workers, and returns when all
 * are done. A thread begins with tasks `threads` apart, in ascending order. While the caller waits for workers it
 * calls meanwhile(context) every 10 ms. Any number of callers at once; not from inside a task. Where a thread cannot
 * be started, those that could do the work: the result never depends on it.
 *
 * A task of the caller's, or `meanwhile`, may fork: in the child, which has no workers, the caller does what they have
 * not finished. It may also end the calling thread, or leave for another stack: with more than one thread, nothing
 * that tasks use may lie on the caller's. */
void cattn_pool_run(cattn_task task, void *context, ptrdiff_t tasks, int threads, void (*meanwhile)(void *context));

#endif
