"""Show what was measured: `python benchmarks/report.py` writes RESULTS.md, and a chart for each machine, from
the records in results/ (cattn/_bench/record.py says what is in them)."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from cattn._bench.cases import HALF_TYPES
from cattn._bench.chart import BAND, SHAPE, make_figure, names_of
from cattn._bench.timing import (
    MAX_OUTSIDE_LOAD,
    MAX_OVER_ONE_THREAD,
    MAX_REFUSED,
    format_seconds,
    is_busy,
    is_slowed,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results"

HEAD = f"""\
# Measured

This page compares cattn with the engines that you would use instead, machine by machine.
`python benchmarks/compare.py --json` measures your machine and writes a record into `benchmarks/results/`. With
`--dtype bfloat16,float16` it writes one of the half types. `python benchmarks/report.py` writes this page and its
charts from all records there. Edit those, not this page. Late interaction (`cattn.maxsim`) has other engines and
cases, and [a page of its own](MAXSIM.md).

**How to read it.** Each machine has a table. A line is a case, and its figures are medians.

| column | meaning |
| --- | --- |
| **threads** | how many threads, and processors, each engine may use |
| **case** | the name of the case; it is in float32 unless the name says otherwise |
| **shape** | batch, heads/key heads, queries, keys, head size |
| **× fastest peer** | how many times as fast cattn is as the fastest other engine; above 1, cattn is ahead |
| **× float32** | only with half types: how many times as fast cattn is as in float32 on the same numbers |
| **% of limit** | cattn's share of what the machine's multiply-adds or memory allow; above 100, a cache helps |
| **cattn** | cattn with the machine's best kernel table: GFLOP/s, or the time of a call if tiny or of one query |
| **cattn avx2 and the like** | the same with another kernel table |
| **NumPy, PyTorch, ...** | the other engines; the fastest one, the *fastest peer*, is in bold |
| **ORT ...** | ONNX Runtime's operators Attention, MultiHeadAttention (MHA) and GroupQueryAttention (GQA) |
| **error** | only with half types: the largest error of the engine in the column before, explained below |

**How it is measured.** All engines take turns in one process, in rounds of changing order. Each engine rests first
and then takes a sample that is not counted. Every answer is checked against float64 before it is timed. "× fastest
peer" is the median of the rounds' ratios, not the ratio of the medians. Attention is only one part of a model, so a
whole model gains less than these ratios.

**Do not rely on figures in parentheses.** Something disturbed them. A round is disturbed if an engine takes over
{MAX_OVER_ONE_THREAD:g} times as long as with one thread, or if other programs keep more than {MAX_OUTSIDE_LOAD:g}
processors busy. It is measured again, up to {MAX_REFUSED} times a case. Two marks name what is still disturbed
then:

- **†** The engine took longer with these threads than with one. In tiny problems, waking the threads may cost as
  much. Elsewhere something held the threads up. PyTorch's threads, for example, wait for each other by spinning,
  which takes many times as long if another program has one of their processors. A ratio has this mark too if such
  an engine might otherwise have been the fastest peer.
- **‡** Other programs were busy. The case counts in no summary and is in no chart. If the lines about a run do not
  mention other programs, nobody looked at them.

**Half types** have a section of their own. Each engine rounds in its own way there, so the table lists each
engine's error next to its speed. The unit of an error is eps·Σp|v|: eps is that of the half type (2⁻⁷ for bfloat16
and 2⁻¹⁰ for float16), p are the weights of the row and v its values. An answer that is rounded only once, at its
end, stays below 0.5. The limit of bfloat16 is that of the fastest instructions that the processor has for it: AMX,
or products of pairs. On CPUs, ONNX Runtime has no bfloat16 and JAX no float16. OpenVINO uses bfloat16 for float16
on processors that have no products of float16.
"""


def name_of_file(run: dict) -> str:
    return _file_name(title_of(run) if run["threads"] == 1 else f"{title_of(run)} {run['threads']} threads")


def _file_name(words: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()))


# One run


def title_of(run: dict) -> str:
    """Return the machine, and the types if float32 is not among them."""
    types = list(dict.fromkeys(case["dtype"] for case in run["cases"]))
    return run["machine"] if "float32" in types or not types else f"{run['machine']}, {' and '.join(types)}"


def threads_of(run: dict) -> str:
    return "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"


def speed(result: dict) -> float:
    return result["gflops"] or 1 / result["seconds"]


def fastest_peer(case: dict) -> str | None:
    engines = case["engines"]
    peers = (label for label in engines if not label.startswith("cattn"))
    return max(peers, key=lambda label: speed(engines[label]), default=None)


def over_numpy(case: dict) -> float:
    """Return how many times as fast as NumPy cattn is, by medians. It is NaN if NumPy was not measured."""
    if fastest_peer(case) == "NumPy":
        return case["speedup"]
    numpy = case["engines"].get("NumPy")
    return speed(case["engines"]["cattn"]) / speed(numpy) if numpy else math.nan


def over_float32(case: dict) -> float | None:
    """Return how many times as fast as in float32 cattn is, by medians."""
    engines = case["engines"]
    if "cattn" not in engines or "cattn float32" not in engines:
        return None
    return speed(engines["cattn"]) / speed(engines["cattn float32"])


def ranked(run: dict) -> list[dict]:
    """Return the cases in which cattn and a peer were measured, and nobody disturbed them."""
    return [case for case in run["cases"] if case["speedup"] is not None and not is_busy(case["outside_load"])]


def summary(run: dict) -> dict[str, object]:
    cases = sorted(ranked(run), key=lambda case: case["speedup"])
    ratios = [case["speedup"] for case in cases]
    ahead, behind = sum(ratio > 1 for ratio in ratios), sum(ratio < 0.9 for ratio in ratios)
    names = [f"{case['speedup']:.2f} ({case['name']})" for case in cases] or ["-"]
    return {
        "cases": len(cases),
        "ahead": ahead,
        "at most 10% behind": len(cases) - ahead - behind,
        "further behind": behind,
        "geometric mean": f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-",
        "least": names[0],
        "most": names[-1],
    }


def summary_sentence(run: dict) -> str:
    cases, ahead, near, behind, mean, least, most = summary(run).values()
    parts = [
        f"ahead of the fastest other engine in {ahead} of {cases} cases",
        *([f"at most 10% behind it in {near}"] if near else []),
        *([f"further behind in {behind}"] if behind else []),
    ]
    return f"{threads_of(run)}: {', '.join(parts)}; geometric mean {mean}, from {least} to {most}."


def inexact_peers(run: dict) -> list[str]:
    """Return a sentence or none about the fastest peers whose answers in a half type are not as good as it allows."""
    peers = [(case, fastest_peer(case)) for case in run["cases"] if case["dtype"] in HALF_TYPES]
    errors = [(case["name"], peer, case["engines"][peer]["error"]) for case, peer in peers if peer]
    found = [f"{peer} in {name} ({error:.2g})" for name, peer, error in errors if error is not None and error > 1]
    told = f"{threads_of(run)}: fastest peers that are more than 1 eps·Σp|v| off: {', '.join(found)}."
    return [told] if found else []


def flagged(run: dict) -> list[str]:
    """Return a sentence for each reason why some figures do not show an engine's speed."""
    slowed = [
        f"{label} in {case['name']} ({result['over_one_thread']:.2g})"
        for case in run["cases"]
        for label, result in case["engines"].items()
        if is_slowed(result["over_one_thread"])
    ]
    busy = [f"{case['name']} ({case['outside_load']:.2g})" for case in run["cases"] if is_busy(case["outside_load"])]
    return [
        *([f"{threads_of(run)}: † slower than with one thread (times): {', '.join(slowed)}."] if slowed else []),
        *([f"{threads_of(run)}: ‡ disturbed by other programs (processors): {', '.join(busy)}."] if busy else []),
    ]


def circumstances(run: dict) -> list[str]:
    """Return what is known of how a run was measured, its notes and its errors."""
    largest: dict[str, float] = {}
    for case in run["cases"]:
        for label, result in case["engines"].items():
            if result["kappa"] is not None:
                largest[label] = max(largest.get(label, 0), result["kappa"])
    refused = [case["refused_rounds"] for case in run["cases"] if case["refused_rounds"] is not None]
    loads = [case["outside_load"] for case in run["cases"] if case["outside_load"] is not None]
    facts = {
        "date": run["date"],
        "commit": run["commit"],
        "command": run["command"] and f"`{run['command']}`",
        "rounds": run["rounds"],
        "disturbed rounds measured again": refused and f"{sum(refused)}",
        "other programs": loads and f"{max(loads):.2g} processors at most",
        "kernel table": run["isa"],
        "multiply-adds": run["peak_gflops"] and f"{run['peak_gflops']:g} GFLOP/s",
        "of bfloat16": run["peak_bfloat16_gflops"] and f"{run['peak_bfloat16_gflops']:g} GFLOP/s",
        "memory read": run["bandwidth_gb_s"] and f"{run['bandwidth_gb_s']:g} GB/s",
        "all measured by": run["limits_by"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
        "largest error κ": ", ".join(f"{label} {kappa:.2g}" for label, kappa in largest.items()),
        "source": run["source"],
    }
    errors = [f"{case['name']}: {name}: {text}" for case in run["cases"] for name, text in case["errors"].items()]
    known = "; ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
    return [f"- {threads_of(run)}: {known}.", *(f"  - {text}" for text in run["notes"] + errors)]


# A machine's runs, that with the fewest threads first


def describe(runs: Sequence[dict]) -> str:
    """Return Markdown that shows the machine, how cattn did, all figures, and how they were measured."""
    run = runs[0]
    cores, memory = run["cores"] and f"{run['cores']} cores", run["memory_gib"] and f"{run['memory_gib']} GiB"
    machine = ", ".join(filter(None, (run["processor"], cores, memory, run["system"])))
    told = [f"- {text}" for run in runs for text in (summary_sentence(run), *inexact_peers(run), *flagged(run))]
    lines = [f"{machine}.", "", *told, "", *figures(runs), ""]
    return "\n".join(lines + [line for run in runs for line in circumstances(run)]) + "\n"


def figures(runs: Sequence[dict]) -> list[str]:
    cases = [(run, case) for run in runs for case in run["cases"]]
    widest_first = sorted((case["engines"] for _, case in cases), key=len, reverse=True)
    labels = list(dict.fromkeys(label for engines in widest_first for label in engines))
    has_halves = any(case["dtype"] in HALF_TYPES for _, case in cases)
    head = ["threads", "case", "shape", "× fastest peer", *["× float32"] * has_halves, "% of limit"]
    for label in labels:
        head += [label, *["error"] * has_halves]
    rows = [
        [run["threads"], case["name"], case["shape"], *_cells(run, case, labels, has_halves)] for run, case in cases
    ]
    return table(head, rows, left=3)


def _cells(run: dict, case: dict, labels: Sequence[str], has_halves: bool) -> Iterator[str]:
    ratio, share = case["speedup"], case["share_of_limit"]
    yield "-" if ratio is None else _marked(f"{ratio:.2f}", case, "cattn", *_perhaps_fastest(run, case))
    if has_halves:
        ratio = over_float32(case)
        yield "-" if ratio is None else _marked(f"{ratio:.2f}", case, "cattn", "cattn float32")
    yield "-" if share is None else _marked(f"{100 * share:.0f}", case, "cattn")
    for label in labels:
        yield figure_of(case, label)
        if has_halves:
            error = case["engines"].get(label, {}).get("error")
            yield "-" if error is None else f"{error:.2g}"


def figure_of(case: dict, label: str) -> str:
    result = case["engines"].get(label)
    if result is None:
        return "-"
    if result["gflops"] is not None:
        text = f"{result['gflops']:.1f}"
    else:
        text = format_seconds(result["seconds"]).replace(" ", "\u00a0")
    text = _marked(text, case, label)
    return f"**{text}**" if label == fastest_peer(case) else text


def _perhaps_fastest(run: dict, case: dict) -> list[str]:
    """Return the fastest peer, and those that would be it if their threads had not been held up at all."""
    fastest = fastest_peer(case)
    reached = {
        label: speed(result)
        * (result["over_one_thread"] * run["threads"] if is_slowed(result["over_one_thread"]) else 1)
        for label, result in case["engines"].items()
        if not label.startswith("cattn")
    }
    return [label for label, reach in reached.items() if reach >= speed(case["engines"][fastest])]


def _marked(text: str, case: dict, *labels: str) -> str:
    """Return a figure that comes from these engines, in parentheses if you cannot rely on it."""
    slowed = any(is_slowed(case["engines"][label]["over_one_thread"]) for label in labels)
    marks = "†" * slowed + "‡" * is_busy(case["outside_load"])
    return f"({text}){marks}" if marks else text


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int) -> list[str]:
    """Return a table in Markdown, with the first `left` columns aligned to the left and the others to the right."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *rows)]


def _error_of(case: dict, label: str) -> str:
    """Return the error of an engine as text, if the case is in a half type and the error is known."""
    error = case["engines"][label]["error"]
    return "" if error is None or case["dtype"] not in HALF_TYPES else f" (error {error:.2g})"


def draw(runs: Sequence[dict], file: Path) -> None:
    """Draw a panel for each run, with a line for each case: how many times as fast as its fastest peer, which is named
    at the right, and as NumPy cattn is."""
    from matplotlib import style

    shown = {case["name"]: case for run in runs for case in ranked(run)}
    names = list(shown)
    told = []
    # With this salt, and without a date, the same records give the same bytes. Text stays text: that is half the size.
    options = {"svg.hashsalt": "cattn", "svg.fonttype": "none", "font.size": 9}
    with style.context(options, after_reset=True):
        figure, panels = make_figure(len(runs), names_of(list(shown.values())))
        for run, axes in zip(runs, panels, strict=True):
            cases = ranked(run)
            rows = [names.index(case["name"]) for case in cases]
            ratios = [case["speedup"] for case in cases]
            over = [over_numpy(case) for case in cases]
            axes.hlines(rows, ratios, over, color="0.7", linewidth=1, zorder=2)
            (dots,) = axes.plot(ratios, rows, "o", color="#1f4e9c", markersize=5, zorder=4)
            (diamonds,) = axes.plot(over, rows, "D", color="#b35900", markerfacecolor="white", markersize=8, zorder=3)
            for case, row in zip(cases, rows, strict=True):
                text = f"{case['speedup']:.2f} × {fastest_peer(case)}{_error_of(case, fastest_peer(case))}"
                axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center")
                told.append(f"{case['name']}, {threads_of(run)}: {text}, {over_numpy(case):.2f} × NumPy")
            axes.set_title(threads_of(run))
        (band,) = axes.patches
        panels[0].set_ylabel(f"case ({SHAPE})")
        figure.suptitle(f"cattn on {title_of(runs[0])}: how many times as fast as the others")
        labels = "as the fastest other engine, named at the right", "as NumPy", BAND
        figure.legend((dots, diamonds, band), labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(file, metadata={"Date": None, "Creator": None, "Description": "; ".join(told)})


def main() -> None:
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob("*.json")]
    runs.sort(key=lambda run: (title_of(run), run["threads"]))
    rows = [{"machine": title_of(run), "threads": run["threads"]} | summary(run) for run in runs]
    parts = [HEAD, "\n".join(table(list(rows[0]), [list(row.values()) for row in rows], left=1)) + "\n"]
    for title, group in itertools.groupby(runs, key=title_of):
        title_runs, chart = list(group), RESULTS / f"{_file_name(title)}.svg"
        draw(title_runs, chart)
        parts += [f"## {title}\n", f"![cattn on {title}](results/{chart.name})\n", describe(title_runs)]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
