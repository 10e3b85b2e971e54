/* What pool.c needs from the system: mutexes, conditions, counters, a clock and threads. POSIX and Windows have them
 * under the same few names here. Include this file before any system header, because it defines _GNU_SOURCE. */
#ifndef CATTN_THREADS_H
#define CATTN_THREADS_H

#define _GNU_SOURCE 1 /* for the adaptive mutex and sched_getcpu */

#include <stdint.h>

#include "pool.h"

#define STACK_SIZE ((size_t)1 << 20) /* tasks need little, because their workspace is not on the stack */

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef SRWLOCK mutex;
typedef CONDITION_VARIABLE condition;
#define MUTEX_INIT SRWLOCK_INIT
#define CONDITION_INIT CONDITION_VARIABLE_INIT
#define lock(m) AcquireSRWLockExclusive(m)
#define unlock(m) ReleaseSRWLockExclusive(m)
#define wait_for(c, m) SleepConditionVariableSRW(c, m, INFINITE, 0)
#define wait_briefly(c, m) SleepConditionVariableSRW(c, m, 10, 0)
#define notify(c) WakeConditionVariable(c)
#define destroy(c) ((void)(c))
#define THREAD DWORD WINAPI

/* Add 1 if the shared number is `*number`, and return whether it was. If not, set `*number` to what it is. */
static int try_increment(cattn_shared *s, int64_t *number)
{
    const int64_t expected = *number;
    *number = InterlockedCompareExchange64(s, expected + 1, expected);
    return *number == expected;
}

static int64_t now(void)
{
    LARGE_INTEGER ticks, second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&second);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)second.QuadPart);
}

static int start_thread(LPTHREAD_START_ROUTINE body)
{
    HANDLE thread = CreateThread(NULL, STACK_SIZE, body, NULL, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return thread && CloseHandle(thread);
}

#else
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
typedef pthread_mutex_t mutex;
typedef pthread_cond_t condition;
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP /* it spins before it waits, because the mutex is never held for long */
#define MUTEX_INIT PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
#else
#define MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#endif
#define CONDITION_INIT PTHREAD_COND_INITIALIZER
#define lock(m) pthread_mutex_lock(m)
#define unlock(m) pthread_mutex_unlock(m)
#define wait_for(c, m) pthread_cond_wait(c, m)
#define notify(c) pthread_cond_signal(c)
#define destroy(c) pthread_cond_destroy(c)
#define try_increment(s, number) atomic_compare_exchange_strong(s, number, *(number) + 1)
#define THREAD void *

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Wait for the condition, for 10 ms at most. */
static void wait_briefly(condition *c, mutex *m)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_nsec += 10000000;
    if (end.tv_nsec >= 1000000000)
        end.tv_sec++, end.tv_nsec -= 1000000000;
    pthread_cond_timedwait(c, m, &end);
}

/* Start a thread that leaves signals sent to the process to the program's threads. Signals that the thread brings on
 * itself are not blocked: they would kill the process anyway, but without a report of faulthandler or a sanitizer. */
static int start_thread(void *(*body)(void *))
{
    static const int own[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, 0};
    sigset_t blocked, before;
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&blocked);
    for (const int *signal = own; *signal; signal++)
        sigdelset(&blocked, *signal);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int error = pthread_create(&thread, &attributes, body, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !error;
}
#endif

#ifdef __linux__
#include <sched.h>
#define this_processor() sched_getcpu()

/* Move this thread away from `processor`, the caller's, and leave it free to come back. A worker that wakes there would
 * take turns with the caller, until the system sees that another processor is idle. */
static void migrate(int processor)
{
    cpu_set_t all, others;
    if (sched_getcpu() != processor || sched_getaffinity(0, sizeof all, &all))
        return;
    others = all;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof all, &all);
}
#else
#define this_processor() 0
#define migrate(processor) ((void)(processor))
#endif

#endif
