"""compare.py writes a record that report.py reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import report

import cattn
from cattn._bench import CASES

pytest.importorskip("rich")
pytest.importorskip("threadpoolctl")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The record of a short run."""
    folder = tmp_path_factory.mktemp("records")
    script = [sys.executable, report.HERE / "compare.py", "--cases", "seed,minilm", "--engines", "cattn,numpy"]
    options = ["--rounds", "1", "--machine", "My machine (2)", "--json", folder]
    environment = os.environ | {"PYTHONPATH": str(Path(cattn.__file__).parents[1])}
    done = subprocess.run([*script, *options], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "my-machine-2.json").read_text(encoding="utf-8"))


def fields(record: dict) -> list[set]:
    case = record["cases"][0]
    return [set(record), set(case), set(case["engines"]["cattn"])]


@pytest.mark.parametrize("file", sorted(report.RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_fields_are_those_of_the_records_kept(run, file):
    assert fields(run) == fields(json.loads(file.read_text(encoding="utf-8")))


def test_what_was_measured(run):
    assert [case["name"] for case in run["cases"]] == ["seed", "minilm"]
    assert run["threads"] == run["rounds"] == 1
    for case in run["cases"]:
        cattn, numpy = case["engines"]["cattn"], case["engines"]["NumPy"]
        assert not case["errors"]
        assert case["speedup"] == pytest.approx(numpy["seconds"] / cattn["seconds"], rel=1e-2)
        assert cattn["kappa"] < 2
    assert cattn["gflops"] == pytest.approx(CASES["minilm"].flops / cattn["seconds"] / 1e9, rel=1e-2)


def test_it_can_be_read(run):
    page = report.describe([run])
    assert "| 1 | seed | 1,1/1,3,3,3 |" in page
    assert report.summary_sentence(run) in page
