#!/usr/bin/env bash
# What is compiled from C, on Windows' side of each `#if`, under Wine: `tools/test_windows.sh`, from anywhere. Debian's packages:
#
#     wine gcc-mingw-w64-x86-64-posix clang-19
#
# Two programs run, each compiled twice. check_pool.c calls the pool, by one caller and by many, and its clock. check_tables.c compares
# the functions of the kernel tables with plain loops, and runs once more with a fault in these, which it must find.
#
#   clang   as clang-cl, with which wheels are built: vec128, avx2, avx512, avx512bf16, as far as this processor runs them
#   gcc     MinGW's: vec128, for it does not align the stack for wider vectors
#
# Not reached from here: the compiled Cython, and with it the portable table, for which a Python for Windows would be needed.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export WINEPREFIX=$work/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='   # no offer to install .NET and a browser
trap 'wineserver -k || true; rm -rf "$work"' EXIT
wine=$(command -v wine || command -v wine64) || { echo "expected wine" >&2; exit 1; }
gcc=x86_64-w64-mingw32-gcc-posix
declare -A compilers=([clang]="${CLANG:-clang-19} --target=x86_64-w64-windows-gnu" [gcc]=$gcc)

compile() {   # the compiler's name, what it compiles, flags
    local compiler=${compilers[$1]} source=$2
    shift 2
    # As setup.py compiles it. MinGW's own printf knows C's formats; the system's does not.
    $compiler -O3 -std=gnu11 -fno-trapping-math -fno-math-errno -Wall -Wextra -Werror -D__USE_MINGW_ANSI_STDIO=1 -Isrc -Icattn "$@" \
        -c "$source" -o "$folder/$(basename "$source" .c).o"
}

run() {   # a name, and the command
    local name=$1 status=0
    shift
    "$wine" "$@" > "$work/output" 2> "$work/errors" || status=$?
    sed "s/^/$name, /; s/\r$//" "$work/output"
    return $status
}

failed=0
for name in clang gcc; do
    folder=$work/$name
    mkdir "$folder"
    for source in src/system/cpu.c src/tiles/*.c; do
        compile $name "$source"
    done
    compile $name tools/check_tables.c -O2 -ffp-contract=off   # contracted, its loops would be the same arithmetic
    $gcc -static "$folder"/*.o -lm -o "$work/tables-$name.exe"
    compile $name tools/check_pool.c
    $gcc -static "$folder/check_pool.o" -lm -o "$work/pool-$name.exe"

    run $name "$work/pool-$name.exe" 3 || failed=1
    run $name "$work/tables-$name.exe" || failed=1
    if run $name "$work/tables-$name.exe" spoil > "$work/spoilt"; then
        echo "$name: a fault in the plain loops went unnoticed: $(tail -1 "$work/spoilt")"
        failed=1
    fi
done
exit $failed
