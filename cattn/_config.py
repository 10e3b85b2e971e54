"""What a report of a problem should say about the machine."""

import os
import platform

import numpy as np

from . import _kernel, _threads
from ._version import __version__


def show_config():
    """Print versions, the kernel table in use, those this processor runs, and the number of threads with its source.

    See Also
    --------
    get_num_threads : The number of threads alone.
    plan : How a call would run here.

    Examples
    --------
    >>> import cattn
    >>> cattn.show_config()
    cattn:        ...
    kernel table: ...; this processor runs ...
    threads:      ...
    """
    isa = _kernel.isa()
    chosen = "CATTN_ISA" if os.environ.get("CATTN_ISA") == isa else "the best one here"
    lines = {
        "cattn": __version__,
        "kernel table": f"{isa} ({chosen}); this processor runs {', '.join(_kernel.runnable_isas())}",
        "threads": _show_threads(),
        "NumPy": np.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    for name, text in lines.items():
        print(f"{name + ':':<14}{text}")


def _show_threads():
    """The number and where it comes from. To look is not to settle it: calls may still find another environment."""
    try:
        default = _threads.default_num_threads()
    except ValueError as error:
        default = str(error)
    if _threads._setting is not None:
        return f"{_threads._setting} (set in this process)"
    if _threads._default and _threads._default != [default]:
        return f"{_threads._default[0]} (from an earlier look at this process and its environment)"
    if os.environ.get("CATTN_NUM_THREADS", "").strip():
        return f"{default} (CATTN_NUM_THREADS)" if isinstance(default, int) else default
    if _threads._positive(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]):
        return f"{default} (OMP_NUM_THREADS)"
    return f"{default} (CPUs that this process may use)"
