"""The record of a run: what `cattn bench --json` and `benchmarks/compare.py --json` write. What is not known is null,
such as the machine's limits in a record of `cattn bench`.

machine              its name, which all runs on it share
processor, system    as they call themselves
cores, memory_gib    logical processors, and memory in GiB
isa                  the kernel table that "cattn" is
date, commit         of the run, and of the code ("-dirty": with changes)
command              what was run
source               "measured", or where the figures were copied from
versions             of Python, of each engine's package, and of NumPy's BLAS with the kernels that it chose
threads              of each engine
rounds               in which each engine had a turn, at least
peak_gflops          float32 multiply-adds of so many threads, in GFLOP/s, measured in the same run
peak_bfloat16_gflops the same of bfloat16, in the fastest instructions that the processor has for it: AMX, or VDPBF16PS
bandwidth_gb_s       what they read from memory, in GB/s, likewise
limits_by            how these were measured
notes                whole sentences for the reader
cases                one for each problem:
    name, dtype, causal, where the name tells the type unless that is float32
    shape            "batch,heads/key heads,queries,keys,head size"
    speedup          how many times as fast cattn is as its fastest peer: the median of the rounds' ratios
    spread           how many times as long as its fast rounds an engine's slow ones took, between the quartiles; of the
                     engine whose rounds differ most
    share_of_limit   cattn's, of what peak and bandwidth allow; null for tiny problems
    refused_rounds   disturbed rounds that were measured again and are not counted
    outside_load     how many processors other programs kept busy in the rounds that count, on average, of those that
                     the run was pinned to; null where the system does not say
    engines          by name: seconds (the median of a call), gflops (null where the time is what counts: tiny problems
                     and one query), error (the largest, in eps · Σ p|v|, with eps of dtype), kappa (the largest, in
                     units of `cattn.reference.error_bound`; null in half types, whose own rounding is larger),
                     over_one_thread (how many times as long a call takes as with one thread, which is measured right
                     before; null in a run of one thread)
    errors           by name: why an engine is not among them
"""

import contextlib
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cattn import _config, _kernel
from cattn._bench.cases import Case, Check
from cattn._bench.engines import Engine
from cattn._bench.timing import Timings

CPUINFO = Path("/proc/cpuinfo")
# Linux on ARM has no name there, but numbers, which lscpu knows; macOS has no such file.
NAMING_COMMANDS = [(["sysctl", "-n", "machdep.cpu.brand_string"], r"(\S.*)"), (["lscpu"], r"Model name:\s+(\w.*)")]


def run_record(threads: int, engines: Sequence[Engine], limits: Any = None) -> dict:
    """Return the record of a run that has no cases yet. The machine is called by its processor. The command is not
    known here, nor is the code."""
    processor, memory = processor_name(), memory_bytes()
    versions = {engine.package: engine.version for engine in engines}
    return {
        "machine": processor,
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": memory and _short(memory / 2**30),
        "isa": _kernel.isa(),
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "commit": None,
        "command": None,
        "source": "measured",
        "versions": {"python": platform.python_version(), **versions, "blas": _blas()},
        "threads": threads,
        "rounds": None,
        "peak_gflops": limits and _short(limits.peak_flops("float32") / 1e9),
        "peak_bfloat16_gflops": limits and _short(limits.peak_flops("bfloat16") / 1e9),
        "bandwidth_gb_s": limits and _short(limits.read_bandwidth() / 1e9),
        "limits_by": limits and limits.method,
        "notes": [],
        "cases": [],
    }


def case_record(
    case: Case,
    least_seconds: float | None,
    timings: Timings,
    one_thread: Mapping[str, float],
    checks: Mapping[str, Check],
    errors: Mapping[str, str],
) -> dict:
    """Return the record of a case. `least_seconds` is what the machine's limits allow. The rest is by the labels of the
    engines. `one_thread` are seconds with one thread, if that is another run."""
    seconds = {label: timings.median(label) for label in timings.samples}
    cattn = seconds.get("cattn")
    peer = min((label for label in seconds if not label.startswith("cattn")), key=seconds.get, default=None)
    return {
        "name": case.title,
        "shape": case.shape,
        "dtype": case.dtype,
        "causal": case.causal,
        "speedup": _short(timings.speedup("cattn", over=peer)) if cattn and peer else None,
        "spread": _short(max(map(timings.spread, seconds))) if timings.rounds > 1 else None,
        "share_of_limit": _short(least_seconds / cattn) if least_seconds and cattn and case.flops > 1_000_000 else None,
        "refused_rounds": timings.refused,
        "outside_load": None if timings.outside_load is None else _short(timings.outside_load),
        "engines": {
            label: {
                "seconds": _short(taken),
                "gflops": None if case.counts_time else _short(case.flops / taken / 1e9),
                "error": _short(checks[label].error),
                "kappa": None if checks[label].kappa is None else _short(checks[label].kappa),
                "over_one_thread": _short(taken / one_thread[label]) if label in one_thread else None,
            }
            for label, taken in seconds.items()
        },
        "errors": dict(errors),
    }


def memory_bytes() -> int | None:
    """Return the machine's memory, if the system says it."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _short(number: float) -> float:
    """Return four digits of the number: more were not measured."""
    return float(f"{number:.4g}")


def processor_name() -> str:
    """Return what the processor is called."""
    with contextlib.suppress(OSError):
        if named := re.search(r"model name\s*: (.+)", CPUINFO.read_text(encoding="utf-8")):
            return named[1]
    english = os.environ | {"LC_ALL": "C"}
    for command, name in NAMING_COMMANDS:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(command, env=english, capture_output=True, text=True, timeout=10, check=True).stdout
            if named := re.search(name, told):
                return named[1]
    return platform.processor() or platform.machine()


def _blas() -> str | None:
    """Return NumPy's BLAS with the kernels that it chose, or as it was built if threadpoolctl is not installed."""
    try:
        import threadpoolctl
    except ImportError:
        return _config._find_blas()
    found = (info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas")
    return ", ".join(f"{x['internal_api']} {x['version']} {x.get('architecture', '')}".strip() for x in found) or None
