"""``cattn bench`` measures cattn beside NumPy, and beside the engines that are named, on this machine."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from cattn._bench.cases import CASES, CORE_CASES, DTYPES, case_of_shape, core_cases, find_cases
from cattn._cli import CommandError, check_matplotlib, one_line, print_json, print_table

# These take half a minute, and each of them says something else.
USUAL_CASES = ("seed", "minilm", "bert-128", "bert-512", "long-2k-d128", "long-2k-d128-causal", "decode-4k")

# If slow rounds take so many times as long as fast ones, the figures are worth less than they look.
BUSY = 1.3


def add_parser(commands):
    parser = commands.add_parser(
        "bench",
        help="measure cattn beside NumPy and the engines that you name",
        description="Measure cattn on this machine, beside NumPy and the engines that you name. Every answer is "
        "checked against float64 before it is timed.",
        epilog=f"The core cases are {', '.join(case.name for case in CORE_CASES)}. "
        f"Without --case and --shape, these are measured: {', '.join(USUAL_CASES)}.",
        allow_abbrev=False,
    )
    add_arguments(
        parser,
        seconds=2.0,
        engines="measure these too: pytorch, or a function of yours, module:function, which is called with query, key, "
        "value and causal=; may be repeated",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the ratios to this file")
    parser.add_argument("--json", action="store_true", help="print the record of the run as JSON, instead of a table")


def add_arguments(parser, *, seconds, engines):
    """Add the arguments that `settings_of` reads. `engines` says which ones there are besides cattn and NumPy."""
    parser.add_argument(
        "--case",
        "--cases",
        type=_names,
        action="extend",
        metavar="A,B",
        help="measure the cases of these names, or core, or all; may be repeated",
    )
    parser.add_argument(
        "--shape",
        action="append",
        metavar="B,Hq/Hkv,Lq,Lk,D",
        help="measure your own shape: batch, query heads/key heads, queries, keys, head size; may be repeated",
    )
    parser.add_argument("--causal", action="store_true", help="make the shapes causal: row i sees keys 0 to i")
    parser.add_argument(
        "--dtype",
        type=_dtypes,
        default=[],
        metavar="A,B",
        help=f"set the types of all arrays, among {', '.join(DTYPES)} (default: float32, or the case's own)",
    )
    parser.add_argument(
        "--engine",
        "--engines",
        type=_names,
        action="extend",
        metavar="A,B",
        help=engines,
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="set the threads of each engine (default: 1)"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=seconds,
        metavar="S",
        help=f"set the time for the rounds of a case, three at least (default: {seconds:g})",
    )


def run(options):
    if options.plot:
        _check_plot(options.plot)
    usual = [case for dtype in options.dtype or ["float32"] for case in core_cases(dtype) if case.name in USUAL_CASES]
    if any(":" in name for name in options.engine or ()):
        sys.path.insert(0, os.getcwd())  # The user's function may lie here, where a script does not look.
    settings = settings_of(options, usual)

    from cattn._bench import runs

    watcher = runs.Watcher(settings)
    try:
        record = runs.run(settings, watcher)
    except runs.RunError as error:
        raise CommandError(error) from error
    record["command"] = shlex.join(["cattn", *sys.argv[1:]])

    if options.json:
        print_json(record)
    else:
        _print_record(record, watcher.left_out)
    if options.plot:
        _write_plot(record, options.plot)
    return int(has_failed(record))


def has_failed(record):
    """Return whether cattn gave a wrong answer or none."""
    return any(label.startswith("cattn") for case in record["cases"] for label in case["errors"])


def settings_of(options, usual_cases, usual_engines=(), *, cases=CASES, find_engine=None, **more):
    """Return the settings of a run for the arguments of the command line, or raise CommandError.

    `cases` are those that can be named, and `find_engine` makes an engine of a name. `more` settings may be given.
    """
    from cattn._bench import engines, runs

    cases = _find_cases(options, cases) or usual_cases
    _check(options, cases)
    try:
        names = dict.fromkeys([*engines.ALWAYS, *(options.engine or usual_engines)])
        found = {name: (find_engine or engines.find_engine)(name) for name in names}
    except ValueError as error:
        raise CommandError(f"--engine: {error}") from error
    return runs.Settings(cases, found, options.threads, seconds=options.seconds, **more)


def _names(text):
    return text.split(",")


def _dtypes(text):
    if unknown := [name for name in _names(text) if name not in DTYPES]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(DTYPES)}, got {', '.join(unknown)}")
    return _names(text)


def _positive(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _seconds(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return seconds


def _find_cases(options, known):
    """Return the cases that were asked for."""
    if options.causal and not options.shape:
        raise CommandError("--causal: expected a --shape beside it; of the cases, take one such as long-2k-d128-causal")
    try:
        where = "--case"
        cases = find_cases(options.case or (), options.dtype, known)
        where = "--shape"
        for shape in options.shape or ():
            cases += [case_of_shape(shape, dtype, options.causal) for dtype in options.dtype or ["float32"]]
    except ValueError as error:
        raise CommandError(f"{where}: {error}") from error
    return cases


def _check(options, cases):
    """Check for what would otherwise fail after minutes, or end the process."""
    from cattn._bench.record import memory_bytes

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.threads > usable:
        raise CommandError(f"--threads: expected at most {usable}, the CPUs that it may use, got {options.threads}")
    if any(case.dtype == "bfloat16" for case in cases):
        try:
            import ml_dtypes  # noqa: F401
        except ImportError as error:
            raise CommandError("bfloat16 needs ml_dtypes: pip install 'cattn[bench]'") from error
    memory = memory_bytes()
    for case in cases:
        # There are the arrays, in float64 and as the engines keep them, the answer, and what errors are measured by.
        needed = case.batch * case.head_size * (100 * case.heads * case.queries + 80 * case.kv_heads * case.keys)
        if memory is not None and needed > 0.75 * memory:
            raise CommandError(
                f"{case.title}: expected arrays that fit the memory, of {memory / 2**30:.0f} GiB, for all engines and "
                f"the float64 answer; these would take {needed / 2**30:.0f} GiB"
            )


def _check_plot(file):
    check_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in formats:
        raise CommandError(f"--plot: expected a name that ends in .png, or .{', .'.join(formats)}; got {str(file)!r}")
    if not file.parent.is_dir() or file.is_dir():
        raise CommandError(f"--plot: expected a file in a folder that is there, got {str(file)!r}")


def _write_plot(record, file):
    from cattn._bench.chart import draw_engines

    try:
        draw_engines(record).savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise CommandError(f"--plot {file}: {one_line(error)}") from error
    print(f"chart: {file}", file=sys.stderr)


def _print_record(record, left_out):
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    print(f"cattn {record['versions']['cattn']} (table {record['isa']}) on {record['machine']}, {threads}\n")
    rows = [row for case in record["cases"] for row in _rows(case)]
    if rows:
        columns = [list(column) for column in zip(HEADINGS, *rows, strict=True)]
        for column in columns[1:]:
            width = max(map(len, column))
            column[:] = (cell.rjust(width) for cell in column)
        headings, *rows = zip(*columns, strict=True)
        print_table(rows, headings)
        print(NOTES)
    spread, name = max(((case["spread"] or 1, case["name"]) for case in record["cases"]), default=(1, ""))
    if spread > BUSY:
        print(f"\nThe machine is busy: slow rounds took {spread:.2g} times as long as fast ones ({name}).")
    if disturbed := list(_disturbed(record)):
        print("\nDisturbed", *disturbed, sep="\n  ")
    wrong = [f"{case['name']}: {label}: {text}" for case in record["cases"] for label, text in case["errors"].items()]
    if wrong:
        print("\nNot timed", *wrong, sep="\n  ")
    if left_out:
        print("\nNot started", *(f"{label}: {reason}" for label, reason in left_out.items()), sep="\n  ")


def _disturbed(record):
    """Yield a line for each figure that does not show an engine's speed, although rounds were measured again."""
    from cattn._bench.timing import is_busy, is_slowed

    for case in record["cases"]:
        if is_busy(case["outside_load"]):
            yield f"{case['name']}: other programs took {case['outside_load']:.2g} processors meanwhile"
        for label, result in case["engines"].items():
            if is_slowed(ratio := result["over_one_thread"]):
                yield f"{case['name']}: {label} took {ratio:.2g} times as long as with one thread"


HEADINGS = ("case, engine", "time", "GFLOP/s", "cattn is", "error")
NOTES = """
cattn is: how many times as fast cattn is as this engine (medians of rounds in which all take turns).
error: the largest error, in units of eps·Σp|v|. eps is that of the type, p are a row's weights and v its values."""


def _rows(case):
    """Yield a row with the case's name, then a row for each engine."""
    from cattn._bench.chart import speedup
    from cattn._bench.timing import format_seconds

    yield case["name"], *[""] * (len(HEADINGS) - 1)
    for label, result in case["engines"].items():
        yield (
            f"  {label}",
            format_seconds(result["seconds"]),
            "-" if result["gflops"] is None else f"{result['gflops']:.1f}",
            "" if label == "cattn" else f"{speedup(case, label):.2f} ×",
            f"{result['error']:.2g}",
        )
