"""A run: every engine at every case. Each answer is checked before it is timed."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from cattn._bench.cases import Case
from cattn._bench.engines import Engine
from cattn._bench.record import case_record, memory_bytes, run_record
from cattn._bench.timing import limited, measure

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")


@dataclass(frozen=True)
class Settings:
    """Describe a run. Each case has `rounds` rounds, or as many as fit in `seconds`, but at least three.

    `engines` holds what makes each engine, by the name that is shown if it cannot be made. `limits` says what the
    machine can do with a number of threads, if anything does. `one_thread` holds the seconds of a call with one thread,
    by case and engine. `run` measures them if there are more threads.
    """

    cases: Sequence[Case]
    engines: Mapping[str, Callable[[int], Engine]]
    threads: int = 1
    rounds: int | None = None
    seconds: float = 2.0
    limits: Callable[[int], Any] | None = None
    one_thread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Watcher:
    """Say on standard error which case's turn it is, and remember which engines were left out, and why."""

    def __init__(self, settings: Settings):
        self.total = len(settings.cases) * (1 if settings.threads == 1 else 2)
        self.begun = 0
        self.left_out: dict[str, str] = {}

    def begin(self, title: str) -> None:
        """Say that a case's turn has come."""
        self.begun += 1
        print(f"{self.begun} of {self.total}: {title}", file=sys.stderr, flush=True)

    def leave_out(self, label: str, reason: str) -> None:
        """Remember that an engine is not installed, or does not start."""
        self.left_out[label] = reason


class RunError(Exception):
    """Say that the process that measures has ended before it was done."""


def run(settings: Settings, watcher: Watcher) -> dict:
    """Return the record of a run, which record.py explains.

    The run has a process of its own, pinned to as many processors as the engines may have threads: libraries look for
    that, and for the variables that say it, when they are imported. Ctrl-C ends it. RunError where it ends by itself.
    With more than one thread, a shorter run with one comes first: it tells whether threads are held up.
    """
    if settings.threads > 1:
        alone = _run(replace(settings, threads=1, seconds=0), watcher)
        one_thread = {
            case["name"]: {label: result["seconds"] for label, result in case["engines"].items()}
            for case in alone["cases"]
        }
        settings = replace(settings, one_thread=one_thread)
    return _run(settings, watcher)


def _run(settings: Settings, watcher: Watcher) -> dict:
    """Return the record of a run in a process of its own."""
    environment = dict.fromkeys(THREAD_VARIABLES, str(settings.threads))
    if settings.threads == 1:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        environment["XLA_FLAGS"] = flags.strip()
    process, connection = start_process(_run_for, settings, environment=environment)
    try:
        while True:
            told, *details = connection.recv()
            if told == "done":
                return details[0]
            getattr(watcher, told)(*details)
    except EOFError:
        process.join()
        killed = "; it was killed, as systems do where memory runs out" if process.exitcode == -9 else ""
        raise RunError(f"the process that measures ended with status {process.exitcode}{killed}") from None
    finally:
        # The process has said all that it had to say, and some engines take long to end.
        process.kill()
        process.join()


def _run_for(connection: Connection, settings: Settings) -> None:
    """Send what the other end of the connection, `_run`, waits for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that waits for this one decides.
    os.dup2(2, 1)  # What engines print is not our output.

    class Told:
        def begin(self, title: str) -> None:
            connection.send(("begin", title))

        def leave_out(self, label: str, reason: str) -> None:
            connection.send(("leave_out", label, reason))

    with limited(settings.threads):
        connection.send(("done", run_here(settings, Told())))


def run_here(settings: Settings, watcher: Watcher) -> dict:
    """Return the record of a run in this process, with the threads that its libraries have taken."""
    with contextlib.ExitStack() as stack:
        engines = []
        for name, make_engine in settings.engines.items():
            try:
                engine = make_engine(settings.threads)
            except Exception as error:  # Broken installations fail in many ways.
                watcher.leave_out(name, _one_line(error))
                continue
            stack.callback(engine.close)
            engines.append(engine)
        limits = settings.limits and settings.limits(settings.threads)
        record = run_record(settings.threads, engines, limits)
        for case in settings.cases:
            watcher.begin(case.title)
            record["cases"].append(_measure(settings, case, engines, limits))
        record["rounds"] = min((case.pop("rounds") for case in record["cases"]), default=None)
    return record


def _measure(settings: Settings, case: Case, engines: Sequence[Engine], limits: Any) -> dict:
    """Return the record of a case, and the rounds that it took."""
    inputs = case.make_inputs()
    answer = case.answer(inputs)
    timers, checks, errors = {}, {}, {}
    for engine in engines:
        if not engine.supports(case):
            continue
        try:
            _check_memory(engine, case)
            prepared = engine.prepare(case, inputs)
            check = answer.check(prepared.result())
        except Exception as error:  # Whatever it is, it becomes a line in the report.
            errors[engine.label] = f"{type(error).__name__}: {_one_line(error)}"
            continue
        if check.wrong:
            errors[engine.label] = f"a wrong answer, off by {check.error:.3g} eps·Σp|v|"
        else:
            timers[engine.label], checks[engine.label] = prepared.timer, check
    one_thread = settings.one_thread.get(case.title, {})
    timings = measure(timers, rounds=settings.rounds, seconds=settings.seconds, one_thread=one_thread)
    least = limits.least_seconds(case, inputs) if limits else None
    return case_record(case, least, timings, one_thread, checks, errors) | {"rounds": timings.rounds}


def _check_memory(engine: Engine, case: Case) -> None:
    """Check that the scores of an engine fit: systems promise more memory than they have, and end whoever takes it."""
    scores, memory = 4 * case.batch * case.heads * case.queries * case.keys, memory_bytes()
    if engine.keeps_scores and memory is not None and scores > memory / 4:
        raise MemoryError(f"queries × keys of all heads would take {scores / 2**30:.1f} GiB")


def start_process(
    work: Callable[..., None], *arguments: Any, environment: dict[str, str]
) -> tuple[SpawnProcess, Connection]:
    """Start a process that does `work(connection, *arguments)`. Return it and the other end of that connection."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments))
    # A new process gets the environment that its parent has when it starts.
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
