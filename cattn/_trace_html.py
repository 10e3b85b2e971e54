"""The HTML of a trace, as a notebook shows it: the seven steps as tables of shaded cells, and a heatmap of the weights.

The text has the colour of the page, and shades let the page shine through: light and dark pages can both be read,
whatever the system prefers.
"""

import html
import itertools
import math
import re

import numpy as np

from ._trace_text import (
    EDGE,
    MAX_COLUMNS,
    MAX_LABEL,
    MAX_ROWS,
    clip,
    formulas,
    largest_of_blocks,
    modified,
    number_format,
    shown,
    size_of,
    text_width,
)

# Positive numbers are blue. Negative ones are orange, and so is NaN in the heatmap.
_BLUE, _ORANGE = (40, 120, 220), (230, 110, 20)
# The darkest cell of a table is as opaque as text on it allows, on white and on black pages.
_DARKEST = 0.6
# The heatmap has at most so many rows of cells, and shades. Its side and a cell have so many CSS pixels.
_MOST_CELLS, _LEVELS, _WIDEST, _CELL = 96, 32, 384, 26

# These rules have more weight than a notebook's own rules for tables.
_STYLE = """<style>
.cattn-trace { font-size: 13px; line-height: 1.4; overflow-x: auto; }
.cattn-trace p { margin: 1em 0 0.2em; }
.cattn-trace .matrices { display: flex; flex-wrap: wrap; gap: 0.5em 2em; align-items: flex-start; }
.cattn-trace table.matrix { border: 0; border-collapse: separate; border-spacing: 1px; margin: 0; font-size: 12px;
  font-variant-numeric: tabular-nums; table-layout: auto; }
.cattn-trace table.matrix caption { caption-side: top; color: inherit; padding: 2px 0; text-align: left; }
.cattn-trace table.matrix tr:nth-child(n) { background: none; }
.cattn-trace table.matrix th, .cattn-trace table.matrix td { border: 0; color: inherit; font-weight: normal;
  line-height: 1.4; padding: 2px 6px; text-align: right; white-space: pre; }
.cattn-trace table.matrix th { background: none; opacity: 0.75; }
.cattn-trace table.matrix tbody th { text-align: left; }
.cattn-trace small { font-size: 11px; opacity: 0.75; }
.cattn-trace svg { display: block; margin: 1em 0; overflow: visible; }
.cattn-trace text { fill: currentColor; font-size: 11px; white-space: pre; }
</style>"""


def trace_html(trace):
    """Return the HTML of an AttentionTrace, without a script or a file beside it."""
    names = trace._names()
    scaled = [_table(trace.scaled_scores, names, names)]
    if trace.final_scores is not trace.scaled_scores:
        title = f"{modified(trace)} (-inf: masked)"
        scaled.append(_table(trace.final_scores, names, names, title, masked=True))
    projections = zip("QKV", (trace.query, trace.key, trace.value), strict=True)
    steps = {
        "Embeddings": [_table(trace.x, names)],
        "Projections": [_table(matrix, names, title=letter) for letter, matrix in projections],
        "Scores": [_table(trace.scores, names, names)],
        "Scaled scores": scaled,
        "Weights": [_table(trace.weights, names, names, sums=True), _heatmap(trace, names)],
        "Weighted values": _weighted_values(trace, names),
        "Context": [_table(trace.context, names)],
    }
    given = {"Embeddings": "X"} | formulas(trace)
    parts = [_STYLE]
    for number, (title, matrices) in enumerate(steps.items(), 1):
        formula = given[title]
        formula = re.sub(r"_(\w+)", r"<sub>\1</sub>", formula)
        parts.append(f"<p><b>{number}. {title}</b>&ensp;{formula}</p>")
        parts.append(f'<div class="matrices">{"".join(matrices)}</div>')
    return f'<div class="cattn-trace">{"".join(parts)}</div>'


def _weighted_values(trace, names):
    for i in shown(len(names), EDGE + 1):
        if i is None:
            yield "<span>…</span>"
        else:
            yield _table(trace._weighted_values(i), names, title=f"for {clip(names[i], MAX_LABEL)}")


def _table(matrix, names, columns=None, title="", *, masked=False, sums=False):
    """Return a matrix with its names, shaded by the share of its largest magnitude. If it is `masked`, -inf is nothing
    unusual."""
    matrix = np.asarray(matrix, dtype=np.float64)
    number, largest = number_format(matrix), np.abs(matrix[np.isfinite(matrix)]).max(initial=0.0)
    height, width = matrix.shape
    shown_rows, shown_columns = shown(height, MAX_ROWS), shown(width, MAX_COLUMNS)
    lines = [f"<caption>{_caption(title, matrix, shown_rows, shown_columns, masked)}</caption>"]
    if columns is not None:
        labels = [_label(columns[j]) if j is not None else "<th>…</th>" for j in shown_columns]
        end = "<th>row sum</th>" if sums else ""
        lines.append(f"<thead><tr><th></th>{''.join(labels)}{end}</tr></thead>")
    lines.append("<tbody>")
    for i in shown_rows:
        if i is None:
            lines.append(f"<tr><th>…</th>{'<td>…</td>' * (len(shown_columns) + sums)}</tr>")
            continue
        cells = [_cell(matrix[i, j], number, largest) if j is not None else "<td>…</td>" for j in shown_columns]
        end = f"<td>{number(matrix[i].sum())}</td>" if sums else ""
        lines.append(f"<tr>{_label(names[i], scope='row')}{''.join(cells)}{end}</tr>")
    return f'<table class="matrix">{"".join(lines)}</tbody></table>'


def _caption(title, matrix, shown_rows, shown_columns, masked):
    """Return a matrix's name and size, and in words what is left out and what is not finite."""
    parts = [" ".join([html.escape(title), size_of(matrix).replace("x", "×")]).strip()]
    ends = [
        f"of {count} {kind}"
        for count, kind, indices in ((len(matrix), "rows", shown_rows), (matrix.shape[1], "columns", shown_columns))
        if None in indices
    ]
    if ends:
        parts.append(f"The first and last {EDGE} {' and '.join(ends)} are shown.")
    nan, infinite = np.isnan(matrix).sum(), np.isinf(matrix if not masked else np.maximum(matrix, 0)).sum()
    unusual = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count]
    if unusual:
        parts.append(f"Of {matrix.size} numbers, {' and '.join(unusual)}.")
    first, *rest = parts
    return first + "".join(f"<br><small>{text}</small>" for text in rest)


def _label(name, scope="col"):
    text = clip(name, MAX_LABEL)
    title = f' title="{html.escape(name)}"' if text != name else ""
    return f'<th scope="{scope}"{title}>{html.escape(text)}</th>'


def _cell(value, number, largest):
    share = abs(value) / largest if largest and math.isfinite(value) else 0.0
    if share == 0:
        return f"<td>{number(value)}</td>"
    red, green, blue = _BLUE if value > 0 else _ORANGE
    return f'<td style="background: rgba({red}, {green}, {blue}, {_DARKEST * share:.3f})">{number(value)}</td>'


def _heatmap(trace, names):
    """Return an SVG of all weights as shaded cells, with the names of the tokens and a scale."""
    count = len(trace.x)
    if count == 0:
        return ""
    top = float(np.nanmax(trace.weights, initial=0.0)) or 1.0
    block = math.ceil(count / _MOST_CELLS)
    largest = largest_of_blocks(trace.weights, block)
    levels = np.where(np.isnan(largest), -1, np.rint(np.nan_to_num(largest) / top * _LEVELS)).astype(int)
    side = min(max(_CELL * count, 4 * _CELL), _WIDEST)
    cell = side / count
    step = math.ceil(14 / cell)  # A name is 11 pixels high.
    names = [clip(name, MAX_LABEL) for name in names[::step]]
    widest = 6.5 * max(map(text_width, names)) + 6
    upright = widest > step * cell
    left, below = widest + 20, (widest if upright else 18) + 24
    texts = []
    for n, name in enumerate(map(html.escape, names)):
        middle = (n * step + 0.5) * cell
        texts.append(f'<text x="{left - 5:.1f}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>')
        if upright:
            place = f'transform="translate({left + middle - 4:.1f} {side + 5:.1f}) rotate(90)"'
        else:
            place = f'x="{left + middle:.1f}" y="{side + 14:.1f}" text-anchor="middle"'
        texts.append(f"<text {place}>{name}</text>")
    bottom, centre = side + below, left + side / 2
    notes = [f"each cell is the largest of {block} × {block} weights"] * (block > 1) + ["orange: NaN"] * (-1 in levels)
    said = f"Attention weights α; {trace._row_sums()}{''.join('; ' + note for note in notes)}"
    texts += [
        f'<text x="{centre:.1f}" y="{bottom - 6:.1f}" text-anchor="middle">key token j (attended to)</text>',
        f'<text transform="translate(12 {side / 2:.1f}) rotate(-90)" text-anchor="middle">query token i</text>',
        f'<text x="{left:.1f}" y="{bottom + 30:.1f}">0</text>',
        f'<text x="{left + side:.1f}" y="{bottom + 30:.1f}" text-anchor="end">{top:.3g}</text>',
    ]
    scale = np.arange(_LEVELS + 1)[None]
    frame = 'fill="none" stroke="currentColor" stroke-opacity="0.4"'
    return (
        f'<div><small>{said}</small><svg width="{left + side + 12:.0f}" height="{bottom + 36:.0f}" role="img" '
        f'aria-label="{said}">{_cells(levels, left, 0.5, side, side)}'
        f'<rect x="{left:.1f}" y="0.5" width="{side:.1f}" height="{side:.1f}" {frame}/>'
        f"{_cells(scale, left, bottom + 6, side, 10)}{''.join(texts)}</svg></div>"
    )


def _cells(levels, x, y, width, height):
    """Return cells as SVG. Level 0 is transparent, and -1 is NaN. Neighbours of one level in a row are one line."""
    rows, columns = levels.shape
    lines = {}
    for i, row in enumerate(levels.tolist()):
        start = 0
        for level, run in itertools.groupby(row):
            length = len(list(run))
            lines.setdefault(level, []).append(f"M{start} {i}h{length}")
            start += length
    lines.pop(0, None)
    paths = []
    for level, parts in lines.items():
        colour, opacity = (_ORANGE, 1) if level < 0 else (_BLUE, level / _LEVELS)
        paths.append(f'<path stroke="rgb{colour}" stroke-opacity="{opacity:.4g}" d="{"".join(parts)}"/>')
    return (
        f'<svg x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" viewBox="0 -0.5 {columns} {rows}" '
        f'preserveAspectRatio="none" shape-rendering="crispEdges">{"".join(paths)}</svg>'
    )
