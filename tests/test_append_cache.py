"""AppendCache gives the models of transformers what DynamicCache gives them, and copies no token at each step."""

import copy
import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.24")

import torch
import transformers
from helpers import python
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, EncoderDecoderCache, MistralConfig
from transformers.cache_utils import DynamicLayer
from transformers_models import DECODERS, models, tokens

from cattn.transformers import AppendCache

NEW = 20  # which is beyond the sliding windows of the models
KEY_HEADS, SIZE = 2, 4
WINDOW = 6
# Two layers: one with a window, one without.
CONFIG = MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])


def generate(model, cache, *, given=None, **options):
    given = tokens(3, "left") if given is None else given
    found = model.generate(
        **given,
        **{"cache": cache, "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False},
        **{"output_logits": True, "return_dict_in_generate": True},
        **options,
    )
    return found.sequences, found.logits


def check_generate(model, ours, theirs, **options):
    """Two caches give the same tokens."""
    found, expected = generate(model, ours, **options), generate(model, theirs, **options)
    assert torch.equal(found[0], expected[0])
    assert found[0].shape[-1] >= NEW
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, other)


# Generation


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("attention", ["theirs", "cattn"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens(name, attention, options):
    model = models(name)[attention == "cattn"]
    for capacity in (0, 64):
        ours = AppendCache(model.config, capacity=capacity)
        check_generate(model, ours, DynamicCache(config=model.config), **options)


@pytest.mark.parametrize("name", DECODERS)
def test_assisted_tokens(name):
    """An assistant drafts tokens, and those that are refused are cropped, also from windows that are full."""
    _, model = models(name)
    _, assistant = models("llama" if name != "llama" else "mistral")
    single = tokens(1, length=9)
    expected = generate(model, DynamicCache(config=model.config), given=single)[0]
    found = generate(model, AppendCache(model.config), given=single, assistant_model=assistant)[0]
    assert torch.equal(found, expected)
    found = generate(model, AppendCache(model.config), given=single, prompt_lookup_num_tokens=3)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_and_decoder(name, options):
    theirs, _ = models(name)

    def cache(kind):
        return EncoderDecoderCache(kind(config=theirs.config), kind(config=theirs.config))

    check_generate(theirs, cache(AppendCache), cache(DynamicCache), **options)


def test_without_a_configuration():
    _, model = models("llama")
    check_generate(model, AppendCache(), DynamicCache())


class RoundedLayer(DynamicLayer):
    """Round keys and values to bfloat16, in a layer of transformers."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states.bfloat16(), value_states.bfloat16())


def test_half_types_beside_float32():
    _, model = models("llama")
    theirs = DynamicCache()
    theirs.layer_class_to_replicate = RoundedLayer
    ours = AppendCache(model.config, dtype=torch.bfloat16)
    check_generate(model, ours, theirs)
    assert ours.layers[0].keys.dtype is ours.layers[0].values.dtype is torch.bfloat16
    plain = generate(model, DynamicCache())[1][0]
    rounded = generate(model, AppendCache(model.config, dtype=torch.float16))[1][0]
    assert 0 < (plain - rounded).abs().max() < 0.01 * plain.abs().max()


def test_half_types_where_pytorch_computes(recwarn):
    """A call that cattn leaves to PyTorch takes a cache of half types, too."""
    model = copy.deepcopy(models("llama")[1])
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 1e-9
    given = tokens(2)
    with torch.no_grad():
        expected = model.eval()(**given, cache=AppendCache(model.config, dtype=torch.float16)).logits
        found = model.train()(**given, cache=AppendCache(model.config, dtype=torch.float16)).logits
    assert any("leaves this attention to PyTorch: dropout" in str(warning.message) for warning in recwarn)
    assert (found - expected)[given["attention_mask"].bool()].abs().max() < 1e-3


# Against DynamicCache, operation by operation


def outcome(cache, operation, *given):
    """Return what an operation returns, or the class of its error."""
    try:
        return getattr(cache, operation)(*given)
    except (RuntimeError, ValueError, AttributeError) as error:  # a window that is empty cannot be cropped
        return type(error)  # the first layer raises it, so that no other one has changed


def same(one, other):
    if isinstance(one, tuple):
        return all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return type(one) is torch.Tensor and one.dtype == other.dtype and torch.equal(one, other)
    return one == other


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_program(data):
    """Each operation gives what it gives for DynamicCache: keys and values, lengths and masks, or an error."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    caches = AppendCache(CONFIG, capacity=data.draw(st.sampled_from([0, 1, 25]))), DynamicCache(config=CONFIG)
    batch = 2
    for _ in range(data.draw(st.integers(1, 12))):
        operation = data.draw(
            st.sampled_from(
                ["update"] * 5
                + ["crop", "reorder_cache", "batch_repeat_interleave", "batch_select_indices", "reset"]
                + ["activate_past_recording"]
            )
        )
        steps = [[operation]]
        if operation == "update":
            shape = (2, batch, KEY_HEADS, data.draw(st.integers(1, 9)), SIZE)
            key, value = torch.randn(shape, generator=random)
            steps = [[operation, key, value, layer] for layer in range(2)]
        elif operation == "crop":
            steps = [[operation, -data.draw(st.integers(0, 4))]]
        elif operation in ("reorder_cache", "batch_select_indices"):
            size = batch if operation == "reorder_cache" else data.draw(st.integers(1, 3))
            index = data.draw(st.lists(st.integers(0, batch - 1), min_size=size, max_size=size))
            steps = [[operation, torch.tensor(index)]]
        elif operation == "batch_repeat_interleave":
            steps = [[operation, 1 + (batch < 3)]]
        for step in steps:
            found, expected = (outcome(cache, *step) for cache in caches)
            assert same(found, expected)
        if caches[1].layers[1].is_initialized:
            batch = len(caches[1].layers[1].keys)
        for layer in range(2):
            ours, theirs = (cache.layers[layer] for cache in caches)
            for query_length in (1, 4):
                assert ours.get_mask_sizes(query_length) == theirs.get_mask_sizes(query_length)
            assert ours.get_seq_length() == theirs.get_seq_length()
            assert ours.get_max_length() == theirs.get_max_length()
            assert ours.is_sliding == theirs.is_sliding and ours.is_croppable == theirs.is_croppable
            assert ours.is_initialized == theirs.is_initialized
            if theirs.get_seq_length():
                assert same((ours.keys, ours.values), (theirs.keys, theirs.values))


def test_layers_of_other_kinds_are_transformers_own():
    config = transformers.Qwen3NextConfig(num_hidden_layers=4)
    ours, theirs = AppendCache(config), DynamicCache(config=config)
    kinds = [(type(one), type(other)) for one, other in zip(ours.layers, theirs.layers, strict=True)]
    assert any(one is other for one, other in kinds)
    assert all(one is other or other is DynamicLayer for one, other in kinds)


# What it costs


def appended(cache, count, new=1, layer=0):
    """Append so many tokens one after the other. Return how many rows of keys moved, by their addresses."""
    moved, before = 0, None
    for _ in range(count):
        keys, _ = cache.update(*torch.zeros(2, 1, KEY_HEADS, new, SIZE), layer)
        here = keys.data_ptr() + (keys.shape[2] * SIZE * 4)  # the end, which does not depend on what was dropped
        if before is not None and here != before + new * SIZE * 4:
            moved += keys.shape[2] - new
        before = here
    return moved


@pytest.mark.parametrize("capacity, most", [(0, 2), (100, 2), (4000, 0)])
def test_appending_copies_each_token_once_or_twice(capacity, most):
    """Few tokens are moved for a new one. If all were, it would be 2,000 times as many."""
    cache = AppendCache(capacity=capacity)
    assert appended(cache, 4000) <= most * 4000
    assert cache.get_seq_length() == 4000


def test_a_window_is_small_and_seldom_moves():
    config = MistralConfig(num_hidden_layers=1, sliding_window=256)
    cache = AppendCache(config, capacity=10_000)
    cache.update(*torch.zeros(2, 1, KEY_HEADS, 5000, SIZE), 0)
    assert appended(cache, 4000) <= 10 * 4000 + 5000
    assert cache.layers[0].keys.untyped_storage().nbytes() <= 1.2 * 256 * KEY_HEADS * SIZE * 4


def test_beams_keep_their_room():
    cache = AppendCache(capacity=10)
    cache.update(*torch.zeros(2, 2, KEY_HEADS, 3, SIZE), 0)
    before = cache.layers[0].keys.data_ptr()
    cache.reorder_cache(torch.tensor([0, 1]))
    assert cache.layers[0].keys.data_ptr() == before
    cache.reorder_cache(torch.tensor([1, 1]))
    before = cache.layers[0].keys.data_ptr()
    assert cache.update(*torch.zeros(2, 2, KEY_HEADS, 7, SIZE), 0)[0].data_ptr() == before


def test_the_capacity_is_made_again():
    """When the batch changes, each layer is a new tensor, and the next token makes room for the capacity."""
    cache = AppendCache(capacity=10)
    cache.update(*torch.zeros(2, 2, KEY_HEADS, 3, SIZE), 0)
    cache.batch_select_indices(torch.tensor([1]))
    cache.update(*torch.zeros(2, 1, KEY_HEADS, 1, SIZE), 0)
    assert cache.layers[0].keys.untyped_storage().nbytes() == 10 * KEY_HEADS * SIZE * 4


PEAK = """
import json
import sys
from pathlib import Path
import torch
from cattn.transformers import AppendCache

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024

capacity, steps, new = map(int, sys.argv[1:])
layers, heads, size = 12, 2, 64
torch.set_num_threads(1)
cache = AppendCache(capacity=capacity)
key, value = torch.ones(2, 1, heads, new, size)
key.sum(), value.sum()
before = memory("VmSize"), memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what is resident until now
for _ in range(steps):
    for layer in range(layers):
        cache.update(key, value, layer)
contents = layers * 2 * heads * steps * new * size * 4
print(json.dumps([(memory(name) - x) / contents for name, x in zip(("VmPeak", "VmHWM"), before)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("capacity, most", [(10_000, 1.15), pytest.param(0, 2, marks=pytest.mark.slow)])
def test_peak_of_memory(capacity, most):
    """Memory stays within the bound, both what is allocated and what is in use, while 120 MB of keys and values are
    appended in 100 steps. Where the room doubles, it holds 16,384 tokens at the end, of which 10,000 are filled."""
    allocated, resident = json.loads(python(PEAK, str(capacity), "100", "100"))
    assert 0.99 < allocated <= most and 0.99 < resident <= most


# What tensors may be


def test_written_in_inference_mode_and_out_of_it():
    """transformers' generate uses no_grad, and a caller may have read the prompt in inference mode."""
    cache, (key, value) = AppendCache(capacity=8), torch.randn(2, 1, KEY_HEADS, 3, SIZE)
    with torch.inference_mode():
        cache.update(key, value, 0)
    with torch.no_grad():
        keys, values = cache.update(key, value, 0)
    assert torch.equal(keys, torch.cat([key, key], dim=2)) and torch.equal(values, torch.cat([value, value], dim=2))


def test_a_copy_goes_its_own_way():
    """A prompt is read once, and its cache copied for each continuation."""
    cache, (key, value) = AppendCache(capacity=8), torch.randn(2, 1, KEY_HEADS, 3, SIZE)
    cache.update(key, value, 0)
    other = copy.deepcopy(cache)
    other.update(value, key, 0)
    keys, _ = cache.update(key, value, 0)
    assert torch.equal(keys, torch.cat([key, key], dim=2))
    assert torch.equal(other.layers[0].keys, torch.cat([key, value], dim=2))


def test_other_tensors_in_a_layer_are_not_written_to():
    """Whoever assigns a tensor of its own to a layer keeps what lies around it."""
    cache, (key, value) = AppendCache(), torch.randn(2, 1, KEY_HEADS, 3, SIZE)
    cache.update(key, value, 0)
    foreign = torch.ones(1, 9, KEY_HEADS, SIZE)
    cache.layers[0].keys = foreign[:, :3].transpose(1, 2)
    keys, _ = cache.update(key, value, 0)
    assert torch.equal(keys[:, :, 3:], key) and keys[:, :, :3].eq(1).all()
    assert foreign.eq(1).all()


def test_crop_and_reset():
    cache, (key, value) = AppendCache(capacity=8), torch.randn(2, 1, KEY_HEADS, 5, SIZE)
    cache.update(key, value, 0)
    cache.crop(-2)
    assert cache.get_seq_length() == 3
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
    keys, _ = cache.update(value, key, 0)
    assert torch.equal(keys, torch.cat([key[:, :, :3], value], dim=2))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(cache.update(value, key, 0)[0], value)


# Errors


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"capacity": -1}, ValueError, "capacity: expected an integer of 0 or more, got -1"),
        ({"capacity": 1.5}, TypeError, "capacity: expected an integer of 0 or more, got 1.5"),
        ({"dtype": "bfloat16"}, TypeError, "dtype: expected None or a torch.dtype of float16, bfloat16, float32 or "),
        ({"dtype": torch.int8}, TypeError, "dtype: expected None or a torch.dtype of float16, bfloat16, float32 or "),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error) as caught:
        AppendCache(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("shape", [(2, KEY_HEADS, 1, SIZE), (1, 1, 1, SIZE), (1, KEY_HEADS, 1, 1), (KEY_HEADS, SIZE)])
def test_bad_shapes(shape):
    """They are not broadcast, and the cache is as it was."""
    cache, (key, value) = AppendCache(CONFIG), torch.randn(2, 1, KEY_HEADS, 5, SIZE)
    for layer in range(2):
        cache.update(key, value, layer)
        with pytest.raises(ValueError, match=r"^value_states: expected shape \(1, 2, length, 4\), as the cache has it"):
            cache.update(key, torch.zeros(shape), layer)
        assert cache.get_seq_length(layer) == 5
        assert torch.equal(cache.update(key, value, layer)[0], torch.cat([key, key], dim=2))


def test_gradients_are_refused():
    cache, key = AppendCache(), torch.randn(1, KEY_HEADS, 5, SIZE)
    with pytest.raises(NotImplementedError, match=r"^value_states: expected a tensor that needs no gradient"):
        cache.update(key, key.clone().requires_grad_(), 0)
    with torch.no_grad():
        cache.update(key, key.clone().requires_grad_(), 0)
    assert not cache.layers[0].values.requires_grad


def test_older_versions_are_refused(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.23.1")
    with pytest.raises(NotImplementedError, match=r"expected transformers 5\.24 or later, got 5\.23\.1"):
        AppendCache()
