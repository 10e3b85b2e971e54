"""The benchmarks' page and charts show what their records hold."""

import json
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


@pytest.fixture
def written_of_halves(tmp_path):
    """The same of a run in half types that was never made: ORT Attention has float16 alone."""
    pytest.importorskip("matplotlib")
    run = json.loads((BENCHMARKS / "results" / "amd-zen-4.json").read_text(encoding="utf-8"))

    def case(dtype, **speeds_and_errors):
        engines = {
            label.replace("_", " "): {"seconds": 1e9 / speed, "gflops": speed, "error": error, "kappa": 0.1}
            for label, (speed, error) in speeds_and_errors.items()
        }
        fields = {"name": f"bert-512-{dtype}", "shape": "1,12/12,512,512,64", "dtype": dtype, "causal": False}
        return fields | {"speedup": 2.0, "share_of_limit": 0.75, "engines": engines, "errors": {}}

    run["cases"] = [
        case("bfloat16", cattn=(150.0, 0.125), cattn_float32=(100.0, 2e-5), NumPy=(75.0, 0.13)),
        case("float16", cattn=(90.0, 0.25), cattn_float32=(100.0, 1e-4), NumPy=(30.0, 0.5), ORT_Attention=(45.0, 17.2)),
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    shutil.copy(BENCHMARKS / "report.py", tmp_path)
    report(tmp_path)
    return tmp_path


def test_half_types_show_what_each_speed_costs(written_of_halves):
    page = (written_of_halves / "RESULTS.md").read_text(encoding="utf-8")
    title = "AMD Zen 4, bfloat16 and float16"
    assert f"\n## {title}\n\n![cattn on {title}](results/amd-zen-4-bfloat16-and-float16.svg)\n" in page
    chart = ElementTree.parse(written_of_halves / "results" / "amd-zen-4-bfloat16-and-float16.svg")
    assert "2.00 × ORT Attention (error 17), 3.00 × NumPy" in chart.find(f".//{DESCRIPTION}").text
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| threads", "| 1"))]
    assert "fastest peers that are more than 1 eps·Σp|v| off: ORT Attention in bert-512-float16 (17)." in page
    assert [" | ".join(cells[3:]) for cells in table] == [
        "× fastest peer | × float32 | % of limit | "
        "cattn | error | cattn float32 | error | NumPy | error | ORT Attention | error",
        "2.00 | 1.50 | 75 | 150.0 | 0.12 | 100.0 | 2e-05 | **75.0** | 0.13 | - | -",
        "2.00 | 0.90 | 75 | 90.0 | 0.25 | 100.0 | 0.0001 | 30.0 | 0.5 | **45.0** | 17",
    ]


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
