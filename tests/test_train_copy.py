"""The example of training learns to copy, with the same losses as the same training in PyTorch."""

import importlib.util
import re

import pytest
from helpers import HERE, run_python

PROGRAM = HERE.parent / "examples" / "train_copy.py"
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="the examples are not here")
WITH_TORCH = all(importlib.util.find_spec(package) for package in ("torch", "ml_dtypes"))


def test_train_copy(tmp_path):
    done = run_python("-W", "error", PROGRAM, "--steps=100", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    title, *rows = done.stdout.splitlines()
    first, last = (float(row.split()[1]) for row in (rows[0], rows[8]))
    assert first > 2.7 and last < 0.1  # the logarithm of 16 letters, and nearly nothing
    assert float(re.search(r"([\d.]+)% of the letters", done.stdout)[1]) > 99
    assert ("PyTorch" in title) is WITH_TORCH
    if WITH_TORCH:
        assert float(re.search(r"differ by at most (\S+)", rows[-1])[1]) < 1e-12
