"""compare.py writes a record that report.py reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import report
from workloads import CASES

import cattn

pytest.importorskip("rich")
pytest.importorskip("threadpoolctl")


def compare(*options):
    script = [sys.executable, report.HERE / "compare.py", "--rounds", "1", "--machine", "My machine (2)"]
    environment = os.environ | {"PYTHONPATH": str(Path(cattn.__file__).parents[1])}
    return subprocess.run([*script, *options], capture_output=True, text=True, timeout=120, env=environment)


def record(folder, name, *options):
    done = compare(*options, "--json", folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the record of a short run."""
    folder = tmp_path_factory.mktemp("records")
    return record(folder, "my-machine-2.json", "--case", "seed,minilm", "--engine", "numpy")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Return the record of a short run in half types."""
    pytest.importorskip("ml_dtypes")
    folder = tmp_path_factory.mktemp("records")
    options = ("--case", "minilm", "--dtype", "bfloat16,float16", "--engine", "numpy")
    return record(folder, "my-machine-2-bfloat16-and-float16.json", *options)


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


def test_half_types(halves):
    """An answer that is rounded to a half type at its end is up to half an eps off. In float32 it is much closer."""
    assert [(case["name"], case["dtype"]) for case in halves["cases"]] == [
        ("minilm-bfloat16", "bfloat16"),
        ("minilm-float16", "float16"),
    ]
    assert fields(halves)[2] == {"seconds", "gflops", "error", "kappa", "over_one_thread"}
    for case in halves["cases"]:
        assert not case["errors"]
        errors = {label: result["error"] for label, result in case["engines"].items()}
        assert 0.05 < errors["NumPy"] <= 0.5
        assert 0.05 < errors["cattn"] < 1
        assert errors["cattn float32"] < 0.01
        assert case["engines"]["cattn"]["kappa"] is None


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dtype", "float8"], "--dtype: expected some of float32, float64, float16, bfloat16, got float8"),
        (["--case", "bert128"], "such as bert-128; got 'bert128'"),
        (["--engines", "torch"], "--engine: expected some of cattn, cattn-float32, numpy, pytorch"),
    ],
)
def test_wrong_names_are_said(options, message):
    done = compare(*options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
