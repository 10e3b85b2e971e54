"""List every public function of cattn that computes something, with a generator of its arguments and a check.

`FUNCTIONS` maps a name, as users write it, to a `Function`. The suites about memory, threads, processes, signals and
hostile arguments go over it, so that a new function is tested by all of them once it is written down here. Arguments
are NumPy arrays and plain Python objects, also where the function takes tensors, C structs or dask arrays:
`Function.call` converts them.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import registry_integrations as integrations
import registry_own as own
from helpers import bits, work
from registry_integrations import to_array as to_array
from registry_integrations import to_tensor as to_tensor
from registry_own import OUTPUTS as OUTPUTS
from registry_own import SMALLER as SMALLER

import cattn

# These public names compute nothing.
SETTINGS = {"get_include", "get_num_threads", "num_threads", "set_num_threads", "show_config"}
TYPES_OF_RESULTS = {"AttentionTrace", "Gradients", "Plan"}


@dataclasses.dataclass(frozen=True)
class Function:
    """Describe a public function.

    name : what a user writes.
    arguments : takes a seed, and optionally the types to draw from and `work`, about how many multiplications the call
        takes at least and at most, and returns arguments by name.
    call : takes the arguments by name and returns NumPy arrays, or a tuple of them.
    check : takes the arguments and the result, and fails unless the result is right.
    needs : the module without which the function cannot be imported.
    outputs : the arguments that it writes to, where they are given.
    """

    name: str
    arguments: Callable[..., dict[str, Any]]
    call: Callable[..., Any]
    check: Callable[[dict[str, Any], Any], None]
    needs: str | None = None
    outputs: tuple[str, ...] = OUTPUTS

    @property
    def is_there(self):
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def arrays_of(arguments):
    """Yield the arrays among the arguments, also those in tuples and lists, as ((name,) or (name, index), array)."""
    for name, given in arguments.items():
        if isinstance(given, np.ndarray):
            yield (name,), given
        elif isinstance(given, (tuple, list)):
            yield from (((name, n), x) for n, x in enumerate(given) if isinstance(x, np.ndarray))


def with_arrays(arguments, arrays):
    """Return the arguments with other arrays in some places, which are named as `arrays_of` names them."""
    result = dict(arguments)
    for (name, *index), array in arrays.items():
        if index:
            result[name] = [*result[name]]
            result[name][index[0]] = array
            if isinstance(arguments[name], tuple):
                result[name] = tuple(result[name])
        else:
            result[name] = array
    return result


def copied(arguments):
    """Return the same arguments as plain arrays in memory of their own."""
    return with_arrays(arguments, {place: np.array(x, order="C", subok=False) for place, x in arrays_of(arguments)})


def results_of(result):
    """Return a result as a list of arrays, so that NaNs and zeros of either sign can be compared by their `bits`."""
    if isinstance(result, cattn.AttentionTrace):
        result = tuple(x for x in vars(result).values() if isinstance(x, np.ndarray))
    results = result if isinstance(result, (tuple, list)) else (result,)
    return [np.asarray(x) for x in results if x is not None]


def fingerprint(result):
    """Return what is equal for two results if and only if they have the same types, shapes and bits."""
    if isinstance(result, cattn.Plan):
        return result.strategy  # the rest may depend on how arrays lie in memory
    return [(x.dtype.name, x.shape, bits(x).tobytes()) for x in results_of(result)]


def large(name):
    """Return a list of arguments that are more work than one thread is given alone. For most functions it is empty."""
    found = []
    for dtype in (cases.TYPES[x] for x in ("float32", "bfloat16")):
        arrays = dict(zip(("query", "key", "value"), work(dtype=dtype), strict=True))
        if name == "attention_varlen":
            arrays = {name: np.ascontiguousarray(x.swapaxes(0, 1)) for name, x in arrays.items()}
            arrays |= {"query_indptr": np.array([0, 100, 150]), "key_indptr": np.array([0, 100, 150])}
        elif name == "attention_weights":
            del arrays["value"]
        elif name == "attention_backward":
            arrays["out"], arrays["lse"] = cattn.attention(**arrays, return_lse=True)
            arrays["grad_out"] = arrays["out"]
        elif name == "cattn.h":
            from c_interface_calls import Call

            call = Call(**arrays, alibi_slopes=np.ones(3), causal=True, key_lengths=np.array(150), query_offset="end")
            arrays = call.arrays | call.numbers
        elif name != "attention":
            return []
        found.append(arrays | {"num_threads": 3})
    return found


def _all(*functions):
    return {function.name: function for function in functions}


FUNCTIONS = _all(
    Function("attention", own.draw_attention, cattn.attention, own.check_attention),
    Function(
        "attention_backward",
        own.draw_attention_backward,
        cattn.attention_backward,
        own.check_attention_backward,
        outputs=(),  # it reads out and lse
    ),
    Function("attention_weights", own.draw_attention_weights, cattn.attention_weights, own.check_attention_weights),
    Function("attention_varlen", own.draw_attention_varlen, cattn.attention_varlen, own.check_attention_varlen),
    Function("attention_paged", own.draw_attention_paged, cattn.attention_paged, own.check_attention_paged),
    Function("merge_attention", own.draw_merge_attention, cattn.merge_attention, own.check_merge_attention),
    Function("self_attention", own.draw_self_attention, cattn.self_attention, own.check_self_attention),
    Function("trace", own.draw_trace, cattn.trace, own.check_trace),
    Function("unpad", own.draw_unpad, cattn.unpad, own.check_unpad),
    Function("pad", own.draw_pad, cattn.pad, own.check_pad),
    Function("KVCache", own.draw_cache, own.call_cache, own.check_cache),
    Function("quantize", own.draw_quantize, cattn.quantize, own.check_quantize),
    Function("maxsim", own.draw_maxsim, cattn.maxsim, own.check_maxsim),
    Function("plan", own.draw_attention, cattn.plan, own.check_plan),
    Function("cattn.h", own.draw_c_attention, own.call_c, own.check_c),
    Function(
        "flash_attn.flash_attn_func",
        integrations.draw_flash_attn,
        integrations.call_flash_attn("flash_attn_func"),
        integrations.check_flash_attn,
    ),
    Function(
        "flash_attn.flash_attn_varlen_func",
        integrations.draw_flash_attn_varlen,
        integrations.call_flash_attn("flash_attn_varlen_func"),
        integrations.check_flash_attn_varlen,
    ),
    Function(
        "flash_attn.flash_attn_with_kvcache",
        integrations.draw_flash_attn_cache,
        integrations.call_flash_attn_cache,
        integrations.check_flash_attn_cache,
    ),
    Function(
        "torch.scaled_dot_product_attention",
        integrations.draw_torch,
        integrations.call_torch,
        integrations.check_torch,
        "torch",
    ),
    Function("torch.maxsim", integrations.draw_torch_maxsim, integrations.call_torch_maxsim, own.check_maxsim, "torch"),
    Function(
        "transformers.register",
        integrations.draw_transformers,
        integrations.call_transformers,
        integrations.check_transformers,
        "transformers",
    ),
    Function("dask.attention", integrations.draw_dask, integrations.call_dask, own.check_attention, "dask"),
)
# These import libraries that take seconds to import.
IMPORT_MORE = [name for name, function in FUNCTIONS.items() if function.needs]
