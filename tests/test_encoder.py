"""What the pages say about whole pipelines is what benchmarks/ENCODER.md holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {"docs/guide/encode.md", "README.md"}

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "ENCODER.md").exists(), reason="not in a checkout")


@pytest.fixture(scope="module")
def figures():
    """Texts per CPU-second by pipeline: with one thread and with two."""
    page = (ROOT / "benchmarks" / "ENCODER.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| \S+ \|$", page, re.MULTILINE)
    return {name: (float(one), float(two)) for name, one, two in rows}


def test_every_pipeline_was_measured(figures):
    assert len(figures) == 8 and {"NumPy alone", "ONNX Runtime", "NumPy and cattn, no padding"} <= set(figures)


def test_claims_are_those_of_the_record(figures):
    """Each "N texts per CPU-second for NAME" of a page, which is with one thread."""
    found = 0
    for page in sorted(PAGES):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for claimed, name in re.findall(r"([\d.]+) texts per CPU-second for ([\w ,-]+?)[;.(]", text):
            assert claimed == f"{figures[name][0]:.0f}", (page, name)
            found += 1
    assert found >= 3
