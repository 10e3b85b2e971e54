"""The command line: ``cattn demo`` walks through attention step by step, on three tokens or on a file's."""

import argparse
import os
import sys

TOKENS = ("The", "cat", "sat")
EMBEDDINGS = ((0.2, 0.5, 0.1, 0.7), (0.9, 0.1, 0.4, 0.6), (0.3, 0.8, 0.2, 0.5))
W_QUERY = ((0.5, -1.0, -0.5), (1.0, 2.0, 2.0), (0.5, -0.5, 0.0), (-1.0, -1.0, 0.0))
W_KEY = ((0.0, 0.5, 1.5), (-0.5, -0.5, -0.5), (0.0, 0.5, 1.0), (0.0, 1.0, 0.0))
W_VALUE = ((1.0, 0.0, 0.5), (0.0, 1.0, 0.5), (0.5, 0.0, 0.0), (0.0, 0.5, 1.0))


class DemoError(Exception):
    """What the demo cannot do, in one line."""


def main(arguments=None):
    """Run the command line and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Token names may hold characters that the terminal's encoding lacks.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if options.command is None:
            parser.print_help()
            return 0
        _demo(options.file, options.plot)
        sys.stdout.flush()
    except DemoError as error:
        print(f"cattn demo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser():
    from cattn import __version__

    parser = argparse.ArgumentParser(prog="cattn", description="Exact attention on the CPU, on NumPy arrays.")
    parser.add_argument("--version", action="version", version=f"cattn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="print the seven steps of attention",
        description="Print the seven steps of attention, for the sentence 'The cat sat' or for your own embeddings.",
    )
    demo.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="X (tokens, d_model) as .npy, or .npz with x and optionally w_query, w_key, w_value and tokens",
    )
    demo.add_argument("--plot", metavar="PNG", help="also write a heatmap of the weights to this file")
    return parser


def _demo(file, plot):
    if plot is not None:
        _check_matplotlib()
    if file is None:
        import numpy as np

        x, tokens = np.array(EMBEDDINGS), TOKENS
        weights = [np.array(weight) for weight in (W_QUERY, W_KEY, W_VALUE)]
        title = f'The sentence "{" ".join(TOKENS)}"'
    else:
        x, weights, tokens = _read(file)
        title = f"The embeddings of {file}"
    if weights is None:
        weights = _random_projections(x)
        note = "random, as the file holds none (seed 0)"
    else:
        note = "given" if file else "fixed"

    import cattn

    try:
        steps = cattn.trace(x, *weights, tokens=tokens)
        _print_steps(title, note, weights, steps)
        if plot is not None:
            _write_plot(steps, plot)
    except (TypeError, ValueError, MemoryError) as error:
        raise DemoError(f"{file or title}: {_one_line(error)}") from error


def _print_steps(title, note, weights, steps):
    import numpy as np

    from cattn import reference
    from cattn._trace import format_matrix

    print(f"{title}\n\nThe projections, {note}")
    for name, weight in zip(("W_query", "W_key", "W_value"), weights, strict=True):
        print(f"{name}  ({weight.shape[0]} x {weight.shape[1]})")
        print("\n".join(format_matrix(weight)))
    print(f"\n{steps}\n")

    expected = reference.attention(steps.query, steps.key, steps.value)
    difference = np.asarray(steps.context, dtype=np.float64) - expected
    print(f"Check  C ({steps.context.dtype}) - C of the NumPy reference (float64)")
    print("\n".join(format_matrix(difference, steps.tokens, number="{:.1e}".format)))
    print(f"largest absolute difference: {np.abs(difference).max(initial=0.0):.1e}")


def _read(file):
    """x, the three weights or None, and the tokens or None, from a .npy or .npz file."""
    import numpy as np

    expected = f"{file}: expected a NumPy .npy or .npz file, got"
    try:
        with open(file, "rb") as stream:
            head = stream.read(6)
            if not head.startswith((b"\x93NUMPY", b"PK")):
                raise DemoError(f"{expected} one that begins with {head!r}")
            stream.seek(0)
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None, None
            with loaded:
                archive = {name: loaded[name] for name in loaded.files}
    except DemoError:
        raise
    except OSError as error:
        raise DemoError(f"{file}: {error.strerror or _one_line(error)}") from error
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise DemoError(f"{expected}: {_one_line(error)}") from error

    if "x" not in archive:
        raise DemoError(f"{file}: expected an array named x, got {', '.join(archive) or 'an empty archive'}")
    names = ("w_query", "w_key", "w_value")
    present = [name for name in names if name in archive]
    if present and len(present) < len(names):
        raise DemoError(f"{file}: expected all of {', '.join(names)} or none, got only {', '.join(present)}")
    return archive["x"], [archive[name] for name in names] if present else None, archive.get("tokens")


def _random_projections(x):
    import numpy as np

    d_model = x.shape[-1] if x.ndim else 0
    size = (3, d_model, min(d_model, 64))
    weights = np.random.default_rng(0).standard_normal(size) / np.sqrt(max(d_model, 1))
    return list(weights.astype(x.dtype) if x.dtype.kind == "f" else weights)


def _check_matplotlib():
    try:
        import matplotlib
    except ImportError as error:
        raise DemoError("--plot needs matplotlib: pip install 'cattn[plot]'") from error
    matplotlib.use("agg")


def _write_plot(steps, path):
    axes = steps.plot()
    try:
        axes.figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DemoError(f"--plot {path}: {_one_line(error)}") from error
    print(f"heatmap of the weights: {path}")


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
