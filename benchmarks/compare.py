"""Attention on the CPU, engine against engine: `python benchmarks/compare.py --help`.

All engines run in one process, in interleaved rounds, on the processors that `--threads` leaves them; every answer is
checked against float64 before it is timed. What is not installed is left out by name.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import report
from rich.console import Console
from rich.markdown import Markdown

from cattn._bench.cases import DTYPES, find_cases
from cattn._bench.engines import ENGINES, USUAL_ENGINES
from cattn._bench.progress import progress
from cattn._bench.record import to_json
from cattn._bench.runs import RunError, Settings, run


def main() -> int:
    options = _parse()
    settings = Settings(options.cases, options.engines, options.threads, options.rounds, options.seconds)
    with progress(settings.turns) as watcher:
        try:
            record = run(settings, watcher)
        except RunError as error:
            sys.exit(str(error))
    record["machine"] = options.machine or record["machine"]
    record["commit"], record["command"] = _commit(), shlex.join(["python", *sys.argv])

    console = Console(width=max(Console().width, 300 if options.dtype else 200))  # what all engines' columns need
    for label, reason in watcher.left_out.items():
        console.print(f"{label} is left out: {reason}", style="dim", markup=False)
    console.print(Markdown(report.describe([record])))
    if file := options.json:
        if file.is_dir():
            file /= report.name_of_file(record) + ".json"
        file.write_text(to_json(record), encoding="utf-8")
        console.print(f"written: {file}", markup=False)
    return int(any(label.startswith("cattn") for case in record["cases"] for label in case["errors"]))


def _commit() -> str | None:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(git, cwd=report.HERE, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads for each engine")
    parser.add_argument("--cases", type=names, default="core", metavar="A,B", help="names of cases, or core, or all")
    parser.add_argument(
        "--dtype",
        type=names,
        default=[],
        metavar="A,B",
        help=f"the types to run them in, among {', '.join(DTYPES)}, instead of their own; core cases are fewer in half "
        "types",
    )
    parser.add_argument(
        "--engines",
        type=names,
        default=",".join((*USUAL_ENGINES[:2], "cattn-portable", *USUAL_ENGINES[2:])),
        metavar="A,B",
        help="also cattn-avx2 and so on (cattn forced to a table), and pytorch-flex (compiles for each case); "
        "cattn-float32 has its turn in half types: the same numbers in float32",
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
        const=report.RESULTS,
        metavar="PATH",
        help="write the run's record, to a file or into a folder; without a PATH to benchmarks/results/<machine>.json",
    )
    options = parser.parse_args()
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds: expected at least 1")
    if unknown := [name for name in options.dtype if name not in DTYPES]:
        parser.error(f"--dtype: expected some of {', '.join(DTYPES)}, got {', '.join(unknown)}")
    if unknown := [name for name in options.engines if name not in ENGINES and not name.startswith("cattn-")]:
        parser.error(f"--engines: expected some of {', '.join(ENGINES)}, cattn-portable, got {', '.join(unknown)}")
    try:
        options.cases = find_cases(options.cases, options.dtype)
    except ValueError as error:
        parser.error(f"--cases: {error}")
    return options


if __name__ == "__main__":
    sys.exit(main())
