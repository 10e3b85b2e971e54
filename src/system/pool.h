/* A pool of threads that share numbered tasks among them. */
#ifndef CATTN_POOL_H
#define CATTN_POOL_H

#include <stddef.h>
#include <stdint.h>

/* A number that several threads read and write at the same time. */
#ifdef _WIN32
typedef volatile int64_t cattn_shared;
#else
typedef _Atomic int64_t cattn_shared;
#endif

/* A function that does one task. `worker` is a number from 0, which is the caller's, to threads - 1. No two tasks run
 * at the same time with the same worker. A task that is done twice must leave the same result as once. The function
 * returns whether to give up: tasks that nobody has begun are then left. */
typedef int (*cattn_task)(void *context, ptrdiff_t task, int worker);

/* Return the nanoseconds of a clock that only goes forward. */
int64_t cattn_now(void);

/* Run task(context, number, worker) for each number from 0 to tasks - 1, and return when all are done. The caller and
 * up to threads - 1 workers share the tasks. A thread begins with tasks that are `threads` apart, in ascending order.
 * While the caller waits for workers, it calls meanwhile(context) every 10 ms. Any number of callers may run tasks at
 * the same time, but not from inside a task. If a thread cannot be started, the others do its work, and the result is
 * the same.
 *
 * A task that the caller does may fork, and so may `meanwhile`. The child has no workers, so that the caller does there
 * what they have not finished. Both may also end the calling thread, or leave for another stack. With more than one
 * thread, therefore, nothing that tasks use may lie on the caller's stack. */
void cattn_pool_run(cattn_task task, void *context, ptrdiff_t tasks, int threads, void (*meanwhile)(void *context));

#endif
