"""How many threads a call may use, including the calling thread.

The first of these that is given counts: ``num_threads=`` of the call, the innermost block of `num_threads`,
`set_num_threads`, CATTN_NUM_THREADS, OMP_NUM_THREADS, and the number of CPUs that the process may use. Nothing is read
before it is needed.
"""

import contextlib
import contextvars
import math
import os

from ._read import as_count

OWN_VARIABLE = "CATTN_NUM_THREADS"
_MOST = 1024  # what pool.c brings together at most; more would only cost workspace

_setting = None  # of the process: what set_num_threads was given
# What holds in this thread, or in this task of asyncio, before the setting of the process; None where nothing does.
block_setting = contextvars.ContextVar("cattn.num_threads", default=None)
# The default once it is found out, and who says it. Each reset is a new list: what was looked up before ends in a list
# that nobody reads.
_default = []


def set_num_threads(n):
    """Set the number of threads of calls that do not pass ``num_threads=`` themselves.

    The setting holds for the whole process, and for its children by fork. The results of a call are the same, bit for
    bit, for any number.

    Parameters
    ----------
    n : int or None
        The number of threads, which is at least 1 and includes the calling thread. A number above 1024 counts as
        1024. A call takes at most 4 threads for each processor that the process could use when cattn was imported, or
        8 if that is more. None goes back to the default: the environment variable CATTN_NUM_THREADS, else
        OMP_NUM_THREADS, else the number of CPUs that the process may use, by its affinity and its cgroup's quota.
        These are read again when a call next needs them.

    See Also
    --------
    num_threads : Set the number for a block of code, in the calling thread only.
    get_num_threads : Return the number that holds now.

    Examples
    --------
    >>> import cattn
    >>> cattn.set_num_threads(2)
    >>> cattn.get_num_threads()
    2
    >>> cattn.set_num_threads(None)  # the default again
    """
    global _setting, _default
    setting = None if n is None else min(as_count("n", n, optional=True), _MOST)
    _default = []
    _setting = setting


def num_threads(n):
    """Set the number of threads for a ``with`` block, in the calling thread only.

    The number holds for the calls in the block that do not pass ``num_threads=`` themselves, and takes precedence over
    `set_num_threads`. When the block ends, also by an exception, the previous number holds again. Blocks may be nested.

    A task of asyncio that enters a block keeps its number to itself. A new thread does not see the number, unless it
    was started with a copy of the caller's context. ``asyncio.to_thread`` does so, and free-threaded Python from 3.14
    on does so for every thread.

    Parameters
    ----------
    n : int
        The number of threads, which is at least 1 and includes the calling thread. A number above 1024 counts as
        1024.

    Returns
    -------
    context manager
        It can be used for one ``with`` statement.

    Raises
    ------
    TypeError, ValueError
        `n` is not an integer of 1 or more.

    See Also
    --------
    set_num_threads : Set the number for the whole process.
    get_num_threads : Return the number that holds now.

    Examples
    --------
    >>> import cattn
    >>> with cattn.num_threads(2):
    ...     cattn.get_num_threads()
    2
    """
    return _block(min(as_count("n", n), _MOST))


@contextlib.contextmanager
def _block(number):
    token = block_setting.set(number)
    try:
        yield
    finally:
        block_setting.reset(token)


def get_num_threads():
    """Return the number of threads of calls that do not pass ``num_threads=`` themselves.

    Returns
    -------
    int
        The number of the innermost block of `num_threads`. Outside of such blocks it is the number that
        `set_num_threads` was given, else the default, which is found out once and kept.

    Raises
    ------
    ValueError
        No number was set, and CATTN_NUM_THREADS is not an integer of 1 or more.

    See Also
    --------
    set_num_threads : Set the number for the whole process.
    num_threads : Set the number for a block of code, in the calling thread only.

    Examples
    --------
    >>> import cattn
    >>> cattn.get_num_threads() >= 1
    True
    """
    own = block_setting.get()
    return process_num_threads() if own is None else own


def process_num_threads():
    """Return the number that holds outside of all blocks of `num_threads`."""
    setting, default = _setting, _default
    if setting is not None:
        return setting
    if not default:
        default[:] = find_default()
    return default[0]


def own_num_threads():
    """Return the number that `num_threads`, `set_num_threads` or CATTN_NUM_THREADS says, or None where none of them
    does. The number of a framework may count then."""
    own, setting, default = block_setting.get(), _setting, _default
    if own is not None:
        return own
    if setting is not None:
        return setting
    number = process_num_threads()
    return number if default == [number, OWN_VARIABLE] else None


def resolve(num_threads):
    """The number of threads of a call with this ``num_threads=``."""
    if num_threads is None:
        return get_num_threads()
    return min(as_count("num_threads", num_threads, optional=True), _MOST)


def find_default(root="/"):
    """Return what the environment and the system say, and in words who says it. `root` is where /proc and /sys are."""
    if own := os.environ.get(OWN_VARIABLE, "").strip():
        number, source = _positive(own), OWN_VARIABLE
        if number is None:
            raise ValueError(f"{OWN_VARIABLE}: expected an integer of 1 or more, got {own!r}")
    # one number for each level of nested parallelism: the outermost is ours
    elif number := _positive(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]):
        source = "OMP_NUM_THREADS"
    else:
        there, usable = os.cpu_count() or 1, _processors()
        quota = min(_quotas(root), default=usable)
        number, source = math.ceil(min(usable, quota)), "all CPUs of this machine"
        if quota < usable:
            source = f"a control group's quota of {quota:g} CPUs"
        elif usable < there:
            source = f"this process's affinity, {usable} of {there} CPUs"
    return min(number, _MOST), source


def most_threads():
    """Return how many threads a call takes at most, whatever it is told: more of them on the same processors compute
    nothing sooner, and keep the calling thread from looking for signals."""
    return min(max(8, 4 * _processors()), _MOST)


def _positive(text):
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 1 else None


def _processors():
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _quotas(root):
    """CPUs' worth of time that each control group around this process may use, where it is limited."""
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, _, line = line.partition(":")
        controllers, _, group = line.partition(":")
        if not controllers:  # version 2; beside version 1 it is mounted one level down
            mounts, files = ("", "unified"), ("cpu.max",)
        elif "cpu" in controllers.split(","):  # version 1
            mounts, files = (controllers, "cpu"), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # In a container the path may be the host's while the mount begins at our own group: the folders that are
        # missing read as unlimited, and the way up still ends at our group.
        group = group.strip("/")
        while True:
            for mount in mounts:
                texts = [_read(root, "sys/fs/cgroup", mount, group, file) for file in files]
                try:
                    quota, period = map(int, " ".join(texts).split())
                except ValueError:  # missing, or unlimited ("max")
                    continue
                if quota > 0 and period > 0:  # unlimited: -1
                    yield quota / period
            if not group:
                break
            group = group.rpartition("/")[0]


def _read(*path):
    try:
        with open(os.path.join(*path), encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):  # ValueError: not text
        return ""
