#!/usr/bin/env bash
# Runs the tests of processes, threads and interrupts on other versions of Python:
#
#     tools/test_pythons.sh PYTHON... [-- pytest's arguments]
#
# A PYTHON is a command such as python3.14t, or a path; it needs the module venv and Python's headers. Without any, the
# script takes each of python3.11 to python3.14 and of the free-threaded ones that PATH has. Each gets a copy of the
# checkout and a virtual environment under build/pythons, which stay for the next time. Remove a folder there to begin
# anew. pytest's arguments replace the choice of tests: `-- tests` runs the default suite.
set -euo pipefail
checkout=$(realpath "$(dirname "$0")/..")

pythons=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    pythons+=("$1")
    shift
done
[ $# -eq 0 ] || shift
if [ ${#pythons[@]} -eq 0 ]; then
    for python in python3.{11,12,13,13t,14,14t}; do
        if command -v "$python" > /dev/null; then pythons+=("$python"); fi
    done
fi
[ $# -gt 0 ] || set -- -m "slow or not slow" tests/test_{processes,threads,interrupts}.py

for python in "${pythons[@]}"; do
    name=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3] + sys.abiflags)')
    folder=$checkout/build/pythons/$name
    mkdir -p "$folder/checkout"
    [ -e "$folder/bin/python" ] || "$python" -m venv "$folder"
    cd "$folder/checkout"
    # With the times of the sources: what was built from them before is not built again.
    tar -C "$checkout" --exclude='*.so' --exclude=kernel.c --exclude=__pycache__ -c \
        pyproject.toml setup.py README.md LICENSE src cattn tests benchmarks docs examples | tar -x
    "$folder/bin/python" -m pip install -q --only-binary numpy,ml_dtypes,matplotlib -e '.[test]'
    echo "Python $name"
    "$folder/bin/python" -m pytest -q "$@"
done
