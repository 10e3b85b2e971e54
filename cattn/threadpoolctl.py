"""Makes `threadpool_limits` of the package threadpoolctl apply to cattn.

Import this module once, before you call threadpoolctl. ``threadpool_limits(1)`` then limits the calls of attention too,
in the calling thread, as `cattn.num_threads` does. Its name in ``limits=`` and ``user_api=`` is "cattn".
"""

try:
    from threadpoolctl import LibController, register
except ImportError as error:
    raise ImportError(
        "cattn.threadpoolctl: needs threadpoolctl 3.2 or later: pip install 'threadpoolctl>=3.2'"
    ) from error

from . import _threads
from ._version import __version__


class _CattnController(LibController):
    """The methods by which threadpoolctl reads and sets the number of threads of the compiled module."""

    user_api = internal_api = "cattn"
    filename_prefixes = ("_kernel.",)
    check_symbols = ("cattn_is_here",)

    def get_num_threads(self):
        return _threads.get_num_threads()

    def set_num_threads(self, num_threads):
        """Set the number of the calling thread.

        threadpoolctl restores a number by setting it again. Where it is the process's own number, nothing is set, so
        that what `set_num_threads` is told later holds in this thread too.
        """
        number = _threads.resolve(num_threads)
        _threads.block_setting.set(None if number == _threads.process_num_threads() else number)

    def get_version(self):
        return __version__


register(_CattnController)
