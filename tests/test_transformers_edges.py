"""Tests of what models of transformers ask for besides the output of attention, and of what is refused."""

import copy
import re
import warnings
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")

import torch
import transformers
from transformers import masking_utils
from transformers_models import LENGTH, can_be_replaced, check_close, models, tokens

import cattn
import cattn.transformers

SPARSE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "mlp_layer_types": ["dense"] * 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def both(model, config, other):
    """A model with the attention `other` of transformers, and with cattn."""
    torch.manual_seed(0)
    theirs = model._from_config(copy.deepcopy(config), attn_implementation=other).eval()
    ours = model._from_config(copy.deepcopy(config), attn_implementation="cattn").eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def call(module=None, **changes):
    """The registered attention function, on small tensors."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(1, 2, 4, 8, generator=random) for name in ("query", "key", "value")}
    given = tensors | {"attention_mask": None} | changes
    return transformers.AttentionInterface()["cattn"](module or SimpleNamespace(is_causal=False), **given)


# Sparse attention


@pytest.mark.parametrize("other", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["DeepseekV32", "GlmMoeDsa"])
def test_sparse_attention(name, other):
    """These models fold the keys that they choose into the masks of "sdpa" and "eager", and give indices to others."""
    if not hasattr(transformers, "DeepseekV32Config"):
        pytest.skip(f"transformers {transformers.__version__} has no such models")
    config = getattr(transformers, f"{name}Config")(**SPARSE)
    theirs, ours = both(getattr(transformers, f"{name}ForCausalLM"), config, other)
    with torch.no_grad():
        for given in (tokens(1), tokens(3, "left")):
            check_close(ours(**given).logits, theirs(**given).logits, given["attention_mask"])
        options = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(ours.generate(**given, **options), theirs.generate(**given, **options))


@pytest.mark.parametrize("add", [False, True], ids=["bool", "added"])
def test_indices_narrow_a_mask(add):
    indices = torch.tensor([[[0, 3], [1, 1], [3, 2], [2, 0]]], dtype=torch.int32)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    chosen = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    given = torch.where(mask, 0.0, -torch.inf) if add else mask
    expected = call(attention_mask=chosen[None, None])[0]
    assert torch.equal(call(attention_mask=given, indices=indices)[0], expected)
    with pytest.raises(ValueError, match=r"^attention_mask: expected a mask beside indices, got None"):
        call(indices=indices)


# Keywords


@pytest.mark.parametrize("name", ["block_indices", "sinks", "cu_seq_lens_q", "top_k", "what_comes_next"])
def test_unknown_keywords_are_refused(name):
    with pytest.raises(NotImplementedError, match=f'^{name}: .* write attn_implementation="eager"'):
        call(**{name: torch.zeros(2, dtype=torch.int32)})
    call(**{name: None})


def test_harmless_keywords_change_nothing():
    given = {"sliding_window": 2, "position_ids": torch.arange(4)[None], "use_cache": True, "deterministic": False}
    given["pixel_values"] = torch.ones(1, 3, 4, 4)
    given |= {"labels": torch.zeros(1, 4, dtype=torch.int64), "generation_mode": "text"}
    given |= {"mm_token_type_ids": torch.tensor([[0, 1, 1, 0]]), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(call(**given)[0], call()[0])


def test_keywords_of_a_forward_are_refused():
    with torch.no_grad(), pytest.raises(NotImplementedError, match=r"^cu_seq_lens_q: "):
        models("llama")[1](**tokens(1), cu_seq_lens_q=torch.tensor([0, 8, 20], dtype=torch.int32))


# Attention of a model's own

STATES = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(2, 14, generator=torch.Generator().manual_seed(0))
OWN = {
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 99}, tokens(2)),
    "Longformer": (
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        | {"intermediate_size": 32, "attention_window": 4, "max_position_embeddings": 64},
        tokens(2),
    ),
    "Canine": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
        | {"num_hash_buckets": 64, "local_transformer_stride": 8},
        tokens(2),
    ),
    "DecisionTransformer": (  # in early versions of transformers, the causal mask is a buffer of its attention
        {"state_dim": 4, "act_dim": 2, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
        {"states": STATES, "actions": STATES[..., :2], "rewards": STATES[..., :1], "returns_to_go": STATES[..., 2:3]}
        | {"timesteps": torch.arange(5).expand(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)},
    ),
    "NllbMoe": (  # its router takes the layer's mask for one of padding
        {"vocab_size": 99, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
        | {"decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 2}
        | {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "init_std": 0.3},
        tokens(2) | {"decoder_input_ids": tokens(2)["input_ids"]},
    ),
    "Informer": (
        {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "d_model": 16, "num_time_features": 1}
        | {"encoder_layers": 1, "decoder_layers": 1},
        {"past_values": SERIES[:, :10], "past_time_features": SERIES[:, :10, None]}
        | {"past_observed_mask": torch.ones(2, 10)}
        | {"future_values": SERIES[:, 10:], "future_time_features": SERIES[:, 10:, None]},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_attention_of_a_models_own(name):
    """It is refused where the model asks for our mask. In early versions of transformers some make their own masks."""
    config, given = OWN[name]
    config = getattr(transformers, f"{name}Config")(**config)
    theirs, ours = both(getattr(transformers, f"{name}Model"), config, "eager")
    with torch.no_grad():
        try:
            found = ours(**given)[0]
        except NotImplementedError as error:
            assert re.search('an attention of its own.*write attn_implementation="eager"', str(error))
        else:
            torch.testing.assert_close(found, theirs(**given)[0])


# Masks that broadcast


def mask_of_one_query(**given):
    make = masking_utils.AttentionMaskInterface()["cattn"]
    try:
        return make(batch_size=1, kv_length=4, q_length=1, **given)
    except TypeError:
        return make(batch_size=1, kv_length=4, cache_position=torch.arange(1), **given)


@pytest.mark.parametrize("function", ["causal_mask_function", "bidirectional_mask_function"])
@pytest.mark.parametrize("present", [[1, 1, 1, 0], [1, 0, 1, 1]])
def test_one_row_masks_all_queries(present, function):
    present = torch.tensor([present], dtype=torch.bool)
    mask = mask_of_one_query(mask_function=getattr(masking_utils, function), attention_mask=present)
    assert mask.shape == (1, 1, 1, 4)
    row = present & torch.tensor([True] + 3 * [function == "bidirectional_mask_function"])
    assert torch.equal(call(attention_mask=mask)[0], call(attention_mask=row[None, None].expand(1, 1, 4, 4))[0])


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_bridgetower(padding):
    """Its masks have one row. Where there is none, attention is not causal, although the attribute of a layer is."""
    config = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 8, "image_size": 16}
    text = config | {"vocab_size": 99, "num_hidden_layers": 3, "max_position_embeddings": 64}
    config = transformers.BridgeTowerConfig(**config, num_hidden_layers=2, text_config=text, vision_config=vision)
    theirs, ours = both(transformers.BridgeTowerModel, config, "eager")
    given = tokens(3, padding or "right")
    given["pixel_values"] = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if padding is None:
        given["attention_mask"] = torch.ones_like(given["attention_mask"])
    with torch.no_grad():
        expected, found = theirs(**given), ours(**given)
    check_close(found.image_features, expected.image_features)
    check_close(found.text_features, expected.text_features, given["attention_mask"])


# Weights


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "bert", "t5"])
def test_weights(name, padding):
    """They are eager's, where a query attends to something."""
    if not can_be_replaced(name):
        pytest.skip(f"in transformers {transformers.__version__} {name} has attentions of its own")
    given = tokens(3, padding)
    eager, ours = (copy.deepcopy(model) for model in models(name))
    eager.set_attn_implementation("eager")
    if name == "t5":
        given["decoder_input_ids"] = tokens(3, length=7)["input_ids"]
    with torch.no_grad():
        expected, found = eager(**given, output_attentions=True), ours(**given, output_attentions=True)
    kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions") if name == "t5" else ("attentions",)
    for kind in kinds:
        assert len(found[kind]) == len(expected[kind]) == 2
        for weights, theirs in zip(found[kind], expected[kind], strict=True):
            assert (weights.shape, weights.dtype) == (theirs.shape, theirs.dtype)
            real = given["attention_mask"].bool() if theirs.shape[2] == LENGTH else torch.ones(3, 7, dtype=torch.bool)
            assert ((weights - theirs).abs().amax((1, 3)) * real).max() <= 2e-5
    with torch.no_grad():
        assert torch.equal(ours(**given)[0], found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_have_the_type_of_queries(dtype):
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = call(query=query, key=key, value=value, output_attentions=True)[1]
    assert weights.dtype is dtype
    expected = (query.double() @ key.double().mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=torch.finfo(dtype).eps)


# Training

LEFT = "^cattn.transformers leaves this attention to PyTorch: "


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch):
    monkeypatch.setattr(cattn.transformers, "_warned", set())


def gradients(model, given):
    model = copy.deepcopy(model)
    out = model(**given)[0]
    direction = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(0)
    )  # of squares, BERT's norm has no slope
    (out * direction * given["attention_mask"][..., None]).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(found, expected):
    """Compare within float32's rounding. One unit in the last place of all embeddings changes gradients by more."""
    eps, largest = torch.finfo(torch.float32).eps, max(gradient.abs().max() for gradient in expected.values())
    for parameter, gradient in found.items():
        error = (gradient - expected[parameter]).abs().max()
        # The gradient of the bias of keys is nothing but rounding: a softmax does not see what all scores share.
        assert error <= eps * (256 * expected[parameter].abs().max() + 4 * largest), parameter


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "bert"])
def test_gradients(name, padding):
    theirs, ours = models(name)
    given = tokens(3, padding)
    out, expected = gradients(theirs, given)
    found_out, found = gradients(ours, given)
    check_close(found_out, out, given["attention_mask"])
    assert found.keys() == expected.keys()
    check_gradients(found, expected)


def test_gradients_of_t5():
    if not can_be_replaced("t5"):
        pytest.skip(f"in transformers {transformers.__version__} T5 has attentions of its own")
    given = tokens(3) | {"decoder_input_ids": tokens(3, length=LENGTH)["input_ids"]}
    (_, expected), (_, found) = (gradients(model, given) for model in models("t5"))
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in found
    check_gradients(found, expected)


def _quietly(function, *given):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", LEFT)
        return function(*given)


def test_gradient_of_a_bias_alone():
    bias = torch.zeros(1, 2, 4, 4, requires_grad=True)
    out, _ = call(attention_mask=bias)
    assert torch.equal(out, call(attention_mask=bias.detach())[0])
    out.square().sum().backward()
    assert bias.grad.abs().max() > 0


def test_wrong_arguments_in_training():
    """The errors are those of calls without gradients."""
    for wrong in ({"attention_mask": torch.zeros(3, 3)}, {"s_aux": torch.zeros(3)}, {"key": torch.zeros(1, 2, 4, 7)}):
        with pytest.raises(ValueError) as expected:
            call(**wrong)
        with pytest.raises(ValueError) as found:
            call(query=torch.ones(1, 2, 4, 8, requires_grad=True), **wrong)
        assert str(found.value) == str(expected.value)


def test_one_warning():
    model, given = models("bert")[1], tokens(1)
    with pytest.warns(UserWarning, match=f"{LEFT}output_attentions: expected False where gradients are") as warned:
        model(**given, output_attentions=True)
        model(**given, output_attentions=True)
    assert len(warned) == 1
    with torch.no_grad():
        model(**given, output_attentions=True)


def test_the_warning_as_an_error():
    for _ in range(2):  # it is one each time
        with warnings.catch_warnings(), pytest.raises(UserWarning, match=LEFT):
            warnings.filterwarnings("error", "cattn.transformers leaves", UserWarning)
            models("bert")[1](**tokens(1), output_attentions=True)


@pytest.mark.parametrize("grad", [True, False])
def test_dropout(grad):
    config = transformers.LlamaConfig(**models("llama")[0].config.to_diff_dict() | {"attention_dropout": 0.3})
    theirs, ours = both(transformers.LlamaForCausalLM, config, "sdpa")
    outputs = []
    with torch.set_grad_enabled(grad), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for model in (theirs, ours):
            torch.manual_seed(0)
            outputs.append(model.train()(**tokens(1)).logits)
        check_close(outputs[1], outputs[0])
        assert [str(warning.message).startswith(LEFT[1:] + "dropout: ") for warning in warned] == [True]
    with torch.no_grad():
        check_close(ours.eval()(**tokens(1)).logits, theirs.eval()(**tokens(1)).logits)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_weights_with_gradients(name):
    theirs, ours = models(name)
    eager = copy.deepcopy(theirs)
    eager.set_attn_implementation("eager")
    expected = eager(**tokens(2), output_attentions=True).attentions
    found = _quietly(lambda: ours(**tokens(2), output_attentions=True).attentions)
    assert all(weights.requires_grad for weights in found)
    for weights, other in zip(found, expected, strict=True):
        torch.testing.assert_close(weights, other)


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("queries", [1, 4])
def test_no_mask_with_gradients(queries, output_attentions):
    """It is causal where cattn is, also in the function that "eager" takes."""
    attention = models("llama")[1].model.layers[0].self_attn
    query, key, value = torch.randn(3, 1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    given = {"query": query[:, :, :queries], "key": key[:, ::2], "value": value[:, ::2], "scaling": 0.5}
    given["output_attentions"] = output_attentions
    expected = call(attention, **given)
    given["query"] = given["query"].clone().requires_grad_()
    found = _quietly(lambda: call(attention, **given))
    torch.testing.assert_close(found, expected)
