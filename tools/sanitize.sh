#!/usr/bin/env bash
# cattn under sanitizers: `tools/sanitize.sh`, or with the names of some of these stages. A report of any of them is a failure.
#
#   address    gcc's address and undefined-behaviour sanitizers. On every kernel table that this processor runs, the checks of its
#              functions (tests/kernel_checks.py) and every function of tests/registry.py; then the tests of hostile arguments, errors,
#              merges, NaN and padding. The AVX-512 and AMX tables are emulated, too: for processors that lack them, and because the
#              sanitizer does not see what masked loads and tiles read.
#   thread     its thread sanitizer. The pool alone, in C (check_pool.c), and then functions of the registry from many threads at once,
#              with interrupts, in Python, of which the sanitizer sees locks and memory.
#   plain      no sanitizer, but -O0: what the first stage runs on the tables.
#   valgrind   valgrind's memcheck on the code as it is released: each function and type, on the tables that valgrind knows.
#   short      of the first two stages, what takes few minutes. Not one of the stages that run without an argument.
#
# It needs gcc with its sanitizers' libraries, valgrind, and Python with its headers, on Linux. Builds stay under build/sanitize. Nothing
# of cattn is suppressed; of valgrind's reports, those whose innermost frame is the interpreter's own are.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$checkout/build/sanitize
mkdir -p "$work"
export OPENBLAS_NUM_THREADS=1

if [ ! -e "$work/packages.done" ]; then
    "${PYTHON:-python3}" -m venv "$work/venv"
    "$work/venv/bin/python" - > "$work/packages.txt" << 'P'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
extras = project["project"]["optional-dependencies"]
names = project["build-system"]["requires"] + project["project"]["dependencies"] + extras["test"] + extras["dask"]
print(*(name for name in names if not name.startswith("cattn[")), sep="\n")
P
    "$work/venv/bin/pip" install -q -r "$work/packages.txt"
    touch "$work/packages.done"
fi
python=$work/venv/bin/python

build() {   # the folder, and variables that setup.py knows
    folder=$work/$1
    shift
    mkdir -p "$folder"
    # Neither a module nor C that were built elsewhere.
    tar c --exclude='*.so' --exclude=src/kernel.c --exclude=__pycache__ setup.py pyproject.toml README.md src cattn tests tools \
        | tar x -C "$folder"
    (cd "$folder" && env "$@" "$python" -W ignore setup.py -q build_ext --inplace) > "$folder/build.log" 2>&1 \
        || { cat "$folder/build.log"; exit 1; }
}

run() {   # what Python runs, in the folder of the build and under what `under` says
    (cd "$folder" && env PYTHONPATH="$folder" "${under[@]}" "$python" "$@")
}

tables() {
    run -c 'import cattn; print(*cattn._kernel.runnable_isas())'
}

check_kernels() {   # a table
    (cd "$folder/tests" && env PYTHONPATH="$folder" "${under[@]}" "$python" kernel_checks.py "$1" 1) > "$folder/kernels.log" \
        || { tail -1 "$folder/kernels.log"; exit 1; }
    if grep '"failed"' "$folder/kernels.log"; then
        exit 1
    fi
    echo "$1: $(grep -c '"case"' "$folder/kernels.log") checks of its kernels"
}

check_tables() {   # how many seeds, and tables
    local seeds=$1 table
    shift
    for table in "$@"; do
        check_kernels "$table"
        CATTN_ISA=$table run tools/sanitized_calls.py calls "$seeds"
    done
}

library() {
    gcc -print-file-name="lib$1.so"
}

under_address() {
    under=(LD_PRELOAD="$(library asan) $(library ubsan)" PYTHONMALLOC=malloc
           ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allocator_may_return_null=1
           UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1)
    build "$1" CC=gcc CATTN_SANITIZE=address,undefined,float-cast-overflow "${@:2}"
}

check_pool() {   # how many seconds
    under=(TSAN_OPTIONS=halt_on_error=1:history_size=7)
    if setarch -R true 2> /dev/null; then   # it may not find room among random addresses
        under+=(setarch -R env)
    fi
    gcc -O1 -g -std=gnu11 -fsanitize=thread -Isrc -Icattn tools/check_pool.c -lm -o "$work/check_pool"
    env "${under[@]}" "$work/check_pool" "$1"
}

address() {
    under_address address
    local here
    here=$(tables)
    check_tables 32 $here
    # A report ends the process: pytest must not hold back what C code writes.
    run -m pytest -q --capture=sys -p no:cacheprovider tests/test_{hostile,arguments,errors,wrong_calls,c_errors,merge,nan,padding}.py
    under_address emulated CATTN_EMULATE=1
    check_tables 16 avx512 avx512bf16 amx
}

thread() {
    check_pool 10
    build thread CC=gcc CATTN_SANITIZE=thread
    under+=(LD_PRELOAD="$(library tsan)" PYTHONMALLOC=malloc)
    run tools/sanitized_calls.py threads 60
    CATTN_ISA=portable run tools/sanitized_calls.py threads 20
}

plain() {
    under=()
    build plain CATTN_OPTIMIZE=0
    local all
    all=$(tables)
    check_tables 32 $all
}

valgrind() {
    cat > "$work/interpreter.supp" << 'S'
{
   jumps
   Memcheck:Cond
   obj:*python3*
}
{
   addresses
   Memcheck:Value8
   obj:*python3*
}
S
    under=(PYTHONMALLOC=malloc valgrind -q --error-exitcode=9 --exit-on-first-error=yes --suppressions="$work/interpreter.supp")
    build valgrind CATTN_OPTIMIZE=3
    local table
    for table in portable vec128 avx2; do
        CATTN_ISA=$table run tools/sanitized_calls.py twice 12
    done
}

short() {
    check_pool 5
    under_address address
    local best
    best=$(run -c 'import cattn; print(cattn._kernel.isa())')
    check_tables 16 $best
    if [ "$best" != portable ]; then
        check_tables 16 portable
    fi
}

[ $# -gt 0 ] || set address thread plain valgrind
for stage; do
    began=$SECONDS
    $stage
    echo "$stage: nothing was reported, $((SECONDS - began)) s"
done
