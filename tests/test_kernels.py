"""Every kernel table, function by function: the arithmetic, the bits, and the memory that is touched.

Each table, the portable one among them, is held to the formulas (kernel_checks.py) over awkward sizes
(kernel_cases.py), so that any two tables agree within twice the tolerance.

All memory lies between unreadable pages, which arrays touch with their end or with their beginning (kernel_memory.py).
A stray access ends the process, so that the checks of a table run in one of their own, which says what it is about to
do."""

import functools
import itertools
import json
import os
import subprocess
import sys

import kernel_tables
import pytest
from helpers import ISAS
from kernel_checks import checks
from kernel_memory import Memory
from kernel_tables import (
    BFLOAT16,
    FEW,
    FLOAT32,
    FLOAT64,
    MANY,
    MAX_LANES,
    contents,
    own_types,
    table_of,
)

import cattn


@functools.cache
def outcome(isa, rounds):
    """Return what failed of each function, and where the process ended if it did not reach its end: {function:
    [message]}."""
    paths = [os.path.dirname(os.path.dirname(cattn.__file__)), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    others = WITHOUT[isa]
    functions, messages = checks(isa, others), {}
    while functions:
        command = [sys.executable, "kernel_checks.py", ",".join((isa, *others)), str(rounds), *functions]
        done = subprocess.run(
            command, env=environment, cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=3600
        )
        case = None
        for kind, text in map(json.loads, done.stdout.splitlines()):
            if kind == "begin":
                function, case = text, None
                messages[function] = []
            elif kind == "end":
                functions.remove(function)
            elif kind == "case":
                case = text
            else:
                messages[function].append(text)
        if functions and done.returncode == 0:
            raise AssertionError(f"{functions} were not checked: {done.stdout} {done.stderr}")
        if functions:  # it ended inside the first of them
            assert functions[0] in messages, done.stderr
            messages[functions.pop(0)].append(f"{case}: the process ended with {done.returncode}. {done.stderr}")
    return messages


# Kernels that a table shares with one that is checked as well are checked once.
WITHOUT = {isa: ISAS[number + 1 :] for number, isa in enumerate(ISAS)}
EACH = pytest.mark.parametrize(
    ("isa", "function"), [(isa, function) for isa in ISAS for function in checks(isa, WITHOUT[isa])]
)


@pytest.mark.parametrize("isa", ISAS)
def test_struct(isa):
    """The structs that are declared here are those of tiles.h."""
    table = table_of(isa)
    assert table.name == isa.encode()
    assert {FLOAT32, FLOAT64} <= set(own_types(isa)) <= {FLOAT32, FLOAT64, BFLOAT16}
    for type, layout in itertools.product(range(4), range(2)):
        kernels, own = table.kernels[type][layout], type in own_types(isa)
        assert kernels.itemsize == (8 if type == FLOAT64 else 4) and 1 <= kernels.lanes <= MAX_LANES
        assert kernels.half in (kernels.lanes, kernels.lanes // 2)
        assert kernels.run >= 1 and 1 <= kernels.least <= kernels.most <= Memory.LARGEST and kernels.bytes > 0
        assert kernels.reads >> kernels.type & 1
        assert kernels.rounds_weights == (own and type == BFLOAT16)
        assert table.interleave or kernels.interleaves == 1
        assert own or contents(kernels) == contents(table.kernels[FLOAT32][layout])
        for name in kernel_tables.FUNCTIONS:
            assert bool(getattr(kernels, name)) == (layout == MANY or name not in kernel_tables.OF_MANY)
        assert kernels.layout == layout
    assert all(both[FEW].lanes == kernel_tables.FEW_ROWS for both in table.kernels)
    assert table.widen and table.narrow and table.round_to_float


@EACH
def test_kernels(isa, function):
    failures = outcome(isa, 1)[function]
    assert not failures, "\n".join(failures)


@EACH
@pytest.mark.parametrize(
    "rounds", [pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.exhaustive)]
)
def test_kernels_thoroughly(isa, function, rounds):
    failures = outcome(isa, rounds)[function]
    assert not failures, "\n".join(failures)
