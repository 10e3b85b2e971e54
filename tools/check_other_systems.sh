#!/usr/bin/env bash
# Compiles the C files for Windows and macOS on Linux: `tools/check_other_systems.sh`, with clang 19 or newer (CLANG=clang-19).
#
# Those systems' own headers are not to be had there. Stubs declare what the files use, so that what is checked is our side: the
# gates, that every call fits its declaration, that all instruction sets compile, and what the objects ask of the linker.
#
# The compiled Cython, src/kernel.c, wants more than stubs. After a build in place it is compiled too, by Debian's
# gcc-mingw-w64-x86-64-posix, with the headers of NumPy's wheel for Windows and those of this machine's Python, its pyconfig.h
# replaced by a few lines in the spirit of Windows'. That shows which functions of the C library are missing there, not how
# Python's own Windows headers would be taken.
#
# What MSVC's own compiler (cl.exe) cannot do. It has no vector extensions, no `target` attribute and no <stdatomic.h> by
# default, so that it builds the portable table alone, right and slow; with clang-cl in its place everything is built, and
# MSVC's linker and libraries serve both. gcc for Windows (MinGW) builds portable and vec128: it does not align the stack for
# wider vectors.
set -euo pipefail
cd "$(dirname "$0")/.."
clang=${CLANG:-clang-19}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{any,windows,macos/sys}

# ---- what the C files use of the C library and of the systems ----
cat > "$work/any/stdio.h" <<'H'
#pragma once
#include <stddef.h>
typedef struct file FILE;
int snprintf(char *, size_t, const char *, ...);
FILE *fopen(const char *, const char *);
char *fgets(char *, int, FILE *);
int fclose(FILE *);
H
cat > "$work/any/stdlib.h" <<'H'
#pragma once
#include <stddef.h>
void *malloc(size_t);
void free(void *);
int atoi(const char *);
long long strtoll(const char *, char **, int);
H
cat > "$work/any/malloc.h" <<'H'
#pragma once
#include <stdlib.h>
H
cat > "$work/any/string.h" <<'H'
#pragma once
#include <stddef.h>
int strcmp(const char *, const char *);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
H
cat > "$work/any/math.h" <<'H'
#pragma once
double fabs(double);
H
cat > "$work/any/fenv.h" <<'H'
#pragma once
#define FE_TONEAREST 0
int fegetround(void);
int fesetround(int);
H
cat > "$work/any/time.h" <<'H'
#pragma once
struct timespec { long long tv_sec; long tv_nsec; };
typedef int clockid_t;
#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 6
int clock_gettime(clockid_t, struct timespec *);
H
cat > "$work/windows/windows.h" <<'H'
#pragma once
#include <stddef.h>
#define WINAPI
#define INFINITE 0xffffffff
#define STACK_SIZE_PARAM_IS_A_RESERVATION 0x10000
#define SRWLOCK_INIT {0}
#define CONDITION_VARIABLE_INIT {0}
typedef unsigned long DWORD;
typedef int BOOL;
typedef void *HANDLE;
typedef long long LONG64;
typedef struct { void *pointer; } SRWLOCK, CONDITION_VARIABLE;
typedef union { LONG64 QuadPart; } LARGE_INTEGER;
typedef DWORD (WINAPI *LPTHREAD_START_ROUTINE)(void *);
void AcquireSRWLockExclusive(SRWLOCK *);
void ReleaseSRWLockExclusive(SRWLOCK *);
BOOL SleepConditionVariableSRW(CONDITION_VARIABLE *, SRWLOCK *, DWORD, DWORD);
void WakeConditionVariable(CONDITION_VARIABLE *);
BOOL QueryPerformanceCounter(LARGE_INTEGER *);
BOOL QueryPerformanceFrequency(LARGE_INTEGER *);
HANDLE CreateThread(void *, size_t, LPTHREAD_START_ROUTINE, void *, DWORD, DWORD *);
BOOL CloseHandle(HANDLE);
static inline LONG64 InterlockedCompareExchange64(volatile LONG64 *number, LONG64 value, LONG64 expected)
{
    return __sync_val_compare_and_swap(number, expected, value);
}
H
cat > "$work/macos/unistd.h" <<'H'
#pragma once
long sysconf(int);
H
cat > "$work/macos/sys/sysctl.h" <<'H'
#pragma once
#include <stddef.h>
int sysctlbyname(const char *, void *, size_t *, void *, size_t);
H
cat > "$work/macos/pthread.h" <<'H'
#pragma once
#include <stddef.h>
#include <time.h>
typedef struct { long signature; char opaque[56]; } pthread_mutex_t, pthread_attr_t;
typedef struct { long signature; char opaque[40]; } pthread_cond_t;
typedef struct thread *pthread_t;
#define PTHREAD_MUTEX_INITIALIZER {0x32AAABA7, {0}}
#define PTHREAD_COND_INITIALIZER {0x3CB0B1BB, {0}}
#define PTHREAD_CREATE_DETACHED 2
int pthread_mutex_lock(pthread_mutex_t *);
int pthread_mutex_unlock(pthread_mutex_t *);
int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int pthread_cond_signal(pthread_cond_t *);
int pthread_cond_destroy(pthread_cond_t *);
int pthread_attr_init(pthread_attr_t *);
int pthread_attr_destroy(pthread_attr_t *);
int pthread_attr_setstacksize(pthread_attr_t *, size_t);
int pthread_attr_setdetachstate(pthread_attr_t *, int);
int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
H
cat > "$work/macos/signal.h" <<'H'
#pragma once
#include <stddef.h>
typedef unsigned sigset_t;
enum { SIGABRT = 6, SIGBUS = 10, SIGFPE = 8, SIGILL = 4, SIGSEGV = 11, SIGSYS = 12, SIGTRAP = 5 };
#define SIG_SETMASK 3
int sigfillset(sigset_t *);
int sigdelset(sigset_t *, int);
int pthread_sigmask(int, const sigset_t *, sigset_t *);
H

# ---- compile, and look at what comes out ----
files=(src/system/*.c src/tiles/*.c)
check() {   # name, and the compiler with its flags
    local name=$1 file object table
    shift
    for file in "${files[@]}"; do
        object=$work/$(basename "$file" .c).o
        "$@" -Isrc -c "$file" -o "$object"
        "${clang/clang/llvm-nm}" --undefined-only "$object" > "$work/symbols"
        if grep -E '__cpu_(model|indicator)' "$work/symbols"; then
            echo "$name: $file needs Clang's run-time library" >&2
            exit 1
        fi
    done
    for table in ${vectors[$name]}; do   # table:register
        "${clang/clang/llvm-objdump}" -d "$work/${table%:*}.o" > "$work/assembly"
        if ! grep -qE "\b${table#*:}[0-9]" "$work/assembly"; then
            echo "$name: the table ${table%:*} is not in the build" >&2
            exit 1
        fi
    done
    echo "$name: compiles without a warning, with the tables ${vectors[$name]}"
}
declare -A vectors=(
    [x86_64-pc-windows-msvc]="vec128:xmm avx2:ymm avx512:zmm avx512bf16:zmm" [aarch64-pc-windows-msvc]="vec128:v neon:v"
    [x86_64-apple-macos10.13]="vec128:xmm avx2:ymm avx512:zmm avx512bf16:zmm" [arm64-apple-macos11]="vec128:v neon:v"
)
for target in x86_64-pc-windows-msvc aarch64-pc-windows-msvc; do
    # clang-cl, with the flags that setuptools gives to MSVC's compiler.
    check $target "$clang" --driver-mode=cl --target=$target /nologo /O2 /W4 /WX /GL /DNDEBUG /MD -Wno-unused-command-line-argument \
        -X /imsvc"$("$clang" -print-resource-dir)/include" /imsvc"$work/windows" /imsvc"$work/any" \
        /clang:-std=gnu11
done
for target in x86_64-apple-macos10.13 arm64-apple-macos11; do
    check $target "$clang" --target=$target -Wall -Wextra -Werror -nostdlibinc -isystem "$work/macos" -isystem "$work/any" \
        -O3 -std=gnu11 -fno-trapping-math -fno-math-errno -fPIC
done

# ---- the compiled Cython ----
gcc=x86_64-w64-mingw32-gcc-posix
if [ ! -e src/kernel.c ] || ! command -v $gcc > /dev/null; then
    echo "kernel.c is left out: it wants a build in place, and $gcc"
    exit
fi
python=${PYTHON:-python3}
pip="$python -m pip --disable-pip-version-check"
$pip download -q --no-deps --only-binary=:all: --platform win_amd64 -d "$work" numpy
"$python" -m zipfile -e "$work"/numpy-*.whl "$work/wheel"
cp -r "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" "$work/python"
cat > "$work/python/pyconfig.h" <<'H'
#pragma once
#define MS_WIN32
#define MS_WIN64
#define MS_WINDOWS
#define NT_THREADS
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_INT 4
#define SIZEOF_SHORT 2
#define SIZEOF_WCHAR_T 2
#define SIZEOF_DOUBLE 8
#define SIZEOF_FLOAT 4
#define SIZEOF_TIME_T 8
#define SIZEOF_OFF_T 4
#define ALIGNOF_MAX_ALIGN_T 8
#define HAVE_STDINT_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_ERRNO_H 1
#define WITH_DOC_STRINGS 1
#define COMPILER "[gcc]"
H
$gcc -O1 -std=gnu11 -Wall -Werror -fsyntax-only -Isrc -Icattn -I"$work/wheel/numpy/_core/include" -I"$work/python" \
    src/kernel.c
echo "x86_64-w64-mingw32: kernel.c compiles"
