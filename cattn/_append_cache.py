"""A cache for the models of transformers that appends in place."""

import functools
import math

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ._cache import as_capacity, with_spare_room
from ._read import TYPES, shown
from ._tensors import is_float, refuse_gradient


class AppendCache(DynamicCache):
    """Keep the keys and values of a model of transformers, and append new ones in place.

    Pass one as `cache` to a model or to its `generate`. transformers' own DynamicCache copies all keys and
    values for each new token. Its StaticCache copies none, but its length is fixed, and each token attends to all of
    it. This cache copies nothing until its memory is full. Its contents then move to memory of twice the size.

    Parameters
    ----------
    config : PreTrainedConfig, optional
        The configuration of the model. With it, layers with a sliding window keep only their window. Layers of other
        kinds, such as linear attention, are those of DynamicCache.
    capacity : int
        The number of tokens to make room for at once, the prompt included. It concerns the layers without a window.
    dtype : torch.dtype, optional
        The type in which keys and values are kept: by default that of the model. torch.bfloat16 and torch.float16 may
        stand beside a model in float32, if its attention is cattn's. The memory is then half as large.

    Raises
    ------
    NotImplementedError
        transformers is older than 5.24. When keys or values are appended: they need a gradient.
    TypeError, ValueError
        `capacity` or `dtype` is not what is described above. When keys or values are appended: their batch, heads or
        size differ from those in the cache.

    See Also
    --------
    cattn.KVCache : A cache for NumPy arrays.

    Notes
    -----
    ``cache.layers[n].keys`` and ``.values`` are views of the memory. `crop` and the next tokens write over what lies
    behind it, so clone what should stay.

    Examples
    --------
    >>> import torch
    >>> import cattn.transformers
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> cattn.transformers.register()
    >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> model = LlamaForCausalLM._from_config(config, attn_implementation="cattn").eval()
    >>> cache = cattn.transformers.AppendCache(config, capacity=32)
    >>> prompt = torch.arange(10)[None]
    >>> tokens = model.generate(prompt, cache=cache, max_new_tokens=8, do_sample=False, pad_token_id=0)
    >>> tokens.shape, cache.get_seq_length()
    (torch.Size([1, 18]), 17)
    """

    def __init__(self, config=None, *, capacity=0, dtype=None):
        version = tuple(map(int, transformers.__version__.split(".")[:2]))
        if version < (5, 24):
            raise NotImplementedError(
                "cattn.transformers.AppendCache: expected transformers 5.24 or later, "
                f"got {transformers.__version__}: pip install -U transformers"
            )
        capacity = as_capacity(capacity)
        if dtype is not None and not is_float(dtype):
            raise TypeError(f"dtype: expected None or a torch.dtype of {TYPES}, got {shown(dtype)}")
        super().__init__(config=config)
        if config is None:
            self.layer_class_to_replicate = functools.partial(_Layer, capacity, dtype)
        self.layers = [_ours(layer, capacity, dtype) for layer in self.layers]


def _ours(layer, capacity, dtype):
    """Return a layer that appends in place for one that does not. Layers of other kinds stay as they are."""
    if type(layer) is DynamicLayer:
        return _Layer(capacity, dtype)
    if type(layer) is DynamicSlidingWindowLayer:
        return _SlidingLayer(layer.sliding_window, dtype)
    return layer


class _Appending:
    """Append to `keys` and `values`, which are views of memory with room behind them.

    The views are all that there is to know: how much room there is follows from their storage. Whatever transformers
    assigns to them, a shorter view or a tensor of its own, is what the next tokens are appended to.
    """

    def lazy_initialization(self, key_states, value_states):
        self.device = key_states.device
        self.keys, self.values = (
            _memory(new.shape, self.capacity, self.dtype or new.dtype, self.device)[:, :, :0]
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def extended(self, key_states, value_states):
        """Return keys and values with the new ones behind them. Until the caller assigns them, nothing has changed."""
        _check("key_states", key_states, self.keys)
        _check("value_states", value_states, self.values)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._behind(self.keys, key_states), self._behind(self.values, value_states)

    def _behind(self, rows, new):
        batch, heads, before, size = rows.shape
        length = before + new.shape[2]
        if new.shape[2] > _room(rows):
            memory = _memory(rows.shape, self.capacity_for(length, rows), rows.dtype, rows.device)
            rows = memory[:, :, :before].copy_(rows)
        longer = rows.as_strided((batch, heads, length, size), rows.stride(), rows.storage_offset())
        longer[:, :, before:] = new
        return longer

    def reorder_cache(self, beam_idx):
        if self.is_initialized and not torch.equal(beam_idx.cpu(), torch.arange(len(self.keys))):
            self.keys, self.values = (_selected(rows, beam_idx.tolist()) for rows in (self.keys, self.values))


class _Layer(_Appending, DynamicLayer):
    def __init__(self, capacity=0, dtype=None):
        super().__init__()
        self.capacity, self.dtype = capacity, dtype

    @torch.compiler.disable
    def update(self, key_states, value_states, *args, **kwargs):
        self.keys, self.values = self.extended(key_states, value_states)
        return self.keys, self.values

    def capacity_for(self, length, rows):
        return self.capacity if length <= self.capacity else max(with_spare_room(length), 2 * _capacity(rows))


class _SlidingLayer(_Appending, DynamicSlidingWindowLayer):
    capacity = 0

    def __init__(self, sliding_window, dtype=None):
        super().__init__(sliding_window)
        self.dtype = dtype

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self._sliding_window_tensor = self._sliding_window_tensor.to(self.device)

    @torch.compiler.disable
    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = self.extended(key_states, value_states)
        before = self.sliding_window - 1  # what a token sees before itself
        new = key_states.shape[2]
        self.cumulative_length += new
        kept = keys.shape[2] if self.record_past else before
        self.keys, self.values = _last(keys, kept), _last(values, kept)
        return _last(keys, before + new), _last(values, before + new)

    def capacity_for(self, length, rows):
        if self.record_past:
            return with_spare_room(length)
        return max(length, with_spare_room(self.sliding_window))


def _check(name, new, rows):
    """Refuse keys or values that do not fit those of the cache, if it has any. Writing would broadcast them."""
    refuse_gradient(name, new)
    if new.ndim == 4 and (rows is None or (new.shape[:2] == rows.shape[:2] and new.shape[3] == rows.shape[3])):
        return
    batch, heads, _, size = ("batch", "heads", None, "size") if rows is None else rows.shape
    raise ValueError(
        f"{name}: expected shape ({batch}, {heads}, length, {size}), as the cache has it, got {tuple(new.shape)}"
    )


def _memory(shape, capacity, dtype, device):
    batch, heads, _, size = shape
    with torch.inference_mode(False):  # what is made in inference mode could be written to in no other mode
        return torch.empty((batch, heads, capacity, size), dtype=dtype, device=device)


def _capacity(rows):
    """Return how many rows of each head the memory of a view has, or would have if it were contiguous."""
    return rows.untyped_storage().nbytes() // max(1, rows.itemsize * math.prod(rows.shape[:2]) * rows.shape[3])


def _room(rows):
    """Return how many rows fit between these and the end of their memory, 0 for tensors that were not made here."""
    _, heads, length, size = rows.shape
    capacity = _capacity(rows)
    if rows.stride() != (heads * capacity * size, capacity * size, size, 1):
        return 0
    return capacity - rows.storage_offset() // max(1, size) - length


def _last(rows, count):
    return rows[:, :, max(0, rows.shape[2] - count) :]


def _selected(rows, entries):
    """Return a copy of some entries, with as much room behind them as before."""
    memory = _memory((len(entries), *rows.shape[1:]), rows.shape[2] + _room(rows), rows.dtype, rows.device)
    selected = memory[:, :, : rows.shape[2]]
    for n, entry in enumerate(entries):
        selected[n] = rows[entry]
    return selected
