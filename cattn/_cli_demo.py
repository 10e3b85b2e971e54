"""``cattn demo`` walks through attention step by step, for three tokens or for those of a file."""

import csv
import io
import reprlib

import numpy as np

import cattn
from cattn import reference
from cattn._cli import CommandError, check_matplotlib, is_number, one_line
from cattn._trace_text import format_matrix

TOKENS = ("The", "cat", "sat")
EMBEDDINGS = ((0.2, 0.5, 0.1, 0.7), (0.9, 0.1, 0.4, 0.6), (0.3, 0.8, 0.2, 0.5))
W_QUERY = ((0.5, -1.0, -0.5), (1.0, 2.0, 2.0), (0.5, -0.5, 0.0), (-1.0, -1.0, 0.0))
W_KEY = ((0.0, 0.5, 1.5), (-0.5, -0.5, -0.5), (0.0, 0.5, 1.0), (0.0, 1.0, 0.0))
W_VALUE = ((1.0, 0.0, 0.5), (0.0, 1.0, 0.5), (0.5, 0.0, 0.0), (0.0, 0.5, 1.0))

# The demo keeps every matrix of tokens x tokens, and its check needs as much memory again.
MAX_TOKENS = 4096
# Where a file holds no projections, the demo makes three of d_model x 64.
MAX_D_MODEL = 65536


def add_parser(commands):
    parser = commands.add_parser(
        "demo",
        help="print the seven steps of attention",
        description="Print the seven steps of attention, for the sentence 'The cat sat' or for your own embeddings.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="your embeddings X (tokens, d_model): a .npy file; a .npz file with x and optionally w_query, w_key, "
        "w_value and tokens; or a .csv file with one line for each token, optionally with a first line of headings and "
        "a first column of tokens",
    )
    parser.add_argument("--plot", metavar="PNG", help="also write a heatmap of the weights to this file")


def run(options):
    file, plot = options.file, options.plot
    if plot is not None:
        check_matplotlib()
    if file is None:
        x, tokens = np.array(EMBEDDINGS), TOKENS
        weights = [np.array(weight) for weight in (W_QUERY, W_KEY, W_VALUE)]
        title = f'The sentence "{" ".join(TOKENS)}"'
    else:
        x, weights, tokens = _read(file)
        title = f"The embeddings of {file}"
    if x.ndim == 2 and len(x) > MAX_TOKENS:
        raise CommandError(
            f"{file}: expected at most {MAX_TOKENS} tokens, as the demo keeps all weights of tokens x tokens, "
            f"got {len(x)}; take a part of them, or cattn.attention, which never holds that matrix"
        )
    if x.ndim == 2 and len(x) == 0:
        nothing = f"x has shape {x.shape}: there are no tokens, and nothing to show"
        if plot is not None:
            raise CommandError(f"--plot {plot}: {nothing}")
        print(f"{title}: {nothing}.")
        return
    if weights is None:
        if x.ndim == 2 and x.shape[1] > MAX_D_MODEL:
            raise CommandError(
                f"{file}: expected at most {MAX_D_MODEL} columns where the file holds no projections, got "
                f"{x.shape[1]}; a row is a token"
            )
        weights = _random_projections(x)
        note = "random, as the file holds none (seed 0)"
    else:
        note = "given" if file else "fixed"

    try:
        steps = cattn.trace(x, *weights, tokens=tokens)
        _print_steps(title, note, weights, steps)
        if plot is not None:
            _write_plot(steps, weights, plot)
    except (TypeError, ValueError, MemoryError) as error:
        raise CommandError(f"{file or title}: {one_line(error)}") from error


def _print_steps(title, note, weights, steps):
    print(f"{title}\n\nThe projections, {note}")
    for name, weight in zip(("W_query", "W_key", "W_value"), weights, strict=True):
        print(f"{name}  ({weight.shape[0]} x {weight.shape[1]})")
        print("\n".join(format_matrix(weight)))
    print(f"\n{steps}\n")

    # The reference computes some rows at a time, because it holds many matrices of rows x tokens.
    starts = range(0, len(steps.query), 256)
    rows = [reference.attention(steps.query[start : start + 256], steps.key, steps.value) for start in starts]
    with np.errstate(invalid="ignore"):
        difference = np.asarray(steps.context, dtype=np.float64) - np.concatenate(rows)
    print(f"Check  C ({steps.context.dtype}) - C of the NumPy reference (float64)")
    print("\n".join(format_matrix(difference, steps.tokens, number="{:.1e}".format)))
    print(f"largest absolute difference: {np.abs(difference).max():.1e}")
    if np.isnan(steps.weights).any():
        print(f"Note  {_where_from(steps, weights)}")


def _where_from(steps, weights):
    """Say in a line why there are attention weights that are NaN."""
    count, total = np.isnan(steps.weights).sum(), steps.weights.size
    share = f"{'all' if count == total else f'{count} of'} {total} weights are NaN"
    for name, array in zip(("x", "w_query", "w_key"), (steps.x, *weights[:2]), strict=True):
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0]
            token = f", {steps.tokens[row]!r}" if name == "x" and steps.tokens is not None else ""
            return f"{share}, since {name} holds {array[row, column]} (first in row {row}{token})"
    return f"{share}, since scores are beyond the largest number"


def _read(file):
    """Return x, the three weights or None, and the tokens or None, from a .npy, .npz or .csv file."""
    expected = f"{file}: expected a .npy, .npz or .csv file, got"
    try:
        with open(file, "rb") as stream:
            if not stream.seekable():
                stream = io.BytesIO(stream.read())
            head = stream.read(6)
            stream.seek(0)
            if not head.startswith((b"\x93NUMPY", b"PK")):
                text = stream.read().decode("utf-8-sig")
                return _parse_csv(file, text)
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None, None
            with loaded:
                archive = {name: loaded[name] for name in loaded.files}
    except CommandError:
        raise
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{expected} one that begins with {head!r}") from error
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        raise CommandError(f"{expected}: {one_line(error)}") from error

    if "x" not in archive:
        raise CommandError(f"{file}: expected an array named x, got {', '.join(archive) or 'an empty archive'}")
    names = ("w_query", "w_key", "w_value")
    present = [name for name in names if name in archive]
    if present and len(present) < len(names):
        raise CommandError(f"{file}: expected all of {', '.join(names)} or none, got only {', '.join(present)}")
    return archive["x"], [archive[name] for name in names] if present else None, archive.get("tokens")


def _parse_csv(file, text):
    """Return what `_read` returns.

    The first line holds headings where it has no number, or begins with nothing, as pandas writes it. A cell of several
    numbers is no heading: its line lacks commas, and is refused. The first column holds tokens where the headings begin
    with nothing, or not all of it is numbers.
    """
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    has_tokens = False
    if lines and (lines[0][1][0] == "" or not any(map(_holds_numbers, lines[0][1]))):
        has_tokens = lines.pop(0)[1][0] == ""
    if not lines:
        raise CommandError(f"{file}: expected lines of numbers with commas between them, got none")
    width = len(lines[0][1])
    has_tokens |= width > 1 and not all(is_number(cells[0]) for _, cells in lines)
    x = np.empty((len(lines), width - has_tokens))
    for row, (line, cells) in enumerate(lines):
        if len(cells) != width:
            raise CommandError(f"{file}, line {line}: expected {width} columns like the first one, got {len(cells)}")
        for column in range(has_tokens, width):
            if not is_number(cells[column]):
                what = f"expected a number, and commas between numbers, got {reprlib.repr(cells[column])}"
                raise CommandError(f"{file}, line {line}, column {column + 1}: {what}")
            x[row, column - has_tokens] = float(cells[column])
    return x, None, [cells[0] for _, cells in lines] if has_tokens else None


def _holds_numbers(cell):
    """Return whether the cell is a number, or several numbers with blanks or semicolons between them."""
    parts = cell.replace(";", " ").split()
    return bool(parts) and all(map(is_number, parts))


def _random_projections(x):
    d_model = x.shape[-1] if x.ndim else 0
    size = (3, d_model, min(d_model, 64))
    weights = np.random.default_rng(0).standard_normal(size) / np.sqrt(max(d_model, 1))
    return list(weights.astype(x.dtype) if x.dtype.kind == "f" else weights)


def _write_plot(steps, weights, path):
    if np.isnan(steps.weights).all():
        raise CommandError(f"--plot {path}: there is nothing to draw where {_where_from(steps, weights)}")
    axes = steps.plot()
    try:
        axes.figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise CommandError(f"--plot {path}: {one_line(error)}") from error
    print(f"heatmap of the weights: {path}")
