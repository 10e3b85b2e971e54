"""Describes the processor, the kernel table and the versions in use, as a bug report needs them."""

import glob
import os
import platform
from pathlib import Path

import numpy as np

from . import _kernel, _threads
from ._version import __version__

CACHES = "/sys/devices/system/cpu/cpu0/cache/index*"  # Linux


def show_config():
    """Print which versions, kernel table, caches and threads cattn uses here, and why.

    The list has versions, the kernel table in use and those that this processor runs, caches, threads and where their
    number comes from, NumPy's BLAS, and where the licence and the documentation are. ``cattn info`` prints the same
    list, and ``cattn info --json`` prints it as data.

    See Also
    --------
    get_num_threads : Return the number of threads alone.
    plan : Return how a call would run here.

    Examples
    --------
    >>> import cattn
    >>> cattn.show_config()
    cattn:         ...
    kernel table:  ...; this processor runs ...
    caches:        ...
    ...
    """
    for name, text in describe(collect()).items():
        print(f"{name + ':':<15}{text}")


def collect():
    """Return what `show_config` prints as data: texts, numbers, lists and dicts."""
    isa = _kernel.isa()
    threads, source = _find_threads()
    return {
        "cattn": __version__,
        "kernel_table": {
            "used": isa,
            "because": "CATTN_ISA" if os.environ.get("CATTN_ISA") == isa else "the best one here",
            "runnable": _kernel.runnable_isas(),
        },
        "cache_bytes": {"found": _find_caches(), "assumed_l2": _kernel.l2_bytes()},
        "threads": {"number": threads, "source": source},
        "numpy": {"version": np.__version__, "blas": _find_blas()},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "platform": platform.platform(),
        "licence": {"name": "BSD-3-Clause", "file": _find_file("LICENSE")},
        # The package index's copy of the README is the metadata's body.
        "documentation": {"command": "python -m pydoc cattn", "readme": _find_file("METADATA")},
    }


def describe(config):
    """Return one line of text, by name, for each thing that `collect` found."""
    table, caches, threads = config["kernel_table"], config["cache_bytes"], config["threads"]
    found = [f"{name} {_size(size)}" for name, size in caches["found"].items()]
    assumed = f"blocks are cut for an L2 of {_size(caches['assumed_l2'])}"
    number, source = threads["number"], threads["source"]
    return {
        "cattn": config["cattn"],
        "kernel table": f"{table['used']} ({table['because']}); this processor runs {', '.join(table['runnable'])}",
        "caches": f"{', '.join(found)}; {assumed}" if found else assumed,
        "threads": source if number is None else f"{number} ({source})",
        "NumPy": f"{config['numpy']['version']}, built with {config['numpy']['blas'] or 'no BLAS'}",
        "Python": f"{config['python']['version']} ({config['python']['implementation']})",
        "platform": config["platform"],
        "licence": ", ".join(filter(None, config["licence"].values())),
        "documentation": "; README in ".join(filter(None, config["documentation"].values())),
    }


def _find_threads():
    """Return the number of threads, or None if the environment's is not a number, and where it comes from.

    Looking does not fix the number: calls may still find another environment.
    """
    if (own := _threads.block_setting.get()) is not None:
        return own, "set in this thread"
    try:
        default, source = _threads.find_default()
    except ValueError as error:
        default, source = None, str(error)
    if _threads._setting is not None:
        return _threads._setting, "set in this process"
    if _threads._default and _threads._default[0] != default:
        return _threads._default[0], "from an earlier look at this process and its environment"
    return default, source


def _find_caches():
    """Return {name: bytes} of the first CPU's data caches, as far as the system says it."""
    found = {}
    for folder in sorted(glob.glob(CACHES)):
        level, kind, size = (_threads._read(folder, name).strip() for name in ("level", "type", "size"))
        if kind in ("Data", "Unified") and size.endswith("K") and size[:-1].isdecimal():
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = int(size[:-1]) << 10
    return found


def _find_blas():
    """Return the name and version of the BLAS that NumPy was built with, or None if there is none."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return " ".join(filter(None, (blas.get("name"), blas.get("version")))) or None


def _find_file(name):
    """Return where the installer put a file beside the package, or None if the package was not installed."""
    from importlib import metadata  # as long to import as all of cattn

    try:
        files = metadata.files("cattn") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((str(Path(file.locate()).resolve()) for file in files if file.name == name), None)


def _size(count):
    """Return the size of a cache as text. It is a whole number of KiB."""
    return f"{count >> 20} MiB" if count % (1 << 20) == 0 else f"{count / 1024:g} KiB"
