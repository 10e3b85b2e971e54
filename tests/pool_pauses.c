/* The pool with a pause at each hand-off between threads, for test_threads.py: whatever may happen between two steps of
 * a thread then does happen. The hand-offs are the names that threads.h gives to the system's functions. This program
 * gives them other functions, which pause, and includes pool.c itself.
 *
 *     pool_pauses SEED SECONDS
 *
 * Several callers run jobs at once, and each job checks what pool.h promises. Nobody may be left waiting, either: some
 * jobs end only if a worker has come for each seat, and a caller that waits for its workers is never woken by the clock.
 * It prints how much it did, or what went wrong. */
#include "system/threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_CALLERS = 16, MOST_TASKS = 60, MOST_THREADS = 7, MAGIC = 4711, QUARANTINE = 512, PATIENCE = 20 /* seconds */ };

static uint64_t seed;
static _Atomic int64_t pauses, threads_begun, jobs, tasks_done, meetings;

static void fail(const char *what)
{
    printf("seed %llu: %s\n", (unsigned long long)seed, what);
    fflush(stdout);
    _exit(1);
}

/* Return a number below `limit`, from a sequence of this thread's own. */
static unsigned chance(unsigned limit)
{
    static _Thread_local uint64_t state;
    if (state == 0)
        state = (seed + 1) * 0x9e3779b97f4a7c15u + (uint64_t)++threads_begun * 0xbf58476d1ce4e5b9u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (unsigned)(state >> 33) % limit;
}

static void pause_at_random(void)
{
    const unsigned number = chance(64);
    if (number >= 24)
        return;
    pauses++;
    if (number >= 8)
        sched_yield();
    else if (number > 0)
        usleep(chance(60));
    else
        usleep(chance(3000)); /* longer than anybody looks out before it sleeps */
}

/* What pool.c calls in the place of threads.h */

static void paused_lock(mutex *m)
{
    pause_at_random();
    lock(m);
    pause_at_random();
}

static void paused_unlock(mutex *m)
{
    pause_at_random();
    unlock(m);
    pause_at_random();
}

/* A wait may end although nobody called: POSIX and Windows allow it. */
static int wakes_by_itself(mutex *m)
{
    if (chance(8))
        return 0;
    unlock(m);
    usleep(chance(60));
    lock(m);
    return 1;
}

static void paused_wait(condition *c, mutex *m)
{
    pause_at_random();
    if (!wakes_by_itself(m))
        wait_for(c, m);
    pause_at_random();
}

/* A caller that nobody woke would go on after 10 ms, and nothing else would show it. */
static void wait_for_a_call(condition *c, mutex *m)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += PATIENCE;
    pause_at_random();
    if (!wakes_by_itself(m) && pthread_cond_timedwait(c, m, &end))
        fail("a caller was not told that its workers were done");
    pause_at_random();
}

static void paused_notify(condition *c)
{
    pause_at_random();
    notify(c);
    pause_at_random();
}

static int paused_increment(cattn_shared *s, int64_t *number)
{
    pause_at_random();
    const int done = try_increment(s, number);
    pause_at_random();
    return done;
}

static int64_t paused_now(void)
{
    pause_at_random();
    return now();
}

static int paused_start(void *(*body)(void *))
{
    const int started = start_thread(body);
    pause_at_random();
    return started;
}

/* A job that has ended is kept for a while, and must stay as it is. */
static void keep(void *job)
{
    enum { SEEN = 128, FILL = 0xa5 };   /* every job is larger */
    static struct { unsigned char *job; } kept[QUARANTINE];
    static unsigned next;
    static mutex m = MUTEX_INIT;
    memset(job, FILL, SEEN);
    lock(&m);
    unsigned char *old = kept[next].job;
    kept[next].job = job;
    next = (next + 1) % QUARANTINE;
    unlock(&m);
    for (int i = 0; old && i < SEEN; i++)
        if (old[i] != FILL)
            fail("a job was written to after its end");
    free(old);
}

#undef lock
#undef unlock
#undef wait_for
#undef notify
#undef try_increment
#define lock paused_lock
#define unlock paused_unlock
#define wait_for paused_wait
#define wait_briefly wait_for_a_call
#define notify paused_notify
#define try_increment paused_increment
#define now paused_now
#define start_thread paused_start
#define free keep
#include "system/pool.c"
#undef now
#undef free

/* The jobs */

struct context {
    int magic, tasks, threads, meets, stops_at;
    _Atomic int stopped, begun, inside;
    _Atomic int done[MOST_TASKS], busy[MOST_THREADS];
};

static int one_task(void *given, ptrdiff_t number, int worker)
{
    struct context *context = given;
    if (context->magic != MAGIC)
        fail("a task began after its job had ended");
    if (number < 0 || number >= context->tasks || worker < 0 || worker >= context->threads)
        fail("a task or a worker has a number that is not of this job");
    if (context->busy[worker]++)
        fail("two tasks ran at once with the same worker");
    context->inside++;
    context->begun++;
    if (context->done[number]++)
        fail("a task was done twice");
    if (number == context->stops_at)
        context->stopped = 1;
    if (context->meets) {
        const int64_t end = now() + PATIENCE * (int64_t)1000000000;
        while (context->begun < context->threads) {
            if (now() > end)
                fail("no worker came for a seat");
            usleep(20);
        }
    }
    pause_at_random();
    context->inside--;
    context->busy[worker]--;
    return context->stopped;
}

static void meanwhile(void *context)
{
    if (((struct context *)context)->magic != MAGIC)
        fail("meanwhile was called after the job had ended");
}

static void one_job(void)
{
    struct context *context = calloc(1, sizeof *context);
    const int kind = (int)chance(4), threads = 1 + (int)chance(MOST_THREADS);
    context->magic = MAGIC;
    context->tasks = 1 + (int)chance(MOST_TASKS);
    context->threads = threads;
    context->stops_at = kind == 1 ? (int)chance(MOST_TASKS) : -1;
    if (kind == 0) {
        context->meets = 1;
        context->tasks = threads;
    }
    cattn_pool_run(one_task, context, context->tasks, threads, meanwhile);
    if (context->inside)
        fail("a job ended before its tasks did");
    for (int number = 0; number < context->tasks; number++) {
        if (!context->done[number] && !context->stopped)
            fail("a task was not done");
        tasks_done += context->done[number];
    }
    jobs++;
    meetings += context->meets;
    context->magic = 0;
    (free)(context);
}

static int64_t deadline;

static void *call(void *unused)
{
    (void)unused;
    while (now() < deadline) {
        one_job();
        if (chance(2))
            usleep(chance(1000)); /* where few call, the workers fall asleep meanwhile */
    }
    return NULL;
}

/* Many callers find workers that never sleep, a few have to wake them each time. */
static void call_at_once(int count, int64_t nanoseconds)
{
    pthread_t callers[MOST_CALLERS];
    deadline = now() + nanoseconds;
    for (int n = 0; n < count; n++)
        if (pthread_create(&callers[n], NULL, call, NULL))
            fail("no thread for a caller");
    for (int n = 0; n < count; n++)
        pthread_join(callers[n], NULL);
}

/* Once nobody calls, the workers go to sleep, and the pool's books are right. */
static void check_books(void)
{
    for (int tries = 0; tries < 1000; tries++) {
        lock(&pool.mutex);
        const int all_asleep = pool.asleep == pool.workers && pool.idle == 0 && pool.calls == 0;
        if (pool.jobs || pool.open_seats)
            fail("a job is still listed");
        unlock(&pool.mutex);
        if (all_asleep)
            return;
        usleep(10000);
    }
    fail("a worker neither works nor sleeps");
}

static void hangs(int signal)
{
    (void)signal;
    fail("it hangs");
}

int main(int count, char **given)
{
    if (count != 3)
        return 2;
    seed = strtoull(given[1], NULL, 10);
    const double seconds = strtod(given[2], NULL);
    signal(SIGALRM, hangs);
    alarm((unsigned)seconds + 2 * PATIENCE);
    for (int callers = 1; callers <= MOST_CALLERS; callers *= 4) {
        call_at_once(callers, (int64_t)(seconds / 3 * 1e9));
        check_books();
    }
    printf("%lld jobs, %lld of them meetings, %lld tasks, %lld pauses, %d workers\n", (long long)jobs, (long long)meetings,
           (long long)tasks_done, (long long)pauses, pool.workers);
    return 0;
}
