"""Calls in the floating-point modes of x86-64, in a process that test_float_mode.py starts.

`python float_modes.py SEEDS TRAPS NAME ...` calls each function in the usual mode, and then in each combination of
rounding, flushing, and the sets of traps (`none`, `all`, or `every` set). The bits of the results must be the same, the
mode must be the same after the call, and no tile registers may be in use. A trap ends the process.
"""

import ctypes
import itertools
import json
import mmap
import sys
from pathlib import Path

from registry import FUNCTIONS, copied, fingerprint, large

# fldcw [rdi]; ldmxcsr [rdi + 4]; ret | fnstcw [rdi]; stmxcsr [rdi + 4]; ret | mov ecx, 1; xgetbv; ret
CODE = bytes.fromhex("d92f 0fae5704 c3  d93f 0fae5f04 c3  b901000000 0f01d0 c3")
HAS_IN_USE = " xgetbv1 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
TILES = 0x60000  # in the answer of xgetbv: the tile registers, and their configuration
FLAGS = 0x3F  # what has happened, in the mode of SSE
TRAPS = {"none": [0], "all": [0, 0x3F], "every": range(0x40)}

_memory = mmap.mmap(-1, len(CODE), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_memory.write(CODE)
_start = ctypes.addressof(ctypes.c_char.from_buffer(_memory))
load, store = (ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_start + at) for at in (0, 7))
registers_in_use = ctypes.PYFUNCTYPE(ctypes.c_uint)(_start + 14)


def mode(rounding, flush, zeros, traps):
    """The modes of x87 and of SSE. The former computes in single precision where the latter flushes."""
    return (ctypes.c_uint32 * 2)(
        rounding << 10 | (0 if flush else 0x300) | 0x40 | (0x3F & ~traps),
        rounding << 13 | flush << 15 | zeros << 6 | (0x1F80 & ~(traps << 7)),
    )


def call_in(given, function, arguments):
    """The result, and the mode afterwards."""
    usual, found = mode(0, 0, 0, 0), mode(0, 0, 0, 0)
    load(given)
    try:
        result = function.call(**arguments)
    finally:
        store(found)
        load(usual)
    found[1] &= ~FLAGS
    return result, found


def main(seeds, traps, *names):
    modes = [mode(*each) for each in itertools.product(range(4), (0, 1), (0, 1), TRAPS[traps])]
    for name in names:
        function = FUNCTIONS[name]
        if not function.is_there:
            continue
        cases = [function.arguments(seed) for seed in range(int(seeds))] + large(name)
        for number, arguments in enumerate(cases):
            expected = fingerprint(function.call(**copied(arguments)))
            for given in modes:
                result, found = call_in(given, function, copied(arguments))
                where = f"{name}, case {number}, mode {given[0]:x} {given[1]:x}"
                if list(found) != list(given):
                    raise AssertionError(f"{where}: {found[0]:x} {found[1]:x} after the call")
                if fingerprint(result) != expected:
                    raise AssertionError(f"{where}: other bits")
                if HAS_IN_USE and registers_in_use() & TILES:
                    raise AssertionError(f"{where}: tile registers are in use")
        print(json.dumps({"name": name, "cases": len(cases), "calls": len(cases) * len(modes)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
