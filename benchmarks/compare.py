"""Attention on the CPU, engine against engine: `python benchmarks/compare.py --help`.

All engines run in one process, in interleaved rounds, on the processors that `--threads` leaves them; every answer is
checked against float64 before it is timed. What is not installed is left out by name.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")


def main() -> int:
    options = _parse()
    # The libraries read these when they are imported, and all imports come after this line.
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(options.threads)
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

    import report
    from record import to_json
    from rich.console import Console
    from rich.markdown import Markdown

    from cattn._bench import CASES, CORE_CASES, limited

    console = Console(width=max(Console().width, 200))  # what all engines' columns need
    cases = _cases(options.cases, CASES, CORE_CASES)
    with limited(options.threads):
        run = _run(options, cases, console)
    console.print(Markdown(report.describe([run])))
    if file := options.json:
        if file.is_dir():
            file /= report.name_of_file(run["machine"], run["threads"]) + ".json"
        file.write_text(to_json(run), encoding="utf-8")
        console.print(f"written: {file}", markup=False)
    return int(any(label.startswith("cattn") for case in run["cases"] for label in case["errors"]))


def _run(options: argparse.Namespace, cases: list, console) -> dict:
    """The record of it: see record.py."""
    from limits import Limits
    from record import run_record
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cattn._bench import make_inputs

    with contextlib.ExitStack() as stack:
        engines = _engines(options, console, stack)
        limits = Limits(options.threads)
        run = run_record(options, engines, limits)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=case.name)
                inputs = make_inputs(case)
                bandwidth = limits.read_bandwidth(inputs.nbytes)
                least_seconds = max(case.flops / (run["peak_gflops"] * 1e9), inputs.nbytes / bandwidth)
                measured, rounds = _measure(options, case, inputs, engines, least_seconds)
                run["cases"].append(measured)
                run["rounds"] = min(rounds, run["rounds"] or rounds)
                progress.advance(task)
    return run


def _engines(options: argparse.Namespace, console, stack: contextlib.ExitStack) -> list:
    from engines import make_engine

    engines = []
    for name in options.engines:
        try:
            engine = make_engine(name, options.threads)
        except ImportError as error:
            console.print(f"{name} is left out: {error}", style="dim", markup=False)
            continue
        except ValueError as error:
            sys.exit(str(error))
        stack.callback(engine.close)
        engines.append(engine)
    return engines


def _measure(options: argparse.Namespace, case, inputs, engines: list, least_seconds: float) -> tuple[dict, int]:
    """The case's record, and the rounds that it took."""
    from answer import expected
    from record import case_record

    from cattn._bench import measure

    answer = expected(case, inputs)
    timers, checks, errors = {}, {}, {}
    for engine in engines:
        if not engine.supports(case):
            continue
        try:
            prepared = engine.prepare(case, inputs)
            check = answer.check(prepared.result())
        except Exception as error:  # whatever it is, it is a line in the report
            errors[engine.label] = f"{type(error).__name__}: {error}"
            continue
        if check.wrong:
            errors[engine.label] = f"a wrong answer, κ {check.kappa:.3g}"
        else:
            timers[engine.label], checks[engine.label] = prepared.timer, check
    timings = measure(timers, rounds=options.rounds, seconds=options.seconds)
    return case_record(case, least_seconds, timings, checks, errors), timings.rounds


def _cases(names: list[str], cases, core) -> list:
    if names == ["core"]:
        return list(core)
    if names == ["all"]:
        return list(cases.values())
    if unknown := [name for name in names if name not in cases]:
        sys.exit(f"cases: expected core, all or some of {', '.join(cases)}, got {', '.join(unknown)}")
    return [cases[name] for name in names]


def _parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    engines = "cattn,cattn-portable,numpy,pytorch,ort-attention,ort-mha,ort-gqa,openvino,jax"
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads for each engine")
    parser.add_argument("--cases", type=names, default="core", metavar="A,B", help="names of cases, or core, or all")
    parser.add_argument(
        "--engines",
        type=names,
        default=engines,
        metavar="A,B",
        help="also cattn-avx2 and so on (cattn forced to a table), and pytorch-flex (compiles for each case)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds a case, instead of --seconds")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="time for a case's rounds; at least three"
    )
    parser.add_argument("--machine", metavar="NAME", help="what to call the machine, instead of by its processor")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="PATH",
        help="write the run's record, to a file or into a folder; without a PATH to benchmarks/results/<machine>.json",
    )
    options = parser.parse_args()
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds: expected at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
