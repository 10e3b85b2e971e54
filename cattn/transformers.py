"""Attention of HuggingFace's models on the CPU: call `register`, then pass ``attn_implementation="cattn"``.

A model of transformers makes its masks once in a forward pass and hands them to the attention of each layer. Both
functions, that of masks and that of attention, are looked up by the same name. If only the attention were registered,
masks would silently become None. A mask made here has the shape and the meaning of sdpa's. It holds what
`cattn.attention` takes in its place: a window, positions and ranges of keys. Its elements are made only where the keys
of some query are not an interval, or when other code reads them.
"""

import functools
import inspect
import sys
import warnings
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
from ._kernel import attention, attention_weights
from ._modifiers import names_in
from ._tensors import is_recorded, num_threads, read, read_inputs, refuse_gradient, to_numpy, to_tensor

# isort: split
import torch  # after _tensors, which says what to install where there is none
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from . import _autograd
from ._append_cache import AppendCache

__all__ = ["AppendCache", "register"]

_INSTEAD = 'write attn_implementation="eager"'

_BLOCK = 2**20  # the elements of a mask that are made and looked at together


def register():
    """Let the models of transformers 5 take ``attn_implementation="cattn"``.

    The registration holds for the process, and calling it again does nothing. Pass the name where a model is made
    (``from_pretrained(..., attn_implementation="cattn")``, ``model_kwargs`` of sentence-transformers) or set it later
    (``model.set_attn_implementation("cattn")``).

    Queries, keys and values are read where they lie, and grouped heads are not repeated. Causal masks, sliding windows,
    padding and all other masks that let each query attend to one interval of keys are never made as arrays of queries
    times keys. Any other mask is passed as it is. Softcap, sinks of heads, the position bias of T5 and the chosen keys
    of sparse attention are served.

    Models can be trained. cattn computes the gradients as well, which have the same bits for any number of threads. It
    has no dropout, and no gradients of the weights that ``output_attentions=True`` returns. Such a call is left to
    PyTorch, and a warning says so once. To train with cattn, set the dropout of the attention to 0 in the
    configuration, if it is not.

    With ``output_attentions=True`` in the call of a model, `cattn.attention_weights` computes the weights that "eager"
    would return. Rows that attend to nothing are zeros. Some models do not pass the flag on to their attention. These
    return None instead of weights, as with "sdpa". In a configuration, transformers accepts the flag only for "eager".

    A model on another device is refused with an error. So is a model whose attention cannot be replaced, such as MPT,
    and one that asks its attention for something that cattn does not know. Under torch.compile the graph breaks at each
    attention.

    The number of threads is that of `torch.get_num_threads`, unless `cattn.num_threads`,
    `cattn.set_num_threads` or CATTN_NUM_THREADS says another.

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


_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_NEGATIONS = frozenset(("bitwise_not", "logical_not"))
# The operations that take booleans as a condition, and the place of the condition among their arguments.
_CONDITION = {"where": 0, "masked_fill": 1, "masked_fill_": 1, "index": 1, "index_put": 1, "index_put_": 1}


class _Mask(torch.Tensor):
    """Stand for booleans (batch, 1, queries, keys), True where a query may attend, without holding them.

    `modifiers` is what `attention` takes in their place. Once somebody reads or writes elements, they are made, and
    from then on they count.

    Booleans that are made from a mask are a mask as well, and a mask may be the condition of `torch.where`. Anything
    else is refused. A model that adds a mask to the scores, compares it with 0, casts it to numbers, or extends it by
    elements of its own expects another kind of mask, and would silently compute something else."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shape, modifiers, strides=None):
        return torch.Tensor._make_wrapper_subclass(cls, shape, strides, dtype=torch.bool)

    def __init__(self, shape, modifiers, strides=None):
        self.modifiers = modifiers

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.alias.default:  # "eager" attention takes a slice of the whole mask
            (mask,) = args
            return cls(mask.shape, mask.modifiers)
        name = function.overloadpacket.__name__
        plain, options = tree_map_only(_Mask, _Mask.elements, (args, kwargs or {}))
        result = function(*plain, **options)
        condition = tree_leaves(args[_CONDITION[name]] if name in _CONDITION else ())
        is_condition = any(isinstance(leaf, _Mask if name == "where" else _Negation) for leaf in condition)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        numbers = any(tensor.dtype is not torch.bool for tensor in tensors)
        extends = name == "constant_pad_nd" or (name == "cat" and not all(isinstance(part, _Mask) for part in args[0]))
        if name in _COMPARISONS or extends or (numbers and not is_condition):
            raise NotImplementedError(  # not a TypeError, which the operator + would replace by one of its own
                f"attention_mask: expected a model that takes booleans (True: may attend), got one that reads them as "
                f"numbers ({name}) in an attention of its own, which cattn cannot replace; {_INSTEAD}"
            )
        if numbers or name in ("where", "any", "all"):
            return result
        if result is plain[0]:  # the operation wrote into the mask
            return args[0]
        negated = all(isinstance(leaf, _Negation) for leaf in tree_leaves(args) if isinstance(leaf, _Mask))
        kind = _Negation if negated != (name in _NEGATIONS) else _Mask
        return tree_map_only(torch.Tensor, kind._of, result)

    @classmethod
    def _of(cls, tensor):
        return cls(tensor.shape, {"mask": to_numpy(tensor)}, tensor.stride())

    def __repr__(self):
        return repr(self.elements())

    def elements(self):
        if "mask" not in self.modifiers:
            mask = _elements(self.shape, **self.modifiers)
            self.modifiers.clear()
            self.modifiers["mask"] = mask
        return to_tensor(self.modifiers["mask"])


class _Negation(_Mask):
    """Stand for the entries that a mask hides.

    These booleans may also be the condition of an assignment or an index. A cast to numbers is refused, as it is for
    masks: added to scores, the result of `~` would hide what may be seen.
    """


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
    """Make the mask of a forward pass. transformers 5.0 gives the queries' positions as a tensor, 5.8 as a range."""
    if cache_position is not None:
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    elif q_length is None:
        raise TypeError(f"cattn.transformers: the masks of transformers {transformers.__version__} are not known here")
    if torch.device(device).type != "cpu":
        raise ValueError(f"attention_mask: expected a tensor on the CPU, got one on {device}; write model.cpu()")
    _refuse_own_attention(type(given.get("config")))
    if not _supports_others(type(given.get("config"))):
        # A model that is meant for "eager" alone may read its mask elsewhere too, as the router of NLLB-MoE does, and
        # there expects the numbers that "eager" adds.
        position = {"q_length": q_length, "q_offset": q_offset, "device": device}
        if cache_position is not None:
            position = {"cache_position": cache_position}
        return masking_utils.eager_mask(batch_size=batch_size, kv_length=kv_length, **position, **given)
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


def _refuse_own_attention(config):
    """Raise an error if the models of a configuration's class compute attention themselves, by no name that could be
    replaced. transformers accepts any registered name when it makes such a model, so its first mask is the first chance
    to refuse it."""
    if not _supports_others(config) and not any(map(_looks_up_attention, _models(config))):
        raise NotImplementedError(
            "attn_implementation: expected a model whose attention can be replaced, got one with an attention of its "
            f"own ({config.__name__.removesuffix('Config')}); {_INSTEAD}"
        )


@functools.cache
def _supports_others(config):
    """Return whether the models of a configuration's class are meant for another attention than "eager". Some that are
    not look it up by name all the same."""
    models = _models(config)
    return not models or any(model._supports_attention_backend or model._supports_sdpa for model in models)


def _models(config):
    return [model for model in _subclasses(PreTrainedModel) if model.config_class is config]


def _looks_up_attention(model):
    # A class that says no itself looks nothing up, even if another class in its module does, as in Gemma 4.
    says_no = "_supports_attention_backend" in vars(model)
    return not says_no and hasattr(sys.modules.get(model.__module__), "ALL_ATTENTION_FUNCTIONS")


def _subclasses(kind):
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


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
    """Return the modifiers of a causal, sliding or bidirectional mask over a padded batch, or None for another mask.

    The queries stand at positions from `first`, the keys from `kv_offset`. Both count from the first token.
    """
    window = _window(mask_function, local_size)
    if window is None:
        return None
    modifiers = {}
    if attention_mask is not None:
        # Keys past the end of the padding mask do not exist yet, in a cache of fixed length.
        ranges = _intervals(to_numpy(attention_mask)[:, kv_offset : kv_offset + kv_length])
        if ranges is None:
            return None
        start, stop = ranges
        if start.any() or (stop < kv_length).any():
            modifiers["key_range"] = start[:, None, None], stop[:, None, None]
    # A limit that no query reaches is left out, so that a new token that attends to its whole cache has no modifier.
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
    """Return the (left, right) of a mask function, or None if it is not one of transformers' own for this size."""
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
    """Return whether two closures run the same code on the same functions and integers.

    transformers makes the closures anew for each mask.
    """
    if isinstance(one, FunctionType) and isinstance(other, FunctionType) and one.__code__ is other.__code__:
        cells = [tuple(cell.cell_contents for cell in function.__closure__ or ()) for function in (one, other)]
        return _same(*cells)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) is int and one == other


def _by_looking(batch, queries, keys, rows):
    """Return the modifiers of any mask. Its rows are made, some at a time, and looked at."""
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
    """Return the (start, stop) of the True elements along the last axis, or None if some row has no interval."""
    count = visible.sum(-1)
    if not count.any():  # argmax needs at least one element
        return count, count
    start = visible.argmax(-1)
    stop = np.where(count, visible.shape[-1] - visible[..., ::-1].argmax(-1), 0)
    return (start, stop) if np.array_equal(stop - start, count) else None


# Attention, in each layer

_NAMES = names_in("transformers")

# These keywords change nothing in transformers' own attention ("eager", "sdpa"). Any other keyword may say which keys a
# query attends to, or how, and is refused until somebody has looked at it. `cu_seq_lens_q` and `cu_seq_lens_k` do say
# it, because they are the ends of packed sequences. "eager" ignores them: without a mask beside them, as in the audio
# model of Qwen3-Omni in transformers 5.0, it attends beyond a sequence.
_HARMLESS = frozenset(
    (
        # The mask, or the rotation of queries and keys, already contains what these say.
        *("sliding_window", "position_ids", "cache_position", "mm_token_type_ids"),
        # These say what a forward pass returns and keeps beside the result of attention.
        *("use_cache", "return_dict", "output_hidden_states", "output_router_logits"),
        # These say how a loss is scaled, whether generation has begun, and whether gradients of flash attention always
        # have the same bits.
        *("labels", "num_items_in_batch", "is_first_iteration", "deterministic"),
        # Other layers read these: cross-attention, which gets the keys that are made from them, and recurrent layers.
        *("encoder_hidden_states", "seq_idx"),
        # Embeddings were made from these before, or logits will be made from them.
        *("pixel_values", "image_position_ids", "vision_feature_layer", "vision_feature_select_strategy"),
        *("logits_to_keep", "generation_mode"),
        # The keys and values already hold what is in the cache.
        *("cache", "past_key_values"),
        # Kosmos-2 passes options of generation down to its vision model. `temperature`, `top_k` and `top_p` are missing
        # here, because an attention may have options of these names.
        *("generation_config", "max_new_tokens", "min_new_tokens", "do_sample", "num_beams", "num_return_sequences"),
        *("return_dict_in_generate", "output_logits", "output_scores"),
    )
)


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
    indices=None,
    output_attentions=False,
    **others,
):
    """Compute the attention of a layer, (batch, heads, length, size) to (batch, length, heads, size).

    The second result is the weights if they are asked for, else None.
    """
    for name, other in others.items():
        if other is not None and name not in _HARMLESS:
            raise NotImplementedError(f"{name}: expected None, since cattn does not know this argument; {_INSTEAD}")
    queries, keys = query.shape[2], key.shape[2]
    triangle = getattr(module, "bias", None)
    if (
        isinstance(triangle, torch.Tensor)
        and triangle.dtype is torch.bool
        and not _supports_others(type(module.config))
    ):
        raise NotImplementedError(  # only "eager" looks at such a triangle, as in older Decision Transformers
            "attn_implementation: expected a model whose masks say what is causal, got one with an attention of its own"
            f" ({type(module).__name__}); {_INSTEAD}"
        )
    if is_causal is None:
        # "eager" knows no such attribute. Models that are meant for "eager" alone may say True and mean False.
        is_causal = getattr(module, "is_causal", True) and _supports_others(type(getattr(module, "config", None)))
    # A single query is a new token, which attends to all keys. Several queries stand at the first keys, because these
    # are the keys that exist in an empty cache of fixed length.
    is_causal = is_causal and queries > 1
    if indices is not None:
        attention_mask = _selected(attention_mask, indices, keys)
    reason = _left_to_pytorch(
        dropout,
        output_attentions,
        query=query,
        key=key,
        value=value,
        attention_mask=attention_mask,
        position_bias=position_bias,
        s_aux=s_aux,
    )
    if reason is not None:
        _warn(reason)
        named = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
        key, value = key.to(query.dtype), value.to(query.dtype)  # a cache may hold them in a half type
        return _pytorch(
            *(module, query, key, value, attention_mask, is_causal, output_attentions),
            **{name: given for name, given in named.items() if given is not None},
            dropout=dropout,
            scaling=scaling,
        )

    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    if attention_mask is None:
        modifiers = {"causal": True, "query_offset": "start"} if is_causal else {}
    else:
        modifiers = _read_mask(attention_mask, queries, keys)
    if position_bias is not None:
        if "bias" in modifiers:
            position_bias = position_bias + attention_mask
        modifiers["bias"] = position_bias
    if softcap is not None:
        modifiers["softcap"] = softcap
    if s_aux is not None:
        modifiers["sinks"] = s_aux

    modifiers.update(layout="blhd", scale=scaling, num_threads=num_threads())
    names = _NAMES if position_bias is None else _NAMES | {"bias": "position_bias"}
    recorded = is_recorded(query, key, value, *modifiers.values())
    with torch.no_grad():
        arrays = read_inputs(("query", "key", "value"), query, key, value, may_mix=True)
        tensors = {name: x for name, x in modifiers.items() if isinstance(x, torch.Tensor)}
        read_modifiers = modifiers | {name: read(names[name], x) for name, x in tensors.items()}
    # The heads usually lie within the positions, both in the inputs and in the result.
    arrays = [array.swapaxes(1, 2) for array in arrays]
    weights = None
    try:
        if recorded:
            return _autograd.attention(*(x.transpose(1, 2) for x in (query, key, value)), **modifiers), None
        out = attention(*arrays, **read_modifiers)
        if output_attentions:
            weights = to_tensor(attention_weights(*arrays[:2], **read_modifiers)).to(query.dtype)
    except (TypeError, ValueError) as error:
        raise renamed(error, names) from None
    return to_tensor(out), weights


def _selected(attention_mask, indices, keys):
    """Return the mask of sparse attention, which keeps only the keys in each query's indices.

    The indices are (batch, queries, selected). Models make this mask themselves for "eager" and "sdpa" alone.
    """
    if attention_mask is None:
        raise ValueError("attention_mask: expected a mask beside indices, got None")
    selected = torch.zeros((*indices.shape[:2], keys), dtype=torch.bool).scatter_(-1, indices.long(), True)[:, None]
    if attention_mask.dtype is torch.bool:
        return attention_mask & selected
    return attention_mask.masked_fill(~selected, -torch.inf)


def _read_mask(attention_mask, queries, keys):
    """Return the modifiers that a mask stands for, whether cattn or the caller made it."""
    if isinstance(attention_mask, _Mask):
        if attention_mask.shape[-2:] == (queries, keys):
            return dict(attention_mask.modifiers)
        attention_mask = attention_mask.elements()  # they may broadcast, such as one row for all queries
    with torch.no_grad():
        mask = read("attention_mask", attention_mask)
    if attention_mask.dtype is torch.bool:
        return {"mask": mask}
    if attention_mask.is_floating_point():
        return {"bias": attention_mask}  # a tensor, because it may need a gradient
    raise TypeError(
        "attention_mask: expected booleans (True: may attend) or what is added to the scores, "
        f"got {mask.dtype}; write attention_mask.bool()"
    )


# What is left to PyTorch

_SDPA = inspect.signature(sdpa_attention_forward).parameters.keys()
_warned = set()


def _left_to_pytorch(dropout, output_attentions, **tensors):
    """Return why cattn cannot serve a call in training, or None if it can."""
    if dropout:
        advice = "write model.eval(), or set the dropout of the attention to 0 in the configuration"
        return f"dropout: expected 0, since cattn has no dropout, got {dropout}; {advice}"
    if is_recorded(*tensors.values()):
        if output_attentions:
            return (
                "output_attentions: expected False where gradients are needed, since cattn computes none of the "
                f"weights, got {output_attentions}; call the model under torch.no_grad()"
            )
        return None
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            try:
                refuse_gradient(name, tensor)
            except NotImplementedError as error:
                return str(error)
    return None


def _warn(reason):
    if reason not in _warned:
        warnings.warn(f"cattn.transformers leaves this attention to PyTorch: {reason}", stacklevel=2)
        _warned.add(reason)  # not before the warning, so that a filter that makes it an error makes it one in each call


def _pytorch(module, query, key, value, attention_mask, is_causal, output_attentions, **named):
    """Compute attention in PyTorch, with its gradients, by transformers' own "sdpa" or "eager".

    "sdpa" has no softcap, no sinks and no weights, and would ignore them. A model that has any of these brings an
    "eager" function of its own, which adds the mask to the scores.
    """
    if isinstance(attention_mask, _Mask):
        attention_mask = attention_mask.elements()
    if not output_attentions and named.keys() <= _SDPA:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **named)
    modules = (sys.modules.get(kind.__module__) for kind in type(module).__mro__)
    eager = next((found for place in modules if (found := getattr(place, "eager_attention_forward", None))), None)
    if eager is None:
        raise NotImplementedError(
            "attn_implementation: expected a model with an eager_attention_forward, which computes softcap, sinks and "
            f"weights where cattn leaves attention to PyTorch, got {type(module).__name__}; {_INSTEAD}"
        )
    if attention_mask is None and is_causal:
        attention_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype is torch.bool:
        attention_mask = torch.where(attention_mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
    return eager(module, query, key, value, attention_mask, **named)
