"""trace keeps every matrix between the embeddings and the context; str(), a notebook and plot() show them."""

import dataclasses
import itertools
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import python, slow

import cattn

X = np.array([[0.2, 0.5, 0.1, 0.7], [0.9, 0.1, 0.4, 0.6], [0.3, 0.8, 0.2, 0.5]])
TOKENS = ("The", "cat", "sat")


def draw(length, d_model=4, d_k=3, d_v=3, dtype=np.float64):
    rng = np.random.default_rng(3)
    shapes = (length, d_model), (d_model, d_k), (d_model, d_k), (d_model, d_v)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture
def steps():
    return cattn.trace(X, *draw(3)[1:], tokens=TOKENS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 1e-5)])
def test_every_matrix_equals_the_formula(dtype, tolerance):
    x, w_query, w_key, w_value = draw(6, d_k=5, d_v=2, dtype=dtype)
    steps = cattn.trace(x, w_query, w_key, w_value)
    wide = x.astype(np.float64)
    query, key, value = wide @ w_query, wide @ w_key, wide @ w_value
    scores = query @ key.T
    weights = softmax(scores / np.sqrt(5))
    wanted = dict(
        x=wide,
        query=query,
        key=key,
        value=value,
        scores=scores,
        scaled_scores=scores / np.sqrt(5),
        final_scores=scores / np.sqrt(5),
        weights=weights,
        context=weights @ value,
    )
    for name, matrix in wanted.items():
        kept = getattr(steps, name)
        assert kept.dtype == dtype, name
        np.testing.assert_allclose(kept, matrix, rtol=tolerance, atol=10 * tolerance, err_msg=name)
    assert steps.scale == pytest.approx(5**-0.5)
    assert steps.tokens is None


def test_agrees_with_self_attention():
    inputs = draw(40, d_model=16, d_k=8, d_v=8, dtype=np.float32)
    np.testing.assert_allclose(cattn.trace(*inputs).context, cattn.self_attention(*inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types(name):
    dtype = np.dtype(name) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    inputs = draw(4, dtype=dtype)
    steps = cattn.trace(*inputs)
    assert steps.x.dtype == steps.context.dtype == dtype
    assert steps.query.dtype == steps.weights.dtype == np.float32
    np.testing.assert_array_equal(steps.context, cattn.self_attention(*inputs))
    assert "7. Context" in str(steps)


def test_modifiers_show_in_the_final_scores_and_the_weights():
    x, *weights = draw(5)
    bias = np.linspace(-1, 1, 25).reshape(5, 5)
    steps = cattn.trace(x, *weights, scale=0.25, causal=True, bias=bias, softcap=3.0, sinks=[0.5])
    allowed = np.tri(5, dtype=bool)
    final = np.where(allowed, 3 * np.tanh(steps.scores / 4 / 3) + bias, -np.inf)
    np.testing.assert_allclose(steps.scaled_scores, steps.scores / 4, rtol=1e-14)
    np.testing.assert_allclose(steps.final_scores, final, rtol=1e-13)
    weights = softmax(np.hstack([final, np.full((5, 1), 0.5)]))[:, :5]
    np.testing.assert_allclose(steps.weights, weights, rtol=1e-12)
    np.testing.assert_allclose(steps.context, weights @ steps.value, rtol=1e-12, atol=1e-14)
    text = str(steps)
    assert "ŝ_ij = 0.25 s_ij\n" in text
    assert "ŝ_ij with causal, bias and softcap\n" in text
    assert "α_ij = exp(ŝ_ij) / (exp(sink) + Σ_k exp(ŝ_ik))" in text
    assert "-inf" in text


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (dict(x=X[None]), ValueError, r"x: expected 2 dimensions .*got shape \(1, 3, 4\)"),
        (dict(x=X[0]), ValueError, r"x: expected 2 dimensions .*got shape \(4,\)"),
        (dict(w_key=np.ones((5, 3))), ValueError, r"w_key: expected 4 rows .*got 5 \(shape \(5, 3\)\)"),
        (dict(w_key=np.ones((4, 2))), ValueError, r"w_key: expected head size 3 like w_query, got 2"),
        (dict(w_value=np.ones((4, 3), np.float32)), TypeError, r"w_value: .*float64 like x, got float32"),
        (dict(tokens=["The", "cat"]), ValueError, r"tokens: expected 3 names, .*got 2"),
        (dict(tokens="The"), TypeError, r"tokens: expected a sequence .*got 'The'"),
        (dict(tokens=3), TypeError, r"tokens: expected a sequence .*got 3"),
        (dict(tokens=memoryview(np.ones((3, 2)))), TypeError, r"tokens: expected a sequence"),
        (dict(is_causal=True), TypeError, r"is_causal: not an argument of trace; write causal="),
        (dict(tokens=np.array([["a"], ["b"], ["c"]])), TypeError, r"tokens: expected a sequence"),
        (dict(scale="wide"), TypeError, r"scale: "),
    ],
)
def test_errors_name_the_argument(wrong, kind, message):
    arguments = dict(x=X, w_query=np.ones((4, 3)), w_key=np.ones((4, 3)), w_value=np.ones((4, 3)))
    with pytest.raises(kind, match=message):
        cattn.trace(**(arguments | wrong))


def test_is_frozen_and_has_a_short_repr(steps):
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps.weights = None
    assert repr(steps) == "<AttentionTrace of 3 tokens, d_k=3, d_v=3, float64>"
    assert steps.tokens == TOKENS


# Printed


def rows_after(text, heading, count):
    """Return the numbers in the `count` lines after the line that begins with `heading`, by their first word."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 1
    split = [line.split() for line in lines[start : start + count]]
    return {words[0]: np.array(words[1:], dtype=float) for words in split}


def test_str_prints_the_seven_steps_in_order(steps):
    headings = re.findall(r"^(\d)\. (\w+ ?\w+)", str(steps), flags=re.MULTILINE)
    assert headings == [
        ("1", "Embeddings"),
        ("2", "Projections"),
        ("3", "Scores"),
        ("4", "Scaled scores"),
        ("5", "Weights"),
        ("6", "Weighted values"),
        ("7", "Context"),
    ]
    assert "ŝ_ij = s_ij / √d_k, d_k = 3" in str(steps)
    assert "ŝ_ij with" not in str(steps) and steps.modifiers == ()


@pytest.mark.parametrize(
    "modifiers, given, named",
    [
        (dict(causal=True), ("causal",), "ŝ_ij with causal"),
        (dict(softcap=2.0, mask=None, causal=False), ("softcap",), "ŝ_ij with softcap"),
        (dict(causal=True, sinks=[0.0]), ("causal", "sinks"), "ŝ_ij with causal"),
        (dict(sinks=[0.0]), ("sinks",), None),
    ],
    ids=str,
)
def test_modifiers_that_were_given_are_named(modifiers, given, named):
    """A sink changes no score: it shows in the formula of the weights."""
    steps = cattn.trace(*draw(3), **modifiers)
    assert steps.modifiers == given
    text, page = str(steps), Page(steps._repr_html_())
    assert re.findall(r"^   (ŝ_ij with .*)$", text, flags=re.MULTILINE) == ([named] if named else [])
    assert ("exp(sink)" in text) == ("sinks" in modifiers)
    assert [caption for caption in page.captions if "with" in caption] == (
        [f"{named} (-inf: masked) (3 × 3)"] if named else []
    )


def test_text_and_html_have_the_same_letters(steps):
    """The letters are those of docs/steps.md: s_ij, ŝ_ij, α_ij and c_i."""
    text, page = str(steps), steps._repr_html_()
    for formula in ("s_ij = q_i · k_j", "ŝ_ij = s_ij / √d_k", "α_ij = exp(ŝ_ij) / Σ_k exp(ŝ_ik)", "c_i = Σ_j α_ij v_j"):
        assert formula in text
        assert re.sub(r"_(\w+)", r"<sub>\1</sub>", formula) in page


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_str_can_be_printed_in_any_encoding(encoding):
    code = "import cattn, numpy as np; x = np.eye(3); print(cattn.trace(x, x, x, x, causal=True))"
    printed = python(code, encoding=encoding, PYTHONIOENCODING=encoding)
    letters = "ŝ_ij = s_ij / √d_k" if encoding == "utf-8" else "s^_ij = s_ij / sqrt d_k"
    assert f"4. Scaled scores  {letters}, d_k = 3" in printed


def test_str_prints_the_matrices_by_token(steps):
    text = str(steps)
    shares = {f"for {name}": steps.weights[i][:, None] * steps.value for i, name in enumerate(TOKENS)}
    matrices = {"1. ": X, "Q  (3 x 3)": steps.query, "K  (3 x 3)": steps.key, "V  (3 x 3)": steps.value}
    for heading, matrix in {**matrices, **shares, "7. ": steps.context}.items():
        printed = rows_after(text, heading, 3)
        assert tuple(printed) == TOKENS
        np.testing.assert_allclose(list(printed.values()), matrix, atol=5.1e-5)

    lines = text.splitlines()
    for heading, matrix in {"3. ": steps.scores, "4. ": steps.scaled_scores, "5. ": steps.weights}.items():
        start = next(i for i, line in enumerate(lines) if line.startswith(heading))
        assert lines[start + 1].split()[:3] == list(TOKENS)
        printed = np.array([line.split()[1:4] for line in lines[start + 2 : start + 5]], dtype=float)
        np.testing.assert_allclose(printed, matrix, atol=5.1e-5)
        widths = {len(line) for line in lines[start + 1 : start + 5]}
        assert len(widths) == 1, "the columns of a matrix are not aligned"
    assert re.search(r"^5\..*\n +The +cat +sat +row sum\n(  .* 1\.0000\n){3}", text, flags=re.MULTILINE)


def test_str_abbreviates_long_inputs():
    text = str(cattn.trace(*draw(512, d_model=64, d_k=32, d_v=32), tokens=[f"token{i}" for i in range(512)]))
    lines = text.splitlines()
    assert len(lines) < 130
    assert max(map(len, lines)) <= 110
    assert "token0" in text
    assert "token511" in text
    assert "token256" not in text
    assert "1.0000" in text  # the row sums stay
    start = next(i for i, line in enumerate(lines) if line.startswith("5. "))
    shown = ["token0", "token1", "token2", "...", "token509", "token510", "token511"]
    assert lines[start + 1].split() == [*shown, "row", "sum"]
    assert [line.split()[0] for line in lines[start + 2 : start + 9]] == shown
    assert "..." in lines[start + 2]


def test_str_without_tokens_counts_them():
    text = str(cattn.trace(*draw(3)))
    assert list(rows_after(text, "1. ", 3)) == ["0", "1", "2"]


def test_str_of_numbers_of_any_size():
    x, *weights = draw(3)
    for factor, sample in ((0, "0.0000"), (1e-5, "e-"), (1e7, "e+"), (np.nan, "nan")):
        assert sample in str(cattn.trace(x * factor, *weights))
    assert "-0.0000" not in str(cattn.trace(-np.zeros((3, 4)), *weights))


def test_str_of_no_tokens_at_all():
    text = str(cattn.trace(np.zeros((0, 4)), *draw(3)[1:], tokens=[]))
    assert "7. Context" in text


def test_tokens_of_any_kind_print_on_one_line():
    names = ["a\nb\x1b[31m", b"caf\xc3\xa9", "東京", np.str_("ok"), "extraordinarily long"]
    steps = cattn.trace(*draw(5), tokens=np.array(names, dtype=object))
    assert steps.tokens == (r"a\nb\x1b[31m", "café", "東京", "ok", "extraordinarily long")
    text = str(steps)
    assert "extraordina..." in text
    # A wide character takes two columns: its line is shorter by one character for each.
    lines = {line.split()[0]: line for line in text.splitlines()[1:6]}
    assert len(lines["東京"]) == len(lines["ok"]) - 2


# As HTML


class Page(HTMLParser):
    """Hold what a browser makes of a page: the texts of headings and tables, and the cells of SVG. Elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.captions, self.tables = [], [], [], []
        self.labels, self.images, self.colours, self.style, self.elements = [], [], [], "", set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        attributes = dict(attributes)
        if tag == "br":
            return
        self.open.append(tag)
        kept = {"b": self.headings, "caption": self.captions, "table": self.tables, "text": self.labels}.get(tag)
        if kept is not None:
            kept.append([] if tag == "table" else "")
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.colours += re.findall(r"rgba\((.*)\)", attributes.get("style", ""))
        elif "viewbox" in attributes:
            _, _, columns, rows = map(float, attributes["viewbox"].split())
            self.images.append(np.zeros((int(rows), int(columns))))
        elif tag == "path":  # lines along rows of cells
            shade = np.nan if "230, 110, 20" in attributes["stroke"] else float(attributes["stroke-opacity"])
            for line in re.findall(r"M(\d+) (\d+)h(\d+)", attributes["d"]):
                start, row, length = map(int, line)
                assert (self.images[-1][row, start : start + length] == 0).all()
                self.images[-1][row, start : start + length] = shade

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag, kept in (("b", self.headings), ("caption", self.captions), ("text", self.labels)):
            if tag in self.open:
                kept[-1] += data
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open[-1] == "style":
            self.style += data

    def numbers(self, table, columns=0):
        """Return the numbers of a table, and what they are called in its first column and its first row."""
        rows = self.tables[table]
        top = rows.pop(0)[1:] if columns else None
        return np.array([row[1:] for row in rows], dtype=float), [row[0] for row in rows], top


def test_html_shows_the_seven_steps_as_tables(steps):
    page = Page(steps._repr_html_())
    assert page.headings == [
        "1. Embeddings",
        "2. Projections",
        "3. Scores",
        "4. Scaled scores",
        "5. Weights",
        "6. Weighted values",
        "7. Context",
    ]
    by_token = [X, steps.query, steps.key, steps.value]
    squares = [steps.scores, steps.scaled_scores]
    shares = [steps.weights[i][:, None] * steps.value for i in range(3)]
    for table, matrix in {**dict(enumerate(by_token)), **dict(enumerate(shares, 7)), 10: steps.context}.items():
        numbers, rows, _ = page.numbers(table)
        np.testing.assert_allclose(numbers, matrix, atol=5.1e-5)
        assert rows == list(TOKENS)
    for table, matrix in enumerate(squares, 4):
        numbers, rows, columns = page.numbers(table, columns=1)
        np.testing.assert_allclose(numbers, matrix, atol=5.1e-5)
        assert rows == columns == list(TOKENS)
    numbers, _, columns = page.numbers(6, columns=1)
    np.testing.assert_allclose(numbers, np.hstack([steps.weights, np.ones((3, 1))]), atol=5.1e-5)
    assert columns == [*TOKENS, "row sum"]
    assert page.captions[1:4] == ["Q (3 × 3)", "K (3 × 3)", "V (3 × 3)"]
    assert len(page.tables) == 11


def test_html_shows_the_heatmap_of_the_weights(steps):
    page = Page(steps._repr_html_())
    heatmap, scale = page.images
    np.testing.assert_allclose(heatmap, steps.weights / steps.weights.max(), atol=0.501 / 32)
    np.testing.assert_allclose(scale, np.arange(33)[None] / 32, atol=1e-3)
    assert page.labels[:6] == [name for name in TOKENS for _ in range(2)]
    assert page.labels[-1] == f"{steps.weights.max():.3g}"
    assert "each row sums to 1" in steps._repr_html_()


def luminance(colour):
    """Return the relative luminance of a colour in sRGB (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize(("page", "text"), [(1.0, 0.0), (0.07, 0.93)], ids=["light", "dark"])
def test_html_can_be_read_on_light_and_dark_pages(steps, page, text):
    """The text has the page's colour, and on each shade a contrast of 4.5 or more, as WCAG asks."""
    html = Page(steps._repr_html_())
    assert set(re.findall(r"(?:color|fill): ([^;]+)", html.style)) == {"inherit", "currentColor"}
    assert len(html.colours) > 40
    for colour in html.colours:
        *shade, alpha = map(float, colour.split(","))
        mixed = [alpha * c / 255 + (1 - alpha) * page for c in shade]
        low, high = sorted([luminance(mixed), luminance([text] * 3)])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_html_shortens_large_matrices():
    steps = cattn.trace(*draw(512, d_model=64, d_k=32, d_v=32), tokens=[f"token{i}" for i in range(512)])
    html = steps._repr_html_()
    assert len(html) < 120_000
    assert html.count("The first and last 3 of 512 rows and of 64 columns are shown.") == 1
    assert html.count("The first and last 3 of 512 rows and of 512 columns are shown.") == 3
    page = Page(html)
    shown = ["token0", "token1", "token2", "…", "token509", "token510", "token511"]
    assert page.tables[4][0] == ["", *shown]
    assert [row[0] for row in page.tables[4][1:]] == shown
    heatmap, _ = page.images
    blocks = np.pad(steps.weights, (0, 4)).reshape(86, 6, 86, 6).max(axis=(1, 3))
    np.testing.assert_allclose(heatmap, blocks / blocks.max(), atol=0.501 / 32)
    assert "each cell is the largest of 6 × 6 weights" in html
    assert "token256" not in " ".join(cell for table in page.tables for row in table for cell in row)


def test_html_escapes_tokens():
    names = ["<script>alert(1)</script>", "a & b", '"><img src=x onerror=alert(1)>']
    page = Page(cattn.trace(*draw(3), tokens=names)._repr_html_())
    assert page.elements.isdisjoint({"script", "img"})
    assert [row[0] for row in page.tables[0]] == ["<script>ale...", "a & b", '"><img src=...']
    assert "a & b" in page.labels


def test_html_says_what_is_not_finite():
    x, *weights = draw(3)
    x[1, 0], x[2, 1] = np.nan, np.inf
    page = Page(cattn.trace(x, *weights, key_lengths=2)._repr_html_())
    assert page.captions[0] == "(3 × 4)Of 12 numbers, 1 NaN and 1 infinite."
    assert page.captions[2].startswith("K (3 × 3)Of 9 numbers, 3 NaN and")
    assert page.tables[0][1][1] == "nan" and page.tables[0][2][2] == "inf"
    assert np.isnan(page.images[0]).any()
    assert "orange: NaN" in cattn.trace(x, *weights)._repr_html_()


def test_html_tells_masked_from_infinite():
    steps = cattn.trace(*draw(3), causal=True)
    page = Page(steps._repr_html_())
    assert page.captions[6] == "ŝ_ij with causal (-inf: masked) (3 × 3)"
    assert page.tables[6][1][1:] == [f"{steps.scaled_scores[0, 0]:.4f}", "-inf", "-inf"]


@pytest.mark.parametrize("length", [0, 1])
def test_html_of_hardly_any_tokens(length):
    page = Page(cattn.trace(*draw(length), **({"tokens": []} if length == 0 else {}))._repr_html_())
    assert page.headings[-1] == "7. Context"
    assert len(page.images) == 2 * length


# Plotted


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_is_a_heatmap_of_the_weights(pyplot, steps):
    ax = steps.plot()
    np.testing.assert_array_equal(ax.images[0].get_array(), steps.weights)
    assert [label.get_text() for label in ax.get_xticklabels()] == list(TOKENS)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TOKENS)
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first query token belongs at the top"
    assert "key" in ax.get_xlabel()
    assert "query" in ax.get_ylabel()
    written = {text.get_position(): text for text in ax.texts}
    for (i, j), weight in np.ndenumerate(steps.weights):
        assert written[j, i].get_text() == f"{weight:.2f}"
    colorbar = ax.images[0].colorbar
    assert colorbar.ax.get_ylabel() == r"weight $\alpha_{ij}$ (each row sums to 1)"


def test_plot_writes_in_colours_that_contrast(pyplot):
    ax = cattn.trace(np.eye(2) * 3, np.eye(2), np.eye(2), np.eye(2)).plot()
    assert {text.get_text(): text.get_color() for text in ax.texts} == {"1.00": "white", "0.00": "black"}


def test_plot_into_given_axes(pyplot, steps):
    figure, axes = pyplot.subplots(1, 2)
    assert steps.plot(axes[1]) is axes[1]
    assert steps.plot(ax=axes[0]) is axes[0]
    assert pyplot.get_fignums() == [figure.number]


@pytest.mark.parametrize("length", [slow(1), 12, slow(128)])
def test_plot_labels_never_overlap(pyplot, tmp_path, length):
    names = [f"a rather long name {i}" for i in range(length)]
    ax = cattn.trace(*draw(length), tokens=names).plot()
    figure = ax.figure
    figure.savefig(tmp_path / "weights.png")
    assert bool(ax.texts) == (length < 128)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))
        assert all(figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1) for box in boxes)
    cell = ax.get_window_extent().width / length
    assert all(text.get_window_extent().width < cell for text in ax.texts)


def test_scale_of_few_tokens_ends_at_the_largest_weight(pyplot):
    for length in (3, 64):
        ax = cattn.trace(*draw(length)).plot()
        image = ax.images[0]
        assert image.norm.vmax == image.get_array().max()
        assert image.colorbar.extend == "neither"


@pytest.mark.parametrize("length", [65, 500, 1300])
def test_scale_of_many_tokens_follows_the_most_of_them(pyplot, length):
    """One query that attends to one key alone does not hide all others, whose weights are about 1 / length; nor does a
    query whose scores are NaN."""
    x, *weights = draw(length)
    bias = np.zeros((length, length))
    bias[7, 3], bias[9] = 20, np.nan
    ax = cattn.trace(0.1 * x, *weights, bias=bias).plot()
    image = ax.images[0]
    cells = image.get_array()
    assert image.norm.vmin == 0
    assert 1 / length < image.norm.vmax < 5 / length
    assert cells.max() > 0.9
    assert image.colorbar.extend == "max"
    assert image.colorbar.ax.get_ylabel().startswith(r"weight $\alpha_{ij}$ (grey: NaN)")


@pytest.mark.parametrize("length, step", [(512, 1), (513, 2), (1300, 3)])
def test_a_cell_of_a_long_plot_is_the_largest_of_a_block(pyplot, length, step):
    steps = cattn.trace(*draw(length))
    ax = steps.plot()
    image = ax.images[0]
    padded = np.zeros((-(-length // step) * step,) * 2)
    padded[:length, :length] = steps.weights
    side = len(padded) // step
    blocks = padded.reshape(side, step, side, step)
    np.testing.assert_array_equal(image.get_array(), blocks.max(axis=(1, 3)))
    assert image.get_extent() == [-0.5, len(padded) - 0.5, len(padded) - 0.5, -0.5], "a token is one unit wide"
    assert ax.get_xlim() == (-0.5, length - 0.5)
    assert ax.get_ylim() == (length - 0.5, -0.5)
    assert (f"the largest of {step} x {step}" in image.colorbar.ax.get_ylabel()) == (step > 1)


def test_plot_of_names_that_look_like_mathematics(pyplot, tmp_path):
    ax = cattn.trace(*draw(2), tokens=["$a_", r"$\undefined{$"]).plot()
    ax.figure.savefig(tmp_path / "weights.png")
    assert ax.get_xticklabels()[1].get_text() == r"$\undefined{$"


def test_plot_tells_where_rows_do_not_sum_to_one(pyplot):
    x, *weights = draw(3)
    with_sink = cattn.trace(x, *weights, sinks=[2.0]).plot()
    assert with_sink.images[0].colorbar.ax.get_ylabel().startswith(r"weight $\alpha_{ij}$ (rows sum to 0.")
    nothing = cattn.trace(x, *weights, key_lengths=0).plot()
    assert nothing.images[0].colorbar.ax.get_ylabel() == r"weight $\alpha_{ij}$ (rows sum to 0 to 0)"
    assert {text.get_text() for text in nothing.texts} == {"0"}


def test_plot_of_nan_and_of_nothing(pyplot):
    x, *weights = draw(3)
    ax = cattn.trace(x * np.nan, *weights).plot()
    assert {text.get_text() for text in ax.texts} == {"nan"}
    assert ax.images[0].colorbar.ax.get_ylabel() == r"weight $\alpha_{ij}$ (grey: NaN)"
    with pytest.raises(ValueError, match="at least one token"):
        cattn.trace(x[:0], *weights).plot()


def test_plot_without_matplotlib_names_the_extra(monkeypatch, steps):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(ImportError, match=r"pip install 'cattn\[plot\]'"):
        steps.plot()


def test_importing_cattn_does_not_import_matplotlib():
    assert python("import sys, cattn; print('matplotlib' in sys.modules)") == "False\n"
