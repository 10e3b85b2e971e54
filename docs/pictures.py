"""The pages' pictures, each drawn from what cattn computes, for the light and the dark theme."""

from doctest import DocTestParser
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

import cattn
from cattn import reference

HERE = Path(__file__).parent
THEMES = {"light": "#323232", "dark": "#ced6dd"}  # with the colour of lines and text
BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#e0801f", "#3a9d5d", "#8a8f98"
STYLE = {
    "font.size": 10,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "svg.hashsalt": "cattn",
}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")


def draw_all(folder):
    """Write NAME-THEME.svg for each picture and theme."""
    folder.mkdir(exist_ok=True)
    for theme, ink in THEMES.items():
        with style.context(STYLE | dict.fromkeys(INKED, ink), after_reset=True):
            for name, draw in PICTURES.items():
                draw().savefig(folder / f"{name}-{theme}.svg", metadata={"Date": None})


# The seven steps


def seven_steps():
    """The trace that the examples of the page steps.md compute."""
    names = {}
    for example in DocTestParser().get_examples((HERE / "steps.md").read_text(encoding="utf-8")):
        exec(example.source, names)
        if "steps" in names:
            return names["steps"]


STEPS = seven_steps()
WORDS = STEPS.tokens


def matrices(*panels, cell=0.52):
    """Matrices side by side, each (title, matrix, names of its columns), with the words as names of the rows."""
    widths = [matrix.shape[1] for _, matrix, _ in panels]
    figure = Figure((cell * (sum(widths) + 1.6 * len(panels)), cell * (len(WORDS) + 1.4)), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, (title, matrix, columns) in zip(every, panels, strict=True):
        most = np.abs(matrix).max()
        shares = matrix is STEPS.weights
        image = axes.imshow(matrix, cmap="Blues" if shares else "RdBu", vmin=0 if shares else -most, vmax=most)
        for (i, j), number in np.ndenumerate(matrix):
            red, green, blue, _ = image.to_rgba(number)
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            axes.text(j, i, f"{number:.2f}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axes.set_title(title, fontsize=11)
        axes.set_yticks(range(len(WORDS)), WORDS)
        axes.set_xticks(range(len(columns)), columns)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def overview():
    return matrices(
        ("embeddings X", STEPS.x, ()),
        ("scores Q Kᵀ / √d", STEPS.scaled_scores, WORDS),
        ("weights A", STEPS.weights, WORDS),
        ("context A V", STEPS.context, ()),
    )


def step1():
    return matrices(("X", STEPS.x, ()))


def step2():
    return matrices(("Q", STEPS.query, ()), ("K", STEPS.key, ()), ("V", STEPS.value, ()))


def step3():
    return matrices(("S", STEPS.scores, WORDS))


def step4():
    return matrices(("Ŝ = S / √3", STEPS.scaled_scores, WORDS))


def step5():
    return matrices(("A", STEPS.weights, WORDS))


def step6():
    weighted = STEPS.weights[:, :, None] * STEPS.value
    return matrices(*((f"taken by {word}", taken, ()) for word, taken in zip(WORDS, weighted, strict=True)))


def step7():
    return matrices(("C", STEPS.context, ()))


# Who may attend to whom


def allowed(rows, keys, **modifiers):
    """Return where the reference lets rows attend to keys."""
    query, key = np.zeros((1, rows, 1)), np.zeros((1, keys, 1))
    return reference.attention_weights(query, key, stage="biased", **modifiers)[0] > -np.inf


def grids(*panels, cell=0.3):
    """Grids side by side, each (title, allowed): a square for each query and key, filled where it may attend."""
    rows = len(panels[0][1])
    widths = [grid.shape[1] for _, grid in panels]
    figure = Figure((cell * (sum(widths) + 2.6 * len(panels)), cell * (rows + 3)), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, (title, grid) in zip(every, panels, strict=True):
        axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=1.4, edgecolors=GREY, linewidth=0.6, alpha=0.9)
        axes.set_title(title, fontsize=10)
        axes.set(aspect="equal", xlabel="key")
        axes.invert_yaxis()
        axes.set_yticks(np.arange(rows) + 0.5, range(rows))
        axes.set_xticks(np.arange(grid.shape[1]) + 0.5, range(grid.shape[1]))
        axes.tick_params(length=0, labelsize=8)
    every[0].set_ylabel("query")
    return figure


def offsets():
    return grids(
        ('query_offset="start"', allowed(3, 6, causal=True, query_offset="start")),
        ('query_offset="end"', allowed(3, 6, causal=True, query_offset="end")),
        ("query_offset=1", allowed(3, 6, causal=True, query_offset=1)),
    )


def structure():
    row = np.arange(6)
    scattered = np.random.default_rng(3).random((6, 6)) < 0.45
    return grids(
        ("key_lengths=4", allowed(6, 6, key_lengths=4)),
        ("a prefix of 3", allowed(6, 6, key_range=(None, np.maximum(row + 1, 3)))),
        ("chunks of 2", allowed(6, 6, key_range=(row // 2 * 2, row // 2 * 2 + 2))),
        ("window=(1, 1)", allowed(6, 6, window=(1, 1))),
        ("a mask", allowed(6, 6, mask=scattered)),
        cell=0.26,
    )


def packed():
    indptr = np.array([0, 2, 6, 9])
    start = np.repeat(indptr[:-1], np.diff(indptr))
    return grids(("indptr = [0, 2, 6, 9]", allowed(9, 9, causal=True, key_range=(start, None))))


def tiles():
    """Blocks of a causal matrix, by the share of each that its rows may see."""
    blocks, size = 6, 16
    share = allowed(blocks * size, blocks * size, causal=True)
    share = share.reshape(blocks, size, blocks, size).mean(axis=(1, 3))
    figure = Figure((5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    kinds = [
        ("never touched", share == 0, "none"),
        ("on an edge: tested", (share > 0) & (share < 1), ORANGE),
        ("inside: nothing to test", share == 1, BLUE),
    ]
    for _, where, colour in kinds:
        for i, j in np.argwhere(where) * size:
            axes.add_patch(Rectangle((j, i), size, size, facecolor=colour, edgecolor=GREY, alpha=0.75))
    length = blocks * size
    axes.plot([0, length], [0, length], color="black", linewidth=1, linestyle=":")
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal", xlabel="key", ylabel="query")
    axes.set_xticks(range(0, length + 1, size))
    axes.set_yticks(range(0, length + 1, size))
    handles = [Patch(facecolor=colour, edgecolor=GREY, alpha=0.75, label=name) for name, _, colour in kinds]
    figure.legend(handles=handles, loc="outside right center")
    return figure


# Science


def observations():
    random = np.random.default_rng(0)
    points = np.sort(random.uniform(-1, 1, (300, 1)), axis=0)
    return points, np.sin(4 * points) + 0.3 * random.standard_normal((300, 1))


def gaussian(points, h):
    """The modifiers that make attention's weights those of a Gaussian kernel, as on the page science.md."""
    return {"scale": 1 / h**2, "bias": -(points**2).sum(axis=1) / (2 * h**2)}


def regression():
    points, observed = observations()
    places = np.linspace(-1, 1, 400)[:, None]
    figure = Figure((7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(points, observed, ".", color=GREY, markersize=3, alpha=0.7)
    for h, colour in ((0.01, ORANGE), (0.06, BLUE), (0.4, GREEN)):
        smooth = cattn.attention(places, points, observed, **gaussian(points, h))
        axes.plot(places, smooth, color=colour, label=f"h = {h}")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def bandwidth():
    points, observed = observations()
    n = np.arange(len(points))
    widths, errors = np.geomspace(0.01, 1, 60), []
    for h in widths:
        parts = [
            cattn.attention(points, points, observed, key_range=others, return_lse=True, **gaussian(points, h))
            for others in ((None, n), (n + 1, None))
        ]
        left_out, _ = cattn.merge_attention(*zip(*parts, strict=True))
        errors.append(((observed - left_out) ** 2).mean())
    best = widths[np.argmin(errors)], min(errors)
    figure = Figure((7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(widths, errors, color=BLUE)
    axes.plot(*best, "o", color=ORANGE)
    axes.annotate(f"h = {best[0]:.2f}", best, (0, 12), textcoords="offset points", ha="center")
    axes.set(xlabel="bandwidth h", ylabel="leave-one-out error", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


PICTURES = {
    draw.__name__: draw
    for draw in (
        *(overview, step1, step2, step3, step4, step5, step6, step7),
        *(offsets, structure, packed, tiles),
        *(regression, bandwidth),
    )
}
