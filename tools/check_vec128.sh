#!/usr/bin/env bash
# The tables vec128 and neon on processors that nobody here has, against plain C loops, under emulation: `tools/check_vec128.sh`, or with the
# names of some of aarch64, riscv64, s390x and x86_64. s390x is big-endian. Debian's packages:
#
#     qemu-user gcc-aarch64-linux-gnu gcc-riscv64-linux-gnu gcc-s390x-linux-gnu and libc6-dev-*-cross
#
# Each driver runs twice: as it is, and with a fault in its plain loops, which it must find.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for target in "${@:-aarch64 riscv64 s390x}"; do
    for processor in $target; do
        compiler=$processor-linux-gnu-gcc
        # As setup.py compiles it; the driver itself without contraction, which would be the same arithmetic.
        for source in src/system/cpu.c src/tiles/*.c; do
            "$compiler" -O3 -std=gnu11 -fno-trapping-math -fno-math-errno -Wall -Wextra -Isrc -Icattn \
                -c "$source" -o "$work/$(basename "$source" .c).o"
        done
        "$compiler" -O2 -std=gnu11 -ffp-contract=off -Wall -Wextra -static -Isrc -Icattn \
            tools/check_tables.c "$work"/*.o -lm -o "$work/check"
        echo -n "$processor, "
        "qemu-$processor" "$work/check" || failed=1
        if "qemu-$processor" "$work/check" spoil > "$work/spoilt"; then
            echo "$processor: a fault in the plain loops went unnoticed: $(tail -1 "$work/spoilt")"
            failed=1
        fi
    done
done
exit $failed
