"""Helpers that many tests need: random arrays, comparisons of bits, processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest

import cattn
from cattn import _kernel

HERE = Path(__file__).parent
PACKAGE = Path(cattn.__file__).parent

EVERY_TYPE = pytest.mark.parametrize("dtype", list(cases.TYPES.values()), ids=str)
TABLES = ("portable", "vec128", "neon", "avx2", "avx512", "avx512bf16", "amx")
NOT_HERE = pytest.mark.skip(reason="this kernel table does not run here, or CATTN_ISA asks for another one")
# CATTN_ISA asks for tests of one table.
ISAS = [_kernel.isa()] if os.environ.get("CATTN_ISA") else _kernel.runnable_isas()
EVERY_TABLE = pytest.mark.parametrize(
    "isa", [isa if isa in ISAS else pytest.param(isa, marks=NOT_HERE) for isa in TABLES]
)


def slow(*values):
    """Return a set of parameters that only the long tests have."""
    return pytest.param(*values, marks=pytest.mark.slow)


# The portable table and the one in use; the others are for -m slow.
TWO_TABLES = pytest.mark.parametrize("isa", [isa if isa in ("portable", _kernel.isa()) else slow(isa) for isa in ISAS])


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def problem(rows=5, keys=5, dtype=np.float32, *, batch=(2,), heads=4, key_heads=2, size=6, value_size=3, seed=0):
    """Standard normal query, key and value, by name."""
    random = np.random.default_rng([seed, heads, rows, keys])
    shapes = {
        "query": (*batch, heads, rows, size),
        "key": (*batch, key_heads, keys, size),
        "value": (*batch, key_heads, keys, value_size),
    }
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def work(seed=0, heads=3, rows=150, keys=150, dtype=np.float32):
    """Return it in a list, and more of it than one thread is given alone."""
    sizes = {"heads": heads, "key_heads": heads, "size": 64, "value_size": 64}
    return list(problem(rows, keys, dtype, batch=(), **sizes, seed=seed).values())


# Comparisons


def same_memory(a, b):
    """Return whether a and b are the same elements in the same order."""

    def description(x):
        return x.__array_interface__["data"][0], x.shape, x.strides, x.dtype

    return description(a) == description(b)


def bits(x):
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def same_bits(x, y):
    return x.shape == y.shape and x.dtype == y.dtype and np.array_equal(bits(x), bits(y))


def assert_same_bits(found, expected, where=True):
    """Return the bits of arrays, or of tuples of them such as an output and its lse. NaNs and zeros count by their
    bits, too."""
    if isinstance(found, (tuple, list)):
        for x, y in zip(found, expected, strict=True):
            assert_same_bits(x, y, where)
        return
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise AssertionError(f"{found.dtype} of shape {found.shape}, not {expected.dtype} of shape {expected.shape}")
    where = np.broadcast_to(where, found.shape)
    np.testing.assert_array_equal(bits(found)[where], bits(expected)[where])


# Processes


def environment(**changes):
    """Our own, with which Python finds the cattn of this test, and the files beside it, wherever it runs."""
    paths = [str(PACKAGE.parent), str(HERE), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | changes


def start_python(code, *arguments, **changes):
    """A process that runs `code`, and what it prints, in the environment with these changes."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.Popen(command, env=environment(**changes), cwd=HERE, stdout=subprocess.PIPE, text=True)


def run_python(*arguments, cwd=HERE, seconds=240, encoding="utf-8", **changes):
    """A process that has ended, and what it printed."""
    # By default not in the root of a checkout, whose folder cattn/ would be found first.
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**changes), cwd=cwd, capture_output=True, encoding=encoding, timeout=seconds
    )


def python(code, *arguments, **options):
    """Return what `code` prints. Fail unless it ends by itself, in time, well, and without a warning."""
    done = run_python("-W", "error", "-c", code, *arguments, **options)
    if done.returncode or done.stderr:
        raise AssertionError(f"exit status {done.returncode}: {done.stderr}")
    return done.stdout
