"""No call reads or writes anything but its arguments, its results and its workspace: guarded_calls.py, in processes of
its own."""

import json

import guarded_calls
import pytest
from helpers import EVERY_TABLE, run_python

from cattn import _kernel


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    return guarded_calls.library(tmp_path_factory.mktemp("guard"))


def check(isa, problems, preload, everything):
    summary, failures = guarded_calls.run(isa, problems, preload, everything=everything)
    assert not failures, "\n".join(failures)
    assert summary["table"] == isa and sum(summary["problems"].values()) == problems
    assert summary["workspaces"] > problems / 2 or not preload


def test_calls(preload):
    check(_kernel.isa(), 250, preload, everything=False)


@pytest.mark.slow
@EVERY_TABLE
def test_calls_thoroughly(isa, preload):
    check(isa, 500, preload, everything=True)


STRAY = """
import ctypes, json, sys
import numpy as np
import guarded_calls
kind, at_end, at = sys.argv[1], bool(int(sys.argv[2])), int(sys.argv[3])
def touch(x):
    print(json.dumps("here"), flush=True)
    (ctypes.c_char * 1).from_address(x.ctypes.data + at)[0] = b"0"
if kind == "argument":
    memory = guarded_calls.Arguments()
    x = np.arange(5, dtype=np.float32)
    touch(memory.place({"query": x}, (), at_end, np.random.default_rng(3))["query"])
    memory.settle()
else:
    blocks = guarded_calls.Blocks()
    with blocks.guarded(at_end):
        x = np.zeros(5, np.float32)
    touch(x)
    del x
"""


@pytest.mark.parametrize(
    "kind, at_end, at",
    [("argument", True, 20), ("argument", False, -1), ("argument", True, 3), ("block", True, 20), ("block", False, -1)],
)
def test_stray_writes_are_noticed(kind, at_end, at, preload):
    """Behind an array of 20 bytes, before it, and into an argument."""
    if kind == "block" and preload is None:
        pytest.skip("blocks are not guarded here")
    changes = {"LD_PRELOAD": str(preload)} if preload else {}
    done = run_python("-c", STRAY, kind, str(int(at_end)), str(at), **changes)
    assert json.loads(done.stdout) == "here"
    assert done.returncode != 0
