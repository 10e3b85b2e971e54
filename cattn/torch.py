"""Attention and MaxSim on PyTorch's CPU tensors, without copying them. Attention has PyTorch's names and semantics.

`scaled_dot_product_attention` replaces the function of that name in `torch.nn.functional`. It calls the operator
`torch.ops.cattn.attention`, which torch.compile and torch.export keep whole, and whose gradients cattn computes as
well. Within `sdpa()`, calls of PyTorch's own function come here too.
"""

import functools
import inspect
import sys
import types
import warnings

import numpy as np

import cattn

from ._tensors import is_recorded, num_threads, read, read_inputs, refuse_gradient, to_tensor, uncompiled

# isort: split
import torch  # after _tensors, which says what to install where there is none
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _autograd
from ._calls import raised_here, renamed
from ._modifiers import names_in
from ._read import as_flag, as_number, class_shown

__all__ = ["maxsim", "scaled_dot_product_attention", "sdpa"]

_INPUTS = ("query", "key", "value")
_TENSORS = (*_INPUTS, "attn_mask")
# The words of cattn's errors, and PyTorch's. PyTorch has no lengths that an error could recommend.
_WORDS = names_in("torch") | {", or pass key_lengths= for padding at the end of the keys": ""}
_WORDS |= {"astype(np.float32)": "to(torch.float32)", "an array": "a tensor", "ndarray": "tensor"}
_PLAIN = (Tensor, torch.nn.Parameter)


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *, key_scale=None,
    value_scale=None,
):  # fmt: skip
    """Compute attention as `torch.nn.functional.scaled_dot_product_attention` defines it.

    Parameters
    ----------
    query : Tensor, shape (..., H, L, E)
        A tensor on the CPU, of float16, bfloat16, float32 or float64, with any strides. Inputs are not copied.
    key : Tensor, shape (..., H, S, E)
        It has the type of query. With a float32 query, it may also be float16 or bfloat16, and with a key_scale int8.
        All axes before S broadcast with those of query.
    value : Tensor, shape (..., H, S, Ev)
        It has the type of key. int8 needs a value_scale. All axes before S broadcast with those of query.
    attn_mask : Tensor, broadcastable to (..., H, L, S), or CausalBias, optional
        A mask of booleans is True where a query may attend to a key. A mask of the type of query, or of float32, is
        added to the scores. A bias of `torch.nn.attention.bias.causal_upper_left` or `causal_lower_right` says where
        the queries stand, and is not turned into a mask.
    dropout_p : float
        Above 0, PyTorch computes the call: cattn has no dropout. Pass 0 to train with cattn.
    is_causal : bool
        If True, query i attends only to keys ``j <= i``, also where L and S differ (the top left corner). It cannot be
        combined with attn_mask.
    scale : float, optional
        The factor of the scores. The default is ``1 / sqrt(E)``.
    enable_gqa : bool
        If True, key and value may have fewer heads than query, by a factor. Query head h then reads head
        ``h // factor``.
    key_scale, value_scale : Tensor, optional
        The scales of an int8 key and value, as in `cattn.attention`. PyTorch's function has no such arguments. A call
        with scales has no gradients and no dropout, and torch.compile does not look into it.

    Returns
    -------
    Tensor, shape (..., H, L, Ev)
        It has the type of query. It is contiguous, unless query is a transposed (B, L, H, E). The result is then a
        transposed (B, L, H, Ev), as from PyTorch's own CPU kernel, so that heads are joined without a copy.
        Rows that may attend to nothing are zeros, as in PyTorch since version 2.5.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        An argument is wrong. The message names it, what was expected and what was given. As in PyTorch, inputs of one
        axis and an attn_mask beside is_causal raise RuntimeError.

    Warns
    -----
    UserWarning
        PyTorch computes the call. The reason is dropout, or a gradient within a transform of torch.func or in forward
        mode. Each reason is named once. ``warnings.filterwarnings("error", "cattn")`` makes it an error.

    Notes
    -----
    The number of threads is that of `torch.get_num_threads`, unless `cattn.num_threads`,
    `cattn.set_num_threads` or CATTN_NUM_THREADS says another.

    float16 and bfloat16 are read and written as they are, and computed in float32. `cattn.reference.attention` says how
    accurate the result is. Within torch.autocast, tensors are cast as for PyTorch's own function.

    Gradients of query, key, value and of an attn_mask that is added are those of `cattn.attention_backward`. They have
    the same bits for any number of threads. A second derivative raises NotImplementedError in the backward pass.

    The operator takes the same arguments, without dropout_p. Instead of a CausalBias it takes ``is_causal=True`` and
    query_offset: query i attends to keys ``j <= i + query_offset``. Import cattn.torch before you load an exported
    program that contains the operator.

    Examples
    --------
    >>> import torch, cattn.torch
    >>> query, key, value = torch.randn(3, 1, 12, 128, 64)
    >>> cattn.torch.scaled_dot_product_attention(query, key, value, is_causal=True).shape
    torch.Size([1, 12, 128, 64])
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)
            and (attn_mask is None or isinstance(attn_mask, Tensor))):  # fmt: skip
        _refuse_others(query=query, key=key, value=value, attn_mask=attn_mask)
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    is_scaled = key_scale is not None or value_scale is not None or torch.int8 in (key.dtype, value.dtype)
    if is_scaled and dropout_p != 0:
        raise ValueError(f"dropout_p: expected 0 beside key and value of int8, got {dropout_p}")
    if dropout_p != 0:
        uncompiled(_leave_dropout, dropout_p)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    query_offset = 0
    if attn_mask is not None and type(attn_mask) not in _PLAIN and _is_causal_bias(type(attn_mask)):
        if is_causal:
            raise ValueError("attn_mask: expected None beside is_causal=True, got a CausalBias")
        attn_mask, is_causal, query_offset = None, True, _query_offset(query, key, attn_mask)
    if torch.is_autocast_enabled("cpu"):
        query, key, value, attn_mask = map(_cast, (query, key, value, attn_mask))
    if is_scaled:
        inputs = query, key, value
        return uncompiled(_scaled_attention, inputs, scales, attn_mask, is_causal, scale, enable_gqa, query_offset)
    try:
        return _operator(query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset)
    except RuntimeError as error:
        if not str(error).startswith("cattn::attention()"):
            raise
        refusal = error  # the dispatcher refuses what the operator's schema does not allow
    if scale is not None:
        as_number("scale", scale)
    as_flag("is_causal", is_causal)
    as_flag("enable_gqa", enable_gqa)
    raise refusal


def maxsim(query, document, *, document_lengths=None, document_indptr=None, query_lengths=None, return_index=False):
    """Score documents for queries by late interaction, as `cattn.maxsim` does, on PyTorch's CPU tensors.

    Parameters
    ----------
    query : Tensor, shape (Lq, D) or (Q, Lq, D)
        The token embeddings of one query, or of several, of float16, bfloat16, float32 or float64.
    document : Tensor, shape (N, Ld, D) or (all tokens, D)
        The token embeddings of N documents, padded or packed. It has the type of query. Beside a query of float32, it
        may also be float16 or bfloat16.
    document_lengths : Tensor or array_like of int, shape (N,), optional
        The number of tokens of each padded document. For a mask of what is a token, pass ``mask.sum(1)``.
    document_indptr : Tensor or array_like of int, shape (N + 1,), optional
        Packed document n owns rows ``document_indptr[n]:document_indptr[n + 1]``.
    query_lengths : Tensor or array_like of int, shape (Q,), optional
        The number of tokens of each query.
    return_index : bool
        Also return which token of a document had the largest product.

    Returns
    -------
    scores : Tensor, shape (N,) or (Q, N)
        float64 for float64 tensors, else float32.
    index : Tensor of int64, shape (N, Lq) or (Q, N, Lq)
        It is returned only with `return_index`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        They have the same causes as in `cattn.maxsim`.
    NotImplementedError
        A gradient is needed. cattn computes none of maxsim.

    Notes
    -----
    The number of threads is that of `torch.get_num_threads`, as in `scaled_dot_product_attention`. torch.compile does
    not look into the function.

    Examples
    --------
    >>> import torch, cattn.torch
    >>> query, documents = torch.randn(32, 128), torch.randn(10, 200, 128)
    >>> cattn.torch.maxsim(query, documents).shape
    torch.Size([10])
    """
    integers = {
        "document_lengths": document_lengths,
        "document_indptr": document_indptr,
        "query_lengths": query_lengths,
    }
    return uncompiled(_maxsim, query, document, integers, return_index)


def _maxsim(query, document, integers, return_index):
    arrays = read("query", query), read("document", document)
    integers = {name: read(name, x) if isinstance(x, Tensor) else x for name, x in integers.items()}
    result = cattn.maxsim(*arrays, **integers, return_index=return_index, num_threads=num_threads())
    return tuple(map(to_tensor, result)) if isinstance(result, tuple) else to_tensor(result)


def _refuse_others(**given):
    for name, tensor in given.items():
        if not (isinstance(tensor, Tensor) or (name == "attn_mask" and tensor is None)):
            raise TypeError(f"{name}: expected a tensor, got {class_shown(tensor)}; arrays go to cattn.attention")


def _leave_dropout(dropout_p):
    """Warn that PyTorch computes a call with dropout, or refuse a number that is no share."""
    if not 0 < as_number("dropout_p", dropout_p) <= 1:
        raise ValueError(f"dropout_p: expected a number from 0 to 1, got {dropout_p}")
    _warn(f"dropout_p: expected 0, since cattn has no dropout, got {dropout_p}; write dropout_p=0, or model.eval()")


def _is_causal_bias(kind):
    from torch.nn.attention.bias import CausalBias  # this import takes long, because it imports the compiler

    return issubclass(kind, CausalBias)


def _query_offset(query, key, bias):
    """Return the key at which a CausalBias puts the first query."""
    lengths = *query.shape[-2:-1], *key.shape[-2:-1]
    if len(lengths) == 2 and lengths != (bias.seq_len_q, bias.seq_len_kv):
        raise ValueError(
            f"attn_mask: expected a CausalBias of {lengths[0]} queries and {lengths[1]} keys, got one of "
            f"{bias.seq_len_q} queries and {bias.seq_len_kv} keys"
        )
    return bias.seq_len_kv - bias.seq_len_q if bias.variant == type(bias.variant).LOWER_RIGHT else 0


def _cast(tensor):
    """Cast a tensor as torch.autocast casts it for PyTorch's own function."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


_warned = set()


def _warn(reason):
    """Warn, once in a process, why a call is left to PyTorch. The warning points to the first line outside of both."""
    if reason in _warned:
        return
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("cattn", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"cattn.torch leaves this to PyTorch: {reason}", stacklevel=level)
    _warned.add(reason)  # not before the warning, so that a filter that makes it an error makes it one in each call


# The operator


def _attention(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, query_offset=0):
    q, k, v = read_inputs(_INPUTS, query, key, value, may_mix=True)
    is_blhd = _is_blhd(q.strides)
    if not q.size and q.shape[-1:] == k.shape[-1:] == (0,):  # PyTorch allows a head size of 0: all scores are 0
        q, k = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (q, k))
    options = {"scale": scale, "causal": is_causal, "num_threads": num_threads()}
    if attn_mask is not None:
        _refuse_causal(is_causal)
        options[_kind(attn_mask, query.dtype)] = _read_mask(attn_mask)
    if not q.shape == k.shape == v.shape:
        q, k, v = _aligned(q, k, v, enable_gqa)
    if is_causal and (query_offset or q.shape != k.shape):
        options["query_offset"] = query_offset
    if is_blhd and q.ndim == 4:
        try:
            out = cattn.attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), layout="blhd", **options)
            return to_tensor(out.swapaxes(1, 2))
        except (TypeError, ValueError) as error:
            if not raised_here(error):
                raise
            # The call below raises the error again, with the shapes as they were given.
    try:
        return to_tensor(cattn.attention(q, k, v, **options))
    except (TypeError, ValueError) as error:
        raise _as_pytorchs(error, q, k, v) from None


def _scaled_attention(inputs, scales, attn_mask, is_causal, scale, enable_gqa, query_offset):
    """Return attention over keys and values of int8. The steps are those of `_attention`."""
    q, k, v = _aligned(*map(read, _INPUTS, inputs), enable_gqa)
    options = {name: read(name, x) for name, x in scales.items() if x is not None}
    options |= {"scale": scale, "causal": is_causal, "num_threads": num_threads()}
    if attn_mask is not None:
        _refuse_causal(is_causal)
        options[_kind(attn_mask, inputs[0].dtype)] = _read_mask(attn_mask)
    if is_causal:
        options["query_offset"] = query_offset
    try:
        return to_tensor(cattn.attention(q, k, v, **options))
    except (TypeError, ValueError) as error:
        raise _as_pytorchs(error, q, k, v) from None


def _recorded_attention(
    query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, query_offset=0
):
    """Return the operator's result, computed by cattn and recorded by PyTorch. The steps are those of `_attention`."""
    options = {"scale": scale, "causal": is_causal}
    if torch._C._len_torch_dispatch_stack() == 0:  # otherwise PyTorch only traces, with tensors that hold no numbers
        with torch.no_grad():
            read_inputs(_INPUTS, query, key, value, may_mix=True)
            if attn_mask is not None:
                _read_mask(attn_mask)
    if query.numel() == 0 and query.shape[-1:] == key.shape[-1:] == (0,):
        query, key = F.pad(query, (0, 1)), F.pad(key, (0, 1))
    if attn_mask is not None:
        _refuse_causal(is_causal)
        options[_kind(attn_mask, query.dtype)] = attn_mask
    if not query.shape == key.shape == value.shape:
        query, key, value = _aligned(query, key, value, enable_gqa)
    if is_causal:
        options["query_offset"] = query_offset
    try:
        return _autograd.attention(query, key, value, **options)
    except (TypeError, ValueError) as error:
        raise _as_pytorchs(error, query, key, value) from None


def _as_pytorchs(error, *inputs):
    """Return cattn's error in PyTorch's words."""
    if raised_here(error) and min(x.ndim for x in inputs) < 2:  # PyTorch raises RuntimeError here
        error = RuntimeError(error)
    return renamed(error, _WORDS)


def _is_blhd(strides):
    """Return whether the heads of a query lie within its positions, which is the layout (B, L, H, E) in memory."""
    return len(strides) == 4 and strides[1] < strides[2]


def _refuse_causal(is_causal):
    if is_causal:
        raise RuntimeError("attn_mask: expected None beside is_causal=True; write one mask that says both")


def _read_mask(attn_mask):
    mask = read("attn_mask", attn_mask)
    if type(attn_mask) not in _PLAIN:  # others may hold no numbers, such as CausalBias
        raise TypeError(f"attn_mask: expected a plain tensor, got {class_shown(attn_mask)}")
    return mask


def _kind(attn_mask, dtype):
    """Return the name of the modifier of `cattn.attention` that a mask stands for."""
    if attn_mask.dtype is torch.bool:
        return "mask"
    if attn_mask.dtype is dtype or attn_mask.dtype is torch.float32:
        return "bias"
    added = "torch.float32 like query" if dtype is torch.float32 else f"{dtype} like query or torch.float32"
    raise TypeError(
        f"attn_mask: expected type bool (True: may attend), or {added} (added to the scores), got {attn_mask.dtype}"
    )


def _aligned(query, key, value, enable_gqa):
    """Return the inputs with the axes broadcast that PyTorch broadcasts and cattn does not.

    These are axes that are missing in front, and, without enable_gqa, the heads.
    """
    arrays = {"query": query, "key": key, "value": value}
    ndim = max(array.ndim for array in arrays.values())
    if min(array.ndim for array in arrays.values()) < 2 or ndim == 2:
        return arrays.values()
    query, key, value = (array[(None,) * (ndim - array.ndim)] for array in arrays.values())
    heads = query.shape[-3], key.shape[-3], value.shape[-3]
    if enable_gqa or heads[1] == heads[2] in (1, heads[0]):
        return query, key, value
    most = max(heads)
    for name, number in zip(arrays, heads, strict=True):
        if number not in (1, most):
            raise ValueError(
                f"{name}: expected {most} heads, or one, got {number} (shape {tuple(arrays[name].shape)}); fewer heads "
                "of key and value than of query need enable_gqa=True"
            )
    broadcast_to = np.broadcast_to if isinstance(query, np.ndarray) else torch.broadcast_to
    return (broadcast_to(x, (*x.shape[:-3], most, *x.shape[-2:])) for x in (query, key, value))


def _fake_attention(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, query_offset=0):
    """Return an empty tensor of the result's shape, type and strides, for tracing."""
    if enable_gqa:
        leading = *torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3]), *query.shape[-3:-2]
    else:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    shape = *leading, query.shape[-2], value.shape[-1]
    if _is_blhd(query.stride()) and len(shape) == 4:
        batch, heads, length, size = shape
        return query.new_empty(batch, length, heads, size).transpose(1, 2)
    return query.new_empty(shape)


def _attention_below(*given):
    """Let PyTorch record the call if a gradient is wanted. This is the last place that sees whether it is. For plain
    tensors, nobody else need be asked otherwise."""
    try:
        if torch._C._len_torch_dispatch_stack() == 0 and all(type(x) in _PLAIN for x in given[:3]):
            return _attention(*given)
        for name, tensor in zip(_TENSORS, given, strict=False):
            if tensor is not None:
                refuse_gradient(name, tensor)
    except NotImplementedError as error:
        if is_recorded(*given[: len(_TENSORS)]):
            return _recorded_attention(*given)
        _warn(str(error))
    else:
        with torch._C._AutoDispatchBelowAutograd():
            return _operator(*given)
    return _pytorch_attention(*given)


def _pytorch_attention(
    query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, query_offset=0
):
    """Return the operator's result, computed and recorded by PyTorch."""
    if is_causal and query_offset:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask, is_causal = ones.tril(query_offset), False
    return torch.ops.aten.scaled_dot_product_attention.default(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )


_library = torch.library.Library("cattn", "FRAGMENT")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, bool is_causal=False, "
    "float? scale=None, bool enable_gqa=False, SymInt query_offset=0) -> Tensor",
    # The strides of the result follow those of query.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_library.impl("attention", functools.partial(uncompiled, _attention), "CompositeExplicitAutograd")
_library.impl("attention", functools.partial(uncompiled, _attention_below), "Autograd")
torch.library.register_fake("cattn::attention", _fake_attention, lib=_library)
_operator = torch.ops.cattn.attention.default


class sdpa(TorchFunctionMode):
    """Send calls of `torch.nn.functional.scaled_dot_product_attention` on CPU tensors to cattn.

    It is a context manager. Use it for models that you cannot change. Where you can change the call, write
    `scaled_dot_product_attention` of this module instead. PyTorch asks a mode about each call of any of its functions,
    which makes all of them about a microsecond slower. Within a mode PyTorch also gives up its fast path for
    `torch.nn.TransformerEncoderLayer` and `MultiheadAttention` in evaluation, which is one call of C++. Short sequences
    may therefore take longer there than without the context.

    Calls that cattn does not serve (dropout, tensors of other classes) are left to PyTorch. A warning names each reason
    once. ``warnings.filterwarnings("error", "cattn")`` makes it an error. Tensors on other devices are left to PyTorch
    silently.

    The context reaches the calls of its own thread that go through Python. These are the calls in a model's code, and
    those in `torch.nn.functional.multi_head_attention_forward`, which serves PyTorch's Transformer layers and
    `torch.nn.MultiheadAttention` with ``need_weights=False``. By default `torch.nn.MultiheadAttention` returns weights,
    and PyTorch then multiplies matrices: a warning says that you can write ``need_weights=False``. The context does not
    reach other threads, TorchScript, or anything that C++ calls.

    Examples
    --------
    >>> import torch, cattn.torch
    >>> query, key, value = torch.randn(3, 1, 12, 128, 64)
    >>> with cattn.torch.sdpa():
    ...     out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    """

    def __torch_function__(self, function, overridden, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention or function is F.multi_head_attention_forward:
            is_plain_call = function is F.scaled_dot_product_attention
            others = [x for x in overridden if x not in _PLAIN and not (is_plain_call and _is_causal_bias(x))]
            if others:
                name = others[0].__name__
                uncompiled(_warn, f"{name}: expected plain tensors, got a class with functions of its own")
            elif is_plain_call:
                return self._attend(*args, **kwargs)
            elif kwargs.get("need_weights", args[_NEED_WEIGHTS] if len(args) > _NEED_WEIGHTS else True):
                uncompiled(_warn, "need_weights: expected False, got True, the default; write need_weights=False")
            else:
                return _multi_head_attention_forward(self._attend)(*args, **kwargs)
        return function(*args, **kwargs)

    def _attend(self, query, key, *others, **named):
        # PyTorch refuses mixed types, unless it casts them.
        if query.is_cpu and (query.dtype is key.dtype or torch.is_autocast_enabled("cpu")):
            try:
                return scaled_dot_product_attention(query, key, *others, **named)
            except (TypeError, ValueError, RuntimeError) as error:
                if not raised_here(error):
                    raise
                uncompiled(_warn, str(error))
        return F.scaled_dot_product_attention(query, key, *others, **named)


_NEED_WEIGHTS = list(inspect.signature(F.multi_head_attention_forward).parameters).index("need_weights")


def _multi_head_attention_forward(attention):
    """Return PyTorch's function of that name, which calls `attention` in the place of its own.

    A mode that is asked about the whole function does not see the calls inside it.
    """
    theirs = F.multi_head_attention_forward
    names = vars(F) | {"scaled_dot_product_attention": attention}
    ours = types.FunctionType(theirs.__code__, names, argdefs=theirs.__defaults__)
    ours.__kwdefaults__ = theirs.__kwdefaults__
    return ours
