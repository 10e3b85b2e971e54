"""Attention of HuggingFace's models on the CPU: after `register`, ``attn_implementation="cattn"`` computes it here.

A model of transformers makes its masks once in a forward and hands them to the attention of each layer. Both functions
are looked up by the same name: where only the attention has it, masks silently become None. A mask of ours has the
shape and the meaning of sdpa's, and holds what `cattn.attention` takes in its place: a window, positions and ranges of
keys. Its elements are made only where the keys of some query are no interval, or for somebody else who reads them.
"""

from types import FunctionType

import numpy as np

try:
    import transformers
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("cattn.transformers: transformers is not installed: pip install 'cattn[transformers]'") from None
if transformers.__version__.partition(".")[0] != "5":
    raise ImportError(
        "cattn.transformers: expected transformers 5 (5.0 or later, and before 6), "
        f"got {transformers.__version__}: pip install 'cattn[transformers]'"
    )

from ._calls import renamed
from ._kernel import attention
from ._tensors import num_threads, read, read_inputs, to_numpy, to_tensor

# isort: split
import torch  # after _tensors, which says what to install where there is none
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

__all__ = ["register"]

_BLOCK = 2**20  # elements of a mask that are made and looked at together


def register():
    """Let the models of transformers 5 take ``attn_implementation="cattn"``.

    It holds for the process; to call it again does nothing. Models are given the name where they are made
    (``from_pretrained(..., attn_implementation="cattn")``, ``model_kwargs`` of sentence-transformers) or later
    (``model.set_attn_implementation("cattn")``).

    Queries, keys and values are read where they lie, and grouped heads are not repeated. Causal masks, sliding windows,
    padding and whatever else lets each query attend to one interval of keys are never made as arrays of queries times
    keys; any other mask is passed as it is. Softcap, sinks of heads and the position bias of T5 are served.

    Forward only, on the CPU. A model that is called with gradients enabled, in training with dropout, on another device
    or for the weights (``output_attentions``) raises an error that says so; so does one whose attention cannot be
    replaced, such as T5 in early versions of transformers 5, or has sinks of a kind of its own. Under torch.compile the
    graph breaks at each attention.

    The number of threads is that of `torch.get_num_threads`, unless `cattn.set_num_threads` or CATTN_NUM_THREADS says
    another.

    Examples
    --------
    >>> import cattn.transformers
    >>> from transformers import BertConfig, BertModel
    >>> cattn.transformers.register()
    >>> model = BertModel._from_config(BertConfig(num_hidden_layers=1), attn_implementation="cattn")
    """
    AttentionInterface.register("cattn", _attention)
    AttentionMaskInterface.register("cattn", _mask)


# Masks, made once in a forward


class _Mask(torch.Tensor):
    """Booleans (batch, 1, queries, keys), True where a query may attend, without elements: `modifiers` is what
    `attention` takes in their place. Once somebody reads or writes elements, there are such, and they count."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape, modifiers):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool)

    def __init__(self, shape, modifiers):
        self.modifiers = modifiers

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.alias.default:  # a slice of all there is, as eager attention takes it
            (mask,) = args
            return cls(mask.shape, mask.modifiers)
        if function is torch.ops.aten.add.Tensor:
            raise NotImplementedError(  # the operator + would turn a TypeError into one of its own
                "attn_implementation: this model adds masks to the scores in an attention of its own, which "
                f'transformers {transformers.__version__} cannot replace; write attn_implementation="eager"'
            )
        args, kwargs = tree_map_only(cls, cls.elements, (args, kwargs or {}))
        return function(*args, **kwargs)

    def elements(self):
        if "mask" not in self.modifiers:
            mask = _elements(self.shape, **self.modifiers)
            self.modifiers.clear()
            self.modifiers["mask"] = mask
        return to_tensor(self.modifiers["mask"])


def _elements(shape, *, window=(None, None), query_offset=0, key_range=None):
    key = np.arange(shape[-1])
    position = query_offset + np.arange(shape[-2])[:, None]
    left, right = window
    visible = np.ones(shape, np.bool_)
    if left is not None:
        visible &= key >= position - left
    if right is not None:
        visible &= key <= position + right
    if key_range is not None:
        start, stop = key_range
        visible &= (start[..., None] <= key) & (key < stop[..., None])
    return visible


@torch.compiler.disable
def _mask(*, batch_size, kv_length, cache_position=None, q_length=None, q_offset=0, device="cpu", **given):
    """The mask function. The queries' positions came as a tensor at first (5.0), then as a range (5.8)."""
    if cache_position is not None:
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    elif q_length is None:
        raise TypeError(f"cattn.transformers: the masks of transformers {transformers.__version__} are not known here")
    if torch.device(device).type != "cpu":
        raise ValueError(f"attention_mask: expected a tensor on the CPU, got one on {device}; write model.cpu()")
    q_offset = int(q_offset)
    may_be_none = given.get("allow_is_bidirectional_skip", False)
    given.update(
        batch_size=batch_size, kv_length=kv_length, allow_is_causal_skip=False, allow_is_bidirectional_skip=False
    )

    def rows(start, stop):
        if cache_position is None:
            position = {"q_length": stop - start, "q_offset": q_offset + start, "device": device}
        else:
            position = {"cache_position": cache_position[start:stop]}
        return masking_utils.sdpa_mask(**position, **given)

    modifiers = None
    if cache_position is None or (cache_position.diff() == 1).all():
        modifiers = _structure(q_length, q_offset, **given)
    if modifiers is None:
        modifiers = _by_looking(batch_size, q_length, kv_length, rows)
    if may_be_none and not modifiers:
        return None
    return _Mask((batch_size, 1, q_length, kv_length), modifiers)


def _structure(
    queries,
    first,
    *,
    kv_length,
    kv_offset=0,
    mask_function=masking_utils.causal_mask_function,
    attention_mask=None,
    local_size=None,
    **_,
):
    """The modifiers of a causal, sliding or bidirectional mask over a padded batch; None where it is another.

    The queries stand at positions from `first`, the keys from `kv_offset`; both count from the first token.
    """
    window = _window(mask_function, local_size)
    if window is None:
        return None
    modifiers = {}
    if attention_mask is not None:
        # The keys that lie past its end do not exist yet, in a cache of fixed length.
        ranges = _intervals(to_numpy(attention_mask)[:, kv_offset : kv_offset + kv_length])
        if ranges is None:
            return None
        start, stop = ranges
        if start.any() or (stop < kv_length).any():
            modifiers["key_range"] = start[:, None, None], stop[:, None, None]
    # A side that no query comes to is none: nothing at all is passed for a new token that attends to its whole cache.
    left, right = window
    first -= kv_offset
    if left is not None and first + queries - 1 <= left:
        left = None
    if right is not None and first + right >= kv_length - 1:
        right = None
    if left is not None or right is not None:
        modifiers.update(window=(left, right), query_offset=first)
    return modifiers


def _window(mask_function, size):
    """(left, right) of a mask function, None where it is none that transformers has for masks with this local size."""
    if mask_function is masking_utils.causal_mask_function:
        return None, 0
    if mask_function is masking_utils.bidirectional_mask_function:
        return None, None
    if size is not None:
        sliding = {
            "sliding_window_causal_mask_function": (size - 1, 0),
            "sliding_window_bidirectional_mask_function": (size, size),
        }
        for name, window in sliding.items():
            make = getattr(masking_utils, name, None)
            if make is not None and _same(mask_function, make(size)):
                return window
    return None


def _same(one, other):
    """Whether two closures, which are made anew for each mask, run the same code on the same functions and integers."""
    if isinstance(one, FunctionType) and isinstance(other, FunctionType) and one.__code__ is other.__code__:
        cells = [tuple(cell.cell_contents for cell in function.__closure__ or ()) for function in (one, other)]
        return _same(*cells)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) is int and one == other


def _by_looking(batch, queries, keys, rows):
    """The modifiers of any mask: its rows are made, some at a time, and looked at."""
    step = max(1, _BLOCK // max(1, batch * keys))
    blocks = [(first, min(first + step, queries)) for first in range(0, queries, step)]
    start, stop = np.empty((2, batch, 1, queries), np.int64)
    for first, last in blocks:
        ranges = _intervals(to_numpy(rows(first, last)))
        if ranges is None:
            break
        start[..., first:last], stop[..., first:last] = ranges
    else:
        return {"key_range": (start, stop)}
    mask = np.empty((batch, 1, queries, keys), np.bool_)
    for first, last in blocks:
        mask[..., first:last, :] = to_numpy(rows(first, last))
    return {"mask": mask}


def _intervals(visible):
    """(start, stop) of the True elements along the last axis; None where somewhere they are no interval."""
    count = visible.sum(-1)
    if not count.any():  # argmax wants an element at least
        return count, count
    start = visible.argmax(-1)
    stop = np.where(count, visible.shape[-1] - visible[..., ::-1].argmax(-1), 0)
    return (start, stop) if np.array_equal(stop - start, count) else None


# Attention, in each layer

_NAMES = {"scale": "scaling", "mask": "attention_mask", "bias": "attention_mask", "sinks": "s_aux"}


@torch.compiler.disable
def _attention(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    is_causal=None,
    softcap=None,
    s_aux=None,
    position_bias=None,
    **others,
):
    """The attention function: (batch, heads, length, size) to (batch, length, heads, size), and no weights."""
    if dropout:
        raise ValueError(f"dropout: expected 0, since cattn has no dropout, got {dropout}; write model.eval()")
    if others.get("output_attentions"):
        raise ValueError('output_attentions: cattn keeps no weights; write attn_implementation="eager"')
    if others.get("sinks") is not None:  # s_aux has one number a head, this one a query
        raise ValueError('sinks: cattn has one sink a head; write attn_implementation="eager"')
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    # Heads within positions: where they come from as a rule, and where the result goes.
    arrays = [array.swapaxes(1, 2) for array in read_inputs(("query", "key", "value"), query, key, value)]
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None:
        # One query alone is a new token, which attends to all. Several stand at the first keys: in an empty cache of
        # fixed length these are the ones that exist.
        causal = queries > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        modifiers = {"causal": True, "query_offset": "start"} if causal else {}
    else:
        modifiers = _read_mask(attention_mask, queries, keys)
    if position_bias is not None:
        if "bias" in modifiers:
            position_bias = position_bias + attention_mask
        modifiers["bias"] = read("position_bias", position_bias)
    if softcap is not None:
        modifiers["softcap"] = softcap
    if s_aux is not None:
        modifiers["sinks"] = read("s_aux", s_aux)

    try:
        out = attention(*arrays, layout="blhd", scale=scaling, num_threads=num_threads(), **modifiers)
    except (TypeError, ValueError) as error:
        raise renamed(error, _NAMES if position_bias is None else _NAMES | {"bias": "position_bias"}) from None
    return to_tensor(out), None


def _read_mask(attention_mask, queries, keys):
    """The modifiers of a mask, ours or the caller's."""
    if not isinstance(attention_mask, _Mask):
        mask = read("attention_mask", attention_mask)
        if attention_mask.dtype is torch.bool:
            return {"mask": mask}
        if attention_mask.is_floating_point():
            return {"bias": mask}
        raise TypeError(
            "attention_mask: expected booleans (True: may attend) or what is added to the scores, "
            f"got {mask.dtype}; write attention_mask.bool()"
        )
    if attention_mask.shape[-2:] != (queries, keys):
        raise ValueError(
            f"attention_mask: expected {queries} queries and {keys} keys like query and key, got a mask of shape "
            f"{tuple(attention_mask.shape)}"
        )
    return dict(attention_mask.modifiers)
