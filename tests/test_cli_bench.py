"""`cattn bench`, run as its users run it; and its parts, which `benchmarks/` shares: cases, checks of answers, runs."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import timeit
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import environment, run_python, slow

import cattn
from cattn import _cli_bench
from cattn._bench import cases, chart, engines, load, runs, timing
from cattn._bench import record as recording
from cattn._cli import main

RECORDS = sorted(Path(__file__).parents[1].glob("benchmarks/results/*.json"))


@pytest.fixture
def fails(capsys):
    """Return what returns the one line that the command says before it ends with status 2, in this process."""

    def fails(*arguments):
        try:
            status = main(["bench", *arguments])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert (status, said.out) == (2, "")
        (line,) = said.err.splitlines()
        assert line.startswith("cattn bench: error: ")
        return line

    return fails


# The command


def rows_of(table):
    """Return the words of each row below the headings."""
    lines = table.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("case, ")) + 1
    return [line.split() for line in lines[start : lines.index("", start)]]


HALF_A_MODULE = """
def attention(query, key, value, causal):
    import cattn
    return cattn.reference.attention(query, key, value, causal=causal).astype(query.dtype)
"""


@pytest.fixture(scope="module")
def without_rests(tmp_path_factory):
    """In the processes that tests start, no engine waits until its neighbour's workers rest: nobody reads the times."""
    folder = tmp_path_factory.mktemp("without_rests")
    (folder / "sitecustomize.py").write_text("from cattn._bench import timing\ntiming.REST_SECONDS = 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        yield


def test_table(tmp_path, without_rests):
    """It needs nothing but NumPy, and finds a function in the current folder, where a script does not look."""
    (tmp_path / "mine.py").write_text(HALF_A_MODULE)
    code = (
        "import sys; sys.modules |= dict.fromkeys(['rich', 'matplotlib', 'ml_dtypes']);"
        "sys.path.remove('');"
        "from cattn._cli import main; sys.exit(main())"
    )
    arguments = "--case", "seed,minilm", "--seconds", "0.01", "--engine", "mine:attention,nix:attention"
    done = run_python("-c", code, "bench", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert [row[0] for row in rows if len(row) == 1] == ["seed", "minilm"]
    assert [row[0] for row in rows if len(row) > 1] == ["cattn", "NumPy", "mine:attention"] * 2
    assert done.stdout.startswith(f"cattn {cattn.__version__} (table {cattn._kernel.isa()}) on ")
    assert done.stdout.endswith("\nNot started\n  nix:attention: No module named 'nix'\n")
    assert "1 of 2: seed\n2 of 2: minilm\n" in done.stderr


@pytest.fixture(scope="module")
def record(without_rests):
    """Return the record of a problem of the user's own, in a half type, with two threads if there are two."""
    threads = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    options = "bench", "--shape", "2,4/2,60,60,8", "--causal", "--dtype", "float16", "--threads", str(threads)
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cattn", *options])
        assert main([*options, "--seconds", "0.01", "--json"]) == 0
    return json.loads(printed.getvalue()) | {"asked": threads}


def test_json_is_what_was_measured(record):
    (case,) = record["cases"]
    assert (case["name"], case["shape"]) == ("2,4/2,60,60,8-causal-float16", "2,4/2,60,60,8")
    assert (case["dtype"], case["causal"], case["errors"]) == ("float16", True, {})
    assert record["threads"] == record["asked"]
    assert record["rounds"] >= 3
    assert record["command"].startswith("cattn bench --shape 2,4/2,60,60,8 --causal")
    found = case["engines"]
    assert {"cattn", "cattn float32", "NumPy"} <= set(found)
    assert all(result["seconds"] > 0 for result in found.values())
    assert case["refused_rounds"] >= 0
    for result in found.values():  # what is measured first, with one thread, is what it is compared with
        assert (result["over_one_thread"] is None) == (record["threads"] == 1)
    assert found["cattn float32"]["error"] < 0.01 < found["cattn"]["error"] < 1


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_json_is_a_record_like_those_of_the_benchmarks(record, file):
    def fields(record):
        case = record["cases"][0]
        return set(record) - {"asked"}, set(case), set(case["engines"]["cattn"])

    assert fields(record) == fields(json.loads(file.read_text(encoding="utf-8")))


def test_disturbed_figures_are_named(record, capsys):
    (case,) = record["cases"]
    calm = {label: result | {"over_one_thread": 1.25} for label, result in case["engines"].items()}
    slowed = calm | {"NumPy": calm["NumPy"] | {"over_one_thread": 5.14}}
    for engines_, load_, expected in (
        (calm, 0.05, []),
        (slowed, None, [f"{case['name']}: NumPy took 5.1 times as long as with one thread"]),
        (calm, 0.83, [f"{case['name']}: other programs took 0.83 processors meanwhile"]),
    ):
        _cli_bench._print_record(record | {"cases": [case | {"engines": engines_, "outside_load": load_}]}, {})
        said = [line.strip() for line in capsys.readouterr().out.partition("Disturbed\n")[2].splitlines()]
        assert said == expected


def test_plot(record, tmp_path):
    """The chart has a mark for each engine, where its ratio is."""
    pytest.importorskip("matplotlib")
    _cli_bench._write_plot(record, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = chart.draw_engines(record).axes
    marks = {line.get_label(): line.get_xdata() for line in axes.lines if not line.get_label().startswith("_")}
    engines = dict(record["cases"][0]["engines"])
    seconds = engines.pop("cattn")["seconds"]
    assert marks == {label: [result["seconds"] / seconds] for label, result in engines.items()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cas", "seed"], "unrecognized arguments: --cas seed"),
        (["--case", "bert128"], "--case: expected core, all or the name of a case, such as bert-128; got 'bert128'"),
        (["--shape", "1,2,3"], "--shape: expected B,Hq/Hkv,Lq,Lk,D, such as 1,32/8,1,4096,128; got '1,2,3'"),
        (["--shape", "1,8/3,4,4,8"], "--shape: expected Hq to be a multiple of Hkv, got 8 and 3"),
        (["--shape", "1,8,0,4,8"], "--shape: expected sizes of at least 1"),
        (["--shape", "1,8/0,4,4,8"], "--shape: expected sizes of at least 1"),
        (["--shape", "1,8,4,5,8", "--causal"], "--shape: expected as many queries as keys where it is causal"),
        (
            ["--engine", "torch"],
            "--engine: expected cattn, cattn-float32, numpy, pytorch, or a function as module:function",
        ),
        (["--shape", "9,99,99999,99999,999"], "9,99/99,99999,99999,999: expected arrays that fit the memory"),
        (["--causal"], "--causal: expected a --shape beside it"),
        (["--dtype", "float8"], "--dtype: expected some of float32, float64, float16, bfloat16, got float8"),
        (["--threads", "0"], "--threads: expected a whole number of at least 1, got '0'"),
        (["--threads", "two"], "--threads: expected a whole number of at least 1, got 'two'"),
        (["--threads", "99999"], "--threads: expected at most"),
        (["--seconds", "-1"], "--seconds: expected a number above 0, got '-1'"),
        (["--seconds", "nan"], "--seconds: expected a number above 0, got 'nan'"),
    ],
)
def test_bad_values_are_said_in_a_line(fails, arguments, message):
    assert message in fails(*arguments)


@pytest.mark.parametrize("name", ["chart.gif2", "no-folder/chart.png", "chart", "."])
def test_places_for_no_chart_are_said_before_anything_is_measured(fails, name):
    pytest.importorskip("matplotlib")
    line = fails("--plot", name)
    assert "--plot: expected a" in line and repr(name) in line


@pytest.mark.parametrize(
    "module, arguments, extra",
    [("matplotlib", ["--plot", "x.png"], "cattn[plot]"), ("ml_dtypes", ["--dtype", "bfloat16"], "cattn[bench]")],
)
def test_what_is_missing_is_said_with_its_extra(monkeypatch, fails, module, arguments, extra):
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert f"needs {module}: pip install '{extra}'" in fails(*arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_ctrl_c_ends_it():
    command = [sys.executable, "-m", "cattn", "bench", "--case", "seed", "--seconds", "600"]
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment(), "start_new_session": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's jobs may ignore it
    with subprocess.Popen(command, cwd=Path(__file__).parent, **options) as process:
        assert process.stderr.readline() == "1 of 1: seed\n"
        os.killpg(process.pid, signal.SIGINT)
        # To its end, which comes when the process that measures is gone, too: by itself after 51 rounds, 17 seconds.
        _, said = process.communicate(timeout=10)
    assert process.returncode != 0
    assert said == ""


# Runs


class Fake(engines.Engine):
    """An engine whose answer is zeros, or an error."""

    package = "numpy"

    def __init__(self, name, error=None, missing=False):
        self.name = self.label = name
        self.error, self.missing, self.timed = error, missing, 0

    def __call__(self, threads):
        if self.missing:
            raise ImportError("No module named 'fake'")
        return self

    def prepare(self, case, inputs):
        if self.error:
            raise self.error
        return engines.Prepared(timeit.Timer(self.work), lambda: np.zeros_like(inputs.arrays[0]))

    def work(self):
        self.timed += 1


def settings(*names, titles=("seed",), **options):
    return runs.Settings(cases.find_cases(titles), {name: engines.find_engine(name) for name in names}, **options)


@pytest.mark.parametrize("dtype", ["float32", slow("float64"), slow("float16"), slow("bfloat16")])
def test_wrong_answers_are_said_and_not_timed(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    fakes = Fake("wrong"), Fake("broken", error=RuntimeError("two\nlines")), Fake("missing", missing=True)
    case = cases.case_of_shape("1,2,64,64,16", dtype)
    asked = runs.Settings([case], {"numpy": engines.NumPy} | {fake.name: fake for fake in fakes}, rounds=1)
    watcher = runs.Watcher(asked)
    record = runs.run_here(asked, watcher)
    (found,) = record["cases"]
    assert set(found["engines"]) == {"NumPy"}
    assert set(found["errors"]) == {"wrong", "broken"}
    assert found["errors"]["wrong"].startswith("a wrong answer, off by ")
    assert found["errors"]["broken"] == "RuntimeError: two lines"
    assert [fake.timed for fake in fakes] == [0, 0, 0]
    assert watcher.left_out == {"missing": "No module named 'fake'"}


def test_scores_beyond_the_memory_are_not_tried(monkeypatch):
    """Engines that keep their scores are left out."""
    monkeypatch.setattr(runs, "memory_bytes", lambda: 1 << 20)
    asked = replace(settings("cattn", "numpy", rounds=1), cases=[cases.case_of_shape("1,1,512,512,4")])
    record = runs.run_here(asked, runs.Watcher(asked))
    (case,) = record["cases"]
    assert set(case["engines"]) == {"cattn"}
    assert case["errors"] == {"NumPy": "MemoryError: queries × keys of all heads would take 0.0 GiB"}


def test_limits_of_the_machine_are_recorded():
    class Limits:
        method = "fake"

        def __init__(self, threads):
            self.peak_flops = self.read_bandwidth = lambda _=None: 1e9 * threads

        def least_seconds(self, case, inputs):
            return 1e-9

    asked = settings("cattn", titles=["minilm"], rounds=1, limits=Limits)
    record = runs.run_here(asked, runs.Watcher(asked))
    (case,) = record["cases"]
    assert (record["peak_gflops"], record["bandwidth_gb_s"], record["limits_by"]) == (1, 1, "fake")
    assert case["share_of_limit"] == pytest.approx(1e-9 / case["engines"]["cattn"]["seconds"], rel=1e-2)


def test_a_process_that_dies_is_said(capfd):
    with pytest.raises(runs.RunError, match="the process that measures ended with status 1"):
        asked = runs.Settings(["no case"], {"cattn": engines.Cattn})
        runs.run(asked, runs.Watcher(asked))
    assert "AttributeError" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed there")
def test_a_process_that_is_killed_is_said():
    class Killer(runs.Watcher):
        def begin(self, title):
            (process,) = multiprocessing.active_children()
            process.kill()

    asked = settings("cattn", seconds=600)
    with pytest.raises(runs.RunError, match="status -9; it was killed, as systems do where memory runs out"):
        runs.run(asked, Killer(asked))


def test_wrong_answers_of_cattn_are_a_failure(monkeypatch, capsys):
    def run(asked, watcher):
        record = runs.run_here(settings("numpy", rounds=1), watcher)
        record["versions"]["cattn"] = "0"
        record["cases"][0]["errors"]["cattn"] = "a wrong answer, off by 1e+06 eps·Σp|v|"
        return record

    monkeypatch.setattr(runs, "run", run)
    assert main(["bench", "--case", "seed"]) == 1
    assert "Not timed\n  seed: cattn: a wrong answer" in capsys.readouterr().out


def test_times_have_three_digits_and_no_exponent():
    times = {5.284e-7: "0.528 µs", 9.99e-4: "999 µs", 9.996e-4: "1 ms", 0.0999: "99.9 ms", 1.2: "1.2 s", 1e4: "10000 s"}
    assert {seconds: timing.format_seconds(seconds) for seconds in times} == times


# Rounds that are disturbed


@pytest.fixture
def measure_two_rounds(monkeypatch):
    """Return what measures an engine in told rounds: the seconds of a call, and the processors that others take."""

    class Engine:
        seconds = 1.0

        def timeit(self, number):
            return number * self.seconds

    def measure_two_rounds(told, **options):
        engine, rounds = Engine(), iter(told)

        class Load:
            def __init__(self):
                engine.seconds, self.load = next(rounds)

            def processors(self):
                return self.load

        monkeypatch.setattr(timing, "OutsideLoad", Load)
        monkeypatch.setattr(timing, "REST_SECONDS", 0)
        found = timing.measure({"engine": engine}, rounds=2, **options)
        return found.samples["engine"], found.refused, found.outside_load

    return measure_two_rounds


def test_rounds_are_measured_again_where_others_are_busy(measure_two_rounds):
    assert measure_two_rounds([(1, 0.02), (1, 0.8), (9, 0.2), (2, 0.04)]) == ((1, 2), 2, pytest.approx(0.03))


def test_rounds_are_measured_again_where_threads_are_held_up(measure_two_rounds):
    told = [(1.2, 0.0), (6.2, 0.0), (1.31, 0.0), (1.29, 0.0)]
    assert measure_two_rounds(told, one_thread={"engine": 1.0}) == ((1.2, 1.29), 2, 0)
    assert measure_two_rounds(told) == ((1.2, 6.2), 0, 0)


def test_disturbed_rounds_are_kept_where_there_is_no_end_of_them(measure_two_rounds):
    told = [(5, 0.9)] * (timing.MAX_REFUSED + 2)
    assert measure_two_rounds(told, one_thread={"engine": 1.0}) == ((5, 5), timing.MAX_REFUSED, pytest.approx(0.9))


def test_rounds_count_where_no_system_says_who_is_busy(measure_two_rounds):
    assert measure_two_rounds([(1, None), (2, None)]) == ((1, 2), 0, None)


@pytest.mark.skipif(load.OutsideLoad().processors() is None, reason="this system does not say who is busy")
class TestOutsideLoad:
    """These run on one processor, which others may use meanwhile."""

    SECONDS = 0.3
    SPIN = f"import time\nstart = time.process_time()\nwhile time.process_time() - start < {SECONDS}: pass"

    @pytest.fixture(autouse=True)
    def one_processor(self):
        with timing.limited(1):
            yield

    def test_other_programs_count(self):
        outside = load.OutsideLoad()
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", self.SPIN], check=True)
        share = self.SECONDS / (time.perf_counter() - started)
        assert outside.processors() > share - 0.2

    def test_this_program_does_not(self):
        outside = load.OutsideLoad()
        started, spun = time.perf_counter(), time.process_time()
        while time.process_time() - spun < self.SECONDS:
            pass
        share = self.SECONDS / (time.perf_counter() - started)
        assert outside.processors() < 1.2 - share

    def test_workers_of_this_program_do_not(self):
        worker = multiprocessing.get_context("spawn").Process(target=sum, args=(range(10**12),))
        worker.start()
        try:
            while load._ticks_of_workers() < 0.5 * os.sysconf("SC_CLK_TCK"):  # it has begun
                time.sleep(0.01)
            outside, started, ticks = load.OutsideLoad(), time.perf_counter(), load._ticks_of_workers()
            while (taken := load._ticks_of_workers() - ticks) < self.SECONDS * os.sysconf("SC_CLK_TCK"):
                time.sleep(0.01)
            share = taken / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - started)
            assert outside.processors() < 1.2 - share
        finally:
            worker.kill()
            worker.join()


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3\n", "cpu0 a b\n", "cpu0 0 0 0 0 0 0 0 0 0 0\n"])
def test_outside_load_is_unknown_where_no_file_says_it(monkeypatch, tmp_path, text):
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(load, "PROC", tmp_path)
    with timing.limited(1) if hasattr(os, "sched_setaffinity") else contextlib.nullcontext():
        assert load.OutsideLoad().processors() is None


# Cases and answers


@pytest.mark.skipif(os.name == "nt", reason="a script takes the place of lscpu")
@pytest.mark.parametrize(
    ("command", "told"), [("lscpu", "Architecture: aarch64\nModel name:   Neoverse-N2\n"), ("sysctl", "Neoverse-N2\n")]
)
def test_processors_without_a_name_in_cpuinfo_are_named(monkeypatch, tmp_path, command, told):
    script = tmp_path / command
    script.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    script.chmod(0o755)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    monkeypatch.setattr(recording, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recording.processor_name() == "Neoverse-N2"


def test_cases_are_found():
    assert [case.title for case in cases.find_cases(["core"])] == [case.name for case in cases.CORE_CASES]
    assert [case.title for case in cases.find_cases(["bert-128", "vit"], ["float16", "float64"])] == [
        "bert-128-float16",
        "vit-float16",
        "bert-128-float64",
        "vit-float64",
    ]
    (same,) = cases.find_cases(["bert-128", "bert-128-bfloat16"], ["float16"])
    assert same == cases.find_cases(["bert-128-float16"])[0]
    halves = cases.find_cases(["core"], ["bfloat16"])
    assert [case.name for case in halves] == list(cases.HALF_NAMES)
    assert all(case.shape == cases.case_of_shape(case.shape).name for case in cases.CASES.values())
    assert cases.find_cases(["all"]) == list(cases.CASES.values())


@pytest.mark.parametrize("title", ["2,4/2,70,90,8", "1,2,600,600,8-causal", "1,2/1,9,40,4-float64"])
def test_answers_are_the_references(title):
    """Answers are computed in blocks of 512 rows."""
    shape, *_ = title.split("-")
    case = cases.case_of_shape(shape, "float64" if "float64" in title else "float32", "causal" in title)
    inputs = case.make_inputs()
    expected = cattn.reference.attention(*inputs.arrays, causal=case.causal)
    np.testing.assert_allclose(case.answer(inputs).out.astype(np.float64), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype, eps", [("float32", 2**-23), ("float16", 2**-10), ("bfloat16", 2**-7)])
def test_errors_are_counted_in_eps_of_the_type(dtype, eps):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    case = cases.case_of_shape("1,2,30,40,8", dtype)
    inputs = case.make_inputs()
    query, key, value = (array.astype(np.float64) for array in inputs.arrays)
    out = cattn.reference.attention(query, key, value)
    size = cattn.reference.attention(query, key, abs(value))
    found = case.answer(inputs)
    assert found.check(out).error < 1e-3
    out[0, 1, 7, 3] -= 3 * eps * size[0, 1, 7, 3]
    assert found.check(out).error == pytest.approx(3, rel=1e-6)
    assert not found.check(out).wrong
    out[0, 1, 7, 3] = np.nan
    assert found.check(out).wrong
