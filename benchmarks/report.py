"""The comparison's results, and how they are shown: tables, JSON, a chart."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from answer import Check
from engines import Engine
from limits import Limits
from rich import box
from rich.console import Console
from rich.table import Table

from cattn._bench import Case


@dataclass(frozen=True)
class Machine:
    processor: str
    threads: int
    peak_flops: float
    read_bandwidth: float
    limits_by: str
    blas: str
    versions: dict[str, str]

    @classmethod
    def measured(cls, threads: int, limits: Limits, engines: Sequence[Engine]) -> "Machine":
        versions = {"python": platform.python_version()} | {engine.package: engine.version for engine in engines}
        peak, bandwidth = limits.peak_flops(), limits.read_bandwidth()
        return cls(_processor(), threads, peak, bandwidth, limits.method, _blas(), versions)


@dataclass(frozen=True)
class Result:
    engine: Engine
    check: Check
    seconds: float  # the median
    samples: Sequence[float]  # sample i of every engine is from round i

    def speedup(self, over: "Result") -> float:
        """How many times as fast this is as the other: the median of the rounds' ratios."""
        return statistics.median(b / a for a, b in zip(self.samples, over.samples, strict=True))


@dataclass(frozen=True)
class Row:
    case: Case
    limit: float  # seconds, below which the machine's arithmetic or memory do not let it go
    results: Sequence[Result]
    errors: dict[str, str] = field(default_factory=dict)

    def result(self, name: str) -> Result | None:
        return next((result for result in self.results if result.engine.name == name), None)

    @property
    def best_peer(self) -> Result | None:
        """The fastest engine other than cattn whose answer is right."""
        peers = (result for result in self.results if not result.engine.is_cattn and not result.check.wrong)
        return min(peers, key=lambda result: result.seconds, default=None)


@dataclass(frozen=True)
class Report:
    machine: Machine
    engines: Sequence[Engine]
    rows: Sequence[Row]

    def to_json(self) -> str:
        rows = [
            {
                "case": row.case.name,
                "flops": row.case.flops,
                "limit_seconds": row.limit,
                "engines": {
                    result.engine.name: {
                        "seconds": result.seconds,
                        "samples": list(result.samples),
                        "kappa": result.check.kappa if result.check.kappa < float("inf") else None,
                        "wrong": result.check.wrong,
                    }
                    for result in row.results
                },
                "errors": row.errors,
            }
            for row in self.rows
        ]
        return json.dumps({"machine": asdict(self.machine), "cases": rows}, indent=2) + "\n"


def print_report(console: Console, report: Report) -> None:
    machine = report.machine
    console.print(
        f"{machine.processor}, {machine.threads} thread{'s' if machine.threads > 1 else ''}: "
        f"peak {machine.peak_flops / 1e9:.1f} GFLOP/s, memory read {machine.read_bandwidth / 1e9:.1f} GB/s "
        f"({machine.limits_by}); NumPy's BLAS: {machine.blas}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    console.print(_speed_table(report))
    console.print(_error_table(report))
    for row in report.rows:
        for name, error in row.errors.items():
            console.print(f"{row.case.name}: {name} failed: {error}", style="red", markup=False)


def _speed_table(report: Report) -> Table:
    table = Table(
        title="GFLOP/s, or the time of tiny and one-query cases",
        caption="medians; ✗: a wrong answer, not ranked. Fastest peer: how many times as fast cattn is. "
        "Limit: cattn's share of what arithmetic or reading allow",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("case", no_wrap=True)
    for engine in report.engines:
        table.add_column(engine.label, justify="right", style="bold" if engine.name == "cattn" else None)
    table.add_column("× fastest peer", justify="right")
    table.add_column("% of limit", justify="right")
    for row in report.rows:
        cells = [_speed_cell(row, row.result(engine.name)) for engine in report.engines]
        cattn, peer = row.result("cattn"), row.best_peer
        ratio = f"{cattn.speedup(peer):.2f}" if cattn and peer else "-"
        share = f"{100 * row.limit / cattn.seconds:.0f}" if cattn and row.case.flops > 1_000_000 else "-"
        table.add_row(row.case.name, *cells, ratio, share)
    return table


def _speed_cell(row: Row, result: Result | None) -> str:
    if result is None:
        return "-"
    text = _duration(result.seconds) if row.case.counts_time else f"{row.case.flops / result.seconds / 1e9:.1f}"
    if result.check.wrong:
        return f"[red]{text} ✗[/]"
    return f"[green]{text}[/]" if result is row.best_peer else text


def _duration(seconds: float) -> str:
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.{1 if seconds < 1e-4 else 0}f} µs"


def _error_table(report: Report) -> Table:
    table = Table(title="Largest error, in eps · Σ p|v| · (1 + A) of the arithmetic type (κ)", box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    for engine in report.engines:
        table.add_column(engine.label, justify="right")
    for row in report.rows:
        results = [row.result(engine.name) for engine in report.engines]
        table.add_row(row.case.name, *("-" if result is None else _error_cell(result.check) for result in results))
    return table


def _error_cell(check: Check) -> str:
    return f"[red]{check.kappa:.3g} ✗[/]" if check.wrong else f"{check.kappa:.3g}"


def save_plot(report: Report, file: Path) -> None:
    """Each case a line, each engine a dot: its speed, with the fastest peer as 1."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator

    rows = [row for row in report.rows if row.best_peer]
    figure, axes = pyplot.subplots(figsize=(9, 1.8 + 0.34 * len(rows)), layout="constrained")
    axes.axvline(1, color="0.6", linewidth=1, zorder=0)
    peers = [engine for engine in report.engines if not engine.is_cattn]
    tables = [engine.name for engine in report.engines if engine.is_cattn]
    shades = dict(zip(tables, ("black", "0.45", "0.7", "0.85", "0.3"), strict=False))
    markers = dict(zip((engine.name for engine in peers), "osD^v<>ph", strict=False))
    for engine in report.engines:
        points = [
            (result.speedup(row.best_peer), y)
            for y, row in enumerate(rows)
            if (result := row.result(engine.name)) and not result.check.wrong
        ]
        if not points:
            continue
        style = {"s": 34, "alpha": 0.8, "marker": markers.get(engine.name, "o")}
        if engine.is_cattn:
            style = {"s": 120, "marker": "*", "zorder": 3, "color": shades.get(engine.name, "0.55")}
        axes.scatter(*zip(*points, strict=True), label=engine.label, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.set_yticks(range(len(rows)), [row.case.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("speed; the fastest engine other than cattn is 1")
    threads = report.machine.threads
    figure.suptitle(f"Attention on the CPU: {report.machine.processor}, {threads} thread{'s' if threads > 1 else ''}")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _blas() -> str:
    """The kernels that NumPy's BLAS picked, and whether the environment made it."""
    try:
        import threadpoolctl
    except ImportError:
        return "unknown"
    found = (info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas")
    text = ", ".join(f"{info['internal_api']} {info.get('architecture', '')}".strip() for info in found) or "unknown"
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return f"{text} (OPENBLAS_CORETYPE={forced})" if forced else text
