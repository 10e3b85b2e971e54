"""Tiny models of transformers, randomly initialised: each with the attention of transformers, and with cattn."""

import copy
import functools
import sys

import torch
import transformers

import cattn.transformers

cattn.transformers.register()

SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so large that it matters which keys are attended to
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
# A choice between them would turn the last bit of a tie into another answer.
ALL_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}
# Model, configuration, and the attention of transformers that serves it.
MODELS = {
    "llama": ("LlamaForCausalLM", GROUPED, "sdpa"),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 8}, "sdpa"),
    "gemma2": (
        "Gemma2ForCausalLM",
        GROUPED | {"sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
        "eager",
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        GROUPED | {"sliding_window": 8} | ALL_EXPERTS,
        "eager",
    ),
    "llama4": (
        "Llama4ForCausalLM",
        GROUPED | {"attention_chunk_size": 6, "intermediate_size_mlp": 64, "no_rope_layers": [1, 0]} | ALL_EXPERTS,
        "sdpa",
    ),
    "bert": ("BertModel", SMALL, "sdpa"),
    "modernbert": (
        "ModernBertModel",
        SMALL
        | {"global_attn_every_n_layers": 2, "local_attention": 8}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "sdpa",
    ),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ | {"max_position_embeddings": 64}, "sdpa"),
    "t5": ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}, "eager"),
    "whisper": (
        "WhisperForConditionalGeneration",
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 40},
        "sdpa",
    ),
}
DECODERS = ["llama", "mistral", "gemma2", "gpt_oss", "llama4"]
LENGTH, NEW = 20, 6


@functools.cache
def models(name):
    """One model twice: with the attention of transformers, and with cattn."""
    title, config, other = MODELS[name]
    model = getattr(transformers, title)
    config = model.config_class(**config)
    torch.manual_seed(0)
    # Each its own configuration: from one that they share, both would take their attention.
    theirs = model._from_config(copy.deepcopy(config), attn_implementation=other).eval()
    if name == "gpt_oss":
        for layer in theirs.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, std=2)
    ours = model._from_config(copy.deepcopy(config), attn_implementation="cattn").eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(batch, padding="right", length=LENGTH):
    """Tokens and their attention mask; entry n lacks 3·n tokens."""
    ids = torch.randint(3, 99, (batch, length), generator=torch.Generator().manual_seed(batch))
    missing = 3 * torch.arange(batch)[:, None]
    place = torch.arange(length)[None]
    attention_mask = (place >= missing) if padding == "left" else (place < length - missing)
    return {"input_ids": torch.where(attention_mask, ids, 0), "attention_mask": attention_mask.long()}


def check_close(found, expected, real=None):
    """Within float32's rounding in two layers, where the tokens are real: those of padding attend to nothing here, and
    to everything with transformers' eager attention."""
    real = torch.ones(found.shape[:-1]) if real is None else real
    error = ((found - expected) * real[..., None]).abs().max()
    assert error <= 32 * torch.finfo(torch.float32).eps * expected.abs().max()


def run_both(name, call):
    theirs, ours = models(name)
    with torch.no_grad():
        return call(theirs), call(ours)


def can_be_replaced(name):
    """Return whether this version of transformers looks up the attention of the model by its name."""
    return hasattr(sys.modules[getattr(transformers, MODELS[name][0]).__module__], "ALL_ATTENTION_FUNCTIONS")
