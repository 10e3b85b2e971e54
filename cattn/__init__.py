"""cattn computes exact scaled dot-product attention on the CPU, on NumPy arrays."""

try:
    from ._kernel import (
        attention,
        attention_backward,
        attention_paged,
        attention_varlen,
        attention_weights,
        maxsim,
        plan,
    )
except ModuleNotFoundError as error:
    if error.name != "cattn._kernel":
        raise
    raise ImportError(
        "cattn: the compiled module is missing here. In a checkout, the folder cattn/ hides an installed cattn: "
        "run from another folder, or build in place with `pip install -e .`"
    ) from None
except ImportError as error:
    from ._cli import end_command

    end_command(error)
    raise
from . import reference
from ._cache import KVCache
from ._config import show_config
from ._gradients import Gradients
from ._merge import merge_attention
from ._padding import pad, unpad
from ._plan import Plan
from ._quantize import quantize
from ._self_attention import self_attention
from ._threads import get_num_threads, num_threads, set_num_threads
from ._trace import AttentionTrace, trace
from ._version import __version__

__all__ = [
    "AttentionTrace",
    "Gradients",
    "KVCache",
    "Plan",
    "__version__",
    "attention",
    "attention_backward",
    "attention_paged",
    "attention_varlen",
    "attention_weights",
    "get_include",
    "get_num_threads",
    "maxsim",
    "merge_attention",
    "num_threads",
    "pad",
    "plan",
    "quantize",
    "reference",
    "self_attention",
    "set_num_threads",
    "show_config",
    "trace",
    "unpad",
]


def get_include():
    """Return the folder of ``cattn.h``, the header that says how to call cattn from C and Cython.

    Returns
    -------
    str
        The folder that the `include_dirs` of an extension module need. ``cimport cattn`` finds its declarations without
        it, and names the same header.

    See Also
    --------
    show_config : Print what else is known of this build.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cattn
    >>> [path.name for path in Path(cattn.get_include()).glob("*.h")]
    ['cattn.h']
    """
    return __path__[0]
