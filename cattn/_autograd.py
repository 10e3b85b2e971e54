"""Attention on tensors that PyTorch records: two operators of its dispatcher, attention and its gradients.

`attention` and `attention_varlen` are cattn's functions for tensors that need gradients. The operators below them take
every modifier that an integration needs, so that `cattn.torch`, `cattn.flash_attn` and `cattn.transformers` train by
one formula, and they have shapes without data for torch.compile.
"""

import functools

import numpy as np
import torch

import cattn

from . import _arguments, _tensors
from ._tensors import num_threads, to_numpy, uncompiled

_INPUTS = ("query", "key", "value")
_DIFFERENTIABLE = (*_INPUTS, "bias", "alibi_slopes", "sinks")
_ARRAYS = ("mask", "key_start", "key_stop")
_NUMBERS = ("window_left", "window_right", "query_offset", "scale", "softcap")
_SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, Tensor? mask, "
    "Tensor? key_start, Tensor? key_stop, SymInt? window_left, SymInt? window_right, SymInt? query_offset, "
    "float? scale, float? softcap"
)


def attention(query, key, value, *, layout="bhld", return_lse=False, **modifiers):
    """Return what `cattn.attention` returns, as tensors that PyTorch has recorded.

    The modifiers that have gradients are tensors. Masks and ranges of keys may also be arrays. Offsets and lengths of
    each batch entry are not taken.
    """
    if torch._C._len_torch_dispatch_stack() == 0:  # otherwise PyTorch only traces, and the operator checks later
        arrays = [to_numpy(x) for x in (query, key, value)]
        named = {name: to_numpy(x) if isinstance(x, torch.Tensor) else x for name, x in modifiers.items()}
        _arguments.attention(*arrays, layout=layout, return_lse=return_lse, **named)
    modifiers.pop("num_threads", None)
    if layout == "blhd":
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out, lse = _attend(query, key, value, **modifiers)
    if layout == "blhd":
        out, lse = out.transpose(1, 2), lse.transpose(1, 2)
    return (out, lse) if return_lse else out


def attention_varlen(
    query, key, value, query_indptr, key_indptr, *, alibi_slopes=None, return_lse=False, num_threads=None, **modifiers
):
    """Return what `cattn.attention_varlen` returns, as tensors that PyTorch has recorded, sequence by sequence."""
    arrays = [to_numpy(x) for x in (query, key, value)]
    slopes = None if alibi_slopes is None else to_numpy(alibi_slopes)
    checked, _, _ = _arguments.attention_varlen(
        *arrays, query_indptr, key_indptr, alibi_slopes=slopes, return_lse=return_lse, **modifiers
    )
    lengths = [np.diff(indptr).tolist() or [0] for indptr in (checked.query_indptr, checked.key_indptr)]
    slopes = [alibi_slopes] * len(lengths[0])
    if alibi_slopes is not None and alibi_slopes.ndim == 2:
        slopes = alibi_slopes.expand(len(lengths[0]), -1).unbind()
    parts = [x.split(of_each) for x, of_each in zip((query, key, value), (*lengths, lengths[1]), strict=True)]
    results = [
        _attend(*(x.transpose(0, 1) for x in arrays), alibi_slopes=slopes[n], **modifiers)
        for n, arrays in enumerate(zip(*parts, strict=True))
    ]
    out, lse = (torch.cat([x.transpose(0, 1) for x in found]) for found in zip(*results, strict=True))
    return (out, lse) if return_lse else out


# What cattn.flash_attn asks of tensors


def read_inputs(names, query, key, value):
    """Return the tensors themselves, after the same checks as of tensors without gradients."""
    with torch.no_grad():
        _tensors.read_inputs(names, query, key, value)
    return query, key, value


def read(name, tensor):
    """Return a tensor of integers as an array. One of floats stays as it is, because it may need a gradient."""
    with torch.no_grad():
        array = _tensors.read(name, tensor)
    return tensor if tensor.is_floating_point() else array


def to_tensor(result):
    """Return a result as it is, because it is a tensor already."""
    return result


# The operators


def _attend(
    query, key, value, *, bias=None, alibi_slopes=None, sinks=None, mask=None, key_range=None, window=None,
    causal=False, query_offset=None, scale=None, softcap=None,
):  # fmt: skip
    """Return out and lse of tensors (..., H, L, D)."""
    left, right = window or (None, None)
    if causal:
        right = 0
    if isinstance(query_offset, str):
        query_offset = {"start": 0, "end": key.shape[-2] - query.shape[-2]}[query_offset]
    arrays = mask, *(key_range or (None, None))
    arrays = [
        _tensors.to_tensor(np.asarray(x)) if not (x is None or isinstance(x, torch.Tensor)) else x for x in arrays
    ]
    out, lse = _forward_operator(
        query, key, value, bias, alibi_slopes, sinks, *arrays, left, right, query_offset, scale, softcap
    )
    return out.to(query.dtype), lse


def _forward(*given):
    """Return out and lse. For half types, out is not rounded yet: gradients are then computed from what it was."""
    query, key, value, options = _read(*given)
    shape, dtype = _result(*given[:3])
    out = to_numpy(_like(given[0], shape, dtype))
    return tuple(map(_tensors.to_tensor, cattn.attention(query, key, value, **options, out=out, return_lse=True)))


def _backward(grad_out, grad_lse, out, lse, bias_grad, *given):
    """Return the gradients. Those of inputs that were not given, or not asked for, are empty."""
    *inputs, options = _read(*given)
    arrays = [to_numpy(grad_out), *inputs, to_numpy(out), to_numpy(lse)]
    grad_lse = None if grad_lse is None else to_numpy(grad_lse)
    if swapped := _is_blhd(given[0]):  # the gradients then lie in memory as the inputs do
        arrays = [x.swapaxes(1, 2) for x in arrays]
        grad_lse = None if grad_lse is None else grad_lse.swapaxes(1, 2)
        options["layout"] = "blhd"
    found = cattn.attention_backward(*arrays, **options, grad_lse=grad_lse, bias_grad=bias_grad)
    if swapped:
        found = *(np.ascontiguousarray(x).swapaxes(1, 2) for x in found[:3]), *found[3:]
    return tuple(given[0].new_empty(0) if x is None else _tensors.to_tensor(x) for x in found)


def _read(*given):
    """Return query, key and value as arrays, and the options of `cattn.attention`."""
    query, key, value = _tensors.read_inputs(_INPUTS, *given[:3], may_mix=True)
    options = {
        name: to_numpy(x) if isinstance(x, torch.Tensor) else x
        for name, x in zip((*_DIFFERENTIABLE, *_ARRAYS, *_NUMBERS), given, strict=True)
        if x is not None and name not in _INPUTS
    }
    for pair, (first, second) in (("key_range", _ARRAYS[1:]), ("window", _NUMBERS[:2])):
        if first in options or second in options:
            options[pair] = options.pop(first, None), options.pop(second, None)
    return query, key, value, options | {"num_threads": num_threads()}


def _is_blhd(query):
    """Return whether the heads of a query lie within its positions, which is the layout (B, L, H, D) in memory."""
    return query.ndim == 4 and query.stride(1) < query.stride(2)


def _result(query, key, value):
    """Return the shape and the type of an output that is not rounded."""
    leading, *others = (x.shape[:-3] for x in (query, key, value))
    if others != [leading, leading]:  # PyTorch's function takes as long as a small call does
        leading = torch.broadcast_shapes(leading, *others)
    shape = *leading, *query.shape[-3:-1], value.shape[-1]
    return shape, torch.float64 if query.dtype is torch.float64 else torch.float32


def _like(query, shape, dtype):
    """Return an empty tensor whose heads lie within its positions if those of the query do."""
    if _is_blhd(query):
        batch, heads, length, size = shape
        return query.new_empty(batch, length, heads, size, dtype=dtype).transpose(1, 2)
    return query.new_empty(shape, dtype=dtype)


# Shapes without data


def _fake_forward(*given):
    shape, dtype = _result(*given[:3])
    return _like(given[0], shape, dtype), given[0].new_empty(shape[:-1], dtype=dtype)


def _fake_backward(grad_out, grad_lse, out, lse, bias_grad, *given):
    query, key, value, bias, slopes, sinks = given[: len(_DIFFERENTIABLE)]
    others = bias if bias_grad else None, slopes, sinks
    return (
        *(_like(query, x.shape, x.dtype) for x in (query, key, value)),
        *(query.new_empty(0) if x is None else x.new_empty(x.shape) for x in others),
    )


# What PyTorch is told


def _setup_context(ctx, inputs, output):
    tensors = len(_DIFFERENTIABLE) + len(_ARRAYS)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:tensors])
    ctx.numbers = inputs[tensors:]


def _record(ctx, grad_out, grad_lse):
    out, lse, *tensors = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    wanted = ctx.needs_input_grad[: len(_DIFFERENTIABLE)]
    found = _backward_operator(grad_out, grad_lse, out, lse, wanted[3], *tensors, *ctx.numbers)
    found = (x if is_wanted else None for x, is_wanted in zip(found, wanted, strict=True))
    return *found, *(None for _ in (*_ARRAYS, *_NUMBERS))


def _refuse_second_derivatives(ctx, *grads):
    raise NotImplementedError(
        "attention: expected first derivatives only, since cattn computes no others, got a derivative of a gradient; "
        "for these, call PyTorch's own function, torch.nn.functional.scaled_dot_product_attention"
    )


_library = torch.library.Library("cattn", "FRAGMENT")
_library.define(f"attention_forward({_SCHEMA}) -> (Tensor, Tensor)")
_library.define(
    f"attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, bool bias_grad, {_SCHEMA}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
for _name, _kernel, _fake in (("forward", _forward, _fake_forward), ("backward", _backward, _fake_backward)):
    _library.impl(f"attention_{_name}", functools.partial(uncompiled, _kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"cattn::attention_{_name}", _fake, lib=_library)
torch.library.register_autograd("cattn::attention_forward", _record, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("cattn::attention_backward", _refuse_second_derivatives, lib=_library)
_forward_operator = torch.ops.cattn.attention_forward.default
_backward_operator = torch.ops.cattn.attention_backward.default
