"""The benchmarks' page and charts show what their records hold."""

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CHARTS = sorted(path.name for path in BENCHMARKS.glob("results/*.svg"))
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def report(folder):
    done = subprocess.run([sys.executable, folder / "report.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Page and charts, anew from the records alone."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copy(BENCHMARKS / "report.py", folder)
    shutil.copytree(BENCHMARKS / "results", folder / "results", ignore=shutil.ignore_patterns("*.svg"))
    report(folder)
    return folder


def test_page_is_generated(written):
    assert (written / "RESULTS.md").read_bytes() == (BENCHMARKS / "RESULTS.md").read_bytes()


def test_every_machine_has_its_chart(written):
    assert CHARTS
    assert sorted(path.name for path in written.glob("results/*.svg")) == CHARTS


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_generated(written, name):
    """By what they tell of their data: how lines are drawn depends on matplotlib's version."""
    new, kept = (ElementTree.parse(folder / "results" / name) for folder in (written, BENCHMARKS))
    assert len(new.find(f".//{DESCRIPTION}").text) > 100
    assert new.find(f".//{DESCRIPTION}").text == kept.find(f".//{DESCRIPTION}").text


def test_same_bytes_again(written):
    before = {path: path.read_bytes() for path in written.rglob("*.*") if path.suffix in (".svg", ".md")}
    report(written)
    assert before == {path: path.read_bytes() for path in before}
