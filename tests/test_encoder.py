"""The pages' figures for whole pipelines are those of benchmarks/ENCODER.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/guide/encode.md")
CLAIM = re.compile(
    r"NumPy and cattn(?: without padding)? encode (\d+) texts per CPU-second on one thread, "
    r"sentence-transformers (\d+), "
    r"ONNX Runtime (\d+) and NumPy alone (\d+)"
)

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "ENCODER.md").exists(), reason="not in a checkout")


@pytest.fixture(scope="module")
def figures():
    """Return each pipeline's texts per CPU-second on one thread, as shown."""
    page = (ROOT / "benchmarks" / "ENCODER.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([^|]+?) \| ([\d.]+) \| [\d.]+ \| \S+ \|$", page, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_claims_are_those_of_the_record(page, figures):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    (claimed,) = CLAIM.findall(text)
    names = ("NumPy and cattn, no padding", "sentence-transformers", "ONNX Runtime", "NumPy alone")
    assert claimed == tuple(f"{float(figures[name]):.0f}" for name in names)
