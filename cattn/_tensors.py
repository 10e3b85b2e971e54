"""PyTorch's CPU tensors as NumPy's arrays, and back: the same memory, in all four types."""

import numpy as np

try:
    import torch
    from ml_dtypes import bfloat16
except ModuleNotFoundError as error:
    if error.name not in ("torch", "ml_dtypes"):
        raise
    raise ImportError(
        f"cattn: tensors need PyTorch and ml_dtypes, and {error.name} is not installed: pip install 'cattn[torch]'"
    ) from None

from ._read import TYPES, class_shown
from ._threads import own_num_threads

_BFLOAT16 = np.dtype(bfloat16)  # NumPy has none of its own
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def to_numpy(tensor):
    """The array of a CPU tensor's memory: of the four types, booleans or integers, with any strides. Whether a gradient
    is wanted is for the caller to ask before."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy(force=True).view(_BFLOAT16)
    return tensor.numpy(force=True)  # also of parameters, and of what is negated when it is read


def to_tensor(array):
    """The tensor of an array's memory."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def num_threads():
    """Of a call on tensors: PyTorch's own number, unless cattn was given one. Two runtimes that take turns would keep
    each other's cores busy otherwise."""
    return own_num_threads() or torch.get_num_threads()


# Arguments


def read_inputs(names, query, key, value):
    """`read` of query, key and value, by the caller's names: they share one of the four types."""
    q, k, v = read(names[0], query), read(names[1], key), read(names[2], value)
    if not (query.dtype in _FLOATS and q.dtype == k.dtype == v.dtype):
        _refuse_types(names, query.dtype, key.dtype, value.dtype)
    return q, k, v


def read(name, tensor):
    """`to_numpy` of an argument, or an error that names it."""
    if not (isinstance(tensor, torch.Tensor) and tensor.is_cpu and _is_dense(tensor)):
        _refuse_elsewhere(name, tensor)
    if tensor.requires_grad:
        refuse_gradient(name, tensor)
    return to_numpy(tensor)


def _is_dense(tensor):
    return tensor.layout is torch.strided and not tensor.is_nested


def refuse_gradient(name, tensor):
    """Where one is wanted."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name}: expected a tensor that needs no gradient, since cattn computes none, got one with requires_grad; "
            f"call it under torch.no_grad() or torch.inference_mode(), or write {name}.detach()"
        )


def _refuse_elsewhere(name, tensor):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {class_shown(tensor)}")
    if not _is_dense(tensor):
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")
    advice = "" if tensor.is_meta else f"; write {name}.cpu()"
    raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}{advice}")


def _refuse_types(names, *dtypes):
    first, expected = names[0], dtypes[0]
    if expected not in _FLOATS:
        raise TypeError(f"{first}: expected type {TYPES}, got {expected}; write {first}.to(torch.float32)")
    for name, dtype in zip(names, dtypes, strict=True):
        if dtype is not expected:
            raise TypeError(f"{name}: expected type {expected} like {first}, got {dtype}; write {name}.to({expected})")
