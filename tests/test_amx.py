"""AMX is asked for: Linux gives a process its register tiles, or does not, and what holds them must be released."""

import sys
from pathlib import Path

import pytest
from helpers import TWO_TABLES, python, run_python

HAS_AMX = sys.platform == "linux" and " amx_bf16 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
# Linux refuses register tiles while a thread has an alternate stack that they could not be saved on.
SMALL_STACK = """
import ctypes

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) != 0:
    raise OSError("sigaltstack")
"""


@pytest.mark.skipif(not HAS_AMX, reason="this processor has no AMX")
def test_another_table_where_the_system_refuses():
    code = SMALL_STACK + "import cattn\nprint(cattn._kernel.isa(), 'amx' in cattn._kernel.runnable_isas())"
    assert python(code, CATTN_ISA="") == "avx512 False\n"
    done = run_python("-c", SMALL_STACK + "import cattn", CATTN_ISA="amx")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: CATTN_ISA: ")


HANDLERS = """
import signal
import ml_dtypes
import numpy as np
import cattn

def attend(rows):
    x = np.random.default_rng(rows).standard_normal((8, rows, 64)).astype(ml_dtypes.bfloat16)
    return cattn.attention(x, x, x).tobytes()

def handle(*_):
    global calls
    calls += attend(40) == small

calls, large, small = 0, attend(1500), attend(40)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
while calls < 5:
    if attend(1500) != large:
        raise AssertionError("a handler changed the result")
signal.setitimer(signal.ITIMER_REAL, 0)
print("equal")
"""


@TWO_TABLES
def test_handlers_that_use_the_same_units(isa):
    """A signal handler that computes attention in bfloat16 changes nothing of the call that it interrupts."""
    assert python(HANDLERS, CATTN_ISA=isa) == "equal\n"
