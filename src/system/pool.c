/* A pool of threads that share numbered tasks among them.
 *
 * A job is one call of cattn_pool_run. It is listed while it has free seats for workers. A worker sits down at the
 * oldest listed job, does tasks until none is left to start, and looks for the next job. The first thread that finds no
 * task left takes the job off the list. No worker can come to it from then on, and its caller waits only for those who
 * still sit there, each in the middle of a task. One mutex guards everything except the seats.
 *
 * The caller frees the job. If it never comes back, because Python ended its thread while it asked for the GIL, nobody
 * frees the job: the process is about to end. */

#include "threads.h"

#include <stdlib.h>

#define MAX_WORKERS 1023             /* beyond any use: a wrong number must not fill the process table */

/* A worker without work, and a caller whose workers are not done, keep looking for so many nanoseconds before they
 * sleep. A thread that runs out of tasks waits for the others, up to the length of a task. If it fell asleep in each
 * such gap, its processor would halt, and it would wake more and more slowly. Looking for much longer would rob other
 * processes. */
#define SPIN 100000

struct seat {
    cattn_shared taken;  /* how many of the seat's tasks, which are its number and every threads-th after it */
    cattn_shared at;     /* the task, of any seat, that its worker took last or is about to take; -1 before the first */
    char apart[48]; /* fills the cache line, so that no two seats share one */
};

struct job {
    cattn_task task;
    void *context;
    int64_t tasks;
    int threads;
    int forks;         /* pool.forks when the job began */
    cattn_shared sitting;    /* the number of workers at the job */
    int free_seats;    /* their numbers are 1 to free_seats; the job is listed while there are any */
    int processor;     /* the one on which the caller was */
    condition done;    /* signalled when no worker sits at the job any more */
    struct job *next;
    struct seat seats[]; /* by number; seat 0 is the caller's */
};

static struct pool {
    mutex mutex;
    condition work_available;
    struct job *jobs;  /* the jobs with free seats, the oldest first */
    cattn_shared open_seats; /* of all listed jobs */
    int workers;       /* all that were started; each sits at a job, is idle or is asleep */
    int idle;          /* those that are awake or called, and have no seat */
    int asleep;        /* those that sleep and are not called */
    int calls;         /* those that are called and have not got up yet */
    int forks;         /* the number of forks between the first process and this one */
} pool = {.mutex = MUTEX_INIT, .work_available = CONDITION_INIT};

#ifndef _WIN32
/* Begin again in a forked child: the workers stayed with the parent, and so did the thread that held the mutex. */
static void start_afresh(void)
{
    pool = (struct pool){.mutex = MUTEX_INIT, .work_available = CONDITION_INIT, .forks = pool.forks + 1};
}

/* Watch forks from the moment the library is loaded. If this waited for the first call, a fork could find the mutex
 * taken and no handler yet. */
__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, start_afresh);
}
#endif

int64_t cattn_now(void)
{
    return now();
}

/* Keep looking until the number is zero, or until it is not, but at most until the time `end`. */
static void spin(cattn_shared *number, int until_zero, int64_t end)
{
    while ((*number == 0) != until_zero && now() < end)
        ;
}

/* Unlock the mutex, and call sleepers while there are more open seats than idle workers. Two are called at most. Each
 * of them calls two in its turn, so that nobody has to wake them all. */
static void unlock_and_call(void)
{
    int rings = 0;
    for (; rings < 2 && pool.asleep && pool.idle < pool.open_seats; rings++)
        pool.asleep--, pool.calls++, pool.idle++;
    unlock(&pool.mutex);
    while (rings--)
        notify(&pool.work_available);
}

/* Return the link of the list that points to the job, or the link at the end of the list. */
static struct job **link_to(const struct job *job)
{
    struct job **link = &pool.jobs;
    while (*link && *link != job)
        link = &(*link)->next;
    return link;
}

static void withdraw(struct job *job)
{
    if (job->free_seats)
        *link_to(job) = job->next;
    pool.open_seats -= job->free_seats;
    job->free_seats = 0;
}

/* Take the next task of a seat for a worker, and return it, or -1 if none is left. The worker announces the task before
 * it takes it, so that a forked child knows of every task that a worker may be in the middle of. */
static int64_t take(struct job *job, int seat, int worker)
{
    cattn_shared *taken = &job->seats[seat].taken;
    int64_t number = *taken, task;
    do {
        task = seat + number * job->threads;
        if (task >= job->tasks)
            return -1;
        job->seats[worker].at = task;
    } while (!try_increment(taken, &number));
    return task;
}

/* Do the seat's own tasks first, because in similar calls their data is in this processor's cache. Then do the tasks
 * that other threads have not come to. */
static void do_tasks(struct job *job, int worker)
{
    for (int i = 0; i < job->threads; i++)
        for (int64_t task; (task = take(job, (worker + i) % job->threads, worker)) >= 0;)
            if (job->task(job->context, (ptrdiff_t)task, worker))
                return;
}

static THREAD serve(void *unused)
{
    int64_t bedtime = 0;
    (void)unused;
    lock(&pool.mutex);
    for (;;) {
        struct job *job = pool.jobs;
        if (job) {
            int seat = job->free_seats--;
            if (!job->free_seats)
                pool.jobs = job->next;
            job->sitting++;
            pool.open_seats--;
            pool.idle--;
            unlock_and_call();
            migrate(job->processor);
            do_tasks(job, seat);
            bedtime = now() + SPIN;
            lock(&pool.mutex);
            withdraw(job);
            pool.idle++;
            if (!--job->sitting)
                notify(&job->done); /* while the mutex is locked, because the job may be gone after that */
        } else if (now() < bedtime) {
            unlock(&pool.mutex);
            spin(&pool.open_seats, 0, bedtime);
            lock(&pool.mutex);
        } else {
            pool.idle--;
            pool.asleep++;
            while (!pool.calls)
                wait_for(&pool.work_available, &pool.mutex);
            pool.calls--;
        }
    }
    return 0;
}

static void wait_for_workers(struct job *job, void (*meanwhile)(void *context))
{
    lock(&pool.mutex);
    withdraw(job);
    unlock(&pool.mutex);
    spin(&job->sitting, 1, now() + SPIN);
    lock(&pool.mutex);
    while (job->sitting) {
        wait_briefly(&job->done, &pool.mutex);
        if (!job->sitting)
            break;
        unlock(&pool.mutex);
        meanwhile(job->context);
        if (job->forks != pool.forks)
            return;
        lock(&pool.mutex);
    }
    unlock(&pool.mutex);
    destroy(&job->done);
}

/* Finish the job in a child that was forked during it. Every task has been taken. Those that the parent's workers had
 * not finished at the fork are among the last ones that they announced. The child sees what a thread wrote before the
 * fork, in the order in which it was written. */
static void finish_alone(struct job *job)
{
    for (int seat = 1; seat < job->threads; seat++)
        if (job->seats[seat].at >= 0 && job->task(job->context, (ptrdiff_t)job->seats[seat].at, 0))
            return;
}

void cattn_pool_run(cattn_task task, void *context, ptrdiff_t tasks, int threads, void (*meanwhile)(void *context))
{
    if (threads > tasks)
        threads = (int)tasks;
    struct job *job = threads > 1 ? malloc(sizeof *job + (size_t)threads * sizeof *job->seats) : NULL;
    if (!job) {
        for (ptrdiff_t i = 0; i < tasks; i++)
            if (task(context, i, 0))
                return;
        return;
    }
    *job = (struct job){.task = task, .context = context, .tasks = tasks, .threads = threads, .forks = pool.forks,
                        .free_seats = threads - 1, .processor = this_processor(), .done = CONDITION_INIT};
    for (int seat = 0; seat < threads; seat++) {
        job->seats[seat].taken = 0;
        job->seats[seat].at = -1;
    }
    lock(&pool.mutex);
    for (; pool.workers < job->free_seats && pool.workers < MAX_WORKERS && start_thread(serve); pool.workers++)
        pool.idle++;
    *link_to(NULL) = job;
    pool.open_seats += job->free_seats;
    unlock_and_call();
    do_tasks(job, 0);

    if (job->forks == pool.forks)
        wait_for_workers(job, meanwhile);
    if (job->forks != pool.forks)
        finish_alone(job);
    free(job);
}
