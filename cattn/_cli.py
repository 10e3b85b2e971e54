"""The command line, ``cattn COMMAND``: the main program, and what its commands share."""

import argparse
import importlib
import json
import os
import sys

# Each command is a module, cattn._cli_COMMAND, with add_parser(commands) and run(options), which may return a status.
COMMANDS = ("demo", "info", "bench", "selftest")


class CommandError(Exception):
    """Say in one line what a command cannot do."""


class _Parser(argparse.ArgumentParser):
    """Parse arguments, and say in one line what is wrong with them."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def main(arguments=None):
    """Run the command line and return the exit status, which is 2 if something cannot be done as it was asked."""
    # File and token names may hold characters that the terminal's encoding lacks.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(arguments)
        print(end="", flush=True)
    except OSError as error:  # Standard output failed: commands handle the errors of files.
        # Without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # A reader such as head or less has seen enough otherwise.
            print(f"cattn: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # This is what shells make of it.
    return status


def _run(arguments):
    from cattn import __version__

    parser = _Parser(
        prog="cattn", description="cattn computes exact attention on the CPU, on NumPy arrays.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"cattn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    modules = {name: importlib.import_module(f"cattn._cli_{name}") for name in COMMANDS}
    for module in modules.values():
        module.add_parser(commands)

    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices.get(options.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return modules[options.command].run(options) or 0
    except CommandError as error:
        print(f"cattn {options.command}: error: {one_line(error)}", file=sys.stderr)
        return 2


def end_command(error):
    """End the process with one line if it runs the command line.

    An error while cattn is imported comes before `main`, which could not report it.
    """
    program = sys.orig_argv[-len(sys.argv) :][:1]  # a script, or what follows -m
    if program and os.path.basename(program[0]) in ("cattn", "cattn.exe", "-mcattn"):
        print(f"cattn: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def check_matplotlib():
    """Check that plots can be drawn, into files."""
    try:
        import matplotlib
        import matplotlib.figure
    except Exception as error:  # A damaged or misconfigured one raises errors of its own.
        if isinstance(error, ModuleNotFoundError) and error.name == "matplotlib":
            raise CommandError("--plot needs matplotlib: pip install 'cattn[plot]'") from error
        raise CommandError(f"--plot: matplotlib cannot be imported: {one_line(error)}") from error
    matplotlib.use("agg")


def one_line(error):
    """Return a message, or the message of an error, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def print_json(data):
    """Print dicts, lists, strings and finite numbers as JSON."""
    print(json.dumps(data, indent=2, allow_nan=False))


def print_table(rows, headings=()):
    """Print rows of texts as a table. Columns of numbers are aligned to the right.

    On a terminal, rich draws the table if it is installed. Otherwise the columns are plain, and never folded or cut.
    """
    rows = [list(map(str, row)) for row in rows]
    right = {number for number, column in enumerate(zip(*rows, strict=True)) if all(map(is_number, column))}
    if sys.stdout is not None and sys.stdout.isatty():
        try:
            from rich import box, console, table, text
        except ImportError:
            pass
        else:
            drawn = table.Table(box=box.SIMPLE, show_header=bool(headings))
            for number, heading in enumerate(headings or [""] * len(rows[0])):
                drawn.add_column(heading, justify="right" if number in right else "left", overflow="fold")
            for row in rows:
                drawn.add_row(*map(text.Text, row))
            console.Console().print(drawn)
            return
    lines = [list(headings), *rows] if headings else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [f"{cell:{'>' if to in right else '<'}{widths[to]}}" for to, cell in enumerate(line)]
        print("  ".join(cells).rstrip())


def is_number(text):
    """Return whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
