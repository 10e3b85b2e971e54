/* The pool and its clock, called from C: by one caller, and then by many at once. test_windows.sh runs this program where there is no
 * Python, and sanitize.sh with the thread sanitizer, which then sees every access. `check_pool SECONDS` lets the many callers go on
 * for so long.
 *
 * If a call hangs, a thread of its own ends the program with status 3. */
#include "system/pool.c"   /* not its header: threads.h serves this file, too */

#include <stdio.h>

#include "system/float_mode.h"

enum { CALLERS = 16, MOST_THREADS = 8, MOST_TASKS = 256, CROWD = 100, PATIENCE = 60 };

static const int64_t second = 1000000000;
static cattn_shared checks, failures, calls, tasks_done, callers, done_callers;
static cattn_shared end_of_calls;

static int64_t count(cattn_shared *number)
{
    int64_t before = *number;
    while (!try_increment(number, &before))
        ;
    return before;
}

static void expect(int good, const char *what)
{
    count(&checks);
    if (!good && count(&failures) < 20)
        printf("failed: %s\n", what);
}

static void pause_for(int milliseconds)
{
#ifdef _WIN32
    Sleep((DWORD)milliseconds);
#else
    const struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
#endif
}

/* Returns whether the number has come so far, for which it waits 10 seconds at most. */
static int comes_to(cattn_shared *number, int64_t value)
{
    const int64_t end = cattn_now() + 10 * second;
    while (*number < value)
        if (pause_for(1), cattn_now() > end)
            return 0;
    return 1;
}

static THREAD end_if_it_hangs(void *unused)
{
    (void)unused;
    while (cattn_now() < end_of_calls + PATIENCE * second)
        pause_for(100);
    printf("failed: a call did not return\n");
    fflush(stdout);
    _Exit(3);
    return 0;
}

/* ---- any call ---- */

struct call {
    int tasks, threads;
    int64_t gives_up_at;                /* so many tasks begin before the call gives up */
    cattn_shared begun;
    cattn_shared busy[MOST_THREADS];    /* by worker: whether it is in a task */
    int scratch[MOST_THREADS];          /* by worker, and plain: no two tasks of one may run at once */
    int64_t results[MOST_TASKS];        /* plain, too: they must be there when the call returns */
};

static int do_task(void *context, ptrdiff_t task, int worker)
{
    struct call *call = context;
    const int64_t before = count(&call->begun);
    expect(task >= 0 && task < call->tasks, "a task has a number of its call");
    expect(worker >= 0 && (worker < call->threads || worker == 0), "a worker has a number of its call");
    expect(count(&call->busy[worker]) == 0, "a worker is in one task at a time");
    int64_t sum = 0;
    for (int i = 0; i < task % 7 * 100; i++)
        sum += call->scratch[worker] = i;
    call->results[task] += 1 + 0 * sum;
    call->busy[worker] = 0;
    count(&tasks_done);
    return before + 1 >= call->gives_up_at;
}

static void do_nothing(void *context)
{
    (void)context;
}

static void check_call(struct call *call, int tasks, int threads, int64_t gives_up_at)
{
    *call = (struct call){.tasks = tasks, .threads = threads, .gives_up_at = gives_up_at};
    cattn_pool_run(do_task, call, tasks, threads, do_nothing);
    count(&calls);
    int64_t once = 0, more = 0;
    for (int i = 0; i < tasks; i++) {
        once += call->results[i] == 1;
        more += call->results[i] > 1;
    }
    expect(more == 0, "a task is done once");
    expect(once == call->begun, "a call returns when its tasks are done");
    if (gives_up_at > tasks)
        expect(once == tasks, "every task is done");
    else
        expect(once >= gives_up_at && once < gives_up_at + threads, "a call that gives up begins no more tasks");
}

static THREAD make_calls(void *unused)
{
    uint64_t state = 88172645463325252u + (uint64_t)count(&callers);
    struct call *call = malloc(sizeof *call);
    (void)unused;
    while (call != NULL && cattn_now() < end_of_calls) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        const int tasks = (int)(state % (MOST_TASKS + 1)), threads = 1 + (int)(state >> 16 & (MOST_THREADS - 1));
        check_call(call, tasks, threads, state >> 40 & 3 ? MOST_TASKS + 1 : 1 + (int64_t)(state >> 48) % MOST_TASKS);
        if ((state >> 42 & 15) == 0)
            pause_for(1);   /* long enough for workers to fall asleep */
    }
    free(call);
    count(&done_callers);
    return 0;
}

/* ---- calls whose tasks wait for each other ---- */

struct meeting {
    int64_t tasks;
    cattn_shared came;
    int met[CROWD];
};

/* Every thread must have come, or the tasks do not meet. */
static int meet(void *context, ptrdiff_t task, int worker)
{
    struct meeting *meeting = context;
    (void)worker;
    count(&meeting->came);
    meeting->met[task] = comes_to(&meeting->came, meeting->tasks);
    return 0;
}

static void check_wakes(int threads, int pause)
{
    struct meeting meeting = {.tasks = threads};
    pause_for(pause);
    cattn_pool_run(meet, &meeting, threads, threads, do_nothing);
    for (int i = 0; i < threads; i++)
        expect(meeting.met[i], pause ? "workers that sleep wake up for a call" : "workers come to a call");
}

struct wait {
    cattn_shared began, asked;
    int asked_in_time;
};

/* The caller's task ends once a worker has begun the other one, which ends when the caller has been asked three times. */
static int wait_to_be_asked(void *context, ptrdiff_t task, int worker)
{
    struct wait *wait = context;
    (void)task;
    if (worker == 0) {
        comes_to(&wait->began, 1);
    } else {
        count(&wait->began);
        wait->asked_in_time = comes_to(&wait->asked, 3);
    }
    return 0;
}

static void ask(void *context)
{
    count(&((struct wait *)context)->asked);
}

static void check_meanwhile(void)
{
    struct wait wait = {0};
    const int64_t start = cattn_now();
    cattn_pool_run(wait_to_be_asked, &wait, 2, 2, ask);
    const int64_t took = cattn_now() - start;
    expect(wait.asked_in_time, "a caller that waits is asked");
    expect(took >= second / 100 && took < 2 * second, "a caller that waits is asked about every 10 ms");
}

static void check_clock(void)
{
    int64_t before = cattn_now();
    int forward = 1;
    for (int i = 0; i < 100000; i++) {
        const int64_t next = cattn_now();
        forward &= next >= before;
        before = next;
    }
    expect(forward, "the clock goes forward");
    pause_for(100);
    const int64_t took = cattn_now() - before;
    expect(took >= second / 11 && took < 5 * second, "a pause of 0.1 s takes so long");
}

static void check_float_mode(void)
{
#if defined(__SSE2__)
    volatile float small = 1e-38f;
    const unsigned before = cattn_change_float_mode(CATTN_TASK_MODE);
    expect(small * 0.5f == 0, "a subnormal number counts as 0 within tasks");
    expect(cattn_change_float_mode(before) == CATTN_TASK_MODE, "the mode of tasks is what was set");
    expect(cattn_float_mode() == before && small * 0.5f != 0, "the mode is what it was");
#endif
}

int main(int count_of_arguments, char **arguments)
{
    const int64_t start = cattn_now();
    end_of_calls = start;
    expect(start_thread(end_if_it_hangs), "a thread starts");
    check_clock();
    check_float_mode();
    for (int threads = 2; threads <= MOST_THREADS; threads++)
        for (int i = 0; i < 10; i++)
            check_wakes(threads, i % 2 ? 3 : 0);
    check_wakes(CROWD, 0);
    for (int i = 0; i < 5; i++)
        check_meanwhile();
    struct call call;
    for (int tasks = 0; tasks < 20; tasks++)
        for (int threads = 1; threads <= MOST_THREADS; threads++)
            check_call(&call, tasks, threads, tasks + 1);
    int started = 0;
    end_of_calls = cattn_now() + (int64_t)((double)second * (count_of_arguments > 1 ? atof(arguments[1]) : 2));
    for (int i = 0; i < CALLERS; i++)
        started += start_thread(make_calls);
    expect(started == CALLERS, "all callers start");
    while (done_callers < started)
        pause_for(10);
    printf("pool: %lld calls by %d callers, %lld tasks, %.1f s: %lld checks, %lld failed\n", (long long)calls, started,
           (long long)tasks_done, (double)(cattn_now() - start) / 1e9, (long long)checks, (long long)failures);
    return failures != 0;
}
