"""The benchmarks' page and charts show what their records hold, and their cases have the right answers."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import limits
import numpy as np
import peers
import pytest
import workloads

import cattn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CHARTS = sorted(path.name for path in BENCHMARKS.glob("results/*.svg"))
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def report(folder):
    done = subprocess.run([sys.executable, folder / "report.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a folder with page and charts made from the records alone."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copy(BENCHMARKS / "report.py", folder)
    shutil.copytree(BENCHMARKS / "results", folder / "results", ignore=shutil.ignore_patterns("*.svg"))
    report(folder)
    return folder


@pytest.fixture
def written_of_halves(tmp_path):
    """Return a folder with the page of a run in half types that was never made. ORT Attention has float16 alone."""
    pytest.importorskip("matplotlib")
    run = json.loads((BENCHMARKS / "results" / "amd-zen-4.json").read_text(encoding="utf-8"))

    def case(dtype, **speeds_and_errors):
        engines = {
            label.replace("_", " "): dict(
                seconds=1e9 / speed, gflops=speed, error=error, kappa=0.1, over_one_thread=None
            )
            for label, (speed, error) in speeds_and_errors.items()
        }
        fields = {"name": f"bert-512-{dtype}", "shape": "1,12/12,512,512,64", "dtype": dtype, "causal": False}
        fields |= {"speedup": 2.0, "share_of_limit": 0.75, "refused_rounds": 0, "outside_load": None}
        return fields | {"engines": engines, "errors": {}}

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


def rows_of(page):
    """Yield the rows of each machine's table, as dictionaries."""
    for section in page.split("\n## ")[1:]:
        head, _, *rows = (
            [cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line[:1] == "|"
        )
        yield [dict(zip(head, row, strict=True)) for row in rows]


def calls_a_second(figure):
    """Return the time that a figure of the page states, or else its rate."""
    number, _, unit = figure.strip("*()†‡").partition("\u00a0")
    return {"µs": 1e6, "ms": 1e3, "s": 1}[unit] / float(number) if unit else float(number)


def test_no_figure_of_more_threads_stands_unmarked_at_half_the_speed_of_one():
    """No machine makes 69 GFLOP/s with one thread and 11 with two, as the page once said of PyTorch at bert-128."""
    several = 0
    for rows in rows_of((BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")):
        alone = {row["case"]: row for row in rows if row["threads"] == "1"}
        for row in rows:
            for label in list(row)[5:] if row["threads"] != "1" else ():
                one, more = alone[row["case"]][label], row[label]
                if "-" not in (one, more):
                    several += 1
                    assert "†" in more or calls_a_second(more) > calls_a_second(one) / 2, (row["case"], label)
    assert several > 300


@pytest.fixture(scope="module")
def written_of_disturbed(tmp_path_factory):
    """Return a folder with the page of a run in which three cases were disturbed, the page, and its rows by case."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("disturbed")
    run = json.loads((BENCHMARKS / "results" / "amd-zen-4-2-threads.json").read_text(encoding="utf-8"))
    cases = {case["name"]: case for case in run["cases"]}
    for case in cases.values():
        case |= {"refused_rounds": 0, "outside_load": 0.02}
        for result in case["engines"].values():
            result["over_one_thread"] = 0.6
    cases["bert-128"]["engines"]["PyTorch"]["over_one_thread"] = 6.19  # 69 GFLOP/s with one thread
    cases["batch"]["engines"]["JAX"]["over_one_thread"] = 2.0  # 78 with one: with two it might be the fastest peer
    cases["vit"] |= {"refused_rounds": 6, "outside_load": 0.75}
    (folder / "results").mkdir()
    (folder / "results" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    shutil.copy(BENCHMARKS / "report.py", folder)
    report(folder)
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    (rows,) = rows_of(page)
    return folder, page, {row["case"]: row for row in rows}


def test_figures_of_engines_that_were_held_up_are_flagged(written_of_disturbed):
    _, page, rows = written_of_disturbed
    flagged = {(name, label): cell for name, row in rows.items() for label, cell in row.items() if "†" in cell}
    assert flagged == {
        ("bert-128", "PyTorch"): "(11.2)†",
        ("batch", "JAX"): "(38.8)†",
        ("batch", "× fastest peer"): "(1.27)†",
    }
    assert "- 2 threads: † slower than with one thread (times): PyTorch in bert-128 (6.2), JAX in batch (2).\n" in page


def test_disturbed_cases_are_flagged_and_count_nowhere(written_of_disturbed):
    folder, page, rows = written_of_disturbed
    for name, row in rows.items():
        figures = [cell.strip("*") for cell in list(row.values())[3:] if cell != "-"]
        assert all(re.fullmatch(r"\(.+\)‡", figure) for figure in figures) == (name == "vit")
    assert "- 2 threads: ‡ disturbed by other programs (processors): vit (0.75).\n" in page
    assert "; disturbed rounds measured again 6; other programs 0.75 processors at most; " in page
    assert f"| AMD Zen 4 | 2 | {len(rows) - 1} |" in page
    chart = ElementTree.parse(folder / "results" / "amd-zen-4.svg").find(f".//{DESCRIPTION}").text
    assert "bert-128, 2 threads" in chart and "vit, 2 threads" not in chart


def test_page_is_generated(written):
    assert (written / "RESULTS.md").read_bytes() == (BENCHMARKS / "RESULTS.md").read_bytes()


def test_every_machine_has_its_chart(written):
    assert CHARTS
    assert sorted(path.name for path in written.glob("results/*.svg")) == CHARTS


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_generated(written, name):
    """The test compares what charts tell of their data. How lines are drawn depends on matplotlib's version."""
    new, kept = (ElementTree.parse(folder / "results" / name) for folder in (written, BENCHMARKS))
    assert len(new.find(f".//{DESCRIPTION}").text) > 100
    assert new.find(f".//{DESCRIPTION}").text == kept.find(f".//{DESCRIPTION}").text


@pytest.mark.slow
def test_same_bytes_again(written):
    before = {path: path.read_bytes() for path in written.rglob("*.*") if path.suffix in (".svg", ".md")}
    report(written)
    assert before == {path: path.read_bytes() for path in before}


# What `benchmarks/` has and `cattn bench` has not


SMALL = {
    "packed": workloads.Packed("", 3, 4, 2, 17, 17, 8, lengths=(5, 1, 17)),
    "self-attention": workloads.Layer("", 1, 3, 3, 20, 20, 8),
    **{name: workloads.CASES[f"minilm-{name}"] for name in (*workloads.MODIFIERS, "causal")},
}


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("engine", ["cattn", "numpy"])
def test_answers_of_cases_are_right(case, engine):
    inputs = case.make_inputs()
    check = case.answer(inputs).check(peers.find_engine(engine)(1).prepare(case, inputs).result())
    assert not check.wrong and check.kappa < 2 and check.error < 10


def test_answers_in_blocks_are_those_of_the_whole():
    """A window is computed in blocks of 512 rows, each with its own keys."""
    window = workloads.Workload("", 2, 2, 1, 520, 520, 4, causal=True, modifier="window")
    for case in (window, dataclasses.replace(window, causal=False, modifier="alibi", lengths=(520, 300))):
        inputs = case.make_inputs()
        expected = cattn.reference.attention(*inputs.arrays, **inputs.options)
        np.testing.assert_allclose(case.answer(inputs).out, expected, rtol=0, atol=1e-13)


def test_another_kernel_table_is_an_engine_of_its_own():
    case = workloads.CASES["seed"]
    engine = peers.find_engine("cattn-portable")(1)
    try:
        prepared = engine.prepare(case, case.make_inputs())
        assert not case.answer(case.make_inputs()).check(prepared.result()).wrong
        assert prepared.timer.timeit(3) > 0
    finally:
        engine.close()


@pytest.mark.slow
def test_amx_is_a_limit_of_bfloat16():
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    if "amx_bf16" not in flags or not shutil.which("cc"):
        pytest.skip("no AMX for bfloat16, or no C compiler")
    machine = limits.Limits()
    assert machine.method == "C"
    # A tile multiplies 16 times as many pairs a cycle as two vectors of float32 do: VDPBF16PS twice as many at most.
    assert machine.peak_flops("bfloat16") > 4 * machine.peak_flops("float32")
