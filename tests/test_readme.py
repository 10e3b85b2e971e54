"""README's examples run, one after the other as a reader would, and give what they say."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import cattn

README = Path(__file__).parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="not in a checkout")


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(blocks):
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    return names


def test_examples():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    shown = [block for block in blocks() if not block.startswith("# needs torch")]
    assert len(shown) >= 8
    names = run(shown)
    assert names["context"].shape == (1, 12, 128, 64)
    np.testing.assert_allclose(names["weights"].sum(axis=-1), 1, rtol=1e-5)
    assert names["steps"].weights.shape == (3, 3)

    distance = ((names["places"][:, None, :] - names["points"]) ** 2).sum(axis=-1, dtype=np.float64)
    kernel = np.exp(-distance / (2 * names["bandwidth"] ** 2))
    expected = kernel @ names["values"] / kernel.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(names["smooth"], expected, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_tensors():
    first, *_ = blocks()
    names = run([first, *(block for block in blocks() if block.startswith("# needs torch"))])
    expected = cattn.attention(*(x.float().numpy() for x in names["tensors"]), causal=True)
    np.testing.assert_allclose(names["result"].float().numpy(), expected, atol=2**-7)
