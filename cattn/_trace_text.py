"""Formulas of the seven steps, and matrices as text: which rows and columns are shown, with how many digits, under
which names."""

import math
import sys
import unicodedata

import numpy as np

# A matrix with more rows or columns, or with wider lines, shows this many at each of its ends.
MAX_ROWS, MAX_COLUMNS, MAX_WIDTH, EDGE = 16, 12, 110, 3
MAX_LABEL = 14  # the most characters of a token's name

# The letters of the formulas, and what stands for them where they cannot be printed.
PLAIN = {"ŝ": "s^", "α": "a", "√": "sqrt ", "Σ": "sum", "·": ".", "ᵀ": "^T"}


def printable(text):
    """Return the text, with other letters if standard output lacks those of the formulas. Files on Windows and the
    locale C have an encoding without them, and printing would raise an error."""
    try:
        "".join(PLAIN).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return text.translate(str.maketrans(PLAIN))
    return text


def formulas(trace):
    """Return the formula of each step but the first, by the step's name. The letters are those of docs/steps.md."""
    d_k = trace.query.shape[1]
    usual = trace.scale == 1 / math.sqrt(d_k)
    scaled = f"ŝ_ij = s_ij / √d_k, d_k = {d_k}" if usual else f"ŝ_ij = {trace.scale:.6g} s_ij"
    softmax, total = "softmax of each row", "Σ_k exp(ŝ_ik)"
    if "sinks" in trace.modifiers:
        softmax, total = f"{softmax} and the sink", f"(exp(sink) + {total})"
    return {
        "Projections": "Q = X W_query, K = X W_key, V = X W_value",
        "Scores": "S = Q Kᵀ: s_ij = q_i · k_j, a row for each query i and a column for each key j",
        "Scaled scores": scaled,
        "Weights": f"A = {softmax}: α_ij = exp(ŝ_ij) / {total}",
        "Weighted values": "α_ij v_j: the share of each token j in the context of token i",
        "Context": "C = A V: c_i = Σ_j α_ij v_j",
    }


def modified(trace):
    """Return what the final scores are called: they name the modifiers that were given."""
    *first, last = (name for name in trace.modifiers if name != "sinks")
    return f"ŝ_ij with {', '.join(first)} and {last}" if first else f"ŝ_ij with {last}"


def format_matrix(matrix, rows=None, columns=None, number=None, last_column=False):
    """Return the lines of a printed matrix, with names for its rows and columns. An ellipsis stands for what is long.

    `number` is a format of one number. By default it depends on the size of the numbers. `last_column` keeps one more
    column at the right end if columns are left out.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    number = number or number_format(matrix)
    height, width = matrix.shape
    shown_rows = shown(height, MAX_ROWS)
    for limit in (MAX_COLUMNS + last_column, 0):
        table = []
        shown_columns = shown(width, limit, EDGE + last_column)
        if columns is not None:
            labels = ["..." if j is None else clip(columns[j], MAX_LABEL) for j in shown_columns]
            table.append(["", *labels] if rows is not None else labels)
        for i in shown_rows:
            cells = ["..." if i is None or j is None else number(matrix[i, j]) for j in shown_columns]
            label = [] if rows is None else ["..." if i is None else clip(rows[i], MAX_LABEL)]
            table.append(label + cells)
        widths = [max(map(text_width, column)) for column in zip(*table, strict=True)]
        if sum(widths) + 2 * len(widths) <= MAX_WIDTH:
            break
    return [_line(cells, widths, left=rows is not None) for cells in table]


def shown(count, limit, tail=EDGE):
    """Return the indices to print. None stands for those that are left out."""
    if count <= max(limit, EDGE + tail + 1):
        return range(count)
    return [*range(EDGE), None, *range(count - tail, count)]


def number_format(matrix):
    """Return what formats a number of the matrix."""
    size = np.abs(matrix[np.isfinite(matrix)])
    largest = size.max(initial=0.0)
    if largest == 0 or 1e-2 <= largest < 1e5:
        return lambda number: f"{round(number, 4) + 0.0:.4f}"
    return lambda number: f"{number:.3e}"


def _line(cells, widths, left):
    padding = [" " * (width - text_width(cell)) for cell, width in zip(cells, widths, strict=True)]
    parts = [pad + cell for cell, pad in zip(cells, padding, strict=True)]
    if left:
        parts[0] = cells[0] + padding[0]
    return ("  " + "  ".join(parts)).rstrip()


def largest_of_blocks(matrix, step):
    """Return the largest number of each block of `step` rows and columns. It is NaN if there is one."""
    for axis in (0, 1):
        matrix = np.maximum.reduceat(matrix, range(0, matrix.shape[axis], step), axis=axis)
    return matrix


def size_of(matrix):
    """Return the shape of a matrix as text."""
    return f"({matrix.shape[0]} x {matrix.shape[1]})"


def clip(text, width):
    """Return the text, or its beginning if it is longer than `width`."""
    return text if len(text) <= width else text[: width - 3] + "..."


def text_width(text):
    """Return how many columns of a terminal the text takes: East Asian wide characters two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
