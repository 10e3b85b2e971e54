"""PyTorch's CPU tensors as NumPy's arrays, and back: the same memory, in all four types."""

import numpy as np

try:
    import torch
    from ml_dtypes import bfloat16
    from torch.autograd import forward_ad
except ModuleNotFoundError as error:
    if error.name not in ("torch", "ml_dtypes"):
        raise
    raise ImportError(
        f"cattn: tensors need PyTorch and ml_dtypes, and {error.name} is not installed: pip install 'cattn[torch]'"
    ) from None

from ._read import KEY_TYPES_BESIDE, TYPES, class_shown
from ._threads import own_num_threads

_BFLOAT16 = np.dtype(bfloat16)  # NumPy has none of its own
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def to_numpy(tensor):
    """Return the memory of a CPU tensor as an array. The tensor may have any of the four types, booleans or integers.

    The caller must have asked before whether a gradient is wanted.
    """
    if tensor.dtype is torch.bfloat16:
        return tensor.resolve_neg().view(torch.uint16).numpy(force=True).view(_BFLOAT16)
    return tensor.numpy(force=True)  # without force, parameters and tensors with a negative bit are refused


def to_tensor(array):
    """Return a tensor on the memory of an array."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def is_float(dtype):
    """Return whether a type is one of PyTorch's four that cattn computes with."""
    return dtype in _FLOATS


def num_threads():
    """Return the number of threads of a call on tensors: PyTorch's own, unless cattn was given one.

    Two runtimes that take turns would otherwise keep each other's cores busy.
    """
    return own_num_threads() or torch.get_num_threads()


def uncompiled(function, *given):
    """Return `function(*given)`, computed between the graphs of torch.compile, which does not look into it.

    In code that turns tensors into arrays and back, the compiler would lose bfloat16 and requires_grad.
    """
    if torch.compiler.is_dynamo_compiling():
        function = torch.compiler.disable(function)
    return function(*given)


# Arguments


def read_inputs(names, query, key, value, may_mix=False):
    """Return query, key and value as arrays, which share one of the four types. `names` are what the caller calls them.

    If they `may_mix`, key and value may share another type than query, as in `cattn.attention`.
    """
    arrays = None
    try:  # PyTorch itself refuses a tensor that is not plain, so a plain one needs no other check
        if query.dtype is not torch.bfloat16 and forward_ad._current_level < 0:
            arrays = query.numpy(), key.numpy(), value.numpy()
    except (TypeError, RuntimeError, AttributeError):
        pass
    if arrays is None:
        for name, tensor in zip(names, (query, key, value), strict=True):
            _check(name, tensor)
        arrays = to_numpy(query), to_numpy(key), to_numpy(value)
    q, k, v = arrays
    if not (query.dtype in _FLOATS and q.dtype == k.dtype == v.dtype):
        _check_types(names, query.dtype, key.dtype, value.dtype, may_mix)
    return arrays


def read(name, tensor):
    """Return a tensor as an array, or raise an error that names the argument."""
    _check(name, tensor)
    return to_numpy(tensor)


def check_writable(name, tensor, array):
    """Raise TypeError unless an array is the memory of the tensor, and can be written to."""
    if tensor.numel() and (array.ctypes.data != tensor.data_ptr() or not array.flags.writeable):
        raise TypeError(
            f"{name}: expected a tensor that new tokens can be written to, got a view without memory of its own"
        )


def _check(name, tensor):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {class_shown(tensor)}")
    if not tensor.is_cpu:
        advice = "" if tensor.is_meta else f"; write {name}.cpu()"
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}{advice}")
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")
    refuse_gradient(name, tensor)


def refuse_gradient(name, tensor):
    """Raise NotImplementedError if a gradient of the tensor is wanted, in either mode of differentiation."""
    if tensor.requires_grad and torch.is_grad_enabled():
        place = "within torch.func" if torch._C._are_functorch_transforms_active() else "here"
        raise NotImplementedError(
            f"{name}: expected a tensor that needs no gradient, since cattn computes none {place}, got one with "
            f"requires_grad; call it under torch.no_grad() or torch.inference_mode(), or write {name}.detach()"
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name}: expected a tensor without a tangent, since cattn computes none")


def is_recorded(*tensors):
    """Return whether PyTorch wants a gradient of some tensor, and wants it in a way that `_autograd` serves.

    The transforms of torch.func and forward mode are not served.
    """
    return (
        torch.is_grad_enabled()
        and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def _check_types(names, query, key, value, may_mix):
    first, expected, or_else = names[0], query, ""
    if query not in _FLOATS:
        raise TypeError(f"{first}: expected type {TYPES}, got {query}; write {first}.to(torch.float32)")
    others = [getattr(torch, name) for name in KEY_TYPES_BESIDE.get(str(query).removeprefix("torch."), ())]
    if may_mix and others:
        or_else = f", {' or '.join(map(str, others))}"
        if key in others:
            first, expected, or_else = names[1], key, ""
    for name, dtype in zip(names[1:], (key, value), strict=True):
        if dtype is not expected:
            raise TypeError(
                f"{name}: expected type {expected} like {first}{or_else}, got {dtype}; write {name}.to({expected})"
            )
        or_else = ""
