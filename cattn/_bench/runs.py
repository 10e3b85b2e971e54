"""A run: every engine at every case. Each answer is checked before it is timed."""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Protocol

from cattn._bench.answer import expected
from cattn._bench.cases import Case
from cattn._bench.engines import ENGINES, Engine, make_engine
from cattn._bench.inputs import Inputs, make_inputs
from cattn._bench.limits import Limits, memory_bytes
from cattn._bench.process import start_process
from cattn._bench.record import case_record, run_record
from cattn._bench.timing import limited, measure

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Each case has `rounds` rounds, or as many as fit in `seconds`, but at least three.
    `one_thread` holds the seconds of a call with one thread, by case and engine. `run` measures them if there are more
    threads."""

    cases: Sequence[Case]
    engines: Sequence[str]
    threads: int = 1
    rounds: int | None = None
    seconds: float = 2.0
    one_thread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """How often `run` begins a case."""
        return len(self.cases) * (1 if self.threads == 1 else 2)


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def begin(self, title: str) -> None:
        """A case's turn has come."""

    def leave_out(self, label: str, reason: str) -> None:
        """An engine is not installed, or does not start."""


class RunError(Exception):
    """The process that measures has ended before it was done."""


def run(settings: Settings, watcher: Watcher) -> dict:
    """The record of a run: see record.py.

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
        # It has said all that it had to say. Some engines take long to leave.
        process.kill()
        process.join()


def _run_for(connection: Connection, settings: Settings) -> None:
    """The other end of `_run`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who waits decides
    os.dup2(2, 1)  # what engines print is not our output

    class Told:
        def begin(self, title: str) -> None:
            connection.send(("begin", title))

        def leave_out(self, label: str, reason: str) -> None:
            connection.send(("leave_out", label, reason))

    with limited(settings.threads):
        connection.send(("done", run_here(settings, Told())))


def run_here(settings: Settings, watcher: Watcher) -> dict:
    """The same in this process, with the threads that its libraries have taken."""
    with contextlib.ExitStack() as stack:
        engines = []
        for name in settings.engines:
            try:
                engine = make_engine(name, settings.threads)
            except Exception as error:  # broken installations fail in many ways
                watcher.leave_out(ENGINES[name].label if name in ENGINES else name, _one_line(error))
                continue
            stack.callback(engine.close)
            engines.append(engine)
        limits = Limits(settings.threads)
        record = run_record(settings.threads, engines, limits)
        for case in settings.cases:
            watcher.begin(case.title)
            record["cases"].append(_measure(settings, case, engines, limits))
        record["rounds"] = min((case.pop("rounds") for case in record["cases"]), default=None)
    return record


def _measure(settings: Settings, case: Case, engines: Sequence[Engine], limits: Limits) -> dict:
    """The record of a case, and the rounds that it took."""
    inputs = make_inputs(case)
    answer = expected(case, inputs)
    timers, checks, errors = {}, {}, {}
    for engine in engines:
        if not engine.supports(case):
            continue
        try:
            _check_memory(engine, case)
            prepared = engine.prepare(case, inputs)
            check = answer.check(prepared.result())
        except Exception as error:  # whatever it is, it is a line in the report
            errors[engine.label] = f"{type(error).__name__}: {_one_line(error)}"
            continue
        if check.wrong:
            errors[engine.label] = f"a wrong answer, off by {check.error:.3g} eps·Σp|v|"
        else:
            timers[engine.label], checks[engine.label] = prepared.timer, check
    one_thread = settings.one_thread.get(case.title, {})
    timings = measure(timers, rounds=settings.rounds, seconds=settings.seconds, one_thread=one_thread)
    least = _least_seconds(case, inputs, limits)
    return case_record(case, least, timings, one_thread, checks, errors) | {"rounds": timings.rounds}


def _least_seconds(case: Case, inputs: Inputs, limits: Limits) -> float:
    """What the machine's arithmetic and memory leave."""
    return max(case.flops / limits.peak_flops(case.dtype), inputs.nbytes / limits.read_bandwidth(inputs.nbytes))


def _check_memory(engine: Engine, case: Case) -> None:
    """Systems promise more memory than they have, and end whoever takes it."""
    scores, memory = 4 * case.batch * case.heads * case.queries * case.keys, memory_bytes()
    if engine.keeps_scores and case.is_plain and memory is not None and scores > memory / 4:
        raise MemoryError(f"queries × keys of all heads would take {scores / 2**30:.1f} GiB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
