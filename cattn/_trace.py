"""One head of self-attention that keeps every intermediate matrix, to be read and plotted."""

import dataclasses
import itertools
import math

import numpy as np

from . import _read
from ._arithmetic import in_usual_arithmetic
from ._calls import explained, forwarding
from ._kernel import attention, attention_weights
from ._self_attention import check_shapes, float_arrays, project, widened
from ._trace_text import (
    EDGE,
    MAX_LABEL,
    clip,
    format_matrix,
    formulas,
    largest_of_blocks,
    modified,
    printable,
    shown,
    size_of,
)

MAX_TICK_LABEL = 18  # the most characters of a token's name
# A heatmap of at most FEW tokens has a scale up to its largest weight, and none has more than MAX_CELLS rows of cells.
FEW, MAX_CELLS = 64, 512


@explained
@forwarding(attention, without=("key_scale", "value_scale", "layout", "out", "return_lse", "num_threads"))
@in_usual_arithmetic
def trace(
    x,
    w_query,
    w_key,
    w_value,
    *,
    tokens=None,
    scale=None,
    **modifiers,
):
    """Compute self-attention of one head step by step, and keep every matrix.

    The steps are those of `self_attention` (Vaswani et al., "Attention Is All You Need", 2017, section 3.2), and each
    matrix is computed by the same kernel::

        Q, K, V = x @ w_query, x @ w_key, x @ w_value
        scores = Q @ K.T                       # s_ij = q_i · k_j
        scaled_scores = scores / sqrt(d_k)     # ŝ_ij
        weights = softmax_rows(scaled_scores)  # α_ij
        context = weights @ V

    Parameters
    ----------
    x : array_like, shape (L, d_model)
        The embeddings, with one row for each token.
    w_query, w_key : array_like, shape (d_model, d_k)
        The projections to query and key.
    w_value : array_like, shape (d_model, d_v)
        The projection to value.
    tokens : sequence of str, optional
        The names of the L tokens, for printing and plotting.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks : optional
        As in `attention`.

    Returns
    -------
    AttentionTrace
        It holds all matrices. ``print`` shows them as text, a notebook shows them as tables, and its `plot` draws the
        weights.

    Raises
    ------
    TypeError
        An array has a type that is not supported or differs from that of `x`; `tokens` is one string.
    ValueError
        A shape does not fit, or there is not one token for each row of `x`.

    See Also
    --------
    self_attention : Compute all heads at once, without the matrices in between.
    attention_weights : Compute the weights alone, from query and key.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.array([[0.2, 0.5], [0.9, 0.1]])
    >>> steps = cattn.trace(x, np.eye(2), np.eye(2), np.eye(2), tokens=["The", "cat"])
    >>> steps.weights.round(4)
    array([[0.5106, 0.4894],
           [0.3972, 0.6028]])
    >>> print(steps)
    1. Embeddings  X  (2 x 2)
      The  0.2000  0.5000
      cat  0.9000  0.1000
    ...
    """
    arrays = float_arrays(x=x, w_query=w_query, w_key=w_key, w_value=w_value)
    x = arrays["x"]
    if x.ndim != 2:
        raise ValueError(f"x: expected 2 dimensions (tokens, d_model), got shape {x.shape}")
    check_shapes(arrays, num_heads=1, num_kv_heads=1)
    tokens = _token_names(tokens, len(x))

    wide = widened(arrays)
    query, key, value = (project(wide["x"], wide[f"w_{name}"]) for name in ("query", "key", "value"))
    scaled_scores = attention_weights(query, key, stage="scores", scale=scale)
    given = tuple(name for name, value in modifiers.items() if value is not None and value is not False)
    final_scores = scaled_scores
    if set(given) - {"sinks"}:
        final_scores = attention_weights(query, key, stage="biased", scale=scale, **modifiers)
    context = attention(query, key, value, scale=scale, **modifiers).astype(x.dtype, copy=False)
    return AttentionTrace(
        x=x,
        query=query,
        key=key,
        value=value,
        scores=attention_weights(query, key, stage="scores", scale=1.0),
        scaled_scores=scaled_scores,
        final_scores=final_scores,
        weights=attention_weights(query, key, scale=scale, **modifiers),
        context=context,
        scale=1 / math.sqrt(query.shape[1]) if scale is None else _read.as_number("scale", scale),
        tokens=tokens,
        modifiers=given,
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionTrace:
    """Hold the matrices of one head of self-attention, as `trace` returns them.

    ``str()`` lays the seven steps out as labelled matrices. A notebook shows them as shaded tables. `plot` draws the
    weights.

    Attributes
    ----------
    x : ndarray, shape (L, d_model)
        The embeddings.
    query, key : ndarray, shape (L, d_k)
        ``x @ w_query`` and ``x @ w_key``.
    value : ndarray, shape (L, d_v)
        ``x @ w_value``.
    scores : ndarray, shape (L, L)
        ``query @ key.T``. Row i holds the score of token i with each key.
    scaled_scores : ndarray, shape (L, L)
        `scores` times `scale`.
    final_scores : ndarray, shape (L, L)
        `scaled_scores` after softcap, bias, ALiBi slopes and masking (-inf). Without these it is the same array.
    weights : ndarray, shape (L, L)
        The softmax of each row of `final_scores`.
    context : ndarray, shape (L, d_v)
        ``weights @ value``. It has the type of `x`.
    scale : float
        The factor of the scores.
    tokens : tuple of str, or None
        The names of the tokens.
    modifiers : tuple of str
        The names of the modifiers that were given, such as "causal".

    See Also
    --------
    trace : Make an AttentionTrace.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> steps = cattn.trace(np.eye(2), np.eye(2), np.eye(2), np.eye(2), scale=1.0)
    >>> steps
    <AttentionTrace of 2 tokens, d_k=2, d_v=2, float64>
    >>> np.allclose(steps.context, steps.weights @ steps.value)
    True
    """

    x: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scores: np.ndarray
    scaled_scores: np.ndarray
    final_scores: np.ndarray
    weights: np.ndarray
    context: np.ndarray
    scale: float
    tokens: tuple[str, ...] | None = None
    modifiers: tuple[str, ...] = ()

    def __repr__(self):
        d_k, d_v = self.query.shape[1], self.value.shape[1]
        return f"<AttentionTrace of {len(self.x)} tokens, d_k={d_k}, d_v={d_v}, {self.x.dtype}>"

    def __str__(self):
        names, step = self._names(), formulas(self)
        sums = self.weights.sum(axis=1, keepdims=True)
        lines = [
            f"1. Embeddings  X  {size_of(self.x)}",
            *format_matrix(self.x, names),
            "",
            f"2. Projections  {step['Projections']}",
            f"Q  {size_of(self.query)}",
            *format_matrix(self.query, names),
            f"K  {size_of(self.key)}",
            *format_matrix(self.key, names),
            f"V  {size_of(self.value)}",
            *format_matrix(self.value, names),
            "",
            f"3. Scores  {step['Scores']}",
            *format_matrix(self.scores, names, names),
            "",
            f"4. Scaled scores  {step['Scaled scores']}",
            *format_matrix(self.scaled_scores, names, names),
            "",
        ]
        if self.final_scores is not self.scaled_scores:
            lines += [
                f"   {modified(self)}",
                *format_matrix(self.final_scores, names, names),
                "",
            ]
        lines += [
            f"5. Weights  {step['Weights']}",
            *format_matrix(np.hstack([self.weights, sums]), names, [*names, "row sum"], last_column=True),
            "",
            f"6. Weighted values  {step['Weighted values']}",
            *self._format_weighted_values(names),
            "",
            f"7. Context  {step['Context']}  {size_of(self.context)}",
            *format_matrix(self.context, names),
        ]
        return printable("\n".join(lines))

    def _format_weighted_values(self, names):
        rows = shown(len(names), EDGE + 1)
        for i in rows:
            if i is None:
                yield "..."
                continue
            yield f"for {clip(names[i], MAX_LABEL)}"
            yield from format_matrix(self._weighted_values(i), names)

    def _weighted_values(self, i):
        weight = self.weights[i][:, None]
        # A weight of exactly 0 takes nothing from its value, not even a NaN.
        return np.multiply(weight, self.value, where=weight != 0, out=np.zeros_like(self.value))

    def _repr_html_(self):
        from ._trace_html import trace_html

        return trace_html(self)

    def _names(self):
        return self.tokens if self.tokens is not None else tuple(map(str, range(len(self.x))))

    def plot(self, ax=None):
        """Draw the weights as a heatmap, with a row for each query token and a column for each key token.

        The color scale ends at the largest weight. With more than 64 tokens it ends at the median of the rows' largest
        weights, so that a few large ones do not hide all others. With more than 512 tokens, a cell shows the largest
        weight of several queries by as many keys. NaN is grey.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            The axes to draw on. By default, a new figure is made. A figure of your own with several axes needs
            ``layout="compressed"``, which makes room for the labels.

        Returns
        -------
        matplotlib.axes.Axes
            ``ax.figure`` is the figure that you show or save.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            There are no tokens.

        See Also
        --------
        trace : Compute the weights that are drawn.

        Examples
        --------
        >>> import numpy as np
        >>> import cattn
        >>> steps = cattn.trace(np.eye(2), np.eye(2), np.eye(2), np.eye(2), tokens=["The", "cat"])
        >>> axes = steps.plot()
        >>> axes.figure.savefig("weights.png")  # doctest: +SKIP
        """
        try:
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'cattn[plot]'") from error
        count = len(self.x)
        if count == 0:
            raise ValueError("plot: expected at least one token, got none")
        names = [clip(name, MAX_TICK_LABEL) for name in self._names()]
        if ax is None:
            from matplotlib import pyplot

            side = min(max(0.62 * count, 3.0), 8.0)
            margin = 0.09 * max(map(len, names)) if self.tokens is not None else 0.3
            ax = pyplot.figure(figsize=(side + margin + 1.6, side + margin + 0.8), layout="compressed").add_subplot()

        step = math.ceil(count / MAX_CELLS)
        cells = largest_of_blocks(self.weights, step)
        peaks = np.fmax.reduce(cells, axis=1, initial=0.0)
        top = np.median(peaks) if count > FEW else peaks.max()
        label = rf"weight $\alpha_{{ij}}$ ({self._row_sums()})"
        if step > 1:
            label += f", the largest of {step} x {step}"
        image = ax.imshow(cells, cmap="Blues", vmin=0, vmax=top or peaks.max() or 1.0)
        image.set_cmap(image.cmap.with_extremes(bad="0.75"))
        image.set_extent(np.array([0, len(cells), len(cells), 0]) * step - 0.5)
        ax.set(title="Attention weights", xlabel="key token j (attended to)", ylabel="query token i (attends)")
        ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        extend = "max" if image.norm.vmax < peaks.max() else "neither"
        ax.figure.colorbar(image, ax=ax, label=label, aspect=25, pad=0.03, extend=extend)
        if self.tokens is None:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(count, 12)))
            ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(count, 12)))
            cell = _cell_points(ax, count)
        else:
            cell = self._label_axes(ax, names)
        if cell >= 22:
            self._write_values(ax, image, fontsize=min(10, 0.32 * cell))
        return ax

    def _row_sums(self):
        sums = self.weights.sum(axis=1, dtype=np.float64)
        if np.isnan(sums).any():
            return "grey: NaN"
        if np.allclose(sums, 1, atol=1e-3):
            return "each row sums to 1"
        return f"rows sum to {sums.min():.2g} to {sums.max():.2g}"

    def _label_axes(self, ax, names):
        """Write the names at the ticks, every n-th where they would overlap; return the size of a cell in points."""
        fontsize = 9
        ax.set_yticks([])
        step = math.ceil((fontsize + 2) / _cell_points(ax, len(names)))
        ticks = range(0, len(names), step)
        labels = names[::step]
        ax.set_yticks(ticks, labels, fontsize=fontsize, parse_math=False)
        ax.set_xticks(ticks, labels, fontsize=fontsize, parse_math=False)
        cell = _cell_points(ax, len(names))
        if max(map(len, labels)) * 0.65 * fontsize > step * cell:
            ax.tick_params(axis="x", rotation=90)
            cell = _cell_points(ax, len(names))
        return cell

    def _write_values(self, ax, image, fontsize):
        for i, j in itertools.product(range(len(self.weights)), repeat=2):
            weight = self.weights[i, j]
            red, green, blue, _ = image.to_rgba(weight)
            bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
            text = "0" if weight == 0 else f"{weight:.2f}"
            color = "black" if bright else "white"
            # A text that takes part in the layout is measured at each draw, and these never leave the axes.
            ax.text(j, i, text, ha="center", va="center", fontsize=fontsize, color=color, in_layout=False)


def _token_names(tokens, count):
    if tokens is None:
        return None
    if isinstance(tokens, (str, bytes)) or getattr(tokens, "ndim", 1) != 1 or not np.iterable(tokens):
        raise TypeError(f"tokens: expected a sequence of token names, got {_read.shown(tokens)}")
    names = tuple(map(_printable, tokens))
    if len(names) != count:
        raise ValueError(f"tokens: expected {count} names, one for each row of x, got {len(names)}")
    return names


def _printable(token):
    try:
        text = token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)
    except ValueError:  # It is an integer of more digits than Python prints.
        text = _read.shown(token)
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _cell_points(ax, count):
    """Return the height and width of a cell of the heatmap, in points, in the layout of the figure as it now stands."""
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    box = ax.get_window_extent()
    return min(box.width, box.height) * 72 / figure.dpi / count
