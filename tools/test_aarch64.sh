#!/usr/bin/env bash
# The suite on aarch64, under emulation: `tools/test_aarch64.sh [pytest's arguments]`, from anywhere.
#
# Debian 13 or its like, with the packages
#
#     gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user python3 python3-venv
#
# Debian's Python for arm64 is unpacked under build/aarch64, without installing it; NumPy and what else the README's command
# installs come from PyPI as wheels for aarch64. The module is cross-compiled by setup.py, under this machine's Python of the
# same version. All of it stays in build/aarch64 for the next time; remove that folder to begin anew.
#
# The emulated processor is a plain ARMv8.0 (QEMU_CPU). NumPy's BLAS chooses its kernels by the processor: on qemu's own
# default, NumPy's matrix products come out wrong, and with them what the tests expect.
#
# Files of tests run beside each other, on all processors (with -n 0: one after the other).
#
# An emulated run takes many times as long, and some tests limit a time. Those that fail are therefore run again with clocks that
# go more slowly, for them and for the processes that they start. A test that then passes exceeded its time and nothing else: it is
# named, and does not count as a failure.
set -euo pipefail
compiler=${CC:-aarch64-linux-gnu-gcc}   # or "clang-19 --target=aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include"
checkout=$(realpath "$(dirname "$0")/..")
work=$checkout/build/aarch64
root=$work/root
site=$work/site
mkdir -p "$root" "$site"

if [ ! -e "$work/python.done" ]; then
    # A package database of its own, which knows no installed package and one architecture.
    mkdir -p "$work"/apt/{lists,archives}/partial
    : > "$work/apt/status"
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$work/apt"
         -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    "${apt[@]}" install -y --no-install-recommends --download-only python3 libpython3-dev libstdc++6
    for package in "$work"/apt/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    ln -sfn usr/lib "$root/lib"   # as in every system: the loader's path is /lib
    touch "$work/python.done"
fi

version=$(basename "$(readlink "$root/usr/bin/python3")")   # python3.13
command -v "$version" > /dev/null || { echo "expected $version on this machine, the version of Debian's for arm64" >&2; exit 1; }

if [ ! -e "$work/packages.done" ]; then
    "$version" -m venv "$work/venv"
    "$work/venv/bin/pip" install -q 'setuptools>=77' 'Cython>=3.1' 'numpy>=2.0'
    # What the README's command installs, and what runs tests beside each other.
    mapfile -t needs < <("$work/venv/bin/python" - "$checkout/pyproject.toml" << 'END'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(need for name in ("cli", "plot", "test") for need in extras[name] if not need.startswith("cattn")), sep="\n")
END
    )
    "$work/venv/bin/pip" install -q --target "$site" --only-binary=:all: --implementation cp \
        --python-version "${version#python}" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux2014_aarch64 \
        "numpy==$("$work/venv/bin/python" -c 'import numpy; print(numpy.__version__)')" \
        "${needs[@]}" 'pytest-xdist>=3.8'
    touch "$work/packages.done"
fi

# The module: setup.py with the target's configuration of Python in the place of this machine's. The sources and the package are
# copied, so that no module for another processor lies in the checkout.
copy=$work/cattn
rm -rf "$copy"/{cattn,tests}
mkdir -p "$copy"
cp -ru "$checkout"/{setup.py,pyproject.toml,src,cattn,tests,benchmarks,docs,examples,tools} "$copy"
cp "$checkout"/README.md "$copy"
rm -f "$copy"/cattn/_kernel.*.so
mkdir -p "$work/sysconfig"
cp "$root/usr/lib/$version/_sysconfigdata__aarch64-linux-gnu.py" "$work/sysconfig"
(
    cd "$copy"
    PYTHONPATH="$work/sysconfig" _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu _PYTHON_HOST_PLATFORM=linux-aarch64 \
        CC=$compiler LDSHARED="$compiler -shared" \
        CFLAGS="-I$root/usr/include/$version -I$root/usr/include" \
        "$work/venv/bin/python" setup.py -q build_ext --inplace
)

export CC=$compiler   # some tests compile a library that replaces functions of the C library
export QEMU_LD_PREFIX=$root QEMU_CPU=${QEMU_CPU:-cortex-a72}
export PYTHONHOME=$root/usr PYTHONPATH=$site:$copy PYTHONDONTWRITEBYTECODE=1
cd "$copy"
# Tests that start Python in a process of their own run sys.executable: a program that says how. It is linked statically, as the
# emulator is, because what a test preloads is for the emulated process alone.
gcc -static -x c -o "$work/python" - << END
#include <unistd.h>
int main(int count, char **given)
{
    char *all[count + 4];
    all[0] = "qemu-aarch64", all[1] = "-0", all[2] = "$work/python", all[3] = "$root/usr/bin/$version";
    for (int n = 1; n <= count; n++)
        all[n + 3] = given[n];
    return execvp(all[0], all);
}
END
"$work/python" -c 'import cattn; cattn.show_config()'

mkdir -p "$work/clocks"
cat > "$work/clocks/sitecustomize.py" << 'END'
import functools
import os
import time

SLOWER = float(os.environ.get("CATTN_CLOCKS_SLOWER", "1"))


def slowed(clock):
    return functools.wraps(clock)(lambda: clock() / SLOWER)


def later(timer):
    return lambda which, seconds, interval=0.0: timer(which, seconds * SLOWER, interval * SLOWER)


if SLOWER != 1:
    import signal
    import subprocess

    for name in ("monotonic", "perf_counter", "process_time", "time"):
        setattr(time, name, slowed(getattr(time, name)))
    subprocess._time = time.monotonic
    signal.setitimer = later(signal.setitimer)
    signal.alarm = lambda seconds, alarm=signal.alarm: alarm(int(seconds * SLOWER))
END
export PYTHONPATH=$work/clocks:$PYTHONPATH
rm -f .pytest_cache/v/cache/lastfailed
status=0
"$work/python" -m pytest -q -n auto --dist loadfile "$@" || status=$?
for slower in 32 1024; do   # NumPy's products are emulated some 500 times as slowly
    [ $status = 1 ] || break
    failed=$(grep -c : .pytest_cache/v/cache/lastfailed)
    echo "$failed failed, and run again with clocks that go $slower times as slowly. Those that pass exceeded a time and nothing else:"
    status=0
    CATTN_CLOCKS_SLOWER=$slower "$work/python" -m pytest -q -n auto -rpf --last-failed "$@" || status=$?
done
exit $status
