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

_BFLOAT16 = np.dtype(bfloat16)  # NumPy has none of its own


def to_numpy(tensor):
    """The array of a CPU tensor's memory: of the four types, booleans or integers, with any strides. Whether a gradient
    is wanted is for the caller to ask before."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(_BFLOAT16)
    return tensor.numpy()


def to_tensor(array):
    """The tensor of an array's memory."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
