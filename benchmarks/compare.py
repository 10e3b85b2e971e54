"""Attention on the CPU, engine against engine: `python benchmarks/compare.py --help`.

This is `cattn bench` with more engines, more cases and the machine's limits. It writes the records that `report.py`
reads. All engines run in one process, in interleaved rounds, on the processors that `--threads` leaves them. Every
answer is checked against float64 before it is timed. What is not installed is left out by name.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import peers
import report
import workloads
from limits import Limits
from rich.console import Console
from rich.markdown import Markdown

from cattn._bench.cases import find_cases
from cattn._bench.runs import RunError, Settings, Watcher, run
from cattn._cli import CommandError
from cattn._cli_bench import add_arguments, has_failed, settings_of


def main() -> int:
    options, settings = _parse()
    watcher = Watcher(settings)
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
    return int(has_failed(record))


def to_json(record: dict) -> str:
    """Return the record as JSON, with a line for each case."""
    head = json.dumps(record | {"cases": []}, indent=1, ensure_ascii=False).removesuffix("[]\n}")
    cases = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in record["cases"])
    return f"{head}[\n  {cases}\n ]\n}}\n"


def _commit() -> str | None:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(git, cwd=report.HERE, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _parse() -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2],
        allow_abbrev=False,
    )
    add_arguments(
        parser,
        seconds=5.0,
        engines=f"measure cattn, NumPy and these, among {', '.join(peers.ENGINES)}, and cattn-avx2 and so on, which is "
        f"cattn forced to a table (default: cattn-portable, and all but {peers.FlexAttention.name})",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="measure so many rounds a case, instead of --seconds")
    parser.add_argument("--machine", metavar="NAME", help="name the machine, instead of by its processor")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=report.RESULTS,
        metavar="PATH",
        help="write the run's record, to a file or into a folder; without a PATH to benchmarks/results/<machine>.json",
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    usual = find_cases(["core"], options.dtype)
    more = {"rounds": options.rounds, "limits": Limits}
    try:
        settings = settings_of(
            options, usual, peers.USUAL_ENGINES, cases=workloads.CASES, find_engine=peers.find_engine, **more
        )
    except CommandError as error:
        parser.error(str(error))
    return options, settings


if __name__ == "__main__":
    sys.exit(main())
