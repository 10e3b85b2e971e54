"""Charts of records: how many times as fast as others cattn is, with a line for each case."""

import itertools
import math
from collections.abc import Mapping, Sequence

BAND = "within 10%"
SHAPE = "batch, heads/key heads, queries, keys, head size"


def speedup(case: Mapping, label: str) -> float:
    """Return how many times as fast as this engine cattn is, by medians. It is NaN if one of them was not measured."""
    engines = case["engines"]
    if "cattn" not in engines or label not in engines:
        return math.nan
    return engines[label]["seconds"] / engines["cattn"]["seconds"]


def make_figure(panels: int, names: Sequence[str]):
    """Return an empty figure, and its panels, for ratios beside the names of cases."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    size = 3.5 + 3.6 * panels, 1.8 + 0.26 * len(names)
    figure = Figure(size, layout="constrained", facecolor="white")
    all_axes = figure.subplots(1, panels, sharey=True, sharex=True, squeeze=False)[0]
    for axes in all_axes:
        axes.axvspan(0.9, 1.1, color="0.92", zorder=0, label=BAND)
        axes.axvline(1, color="0.4", linewidth=1, zorder=1)
        axes.set_xlabel("above 1 cattn is faster")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def names_of(cases: Sequence[Mapping]) -> list[str]:
    """Return what each line is called: the case and its shape, or the shape alone if that is the name."""
    shapes = (case["shape"] for case in cases)
    names = (case["name"] for case in cases)
    return [name if name.startswith(shape) else f"{name} ({shape})" for name, shape in zip(names, shapes, strict=True)]


def draw_engines(record: Mapping):
    """Return a figure of one run, with a mark for each engine."""
    cases = record["cases"]
    figure, (axes,) = make_figure(1, names_of(cases))
    labels = dict.fromkeys(label for case in cases for label in case["engines"] if label != "cattn")
    for label, marker in zip(labels, itertools.cycle("oDs^vP*X<>dph")):
        ratios = [speedup(case, label) for case in cases]
        axes.plot(ratios, range(len(cases)), marker, label=label, markersize=6, alpha=0.8)
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    title = f"cattn on {record['machine']}, {threads}: how many times as fast as the others"
    figure.suptitle(f"{title}\ncase ({SHAPE})", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
