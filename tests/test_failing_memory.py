"""Where there is no memory, or no further thread, a call raises MemoryError or gives its result, and leaves nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import HERE, python, run_python
from registry import FUNCTIONS, IMPORT_MORE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="interposes functions of glibc")

SHARES = pytest.mark.parametrize(
    "seeds, rounds",
    [
        (1, 0),
        pytest.param(2, 30, marks=pytest.mark.slow, id="slow"),
        pytest.param(20, 30, marks=pytest.mark.exhaustive, id="exhaustive"),
    ],
)
QUICK = [name for name in FUNCTIONS if name not in IMPORT_MORE]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    """The environment of a process in which allocations fail when they are told to."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = tmp_path_factory.mktemp("failing") / "failing_memory.so"
    command = [*compiler.split(), "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_memory.c", "-ldl"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this C library has other names for its functions")
    return {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}


def run(preloaded, scope, seeds, rounds, names):
    """How often each outcome came, by the name of the function."""
    done = run_python(HERE / "failing_memory.py", scope, seeds, rounds, *names, seconds=600, **preloaded)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@SHARES
def test_memory_of_our_own(preloaded, seeds, rounds):
    """Work for several threads goes on in the calling thread where a job cannot be listed for others."""
    found = run(preloaded, "ours", seeds, rounds, QUICK)
    for name in ("attention", "attention_weights", "attention_varlen", "cattn.h"):
        assert found[name]["MemoryError"] and found[name]["right"]


def test_nothing_is_left_behind(preloaded):
    run(preloaded, "ours", 0, 30, ["cattn.h"])


@SHARES
def test_elements_of_arrays(preloaded, seeds, rounds):
    found = run(preloaded, "arrays", seeds, rounds, QUICK)
    assert all(found[name]["MemoryError"] for name in QUICK if name not in ("cattn.h", "plan"))  # which make few


@pytest.mark.slow
def test_everything(preloaded):
    found = run(preloaded, "everything", 2, 0, QUICK)
    assert all(found[name]["MemoryError"] for name in QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["ours", "arrays"])
@pytest.mark.parametrize("name", IMPORT_MORE)
def test_other_modules(preloaded, name, scope):
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    found = run(preloaded, scope, 2, 0, [name])
    assert found[name]["MemoryError"]


# Threads

BEGINNING = """
import os, resource
import numpy as np
import cattn
x = np.random.default_rng(0).standard_normal((4, 100, 32))
expected = cattn.attention(x, x, x, num_threads=1).tobytes()
def threads():
    return len(os.listdir("/proc/self/task"))
def call():
    return cattn.attention(x, x, x, num_threads=6).tobytes() == expected
before = threads()
"""


def test_as_many_threads_as_there_can_be(preloaded):
    """Calls complete on those that could be started, and start the others once they can be."""
    code = """
from failing_memory import Failures, THREADS
control = Failures().control
for more in 0, 0, 1, 2, 0, -1, -1:
    control[THREADS] = more
    print(all(call() for _ in range(20)), threads() - before, end=" ")
"""
    expected = "True 0 True 0 True 1 True 3 True 3 True 5 True 5 "
    assert python(BEGINNING + code, **preloaded) == expected


def test_errno(preloaded):
    """C's callers find it as it was where a thread could not be started, and where there was no memory."""
    code = """
from c_interface_calls import Call, big, status_and_errno
from failing_memory import COUNTED, FIRST, LAST, SCOPE, SCOPES, THREADS, Failures
control = Failures().control
control[THREADS] = 0
call = Call(**big())
call.numbers["num_threads"] = 3
print(status_and_errno(call.arguments, 123), threads() - before)
control[SCOPE] = SCOPES.index("ours")
for number in 1, 2, 3:
    control[COUNTED] = 0
    control[LAST] = control[FIRST] = number
    print(status_and_errno(call.arguments, 123))
"""
    assert python(BEGINNING + code, **preloaded) == "(0, 123) 0\n(2, 123)\n(0, 123)\n(0, 123)\n"


LIMITS = {
    "threads of a user": "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\nif os.getuid() == 0: os.setuid(65534)",
    "address space": """
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000, -1))  # less than a thread's stack
""",
}


@pytest.mark.parametrize("limit", LIMITS)
def test_no_threads(limit):
    code = """
import threading
try:
    threading.Thread(target=int).start()
    print("no limit")
except RuntimeError:
    print(all(call() for _ in range(20)), threads() - before)
"""
    printed = python(BEGINNING + LIMITS[limit] + code, OMP_NUM_THREADS="1")
    if printed == "no limit\n":
        pytest.skip("the emulator does not apply the limit")
    assert printed == "True 0\n"
