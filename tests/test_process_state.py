"""Calls leave what belongs to the whole process or to the calling thread as it was, and do not depend on it."""

import contextlib
import ctypes
import gc
import locale
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings

import cases as random_cases
import numpy as np
import pytest
from c_interface_calls import DONE, Call, big, status_and_errno
from helpers import python
from registry import FUNCTIONS, IMPORT_MORE, copied, fingerprint, large

import cattn

try:
    import threadpoolctl
except ImportError:
    threadpoolctl = None

LINUX = sys.platform == "linux"
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in IMPORT_MORE else []) for name in FUNCTIONS]


def cases(name):
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    return [FUNCTIONS[name].arguments(seed) for seed in range(8)] + large(name)


# What a call leaves as it was


def threads():
    return sorted(map(int, os.listdir("/proc/self/task"))) if LINUX else []


def thread_state(thread):
    """Return what Linux says of a thread, save for what it has used: masks of signals, capabilities, processors, ..."""
    with open(f"/proc/self/task/{thread}/status", encoding="utf-8") as file:
        lines = file.read().splitlines()
    used = ("Vm", "Rss", "Hugetlb", "State", "Threads", "voluntary", "nonvoluntary", "SigQ", "x86_Thread")
    return (
        [line for line in lines if not line.startswith(used)],
        os.sched_getscheduler(thread),
        os.getpriority(0, thread),
    )


def signal_actions():
    """Handler, mask and flags of each signal, and the stack that handlers run on, as glibc says it."""
    library, found = ctypes.CDLL(None), []
    for number in range(1, signal.NSIG):
        action = ctypes.create_string_buffer(256)
        library.sigaction(number, None, action)
        found.append((action.raw[:16].hex(), action.raw[136:140].hex()))
    stack = ctypes.create_string_buffer(64)
    library.sigaltstack(None, stack)
    return [*found, stack.raw]


def process_state(other_threads):
    state = {
        "NumPy": (np.geterr(), np.geterrcall(), np.getbufsize(), np.get_printoptions()),
        "random": (random.getstate(), repr(np.random.get_state())),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "Python": (gc.isenabled(), gc.get_threshold(), sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()),
        "intervals": (sys.getswitchinterval(), sys.excepthook, sys.unraisablehook, sys.displayhook),
        "locale": locale.setlocale(locale.LC_ALL),
        "environment": (dict(os.environ), os.getcwd()),
        "cattn": cattn.get_num_threads(),
        "Python's handlers": [signal.getsignal(number) for number in signal.valid_signals()],
    }
    if os.name == "posix":
        state["mask"] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    if LINUX:
        state["actions"] = signal_actions()
        state["files"] = sorted(os.listdir("/proc/self/fd"))
        state |= {f"thread {thread}": thread_state(thread) for thread in other_threads}
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        state["torch"] = (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled())
        state["random numbers of torch"] = torch.get_rng_state().numpy().tobytes()
    if threadpoolctl is not None:
        state["thread pools"] = [(pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]
    return state


@pytest.mark.parametrize("name", NAMES)
def test_calls_leave_it_as_it_was(name):
    function = FUNCTIONS[name]
    arguments = cases(name)
    for given in arguments[:1] + arguments[-1:]:  # imports, and the threads of other libraries
        function.call(**copied(given))
    others = threads()
    before = process_state(others)
    for given in arguments:
        function.call(**copied(given))
    after = process_state(others)
    for what, found in after.items():
        assert found == before[what], what


@pytest.mark.skipif(not LINUX, reason="compares what Linux says of threads")
def test_first_calls_leave_it_as_it_was():
    """Threads are started, and modules are imported, by a first call."""
    code = """
import threading
from registry import FUNCTIONS, IMPORT_MORE
from test_process_state import cases, process_state, threads
others = threads()
first = threading.Thread(target=int)  # with it comes a signal handler of the C library's own
first.start()
first.join()
before = process_state(others)
for name in FUNCTIONS:
    if name not in IMPORT_MORE:
        FUNCTIONS[name].call(**cases(name)[-1])
after = process_state(others)
print({what for what, found in after.items() if found != before[what]}, len(threads()) > len(others))
"""
    assert python(code) == "set() True\n"


# What a call does not depend on


def results(name, arguments):
    return [fingerprint(FUNCTIONS[name].call(**copied(given))) for given in arguments]


def expectation(name):
    """Arguments, and what they give as long as nothing is changed."""
    arguments = cases(name)
    return arguments, results(name, arguments)


@pytest.fixture(scope="module")
def comma(tmp_path_factory):
    """The folder of a locale that writes 1,5."""
    folder = tmp_path_factory.mktemp("locale")
    definition = shutil.which("localedef")
    command = [definition, "-i", "de_DE", "-f", "UTF-8", folder / "comma.UTF-8"]
    if definition is None or subprocess.run(command, capture_output=True).returncode > 1:
        pytest.skip("no locale with a decimal comma can be made here")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_do_not_depend_on_the_locale(name, comma, monkeypatch):
    monkeypatch.setenv("LOCPATH", str(comma))
    arguments, expected = expectation(name)
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "comma.UTF-8")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        assert results(name, arguments) == expected
    finally:
        locale.setlocale(locale.LC_ALL, before)


@contextlib.contextmanager
def numpy_raises():
    def raise_again(kind, flag):
        raise FloatingPointError(kind)

    with np.errstate(all="call", call=raise_again):
        yield
        assert np.geterr() == dict.fromkeys(np.geterr(), "call") and np.geterrcall() is raise_again


def test_small_products_raise_nothing():
    """NumPy notes an underflow in the projections, and in what is stored as float16."""
    for dtype, small in (np.float32, 1e-30), (np.float64, 1e-200), (np.float16, 1e-4):
        x = np.full((3, 4), small, dtype)
        w = np.full((4, 4), small, dtype)
        with np.errstate(all="raise"):
            assert not cattn.self_attention(x, w, w, w, w).any()
            cattn.trace(x, w, w, w)


def test_signalling_nans_warn_of_nothing():
    nan = np.array([0x7F800001], np.uint32).view(np.float32)
    x = np.ones((1, 3, 4), np.float32)
    assert np.isnan(cattn.attention(x, x, x, alibi_slopes=nan)).all()
    with pytest.raises(ValueError, match="sinks: expected finite numbers"):
        cattn.attention(x, x, x, sinks=nan)


@contextlib.contextmanager
def signals_are_blocked():
    if os.name != "posix":
        pytest.skip("no masks of signals here")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def floating_point_signals_are_noted():
    noted = []
    before = signal.signal(signal.SIGFPE, lambda *_: noted.append(1))
    try:
        yield
        assert not noted
    finally:
        signal.signal(signal.SIGFPE, before)


@contextlib.contextmanager
def one_processor():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


STATES = [numpy_raises, signals_are_blocked, floating_point_signals_are_noted, one_processor]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_it(name, state):
    arguments, expected = expectation(name)
    with state():
        assert results(name, arguments) == expected


# What C sees


def test_errno():
    for seed in range(40):
        call = Call(**random_cases.case(seed))
        assert status_and_errno(call.arguments, 123) == (DONE, 123)
    call = Call(**big())
    assert status_and_errno(call.arguments | {"num_threads": 3}, 123) == (DONE, 123)
    assert status_and_errno(call.arguments | {"num_threads": -1}, 123)[1] == 123
