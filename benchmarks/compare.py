"""Attention on the CPU, engine against engine: `python benchmarks/compare.py --help`.

All engines run in one process, in interleaved rounds, on the processors that `--threads` leaves them; every answer is
checked against float64 before it is timed. What is not installed is left out by name.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")


def main() -> int:
    options = _parse()
    # The libraries read these when they are imported, and all imports come after this line.
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(options.threads)
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

    from report import print_report, save_plot
    from rich.console import Console

    from cattn._bench import CASES, CORE_CASES, limited

    console = Console(width=None if sys.stdout.isatty() else 150)
    cases = _cases(options.cases, CASES, CORE_CASES)
    with limited(options.threads):
        report = _run(options, cases, console)
    print_report(console, report)
    if options.json:
        options.json.write_text(report.to_json())
    if options.plot:
        save_plot(report, options.plot)
    return int(any(result.check.wrong for row in report.rows for result in row.results if result.engine.is_cattn))


def _run(options: argparse.Namespace, cases: list, console):
    from limits import Limits
    from report import Machine, Report, Row
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cattn._bench import make_inputs

    with contextlib.ExitStack() as stack:
        engines = _engines(options, console, stack)
        limits = Limits(options.threads)
        machine = Machine.measured(options.threads, limits, engines)
        rows = []
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=case.name)
                inputs = make_inputs(case)
                limit = max(case.flops / machine.peak_flops, inputs.nbytes / limits.read_bandwidth(inputs.nbytes))
                rows.append(Row(case, limit, *_measure(options, case, inputs, engines)))
                progress.advance(task)
    return Report(machine, engines, rows)


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


def _measure(options: argparse.Namespace, case, inputs, engines: list) -> tuple[list, dict[str, str]]:
    """The engines' results, and the errors of those that have none."""
    from answer import expected
    from report import Result

    from cattn._bench import measure

    answer = expected(case, inputs)
    timers, checks, errors = {}, {}, {}
    for engine in engines:
        if not engine.supports(case):
            continue
        try:
            prepared = engine.prepare(case, inputs)
            checks[engine.name] = answer.check(prepared.result())
            timers[engine.name] = prepared.timer
        except Exception as error:  # whatever it is, it is a line in the report
            errors[engine.name] = f"{type(error).__name__}: {error}"
    timings = measure(timers, rounds=options.rounds, seconds=options.seconds)
    results = [
        Result(engine, checks[engine.name], timings.median(engine.name), timings.samples[engine.name])
        for engine in engines
        if engine.name in timers
    ]
    return results, errors


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a chart: PNG, SVG or PDF by its name")
    options = parser.parse_args()
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds: expected at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
