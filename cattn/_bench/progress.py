"""How a run goes on, on standard error."""

import contextlib
import sys
from collections.abc import Iterator


class Progress:
    """A `runs.Watcher` that says which case's turn it is, and remembers what was left out."""

    def __init__(self, total: int):
        self.total, self.begun = total, 0
        self.left_out: dict[str, str] = {}

    def begin(self, title: str) -> None:
        self.begun += 1
        self.show(title)

    def leave_out(self, label: str, reason: str) -> None:
        self.left_out[label] = reason

    def show(self, title: str) -> None:
        print(f"{self.begun} of {self.total}: {title}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Progress]:
    """Of as many cases: a bar on a terminal where rich is installed, else a line a case."""
    watcher = Progress(total)
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield watcher
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield watcher
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("engines are started", total=total)
        watcher.show = lambda title: bar.update(task, description=title, completed=watcher.begun - 1)
        yield watcher
