"""Work in a process of its own: what it imports sees another environment."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


def start_process(
    work: Callable[..., None], *arguments: Any, environment: dict[str, str]
) -> tuple[SpawnProcess, Connection]:
    """A process that does `work(connection, *arguments)`, and the other end of that connection."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments))
    # A process takes its parent's environment with it, and nothing else.
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    return process, ours
