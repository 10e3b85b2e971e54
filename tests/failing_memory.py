"""Calls whose allocations fail one after the other, in a process that test_failing_memory.py starts.

`python failing_memory.py SCOPE SEEDS ROUNDS NAME ...` prints how often each outcome came, and ends at the first that is
wrong. SCOPE says which allocations fail: `ours`, those of cattn's module; `arrays`, the elements of NumPy's arrays;
`everything`, also each object of Python and whatever other libraries allocate. NumPy and Python have places where they
crash then, or raise a SystemError: attempts are made in child processes, and such outcomes are counted. If ROUNDS is
not 0, the memory that exists after so many more rounds is counted, too.
"""

import collections
import ctypes
import gc
import itertools
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
from registry import FUNCTIONS, copied, fingerprint, large

from cattn import _kernel

FIRST, LAST, SCOPE, THREAD, BEGIN, END, COUNTED, FAILED, THREADS, FIELDS = range(10)
SCOPES = ("everything", "ours", "arrays")
# So many allocations fail in a row. Python 3.11 never leaves a `with` by an exception while it can allocate nothing.
IN_A_ROW = {"everything": 100, "ours": 2**62, "arrays": 2**62}
CATTN_CRASHED = 99


class Failures:
    """Declare what failing_memory.c exports."""

    def __init__(self):
        self.library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.control = (ctypes.c_int64 * FIELDS).in_dll(self.library, "control")
        self.live = ctypes.c_int64.in_dll(self.library, "live")
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(_kernel.__file__)]
        self.control[BEGIN] = int(mapped[0].split("-")[0], 16)
        self.control[END] = int(mapped[-1].split()[0].split("-")[1], 16)
        self.control[THREAD] = threading.get_ident()

    def take_over_arrays(self):
        """NumPy allocates the elements of new arrays by our functions."""
        api = ctypes.pythonapi
        api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = (
            ctypes.c_void_p,
            [ctypes.py_object, ctypes.c_char_p],
        )
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        table = api.PyCapsule_GetPointer(np._core._multiarray_umath._ARRAY_API, None)
        set_handler = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[304]  # PyDataMem_SetHandler
        handler = ctypes.addressof(ctypes.c_char.in_dll(self.library, "array_handler"))
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(set_handler)(
            api.PyCapsule_New(handler, b"mem_handler", None)
        )

    def attempt(self, call, arguments, first, onwards):
        """The result of a call, or its exception, and whether any allocation failed."""
        control = self.control
        result = error = None
        control[COUNTED] = control[FAILED] = 0
        control[LAST] = first + IN_A_ROW[SCOPES[control[SCOPE]]] if onwards else first
        try:
            control[FIRST] = first
            result = call(**arguments)
        except BaseException as caught:
            error = caught
        finally:
            control[FIRST] = 0
        try:
            return result, error, control[FAILED] > 0
        finally:
            del error  # its traceback holds this frame, and Python needs some of its MemoryErrors back


def is_ours(error):
    """Return whether an exception other than MemoryError may be cattn's fault, and not that of NumPy, Python or
    ctypes."""
    if not isinstance(error, (SystemError, ctypes.ArgumentError)):
        return True
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return place.endswith((".pyx", ".pxd")) or "cyfunction" in str(error)


def outcome(failures, function, arguments, expected, first, onwards):
    """In a word, or "" if no allocation was left to fail."""
    result, error, failed = failures.attempt(function.call, copied(arguments), first, onwards)
    if error is None:
        if fingerprint(result) != expected:
            raise AssertionError("another result")
        found = "right" if failed else ""
    elif isinstance(error, MemoryError):
        found = "MemoryError"
    elif failed and not is_ours(error):
        found = "other errors"
    else:
        raise AssertionError("neither a MemoryError nor a result") from error
    if fingerprint(function.call(**copied(arguments))) != expected:
        raise AssertionError("the next call gives another result")
    return found


def attempts(failures, function, arguments, onwards, start=1):
    """Yield the number of the first allocation that fails, and the outcome, until there is none left to fail."""
    expected = fingerprint(function.call(**copied(arguments)))
    for first in itertools.count(start):
        try:
            found = outcome(failures, function, arguments, expected, first, onwards)
        except AssertionError as error:
            raise AssertionError(f"allocation {first} {'onwards' if onwards else ''}") from error
        if not found:
            return
        yield first, found


def attempts_in_children(failures, function, arguments, onwards):
    """Do it in child processes. Where one crashes, the next one goes on behind that allocation."""
    start = 1
    while start:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                failures.library.watch_crashes()
                signal.alarm(60)
                for first, found in attempts(failures, function, arguments, onwards, start):
                    os.write(writer, f"{first} {found}\n".encode())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        with open(reader) as lines:
            for line in lines:
                first, _, found = line.rstrip().partition(" ")
                start = int(first) + 1
                yield int(first), found
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status in (1, CATTN_CRASHED, -signal.SIGALRM):
            raise AssertionError(f"allocation {start} {'onwards' if onwards else ''}: exit status {status}")
        if status == 0:
            return
        yield start, "crashes of others"
        start += 1


def count(failures, scope, function, arguments):
    """How often each outcome came."""
    run = attempts if scope == "ours" else attempts_in_children
    return collections.Counter(
        found for onwards in (False, True) for _, found in run(failures, function, arguments, onwards)
    )


def assert_no_leak(failures, function, arguments, rounds):
    """A call that leaves a block behind adds two in each round. What NumPy and Python keep for later fills up."""
    grown = []
    while not grown or grown[-1] >= 2 * rounds:
        if len(grown) == 15:
            raise AssertionError(f"blocks are left behind: {grown} in {rounds} rounds")
        gc.collect()
        before = failures.live.value
        for _ in range(rounds):
            count(failures, "ours", function, arguments)
        gc.collect()
        grown.append(failures.live.value - before)


def main(scope, seeds, rounds, *names):
    failures = Failures()
    failures.take_over_arrays()
    for name in names:
        function = FUNCTIONS[name]
        if not function.is_there:
            continue
        counts = collections.Counter()
        cases = [function.arguments(seed) for seed in range(int(seeds))] + large(name)
        for seed, arguments in enumerate(cases):
            try:
                failures.control[SCOPE] = SCOPES.index(scope)
                found = count(failures, scope, function, arguments)
                if int(rounds) and not found["crashes of others"]:
                    assert_no_leak(failures, function, arguments, int(rounds))
                counts += found
            except BaseException as error:
                raise AssertionError(f"{name}, case {seed}") from error
        print(json.dumps({"name": name, "cases": len(cases), **counts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
